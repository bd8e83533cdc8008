//! The commands and their flags, as data.

use crate::arguments::Command;

/// A command as help shows it.
pub(crate) struct CommandEntry {
    pub(crate) command: Command,
    pub(crate) name: &'static str,
    /// What stands beside the flags.
    pub(crate) positional: Option<&'static str>,
    pub(crate) summary: &'static str,
}

/// A flag as help shows it.
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    /// Name of its value in help; none for a switch.
    pub(crate) value: Option<&'static str>,
    pub(crate) help: &'static str,
    /// Commands that take it; empty for every command.
    pub(crate) commands: &'static [Command],
    /// Not shown in help: for tests.
    pub(crate) hidden: bool,
}

const fn entry(
    command: Command,
    name: &'static str,
    positional: Option<&'static str>,
    summary: &'static str,
) -> CommandEntry {
    CommandEntry { command, name, positional, summary }
}

/// All commands.
pub(crate) const COMMANDS: &[CommandEntry] = &[
    entry(Command::Run, "run", None, "Answers one prompt."),
    entry(
        Command::Chat,
        "chat",
        None,
        "Talks; an empty line is ignored, Ctrl-C stops an answer, Ctrl-D ends.",
    ),
    entry(Command::Logits, "logits", None, "Writes the logits behind every token as safetensors."),
    entry(Command::Perplexity, "perplexity", Some("FILE"), "Scores a text."),
    entry(Command::Bench, "bench", None, "Measures prompts and generation in tokens/s."),
    entry(Command::Profile, "profile", None, "Shows where the time goes, kernel by kernel."),
    entry(Command::SelfTest, "self-test", None, "Recomputes what was recorded when the program was built."),
    entry(Command::Info, "info", None, "Shows what the program is made of."),
];

impl Command {
    /// The command's entry.
    pub(crate) fn entry(self) -> &'static CommandEntry {
        COMMANDS.iter().find(|entry| entry.command == self).expect("every command has an entry")
    }
}

const fn switch(name: &'static str, help: &'static str, commands: &'static [Command]) -> Flag {
    Flag { name, value: None, help, commands, hidden: false }
}

const fn valued(
    name: &'static str,
    value: &'static str,
    help: &'static str,
    commands: &'static [Command],
) -> Flag {
    Flag { name, value: Some(value), help, commands, hidden: false }
}

const RUN: &[Command] = &[Command::Run];
const TALK: &[Command] = &[Command::Run, Command::Chat];
const MEASURE: &[Command] = &[Command::Bench, Command::Profile];
const JSON: &[Command] = &[Command::Perplexity, Command::Bench, Command::Profile, Command::Info];

/// All flags.
pub(crate) const FLAGS: &[Flag] = &[
    valued("-p", "TEXT", "the prompt (default: standard input)", RUN),
    valued("-f", "FILE", "the prompt's file", RUN),
    valued("--tokens", "1,2,3", "ids instead of text", &[Command::Run, Command::Logits]),
    valued("--system", "TEXT", "system message (default: the template's)", TALK),
    valued("-n", "N", "most tokens of an answer (default: until it stops or the context is full)", TALK),
    switch("--raw", "complete the text without the chat template", RUN),
    valued("--stop", "TEXT", "end the answer before this text; may be repeated", TALK),
    valued("--temperature", "T", "0 takes the likeliest token", TALK),
    valued("--top-k", "K", "choose among the K likeliest; 0 is off", TALK),
    valued("--top-p", "P", "choose among the likeliest that reach P together; 1 is off", TALK),
    valued("--repetition-penalty", "R", "weaken tokens that were seen; 1 is off", TALK),
    valued("--seed", "S", "of the random choices (default: 0 in `run`, another each time in `chat`)", TALK),
    switch("--print-tokens", "print the generated ids instead of text", RUN),
    switch("--ignore-eos", "go on where the model would stop", RUN),
    valued("-o", "FILE", "where the logits are written", &[Command::Logits]),
    valued("--window", "W", "tokens scored together (default 512)", &[Command::Perplexity]),
    valued("-p", "N", "tokens of the prompt (default 512); 0 leaves the test out", MEASURE),
    valued("-n", "N", "tokens to generate (default 128); 0 leaves the test out", MEASURE),
    valued("-d", "N", "tokens of context before each test (default 0)", MEASURE),
    valued("-r", "N", "repetitions (default 5)", &[Command::Bench]),
    switch(
        "--peak",
        "measure the machine's peak thoroughly, and what it reads around each token",
        &[Command::Profile],
    ),
    switch("--startup", "show where the time from exec to the first token goes", &[Command::Profile]),
    switch("--verify", "check the weights' hashes", &[Command::Info]),
    switch("--licenses", "show the licences of what is linked in", &[Command::Info]),
    switch("--json", "print JSON", JSON),
    Flag {
        name: "--prompt-rows",
        value: Some("N"),
        help: "take prompts in chunks of at most N tokens",
        commands: &[Command::Run, Command::Logits, Command::Perplexity],
        hidden: true,
    },
    valued(
        "--threads",
        "N",
        "worker threads (default: physical cores this process may use); a GPU program needs none",
        &[],
    ),
    valued("--device", "N", "number of the GPU (default 0); a CPU program has device 0", &[]),
    switch("--quiet", "no notes on standard error", &[]),
    switch("--help", "show this", &[]),
    switch("--version", "show the version", &[]),
];
