//! The tokenizer in a `tokenizer.json`.

use super::byte_alphabet::characters;
use super::rules;
use super::vocabulary::{Token, Vocabulary, quoted, tokens_by_id};
use qwen2c_format::Diagnostic;
use qwen2c_format::tokenizer::AddedToken;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The file.
#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedTokenField>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: ModelField,
}

/// An entry of `added_tokens`.
#[derive(Deserialize)]
struct AddedTokenField {
    id: u64,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

/// The field `model`.
#[derive(Deserialize)]
struct ModelField {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    vocab: BTreeMap<String, u64>,
    #[serde(default)]
    merges: Vec<MergeField>,
}

/// A merge, in the older and the newer spelling.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeField {
    Text(String),
    Pair(String, String),
}

/// Checks the file and brings it into the common form.
pub(super) fn read_vocabulary(tokenizer_json: &[u8]) -> Result<Vocabulary, Diagnostic> {
    let file: TokenizerFile = serde_json::from_slice(tokenizer_json).map_err(|error| {
        Diagnostic::new("`tokenizer.json` cannot be read")
            .cause(error.to_string())
            .help("the file is damaged or of another kind of tokenizer; get it again")
    })?;
    let split_rule = rules::recognise_split_rule(&file.pre_tokenizer)?;
    let normalization = rules::recognise_normalization(&file.normalizer)?;
    rules::check_decoder(&file.decoder)?;
    check_model(&file.model)?;
    let (tokens, added) = tokens(&file)?;
    let bos_id = match rules::recognise_bos(&file.post_processor)? {
        None => None,
        Some(text) => Some(bos_id(&text, &tokens)?),
    };
    Ok(Vocabulary {
        split_rule,
        normalization,
        ignore_merges: file.model.ignore_merges,
        bos_id,
        tokens,
        merges: file.model.merges.into_iter().map(split_merge).collect::<Result<_, _>>()?,
        added,
    })
}

fn check_model(model: &ModelField) -> Result<(), Diagnostic> {
    let refuse = |field: &str, found: String, needed: &str| {
        Err(Diagnostic::new(format!("the tokenizer's model has a `{field}` that cannot be served"))
            .at(format!("`model.{field}` in tokenizer.json"))
            .found(found)
            .needed(needed))
    };
    if let Some(kind) = model.kind.as_deref().filter(|&kind| kind != "BPE") {
        return refuse("type", quoted(kind), "`BPE`");
    }
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return refuse("dropout", format!("{:?}", model.dropout), "none: tokens must not be random");
    }
    if model.byte_fallback {
        return refuse("byte_fallback", "true".to_owned(), "false: the byte alphabet has every byte");
    }
    let affixes = [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ];
    for (field, affix) in affixes {
        if let Some(affix) = affix.as_deref().filter(|affix| !affix.is_empty()) {
            return refuse(field, quoted(affix), "none");
        }
    }
    // Bytes that no UTF-8 text has need no token.
    let characters = characters();
    let is_in_text = |byte: usize| !matches!(byte, 0xc0 | 0xc1 | 0xf5..=0xff);
    let missing = (0..256)
        .find(|&byte| is_in_text(byte) && !model.vocab.contains_key(characters[byte].to_string().as_str()));
    match (&model.unk_token, missing) {
        (Some(unknown), Some(byte)) => {
            refuse("unk_token", format!("{} for byte {byte:#04x}", quoted(unknown)), "a token for every byte")
        }
        _ => Ok(()),
    }
}

/// Tokens of the model and added tokens, by id.
fn tokens(file: &TokenizerFile) -> Result<(Vec<Token>, Vec<AddedToken>), Diagnostic> {
    let vocab = &file.model.vocab;
    let mut pairs: Vec<(u64, Token)> =
        vocab.iter().map(|(text, &id)| (id, Token { text: text.clone(), is_word: true })).collect();
    let mut contents = BTreeSet::new();
    let mut added = Vec::new();
    for field in &file.added_tokens {
        check_added(field, vocab.get(&field.content).copied(), &mut contents)?;
        if !vocab.contains_key(&field.content) {
            pairs.push((field.id, Token { text: field.content.clone(), is_word: false }));
        }
        // Ids are checked against the limit with all others, below.
        added.push(AddedToken { id: field.id as u32, special: field.special, normalized: field.normalized });
    }
    Ok((tokens_by_id(pairs)?, added))
}

fn check_added<'f>(
    field: &'f AddedTokenField,
    id_in_vocab: Option<u64>,
    contents: &mut BTreeSet<&'f str>,
) -> Result<(), Diagnostic> {
    let name = quoted(&field.content);
    let refuse = |title: String, found: String, needed: &str| {
        Err(Diagnostic::new(title).at("`added_tokens` in tokenizer.json").found(found).needed(needed))
    };
    if field.content.is_empty() || !contents.insert(&field.content) {
        return refuse(
            format!("the added token {name} is empty or listed twice"),
            format!("id {}", field.id),
            "a text that no other added token has",
        );
    }
    if let Some(id) = id_in_vocab.filter(|&id| id != field.id) {
        return refuse(format!("the token {name} has two ids"), format!("{} and {id}", field.id), "one id");
    }
    if field.single_word || field.lstrip || field.rstrip {
        let flags =
            format!("single_word {}, lstrip {}, rstrip {}", field.single_word, field.lstrip, field.rstrip);
        return refuse(
            format!("the added token {name} takes its surroundings into account"),
            flags,
            "all false",
        );
    }
    if field.normalized && !field.content.is_ascii() {
        return refuse(
            format!("the added token {name} is matched in normalized text"),
            "characters beyond ASCII".to_owned(),
            "ASCII, or `normalized` false",
        );
    }
    Ok(())
}

fn split_merge(merge: MergeField) -> Result<(String, String), Diagnostic> {
    match merge {
        MergeField::Pair(left, right) => Ok((left, right)),
        MergeField::Text(text) => match text.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
            _ => Err(Diagnostic::new("a merge is not two tokens")
                .at("`model.merges` in tokenizer.json")
                .found(quoted(&text))
                .needed("two tokens with one space between")),
        },
    }
}

fn bos_id(text: &str, tokens: &[Token]) -> Result<u32, Diagnostic> {
    match tokens.iter().position(|token| token.text == text) {
        Some(id) => Ok(id as u32),
        None => Err(Diagnostic::new("the tokenizer asks for a beginning-of-sequence token that it has not")
            .at("`post_processor` in tokenizer.json")
            .found(quoted(text))
            .needed("a token of the vocabulary")),
    }
}
