//! A tokenizer's data in one form, whatever file it came from.

use super::byte_alphabet::{ByteAlphabet, characters};
use super::classes::character_classes;
use super::rules;
use qwen2c_format::Diagnostic;
use qwen2c_format::tokenizer::{
    AddedToken, MAX_TOKENS, MergeEntry, Normalization, SplitRule, TokenEntry, TokenizerTables,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A token by its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// In the byte alphabet for tokens of the model, literally for added ones.
    pub(super) text: String,
    /// Of the model's vocabulary; false for tokens that are only added or not used.
    pub(super) is_word: bool,
}

/// A tokenizer's data, its ids checked.
#[derive(Clone, Debug)]
pub(super) struct Vocabulary {
    pub(super) split_rule: SplitRule,
    pub(super) normalization: Normalization,
    pub(super) ignore_merges: bool,
    /// Token that raw text begins with.
    pub(super) bos_id: Option<u32>,
    /// By id.
    pub(super) tokens: Vec<Token>,
    /// Lowest rank first.
    pub(super) merges: Vec<(String, String)>,
    pub(super) added: Vec<AddedToken>,
}

/// Puts (id, text) pairs in order; every id from 0 on exactly once.
pub(super) fn tokens_by_id(pairs: impl IntoIterator<Item = (u64, Token)>) -> Result<Vec<Token>, Diagnostic> {
    let mut by_id = BTreeMap::new();
    for (id, token) in pairs {
        if id >= u64::from(MAX_TOKENS) {
            return Err(Diagnostic::new(format!(
                "token {} has an id that cannot be served",
                quoted(&token.text)
            ))
            .found(format!("id {id}"))
            .needed(format!("an id below {MAX_TOKENS}")));
        }
        let text = token.text.clone();
        if let Some(other) = by_id.insert(id, token) {
            return Err(Diagnostic::new(format!("two tokens have the id {id}"))
                .found(format!("{} and {}", quoted(&other.text), quoted(&text)))
                .help("the tokenizer is damaged; get it again"));
        }
    }
    for (needed, &id) in by_id.keys().enumerate() {
        if id != needed as u64 {
            return Err(Diagnostic::new(format!("no token has the id {needed}"))
                .found(format!("ids up to {needed}, then {id}"))
                .needed("ids without holes")
                .help("the tokenizer is damaged; get it again"));
        }
    }
    Ok(by_id.into_values().collect())
}

impl Vocabulary {
    /// The tables of the emitted program.
    pub(super) fn tables(&self) -> Result<TokenizerTables, Diagnostic> {
        let ids = self.ids_by_text()?;
        let alphabet = ByteAlphabet::new();
        let mut tokens: Vec<TokenEntry> = self
            .tokens
            .iter()
            .map(|token| TokenEntry {
                // Like `tokenizers`: what is not written in the alphabet stands for itself.
                bytes: alphabet.bytes_of(&token.text).unwrap_or_else(|| token.text.as_bytes().to_vec()),
                is_word: token.is_word,
            })
            .collect();
        for added in &self.added {
            tokens[added.id as usize].bytes = self.tokens[added.id as usize].text.as_bytes().to_vec();
        }
        let byte_ids = characters()
            .map(|character| ids.get(character.to_string().as_str()).copied())
            .map(|id| id.filter(|&id| self.tokens[id as usize].is_word));
        Ok(TokenizerTables {
            split_rule: self.split_rule,
            normalization: self.normalization,
            add_bos: self.bos_id.is_some(),
            ignore_merges: self.ignore_merges,
            tokens,
            byte_ids,
            merges: self.merge_entries(&ids)?,
            added: self.added.clone(),
            classes: character_classes(),
        })
    }

    fn ids_by_text(&self) -> Result<BTreeMap<&str, u32>, Diagnostic> {
        let mut ids = BTreeMap::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(other) = ids.insert(token.text.as_str(), id as u32) {
                return Err(Diagnostic::new(format!("two ids have the same token {}", quoted(&token.text)))
                    .found(format!("ids {other} and {id}"))
                    .help("the tokenizer is damaged; get it again"));
            }
        }
        Ok(ids)
    }

    /// Merges by id; of a pair that is listed twice the later counts, as in `tokenizers`.
    fn merge_entries(&self, ids: &BTreeMap<&str, u32>) -> Result<Vec<MergeEntry>, Diagnostic> {
        let mut merges = BTreeMap::new();
        let mut merged = String::new();
        for (rank, (left, right)) in self.merges.iter().enumerate() {
            merged.clear();
            merged.push_str(left);
            merged.push_str(right);
            let find = |text: &str| {
                ids.get(text).copied().ok_or_else(|| {
                    Diagnostic::new(format!("merge {rank} names an unknown token"))
                        .found(format!("{} + {}, but no token {}", quoted(left), quoted(right), quoted(text)))
                        .needed("merges of tokens into tokens of the vocabulary")
                        .help("the tokenizer is damaged; get it again")
                })
            };
            let (left, right, merged) = (find(left)?, find(right)?, find(&merged)?);
            merges.insert((left, right), MergeEntry { left, right, rank: rank as u32, merged });
        }
        Ok(merges.into_values().collect())
    }

    /// The same tokenizer as a `tokenizer.json`, for the judge.
    pub(super) fn tokenizer_json(&self) -> Value {
        let vocab: serde_json::Map<String, Value> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.text.clone(), json!(id))).collect();
        let added: Vec<Value> = self
            .added
            .iter()
            .map(|added| {
                json!({
                    "id": added.id,
                    "content": self.tokens[added.id as usize].text,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": added.normalized,
                    "special": added.special,
                })
            })
            .collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": rules::normalizer(self.normalization),
            "pre_tokenizer": with_offsets(rules::pre_tokenizer(self.split_rule)),
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": self.ignore_merges,
                "vocab": vocab,
                "merges": self.merges,
            },
        })
    }
}

/// Adds the field that `tokenizers` wants in byte-level parts.
fn with_offsets(mut part: Value) -> Value {
    if let Some(parts) = part.get_mut("pretokenizers").and_then(Value::as_array_mut) {
        for part in parts {
            *part = with_offsets(part.take());
        }
    }
    if part.get("type") == Some(&json!("ByteLevel")) {
        part["trim_offsets"] = Value::Bool(false);
    }
    part
}

/// A token's text in backticks, shortened.
pub(super) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("`{}{more}`", short.escape_debug())
}
