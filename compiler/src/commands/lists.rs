//! `qwen2c models`, `targets` and `passes`: what can be named.

use std::io::Write;

use qwen2c_checkpoint::known_models;
use qwen2c_graph::passes::PASSES;
use qwen2c_targets::known_targets;

use crate::failure::Failure;
use crate::table::{Side, Table};
use crate::units;

/// Prints the models that can be named.
///
/// # Errors
///
/// When the output is closed.
pub(crate) fn models(out: &mut dyn Write) -> Result<(), Failure> {
    let mut table = Table::new(&[Side::Left, Side::Right, Side::Left]);
    for model in known_models() {
        table.row([model.name.clone(), units::parameters(model.parameters), model.repository.to_owned()]);
    }
    print(out, &table)?;
    writeln!(out, "\nA bare size such as `0.5B` means Qwen2. Names do not mind case.")?;
    writeln!(out, "A checkpoint's directory or a GGUF file can stand for a name.")?;
    Ok(())
}

/// Prints the targets that can be named.
///
/// # Errors
///
/// When the output is closed.
pub(crate) fn targets(out: &mut dyn Write) -> Result<(), Failure> {
    let mut table = Table::new(&[Side::Left, Side::Left]);
    for (name, summary) in known_targets() {
        table.row([name, summary]);
    }
    print(out, &table)
}

/// Prints the passes in their order.
///
/// # Errors
///
/// When the output is closed.
pub(crate) fn passes(out: &mut dyn Write) -> Result<(), Failure> {
    let mut table = Table::new(&[Side::Left, Side::Left, Side::Left]);
    for pass in PASSES {
        let kind = match (pass.optional, pass.by_default) {
            (false, _) => "mandatory",
            (true, true) => "optional",
            (true, false) => "with --pass",
        };
        table.row([pass.name, kind, pass.summary]);
    }
    print(out, &table)
}

fn print(out: &mut dyn Write, table: &Table) -> Result<(), Failure> {
    for line in table.lines(0) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}
