//! `chat`: a conversation, line by line.
//!
//! Every turn renders the whole conversation through the template and takes only what is not in the cache
//! yet: the positions whose tokens are still the same stay.

use std::hash::{BuildHasher, RandomState};
use std::io;

use qwen2c_format::Diagnostic;

use super::{OpenProgram, start_session};
use crate::Program;
use crate::arguments::Arguments;
use crate::console::{Console, Failure, OrUsage, utf8};
use crate::generate::{End, Limits, generate, take_prompt};
use crate::interrupt;
use crate::session::Session;
use crate::speech::{self, Printer, TextPrinter};
use crate::text::{ChatTemplate, Encoder, Message, Sampler};

/// Bytes read at once.
const READ_BYTES: usize = 4096;

/// Answers lines until standard input ends.
pub(super) fn chat(
    arguments: &Arguments,
    open: OpenProgram<'_>,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let most_tokens = arguments.number("-n", 0, usize::MAX).or_usage()?;
    let program = open()?;
    let view = speech::tokenizer(&program)?;
    let template = speech::chat_template(program.manifest())?.ok_or_else(|| {
        Diagnostic::new("this program has no chat template")
            .cause("its checkpoint had none: it completes text, it was not taught to talk")
            .help("use `run -p TEXT`")
    })?;
    let seed = RandomState::new().hash_one(0);
    let mut conversation = Conversation {
        program: &program,
        encoder: Encoder::new(view),
        template,
        stops: arguments.texts("--stop").or_usage()?,
        most_tokens,
        messages: Vec::new(),
        cached: Vec::new(),
        sampler: speech::sampler(&program, arguments, seed)?,
        session: start_session(&program, arguments, console)?,
    };
    if let Some(system) = arguments.text("--system").or_usage()? {
        conversation.messages.push(Message::new("system", system));
    }
    interrupt::cooperate();
    let mut lines = Lines::default();
    loop {
        if console.input_is_terminal {
            console.print("> ")?;
        }
        match lines.next(console)? {
            Line::End => break,
            Line::Interrupted => console.note("\n(Ctrl-D ends the chat)"),
            Line::Text(text) if text.trim().is_empty() => {}
            Line::Text(text) => conversation.turn(text, console)?,
        }
    }
    if console.input_is_terminal { console.print("\n") } else { Ok(()) }
}

struct Conversation<'a> {
    program: &'a Program,
    encoder: Encoder<'a>,
    template: ChatTemplate,
    stops: Vec<String>,
    most_tokens: Option<usize>,
    messages: Vec<Message>,
    /// Tokens whose positions are filled.
    cached: Vec<u32>,
    sampler: Sampler,
    session: Session,
}

impl Conversation<'_> {
    /// One question and its answer.
    fn turn(&mut self, question: String, console: &mut Console<'_>) -> Result<(), Failure> {
        self.messages.push(Message::new("user", question));
        let tokens = self.template.encode(&self.encoder, &self.messages, true)?;
        // The last token is taken again even where it is cached: its logits are wanted.
        let known = self.cached.iter().zip(&tokens).take_while(|(one, other)| one == other).count();
        let known = known.min(tokens.len().saturating_sub(1));
        self.session.rewind(known);
        self.cached.truncate(known);
        if let Err(error) = self.session.check(&tokens[known..]) {
            self.messages.pop();
            // A conversation that has outgrown its context has come to its end.
            return Err(error.diagnostic().help("start a new chat").into());
        }
        let taken = take_prompt(&mut self.session, &tokens[known..]);
        self.cached.extend_from_slice(&tokens[known..]);
        self.cached.truncate(self.session.position());
        match taken {
            Err(Failure::Interrupted) => {
                interrupt::clear();
                self.messages.pop();
                return console.print("\n");
            }
            taken => taken?,
        };
        tokens[known..].iter().for_each(|&token| self.sampler.observe(token));
        self.answer(console)
    }

    fn answer(&mut self, console: &mut Console<'_>) -> Result<(), Failure> {
        let limits =
            Limits { tokens: self.most_tokens, stop_ids: &self.program.manifest().generation.stop_ids };
        let mut answer = String::new();
        let mut printer = Printer::Text(TextPrinter::new(self.encoder.view(), self.stops.clone()));
        let cached = &mut self.cached;
        let generated = generate(&mut self.session, &mut self.sampler, &limits, |token| {
            cached.push(token);
            printer.show(token, console, |text| answer.push_str(text))
        })?;
        // The last token shown was not taken any more.
        self.cached.truncate(self.session.position());
        printer.finish(console, |text| answer.push_str(text))?;
        answer.truncate(answer.trim_end_matches('\n').len());
        self.messages.push(Message::new("assistant", answer));
        match generated.end {
            End::Interrupted => interrupt::clear(),
            End::ContextFull => {
                console.note(&format!("note: the context of {} positions is full", self.session.context()));
            }
            End::StopId | End::StopText | End::Length => {}
        }
        Ok(())
    }
}

/// What reading a line gave.
enum Line {
    Text(String),
    /// Ctrl-C while waiting.
    Interrupted,
    End,
}

/// Splits standard input into lines; unlike the standard library's reader it notices Ctrl-C.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    is_at_end: bool,
}

impl Lines {
    fn next(&mut self, console: &mut Console<'_>) -> Result<Line, Failure> {
        loop {
            if let Some(end) = self.bytes.iter().position(|&byte| byte == b'\n') {
                let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
                line.truncate(line.len() - if line.ends_with(b"\r\n") { 2 } else { 1 });
                return Ok(Line::Text(utf8(line, "standard input")?));
            }
            if self.is_at_end {
                let rest = std::mem::take(&mut self.bytes);
                return Ok(if rest.is_empty() {
                    Line::End
                } else {
                    Line::Text(utf8(rest, "standard input")?)
                });
            }
            let mut chunk = [0; READ_BYTES];
            match console.input.read(&mut chunk) {
                Ok(0) => self.is_at_end = true,
                Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    if interrupt::is_pending() {
                        interrupt::clear();
                        self.bytes.clear();
                        return Ok(Line::Interrupted);
                    }
                }
                Err(error) => {
                    return Err(Diagnostic::new("standard input cannot be read")
                        .cause(error.to_string())
                        .into());
                }
            }
        }
    }
}
