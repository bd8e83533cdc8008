//! The tokenizer in a GGUF file's metadata.

use super::vocabulary::{Token, Vocabulary, quoted, tokens_by_id};
use qwen2c_format::Diagnostic;
use qwen2c_format::tokenizer::{AddedToken, Normalization, SplitRule};

/// Type of a control token: special.
const CONTROL: i32 = 3;

/// Type of a token that a user added: matched as text, not special.
const USER_DEFINED: i32 = 4;

/// Type of a token that fills a gap, mostly padding at the end of the vocabulary.
const UNUSED: i32 = 5;

/// The metadata of `tokenizer.ggml` as plain values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GgufTokenizer {
    /// `tokenizer.ggml.model`: `gpt2` is byte-level BPE.
    pub model: String,
    /// `tokenizer.ggml.pre`: the splitting rule's name.
    pub pre: String,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`, by id; empty where the file has none (all ordinary).
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: two tokens with a space between, lowest rank first.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos_id: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`; false where the file has none.
    pub add_bos: bool,
}

/// Checks the metadata and brings it into the common form.
pub(super) fn read_vocabulary(tokenizer: &GgufTokenizer) -> Result<Vocabulary, Diagnostic> {
    let split_rule = split_rule(tokenizer)?;
    let types = &tokenizer.token_types;
    if !types.is_empty() && types.len() != tokenizer.tokens.len() {
        return Err(Diagnostic::new("the tokenizer has another number of token types than of tokens")
            .at("`tokenizer.ggml.token_type`")
            .found(format!("{} types", types.len()))
            .needed(format!("{} types", tokenizer.tokens.len()))
            .help("the file is damaged; get it again"));
    }
    let type_of = |id: usize| types.get(id).copied().unwrap_or(1);
    // Converters fill the vocabulary up to the rows of the embedding: those ids are never meant.
    let used = (0..tokenizer.tokens.len()).rev().find(|&id| type_of(id) != UNUSED).map_or(0, |id| id + 1);
    let tokens = tokens_by_id(tokenizer.tokens[..used].iter().enumerate().map(|(id, text)| {
        let is_word = !matches!(type_of(id), CONTROL | USER_DEFINED | UNUSED);
        (id as u64, Token { text: text.clone(), is_word })
    }))?;
    let added = (0..used)
        .filter(|&id| matches!(type_of(id), CONTROL | USER_DEFINED) && !tokens[id].text.is_empty())
        .map(|id| AddedToken { id: id as u32, special: type_of(id) == CONTROL, normalized: false })
        .collect();
    let merges = tokenizer.merges.iter().enumerate().map(|(rank, merge)| split_merge(rank, merge));
    Ok(Vocabulary {
        split_rule,
        // The metadata does not say; Qwen2's tokenizers compose, the others of these rules do not.
        normalization: if split_rule == SplitRule::Qwen2 { Normalization::Nfc } else { Normalization::None },
        ignore_merges: split_rule == SplitRule::LlamaBpe,
        bos_id: bos_id(tokenizer, used)?,
        merges: merges.collect::<Result<_, _>>()?,
        tokens,
        added,
    })
}

fn split_rule(tokenizer: &GgufTokenizer) -> Result<SplitRule, Diagnostic> {
    if tokenizer.model != "gpt2" {
        return Err(Diagnostic::new("this kind of tokenizer is not known")
            .at("`tokenizer.ggml.model`")
            .found(quoted(&tokenizer.model))
            .needed("`gpt2`, which is byte-level BPE"));
    }
    SplitRule::from_name(&tokenizer.pre).ok_or_else(|| {
        let known: Vec<_> = SplitRule::ALL.map(|rule| format!("`{}`", rule.name())).into();
        Diagnostic::new("this way to split text is not known")
            .at("`tokenizer.ggml.pre`")
            .found(quoted(&tokenizer.pre))
            .needed(format!("one of {}", known.join(", ")))
            .help("a guess would give the model other tokens than it was trained on")
    })
}

/// The two tokens of a merge. Tokens hold no space (it is `Ġ`), so there is exactly one.
fn split_merge(rank: usize, merge: &str) -> Result<(String, String), Diagnostic> {
    match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok((left.to_owned(), right.to_owned()))
        }
        _ => Err(Diagnostic::new(format!("merge {rank} is not two tokens"))
            .at("`tokenizer.ggml.merges`")
            .found(quoted(merge))
            .needed("two tokens with one space between")
            .help("the file is damaged; get it again")),
    }
}

fn bos_id(tokenizer: &GgufTokenizer, used: usize) -> Result<Option<u32>, Diagnostic> {
    if !tokenizer.add_bos {
        return Ok(None);
    }
    match tokenizer.bos_id {
        Some(id) if (id as usize) < used => Ok(Some(id)),
        other => Err(Diagnostic::new("the tokenizer asks for a beginning-of-sequence token that it has not")
            .at("`tokenizer.ggml.bos_token_id`")
            .found(other.map_or("no id".to_owned(), |id| format!("id {id}")))
            .needed(format!("an id below {used}"))),
    }
}
