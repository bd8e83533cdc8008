//! A program that has been read from its own file, and how it is set to work.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use qwen2c_format::{
    DeviceCode, Diagnostic, Locator, Manifest, ProgramError, ProgramFile, StepLists, WeightEntry,
};
use sha2::{Digest, Sha256};

use crate::cuda::{DeviceExecutor, Driver};
use crate::execute::{Executor, ProcessorExecutor};
use crate::hardware::Hardware;
use crate::kernel::KernelEntry;
use crate::large_pages::Refusal;
use crate::machine;
use crate::memory::Mapping;
use crate::peak::{Peak, Reading, ReadsBeside};
use crate::processor::{self, Placement};
use crate::session::Session;

/// A checked program with its weights mapped.
pub struct Program {
    file: ProgramFile,
    kernels: Vec<KernelEntry>,
    weights: Arc<Mapping>,
    /// How a GPU's driver is opened; tests have one of their own.
    open_driver: fn() -> Result<Driver, Diagnostic>,
    /// Who says whether there are large pages; tests have a system without.
    find_refusal: fn(&Mapping) -> Option<Refusal>,
}

impl Program {
    /// Reads header, manifest, step lists and tokenizer of the file that holds this program, and maps
    /// its weights. Nothing of the weights is read.
    ///
    /// # Errors
    ///
    /// What [`ProgramError`] tells apart, with the file's name.
    pub fn open(path: &Path, locator: &Locator, kernels: &[KernelEntry]) -> Result<Self, Diagnostic> {
        let place = std::fs::read_link(path).unwrap_or_else(|_| path.to_owned());
        let open = || -> Result<(File, ProgramFile), ProgramError> {
            let file = File::open(path)?;
            let read = ProgramFile::read_located(&file, locator)?;
            Ok((file, read))
        };
        let (file, read) = open().map_err(|error| error.diagnostic().at(place.display().to_string()))?;
        let weights = Mapping::of_file(&file, locator.weights_offset, locator.weights_bytes)
            .map_err(|error| cannot_map(&error).at(place.display().to_string()))?;
        Self::from_parts(read, kernels, weights)
    }

    /// Puts a program together from what was read and linked.
    pub(crate) fn from_parts(
        file: ProgramFile,
        kernels: &[KernelEntry],
        weights: Mapping,
    ) -> Result<Self, Diagnostic> {
        // A device's kernels are not linked.
        let linked = if is_for_device(&file.manifest) { 0 } else { file.lists.kernels.len() };
        if kernels.len() != linked {
            return Err(Diagnostic::new("the program's image and its step lists do not belong together")
                .found(format!("{} linked kernels", kernels.len()))
                .needed(format!("{linked} kernels"))
                .help("copy the program again from where it was built"));
        }
        let (kernels, weights) = (kernels.to_vec(), Arc::new(weights));
        Ok(Self { file, kernels, weights, open_driver: Driver::open, find_refusal: Refusal::found })
    }

    /// The same program with another driver.
    #[cfg(test)]
    pub(crate) fn with_driver(self, open_driver: fn() -> Result<Driver, Diagnostic>) -> Self {
        Self { open_driver, ..self }
    }

    /// The same program on a system that refuses large pages.
    #[cfg(test)]
    pub(crate) fn with_refusal(self, find_refusal: fn(&Mapping) -> Option<Refusal>) -> Self {
        Self { find_refusal, ..self }
    }

    /// What is to be said where the system has no large pages for weights and arena.
    pub(crate) fn note_of_small_pages(&self) -> Option<String> {
        let (weights_bytes, arena_bytes) = (self.file.locator.weights_bytes, self.file.manifest.arena_bytes);
        (self.find_refusal)(&self.weights)?.note(weights_bytes, arena_bytes)
    }

    /// Facts and numbers.
    pub fn manifest(&self) -> &Manifest {
        &self.file.manifest
    }

    /// What is executed.
    pub fn lists(&self) -> &StepLists {
        &self.file.lists
    }

    /// Length of the program's file.
    pub fn program_bytes(&self) -> u64 {
        self.file.locator.file_bytes
    }

    /// Tokenizer tables, where the checkpoint had a tokenizer.
    pub fn tokenizer(&self) -> Option<&[u8]> {
        self.file.tokenizer.as_deref()
    }

    /// Whether the program runs on a GPU.
    pub fn is_for_device(&self) -> bool {
        is_for_device(&self.file.manifest)
    }

    /// What a device is given; nothing where the program runs on the processor.
    pub(crate) fn device_code(&self) -> &DeviceCode {
        &self.file.device_code
    }

    /// Whether the processor has what the kernels use; a device is asked when it is opened. Starting asks as
    /// well: this is for who has long work before it.
    ///
    /// # Errors
    ///
    /// Names the features that are missing.
    pub(crate) fn check_processor(&self) -> Result<(), Diagnostic> {
        let manifest = &self.file.manifest;
        if self.is_for_device() {
            return Ok(());
        }
        machine::processor()?.check(&manifest.target, &manifest.required_features)
    }

    /// Checks the machine, reserves memory, starts workers or loads a device: a session for prompts and
    /// generation.
    ///
    /// # Errors
    ///
    /// A missing processor feature or device, too little memory, a refusal of system or driver: each with
    /// what was found and what is needed.
    pub fn start(&self, hardware: &Hardware) -> Result<Session, Diagnostic> {
        self.start_lists(hardware, 0, &self.file.lists.prompts(), None)
    }

