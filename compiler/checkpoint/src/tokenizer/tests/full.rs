//! The whole vocabularies of SmolLM2 and Qwen2 against the crate `tokenizers`.
//!
//! The files are too large for the repository. The tests run where `QWEN2C_TEST_SMOLLM2_GGUF` and
//! `QWEN2C_TEST_QWEN2_TOKENIZER_JSON` name them, say so where they do not, and fail without them where
//! `QWEN2C_TEST_FULL` is 1.

use super::super::{CompiledTokenizer, Judge, from_gguf, from_tokenizer_json, gguf};
use super::CORPUS;
use super::equality::{compare_on_corpus, compare_on_random_text};
use crate::TokenizerSource;
use qwen2c_format::tokenizer::{SplitRule, TokenizerView};
use qwen2c_runtime::text::Encoder;
use std::path::PathBuf;
use std::time::Instant;

/// The file that a variable names; none where it may be absent.
fn named_file(variable: &str) -> Option<PathBuf> {
    let file = std::env::var_os(variable).map(PathBuf::from);
    if file.is_none() {
        assert!(
            std::env::var_os("QWEN2C_TEST_FULL").is_none_or(|value| value != "1"),
            "QWEN2C_TEST_FULL is 1, but {variable} names no file"
        );
        eprintln!("not tested: {variable} names no file");
    }
    file
}

/// Corpus, random text and speed.
fn judge_completely(compiled: &CompiledTokenizer, mut judge: Judge) {
    compare_on_corpus(&mut judge, &compiled.table_bytes);
    compare_on_random_text(judge, &compiled.table_bytes, 2000);
    let start = Instant::now();
    let view = TokenizerView::new(&compiled.table_bytes).unwrap();
    let opening_us = start.elapsed().as_micros();
    let encoder = Encoder::new(view);
    let creation_us = start.elapsed().as_micros() - opening_us;
    let start = Instant::now();
    let tokens: usize = (0..20).map(|_| encoder.encode(CORPUS, false).len()).sum();
    let megabytes_per_s = (20 * CORPUS.len()) as f64 / 1e6 / start.elapsed().as_secs_f64();
    eprintln!(
        "{}: {} tokens, {} bytes of tables, opened in {opening_us} µs, encoder in {creation_us} µs, \
         {megabytes_per_s:.1} MB/s ({tokens} tokens)",
        compiled.split_rule.name(),
        compiled.token_count,
        compiled.table_bytes.len(),
    );
}

#[test]
fn smollm2_equals_tokenizers() {
    let Some(file) = named_file("QWEN2C_TEST_SMOLLM2_GGUF") else { return };
    let description = crate::describe_checkpoint(&file).unwrap();
    let TokenizerSource::Gguf(metadata) = description.tokenizer else { panic!("no tokenizer in the file") };
    let compiled = from_gguf(&metadata).unwrap();
    assert_eq!((compiled.split_rule, compiled.token_count), (SplitRule::SmolLm, 49152));
    let judge = Judge::from_vocabulary(&gguf::read_vocabulary(&metadata).unwrap()).unwrap();
    judge_completely(&compiled, judge);
}

#[test]
fn qwen2_equals_tokenizers() {
    let Some(file) = named_file("QWEN2C_TEST_QWEN2_TOKENIZER_JSON") else { return };
    let json = std::fs::read(file).unwrap();
    let compiled = from_tokenizer_json(&json).unwrap();
    assert_eq!(compiled.split_rule, SplitRule::Qwen2);
    assert!(compiled.token_count >= 151_646, "{} tokens", compiled.token_count);
    judge_completely(&compiled, Judge::from_tokenizer_json(&json).unwrap());
}
