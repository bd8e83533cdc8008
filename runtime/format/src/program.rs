//! A whole program file: how its head is written, found and read.

use std::fs::File;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use crate::elf::ElfImage;
use crate::header::HEADER_BYTES;
use crate::locator::{LOCATOR_BYTES, find_magic, searched_magic};
use crate::{
    DecodeError, DeviceCode, Header, Locator, Manifest, ProgramError, Section, StepLists, WeightTable,
    check_program,
};

/// A linked runtime with its kernels has a few megabytes; nothing larger is searched for a locator.
const MOST_SEARCHED_BYTES: u64 = 128 << 20;
const SEARCH_CHUNK_BYTES: u64 = 1 << 20;

/// Header and sections, to be written at [`Locator::header_offset`].
pub fn encode_program_head(
    manifest: &Manifest,
    lists: &StepLists,
    weights: &WeightTable,
    tokenizer: Option<&[u8]>,
    device_code: &DeviceCode,
) -> Vec<u8> {
    let manifest = serde_json::to_vec_pretty(manifest).expect("a manifest has no maps with odd keys");
    let (lists, weights, device_code) = (lists.encode(), weights.encode(), device_code.encode());
    let sections = [&manifest[..], &lists, &weights, tokenizer.unwrap_or_default(), &device_code];
    let header = Header::place(sections);
    let mut head = header.encode();
    for (record, bytes) in header.sections.iter().zip(sections) {
        head.resize(record.offset as usize, 0);
        head.extend_from_slice(bytes);
    }
    head
}

/// A program file, checked and decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct ProgramFile {
    /// Where its parts lie.
    pub locator: Locator,
    /// Facts and numbers.
    pub manifest: Manifest,
    /// What is executed.
    pub lists: StepLists,
    /// What lies in the weight region.
    pub weights: WeightTable,
    /// Tokenizer tables, not looked into here.
    pub tokenizer: Option<Vec<u8>>,
    /// What a device runs; empty where the program runs on the processor.
    pub device_code: DeviceCode,
}

impl ProgramFile {
    /// Finds the locator in the file's ELF image, then reads and checks the head.
    ///
    /// # Errors
    ///
    /// [`ProgramError`] tells apart what is no program, stripped, cut short, altered or of another
    /// version.
    pub fn read(file: &File) -> Result<Self, ProgramError> {
        let image = ElfImage::read(file)?;
        let locator = find_locator(file, &image)?;
        Self::read_located(file, &locator)
    }

    /// Reads and checks the head where the locator is known, as it is to a running program.
    ///
    /// # Errors
    ///
    /// As [`ProgramFile::read`].
    pub fn read_located(file: &File, locator: &Locator) -> Result<Self, ProgramError> {
        check_length(file, locator)?;
        let mut header = [0; HEADER_BYTES];
        read_at(file, &mut header, locator.header_offset)?;
        let header = Header::decode(&header)?;
        locator.check(header.head_bytes())?;
        let mut sections = Vec::with_capacity(Section::ALL.len());
        for (section, record) in Section::ALL.into_iter().zip(&header.sections) {
            // The locator's check has compared the head's length with the file's.
            let mut bytes = vec![0; record.bytes as usize];
            read_at(file, &mut bytes, locator.header_offset + record.offset)?;
            if Sha256::digest(&bytes)[..] != record.sha256 {
                return Err(ProgramError::Altered { section: section.name() });
            }
            sections.push(bytes);
        }
        let [manifest, lists, weights, tokenizer, device_code] =
            <[Vec<u8>; 5]>::try_from(sections).expect("one vector was pushed for each section");
        let Decoded { manifest, lists, weights, device_code } =
            Decoded::new(&manifest, &lists, &weights, &device_code)?;
        if manifest.weight_bytes != locator.weights_bytes {
            return Err(ProgramError::Invalid {
                section: "manifest",
                reason: format!(
                    "`weight_bytes` is {}, the weight region has {}",
                    manifest.weight_bytes, locator.weights_bytes
                ),
            });
        }
        let tokenizer = Some(tokenizer).filter(|bytes| !bytes.is_empty());
        Ok(Self { locator: *locator, manifest, lists, weights, tokenizer, device_code })
    }
}

