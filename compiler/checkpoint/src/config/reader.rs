//! Typed access to the keys of a configuration, recording the origin of each value.

use std::collections::BTreeMap;

use qwen2c_format::Diagnostic;
use qwen2c_graph::{Family, ModelConfig};
use serde_json::{Map, Value};

/// Reads keys of a JSON object. The metadata of a GGUF file is brought into the same form first.
pub(crate) struct FieldReader<'a> {
    object: &'a Map<String, Value>,
    place: &'a str,
    origins: BTreeMap<&'static str, String>,
}

impl<'a> FieldReader<'a> {
    /// A reader of `object`, which was seen at `place`.
    pub(crate) fn new(object: &'a Map<String, Value>, place: &'a str) -> Self {
        Self { object, place, origins: BTreeMap::new() }
    }

    /// Where the object was seen.
    pub(crate) fn place(&self) -> &'a str {
        self.place
    }

    /// All keys that have a value.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.object.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key.as_str())
    }

    /// The value of a key; `null` counts as absent.
    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The object below a key.
    pub(crate) fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>, Diagnostic> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(other) => Err(self.wrong_type(key, other, "an object")),
        }
    }

    /// A whole number that is not negative.
    pub(crate) fn count(&self, key: &str) -> Result<Option<u64>, Diagnostic> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong_type(key, value, "a whole number")),
        }
    }

    /// A number.
    pub(crate) fn real(&self, key: &str) -> Result<Option<f64>, Diagnostic> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong_type(key, value, "a number")),
        }
    }

    /// `true` or `false`.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, Diagnostic> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong_type(key, other, "`true` or `false`")),
        }
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, Diagnostic> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(key, other, "a string")),
        }
    }

    /// A list of whole numbers.
    pub(crate) fn counts(&self, key: &str) -> Result<Option<Vec<u64>>, Diagnostic> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let list = value.as_array().and_then(|items| items.iter().map(Value::as_u64).collect());
        list.map(Some).ok_or_else(|| self.wrong_type(key, value, "a list of whole numbers"))
    }

    /// A number that must be there, recorded as the value `name`.
    pub(crate) fn required_count(&mut self, name: &'static str, key: &str) -> Result<u64, Diagnostic> {
        let count = self.count(key)?.ok_or_else(|| self.missing(key))?;
        self.record(name, format!("`{key}`"));
        Ok(count)
    }

    /// A number with the reference implementation's default.
    pub(crate) fn count_or(
        &mut self,
        name: &'static str,
        key: &str,
        default: u64,
    ) -> Result<u64, Diagnostic> {
        let found = self.count(key)?;
        self.record_default(name, key, found.is_some());
        Ok(found.unwrap_or(default))
    }

    /// A flag with the reference implementation's default.
    pub(crate) fn flag_or(
        &mut self,
        name: &'static str,
        key: &str,
        default: bool,
    ) -> Result<bool, Diagnostic> {
        let found = self.flag(key)?;
        self.record_default(name, key, found.is_some());
        Ok(found.unwrap_or(default))
    }

    /// Records that the value `name` came from `key`, or is the reference implementation's default.
    pub(crate) fn record_default(&mut self, name: &'static str, key: &str, found: bool) {
        let origin = if found {
            format!("`{key}`")
        } else {
            format!("default of the reference implementation, `{key}` is absent")
        };
        self.record(name, origin);
    }

    /// Records where the value `name` came from.
    pub(crate) fn record(&mut self, name: &'static str, origin: impl Into<String>) {
        self.origins.insert(name, origin.into());
    }

    /// Where the value `name` came from.
    pub(crate) fn origin(&self, name: &str) -> String {
        self.origins.get(name).cloned().unwrap_or_else(|| "derived".to_owned())
    }

    /// A key that must be there is not.
    pub(crate) fn missing(&self, key: &str) -> Diagnostic {
        Diagnostic::new(format!("`{key}` is missing from the configuration")).at(self.place)
    }

    /// A value that is known and not served, or not known at all.
    pub(crate) fn refused(&self, key: &str, value: &str, reason: &str) -> Diagnostic {
        Diagnostic::new(format!("`{key}` has a value that is not served"))
            .at(self.place)
            .found(format!("`{value}`"))
            .cause(reason)
    }

    fn wrong_type(&self, key: &str, value: &Value, needed: &str) -> Diagnostic {
        let mut found = value.to_string();
        if found.len() > 60 {
            let end = found.floor_char_boundary(60);
            found.truncate(end);
            found.push('…');
        }
        Diagnostic::new(format!("`{key}` has the wrong type"))
            .at(self.place)
            .found(format!("`{found}`"))
            .needed(needed)
    }
}

/// A name for a model that was not named: its family and its number of parameters. It must not depend on
/// where the checkpoint lies, because programs are reproducible.
pub(crate) fn model_name(config: &ModelConfig) -> String {
    let parameters = crate::models::parameter_count(config);
    let size = match parameters {
        0..1_000_000 => format!("{}k", parameters.div_ceil(1000)),
        1_000_000..1_000_000_000 => format!("{}m", (parameters + 500_000) / 1_000_000),
        _ => {
            let tenths = (parameters + 50_000_000) / 100_000_000;
            format!("{}.{}b", tenths / 10, tenths % 10)
        }
    };
    let family = match config.family {
        Family::Qwen2 => "qwen2",
        Family::Qwen2Moe => "qwen2-moe",
        Family::Llama => "llama",
    };
    format!("{family}-{size}")
}
