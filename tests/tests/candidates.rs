//! What a CUDA device sends to the host for a generated token, on the emulated device: the largest logits where
//! they decide, everything where not, and the same tokens as where everything is sent for each.

use std::fs;

use qwen2c_tests::{Build, Device, Golden, Program, id_list};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Bytes of 64 logits with their ids.
const CANDIDATE_BYTES: u64 = 64 * 8;

/// Tokens of the shorter run; the longer one shows what each further token costs.
const FEW: u64 = 2;
const MANY: u64 = 6;

/// How tokens are chosen, and whether the largest logits decide every time.
const SETTINGS: [(&[&str], bool); 5] = [
    (&["--temperature", "0", "--repetition-penalty", "1"], true),
    (&["--temperature", "0", "--repetition-penalty", "1.3"], true),
    (&["--temperature", "0.9", "--top-k", "20", "--top-p", "0.95", "--repetition-penalty", "1.05"], true),
    (&["--temperature", "2", "--top-k", "0", "--top-p", "0.9", "--repetition-penalty", "1"], false),
    (&["--temperature", "1", "--top-k", "10", "--top-p", "1", "--repetition-penalty", "0.8"], false),
];

/// A tiny model with a vocabulary of several slices and a remainder; weights are random.
fn model_with_large_vocabulary(vocabulary: u64) -> TempDir {
    let text = fs::read(Golden::load("dense-gqa").model().join("config.json")).expect("readable");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    config["vocab_size"] = json!(vocabulary);
    let scratch = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    fs::write(scratch.path().join("config.json"), config.to_string()).expect("writable");
    scratch
}

/// Ids after a prompt and the bytes that came to the host.
#[track_caller]
fn generate(program: &Program, count: u64, settings: &[&str]) -> (String, u64) {
    let device = Device::new(80, 3);
    let (prompt, count) = (id_list(&[5, 3, 200, 77, 5, 1]), count.to_string());
    let fixed = ["run", "--tokens", &prompt, "-n", &count, "--seed", "11", "--print-tokens", "--ignore-eos"];
    let outcome = device.run(program, fixed.into_iter().chain(["--quiet"]).chain(settings.iter().copied()));
    let ids = outcome.success().text();
    let report = device.report();
    assert!(report["faults"].as_array().is_none_or(Vec::is_empty), "{}", report["faults"]);
    (ids, report["bytes_to_host"].as_u64().expect("a number"))
}

/// The programs agree on tokens, and each further token moves what it should.
#[track_caller]
fn assert_tokens_and_bytes(
    (program, without): (&Program, &Program),
    vocabulary: u64,
    settings: &[(&[&str], bool)],
) {
    for &(settings, is_decided) in settings {
        let (few, many) = (generate(program, FEW, settings), generate(program, MANY, settings));
        let all_bytes = 4 * vocabulary;
        let of_token = CANDIDATE_BYTES + if is_decided { 0 } else { all_bytes };
        assert_eq!(many.1 - few.1, (MANY - FEW) * of_token, "{vocabulary} ids, {settings:?}");
        // Behind the prompt everything comes.
        assert_eq!(few.1, all_bytes + (FEW - 1) * of_token, "{vocabulary} ids, {settings:?}");
        let expected = generate(without, MANY, settings);
        assert_eq!(many.0, expected.0, "{vocabulary} ids, {settings:?}");
        assert_eq!(expected.1, MANY * all_bytes, "{vocabulary} ids, {settings:?}");
    }
}

#[test]
fn a_token_brings_its_largest_logits_to_the_host() {
    let golden = Golden::load("dense-gqa");
    let build = || Build::new(golden.model()).with(["--target", "sm_80"]);
    let without = build().with(["--no-pass", "select_candidates"]).finish();
    let logits = Device::new(80, 0).logits(&without, &[1]);
    assert_tokens_and_bytes((&build().finish(), &without), logits.row(0).len() as u64, &SETTINGS);
}

/// Several blocks look for the largest logits, and another one merges what they found; in one launch with all
/// other steps too.
#[test]
fn a_large_vocabulary_is_searched_by_several_blocks() {
    let vocabulary = 4099;
    let model = model_with_large_vocabulary(vocabulary);
    let build = || Build::new(model.path()).with(["--target", "sm_80", "--weights", "random"]);
    let without = build().with(["--no-pass", "select_candidates"]).finish();
    assert_tokens_and_bytes((&build().finish(), &without), vocabulary, &SETTINGS[2..4]);
    let persistent = build().with(["--pass", "persistent_decode"]).finish();
    let (settings, _) = SETTINGS[2];
    assert_eq!(generate(&persistent, MANY, settings).0, generate(&without, MANY, settings).0);
}