    /// As [`Program::start`] on a processor, with a list more that reads weights; none where they are too few
    /// to tell a rate.
    pub(crate) fn start_beside_reads(
        &self,
        hardware: &Hardware,
        peak: &Peak,
    ) -> Result<(Session, Option<Reading>), Diagnostic> {
        let (weights_bytes, arena_bytes) = (self.file.locator.weights_bytes, self.file.manifest.arena_bytes);
        let reads = ReadsBeside::new(&self.file.lists, &self.kernels, weights_bytes, arena_bytes, peak);
        let session = self.start_lists(hardware, 0, &self.file.lists.prompts(), reads.as_ref())?;
        Ok((session, reads.map(|reads| reads.reading)))
    }

    /// As [`Program::start`], on the list that self-tests run.
    pub(crate) fn start_self_test(&self, hardware: &Hardware) -> Result<Session, Diagnostic> {
        let lists = &self.file.lists.lists;
        let index = lists.iter().position(|list| list.name == "self_test").ok_or_else(|| {
            Diagnostic::new("the program holds no self-test").help("build it again with this `qwen2c`")
        })?;
        self.start_lists(hardware, index, &[index], None)
    }

    fn start_lists(
        &self,
        hardware: &Hardware,
        decode: usize,
        prompts: &[usize],
        reads: Option<&ReadsBeside>,
    ) -> Result<Session, Diagnostic> {
        let manifest = &self.file.manifest;
        let executor = match hardware {
            Hardware::Processor(placement) if !self.is_for_device() => {
                Executor::Processor(self.start_workers(placement, reads)?)
            }
            Hardware::Device(number) if self.is_for_device() => {
                let driver = (self.open_driver)()?;
                let executor = DeviceExecutor::start(driver, *number, &self.file, &self.weights)?;
                Executor::Device(Box::new(executor))
            }
            _ => {
                return Err(Diagnostic::new(format!("a program for `{}` cannot run there", manifest.target))
                    .found(format!("{hardware:?}"))
                    .help("report this as a bug of `qwen2c`"));
            }
        };
        Ok(Session::new(executor, manifest, &self.file.lists, decode, prompts))
    }

    fn start_workers(
        &self,
        placement: &Placement,
        reads: Option<&ReadsBeside>,
    ) -> Result<ProcessorExecutor, Diagnostic> {
        let manifest = &self.file.manifest;
        self.check_processor()?;
        processor::request_matrix_unit(&manifest.required_features, processor::ask_for_tiles)?;
        check_memory(manifest, machine::memory_bytes())?;
        let weights = Arc::clone(&self.weights);
        let own = (&self.file.lists, &self.kernels[..], manifest.arena_bytes);
        let (lists, kernels, arena_bytes) =
            reads.map_or(own, |reads| (&reads.lists, &reads.kernels[..], reads.arena_bytes));
        ProcessorExecutor::start(lists, kernels, weights, arena_bytes, placement)
    }

    /// Compares every weight's bytes with the hash taken at build, in file order.
    ///
    /// # Errors
    ///
    /// Names the first weight that differs.
    pub(crate) fn verify_weights(&self, mut checked: impl FnMut(&WeightEntry)) -> Result<(), Diagnostic> {
        for entry in &self.file.weights.entries {
            let bytes = self.weights.read(entry.offset, entry.bytes);
            let bytes = bytes.expect("the weight table was checked against the region at load");
            if Sha256::digest(bytes)[..] != entry.sha256 {
                return Err(Diagnostic::new(format!("weight `{}` was altered", entry.name))
                    .at(format!("byte {} of the weight region, {} bytes", entry.offset, entry.bytes))
                    .cause("its bytes do not have the hash that was recorded at build")
                    .help("copy the program again from where it was built"));
            }
            checked(entry);
        }
        Ok(())
    }
}

fn is_for_device(manifest: &Manifest) -> bool {
    manifest.family == "cuda"
}

/// Refuses an arena that this machine can never hold. The system would grant it, and kill the program
/// once the cache has filled.
fn check_memory(manifest: &Manifest, memory_bytes: Option<u64>) -> Result<(), Diagnostic> {
    match memory_bytes {
        Some(found) if found < manifest.arena_bytes => {
            Err(Diagnostic::new("the program's context needs more memory than there is")
                .found(bytes_text(found))
                .needed(format!(
                    "{}, of which {} are the cache for {} positions",
                    bytes_text(manifest.arena_bytes),
                    bytes_text(manifest.kv_cache_bytes),
                    manifest.context
                ))
                .help("build the program with a smaller `--context`"))
        }
        _ => Ok(()),
    }
}

fn cannot_map(error: &io::Error) -> Diagnostic {
    Diagnostic::new("the program's weights cannot be mapped")
        .cause(error.to_string())
        .help("raise the limit on address space, or use a smaller model")
}

/// Bytes as a person reads them, and exactly.
pub(crate) fn bytes_text(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|&(unit, _)| bytes >= unit) {
        Some((unit, name)) => format!("{bytes} bytes ({:.2} {name})", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}
