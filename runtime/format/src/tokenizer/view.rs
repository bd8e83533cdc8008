//! Reading the tables in place.
//!
//! Opening checks lengths alone (microseconds); every later access is bounds-checked, so that damaged tables
//! give wrong tokens at worst, never a panic.

use super::{
    CLASS_BLOCK, CLASS_BLOCKS, FLAG_ADD_BOS, FLAG_IGNORE_MERGES, HEADER_BYTES, MAGIC, MAX_TOKENS,
    MERGE_SLOT_BYTES, NO_ID, Normalization, SECTIONS, Section, SplitRule, TOKEN_ADDED, TOKEN_SPECIAL,
    VERSION, merge_slot, word_slot,
};
use crate::Diagnostic;

/// What two neighbouring tokens become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Lower ranks merge first.
    pub rank: u32,
    /// Id of the merged token.
    pub merged: u32,
}

/// An added token found in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedMatch {
    /// Id of the token.
    pub id: u32,
    /// Bytes of text that it covers.
    pub bytes: usize,
}

/// The tables of a tokenizer, borrowed from the program's bytes.
#[derive(Clone, Copy, Debug)]
pub struct TokenizerView<'a> {
    split_rule: SplitRule,
    normalization: Normalization,
    flags: u32,
    token_count: u32,
    merge_probes: u32,
    word_probes: u32,
    sections: [&'a [u8]; SECTIONS],
}

impl<'a> TokenizerView<'a> {
    /// Opens tables.
    ///
    /// # Errors
    ///
    /// Where the bytes are not tables of this version or a section's length contradicts the header.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Diagnostic> {
        if bytes.len() < HEADER_BYTES || bytes[..MAGIC.len()] != MAGIC {
            return Err(damaged(
                format!("{} bytes without the mark of tokenizer tables", bytes.len()),
                format!("at least {HEADER_BYTES} bytes that begin with `QWEN2CTK`"),
            ));
        }
        let field = |index: usize| number(&bytes[MAGIC.len()..], index).unwrap_or(0);
        if field(0) != VERSION {
            return Err(damaged(format!("layout version {}", field(0)), format!("version {VERSION}")));
        }
        let split_rule = SplitRule::from_code(field(1))
            .ok_or_else(|| damaged(format!("split rule number {}", field(1)), "a number of 1 to 4"))?;
        let normalization = Normalization::from_code(field(2))
            .ok_or_else(|| damaged(format!("normalization number {}", field(2)), "0 or 1"))?;
        let mut sections: [&'a [u8]; SECTIONS] = [&[]; SECTIONS];
        for (index, section) in sections.iter_mut().enumerate() {
            let (offset, length) = (field(8 + 2 * index) as usize, field(9 + 2 * index) as usize);
            *section =
                offset.checked_add(length).and_then(|end| bytes.get(offset..end)).ok_or_else(|| {
                    damaged(
                        format!("section {index} of {length} bytes at {offset}"),
                        format!("sections within {} bytes", bytes.len()),
                    )
                })?;
        }
        let view = Self {
            split_rule,
            normalization,
            flags: field(3),
            token_count: field(4),
            merge_probes: field(5),
            word_probes: field(6),
            sections,
        };
        view.check_lengths()?;
        Ok(view)
    }

    fn check_lengths(&self) -> Result<(), Diagnostic> {
        let tokens = self.token_count as usize;
        if tokens == 0 || self.token_count > MAX_TOKENS {
            return Err(damaged(format!("{tokens} tokens"), format!("1 to {MAX_TOKENS} tokens")));
        }
        let exact = [
            (Section::TokenOffsets, (tokens + 1) * 4),
            (Section::TokenFlags, tokens),
            (Section::ByteIds, 256 * 4),
            (Section::ClassIndex, CLASS_BLOCKS * 2),
        ];
        for (section, needed) in exact {
            let found = self.section(section).len();
            if found != needed {
                return Err(damaged(
                    format!("{section:?} of {found} bytes"),
                    format!("{needed} bytes for {tokens} tokens"),
                ));
            }
        }
        let merge_bytes = self.section(Section::Merges).len();
        if !merge_bytes.is_multiple_of(MERGE_SLOT_BYTES)
            || !(merge_bytes / MERGE_SLOT_BYTES).is_power_of_two()
        {
            return Err(damaged(format!("a merge table of {merge_bytes} bytes"), "a power of two of 16"));
        }
        let word_bytes = self.section(Section::Words).len();
        if self.ignores_merges() && !(word_bytes.is_multiple_of(4) && (word_bytes / 4).is_power_of_two()) {
            return Err(damaged(format!("a word table of {word_bytes} bytes"), "a power of two of 4"));
        }
        Ok(())
    }

