//! Text: tokens from text and back, the chat template, the choice of the next token.
//!
//! ```text
//! text ── Encoder ──▶ ids ──▶ (steps) ──▶ logits ── Sampler ──▶ id ── StreamDecoder ──▶ text ── StopMatcher ──▶ user
//!   ▲
//!   └── ChatTemplate: messages to ids, user text kept apart from the template's control tokens
//! ```
//!
//! Nothing here knows kernels or memory; everything works on the tables of
//! [`qwen2c_format::tokenizer::TokenizerView`] and on plain values.

mod decode;
mod encode;
#[cfg(test)]
mod example_tables;
mod exponential;
mod merge;
mod normalize;
mod protect;
mod python_json;
mod random;
mod sample;
mod split;
mod stop;
mod template;

pub use decode::{SpecialText, StreamDecoder};
pub use encode::Encoder;
pub use random::Random;
pub use sample::{Sampler, SamplingOptions};
pub use stop::{StopMatcher, StopProgress};
pub use template::{ChatTemplate, Message};
