//! `run`: answers one prompt.

use std::fs;

use qwen2c_format::Diagnostic;

use super::{OpenProgram, parse_ids, start_session};
use crate::arguments::Arguments;
use crate::console::{Console, Failure, OrUsage, utf8};
use crate::generate::{End, Generated, Limits, generate, take_prompt};
use crate::interrupt;
use crate::speech::{self, Printer, TextPrinter};
use crate::text::{Encoder, Message};
use crate::{Program, SessionError};

/// Takes the prompt of the arguments, prints what the model makes of it, and says how fast that was.
pub(super) fn run(
    arguments: &Arguments,
    open: OpenProgram<'_>,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    check_flags(arguments)?;
    let most_tokens = arguments.number("-n", 0, usize::MAX).or_usage()?;
    let program = open()?;
    let mut sampler = speech::sampler(&program, arguments, 0)?;
    let prompt = prompt_tokens(&program, arguments, console)?;
    let mut printer = printer(&program, arguments)?;
    let mut session = start_session(&program, arguments, console)?;

    interrupt::cooperate();
    let prompt_us = take_prompt(&mut session, &prompt)?;
    prompt.iter().for_each(|&token| sampler.observe(token));
    let stop_ids = match arguments.has("--ignore-eos") {
        true => &[],
        false => &program.manifest().generation.stop_ids[..],
    };
    let limits = Limits { tokens: most_tokens, stop_ids };
    let generated =
        generate(&mut session, &mut sampler, &limits, |token| printer.show(token, console, |_| ()));
    // What was generated before a failure is shown to its end, too.
    let finished = printer.finish(console, |_| ());
    let generated = generated?;
    finished?;

    if generated.end == End::ContextFull {
        console.note(&format!("note: the context of {} positions is full", session.context()));
    }
    if !arguments.has("--print-tokens") {
        console.note(&statistics(prompt.len(), prompt_us, &generated));
    }
    if generated.end == End::Interrupted { Err(Failure::Interrupted) } else { Ok(()) }
}

fn check_flags(arguments: &Arguments) -> Result<(), Failure> {
    for (one, other) in [
        ("-p", "-f"),
        ("-p", "--tokens"),
        ("-f", "--tokens"),
        ("--raw", "--system"),
        ("--tokens", "--system"),
    ] {
        arguments.exclude(one, other).or_usage()?;
    }
    Ok(())
}

/// The prompt as ids: given as such, or text through template and tokenizer.
fn prompt_tokens(
    program: &Program,
    arguments: &Arguments,
    console: &mut Console<'_>,
) -> Result<Vec<u32>, Failure> {
    if let Some(text) = arguments.text("--tokens").or_usage()? {
        return parse_ids(arguments, text);
    }
    let view = speech::tokenizer(program)?;
    let text = prompt_text(arguments, console)?;
    if text.is_empty() {
        return Err(SessionError::Empty.into());
    }
    let encoder = Encoder::new(view);
    let template = match arguments.has("--raw") {
        true => None,
        false => speech::chat_template(program.manifest())?,
    };
    let system = arguments.text("--system").or_usage()?;
    let Some(template) = template else {
        if system.is_some() {
            return Err(Diagnostic::new("there is no chat template that `--system` could go into")
                .help("put the instructions into the prompt itself")
                .into());
        }
        let bos = program.manifest().generation.bos_id.filter(|_| view.add_bos());
        let mut tokens = encoder.encode(&text, true);
        tokens.splice(0..0, bos);
        return Ok(tokens);
    };
    let mut messages: Vec<Message> =
        system.map(|system| Message::new("system", system)).into_iter().collect();
    messages.push(Message::new("user", text));
    Ok(template.encode(&encoder, &messages, true)?)
}

/// The prompt's text: `-p` as it is; of a file or of standard input, the newline that ends it is not
/// part of a question (with `--raw` it stays).
fn prompt_text(arguments: &Arguments, console: &mut Console<'_>) -> Result<String, Failure> {
    let mut text = match (arguments.text("-p").or_usage()?, arguments.value("-f")) {
        (Some(text), _) => return Ok(text.to_owned()),
        (None, Some(path)) => {
            let place = path.to_string_lossy();
            let bytes = fs::read(path).map_err(|error| {
                Diagnostic::new("the prompt's file cannot be read").at(place.clone()).cause(error.to_string())
            })?;
            utf8(bytes, &place)?
        }
        (None, None) => console.read_input()?,
    };
    if !arguments.has("--raw") && text.ends_with('\n') {
        text.truncate(text.len() - if text.ends_with("\r\n") { 2 } else { 1 });
    }
    Ok(text)
}

fn printer<'a>(program: &'a Program, arguments: &Arguments) -> Result<Printer<'a>, Failure> {
    let stops = arguments.texts("--stop").or_usage()?;
    if program.tokenizer().is_none() {
        if !stops.is_empty() {
            return Err(speech::tokenizer(program).err().unwrap_or_default().into());
        }
        return Ok(Printer::Ids { text: None, begun: false });
    }
    let text = TextPrinter::new(speech::tokenizer(program)?, stops);
    Ok(match arguments.has("--print-tokens") {
        true => Printer::Ids { text: Some(text), begun: false },
        false => Printer::Text(text),
    })
}

/// `12 prompt tokens in 0.10 s (120.0 tokens/s), 100 tokens in 2.00 s (50.0 tokens/s)`.
fn statistics(prompt_tokens: usize, prompt_us: u64, generated: &Generated) -> String {
    let part = |tokens: usize, us: u64| {
        let seconds = us.max(1) as f64 / 1e6;
        format!("in {seconds:.2} s ({:.1} tokens/s)", tokens as f64 / seconds)
    };
    format!(
        "{prompt_tokens} prompt tokens {}, {} tokens {}",
        part(prompt_tokens, prompt_us),
        generated.tokens,
        part(generated.tokens, generated.us)
    )
}
