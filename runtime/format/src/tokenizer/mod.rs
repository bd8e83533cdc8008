//! The tokenizer as tables: built by the compiler, read in place by the emitted program.
//!
//! Loading a `tokenizer.json` at start costs hundreds of milliseconds and tens of megabytes. Everything in
//! it that a byte-level BPE needs is a handful of lookups, so the compiler writes those lookups down:
//! bytes of a token, the merge of two tokens, the class of a character. [`TokenizerView`] opens them
//! without copying. Both byte-level split rules and their character classes are said here by name and by
//! table; the expressions themselves are code in the runtime.
//!
//! ```text
//! header    magic, version, split rule, normalization, flags, token count, longest probes, sections
//! sections  in the order of `Section`, each at a multiple of 4, little endian throughout
//! ```

mod tables;
#[cfg(test)]
mod tests;
mod view;

pub use tables::{AddedToken, CharacterClasses, MergeEntry, TokenEntry, TokenizerTables};
pub use view::{AddedMatch, Merge, TokenizerView};

/// First bytes of the tables.
pub(crate) const MAGIC: [u8; 8] = *b"QWEN2CTK";

/// Version of the layout; the compiler writes the one that its runtime reads.
pub(crate) const VERSION: u32 = 1;

/// Most tokens of a vocabulary that the tables can hold.
pub const MAX_TOKENS: u32 = 1 << 22;

/// Marks an empty slot or a byte without a token.
pub(crate) const NO_ID: u32 = u32::MAX;

/// Bytes of one merge slot: left id, right id, rank, merged id.
pub(crate) const MERGE_SLOT_BYTES: usize = 16;

/// Characters in one block of the class table.
pub(crate) const CLASS_BLOCK: usize = 256;

/// Blocks that cover all code points.
pub(crate) const CLASS_BLOCKS: usize = 0x11_0000 / CLASS_BLOCK;

/// Header flag: the tokenizer asks for its beginning-of-sequence token before raw text.
pub(crate) const FLAG_ADD_BOS: u32 = 1;

/// Header flag: a piece that is itself a token is taken whole, without merging.
pub(crate) const FLAG_IGNORE_MERGES: u32 = 2;

/// Token flag: an added token, matched as text before splitting.
pub(crate) const TOKEN_ADDED: u8 = 1;

/// Token flag: a special (control) token.
pub(crate) const TOKEN_SPECIAL: u8 = 2;

/// Class bit of `\p{L}`.
pub const CLASS_LETTER: u8 = 1;

/// Class bit of `\p{N}`.
pub const CLASS_NUMBER: u8 = 2;

/// Class bit of `\s`.
pub const CLASS_SPACE: u8 = 4;

/// Class bit of the characters that the rule [`SplitRule::SmolLm`] cuts out singly (`char::is_numeric`, whose
/// Unicode version need not be that of `\p{N}`).
pub const CLASS_SINGLE_DIGIT: u8 = 8;

/// Sections of the tables, in file order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Section {
    /// `u32[tokens + 1]`: where each token's bytes begin.
    TokenOffsets,
    /// Bytes of all tokens.
    TokenBytes,
    /// `u8[tokens]`.
    TokenFlags,
    /// `u32[256]`: id of the token that is one byte.
    ByteIds,
    /// Open addressing, power of two of [`MERGE_SLOT_BYTES`].
    Merges,
    /// Open addressing, power of two of `u32` ids, found by a token's bytes; empty unless merges are ignored.
    Words,
    /// `u32` ids of the added tokens matched in raw text, sorted by bytes.
    AddedRaw,
    /// `u32` ids of the added tokens matched in normalized text, sorted by bytes.
    AddedNormalized,
    /// `u16[CLASS_BLOCKS]`: block of each 256 code points.
    ClassIndex,
    /// `u8[256]` per block: class bits.
    ClassBlocks,
}

/// Number of sections.
pub(crate) const SECTIONS: usize = 10;

/// Bytes of the header: magic, eight numbers (the last is 0), (offset, length) of each section.
pub(crate) const HEADER_BYTES: usize = 8 + 8 * 4 + SECTIONS * 8;

/// How text is cut into pieces before merging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitRule {
    /// GPT-2's byte-level expression:
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
    Gpt2,
    /// Every digit by itself, then [`SplitRule::Gpt2`] on what lies between.
    SmolLm,
    /// Qwen2's expression: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|
    /// ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`.
    Qwen2,
    /// Llama 3's: as [`SplitRule::Qwen2`] with `\p{N}{1,3}`.
    LlamaBpe,
}

impl SplitRule {
    /// All rules.
    pub const ALL: [Self; 4] = [Self::Gpt2, Self::SmolLm, Self::Qwen2, Self::LlamaBpe];

    /// The name by which GGUF's `tokenizer.ggml.pre` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt-2",
            Self::SmolLm => "smollm",
            Self::Qwen2 => "qwen2",
            Self::LlamaBpe => "llama-bpe",
        }
    }

    /// The rule of that name; none for an unknown name, which must be refused.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.name() == name)
    }

    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Gpt2 => 1,
            Self::SmolLm => 2,
            Self::Qwen2 => 3,
            Self::LlamaBpe => 4,
        }
    }

    pub(crate) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|rule| rule.code() == code)
    }
}

/// What happens to text before it is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalization {
    /// Nothing.
    None,
    /// Canonical composition.
    Nfc,
}

impl Normalization {
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Nfc => 1,
        }
    }

    pub(crate) fn from_code(code: u32) -> Option<Self> {
        [Self::None, Self::Nfc].into_iter().find(|normalization| normalization.code() == code)
    }
}

/// Slot at which the search for a merge begins, in a table of `slots` (a power of two).
pub(crate) fn merge_slot(left: u32, right: u32, slots: usize) -> usize {
    spread((u64::from(left) << 32) | u64::from(right)) & (slots - 1)
}

/// Slot at which the search for a whole word begins, in a table of `slots` (a power of two).
pub(crate) fn word_slot(bytes: &[u8], slots: usize) -> usize {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    spread(hash) & (slots - 1)
}

/// Mixes all bits of the key into the low ones (the finalizer of splitmix64).
fn spread(key: u64) -> usize {
    let key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (key ^ (key >> 31)) as usize
}
