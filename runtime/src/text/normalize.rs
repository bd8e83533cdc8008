//! Normalization of text before it is split.

use qwen2c_format::tokenizer::Normalization;
use std::borrow::Cow;
use unicode_normalization_alignments::UnicodeNormalization;

/// `text` in the form that the tokenizer asks for.
///
/// The crate is the one that `tokenizers` normalizes with: a newer one knows more characters, and would compose
/// text that the model has only ever seen decomposed.
pub(super) fn normalize(text: &str, normalization: Normalization) -> Cow<'_, str> {
    match normalization {
        Normalization::Nfc if !text.is_ascii() => {
            Cow::Owned(text.nfc().map(|(character, _)| character).collect())
        }
        Normalization::Nfc | Normalization::None => Cow::Borrowed(text),
    }
}
