//! Recognises the parts of a `tokenizer.json` that are programs rather than data.
//!
//! They are compared with the known ones as structures; what differs in anything that can matter is refused,
//! with what was found.

use qwen2c_format::Diagnostic;
use qwen2c_format::tokenizer::{Normalization, SplitRule};
use serde_json::{Value, json};

/// Qwen2's expression.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Llama 3's expression.
const LLAMA_BPE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The `pre_tokenizer` of a rule, without the fields that only concern offsets.
pub(super) fn pre_tokenizer(rule: SplitRule) -> Value {
    let byte_level =
        |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": use_regex});
    let split = |expression: &str| json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
    let sequence = |parts: [Value; 2]| json!({"type": "Sequence", "pretokenizers": parts});
    match rule {
        SplitRule::Gpt2 => byte_level(true),
        SplitRule::SmolLm => {
            sequence([json!({"type": "Digits", "individual_digits": true}), byte_level(true)])
        }
        SplitRule::Qwen2 => sequence([split(QWEN2), byte_level(false)]),
        SplitRule::LlamaBpe => sequence([split(LLAMA_BPE), byte_level(false)]),
    }
}

/// The rule that a `pre_tokenizer` is.
pub(super) fn recognise_split_rule(found: &Value) -> Result<SplitRule, Diagnostic> {
    let mut plain = found.clone();
    strip_offsets(&mut plain);
    SplitRule::ALL.into_iter().find(|&rule| pre_tokenizer(rule) == plain).ok_or_else(|| {
        let known: Vec<_> = SplitRule::ALL.map(|rule| format!("`{}`", rule.name())).into();
        refused("pre_tokenizer", "this way to split text is not known", found)
            .needed(format!("the splitting rule of one of {}", known.join(", ")))
    })
}

/// Takes `trim_offsets` out of byte-level parts and writes the default of `use_regex` down.
fn strip_offsets(part: &mut Value) {
    if let Some(parts) = part.get_mut("pretokenizers").and_then(Value::as_array_mut) {
        parts.iter_mut().for_each(strip_offsets);
    }
    if part.get("type") == Some(&json!("ByteLevel"))
        && let Some(fields) = part.as_object_mut()
    {
        fields.remove("trim_offsets");
        fields.entry("use_regex").or_insert(Value::Bool(true));
    }
}

/// The normalization that a `normalizer` is.
pub(super) fn recognise_normalization(found: &Value) -> Result<Normalization, Diagnostic> {
    if *found == Value::Null || *found == json!({"type": "Sequence", "normalizers": []}) {
        return Ok(Normalization::None);
    }
    if *found == normalizer(Normalization::Nfc) {
        return Ok(Normalization::Nfc);
    }
    Err(refused("normalizer", "this normalization of text is not known", found).needed("none, or `NFC`"))
}

/// The `normalizer` of a normalization.
pub(super) fn normalizer(normalization: Normalization) -> Value {
    match normalization {
        Normalization::None => Value::Null,
        Normalization::Nfc => json!({"type": "NFC"}),
    }
}

/// Checks that tokens are turned into text by the byte alphabet.
pub(super) fn check_decoder(found: &Value) -> Result<(), Diagnostic> {
    if found.get("type") == Some(&json!("ByteLevel")) {
        return Ok(());
    }
    Err(refused("decoder", "this way back from tokens to text is not known", found).needed("`ByteLevel`"))
}

/// The text of the token that a `post_processor` puts in front, where it does that and nothing else.
pub(super) fn recognise_bos(found: &Value) -> Result<Option<String>, Diagnostic> {
    let kind = found.get("type").and_then(Value::as_str);
    match kind {
        None if found.is_null() => Ok(None),
        Some("ByteLevel") => Ok(None),
        Some("Sequence") => {
            let parts = found.get("processors").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let found: Vec<Option<String>> = parts.iter().map(recognise_bos).collect::<Result<_, _>>()?;
            Ok(found.into_iter().flatten().next())
        }
        Some("TemplateProcessing") => template_bos(found),
        _ => Err(refused("post_processor", "this processing of token ids is not known", found)
            .needed("`ByteLevel`, or a `TemplateProcessing` that puts one token in front")),
    }
}

fn template_bos(found: &Value) -> Result<Option<String>, Diagnostic> {
    let single = found.get("single").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let is_text = |part: &Value| part.get("Sequence").is_some();
    match single {
        [text] if is_text(text) => return Ok(None),
        [token, text] if is_text(text) => {
            if let Some(name) = token.pointer("/SpecialToken/id").and_then(Value::as_str) {
                // The name is a key of the template's own table; the table has the token's text.
                let texts =
                    found.pointer("/special_tokens").and_then(|tokens| tokens.get(name)?.get("tokens"));
                let text = texts.and_then(|texts| texts.as_array()?.first()?.as_str());
                return Ok(Some(text.unwrap_or(name).to_owned()));
            }
        }
        _ => {}
    }
    Err(refused("post_processor", "this template of token ids is not known", &Value::from(single.to_vec()))
        .needed("the text alone, or one token in front of it"))
}

/// A refusal that quotes what was found, shortened.
fn refused(place: &str, title: &str, found: &Value) -> Diagnostic {
    let text = found.to_string();
    let mut short: String = text.chars().take(600).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    Diagnostic::new(title)
        .at(format!("`{place}` in tokenizer.json"))
        .found(short)
        .help("build without a tokenizer to get a program that speaks token ids")
}
