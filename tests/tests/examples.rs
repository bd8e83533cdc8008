//! The examples run, and end as their head comments say.

use std::process::Command;

use qwen2c_tests::{compiler, repository, run, smollm2_gguf, without_cargo_variables};

#[test]
fn the_quickstart_ends_with_an_answer() {
    if smollm2_gguf().is_none() {
        return;
    }
    let quickstart = || {
        let mut command = Command::new(repository().join("examples/quickstart"));
        run(without_cargo_variables(command.current_dir("/"))).success()
    };
    let first = quickstart();
    let answer = first.text().to_lowercase();
    for word in ["sky", "blue", "light", "scatter"] {
        assert!(answer.contains(word), "`{word}` is not in the answer: {answer}");
    }
    assert!(first.stderr.contains("tokens/s"), "{}", first.stderr);
    let second = quickstart();
    // The first run's output may begin with the report of the build.
    assert!(first.text().ends_with(&second.text()), "{}\nis followed by\n{}", first.text(), second.text());
    assert!(!second.stderr.contains("qwen2c build"), "a second run builds nothing: {}", second.stderr);
}

#[test]
fn the_walkthrough_shows_every_stage() {
    let mut command = Command::new(repository().join("examples/walkthrough"));
    let text = run(command.current_dir("/").env("QWEN2C", compiler())).success().text();
    for stage in ["config", "graph", "fused", "scheduled", "plan", "mlir", "llvm", "asm", "manifest"] {
        assert!(text.contains(&format!("--- {stage}:")), "{stage} is not shown\n{text}");
    }
    let ids = text.lines().last().expect("ids");
    assert_eq!(ids.split(',').count(), 8, "{ids}");
}
