//! Building the tables, at compile time.

use super::{
    CLASS_BLOCK, CLASS_BLOCKS, FLAG_ADD_BOS, FLAG_IGNORE_MERGES, HEADER_BYTES, MAGIC, MAX_TOKENS,
    MERGE_SLOT_BYTES, NO_ID, Normalization, SECTIONS, SplitRule, TOKEN_ADDED, TOKEN_SPECIAL, VERSION,
    merge_slot, word_slot,
};
use crate::Diagnostic;

/// One token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenEntry {
    /// What it decodes to.
    pub bytes: Vec<u8>,
    /// Part of the model's vocabulary: not an added token only.
    pub is_word: bool,
}

/// Two tokens that become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeEntry {
    /// Id of the left token.
    pub left: u32,
    /// Id of the right token.
    pub right: u32,
    /// Lower ranks merge first.
    pub rank: u32,
    /// Id of what they become.
    pub merged: u32,
}

/// A token that is matched as text before splitting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// Id; the text matched is the token's bytes.
    pub id: u32,
    /// A control token: only matched where special tokens are allowed.
    pub special: bool,
    /// Matched in normalized text rather than in the text as given.
    pub normalized: bool,
}

/// Class bits of every character, in blocks of 256 with equal blocks stored once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CharacterClasses {
    index: Vec<u16>,
    blocks: Vec<u8>,
}

impl CharacterClasses {
    /// Asks `class_of` (bits `CLASS_*`) for every character.
    pub fn new(class_of: impl Fn(char) -> u8) -> Self {
        let mut classes = Self { index: Vec::with_capacity(CLASS_BLOCKS), blocks: Vec::new() };
        for block in 0..CLASS_BLOCKS {
            let first = block * CLASS_BLOCK;
            let content: Vec<u8> = (first..first + CLASS_BLOCK)
                .map(|code_point| char::from_u32(code_point as u32).map_or(0, &class_of))
                .collect();
            let same = classes.blocks.chunks_exact(CLASS_BLOCK).position(|known| known == content);
            let number = same.unwrap_or_else(|| {
                classes.blocks.extend_from_slice(&content);
                classes.blocks.len() / CLASS_BLOCK - 1
            });
            classes.index.push(number as u16);
        }
        classes
    }
}

/// Everything the tables hold, before it is encoded.
#[derive(Clone, Debug)]
pub struct TokenizerTables {
    /// How text is cut into pieces.
    pub split_rule: SplitRule,
    /// What happens to text first.
    pub normalization: Normalization,
    /// Whether raw text wants the beginning-of-sequence token in front.
    pub add_bos: bool,
    /// Whether a piece that is itself a token is taken whole.
    pub ignore_merges: bool,
    /// Tokens by id, without holes.
    pub tokens: Vec<TokenEntry>,
    /// Id of the token that is this one byte; text bytes without one are dropped, as `tokenizers` does.
    pub byte_ids: [Option<u32>; 256],
    /// Merges in any order; no pair twice.
    pub merges: Vec<MergeEntry>,
    /// Added tokens in any order; no id twice.
    pub added: Vec<AddedToken>,
    /// Character classes.
    pub classes: CharacterClasses,
}

impl TokenizerTables {
    /// The tables as bytes.
    ///
    /// # Errors
    ///
    /// Where an id lies beyond the tokens, or there is more than the layout can address.
    pub fn encode(&self) -> Result<Vec<u8>, Diagnostic> {
        self.check()?;
        let flags: Vec<u8> = self.token_flags();
        let (merges, merge_probes) = self.merge_slots();
        let (words, word_probes) = self.word_slots();
        let mut offsets = Vec::with_capacity(self.tokens.len() + 1);
        let mut bytes = Vec::new();
        for token in &self.tokens {
            offsets.push(bytes.len() as u32);
            bytes.extend_from_slice(&token.bytes);
        }
        offsets.push(bytes.len() as u32);
        let sections: [Vec<u8>; SECTIONS] = [
            numbers(offsets),
            bytes,
            flags,
            numbers(self.byte_ids.iter().map(|id| id.unwrap_or(NO_ID))),
            merges,
            words,
            numbers(self.added_sorted(false)),
            numbers(self.added_sorted(true)),
            self.classes.index.iter().flat_map(|block| block.to_le_bytes()).collect(),
            self.classes.blocks.clone(),
        ];
        let mut header_flags = 0;
        if self.add_bos {
            header_flags |= FLAG_ADD_BOS;
        }
        if self.ignore_merges {
            header_flags |= FLAG_IGNORE_MERGES;
        }
        let fields = [
            VERSION,
            self.split_rule.code(),
            self.normalization.code(),
            header_flags,
            self.tokens.len() as u32,
            merge_probes,
            word_probes,
            0,
        ];
        assemble(fields, &sections)
    }

