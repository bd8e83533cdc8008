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
    let group = match group {
        None => Some(DEFAULT_GROUP),
        Some(group) => GROUPS.into_iter().find(|known| known.to_string() == group),
    };
    match (format, group) {
        ("none", _) if text == "none" => Ok(None),
        ("int8", Some(group)) => Ok(Some(Quantization { bits: 8, group })),
        ("int4", Some(group)) => Ok(Some(Quantization { bits: 4, group })),
        ("keep", _) if text == "keep" => Err(Diagnostic::new(
            "quantization `keep` is not available in this version",
        )
        .at("`--quant`")
        .help("build with `--quant int8` or `int4`: the checkpoint's weights are widened and quantized anew")
        .help("or with `--quant none`: they are widened to `--dtype`")
        .into()),
        _ => Err(Failure::Usage(
            Diagnostic::new("no such quantization")
                .at("`--quant`")
                .found(format!("`{text}`"))
                .needed("`none`, `int8[:GROUP]`, `int4[:GROUP]` or `keep`, with groups of 32, 64 or 128"),
        )),
    }
}

/// The name in file names and manifests: `none`, `int4`, `int4:128`.
pub(crate) fn quant_name(quantization: Option<Quantization>) -> String {
    match quantization {
        None => "none".to_owned(),
        Some(Quantization { bits, group: DEFAULT_GROUP }) => format!("int{bits}"),
        Some(Quantization { bits, group }) => format!("int{bits}:{group}"),
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
        assert_eq!(parse_quant("int4:32").expect("a known name"), Some(Quantization { bits: 4, group: 32 }));
    }

    #[test]
    fn keep_is_refused_as_input_and_unknown_names_as_usage() {
        let code = |name: &str| parse_quant(name).expect_err("must be refused").exit_code();
        assert_eq!(code("keep"), 1);
        for name in ["int5", "int8:48", "keep:32", "none:32", "int4:", ""] {
            assert_eq!(code(name), 2, "{name}");
        }
    }
}
