//! The number of threads changes the time, never a bit of the answer.

use qwen2c_tests::{Build, Golden};

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
