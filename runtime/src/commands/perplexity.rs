//! `perplexity`: how well the model expects a text.

use std::fs;

use qwen2c_format::Diagnostic;
use serde::Serialize;

use super::{OpenProgram, print_json, start_session};
use crate::SessionError;
use crate::arguments::Arguments;
use crate::console::{Console, Failure, OrUsage, utf8};
use crate::generate::not_numbers;
use crate::speech;
use crate::text::Encoder;

/// Tokens of a window where nobody says otherwise.
const DEFAULT_WINDOW: usize = 512;

/// What is printed.
#[derive(Debug, Serialize)]
struct Score {
    /// Tokens that were scored: all but the first of each window.
    tokens: usize,
    /// Sum of the negative logarithms of their probabilities.
    nll: f64,
    /// `exp(nll / tokens)`.
    perplexity: f64,
}

/// Scores a file in windows that do not overlap. The first token of a window is not scored, and a tail
/// of one token has nothing to score.
pub(super) fn perplexity(
    arguments: &Arguments,
    open: OpenProgram<'_>,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let Some(path) = arguments.positional() else {
        return Err(Failure::Usage(arguments.usage("the text's file is missing")));
    };
    let asked = arguments.number("--window", 2, usize::MAX).or_usage()?;
    let place = path.to_string_lossy();
    let bytes = fs::read(path).map_err(|error| {
        Diagnostic::new("the text's file cannot be read").at(place.clone()).cause(error.to_string())
    })?;
    let text = utf8(bytes, &place)?;
    let program = open()?;
    let tokens = Encoder::new(speech::tokenizer(&program)?).encode(&text, false);
    if tokens.len() < 2 {
        return Err(Diagnostic::new("the text is too short to be scored")
            .at(place)
            .found(format!("{} tokens", tokens.len()))
            .needed("2 tokens or more")
            .into());
    }
    let mut session = start_session(&program, arguments, console)?;
    let context = session.context();
    let window = asked.unwrap_or(DEFAULT_WINDOW.min(context));
    if window > context {
        return Err(SessionError::ContextFull { needed: window as u64, context: context as u64 }.into());
    }
    let (mut scored, mut nll) = (0, 0.0);
    for tokens in tokens.chunks(window).filter(|tokens| tokens.len() >= 2) {
        session.rewind(0);
        session.prefill_each(tokens, |row, logits| -> Result<(), Failure> {
            if let Some(&next) = tokens.get(row + 1) {
                nll += surprise(logits, next).ok_or_else(not_numbers)?;
                scored += 1;
            }
            Ok(())
        })?;
    }
    let score = Score { tokens: scored, nll, perplexity: (nll / scored as f64).exp() };
    if arguments.has("--json") {
        return print_json(&score, console);
    }
    console.print(&format!("perplexity {:.4} over {} tokens\n", score.perplexity, score.tokens))
}

/// Negative logarithm of a token's probability; none where the logits are not numbers.
fn surprise(logits: &[f32], token: u32) -> Option<f64> {
    let maximum = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - maximum).exp()).sum();
    let value = f64::from(maximum) + sum.ln() - f64::from(*logits.get(token as usize)?);
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surprise_is_the_negative_logarithm_of_softmax() {
        let value = surprise(&[1.0, 3.0, 2.0], 2).expect("is a number");
        let sum = (-2.0_f64).exp() + 1.0 + (-1.0_f64).exp();
        assert!((value - (sum.ln() + 1.0)).abs() < 1e-12);
        assert_eq!(surprise(&[f32::NAN, f32::NAN], 0), None);
        assert_eq!(surprise(&[0.0], 1), None);
    }
}
