//! What `run` and `chat` share: the tokenizer of the program, sampling flags, and printing an answer.

use qwen2c_format::tokenizer::TokenizerView;
use qwen2c_format::{Diagnostic, Manifest};

use crate::Program;
use crate::arguments::Arguments;
use crate::console::{Console, Failure, OrUsage};
use crate::text::{ChatTemplate, Sampler, SamplingOptions, SpecialText, StopMatcher, StreamDecoder};

/// The program's tokenizer.
///
/// # Errors
///
/// Where it has none, or a damaged one.
pub(crate) fn tokenizer(program: &Program) -> Result<TokenizerView<'_>, Diagnostic> {
    let bytes = program.tokenizer().ok_or_else(|| {
        Diagnostic::new("this program has no tokenizer: it speaks token ids only")
            .cause("its checkpoint had none")
            .help("give ids with `--tokens 1,2,3`, or build from a checkpoint with a `tokenizer.json`")
    })?;
    TokenizerView::new(bytes)
}

/// The checkpoint's chat template, where there is one.
///
/// # Errors
///
/// Where it cannot be parsed.
pub(crate) fn chat_template(manifest: &Manifest) -> Result<Option<ChatTemplate>, Diagnostic> {
    let source = manifest.chat_template.as_deref();
    source.map(|source| ChatTemplate::new(source, &manifest.template_tokens)).transpose()
}

/// Ids that may be chosen: those of the tokenizer where there is one, else all.
pub(crate) fn allowed_ids(program: &Program) -> Result<usize, Diagnostic> {
    let vocabulary = program.manifest().model.vocabulary as usize;
    match program.tokenizer() {
        Some(bytes) => Ok(vocabulary.min(TokenizerView::new(bytes)?.token_count() as usize)),
        None => Ok(vocabulary),
    }
}

/// A sampler with the checkpoint's defaults, as far as no flag says otherwise.
///
/// # Errors
///
/// A usage error where a flag's value is out of range.
pub(crate) fn sampler(
    program: &Program,
    arguments: &Arguments,
    default_seed: u64,
) -> Result<Sampler, Failure> {
    let defaults = &program.manifest().generation;
    let least_penalty = f32::MIN_POSITIVE;
    let options = SamplingOptions {
        temperature: arguments
            .number("--temperature", 0.0, f32::MAX)
            .or_usage()?
            .unwrap_or(defaults.temperature),
        top_k: arguments.number("--top-k", 0, u32::MAX).or_usage()?.unwrap_or(defaults.top_k),
        top_p: arguments.number("--top-p", 0.0, 1.0).or_usage()?.unwrap_or(defaults.top_p),
        repetition_penalty: arguments
            .number("--repetition-penalty", least_penalty, f32::MAX)
            .or_usage()?
            .unwrap_or(defaults.repetition_penalty),
        seed: arguments.number("--seed", 0, u64::MAX).or_usage()?.unwrap_or(default_seed),
    };
    Ok(Sampler::new(options, program.manifest().model.vocabulary as usize, allowed_ids(program)?))
}

/// How an answer is shown.
pub(crate) enum Printer<'a> {
    /// As text, piece by piece.
    Text(TextPrinter<'a>),
    /// As ids, comma separated, on one line. The text is still followed, for the stop texts.
    Ids {
        /// Follows the text; none without a tokenizer.
        text: Option<TextPrinter<'a>>,
        /// Whether an id was printed.
        begun: bool,
    },
}

/// Turns tokens into text and watches for stop texts.
pub(crate) struct TextPrinter<'a> {
    decoder: StreamDecoder<'a>,
    stops: StopMatcher,
    ends_with_newline: bool,
}

impl<'a> TextPrinter<'a> {
    pub(crate) fn new(view: TokenizerView<'a>, stops: Vec<String>) -> Self {
        Self {
            decoder: StreamDecoder::new(view, SpecialText::Hidden),
            stops: StopMatcher::new(stops),
            ends_with_newline: false,
        }
    }

    /// Text that is certain after this token, and whether a stop text was reached.
    fn push(&mut self, token: u32) -> (&str, bool) {
        let progress = self.stops.push(self.decoder.push(token));
        if let Some(last) = progress.text.bytes().last() {
            self.ends_with_newline = last == b'\n';
        }
        (progress.text, progress.is_stopped)
    }

    /// The text held back until the end, with a newline where there is none.
    fn finish(&mut self) -> String {
        let mut rest = self.stops.push(self.decoder.finish()).text.to_owned();
        rest.push_str(self.stops.finish());
        let ends = rest.bytes().last().map_or(self.ends_with_newline, |last| last == b'\n');
        if !ends {
            rest.push('\n');
        }
        rest
    }
}

impl Printer<'_> {
    /// Shows a token; false where it completes a stop text.
    ///
    /// # Errors
    ///
    /// Where standard output cannot be written.
    pub(crate) fn show(
        &mut self,
        token: u32,
        console: &mut Console<'_>,
        mut keep: impl FnMut(&str),
    ) -> Result<bool, Failure> {
        match self {
            Self::Text(printer) => {
                let (text, is_stopped) = printer.push(token);
                keep(text);
                console.print(text)?;
                Ok(!is_stopped)
            }
            Self::Ids { text, begun } => {
                if text.as_mut().is_some_and(|printer| printer.push(token).1) {
                    return Ok(false);
                }
                let comma = if std::mem::replace(begun, true) { "," } else { "" };
                console.print(&format!("{comma}{token}"))?;
                Ok(true)
            }
        }
    }

    /// Ends the answer.
    ///
    /// # Errors
    ///
    /// Where standard output cannot be written.
    pub(crate) fn finish(
        &mut self,
        console: &mut Console<'_>,
        mut keep: impl FnMut(&str),
    ) -> Result<(), Failure> {
        match self {
            Self::Text(printer) => {
                let rest = printer.finish();
                keep(&rest);
                console.print(&rest)
            }
            Self::Ids { .. } => console.print("\n"),
        }
    }
}
