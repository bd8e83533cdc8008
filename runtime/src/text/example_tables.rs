//! Small tables for the tests of this folder.

use qwen2c_format::tokenizer::{
    AddedToken, CLASS_LETTER, CLASS_NUMBER, CLASS_SINGLE_DIGIT, CLASS_SPACE, CharacterClasses, MergeEntry,
    Normalization, SplitRule, TokenEntry, TokenizerTables,
};
use std::sync::OnceLock;

/// Id of `<|im_start|>`.
pub(super) const START: u32 = 260;

/// Id of `<|im_end|>`.
pub(super) const END: u32 = 261;

/// Id of `<tool>`, which is added but not special.
pub(super) const TOOL: u32 = 262;

/// One token per byte, `th`, `the`, ` the`, `\n\n` and three added tokens; ids 256 to 262.
pub(super) fn example_tables(split_rule: SplitRule) -> &'static [u8] {
    static TABLES: OnceLock<[Vec<u8>; 4]> = OnceLock::new();
    let tables = TABLES.get_or_init(|| SplitRule::ALL.map(build_tables));
    let index = SplitRule::ALL.into_iter().position(|rule| rule == split_rule);
    &tables[index.unwrap_or(0)]
}

fn build_tables(split_rule: SplitRule) -> Vec<u8> {
    let words =
        (0..=255_u8).map(|byte| vec![byte]).chain(["th", "the", " the", "\n\n"].map(|text| text.into()));
    let added = ["<|im_start|>", "<|im_end|>", "<tool>"].map(|text| text.as_bytes().to_vec());
    let merge = |rank, left, right, merged| MergeEntry { left, right, rank, merged };
    let tables = TokenizerTables {
        split_rule,
        normalization: Normalization::Nfc,
        add_bos: false,
        ignore_merges: false,
        tokens: words
            .map(|bytes| TokenEntry { bytes, is_word: true })
            .chain(added.map(|bytes| TokenEntry { bytes, is_word: false }))
            .collect(),
        byte_ids: std::array::from_fn(|byte| Some(byte as u32)),
        merges: vec![
            merge(0, u32::from(b't'), u32::from(b'h'), 256),
            merge(1, 256, u32::from(b'e'), 257),
            merge(2, u32::from(b' '), 257, 258),
            merge(3, u32::from(b'\n'), u32::from(b'\n'), 259),
        ],
        added: [(START, true), (END, true), (TOOL, false)]
            .map(|(id, special)| AddedToken { id, special, normalized: false })
            .into(),
        classes: CharacterClasses::new(|character| match character {
            _ if character.is_numeric() => CLASS_NUMBER | CLASS_SINGLE_DIGIT,
            _ if character.is_alphabetic() => CLASS_LETTER,
            _ if character.is_whitespace() => CLASS_SPACE,
            _ => 0,
        }),
    };
    tables.encode().unwrap()
}
