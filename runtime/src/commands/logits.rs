//! `logits`: writes the logits behind every token of a prompt.

use std::path::Path;

use super::{OpenProgram, parse_ids, start_session};
use crate::arguments::Arguments;
use crate::console::{Console, Failure, OrUsage};
use crate::interrupt;
use crate::safetensors::TensorFile;

/// Writes the tensor `logits`, `f32[tokens, vocabulary]`, nothing masked.
pub(super) fn logits(
    arguments: &Arguments,
    open: OpenProgram<'_>,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let missing = |name: &str| Failure::Usage(arguments.usage(format!("`{name}` is missing")));
    let text = arguments.text("--tokens").or_usage()?.ok_or_else(|| missing("--tokens 1,2,3"))?;
    let path = Path::new(arguments.value("-o").ok_or_else(|| missing("-o FILE"))?);
    let tokens = parse_ids(arguments, text)?;
    let program = open()?;
    let mut session = start_session(&program, arguments, console)?;
    session.check(&tokens)?;
    interrupt::cooperate();
    let mut file = TensorFile::create(path, "logits", tokens.len(), session.vocabulary())?;
    session.prefill_each(&tokens, |_, logits| {
        if interrupt::is_pending() {
            return Err(Failure::Interrupted);
        }
        Ok(file.write_row(logits)?)
    })?;
    Ok(file.finish()?)
}
