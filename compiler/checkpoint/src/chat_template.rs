//! The chat template and the special tokens it may name, from `tokenizer_config.json` and
//! `chat_template.jinja`.

use std::path::Path;

use qwen2c_format::Diagnostic;
use serde_json::{Map, Value};

use crate::files::read_file_if_present;

/// Variables that a template may use.
const TEMPLATE_TOKENS: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

/// The template: the file of its own where there is one, as in HF transformers.
pub(crate) fn read_chat_template(
    folder: &Path,
    tokenizer_config: Option<&Map<String, Value>>,
) -> Result<Option<String>, Diagnostic> {
    let path = folder.join("chat_template.jinja");
    if let Some(bytes) = read_file_if_present(&path)? {
        return String::from_utf8(bytes).map(Some).map_err(|error| {
            Diagnostic::new("the chat template is not UTF-8")
                .at(path.display().to_string())
                .cause(error.to_string())
        });
    }
    match tokenizer_config.and_then(|config| config.get("chat_template")) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(template)) => Ok(Some(template.clone())),
        Some(Value::Array(templates)) => Ok(default_template(templates)),
        Some(_) => Err(Diagnostic::new("`chat_template` has the wrong type")
            .at(folder.join("tokenizer_config.json").display().to_string())
            .needed("a string, or a list of objects with `name` and `template`")),
    }
}

/// The template called `default` of a list of named ones.
fn default_template(templates: &[Value]) -> Option<String> {
    templates
        .iter()
        .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
        .and_then(|entry| entry.get("template"))
        .and_then(Value::as_str)
        .map(str::to_owned)
}

/// Names and texts of the special tokens. A token is a string or an object with `content`.
pub(crate) fn read_template_tokens(tokenizer_config: Option<&Map<String, Value>>) -> Vec<(String, String)> {
    let Some(config) = tokenizer_config else {
        return Vec::new();
    };
    let text = |name: &str| match config.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    };
    TEMPLATE_TOKENS.iter().filter_map(|&name| Some((name.to_owned(), text(name)?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(folder: &Path, config: &Value) -> Option<String> {
        read_chat_template(folder, config.as_object()).unwrap()
    }

    #[test]
    fn a_file_of_its_own_wins_over_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let named = json!({"chat_template": [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]});
        assert_eq!(read(folder.path(), &json!({})), None);
        assert_eq!(read(folder.path(), &json!({"chat_template": "c"})).as_deref(), Some("c"));
        assert_eq!(read(folder.path(), &named).as_deref(), Some("b"));
        std::fs::write(folder.path().join("chat_template.jinja"), "d").unwrap();
        assert_eq!(read(folder.path(), &named).as_deref(), Some("d"));
    }

    #[test]
    fn tokens_are_strings_or_objects() {
        let config = json!({"bos_token": null, "eos_token": {"content": "<|im_end|>", "lstrip": false}, "pad_token": "<pad>"});
        let expected = [("eos_token", "<|im_end|>"), ("pad_token", "<pad>")];
        let tokens = read_template_tokens(config.as_object());
        assert_eq!(tokens, expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
    }

    #[test]
    fn a_number_is_not_a_template() {
        let config = json!({"chat_template": 1});
        let message = read_chat_template(Path::new("folder"), config.as_object()).unwrap_err().to_string();
        assert!(message.starts_with("`chat_template` has the wrong type\n  --> folder"), "{message}");
    }
}
