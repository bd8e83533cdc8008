//! Tables round trip, and damage is refused or harmless.

use super::*;
use crate::Diagnostic;

fn tables() -> TokenizerTables {
    let token = |text: &str, is_word| TokenEntry { bytes: text.into(), is_word };
    TokenizerTables {
        split_rule: SplitRule::LlamaBpe,
        normalization: Normalization::Nfc,
        add_bos: true,
        ignore_merges: true,
        tokens: vec![
            token("a", true),
            token("b", true),
            token("ab", true),
            token("<|x|>", false),
            token("<|x", false),
            token("<|y|>", false),
        ],
        byte_ids: std::array::from_fn(|byte| match byte as u8 {
            b'a' => Some(0),
            b'b' => Some(1),
            _ => None,
        }),
        merges: vec![MergeEntry { left: 0, right: 1, rank: 7, merged: 2 }],
        added: vec![
            AddedToken { id: 3, special: true, normalized: false },
            AddedToken { id: 4, special: false, normalized: false },
            AddedToken { id: 5, special: true, normalized: true },
        ],
        classes: CharacterClasses::new(|character| match character {
            'a'..='z' | '漢' => CLASS_LETTER,
            char::MAX => CLASS_NUMBER,
            _ => 0,
        }),
    }
}

#[test]
fn what_was_built_can_be_read() {
    let bytes = tables().encode().unwrap();
    let view = TokenizerView::new(&bytes).unwrap();
    assert_eq!((view.split_rule(), view.normalization()), (SplitRule::LlamaBpe, Normalization::Nfc));
    assert!(view.add_bos() && view.ignores_merges());
    assert_eq!((view.token_count(), view.token_bytes(2), view.token_bytes(6)), (6, Some(&b"ab"[..]), None));
    assert_eq!((view.byte_id(b'b'), view.byte_id(b'c')), (Some(1), None));
    assert_eq!(view.merge(0, 1), Some(Merge { rank: 7, merged: 2 }));
    assert_eq!((view.merge(1, 0), view.merge(2, 2)), (None, None));
    assert_eq!((view.word(b"ab"), view.word(b"ba"), view.word(b"<|x|>")), (Some(2), None, None));
    assert_eq!(
        (view.is_special(3), view.is_special(4), view.is_added(4), view.is_special(99)),
        (true, false, true, false)
    );
    assert_eq!([view.class('漢'), view.class(char::MAX), view.class('字')], [CLASS_LETTER, CLASS_NUMBER, 0]);
}

#[test]
fn the_longest_added_token_is_found() {
    let bytes = tables().encode().unwrap();
    let view = TokenizerView::new(&bytes).unwrap();
    assert_eq!(view.match_added(b"<|x|>z", false), Some(AddedMatch { id: 3, bytes: 5 }));
    assert_eq!(view.match_added(b"<|x|", false), Some(AddedMatch { id: 4, bytes: 3 }));
    assert_eq!(view.match_added(b"<|y|>", false), None);
    assert_eq!(view.match_added(b"<|y|>", true), Some(AddedMatch { id: 5, bytes: 5 }));
    assert_eq!(view.match_added(b"", false), None);
}

#[test]
fn ids_beyond_the_tokens_are_refused_at_build() {
    let mut wrong = tables();
    wrong.merges[0].merged = 6;
    let said = wrong.encode().unwrap_err();
    assert_eq!((said.found.as_deref(), said.needed.as_deref()), (Some("id 6"), Some("ids below 6")));
    assert!(TokenizerTables { tokens: Vec::new(), ..tables() }.encode().is_err());
}

#[test]
fn every_cut_is_refused() {
    let bytes = tables().encode().unwrap();
    let said: Vec<Option<Diagnostic>> =
        (0..bytes.len()).step_by(7).map(|cut| TokenizerView::new(&bytes[..cut]).err()).collect();
    assert!(said.iter().all(Option::is_some));
}

#[test]
fn damaged_headers_are_refused_or_harmless() {
    let bytes = tables().encode().unwrap();
    for at in 0..HEADER_BYTES {
        for value in [0, 1, 0x7f, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            if let Ok(view) = TokenizerView::new(&damaged) {
                view.merge(0, 1);
                view.word(b"ab");
                view.match_added(b"<|x|>", false);
                view.class('漢');
                view.token_bytes(view.token_count() - 1);
            }
        }
    }
}
