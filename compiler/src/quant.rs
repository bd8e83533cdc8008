//! `--quant`: how the program's weights are stored.

use std::fmt;

use qwen2c_checkpoint::{ModelDescription, parameter_count};
use qwen2c_format::Diagnostic;
use qwen2c_graph::WeightStorage;
use qwen2c_request::Quantization;

use crate::failure::Failure;

/// Group size where none is given.
const DEFAULT_GROUP: u32 = 32;

/// Group sizes of the command line.
const GROUPS: [u32; 3] = [32, 64, 128];

/// How the program's weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quant {
    /// As elements of `--dtype`.
    None,
    /// Quantized by the compiler.
    Made(Quantization),
    /// As the checkpoint has them.
    Keep,
}

impl Quant {
    /// The same in the graph's terms, for a model.
    pub(crate) fn storage(self, description: &ModelDescription) -> WeightStorage {
        match self {
            Self::None => WeightStorage::Elements,
            Self::Made(quantization) => WeightStorage::Quantized(quantization),
            Self::Keep => WeightStorage::ByTensor(description.quantized_tensors.clone()),
        }
    }
}

/// The name in file names and manifests: `none`, `int4`, `int4:128`, `keep`.
impl fmt::Display for Quant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => formatter.write_str("none"),
            Self::Keep => formatter.write_str("keep"),
            Self::Made(Quantization { bits, group: DEFAULT_GROUP, .. }) => write!(formatter, "int{bits}"),
            Self::Made(Quantization { bits, group, .. }) => write!(formatter, "int{bits}:{group}"),
        }
    }
}

/// Reads `none`, `int8[:GROUP]`, `int4[:GROUP]` or `keep`.
///
/// # Errors
///
/// [`Failure::Usage`] for anything else.
pub(crate) fn parse_quant(text: &str) -> Result<Quant, Failure> {
    let (format, group) = text.split_once(':').map_or((text, None), |(format, group)| (format, Some(group)));
    let bits = match format {
        "int8" => 8,
        "int4" => 4,
        "none" if group.is_none() => return Ok(Quant::None),
        "keep" if group.is_none() => return Ok(Quant::Keep),
        _ => {
            return Err(Failure::Usage(
                Diagnostic::new("no such quantization")
                    .at("`--quant`")
                    .found(format!("`{text}`"))
                    .needed("`none`, `int8[:GROUP]`, `int4[:GROUP]` or `keep`"),
            ));
        }
    };
    let Some(group) = group else { return Ok(Quant::Made(Quantization::signed(bits, DEFAULT_GROUP))) };
    match GROUPS.into_iter().find(|known| known.to_string() == group) {
        Some(group) => Ok(Quant::Made(Quantization::signed(bits, group))),
        None => Err(Failure::Usage(no_such_group(format, group))),
    }
}

/// A checkpoint whose weights are not quantized.
pub(crate) fn nothing_to_keep() -> Diagnostic {
    Diagnostic::new("the checkpoint has no quantized weights to keep")
        .at("`--quant keep`")
        .needed("a GGUF file with quantized tensors")
        .help("`--quant none` takes the weights as they are; `int8` and `int4` quantize them")
}

/// A group that no kernel reads.
fn no_such_group(format: &str, group: &str) -> Diagnostic {
    let diagnostic = Diagnostic::new("weights cannot be quantized in groups of this size")
        .at("`--quant`")
        .found(format!("`{format}:{group}`"))
        .needed("groups of 32, 64 or 128 weights");
    let Ok(asked) = group.parse::<u64>() else { return diagnostic };
    match GROUPS.into_iter().min_by_key(|known| asked.abs_diff(u64::from(*known))) {
        Some(nearest) => diagnostic.help(format!("the nearest is `--quant {format}:{nearest}`")),
        None => diagnostic,
    }
}

/// Most parameters of a model that takes 8 bits by default: smaller models lose more by 4 bits, and gain
/// less.
const MOST_PARAMETERS_OF_INT8: u64 = 2_000_000_000;

/// What a model gets where `--quant` is left out: its own quantization, or one for its size.
pub(crate) fn default_quant(description: &ModelDescription) -> Quant {
    if !description.quantized_tensors.is_empty() {
        return Quant::Keep;
    }
    let bits = if parameter_count(&description.config) <= MOST_PARAMETERS_OF_INT8 { 8 } else { 4 };
    Quant::Made(Quantization::signed(bits, DEFAULT_GROUP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for name in ["none", "int8", "int4", "int8:64", "int4:128", "keep"] {
            assert_eq!(parse_quant(name).expect("a known name").to_string(), name);
        }
        let int4 = Quant::Made(Quantization::signed(4, 32));
        assert_eq!(parse_quant("int4:32").expect("a known name"), int4);
    }

    #[test]
    fn unknown_names_are_refused_as_usage() {
        let code = |name: &str| parse_quant(name).expect_err("must be refused").exit_code();
        for name in ["int5", "int8:48", "keep:32", "none:32", "int4:", ""] {
            assert_eq!(code(name), 2, "{name}");
        }
        let message = |name: &str| parse_quant(name).expect_err("must be refused").to_string();
        assert!(message("int4:48").contains("`--quant int4:32`"), "{}", message("int4:48"));
        assert!(message("int8:256").contains("`--quant int8:128`"), "{}", message("int8:256"));
        assert!(message("int8:1").contains("`--quant int8:32`"), "{}", message("int8:1"));
    }
}
