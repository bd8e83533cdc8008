//! The checkpoint's tokenizer as the tables that the program carries.

use qwen2c_checkpoint::tokenizer::{from_gguf, from_tokenizer_json};
use qwen2c_checkpoint::{ModelDescription, TokenizerSource};

use crate::failure::Failure;

/// The encoded tables; none where the checkpoint has no tokenizer.
///
/// # Errors
///
/// When the tokenizer is damaged, of a kind that is not known, or its tables do not encode as the
/// tokenizer itself does.
pub(crate) fn tokenizer_tables(description: &ModelDescription) -> Result<Option<Vec<u8>>, Failure> {
    let compiled = match &description.tokenizer {
        TokenizerSource::Absent => return Ok(None),
        TokenizerSource::Json(json) => from_tokenizer_json(json)?,
        TokenizerSource::Gguf(vocabulary) => from_gguf(vocabulary)?,
    };
    Ok(Some(compiled.encode()))
}
