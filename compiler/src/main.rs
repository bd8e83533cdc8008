//! `qwen2c`: compiles a model of the Qwen2 family into one executable.
//!
//! Start reading at [`pipeline`]: a build from top to bottom. The commands lie in [`commands`], what the
//! user typed in [`arguments`], what will be done in [`request`].

mod arguments;
mod block_file;
mod checked_source;
mod commands;
mod device;
mod emit;
mod failure;
mod hashing_writer;
mod link;
mod machine;
mod output;
mod packing;
mod pieces;
mod pipeline;
mod prediction;
mod program;
mod progress;
mod prompt_prediction;
mod ptxas;
mod quant;
mod quantization_loss;
mod report;
mod request;
mod self_test;
mod stage;
mod suggestion;
mod table;
mod time_limit;
mod timing;
mod units;
mod weights;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command};
use crate::failure::Failure;

/// Exit code of a panic: a bug of ours.
const BUG: i32 = 3;

fn main() -> ExitCode {
    exit_with_report_on_panic();
    let arguments = Arguments::parse();
    let mut out = std::io::stdout().lock();
    let result = run(&arguments.command, &mut out).and_then(|()| Ok(out.flush()?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let message = failure.to_string();
            if !message.is_empty() {
                // With standard error closed too there is nobody left to tell.
                let _ = writeln!(std::io::stderr(), "{message}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(command: &Command, out: &mut dyn Write) -> Result<(), Failure> {
    match command {
        Command::Build(arguments) => commands::build::run(arguments, out),
        Command::Plan(arguments) => commands::plan::run(arguments, out),
        Command::Models => commands::lists::models(out),
        Command::Targets => commands::lists::targets(out),
        Command::Passes => commands::lists::passes(out),
        Command::Inspect(arguments) => commands::inspect::run(arguments, out),
        Command::Compare(arguments) => commands::compare::run(arguments, out),
    }
}

/// A panic is a bug: it says so, asks for a report, and ends with its own exit code whichever thread it
/// happens on.
fn exit_with_report_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let _ = writeln!(
            std::io::stderr(),
            "error: qwen2c has a bug: {panic}\n  help: please report it with the command that was run and the folder \
             that `--emit graph,fused,plan --emit-dir DIR` writes"
        );
        output::remove_unfinished();
        std::process::exit(BUG);
    }));
}
