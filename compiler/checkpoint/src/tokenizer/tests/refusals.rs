//! Damaged and unknown tokenizers end in a diagnostic.

use super::super::{GgufTokenizer, from_gguf, from_tokenizer_json};
use super::{small_gguf, small_json, trained_json};
use proptest::prelude::*;
use qwen2c_format::tokenizer::{SplitRule, TokenizerView};
use qwen2c_runtime::text::{Encoder, SpecialText, StreamDecoder};
use serde_json::{Value, json};

/// What is said of [`small_json`] after a change.
fn refusal(change: impl FnOnce(&mut Value)) -> String {
    let mut json = small_json();
    change(&mut json);
    match from_tokenizer_json(json.to_string().as_bytes()) {
        Ok(_) => "accepted".to_owned(),
        Err(diagnostic) => diagnostic.to_string(),
    }
}

fn gguf_refusal(change: impl FnOnce(&mut GgufTokenizer)) -> String {
    let mut tokenizer = small_gguf();
    change(&mut tokenizer);
    from_gguf(&tokenizer).map_or_else(|diagnostic| diagnostic.to_string(), |_| "accepted".to_owned())
}

#[test]
fn the_unchanged_ones_are_accepted() {
    assert_eq!(refusal(|_| {}), "accepted");
    assert_eq!(gguf_refusal(|_| {}), "accepted");
}

#[test]
fn unknown_programs_are_named() {
    let said = refusal(|json| json["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁"}));
    assert!(said.contains("this way to split text is not known") && said.contains("Metaspace"), "{said}");
    assert!(said.contains("`qwen2`"), "{said}");
    let said = refusal(|json| json["pre_tokenizer"]["add_prefix_space"] = json!(true));
    assert!(said.contains("this way to split text is not known"), "{said}");
    let said = refusal(|json| json["normalizer"] = json!({"type": "NFKC"}));
    assert!(said.contains("normalization") && said.contains("NFKC"), "{said}");
    let said = refusal(|json| json["decoder"] = json!({"type": "WordPiece"}));
    assert!(said.contains("WordPiece"), "{said}");
    let said = refusal(|json| json["post_processor"] = json!({"type": "BertProcessing"}));
    assert!(said.contains("BertProcessing"), "{said}");
    let said = gguf_refusal(|gguf| gguf.pre = "default".to_owned());
    assert!(said.contains("`default`") && said.contains("`smollm`"), "{said}");
    let said = gguf_refusal(|gguf| gguf.model = "llama".to_owned());
    assert!(said.contains("`llama`"), "{said}");
}

#[test]
fn models_of_another_kind_are_refused() {
    for (field, value) in [
        ("type", json!("Unigram")),
        ("dropout", json!(0.1)),
        ("byte_fallback", json!(true)),
        ("continuing_subword_prefix", json!("##")),
        ("end_of_word_suffix", json!("</w>")),
    ] {
        let said = refusal(|json| json["model"][field] = value);
        assert!(said.contains(&format!("`{field}`")), "{said}");
    }
    let said = refusal(|json| {
        json["model"]["unk_token"] = json!("a");
        json["model"]["vocab"].as_object_mut().unwrap().remove("b");
        json["model"]["vocab"]["bb"] = json!(98 - 33 + 33);
    });
    assert!(said.contains("unk_token"), "{said}");
}

