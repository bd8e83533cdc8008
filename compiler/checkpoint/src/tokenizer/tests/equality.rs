//! The compiled tokenizer gives the ids of the crate `tokenizers`, for every rule.

use super::super::{Judge, from_gguf, from_tokenizer_json};
use super::cases::CASES;
use super::{CORPUS, normalization, pair_vocabulary, small_gguf, small_json, trained_json};
use proptest::prelude::*;
use qwen2c_format::tokenizer::{CLASS_SINGLE_DIGIT, SplitRule, TokenizerView};
use qwen2c_runtime::text::{Encoder, SpecialText, StreamDecoder};
use serde_json::Value;
use std::cell::RefCell;

/// Compares on the corpus by lines and as a whole, the cases, and long runs.
pub(super) fn compare_on_corpus(judge: &mut Judge, table_bytes: &[u8]) {
    let encoder = Encoder::new(TokenizerView::new(table_bytes).unwrap());
    let runs: Vec<String> = [" ", "\n", "a", "1", "!", "é", "\u{301}", "한", " a", "ab ", "'s"]
        .map(|unit| unit.repeat(3000))
        .into();
    let shuffled: String = CORPUS.chars().step_by(7).collect();
    let windows_lines = CORPUS.replace('\n', "\r\n");
    let texts = CORPUS
        .lines()
        .chain(CORPUS.split_inclusive('\n'))
        .chain([CORPUS, &shuffled, &windows_lines])
        .chain(CASES)
        .chain(runs.iter().map(String::as_str));
    for text in texts {
        judge.compare(&encoder, text).unwrap_or_else(|difference| panic!("{difference}"));
    }
}

