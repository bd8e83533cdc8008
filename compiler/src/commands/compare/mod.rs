//! `qwen2c compare`: the same work by several programs, in one run on one machine.
//!
//! Machines drift: the entrants take turns, one measurement of everything each, so that a slow minute
//! hurts all alike, and ratios compare figures of the same turn.
//!
//! The way of a figure: [`workload`] says what is measured, [`entrant`] measures it in a turn,
//! [`comparison`] puts the turns together, and [`table`] and [`page`] show the result.

mod comparison;
mod entrant;
mod llama_bench;
mod page;
mod process;
mod program;
mod statistics;
mod table;
#[cfg(test)]
mod tests;
mod workload;

use std::io::Write;

use self::comparison::{Comparison, Machine};
use self::entrant::{Entrant, Turn};
use self::workload::Workload;
use crate::arguments::CompareArguments;
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::progress::Progress;

/// Measures the entrants and shows how they compare.
///
/// # Errors
///
/// When an entrant cannot be run or does not answer as it should, or the page cannot be written.
pub(crate) fn run(arguments: &CompareArguments, out: &mut dyn Write) -> Result<(), Failure> {
    // Whatever can be wrong is found out before minutes are spent on measuring.
    let entrants = Entrant::open_all(&arguments.programs, &arguments.llama_bench)?;
    let workload = Workload::new(arguments, entrants.iter().filter_map(Entrant::context).min())?;
    let _ = output::remove_on_interrupt();
    let page = arguments.html.as_deref().map(Output::create_document).transpose()?;
    let turns = take_turns(&entrants, &workload)?;
    let described = Entrant::describe_all(&entrants);
    let comparison = Comparison::new(Machine::this(), workload, described, &turns);
    if let Some(page) = page {
        let text = page::page(&comparison);
        page.file().write_all(text.as_bytes()).map_err(|error| page.failure(&error))?;
        page.complete()?;
    }
    if arguments.json {
        let text = serde_json::to_string_pretty(&comparison).expect("figures have no maps with odd keys");
        writeln!(out, "{text}")?;
    } else {
        for line in table::lines(&comparison) {
            writeln!(out, "{line}")?;
        }
        if let Some(path) = &arguments.html {
            writeln!(out, "\nThe page with plots is {}", path.display())?;
        }
    }
    Ok(())
}

/// Every entrant measures everything once in each turn: `turns[turn][entrant]`.
fn take_turns(entrants: &[Entrant], workload: &Workload) -> Result<Vec<Vec<Turn>>, Failure> {
    // A peer that is not told uses another number of threads than the programs do.
    let mut threads = workload.threads;
    let mut turns = Vec::new();
    for turn in 1..=workload.turns {
        let mut measured = Vec::new();
        for entrant in entrants {
            let what = format!("turn {turn} of {}: {}", workload.turns, entrant.name());
            let _sign_of_life = Progress::spinner(&what, false);
            let result = entrant.take_turn(workload, threads)?;
            threads = threads.or(Some(result.threads));
            measured.push(result);
        }
        turns.push(measured);
    }
    Ok(turns)
}
