//! The number of threads changes the time, never a bit of the answer.

use std::process::Command;

use qwen2c_tests::{Build, Golden, Outcome, Program, run, skip};

#[test]
fn answers_do_not_depend_on_the_number_of_threads() {
    for name in ["talking", "dense-head80", "moe-normalized"] {
        for dtype in ["f32", "bf16"] {
            let golden = Golden::load(name);
            let program = Build::new(golden.model()).with(["--dtype", dtype]).finish();
            let prompt = &golden.prompts[&200].tokens;
            let one = (
                program.greedy(prompt, 48, &["--threads", "1"]),
                program.logits(prompt, &["--threads", "1"]),
            );
            for threads in ["2", "3"] {
                let more = ["--threads", threads];
                assert_eq!(program.greedy(prompt, 48, &more), one.0, "{name}, {dtype}, {threads} threads");
                let logits = program.logits(prompt, &more);
                let same = logits.values.iter().zip(&one.1.values).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{name}, {dtype}, {threads} threads: logits differ");
            }
        }
    }
}

#[test]
fn more_threads_than_cores_are_named_once_with_what_is_faster() {
    let program = Build::new(Golden::load("dense-gqa").model()).finish();
    let outcome = program.run(["run", "--tokens", "1,2,3", "-n", "4", "--ignore-eos", "--threads", "900"]);
    let said = outcome.success().stderr;
    assert_eq!(said.matches("900 threads take turns").count(), 1, "{said}");
    assert!(said.contains("`--threads "), "{said}");
}

/// Runs a program on the first processor that this process may use; none where nothing can pin it.
fn run_on_one_core(program: &Program, arguments: &[&str]) -> Option<Outcome> {
    let status = std::fs::read_to_string("/proc/self/status").expect("`/proc` is there");
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a list");
    let first = allowed.trim().split([',', '-']).next().expect("a processor");
    let mut command = Command::new("taskset");
    command.args(["-c", first]).arg(program.path()).args(arguments);
    if Command::new("taskset").arg("--version").output().is_err() {
        skip("`taskset` of util-linux pins programs, and is not there");
        return None;
    }
    Some(run(&mut command))
}

#[test]
fn threads_that_share_a_core_answer_the_same() {
    for name in ["talking", "moe-normalized"] {
        let golden = Golden::load(name);
        let program = Build::new(golden.model()).finish();
        let prompt = &golden.prompts[&33].tokens;
        let expected = qwen2c_tests::id_list(&program.greedy(prompt, 24, &["--threads", "1"]));
        let prompt = qwen2c_tests::id_list(prompt);
        let fixed =
            ["run", "--tokens", &prompt, "-n", "24", "--temperature", "0", "--repetition-penalty", "1"];
        for (threads, asked) in [(4, &["--threads", "4"][..]), (1, &[])] {
            let more = [&fixed[..], &["--print-tokens", "--ignore-eos"], asked].concat();
            let Some(outcome) = run_on_one_core(&program, &more) else { return };
            let outcome = outcome.success();
            assert_eq!(outcome.text().trim_end(), expected, "{name}, {threads} threads on one core");
            let notes = outcome.stderr.matches("take turns on the one physical core").count();
            assert_eq!(notes, usize::from(threads > 1), "{}", outcome.stderr);
        }
    }
}