/// Text of letters, spaces, digits, marks, signs and special tokens in any order, and of any characters at all.
pub(super) fn any_text() -> impl Strategy<Value = String> {
    let unit = prop_oneof![
        4 => "[a-zA-Z]{1,6}",
        2 => "[ \t\n\r]{1,5}",
        1 => "[0-9]{1,4}",
        1 => "'[a-zA-Zſ]{0,2}",
        1 => "[!-/:-@\\[-`{-~]{1,4}",
        1 => "\\p{L}{1,4}",
        1 => "[\\p{M}\\p{N}]{1,3}",
        1 => "\\s{1,3}",
        2 => "\\PC{1,4}",
        1 => any::<char>().prop_map(String::from),
        1 => prop::sample::select(vec!["<|im_end|>", "<|im_end|>!", "<tool_call>", "</tool_call>", "<|end", "oftext|>"])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec(unit, 0..24).prop_map(|units| units.concat())
}

/// Compares on random texts.
pub(super) fn compare_on_random_text(judge: Judge, table_bytes: &[u8], cases: u32) {
    let encoder = Encoder::new(TokenizerView::new(table_bytes).unwrap());
    let judge = RefCell::new(judge);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&any_text(), |text| {
        let compared = judge.borrow_mut().compare(&encoder, &text);
        compared.map_err(|difference| TestCaseError::fail(difference.to_string()))?;
        let mut decoder = StreamDecoder::new(encoder.view(), SpecialText::Shown);
        let mut decoded: String =
            encoder.encode(&text, false).into_iter().map(|id| decoder.push(id).to_owned()).collect();
        decoded.push_str(decoder.finish());
        let needed = judge.borrow().tokenizer.decode(&encoder.encode(&text, false), false);
        prop_assert_eq!(decoded, needed.unwrap());
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn every_rule_equals_tokenizers_on_the_corpus() {
    for rule in SplitRule::ALL {
        let json = trained_json(rule);
        let compiled = from_tokenizer_json(&json).unwrap();
        assert_eq!(compiled.split_rule, rule);
        let view = TokenizerView::new(&compiled.table_bytes).unwrap();
        assert_eq!(view.normalization(), normalization(rule));
        assert!(view.token_count() > 1000, "{} tokens", view.token_count());
        compare_on_corpus(&mut Judge::from_tokenizer_json(&json).unwrap(), &compiled.table_bytes);
    }
}

#[test]
fn every_rule_equals_tokenizers_on_random_text() {
    for rule in SplitRule::ALL {
        let json = trained_json(rule);
        let compiled = from_tokenizer_json(&json).unwrap();
        compare_on_random_text(Judge::from_tokenizer_json(&json).unwrap(), &compiled.table_bytes, 300);
    }
}

#[test]
fn every_rule_cuts_text_where_tokenizers_does() {
    for rule in SplitRule::ALL {
        let vocabulary = pair_vocabulary(rule);
        let table_bytes = vocabulary.tables().unwrap().encode().unwrap();
        let mut judge = Judge::from_vocabulary(&vocabulary).unwrap();
        compare_on_corpus(&mut judge, &table_bytes);
        compare_on_random_text(judge, &table_bytes, 500);
    }
}

#[test]
fn the_judge_sees_a_difference() {
    let qwen2: Value = serde_json::from_slice(&trained_json(SplitRule::Qwen2)).unwrap();
    let mut gpt2 = qwen2.clone();
    gpt2["pre_tokenizer"] = small_json()["pre_tokenizer"].clone();
    let compiled = from_tokenizer_json(qwen2.to_string().as_bytes()).unwrap();
    let mut judge = Judge::from_tokenizer_json(gpt2.to_string().as_bytes()).unwrap();
    let difference = judge.approve(&compiled.table_bytes).unwrap_err();
    assert!(difference.title.contains("differs"), "{difference}");
}

#[test]
fn classes_are_those_of_the_engine() {
    let json = small_json().to_string();
    let compiled = from_tokenizer_json(json.as_bytes()).unwrap();
    let view = TokenizerView::new(&compiled.table_bytes).unwrap();
    let letters = regex_syntax::parse(r"\p{L}").unwrap();
    let letter_count: usize = match letters.kind() {
        regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(class)) => {
            class.ranges().iter().map(|range| range.end() as usize - range.start() as usize + 1).sum()
        }
        _ => 0,
    };
    let all = || ('\0'..=char::MAX).map(|character| (character, view.class(character)));
    assert_eq!(all().filter(|(_, class)| class & 1 != 0).count(), letter_count);
    assert!(all().all(|(character, class)| character.is_numeric() == (class & CLASS_SINGLE_DIGIT != 0)));
    // The classes of the expressions exclude each other; the splitter relies on it.
    assert!(all().all(|(_, class)| (class & 7).count_ones() <= 1));
}

#[test]
fn gguf_metadata_gives_the_same_tokenizer() {
    let compiled = from_gguf(&small_gguf()).unwrap();
    assert_eq!(compiled.token_count, 261, "padding at the end does not count");
    assert_eq!(compiled.bos_id, None);
    let encoder = Encoder::new(TokenizerView::new(&compiled.table_bytes).unwrap());
    assert_eq!(encoder.encode(" the<|end|><tool>", true), [258, 259, 260]);
    assert_eq!(encoder.encode(" the<tool>", false), [258, 260]);
    assert_eq!(encoder.encode("<|end|>", false).len(), 7);
    let with_bos = from_gguf(&super::super::GgufTokenizer { add_bos: true, ..small_gguf() }).unwrap();
    assert_eq!(with_bos.bos_id, Some(259));
}

#[test]
fn a_template_that_puts_a_token_in_front_is_recognised() {
    let mut json = small_json();
    json["post_processor"] = serde_json::json!({
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [259], "tokens": ["<|end|>"]}},
            },
        ],
    });
    let compiled = from_tokenizer_json(json.to_string().as_bytes()).unwrap();
    assert_eq!(compiled.bos_id, Some(259));
    assert!(TokenizerView::new(&compiled.table_bytes).unwrap().add_bos());
}
