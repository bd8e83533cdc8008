//! What the tests share: the compiler's binary, built programs, references, tensors.
//!
//! The tests start `qwen2c` and the programs it emits as a user would; nothing here links LLVM.

mod checkpoint;
mod compiler;
mod device;
mod gguf;
mod golden;
mod layer;
mod run;
mod tensors;

use std::path::{Path, PathBuf};

pub use checkpoint::{Blocks, Widths};
pub use compiler::{Build, Program, compiler, has_matrix_unit, has_target, host_targets};
pub use device::Device;
pub use gguf::{GreedyAnswer, smollm2_gguf, smollm2_golden};
pub use golden::{GOLDENS, Golden, Prompt, goldens_directory};
pub use layer::{one_layer_of_7b, one_layer_of_experts};
pub use run::{Outcome, run, run_with_input, without_cargo_variables};
pub use tensors::{Tensor, copy_directory, read_tensors, relative_l2, write_tensors};

/// Two logits nearer than this may change places by rounding.
pub const CLOSE_LOGITS: f32 = 0.01;

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository").to_path_buf()
}

/// Says on standard error that a test could not run here, and why; under `tests/run`
/// (`QWEN2C_TEST_FULL=1`) that is a failure.
pub fn skip(reason: &str) {
    assert!(std::env::var_os("QWEN2C_TEST_FULL").is_none(), "skipped, but QWEN2C_TEST_FULL is set: {reason}");
    eprintln!("skipped: {reason}");
}

/// `1,2,3`, as `--tokens` takes it.
pub fn id_list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// Fails unless `found` is the reference's answer. Where they part at a step whose two best logits lie
/// closer than [`CLOSE_LOGITS`], says so instead: the rest is another answer to another prompt.
#[track_caller]
pub fn assert_same_greedy(what: &str, found: &[u32], expected: &[u32], gaps: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}: number of ids\nfound {found:?}");
    if let Some(step) = (0..found.len()).find(|&step| found[step] != expected[step]) {
        let gap = gaps[step];
        assert!(
            gap < CLOSE_LOGITS,
            "{what}: id {step} is {} instead of {}, though the reference's logits are {gap} apart\n\
             found    {found:?}\nexpected {expected:?}",
            found[step],
            expected[step],
        );
        eprintln!("{what}: parts from the reference at step {step}, where two logits are {gap} apart");
    }
}
