//! What is measured: a prompt, and a generation behind some context.

use serde::Serialize;

use crate::arguments::CompareArguments;
use crate::failure::Failure;
use qwen2c_format::Diagnostic;

/// Tokens of the prompt, unless said otherwise.
const PROMPT: u64 = 512;
/// Tokens generated, unless said otherwise.
const GENERATE: u64 = 64;
/// Tokens of context in front of the generation, unless said otherwise.
const DEPTH: u64 = 512;

/// The two kinds of work a language model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    /// Many tokens at once, bound by multiplying.
    Prompt,
    /// One token after the other, bound by reading the weights.
    Generation,
}

impl Phase {
    /// What a kernel's time is counted per.
    pub(super) const fn unit(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Generation => "token",
        }
    }
}

/// Sizes of the tests.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Workload {
    /// Tokens of the prompt; 0 leaves the test out.
    pub(super) prompt: u64,
    /// Tokens generated; 0 leaves the test out.
    pub(super) generate: u64,
    /// Tokens of context in front of the generation.
    pub(super) depth: u64,
    /// Turns that every entrant gets.
    pub(super) turns: u64,
    /// Threads that were asked for.
    pub(super) threads: Option<u64>,
}

impl Workload {
    /// Sizes from the arguments. Defaults shrink to the smallest context; what was asked for does not.
    ///
    /// # Errors
    ///
    /// Where nothing would be measured, or the context is too small for what was asked.
    pub(super) fn new(arguments: &CompareArguments, context: Option<u64>) -> Result<Self, Failure> {
        let room = context.unwrap_or(u64::MAX);
        let prompt = arguments.prompt.unwrap_or(PROMPT.min(room));
        let depth = arguments.depth.unwrap_or(DEPTH.min(room / 2));
        // A context that leaves no room for a token is refused below, and not measured in silence.
        let generate = arguments.generate.unwrap_or(GENERATE.min(room.saturating_sub(depth)).max(1));
        if prompt == 0 && generate == 0 {
            return Err(Failure::Usage(
                Diagnostic::new("nothing is left to measure")
                    .found("a prompt of 0 tokens and 0 tokens generated")
                    .help("leave out `-p 0` or `-n 0`"),
            ));
        }
        let generation_needs = if generate == 0 { 0 } else { depth.saturating_add(generate) };
        let needed = prompt.max(generation_needs);
        if needed > room {
            return Err(Diagnostic::new("the work does not fit into the context of every program")
                .found(format!("{needed} positions wanted"))
                .needed(format!("at most {room}"))
                .help("lower `-p`, `-n` or `-d`, or build the programs with a larger `--context`")
                .into());
        }
        Ok(Self { prompt, generate, depth, turns: arguments.turns, threads: arguments.threads })
    }

    /// The phases that are measured, in order.
    pub(super) fn phases(&self) -> impl Iterator<Item = Phase> {
        let sizes = [(Phase::Prompt, self.prompt), (Phase::Generation, self.generate)];
        sizes.into_iter().filter(|(_, tokens)| *tokens > 0).map(|(phase, _)| phase)
    }

    /// Tokens of a phase.
    pub(super) const fn tokens(&self, phase: Phase) -> u64 {
        match phase {
            Phase::Prompt => self.prompt,
            Phase::Generation => self.generate,
        }
    }

    /// What a phase's test is called: `pp512`, `tg64@d512`.
    pub(super) fn test_name(&self, phase: Phase) -> String {
        match (phase, self.depth) {
            (Phase::Prompt, _) => format!("pp{}", self.prompt),
            (Phase::Generation, 0) => format!("tg{}", self.generate),
            (Phase::Generation, depth) => format!("tg{}@d{depth}", self.generate),
        }
    }

    /// The test in words.
    pub(super) fn sentence(&self, phase: Phase) -> String {
        match (phase, self.depth) {
            (Phase::Prompt, _) => format!("a prompt of {} tokens", self.prompt),
            (Phase::Generation, 0) => format!("generation of {} tokens", self.generate),
            (Phase::Generation, depth) => {
                format!("generation of {} tokens behind {depth} of context", self.generate)
            }
        }
    }

    /// The flags that make `bench`, `profile` and `llama-bench` measure this phase alone.
    pub(super) fn flags(&self, phase: Phase) -> [String; 6] {
        let (prompt, generate, depth) = match phase {
            Phase::Prompt => (self.prompt, 0, 0),
            Phase::Generation => (0, self.generate, self.depth),
        };
        ["-p".into(), prompt.to_string(), "-n".into(), generate.to_string(), "-d".into(), depth.to_string()]
    }
}
