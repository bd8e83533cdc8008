//! What a token of a full-size layer reads from the memory of a device.

use std::process::Command;

use qwen2c_tests::{Build, Device, Program, compiler, one_layer_of_7b, run};
use tempfile::TempDir;

/// Bytes that a token reads over those of the weights and the cache, at most.
const MOST_READ: f64 = 1.03;

/// Bytes of the weights that a token needs: all but the embedding and the angles of positions, of which it takes a
/// row each.
fn weight_bytes(program: &Program) -> u64 {
    let text = run(Command::new(compiler()).arg("inspect").arg(program.path())).success().text();
    let weights = text.lines().skip_while(|line| line.trim() != "weights").skip(2);
    let bytes = |line: &str| line.split_whitespace().next_back()?.parse::<u64>().ok();
    let is_read =
        |line: &&str| !["embedding ", "rope "].iter().any(|name| line.trim_start().starts_with(name));
    let of_line = weights.filter(is_read);
    of_line.map(|line| bytes(line).unwrap_or_else(|| panic!("no bytes in `{line}`"))).sum()
}

#[test]
fn a_token_of_a_layer_of_7b_reads_weights_and_cache_once() {
    for quant in ["none", "int4"] {
        let scratch = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
        let model = one_layer_of_7b(scratch.path());
        let arguments = ["--target", "sm_80", "--weights", "random", "--dtype", "bf16", "--quant", quant];
        let program = Build::new(model).with(arguments).finish();
        let device = Device::new(80, 0);
        // A prompt of one id takes the steps of a token.
        device.greedy(&program, &[7], 1);
        let report = device.report();
        assert_eq!((&report["launches"], &report["graph_launches"]), (&0.into(), &1.into()), "{quant}");
        let kernels = report["kernels"].as_object().expect("kernels by name");
        let sum = |name: &str| -> u64 {
            kernels.values().map(|kernel| kernel["counts"][name].as_u64().expect("a number")).sum()
        };
        let (read, requested) = (sum("global_distinct_read_bytes"), sum("global_read_bytes"));
        let cache_bytes = 2 * 4 * 128 * 2;
        let needed = weight_bytes(&program) + cache_bytes;
        let share = read as f64 / needed as f64;
        eprintln!(
            "{quant}: {needed} bytes needed, {read} read ({share:.4}), {requested} asked for, {} instructions of lanes",
            sum("lane_instructions")
        );
        assert!(share <= MOST_READ, "{quant}: {read} bytes for {needed}");
        assert!(share >= 0.99, "{quant}: what is not read cannot be multiplied: {read} bytes of {needed}");
    }
}