/// The sections that are looked into here.
struct Decoded {
    manifest: Manifest,
    lists: StepLists,
    weights: WeightTable,
    device_code: DeviceCode,
}

impl Decoded {
    /// Decodes the sections and checks that they fit together.
    fn new(manifest: &[u8], lists: &[u8], weights: &[u8], device_code: &[u8]) -> Result<Self, ProgramError> {
        let invalid = |section: Section| {
            move |error: DecodeError| ProgramError::Invalid {
                section: section.name(),
                reason: error.to_string(),
            }
        };
        let manifest: Manifest = serde_json::from_slice(manifest).map_err(|error| ProgramError::Invalid {
            section: Section::Manifest.name(),
            reason: error.to_string(),
        })?;
        let lists = StepLists::decode(lists).map_err(invalid(Section::StepLists))?;
        let weights = WeightTable::decode(weights).map_err(invalid(Section::WeightTable))?;
        let device_code = DeviceCode::decode(device_code).map_err(invalid(Section::DeviceCode))?;
        check_program(&manifest, &lists, &weights, &device_code)?;
        Ok(Self { manifest, lists, weights, device_code })
    }
}

/// Compares the file's length with the one the locator was given at build.
fn check_length(file: &File, locator: &Locator) -> Result<(), ProgramError> {
    if !locator.is_patched() {
        return Err(ProgramError::Unpatched);
    }
    let (file_bytes, found_bytes) = (locator.file_bytes, file.metadata()?.len());
    if found_bytes > file_bytes {
        let reason = format!("{found_bytes} bytes where {file_bytes} were written");
        return Err(ProgramError::Invalid { section: "length", reason });
    }
    if found_bytes < file_bytes {
        // A stripping tool writes a whole new image; a copy that broke off ends anywhere else.
        return match ElfImage::read(file) {
            Ok(image) if image.end == found_bytes => Err(ProgramError::Stripped { file_bytes, found_bytes }),
            _ => Err(ProgramError::Truncated { file_bytes, found_bytes }),
        };
    }
    Ok(())
}

/// Searches the loaded segments, never what lies behind the image.
fn find_locator(file: &File, image: &ElfImage) -> Result<Locator, ProgramError> {
    let magic = searched_magic();
    let file_bytes = file.metadata()?.len();
    let mut searched_bytes = 0;
    let mut places = Vec::new();
    for segment in &image.segments {
        let end = segment.end.min(file_bytes);
        searched_bytes += end.saturating_sub(segment.start);
        if searched_bytes > MOST_SEARCHED_BYTES {
            break;
        }
        let mut start = segment.start;
        while start + (LOCATOR_BYTES as u64) <= end {
            // Chunks overlap by a locator, so that one that lies across a boundary is found whole.
            let mut chunk = vec![0; (end - start).min(SEARCH_CHUNK_BYTES + LOCATOR_BYTES as u64) as usize];
            read_at(file, &mut chunk, start)?;
            places.extend(find_magic(&chunk, &magic).map(|position| start + position as u64));
            start += SEARCH_CHUNK_BYTES;
        }
    }
    places.sort_unstable();
    places.dedup();
    let [place] = places[..] else {
        let reason = match places.len() {
            0 => "no locator lies in its ELF image".to_owned(),
            count => format!("{count} locators lie in its ELF image"),
        };
        return Err(ProgramError::NotAProgram { reason });
    };
    let mut bytes = [0; LOCATOR_BYTES];
    read_at(file, &mut bytes, place)?;
    Ok(Locator::decode(&bytes))
}

fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> Result<(), ProgramError> {
    file.read_exact_at(bytes, offset).map_err(ProgramError::from)
}
