use super::fake_driver::{Fake, with};
use super::{persistent_file, prompt, run, run_on, session};

/// What a device that is gone answers, and its name.
const UNAVAILABLE: i32 = 46;
const NAME: &str = "CUDA_ERROR_DEVICE_UNAVAILABLE (46)";

/// Loses the device at a function's next call but `after`.
fn lose_at(function: &'static str, after: usize) {
    with(|fake| fake.failing = Some((function, fake.count(function) + after, UNAVAILABLE)));
}

#[test]
fn a_device_lost_in_the_middle_ends_with_the_steps_name() {
    // Two chunks of five launches, of which the last step has two.
    lose_at("cuLaunchKernel", 9);
    run(&["run", "--raw", "-p", "xaxaxaxaxa"]).says(&[
        "could not start kernel `logits`",
        NAME,
        "--> step 3 of `prefill_3`, kernel `logits`",
        "help: look at `nvidia-smi`",
    ]);
    lose_at("cuGraphLaunch", 2);
    let ended = run(&["run", "--raw", "-p", "xa"]);
    assert_eq!(ended.output, "bcd\n");
    ended.says(&[
        "step 0 of `decode`, kernel `write_cache`, to step 4 of `decode`, kernel `candidates`",
        NAME,
    ]);
    let mut session = session();
    lose_at("cuStreamSynchronize", 0);
    let error = session.prefill(&[1, 2]).expect_err("the device is lost");
    assert!(error.to_string().contains("could not finish the work"), "{error}");
    assert_eq!(session.position(), 0);
}

/// Wherever a start ends, it says at which of its parts, by CUDA's name, and gives back what it has.
#[test]
fn a_device_lost_during_the_start_ends_with_the_part_of_the_start() {
    let (device, code) = ("start: the device", "start: the program's code");
    let (arena, exchange) =
        ("start: memory for activations and cache", "start: memory for inputs and logits");
    let (no_weights, all_weights) = (
        "start: weights to the device, 0 bytes of",
        "start: weights to the device, 1024 bytes (1.00 KiB) of",
    );
    let steps = "start: the steps of `decode`";
    // Weights go in chunks of 48 bytes through two buffers.
    let (one_chunk, two_chunks) =
        ("start: weights to the device, 48 bytes of 1024", "start: weights to the device, 96 bytes of 1024");
    let lost = [
        ("cuDevicePrimaryCtxRetain", 0, device),
        ("cuCtxSetCurrent", 0, device),
        ("cuStreamCreate", 0, device),
        ("cuModuleLoadDataEx", 0, code),
        ("cuModuleGetFunction", 2, code),
        ("cuMemAlloc_v2", 0, arena),
        ("cuMemsetD8Async", 0, arena),
        ("cuMemAlloc_v2", 1, no_weights),
        ("cuMemHostAlloc", 0, no_weights),
        ("cuMemHostAlloc", 1, no_weights),
        ("cuEventCreate", 1, no_weights),
        ("cuMemcpyHtoDAsync_v2", 0, no_weights),
        ("cuEventRecord", 0, no_weights),
        ("cuMemcpyHtoDAsync_v2", 1, one_chunk),
        ("cuEventSynchronize", 0, two_chunks),
        ("cuStreamSynchronize", 0, all_weights),
        ("cuMemHostAlloc", 2, exchange),
        ("cuGraphCreate", 0, steps),
        ("cuGraphAddKernelNode_v2", 1, "step 1 of `decode`, kernel `sum_cache`"),
        ("cuGraphInstantiateWithFlags", 0, steps),
    ];
    for (function, after, place) in lost {
        with(|fake| *fake = Fake::new());
        lose_at(function, after);
        let ended = run(&["run", "--tokens", "1", "-n", "1"]);
        ended.says(&["the CUDA driver could not ", NAME, &format!("--> {place}"), "help: "]);
        assert_eq!(ended.output, "", "{function}");
    }
    let of_table = [
        ("cuOccupancyMaxActiveBlocksPerMultiprocessor", 0),
        ("cuMemAlloc_v2", 2),
        ("cuMemHostAlloc", 3),
        ("cuMemcpyHtoDAsync_v2", 22),
    ];
    for (function, after) in of_table {
        with(|fake| *fake = Fake::new());
        lose_at(function, after);
        let ended = run_on(&persistent_file(), &["run", "--tokens", "1", "-n", "1"]);
        ended.says(&["the CUDA driver could not ", NAME, &format!("--> {steps}"), "help: "]);
    }
}

/// What measures a step fails with the step's name, and what comes before and behind all of them with the list's.
#[test]
fn a_device_lost_while_steps_are_measured_ends_with_the_steps_name() {
    let started = {
        run(&["profile", "-p", "3", "-n", "0"]);
        with(|fake| (fake.count("cuEventCreate"), fake.count("cuEventRecord")))
    };
    let all = "step 0 of `prefill_3`, kernel `write_cache`, to step 3 of `prefill_3`, kernel `logits`";
    let lost = [
        ("cuEventCreate", started.0 - 1, all),
        ("cuEventRecord", started.1 - 5, all),
        ("cuEventRecord", started.1 - 3, "step 1 of `prefill_3`, kernel `sum_cache`"),
        ("cuLaunchKernel", 2, "step 2 of `prefill_3`, kernel `gather`"),
        ("cuEventElapsedTime", 1, "step 1 of `prefill_3`, kernel `sum_cache`"),
    ];
    for (function, after, place) in lost {
        with(|fake| *fake = Fake::new());
        lose_at(function, after);
        run(&["profile", "-p", "3", "-n", "0"]).says(&[NAME, &format!("--> {place}\n")]);
    }
}

/// Logits that are asked for behind a step are those of a step as well.
#[test]
fn a_device_lost_before_the_logits_are_there_ends_with_their_step() {
    for function in ["cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"] {
        with(|fake| *fake = Fake::new());
        let mut session = session();
        session.prefill(&prompt(9)).expect("it fits");
        session.decode(4).expect("it fits");
        lose_at(function, 0);
        let error = session.logits().expect_err("the device is lost").to_string();
        for part in [NAME, "--> logits behind step 4 of `decode`, kernel `candidates`"] {
            assert!(error.contains(part), "{function}: {error}");
        }
    }
}
