//! `--quant`: how the weights of the blocks are stored.

use qwen2c_format::Diagnostic;
use qwen2c_request::Quantization;

use crate::failure::Failure;

/// Group size where none is given.
const DEFAULT_GROUP: u32 = 32;

/// Group sizes of the command line.
const GROUPS: [u32; 3] = [32, 64, 128];

/// Reads `none`, `int8[:GROUP]` or `int4[:GROUP]`.
///
/// # Errors
///
/// [`Failure::Usage`] for anything else but `keep`, which is known and not available yet.
pub(crate) fn parse_quant(text: &str) -> Result<Option<Quantization>, Failure> {
    let (format, group) = text.split_once(':').map_or((text, None), |(format, group)| (format, Some(group)));
    let bits = match format {
        "int8" => 8,
        "int4" => 4,
        "none" if group.is_none() => return Ok(None),
        "keep" if group.is_none() => return Err(keep_is_not_available().into()),
        _ => {
            return Err(Failure::Usage(
                Diagnostic::new("no such quantization")
                    .at("`--quant`")
                    .found(format!("`{text}`"))
                    .needed("`none`, `int8[:GROUP]`, `int4[:GROUP]` or `keep`"),
            ));
        }
    };
    let Some(group) = group else { return Ok(Some(Quantization::signed(bits, DEFAULT_GROUP))) };
    match GROUPS.into_iter().find(|known| known.to_string() == group) {
        Some(group) => Ok(Some(Quantization::signed(bits, group))),
        None => Err(Failure::Usage(no_such_group(format, group))),
    }
}

fn keep_is_not_available() -> Diagnostic {
    Diagnostic::new("quantization `keep` is not available in this version")
        .at("`--quant`")
        .help("build with `--quant int8` or `int4`: the checkpoint's weights are widened and quantized anew")
        .help("or with `--quant none`: they are widened to `--dtype`")
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

/// What an unquantized model gets where `--quant` is left out.
pub(crate) const fn default_quantization(parameters: u64) -> Quantization {
    let bits = if parameters <= MOST_PARAMETERS_OF_INT8 { 8 } else { 4 };
    Quantization::signed(bits, DEFAULT_GROUP)
}

/// The name in file names and manifests: `none`, `int4`, `int4:128`.
pub(crate) fn quant_name(quantization: Option<Quantization>) -> String {
    match quantization {
        None => "none".to_owned(),
        Some(Quantization { bits, group: DEFAULT_GROUP, .. }) => format!("int{bits}"),
        Some(Quantization { bits, group, .. }) => format!("int{bits}:{group}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for name in ["none", "int8", "int4", "int8:64", "int4:128"] {
            assert_eq!(quant_name(parse_quant(name).expect("a known name")), name);
        }
        assert_eq!(parse_quant("int4:32").expect("a known name"), Some(Quantization::signed(4, 32)));
    }

    #[test]
    fn keep_is_refused_as_input_and_unknown_names_as_usage() {
        let code = |name: &str| parse_quant(name).expect_err("must be refused").exit_code();
        assert_eq!(code("keep"), 1);
        for name in ["int5", "int8:48", "keep:32", "none:32", "int4:", ""] {
            assert_eq!(code(name), 2, "{name}");
        }
        let message = |name: &str| parse_quant(name).expect_err("must be refused").to_string();
        assert!(message("int4:48").contains("`--quant int4:32`"), "{}", message("int4:48"));
        assert!(message("int8:256").contains("`--quant int8:128`"), "{}", message("int8:256"));
        assert!(message("int8:1").contains("`--quant int8:32`"), "{}", message("int8:1"));
    }
}
