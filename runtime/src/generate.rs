//! The generation loop: choose, show, take, until something ends it.

use std::time::Instant;

use qwen2c_format::Diagnostic;

use crate::console::Failure;
use crate::interrupt;
use crate::session::Session;
use crate::text::Sampler;

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The model said so.
    StopId,
    /// A stop text was reached.
    StopText,
    /// As many tokens as were asked for.
    Length,
    /// The cache has no position left.
    ContextFull,
    /// Ctrl-C.
    Interrupted,
}

/// What may end an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits<'a> {
    /// Most tokens; none until something else ends it.
    pub(crate) tokens: Option<usize>,
    /// Ids that end it.
    pub(crate) stop_ids: &'a [u32],
}

/// What was generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generated {
    /// Tokens shown to `each`.
    pub(crate) tokens: usize,
    /// Time for all of them.
    pub(crate) us: u64,
    /// Why there are no more.
    pub(crate) end: End,
}

/// Generates from the logits that the session holds. `each` is shown every token that is not a stop id,
/// and returns false at a stop text. The last token shown is not in the cache yet.
///
/// # Errors
///
/// What `each` fails with, or logits that are not numbers.
pub(crate) fn generate(
    session: &mut Session,
    sampler: &mut Sampler,
    limits: &Limits<'_>,
    mut each: impl FnMut(u32) -> Result<bool, Failure>,
) -> Result<Generated, Failure> {
    let start = Instant::now();
    let mut tokens = 0;
    let end = loop {
        if limits.tokens == Some(tokens) {
            break End::Length;
        }
        if interrupt::is_pending() {
            break End::Interrupted;
        }
        let token = session.sample(sampler)?.ok_or_else(not_numbers)?;
        if limits.stop_ids.contains(&token) {
            break End::StopId;
        }
        let goes_on = each(token)?;
        tokens += 1;
        if !goes_on {
            break End::StopText;
        }
        // Checked here too: a step for logits that nobody wants would be wasted.
        if limits.tokens == Some(tokens) {
            break End::Length;
        }
        if session.position() == session.context() {
            break End::ContextFull;
        }
        session.decode(token)?;
    };
    Ok(Generated { tokens, us: start.elapsed().as_micros() as u64, end })
}

/// Logits that are all NaN or −∞: weights were, or a kernel went wrong.
pub(crate) fn not_numbers() -> Diagnostic {
    Diagnostic::new("the logits are not numbers")
        .cause("a weight of the checkpoint holds NaN or infinity, or the activations overflow their type")
        .help("`self-test` tells whether the program computes what was recorded when it was built")
        .help("if the checkpoint is sound, build with `--dtype bf16` or `--dtype f32`")
}

/// Takes a prompt in the session's chunks, and notices Ctrl-C between them.
///
/// # Errors
///
/// As [`Session::prefill`]; [`Failure::Interrupted`].
pub(crate) fn take_prompt(session: &mut Session, tokens: &[u32]) -> Result<u64, Failure> {
    let start = Instant::now();
    session.check(tokens)?;
    for chunk in tokens.chunks(session.prompt_rows()) {
        session.prefill(chunk)?;
        if interrupt::is_pending() {
            return Err(Failure::Interrupted);
        }
    }
    Ok(start.elapsed().as_micros() as u64)
}
