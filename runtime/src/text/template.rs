//! The checkpoint's chat template.
//!
//! Rendered as Hugging Face's `apply_chat_template` does: Jinja with `trim_blocks` and `lstrip_blocks`,
//! `raise_exception`, the special tokens by name. There is no `strftime_now`: templates that ask whether it is
//! defined take their fixed date, so that the same conversation always gives the same tokens.

use super::encode::{Encoder, Recognise};
use super::protect::{mark_special, unused_marker};
use super::python_json::to_json;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, context};
use qwen2c_format::Diagnostic;
use serde::Serialize;

/// Instructions that a template may execute, far beyond what any conversation needs: a template that never ends
/// must not hang the program.
const FUEL: u64 = 20_000_000;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant`.
    pub role: String,
    /// Text.
    pub content: String,
}

impl Message {
    /// A message of that role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A chat template with its variables.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    variables: Vec<(String, String)>,
}

impl ChatTemplate {
    /// A template in Jinja and its variables (`bos_token`, `eos_token`), as the manifest holds them.
    ///
    /// # Errors
    ///
    /// Where the template cannot be parsed.
    pub fn new(source: &str, variables: &[(String, String)]) -> Result<Self, Diagnostic> {
        environment().template_from_str(source).map_err(|error| {
            refused("the chat template cannot be parsed", &error)
                .help("use `--raw` to complete text without it, or correct the template in the checkpoint")
        })?;
        Ok(Self { source: source.to_owned(), variables: variables.to_vec() })
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where the assistant's answer begins.
    ///
    /// # Errors
    ///
    /// Where the template raises an exception (roles out of order, for example) or asks for something unknown.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, Diagnostic> {
        let environment = environment();
        let variables: Vec<(&str, Value)> =
            self.variables.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str()))).collect();
        let conversation = context! {
            messages,
            add_generation_prompt,
            tools => Value::from(()),
            documents => Value::from(()),
        };
        let variables = Value::from_iter(variables);
        environment
            .template_from_str(&self.source)
            .and_then(|template| template.render(context! { ..conversation, ..variables }))
            .map_err(|error| {
                refused("the chat template refuses the conversation", &error)
                    .help("use `--raw` to complete text without the template")
            })
    }

    /// The tokens of a conversation.
    ///
    /// They are those of the rendered text, except that special tokens are only recognised in what the template
    /// itself wrote: one in a message's content is encoded as text.
    ///
    /// # Errors
    ///
    /// As [`ChatTemplate::render`].
    pub fn encode(
        &self,
        encoder: &Encoder<'_>,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, Diagnostic> {
        let texts = messages.iter().flat_map(|message| [message.role.as_str(), message.content.as_str()]);
        let variables = self.variables.iter().map(|(_, text)| text.as_str());
        let all_texts = texts.chain(variables).chain([self.source.as_str()]);
        let marker = unused_marker(all_texts).ok_or_else(|| {
            Diagnostic::new("the messages use every private-use character of plane 15")
                .needed("one character that the messages do not hold")
                .help("use `--raw` to complete text without the template")
        })?;
        let marked: Vec<Message> = messages
            .iter()
            .map(|message| {
                Message::new(message.role.clone(), mark_special(encoder, &message.content, marker))
            })
            .collect();
        let text = self.render(&marked, add_generation_prompt)?;
        Ok(encoder.encode_with(&text, Recognise::Unmarked(marker)))
    }
}

/// The environment that Hugging Face's templates expect.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment
}

fn refused(title: &str, error: &Error) -> Diagnostic {
    let diagnostic = Diagnostic::new(title).cause(error.to_string());
    match error.line() {
        Some(line) => diagnostic.at(format!("line {line} of the template")),
        None => diagnostic,
    }
}
