//! Generation allocates nothing: not the steps, not the choice of the next token, not its text.
//!
//! A test executable of its own, because the counter counts for the whole process.

#[path = "../src/testing.rs"]
#[allow(dead_code)]
mod testing;

use std::fs::File;
use std::os::unix::fs::FileExt;

use qwen2c_format::tokenizer::TokenizerView;
use qwen2c_format::{Locator, encode_program_head};
use qwen2c_runtime::text::{Sampler, SamplingOptions, SpecialText, StreamDecoder};
use qwen2c_runtime::{Hardware, Placement, Program, Session, allocations};

#[test]
fn generation_allocates_nothing() {
    let parts = testing::program_file();
    let head = encode_program_head(
        &parts.manifest,
        &parts.lists,
        &parts.weights,
        parts.tokenizer.as_deref(),
        &parts.device_code,
    );
    let locator = Locator::place(0, head.len() as u64, testing::WEIGHT_BYTES as u64);
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("program");
    let file = File::create(&path).expect("a file can be made");
    file.write_all_at(&head, locator.header_offset).expect("it can be written");
    file.write_all_at(&testing::weights(), locator.weights_offset).expect("it can be written");

    let program = Program::open(&path, &locator, &testing::KERNELS).expect("the program is whole");
    let mut session =
        program.start(&Hardware::Processor(Placement::choose(Some(2)))).expect("it can be started");
    let options = SamplingOptions { temperature: 0.7, top_k: 20, top_p: 0.8, ..SamplingOptions::default() };
    let mut sampler = Sampler::new(options, testing::VOCABULARY, testing::VOCABULARY);
    let tables = program.tokenizer().expect("it has a tokenizer");
    let view = TokenizerView::new(tables).expect("the tables are whole");
    let mut decoder = StreamDecoder::new(view, SpecialText::Hidden);
    let prompt: Vec<u32> = (60..80).collect();
    session.prefill(&prompt).expect("it fits");
    let mut choose = |session: &mut Session| {
        session.sample(&mut sampler).expect("a processor does not fail").expect("logits are numbers")
    };
    let mut token = choose(&mut session);

    let before = allocations();
    let mut text_bytes = 0;
    for _ in 0..10 {
        session.decode(token).expect("it fits");
        token = choose(&mut session);
        text_bytes += decoder.push(token).len();
    }
    assert_eq!(allocations() - before, 0);
    assert!(text_bytes > 0);

    let before = allocations();
    drop(std::hint::black_box(Box::new(text_bytes)));
    assert_eq!(allocations() - before, 1, "the counter does not count");
}
