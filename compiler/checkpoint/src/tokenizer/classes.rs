//! The character classes of the split rules, from the engine that `tokenizers` matches with.
//!
//! Which characters are letters changes with every version of Unicode. Taking the ranges from `regex-syntax`,
//! at the version that `tokenizers` itself is built with, makes the tables equal by construction.

use qwen2c_format::tokenizer::{
    CLASS_LETTER, CLASS_NUMBER, CLASS_SINGLE_DIGIT, CLASS_SPACE, CharacterClasses,
};
use regex_syntax::hir::{Class, HirKind};

/// Class bits of every character.
pub(super) fn character_classes() -> CharacterClasses {
    let mut bits = vec![0_u8; 0x11_0000];
    for (expression, bit) in [(r"\p{L}", CLASS_LETTER), (r"\p{N}", CLASS_NUMBER), (r"\s", CLASS_SPACE)] {
        for (first, last) in ranges(expression) {
            bits[first as usize..=last as usize].iter_mut().for_each(|bits| *bits |= bit);
        }
    }
    CharacterClasses::new(|character| {
        // The pre-tokenizer `Digits` asks the standard library, not the expression engine.
        bits[character as usize] | if character.is_numeric() { CLASS_SINGLE_DIGIT } else { 0 }
    })
}

/// The ranges of a class, first and last character.
fn ranges(expression: &str) -> Vec<(char, char)> {
    let class = regex_syntax::parse(expression).expect("the expressions are constants of this file");
    match class.kind() {
        HirKind::Class(Class::Unicode(class)) => {
            class.ranges().iter().map(|range| (range.start(), range.end())).collect()
        }
        _ => Vec::new(),
    }
}
