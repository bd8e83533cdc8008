//! Compiles a checkpoint's tokenizer to tables.
//!
//! ```text
//! tokenizer.json ─┐
//!                 ├─▶ Vocabulary ─▶ tables ─▶ bytes in the program
//! GGUF metadata ──┘         └─▶ Judge: the crate `tokenizers` on the same data must give the same ids
//! ```
//!
//! What cannot be served exactly is refused by name: an unknown way to split text would give other tokens than
//! the model was trained on, and the answer would be worse without anybody noticing.

mod byte_alphabet;
mod classes;
mod gguf;
mod json;
mod judge;
mod rules;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use gguf::GgufTokenizer;
pub use judge::Judge;

use crate::TokenizerSource;
use qwen2c_format::Diagnostic;
use qwen2c_format::tokenizer::SplitRule;
use vocabulary::Vocabulary;

/// A tokenizer as an emitted program holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledTokenizer {
    /// The tables, for [`qwen2c_format::tokenizer::TokenizerView`].
    pub table_bytes: Vec<u8>,
    /// Ids below this are tokens; rows of the embedding beyond it are padding.
    pub token_count: u32,
    /// How text is split.
    pub split_rule: SplitRule,
    /// The token that raw text begins with, where the tokenizer asks for one.
    pub bos_id: Option<u32>,
}

/// Compiles a checkpoint's tokenizer; none where it has none.
///
/// # Errors
///
/// As [`from_tokenizer_json`].
pub fn compile_tokenizer(source: &TokenizerSource) -> Result<Option<CompiledTokenizer>, Diagnostic> {
    match source {
        TokenizerSource::Absent => Ok(None),
        TokenizerSource::Json(tokenizer_json) => from_tokenizer_json(tokenizer_json).map(Some),
        TokenizerSource::Gguf(vocabulary) => from_gguf(vocabulary).map(Some),
    }
}

/// Compiles the contents of a `tokenizer.json`, and has the result judged on a short multilingual text.
///
/// # Errors
///
/// Where the file is damaged, contradicts itself, or asks for something that the tables cannot do exactly.
pub fn from_tokenizer_json(tokenizer_json: &[u8]) -> Result<CompiledTokenizer, Diagnostic> {
    let compiled = compile(&json::read_vocabulary(tokenizer_json)?)?;
    Judge::from_tokenizer_json(tokenizer_json)?.approve(&compiled.table_bytes)?;
    Ok(compiled)
}

/// Compiles the tokenizer of a GGUF file, and has the result judged on a short multilingual text.
///
/// # Errors
///
/// As [`from_tokenizer_json`].
pub fn from_gguf(tokenizer: &GgufTokenizer) -> Result<CompiledTokenizer, Diagnostic> {
    let vocabulary = gguf::read_vocabulary(tokenizer)?;
    let compiled = compile(&vocabulary)?;
    Judge::from_vocabulary(&vocabulary)?.approve(&compiled.table_bytes)?;
    Ok(compiled)
}

fn compile(vocabulary: &Vocabulary) -> Result<CompiledTokenizer, Diagnostic> {
    let tables = vocabulary.tables()?;
    Ok(CompiledTokenizer {
        table_bytes: tables.encode()?,
        token_count: tables.tokens.len() as u32,
        split_rule: vocabulary.split_rule,
        bos_id: vocabulary.bos_id,
    })
}
