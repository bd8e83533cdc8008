//! Rotary embedding: both spellings of the configuration, YaRN, and what is refused.

use qwen2c_format::Diagnostic;
use qwen2c_graph::{Rope, RopeScaling};
use serde_json::Map;

use super::reader::FieldReader;

/// Keys of the scaling object that are understood; another one might change the rotation.
const KNOWN_KEYS: [&str; 11] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "truncate",
    "partial_rotary_factor",
    "finetuned",
];

/// Reads theta and scaling from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`.
pub(crate) fn read_rope(reader: &mut FieldReader<'_>, max_positions: u64) -> Result<Rope, Diagnostic> {
    let outer_theta = reader.real("rope_theta")?;
    let parameters = reader.object("rope_parameters")?;
    let empty = Map::new();
    let (spelling, object) = match (parameters, reader.object("rope_scaling")?) {
        (Some(parameters), _) => ("rope_parameters", parameters),
        (None, Some(scaling)) => ("rope_scaling", scaling),
        (None, None) => ("rope_scaling", &empty),
    };
    let place = format!("{}, `{spelling}`", reader.place());
    let inner = FieldReader::new(object, &place);
    let inner_theta = inner.real("rope_theta")?;
    if let (Some(outer), Some(inner)) = (outer_theta, inner_theta)
        && outer != inner
    {
        return Err(Diagnostic::new("the configuration gives two different values of `rope_theta`")
            .at(reader.place())
            .found(format!("{outer} and, in `{spelling}`, {inner}")));
    }
    let Some(theta) = inner_theta.or(outer_theta) else {
        return Err(reader
            .missing("rope_theta")
            .needed("`rope_theta`, or `rope_parameters` with `rope_theta`")
            .help("the releases of Qwen2 have 1000000.0; a wrong value garbles the text without an error"));
    };
    let theta_key =
        if inner_theta.is_some() { format!("`{spelling}.rope_theta`") } else { "`rope_theta`".into() };
    reader.record("rope_theta", theta_key);
    let scaling = read_scaling(&inner, max_positions)?;
    let origin = match (&scaling, object.is_empty()) {
        (RopeScaling::None, true) => {
            format!("default of the reference implementation, `{spelling}` is absent")
        }
        _ => format!("`{spelling}`"),
    };
    for name in YARN_NAMES {
        reader.record(name, origin.clone());
    }
    Ok(Rope { theta, scaling })
}

/// Names of the resolved values that come from the scaling object.
const YARN_NAMES: [&str; 6] = [
    "rope_scaling",
    "yarn_factor",
    "yarn_original_context",
    "yarn_beta_fast",
    "yarn_beta_slow",
    "yarn_attention_factor",
];

fn read_scaling(inner: &FieldReader<'_>, max_positions: u64) -> Result<RopeScaling, Diagnostic> {
    let kind = inner.text("rope_type")?.or(inner.text("type")?).unwrap_or("default");
    if inner.real("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(inner.refused(
            "partial_rotary_factor",
            "below 1",
            "heads are rotated whole in this family",
        ));
    }
    match kind {
        "default" => return Ok(RopeScaling::None),
        "yarn" => {}
        "linear" | "dynamic" | "llama3" | "longrope" | "su" | "mrope" => {
            return Err(inner
                .refused(
                    "rope_type",
                    kind,
                    "only unscaled rotation and YaRN are compiled; another rotation would garble the text",
                )
                .needed("`default` or `yarn`"));
        }
        unknown => {
            return Err(inner
                .refused("rope_type", unknown, "the rotation is not known")
                .needed("`default` or `yarn`"));
        }
    }
    if let Some(key) = inner.keys().find(|key| !KNOWN_KEYS.contains(key)) {
        return Err(Diagnostic::new(format!("`{key}` is not a known parameter of YaRN"))
            .at(inner.place())
            .cause("a parameter that is ignored would garble the text without an error"));
    }
    if inner.flag("truncate")? == Some(false) {
        return Err(inner.refused("truncate", "false", "the correction range is always rounded outwards"));
    }
    let factor = inner.real("factor")?.ok_or_else(|| inner.missing("factor"))?;
    let original = inner.count("original_max_position_embeddings")?.unwrap_or(max_positions);
    let betas = [inner.real("beta_fast")?, inner.real("beta_slow")?];
    yarn_scaling(factor, original, betas, inner.real("attention_factor")?, inner.place())
}

/// YaRN with its defaults: `beta_fast` 32, `beta_slow` 1, attention factor `0.1 · ln(factor) + 1`
/// (Peng et al. 2023, section 3.4; as HF transformers computes it).
pub(crate) fn yarn_scaling(
    factor: f64,
    original_context: u64,
    [beta_fast, beta_slow]: [Option<f64>; 2],
    attention_factor: Option<f64>,
    place: &str,
) -> Result<RopeScaling, Diagnostic> {
    let beta_fast = beta_fast.unwrap_or(32.0);
    let beta_slow = beta_slow.unwrap_or(1.0);
    let computed = if factor > 1.0 { 0.1 * libm::log(factor) + 1.0 } else { 1.0 };
    let attention_factor = attention_factor.unwrap_or(computed);
    let refuse = |what: &str, found: String, needed: &str| {
        Err(Diagnostic::new(format!("{what} of YaRN is out of range")).at(place).found(found).needed(needed))
    };
    if !(1.0..=1024.0).contains(&factor) {
        return refuse("`factor`", factor.to_string(), "1 to 1024");
    }
    if original_context == 0 || original_context > super::limits::MAX_CONTEXT {
        return refuse("`original_max_position_embeddings`", original_context.to_string(), "1 to 16777216");
    }
    if !(beta_slow > 0.0 && beta_slow < beta_fast && beta_fast <= 1e6) {
        return refuse(
            "`beta_fast` or `beta_slow`",
            format!("{beta_fast} and {beta_slow}"),
            "0 < `beta_slow` < `beta_fast`",
        );
    }
    if !(attention_factor > 0.0 && attention_factor <= 100.0) {
        return refuse("`attention_factor`", attention_factor.to_string(), "above 0, at most 100");
    }
    Ok(RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor })
}
