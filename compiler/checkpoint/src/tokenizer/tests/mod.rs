//! Tests of the compiled tokenizers against the crate `tokenizers`.

mod cases;
mod equality;
mod full;
mod refusals;

use super::rules;
use super::vocabulary::{Token, Vocabulary};
use qwen2c_format::tokenizer::{AddedToken, Normalization, SplitRule};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken as TrainedToken, Tokenizer};

/// Text in more than eighty languages, code, emoji, digits; one line each.
const CORPUS: &str = include_str!("corpus.txt");

/// A `tokenizer.json` of about 1500 tokens, trained on the corpus, with the added tokens of a chat model.
fn trained_json(rule: SplitRule) -> Vec<u8> {
    static TRAINED: OnceLock<Mutex<BTreeMap<&str, Vec<u8>>>> = OnceLock::new();
    let mut trained = TRAINED.get_or_init(Mutex::default).lock().unwrap();
    trained.entry(rule.name()).or_insert_with(|| train(rule)).clone()
}

fn train(rule: SplitRule) -> Vec<u8> {
    let empty = Vocabulary {
        split_rule: rule,
        normalization: normalization(rule),
        ignore_merges: rule == SplitRule::LlamaBpe,
        bos_id: None,
        tokens: vec![Token { text: "!".to_owned(), is_word: true }],
        merges: Vec::new(),
        added: Vec::<AddedToken>::new(),
    };
    let mut tokenizer = Tokenizer::from_bytes(empty.tokenizer_json().to_string()).unwrap();
    let trainer = BpeTrainer::builder()
        .vocab_size(1500)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut TrainerWrapper::BpeTrainer(trainer), CORPUS.lines()).unwrap();
    tokenizer.add_tokens(&[
        TrainedToken::from("<|endoftext|>", true),
        TrainedToken::from("<|im_start|>", true),
        TrainedToken::from("<|im_end|>", true),
        TrainedToken::from("<|im_end|>!", true),
        TrainedToken::from("<tool_call>", false).normalized(false),
        TrainedToken::from("</tool_call>", false).normalized(true),
        TrainedToken::from("<｜end▁of▁sentence｜>", true),
    ]);
    tokenizer.to_string(false).unwrap().into_bytes()
}

/// A vocabulary in which any two bytes merge, so that ids show where text was cut into pieces: trained merges
/// rarely cross a wrong cut.
fn pair_vocabulary(rule: SplitRule) -> Vocabulary {
    let characters = super::byte_alphabet::characters().map(String::from);
    let pairs = || characters.iter().flat_map(|left| characters.iter().map(move |right| (left, right)));
    let texts = characters.iter().cloned().chain(pairs().map(|(left, right)| format!("{left}{right}")));
    Vocabulary {
        split_rule: rule,
        normalization: normalization(rule),
        ignore_merges: false,
        bos_id: None,
        tokens: texts.map(|text| Token { text, is_word: true }).collect(),
        merges: pairs().map(|(left, right)| (left.clone(), right.clone())).collect(),
        added: Vec::new(),
    }
}

fn normalization(rule: SplitRule) -> Normalization {
    if rule == SplitRule::Qwen2 { Normalization::Nfc } else { Normalization::None }
}

/// A small valid `tokenizer.json` as a value to damage: the byte alphabet and a few merges.
fn small_json() -> Value {
    let characters = super::byte_alphabet::characters();
    let mut vocab: serde_json::Map<String, Value> =
        characters.iter().enumerate().map(|(id, character)| (character.to_string(), json!(id))).collect();
    for (id, text) in [(256, "Ġt"), (257, "he"), (258, "Ġthe")] {
        vocab.insert(text.to_owned(), json!(id));
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": 259, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": rules::pre_tokenizer(SplitRule::Gpt2).as_object().map(|fields| {
            let mut fields = fields.clone();
            fields.insert("trim_offsets".to_owned(), Value::Bool(true));
            fields
        }),
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab,
            "merges": [["Ġ", "t"], ["h", "e"], ["Ġt", "he"]],
        },
    })
}

/// The metadata of a GGUF file that says the same as [`small_json`] under the rule `smollm`.
fn small_gguf() -> super::GgufTokenizer {
    let characters = super::byte_alphabet::characters();
    let words = characters.iter().map(char::to_string).chain(["Ġt", "he", "Ġthe"].map(str::to_owned));
    let mut tokens: Vec<String> = words.collect();
    let mut token_types = vec![1; tokens.len()];
    tokens.extend(["<|end|>", "<tool>", "[PAD261]", "[PAD262]"].map(str::to_owned));
    token_types.extend([3, 4, 5, 5]);
    super::GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: "smollm".to_owned(),
        tokens,
        token_types,
        merges: ["Ġ t", "h e", "Ġt he"].map(str::to_owned).into(),
        bos_id: Some(259),
        add_bos: false,
    }
}
