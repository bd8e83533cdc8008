//! The tokenizer's tables in the metadata of a GGUF file.

use std::collections::BTreeMap;

use qwen2c_format::Diagnostic;

use super::header::{GgufFile, MetadataValue};
use crate::tokenizer::GgufTokenizer;

/// What the tokenizer is compiled from, and the ids that only the description needs.
#[derive(Clone, Debug)]
pub(super) struct GgufVocabulary {
    /// Vocabulary, merges and the splitting rule's name.
    pub(super) tokenizer: GgufTokenizer,
    /// `tokenizer.ggml.eos_token_id`.
    pub(super) eos_id: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: ends a turn.
    pub(super) end_of_turn_id: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub(super) padding_id: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub(super) unknown_id: Option<u32>,
}

impl GgufVocabulary {
    /// The text of a token.
    pub(super) fn token(&self, id: u32) -> Option<&str> {
        self.tokenizer.tokens.get(id as usize).map(String::as_str)
    }
}

/// Takes the vocabulary out of a file; `None` where it has none.
pub(super) fn read_vocabulary(gguf: &GgufFile) -> Result<Option<GgufVocabulary>, Diagnostic> {
    let metadata = &gguf.metadata;
    let Some(model) = metadata.get("tokenizer.ggml.model").and_then(MetadataValue::as_text) else {
        return Ok(None);
    };
    let wrong = |key: &str, needed: &str| {
        Diagnostic::new(format!("metadata key `{key}` has the wrong type or is missing"))
            .at(gguf.file.place())
            .needed(needed)
    };
    let texts = |key: &str| match metadata.get(key) {
        Some(MetadataValue::Texts(texts)) => Ok(texts.clone()),
        _ => Err(wrong(key, "an array of strings")),
    };
    let tokens = texts("tokenizer.ggml.tokens")?;
    let token_types = match metadata.get("tokenizer.ggml.token_type") {
        None => Vec::new(),
        Some(MetadataValue::Integers(types)) if types.len() == tokens.len() => {
            types.iter().map(|&kind| i32::try_from(kind).unwrap_or(i32::MAX)).collect()
        }
        Some(_) => return Err(wrong("tokenizer.ggml.token_type", "as many integers as there are tokens")),
    };
    let merges = match metadata.contains_key("tokenizer.ggml.merges") {
        true => texts("tokenizer.ggml.merges")?,
        false => Vec::new(),
    };
    let pre = metadata.get("tokenizer.ggml.pre").and_then(MetadataValue::as_text).unwrap_or_default();
    let tokenizer = GgufTokenizer {
        model: model.to_owned(),
        pre: pre.to_owned(),
        tokens,
        token_types,
        merges,
        bos_id: read_id(metadata, "bos_token_id"),
        add_bos: metadata.get("tokenizer.ggml.add_bos_token") == Some(&MetadataValue::Flag(true)),
    };
    Ok(Some(GgufVocabulary {
        tokenizer,
        eos_id: read_id(metadata, "eos_token_id"),
        end_of_turn_id: read_id(metadata, "eot_token_id"),
        padding_id: read_id(metadata, "padding_token_id"),
        unknown_id: read_id(metadata, "unknown_token_id"),
    }))
}

fn read_id(metadata: &BTreeMap<String, MetadataValue>, key: &str) -> Option<u32> {
    let id = metadata.get(&format!("tokenizer.ggml.{key}"))?.as_count()?;
    u32::try_from(id).ok()
}