#[test]
fn contradictions_are_refused() {
    let said = refusal(|json| json["model"]["merges"][0] = json!(["Ġ", "zz"]));
    assert!(said.contains("unknown token") && said.contains("`zz`"), "{said}");
    let said = refusal(|json| json["model"]["merges"][0] = json!("x"));
    assert!(said.contains("not two tokens"), "{said}");
    let said = refusal(|json| json["model"]["vocab"]["twice"] = json!(258));
    assert!(said.contains("two tokens have the id 258"), "{said}");
    let said = refusal(|json| json["model"]["vocab"]["far"] = json!(300));
    assert!(said.contains("no token has the id 260"), "{said}");
    let said = refusal(|json| json["model"]["vocab"]["far"] = json!(u64::MAX));
    assert!(said.contains("cannot be served"), "{said}");
    let said = refusal(|json| json["added_tokens"][0]["id"] = json!(u64::MAX));
    assert!(said.contains("cannot be served"), "{said}");
    let said = refusal(|json| json["added_tokens"][0]["content"] = json!("he"));
    assert!(said.contains("two ids"), "{said}");
    let said = refusal(|json| json["added_tokens"][0]["content"] = json!(""));
    assert!(said.contains("empty"), "{said}");
    let said = refusal(|json| json["added_tokens"][0]["lstrip"] = json!(true));
    assert!(said.contains("lstrip true"), "{said}");
    let said = refusal(|json| json["model"]["vocab"] = json!({}));
    assert!(said.contains("no token has the id 0"), "{said}");
    let said = refusal(|json| json["model"] = Value::Null);
    assert!(said.contains("cannot be read"), "{said}");
}

#[test]
fn contradictory_gguf_metadata_is_refused() {
    let said = gguf_refusal(|gguf| gguf.token_types.truncate(5));
    assert!(said.contains("5 types"), "{said}");
    let said = gguf_refusal(|gguf| gguf.merges.push("a  b".to_owned()));
    assert!(said.contains("merge 3 is not two tokens"), "{said}");
    let said = gguf_refusal(|gguf| gguf.merges.push("a z\u{0}".to_owned()));
    assert!(said.contains("unknown token"), "{said}");
    let said = gguf_refusal(|gguf| gguf.tokens[3] = gguf.tokens[4].clone());
    assert!(said.contains("ids 3 and 4"), "{said}");
    let said = gguf_refusal(|gguf| gguf.tokens.clear());
    assert!(said.contains("types"), "{said}");
    let said = gguf_refusal(|gguf| {
        *gguf = GgufTokenizer { tokens: Vec::new(), token_types: Vec::new(), ..gguf.clone() }
    });
    assert!(said.contains("unknown token"), "{said}");
    let said = gguf_refusal(|gguf| {
        gguf.add_bos = true;
        gguf.bos_id = Some(5000);
    });
    assert!(said.contains("id 5000"), "{said}");
}

#[test]
fn altered_files_never_panic() {
    let text = small_json().to_string();
    for cut in (0..text.len()).step_by(97).filter(|&cut| text.is_char_boundary(cut)) {
        assert!(from_tokenizer_json(&text.as_bytes()[..cut]).is_err());
    }
    proptest!(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() },
    |(at in 0..text.len(), byte in any::<u8>())| {
        let mut altered = text.clone().into_bytes();
        altered[at] = byte;
        let _ = from_tokenizer_json(&altered);
    });
}

#[test]
fn damaged_tables_never_panic() {
    let compiled = from_tokenizer_json(&trained_json(SplitRule::LlamaBpe)).unwrap();
    let length = compiled.table_bytes.len();
    let text = "The <|im_end|>! 123's   x\n\n é漢 </tool_call>";
    proptest!(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() },
    |(places in prop::collection::vec((0..length, 0..200_usize, any::<u8>()), 1..40), cut in 0..length * 2)| {
        let mut damaged = compiled.table_bytes.clone();
        for (at, near, byte) in places {
            damaged[at] = byte;
            damaged[near] = if near > 40 { byte } else { damaged[near] };
        }
        damaged.truncate(cut.max(1));
        if let Ok(view) = TokenizerView::new(&damaged) {
            let ids = Encoder::new(view).encode(text, true);
            let mut decoder = StreamDecoder::new(view, SpecialText::Shown);
            for id in ids.into_iter().chain([u32::MAX, 0, 1499]) {
                decoder.push(id);
            }
            decoder.finish();
        }
    });
}
