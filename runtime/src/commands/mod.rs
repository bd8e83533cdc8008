//! One file for each command, and what they share: from a command line to an exit code.

mod bench;
mod chat;
mod info;
mod logits;
mod perplexity;
mod profile;
mod run;
mod self_test;
mod startup;
mod stopwatch;
#[cfg(test)]
mod tests;

use qwen2c_format::Diagnostic;
use serde::Serialize;

use crate::arguments::{Arguments, Command, help};
use crate::console::{Console, Failure, OrUsage};
use crate::interrupt;
use crate::processor::{MOST_THREADS, Placement};
use crate::session::Session;
use crate::{Hardware, Program};

/// Where a program comes from: opening fails with a message.
pub(crate) type ReadProgram<'a> = &'a dyn Fn() -> Result<Program, Diagnostic>;

/// The program, once a command needs it, checked against the flags that every command has.
type OpenProgram<'a> = &'a dyn Fn() -> Result<Program, Failure>;

/// Most that `--device` takes.
const MOST_DEVICE_NUMBER: u32 = 1023;

/// Does what the command line says.
///
/// # Errors
///
/// [`Failure`] says how the process ends.
pub(crate) fn execute(
    name: &str,
    arguments: &[std::ffi::OsString],
    read: ReadProgram<'_>,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let mut arguments = Arguments::parse(arguments).or_usage()?;
    if arguments.has("--help") {
        return console.print(&help(name, arguments.command));
    }
    if arguments.has("--version") {
        let version = env!("CARGO_PKG_VERSION");
        let format = qwen2c_format::FORMAT_VERSION;
        return console.print(&format!("qwen2c program, runtime {version}, format {format}\n"));
    }
    if arguments.command.is_none() && arguments.only_common_flags() && console.input_is_terminal {
        arguments.command = Some(Command::Chat);
    }
    console.quiet = arguments.has("--quiet");
    device_number(&arguments)?;
    let open: OpenProgram<'_> = &|| {
        let program = read()?;
        check_device(&program, &arguments)?;
        Ok(program)
    };
    let command = arguments.command.unwrap_or(Command::Run);
    interrupt::install();
    match command {
        Command::Run => run::run(&arguments, open, console),
        Command::Chat => chat::chat(&arguments, open, console),
        Command::Logits => logits::logits(&arguments, open, console),
        Command::Perplexity => perplexity::perplexity(&arguments, open, console),
        Command::Bench => bench::bench(&arguments, open, console),
        Command::Profile => profile::profile(&arguments, open, console),
        Command::SelfTest => self_test::self_test(&arguments, open, console),
        Command::Info => info::info(&arguments, open, console),
    }
}

/// The number that `--device` gives.
fn device_number(arguments: &Arguments) -> Result<u32, Failure> {
    Ok(arguments.number("--device", 0, MOST_DEVICE_NUMBER).or_usage()?.unwrap_or(0))
}

/// The processor is one device. Which GPUs there are, their driver says when a command needs one.
fn check_device(program: &Program, arguments: &Arguments) -> Result<(), Failure> {
    let number = device_number(arguments)?;
    if program.is_for_device() || number == 0 {
        return Ok(());
    }
    Err(Failure::Usage(
        arguments
            .usage(format!("`--device` does not take `{number}`"))
            .needed("0")
            .help("this program runs on the processor, which is device 0"),
    ))
}

/// What the program runs on, as `--threads` or `--device` ask for it; what of it is slower than it could be
/// is said once.
fn hardware(
    program: &Program,
    arguments: &Arguments,
    console: &mut Console<'_>,
) -> Result<Hardware, Failure> {
    if !program.is_for_device() {
        let placement = placement(arguments, console)?;
        if let Some(note) = program.note_of_small_pages() {
            console.note(&note);
        }
        return Ok(Hardware::Processor(placement));
    }
    if arguments.number("--threads", 1, MOST_THREADS).or_usage()?.is_some() {
        console.note("note: this program computes on a GPU: `--threads` changes nothing");
    }
    Ok(Hardware::Device(device_number(arguments)?))
}

/// Workers as `--threads` asks for them; more than there are cores is said once.
fn placement(arguments: &Arguments, console: &mut Console<'_>) -> Result<Placement, Failure> {
    let asked = arguments.number("--threads", 1, MOST_THREADS).or_usage()?;
    let placement = Placement::choose(asked);
    if placement.shares_cores {
        let (threads, cores) = (placement.threads, placement.usable);
        let which = if cores == 1 { "one physical core" } else { &format!("{cores} physical cores") };
        console.note(&format!(
            "note: {threads} threads take turns on the {which} this process may use; \
             `--threads {cores}` is faster"
        ));
    }
    Ok(placement)
}

/// A session on what the flags say, with prompts in chunks as `--prompt-rows` says.
fn start_session(
    program: &Program,
    arguments: &Arguments,
    console: &mut Console<'_>,
) -> Result<Session, Failure> {
    let mut session = program.start(&hardware(program, arguments, console)?)?;
    if let Some(rows) = arguments.number("--prompt-rows", 1, usize::MAX).or_usage()? {
        session.limit_prompt_rows(rows);
    }
    Ok(session)
}

/// Ids from a text such as `1,2,3`. Whether they are in the vocabulary is the session's to say.
fn parse_ids(arguments: &Arguments, text: &str) -> Result<Vec<u32>, Failure> {
    if text.trim().is_empty() {
        return Err(crate::SessionError::Empty.into());
    }
    let parse = |word: &str| {
        let word = word.trim();
        word.parse::<i128>().map_err(|_| {
            let error = arguments.usage(format!("`--tokens` does not take `{word}`"));
            Failure::Usage(error.needed("ids separated by commas, such as `1,2,3`"))
        })
    };
    let in_range = |id: i128| {
        u32::try_from(id)
            .map_err(|_| Failure::Input(Diagnostic::new(format!("id {id} lies outside the vocabulary"))))
    };
    text.split(',').map(|word| parse(word).and_then(in_range)).collect()
}

/// Prints a value as one line of JSON.
fn print_json(value: &impl Serialize, console: &mut Console<'_>) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Diagnostic::new("the result cannot be written as JSON").cause(error.to_string()))?;
    console.print(&format!("{text}\n"))
}