    fn section(&self, section: Section) -> &'a [u8] {
        self.sections[section as usize]
    }

    /// Number of tokens; ids lie below it.
    pub fn token_count(&self) -> u32 {
        self.token_count
    }

    /// How text is cut into pieces.
    pub fn split_rule(&self) -> SplitRule {
        self.split_rule
    }

    /// What happens to text first.
    pub fn normalization(&self) -> Normalization {
        self.normalization
    }

    /// Whether raw text wants the beginning-of-sequence token in front.
    pub fn add_bos(&self) -> bool {
        self.flags & FLAG_ADD_BOS != 0
    }

    /// Whether a piece that is itself a token is taken whole.
    pub fn ignores_merges(&self) -> bool {
        self.flags & FLAG_IGNORE_MERGES != 0
    }

    /// What a token decodes to; none beyond the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&'a [u8]> {
        if id >= self.token_count {
            return None;
        }
        let offsets = self.section(Section::TokenOffsets);
        let (first, end) = (number(offsets, id as usize)?, number(offsets, id as usize + 1)?);
        self.section(Section::TokenBytes).get(first as usize..end as usize)
    }

    /// Whether a token is an added token.
    pub fn is_added(&self, id: u32) -> bool {
        self.token_flags(id) & TOKEN_ADDED != 0
    }

    /// Whether a token is special (a control token); false beyond the vocabulary.
    pub fn is_special(&self, id: u32) -> bool {
        self.token_flags(id) & TOKEN_SPECIAL != 0
    }

    fn token_flags(&self, id: u32) -> u8 {
        self.section(Section::TokenFlags).get(id as usize).copied().unwrap_or(0)
    }

    /// The token that is this one byte.
    pub fn byte_id(&self, byte: u8) -> Option<u32> {
        number(self.section(Section::ByteIds), usize::from(byte)).filter(|&id| id < self.token_count)
    }

    /// What two neighbouring tokens become, if anything.
    pub fn merge(&self, left: u32, right: u32) -> Option<Merge> {
        let table = self.section(Section::Merges);
        let slots = table.len() / MERGE_SLOT_BYTES;
        let first = merge_slot(left, right, slots);
        for probe in 0..self.merge_probes as usize {
            let at = ((first + probe) & (slots - 1)) * MERGE_SLOT_BYTES;
            let slot = table.get(at..at + MERGE_SLOT_BYTES)?;
            let found_left = number(slot, 0)?;
            if found_left == left && number(slot, 1)? == right {
                return Some(Merge { rank: number(slot, 2)?, merged: number(slot, 3)? });
            }
            if found_left == NO_ID {
                return None;
            }
        }
        None
    }

    /// The token of the model's vocabulary with exactly these bytes; only known where merges are ignored.
    pub fn word(&self, bytes: &[u8]) -> Option<u32> {
        let table = self.section(Section::Words);
        let slots = table.len() / 4;
        if slots == 0 {
            return None;
        }
        let first = word_slot(bytes, slots);
        for probe in 0..self.word_probes as usize {
            let id = number(table, (first + probe) & (slots - 1))?;
            if id == NO_ID {
                return None;
            }
            if self.token_bytes(id) == Some(bytes) {
                return Some(id);
            }
        }
        None
    }

    /// Ids of the added tokens matched in raw text or in normalized text, sorted by bytes.
    pub fn added(&self, normalized: bool) -> impl Iterator<Item = u32> + 'a {
        self.added_section(normalized).chunks_exact(4).filter_map(|id| number(id, 0))
    }

    fn added_section(&self, normalized: bool) -> &'a [u8] {
        self.section(if normalized { Section::AddedNormalized } else { Section::AddedRaw })
    }

    /// The longest added token that `text` begins with.
    ///
    /// Narrows the sorted list byte by byte; costs length · log(tokens) and nothing where no token begins so.
    pub fn match_added(&self, text: &[u8], normalized: bool) -> Option<AddedMatch> {
        let ids = self.added_section(normalized);
        let token = |index: usize| number(ids, index).and_then(|id| self.token_bytes(id)).unwrap_or(&[]);
        let (mut low, mut high) = (0, ids.len() / 4);
        let mut longest = None;
        for (depth, &byte) in text.iter().enumerate() {
            let next = |index: usize| token(index).get(depth).copied();
            low = partition(low, high, |index| next(index) < Some(byte));
            high = partition(low, high, |index| next(index) <= Some(byte));
            if low >= high {
                break;
            }
            if token(low).len() == depth + 1 {
                longest = number(ids, low).map(|id| AddedMatch { id, bytes: depth + 1 });
            }
        }
        longest
    }

    /// Class bits (`CLASS_*`) of a character.
    pub fn class(&self, character: char) -> u8 {
        let code_point = character as usize;
        let index = self.section(Section::ClassIndex);
        let at = code_point / CLASS_BLOCK * 2;
        let Some(&[low, high]) = index.get(at..at + 2) else { return 0 };
        let block = usize::from(u16::from_le_bytes([low, high]));
        let at = block * CLASS_BLOCK + code_point % CLASS_BLOCK;
        self.section(Section::ClassBlocks).get(at).copied().unwrap_or(0)
    }
}

/// First index of `low..high` for which `before` is false.
fn partition(mut low: usize, mut high: usize, before: impl Fn(usize) -> bool) -> usize {
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

fn number(bytes: &[u8], index: usize) -> Option<u32> {
    bytes.get(index * 4..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn damaged(found: impl Into<String>, needed: impl Into<String>) -> Diagnostic {
    Diagnostic::new("the tokenizer tables are damaged")
        .found(found)
        .needed(needed)
        .help("build the program again, or copy it again")
}
