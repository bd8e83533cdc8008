//! CUDA programs on the emulated device against the processor's programs of the same model: logits, greedy
//! answers, and the perplexity of a text.
//!
//! Processors round activations to integers in front of quantized weights, and devices do not: the processor's
//! programs are built without that here, so that both are to compute the same function.

use qwen2c_tests::{Build, CLOSE_LOGITS, Device, Golden, Program, relative_l2};
use serde_json::Value;

/// Ids of an answer.
const ANSWER_TOKENS: usize = 16;
/// Relative L2 error of the logits between the two, in bf16.
const TOLERANCE: f64 = 2e-2;

/// The same model for a device and for this processor.
struct Pair {
    name: String,
    on_device: Program,
    on_processor: Program,
}

impl Pair {
    fn build(golden: &Golden, dtype: &str, quant: &str) -> Self {
        let build = Build::new(golden.model()).with(["--dtype", dtype, "--quant", quant]);
        let unrounded = ["--no-pass", "quantize_activations", "--no-pass", "round_attention"];
        Self {
            name: format!("{} {dtype} {quant}", golden.name),
            on_device: build.clone().with(["--target", "sm_80"]).finish(),
            on_processor: build.with(unrounded).finish(),
        }
    }

    #[track_caller]
    fn assert_same_logits(&self, device: &Device, prompt: &[u32], what: &str) {
        let found = device.logits(&self.on_device, prompt);
        let expected = self.on_processor.logits(prompt, &[]);
        assert_eq!(found.shape, expected.shape);
        let error = relative_l2(&found.values, &expected.values);
        eprintln!("{what}: {error:.2e}");
        assert!(error <= TOLERANCE, "{what}: logits are off by {error:.3e}");
    }

    /// Compares greedy answers. Where they part, both ids must be the processor's best two by less than
    /// [`CLOSE_LOGITS`]: such a tie is decided by rounding, and what follows is another text. Returns whether they
    /// are equal.
    #[track_caller]
    fn assert_same_answer(&self, device: &Device, prompt: &[u32], what: &str) -> bool {
        let found = device.greedy(&self.on_device, prompt, ANSWER_TOKENS);
        let expected = self.on_processor.greedy(prompt, ANSWER_TOKENS, &[]);
        assert_eq!((found.len(), expected.len()), (ANSWER_TOKENS, ANSWER_TOKENS), "{what}");
        let Some(step) = (0..ANSWER_TOKENS).find(|&step| found[step] != expected[step]) else { return true };
        let text = [prompt, &expected[..step]].concat();
        let logits = self.on_processor.logits(&text, &[]);
        let row = logits.row(text.len() - 1);
        let gap = row[expected[step] as usize] - row[found[step] as usize];
        assert!(
            (0.0..CLOSE_LOGITS).contains(&gap),
            "{what}: id {step} is {} instead of {}, whose logit is {gap} larger\n\
             found    {found:?}\nexpected {expected:?}",
            found[step],
            expected[step],
        );
        eprintln!("{what}: a tie of {gap} at id {step}, behind which the answers are different texts");
        false
    }
}

/// Logits and answers behind prompts of these lengths under each seed.
#[track_caller]
fn assert_agreement(name: &str, quant: &str, lengths: &[usize], seeds: &[u64]) {
    let golden = Golden::load(name);
    let pair = Pair::build(&golden, "bf16", quant);
    let (mut equal, mut all) = (0, 0);
    for &seed in seeds {
        let device = Device::new(80, seed);
        // The longest takes the same steps as the others; one order of blocks shows that as well as three.
        for length in lengths.iter().filter(|length| seed == seeds[0] || **length < 200) {
            let prompt = &golden.prompts[length].tokens;
            let what = format!("{}, {length} tokens, seed {seed}", pair.name);
            pair.assert_same_logits(&device, prompt, &what);
            all += 1;
            equal += usize::from(pair.assert_same_answer(&device, prompt, &what));
            let faults = device.report()["faults"].clone();
            assert!(faults.as_array().is_none_or(Vec::is_empty), "{what}: {faults}");
        }
    }
    assert!(2 * equal > all, "{}: {equal} of {all} answers are equal, the others part at ties", pair.name);
}

#[test]
fn a_dense_model_in_bf16_agrees_with_the_processor() {
    assert_agreement("dense-gqa", "none", &[1, 5, 33], &[4]);
}

#[test]
fn a_dense_model_in_int8_agrees_with_the_processor() {
    assert_agreement("dense-gqa", "int8", &[1, 5, 200], &[4]);
}

#[test]
fn a_dense_model_in_int4_agrees_with_the_processor_in_three_orders() {
    assert_agreement("dense-gqa", "int4", &[1, 5, 200], &[0, 1, 2]);
}

#[test]
fn a_mixture_of_experts_in_bf16_agrees_with_the_processor() {
    assert_agreement("moe-normalized", "none", &[1, 5, 33], &[4]);
}

#[test]
fn a_mixture_of_experts_in_int8_agrees_with_the_processor() {
    assert_agreement("moe-sparse-step", "int8", &[1, 5, 200], &[4]);
}

#[test]
fn a_mixture_of_experts_in_int4_agrees_with_the_processor() {
    assert_agreement("moe-sparse-step", "int4", &[1, 5, 200], &[4]);
}

#[test]
fn the_perplexity_of_a_text_is_that_on_the_processor() {
    let golden = Golden::load("talking");
    let text = "the sky is blue because the air scatters the light of the sun ".repeat(6);
    for (dtype, quant, tolerance) in [("f32", "none", 1e-4), ("bf16", "int4", 2e-2)] {
        let pair = Pair::build(&golden, dtype, quant);
        let file = pair.on_device.directory().join("text.txt");
        std::fs::write(&file, &text).expect("writable");
        let file = file.to_str().expect("UTF-8");
        let ask = ["perplexity", file, "--window", "40", "--json"];
        let found = Device::new(80, 0).run(&pair.on_device, ask).success().json();
        let expected = pair.on_processor.run(ask).success().json();
        assert!(expected["tokens"].as_u64().is_some_and(|tokens| tokens > 80), "{expected}");
        assert_eq!(found["tokens"], expected["tokens"]);
        for key in ["nll", "perplexity"] {
            let number = |json: &Value| json[key].as_f64().expect("a number");
            let error = (number(&found) / number(&expected) - 1.0).abs();
            eprintln!("{}: {key} {} on the device, off by {error:.2e}", pair.name, found[key]);
            assert!(error <= tolerance, "{}: {key} is {found}, not {expected}", pair.name);
        }
    }
}