    fn check(&self) -> Result<(), Diagnostic> {
        let count = self.tokens.len();
        if count == 0 || count > MAX_TOKENS as usize {
            return Err(Diagnostic::new("the vocabulary has a size that cannot be served")
                .found(format!("{count} tokens"))
                .needed(format!("1 to {MAX_TOKENS} tokens")));
        }
        let ids = self
            .merges
            .iter()
            .flat_map(|merge| [merge.left, merge.right, merge.merged])
            .chain(self.added.iter().map(|added| added.id))
            .chain(self.byte_ids.iter().flatten().copied());
        match ids.max() {
            Some(id) if id as usize >= count => {
                Err(Diagnostic::new("the tokenizer names an id beyond its tokens")
                    .found(format!("id {id}"))
                    .needed(format!("ids below {count}")))
            }
            _ => Ok(()),
        }
    }

    fn token_flags(&self) -> Vec<u8> {
        let mut flags = vec![0; self.tokens.len()];
        for added in &self.added {
            flags[added.id as usize] = TOKEN_ADDED | if added.special { TOKEN_SPECIAL } else { 0 };
        }
        flags
    }

    fn added_sorted(&self, normalized: bool) -> Vec<u32> {
        let mut ids: Vec<u32> = self
            .added
            .iter()
            .filter(|added| {
                added.normalized == normalized && !self.tokens[added.id as usize].bytes.is_empty()
            })
            .map(|added| added.id)
            .collect();
        ids.sort_by(|&a, &b| {
            let bytes = |id: u32| &self.tokens[id as usize].bytes;
            bytes(a).cmp(bytes(b)).then(a.cmp(&b))
        });
        ids.dedup_by(|a, b| self.tokens[*a as usize].bytes == self.tokens[*b as usize].bytes);
        ids
    }

    /// The merge table and the longest search in it.
    fn merge_slots(&self) -> (Vec<u8>, u32) {
        let slots = slot_count(self.merges.len());
        let mut table = vec![0xff_u8; slots * MERGE_SLOT_BYTES];
        let mut longest = 0;
        for merge in &self.merges {
            let first = merge_slot(merge.left, merge.right, slots);
            for probe in 0..slots {
                let at = ((first + probe) & (slots - 1)) * MERGE_SLOT_BYTES;
                if table[at..at + 4] == NO_ID.to_le_bytes() {
                    let slot = numbers([merge.left, merge.right, merge.rank, merge.merged]);
                    table[at..at + MERGE_SLOT_BYTES].copy_from_slice(&slot);
                    longest = longest.max(probe as u32 + 1);
                    break;
                }
            }
        }
        (table, longest)
    }

    /// The table of whole words and the longest search in it.
    fn word_slots(&self) -> (Vec<u8>, u32) {
        if !self.ignore_merges {
            return (Vec::new(), 0);
        }
        let slots = slot_count(self.tokens.len());
        let mut table = vec![NO_ID; slots];
        let mut longest = 0;
        for (id, token) in self.tokens.iter().enumerate().filter(|(_, token)| token.is_word) {
            let first = word_slot(&token.bytes, slots);
            for probe in 0..slots {
                let slot = &mut table[(first + probe) & (slots - 1)];
                if *slot == NO_ID {
                    *slot = id as u32;
                    longest = longest.max(probe as u32 + 1);
                    break;
                }
            }
        }
        (numbers(table), longest)
    }
}

/// A power of two that leaves at least a third of the slots empty.
fn slot_count(entries: usize) -> usize {
    (entries * 3 / 2 + 1).next_power_of_two()
}

fn numbers(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Puts header and sections together.
fn assemble(fields: [u32; 8], sections: &[Vec<u8>; SECTIONS]) -> Result<Vec<u8>, Diagnostic> {
    let total_bytes =
        sections.iter().fold(HEADER_BYTES, |sum, section| sum + section.len().next_multiple_of(4));
    if u32::try_from(total_bytes).is_err() {
        return Err(Diagnostic::new("the tokenizer is too large")
            .found(format!("{total_bytes} bytes of tables"))
            .needed(format!("at most {} bytes", u32::MAX)));
    }
    let mut out = Vec::with_capacity(total_bytes);
    out.extend_from_slice(&MAGIC);
    out.extend(numbers(fields));
    let mut offset = HEADER_BYTES;
    for section in sections {
        out.extend(numbers([offset as u32, section.len() as u32]));
        offset += section.len().next_multiple_of(4);
    }
    for section in sections {
        out.extend_from_slice(section);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    Ok(out)
}
