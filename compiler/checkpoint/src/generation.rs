//! Sampling defaults: `generation_config.json`, with `config.json` behind it.

use qwen2c_format::{Diagnostic, GenerationDefaults};
use serde_json::{Map, Value};

use crate::config::FieldReader;

/// Defaults of HF transformers' `GenerationConfig`.
const HF_TOP_K: u32 = 50;

/// Reads the defaults. An answer ends at the ids of `generation_config.json`, as in HF transformers, or at
/// those of `config.json` where it has none. Without `do_sample` the default is greedy: temperature 0.
///
/// `adds_bos` says whether the tokenizer puts the first id before a text.
///
/// # Errors
///
/// When a value has the wrong type or is out of range.
pub(crate) fn generation_defaults(
    generation: Option<&Map<String, Value>>,
    config: &Map<String, Value>,
    vocabulary: u64,
    adds_bos: bool,
) -> Result<GenerationDefaults, Diagnostic> {
    let empty = Map::new();
    let reader = FieldReader::new(generation.unwrap_or(&empty), "generation_config.json");
    let behind = FieldReader::new(config, "config.json");
    let stop_ids = match read_ids(&reader, "eos_token_id")? {
        Some(ids) => ids,
        None => read_ids(&behind, "eos_token_id")?.unwrap_or_default(),
    };
    let bos_id = match (adds_bos, read_ids(&reader, "bos_token_id")?) {
        (false, _) => None,
        (true, Some(ids)) => ids.first().copied(),
        (true, None) => read_ids(&behind, "bos_token_id")?.and_then(|ids| ids.first().copied()),
    };
    let samples = reader.flag("do_sample")?.unwrap_or(false);
    let temperature = ranged(&reader, "temperature", 1.0, 0.0..=100.0)?;
    let top_k = match reader.count("top_k")? {
        Some(top_k) => u32::try_from(top_k).unwrap_or(u32::MAX),
        None if samples => HF_TOP_K,
        None => 0,
    };
    let defaults = GenerationDefaults {
        stop_ids,
        bos_id,
        temperature: if samples { temperature } else { 0.0 },
        top_k,
        top_p: ranged(&reader, "top_p", 1.0, 0.0..=1.0)?,
        repetition_penalty: ranged(&reader, "repetition_penalty", 1.0, 0.01..=100.0)?,
    };
    check_ids(&defaults, vocabulary, "generation_config.json or config.json")?;
    Ok(defaults)
}

/// Refuses ids that the vocabulary does not have.
pub(crate) fn check_ids(
    defaults: &GenerationDefaults,
    vocabulary: u64,
    place: &str,
) -> Result<(), Diagnostic> {
    match defaults.stop_ids.iter().chain(&defaults.bos_id).find(|&&id| u64::from(id) >= vocabulary) {
        None => Ok(()),
        Some(id) => Err(Diagnostic::new("a special token's id is outside the vocabulary")
            .at(place)
            .found(id.to_string())
            .needed(format!("below {vocabulary}"))),
    }
}

/// An id or a list of ids.
fn read_ids(reader: &FieldReader<'_>, key: &str) -> Result<Option<Vec<u32>>, Diagnostic> {
    let ids = match reader.value(key) {
        None => return Ok(None),
        Some(Value::Array(_)) => reader.counts(key)?.unwrap_or_default(),
        Some(_) => reader.count(key)?.into_iter().collect(),
    };
    let narrow = ids.iter().map(|&id| u32::try_from(id)).collect::<Result<Vec<u32>, _>>();
    narrow.map(Some).map_err(|_| {
        Diagnostic::new(format!("`{key}` is not a token id")).at(reader.place()).found(format!("{ids:?}"))
    })
}

fn ranged(
    reader: &FieldReader<'_>,
    key: &str,
    default: f64,
    range: std::ops::RangeInclusive<f64>,
) -> Result<f32, Diagnostic> {
    let value = reader.real(key)?.unwrap_or(default);
    if range.contains(&value) {
        return Ok(value as f32);
    }
    Err(Diagnostic::new(format!("`{key}` is out of range"))
        .at(reader.place())
        .found(value.to_string())
        .needed(format!("{} to {}", range.start(), range.end())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(generation: Option<Value>, config: &Value) -> Result<GenerationDefaults, Diagnostic> {
        let generation = generation.map(|value| value.as_object().unwrap().clone());
        generation_defaults(generation.as_ref(), config.as_object().unwrap(), 151_936, true)
    }

    #[test]
    fn a_tuned_release_samples() {
        let generation = json!({"bos_token_id": 151_643, "eos_token_id": [151_645, 151_643], "do_sample": true,
            "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05});
        let defaults = read(Some(generation), &json!({"eos_token_id": 1})).unwrap();
        assert_eq!(defaults.stop_ids, [151_645, 151_643]);
        assert_eq!(defaults.bos_id, Some(151_643));
        assert_eq!((defaults.temperature, defaults.top_p, defaults.top_k), (0.7, 0.8, 20));
        assert_eq!(defaults.repetition_penalty, 1.05);
    }

    #[test]
    fn a_base_release_is_greedy_and_config_json_stands_behind() {
        let defaults =
            read(Some(json!({"do_sample": false, "max_new_tokens": 2048})), &json!({"eos_token_id": 7}));
        let defaults = defaults.unwrap();
        assert_eq!((defaults.temperature, defaults.top_k), (0.0, 0));
        assert_eq!(defaults.stop_ids, [7]);
        assert_eq!(read(None, &json!({})).unwrap().stop_ids, [] as [u32; 0]);
    }

    #[test]
    fn sampling_without_numbers_takes_the_reference_s() {
        let defaults = read(Some(json!({"do_sample": true})), &json!({})).unwrap();
        assert_eq!((defaults.temperature, defaults.top_k, defaults.top_p), (1.0, 50, 1.0));
    }

    fn check(generation: Value, expected: &str) {
        let message = read(Some(generation), &json!({})).unwrap_err().to_string();
        assert_eq!(message, expected);
    }

    #[test]
    fn wrong_values_are_named() {
        check(
            json!({"eos_token_id": 200_000}),
            "a special token's id is outside the vocabulary\n  --> generation_config.json or config.json\n  found: 200000\n  needed: below 151936",
        );
        check(
            json!({"eos_token_id": "</s>"}),
            "`eos_token_id` has the wrong type\n  --> generation_config.json\n  found: `\"</s>\"`\n  needed: a whole number",
        );
        check(
            json!({"top_p": 1.5}),
            "`top_p` is out of range\n  --> generation_config.json\n  found: 1.5\n  needed: 0 to 1",
        );
        check(
            json!({"eos_token_id": [4_294_967_296_u64]}),
            "`eos_token_id` is not a token id\n  --> generation_config.json\n  found: [4294967296]",
        );
    }
}
