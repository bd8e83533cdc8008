//! Commands on the counting program, on a device that the fake driver finds.

mod lost_device;

use std::ffi::OsString;

use qwen2c_format::{PersistentKernel, ProgramFile};
use serde_json::Value;

use super::fake_driver::{self, Fake, FakeDevice, with};
use crate::console::{Console, Failure};
use crate::memory::Mapping;
use crate::testing::{CANDIDATES, CONTEXT, VOCABULARY, device_program_file, expected_logits, weights};
use crate::text::{Sampler, SamplingOptions};
use crate::{Hardware, Program, Session, SessionError};

/// How a command ended and what it wrote.
struct Ended {
    result: Result<(), Failure>,
    output: String,
    errors: String,
}

impl Ended {
    fn json(&self) -> Value {
        assert!(self.result.is_ok(), "{:?}", self.result);
        serde_json::from_str(&self.output).expect("the output is JSON")
    }

    /// The message of a failure with exit code 1.
    fn message(&self) -> String {
        match &self.result {
            Err(Failure::Input(diagnostic)) => diagnostic.to_string(),
            other => panic!("{other:?} with output {:?}", self.output),
        }
    }

    fn says(&self, parts: &[&str]) {
        let message = self.message();
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }
}

fn program(file: ProgramFile) -> Program {
    let mapping = Mapping::zeroed(weights().len() as u64).expect("a page can be mapped");
    let numbers: Vec<u32> = weights()
        .chunks_exact(4)
        .map(|bytes| u32::from_le_bytes(bytes.try_into().expect("4 bytes")))
        .collect();
    mapping.write_integers(0, numbers.into_iter()).expect("they fit");
    Program::from_parts(file, &[], mapping).expect("the parts fit").with_driver(fake_driver::open)
}

fn run_on(file: &ProgramFile, arguments: &[&str]) -> Ended {
    let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let mut console = Console {
        input: &mut &b"xa"[..],
        input_is_terminal: false,
        output: &mut output,
        errors: &mut errors,
        quiet: false,
    };
    let read = || Ok(program(file.clone()));
    let result = crate::commands::execute("program", &arguments, &read, &mut console);
    let text = |bytes| String::from_utf8(bytes).expect("output is text");
    let ended = Ended { result, output: text(output), errors: text(errors) };
    with(|fake| assert!(fake.alive.is_empty(), "{:?} left behind", fake.alive));
    ended
}

fn run(arguments: &[&str]) -> Ended {
    run_on(&device_program_file(), arguments)
}

fn session() -> Session {
    program(device_program_file()).start(&Hardware::Device(0)).expect("it can be started")
}

fn prompt(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|index| (index * 37 + 11) % VOCABULARY as u32).collect()
}

#[test]
fn logits_are_those_of_the_whole_prompt_in_any_chunks() {
    for tokens in [1, 2, 5, 8, 9, 16, 33, CONTEXT] {
        let prompt = prompt(tokens);
        for rows in [1, 2, 3, 8] {
            let mut session = session();
            session.limit_prompt_rows(rows);
            session.prefill(&prompt).expect("it fits");
            assert_eq!(
                session.logits().expect("they come"),
                expected_logits(&prompt),
                "{tokens} tokens, {rows} rows"
            );
        }
    }
}

#[test]
fn every_row_has_its_logits() {
    let prompt = prompt(20);
    let mut rows = 0;
    let each = |row: usize, logits: &[f32]| {
        assert_eq!(logits, expected_logits(&prompt[..=row]), "row {row}");
        rows += 1;
        Ok::<(), SessionError>(())
    };
    session().prefill_each(&prompt, each).expect("it fits");
    assert_eq!(rows, 20);
}

#[test]
fn a_generated_token_is_one_graph_with_an_id_a_position_and_the_largest_logits() {
    let mut session = session();
    let mut tokens = prompt(9);
    session.prefill(&tokens).expect("it fits");
    // The first token also sets which row goes through the head.
    tokens.push(4);
    session.decode(4).expect("it fits");
    let mut greedy = Sampler::new(SamplingOptions::default(), VOCABULARY, VOCABULARY);
    with(|fake| (fake.calls, fake.bytes_to_host) = (Vec::new(), 0));
    for token in [7, 259, 0] {
        tokens.push(token);
        session.decode(token).expect("it fits");
        let next = session.sample(&mut greedy).expect("the device works");
        assert_eq!(next, Some((token + 1) % VOCABULARY as u32));
    }
    let each = [
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpyHtoDAsync_v2",
        "cuGraphLaunch",
        "cuMemcpyDtoHAsync_v2",
        "cuStreamSynchronize",
    ];
    with(|fake| {
        assert_eq!(fake.calls, each.repeat(3));
        assert_eq!(fake.bytes_to_host, 3 * CANDIDATES * 8);
    });
    // The others still lie on the device; who has asked for them once has them.
    with(|fake| fake.calls.clear());
    for _ in 0..2 {
        assert_eq!(session.logits().expect("they come"), expected_logits(&tokens));
        with(|fake| assert_eq!(fake.calls, ["cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"]));
    }
    session.rewind(2);
    let expected = expected_logits(&[tokens[0], tokens[1], 9, 9]);
    session.prefill(&[9, 9]).expect("it fits");
    assert_eq!(session.logits().expect("they came"), expected);
}

/// The counting program, built to run a token in one launch.
fn persistent_file() -> ProgramFile {
    let mut file = device_program_file();
    file.lists.persistent = Some(PersistentKernel {
        symbol: "persistent_decode".to_owned(),
        threads: 32,
        shared_bytes: 0,
        row_words: 4,
    });
    file
}

#[test]
fn a_token_of_a_persistent_program_is_one_launch() {
    let mut session = program(persistent_file()).start(&Hardware::Device(0)).expect("it can be started");
    let mut tokens = prompt(9);
    session.prefill(&tokens).expect("it fits");
    tokens.push(4);
    session.decode(4).expect("it fits");
    let mut greedy = Sampler::new(SamplingOptions::default(), VOCABULARY, VOCABULARY);
    with(|fake| fake.calls.clear());
    for token in [7, 259] {
        tokens.push(token);
        session.decode(token).expect("it fits");
        let next = session.sample(&mut greedy).expect("the device works");
        assert_eq!(next, Some((token + 1) % VOCABULARY as u32));
    }
    with(|fake| {
        let each = ["cuMemcpyHtoDAsync_v2", "cuMemcpyHtoDAsync_v2", "cuLaunchCooperativeKernel"];
        let each = [&each[..], &["cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"]].concat();
        assert_eq!(fake.calls, each.repeat(2));
    });
    assert_eq!(session.logits().expect("they come"), expected_logits(&tokens));
}

#[test]
fn steps_of_a_phase_wait_for_the_phase_before_and_not_for_one_another() {
    let edges = |joined: &[usize]| {
        let mut file = device_program_file();
        let decode = &mut file.lists.lists[0];
        for (index, step) in decode.body.iter_mut().chain(&mut decode.head).enumerate() {
            step.joins_previous = joined.contains(&index);
        }
        run_on(&file, &["run", "--raw", "-p", "xa", "-n", "2"]);
        with(|fake| fake.edges.clone())
    };
    // The fourth step has two launches.
    assert_eq!(edges(&[]), [vec![], vec![0], vec![1], vec![2], vec![3], vec![4]]);
    assert_eq!(edges(&[1]), [vec![], vec![], vec![0, 1], vec![2], vec![3], vec![4]]);
    assert_eq!(edges(&[1, 3]), [vec![], vec![], vec![0, 1], vec![0, 1], vec![3], vec![2, 4]]);
    assert_eq!(edges(&[3, 4]), [vec![], vec![0], vec![1], vec![1], vec![3], vec![1]]);
}

#[test]
fn a_persistent_program_is_a_graph_where_blocks_cannot_wait_for_one_another() {
    let expected = run(&["run", "--tokens", "252", "--print-tokens"]).output;
    for together in [(0, true), (2, false), (2, true)] {
        with(|fake| {
            *fake = Fake::new();
            fake.together = together;
        });
        let ended = run_on(&persistent_file(), &["run", "--tokens", "252", "--print-tokens"]);
        assert_eq!(ended.output, expected);
        let is_persistent = together == (2, true);
        with(|fake| {
            assert_eq!(fake.count("cuLaunchCooperativeKernel") > 0, is_persistent, "{together:?}");
            assert_eq!(fake.count("cuGraphLaunch") > 0, !is_persistent, "{together:?}");
        });
    }
}

#[test]
fn the_table_of_a_persistent_program_has_to_fit_as_well() {
    let file = persistent_file();
    // One of the steps has two launches.
    let rows = file.lists.lists[0].body.len() + file.lists.lists[0].head.len() + 1;
    let table_bytes = rows * 4 * 8 + 8;
    let least = file.manifest.weight_bytes as usize + file.manifest.arena_bytes as usize + table_bytes;
    for (free_bytes, fits) in [(least, true), (least - 1, false)] {
        with(|fake| {
            *fake = Fake::new();
            fake.devices[0].free_bytes = free_bytes;
        });
        let ended = run_on(&file, &["run", "--tokens", "252", "--print-tokens"]);
        assert_eq!(ended.result.is_ok(), fits, "{free_bytes} bytes");
    }
}

/// A sampler to which everything counts asks for everything, and chooses as it would on the processor.
#[test]
fn all_logits_come_where_the_largest_do_not_decide() {
    let options = SamplingOptions { temperature: 3.0, seed: 9, ..SamplingOptions::default() };
    let (mut of_all, mut sampler) = [(); 2].map(|()| Sampler::new(options, VOCABULARY, VOCABULARY)).into();
    let mut session = session();
    let mut tokens = Vec::new();
    for token in [7, 100, 3, 3] {
        tokens.push(token);
        session.decode(token).expect("it fits");
        with(|fake| fake.bytes_to_host = 0);
        let found = session.sample(&mut sampler).expect("the device works");
        assert_eq!(found, of_all.sample(&expected_logits(&tokens)));
        with(|fake| assert_eq!(fake.bytes_to_host, 4 * VOCABULARY));
    }
}

/// A program without candidates, which `--no-pass` builds.
#[test]
fn logits_come_where_nothing_else_does() {
    let mut file = device_program_file();
    file.lists.lists[0].head.pop();
    file.manifest.inputs.candidates = None;
    assert_eq!(run_on(&file, &["run", "--raw", "-p", "xa", "-n", "3"]).output, "bcd\n");
    // Behind the prompt, and behind each token but the last.
    with(|fake| assert_eq!(fake.bytes_to_host, 3 * 4 * VOCABULARY));
}

#[test]
fn candidates_that_lie_apart_come_as_well() {
    let mut file = device_program_file();
    let apart = 12_288;
    file.lists.lists[0].head[2].operands[2].offset = apart;
    file.manifest.inputs.candidates.as_mut().expect("there are some").ids = apart;
    assert_eq!(run_on(&file, &["run", "--raw", "-p", "xa", "-n", "3"]).output, "bcd\n");
    with(|fake| assert_eq!(fake.bytes_to_host, 4 * VOCABULARY + 2 * 8 * CANDIDATES));
}

#[test]
fn commands_work_as_on_the_processor() {
    assert_eq!(run(&["run", "--raw", "-p", "xa", "-n", "3"]).output, "bcd\n");
    assert_eq!(run(&["run", "--tokens", "252", "--print-tokens"]).output, "253,254,255\n");
    assert_eq!(run(&["chat", "-n", "2"]).output, ";<\n");
    assert!(run(&["self-test"]).output.contains("24 logits agree"));
    let report = run(&["bench", "-p", "6", "-n", "4", "-r", "2", "--json"]).json();
    assert_eq!(report["results"][1]["test"], "tg4");
    assert_eq!(
        (&report["threads"], &report["device"]),
        (&1.into(), &"Fake A100 (sm_80), cubin for sm_80".into())
    );
    assert!(
        run(&["bench", "-p", "6", "-n", "0", "-r", "1"])
            .output
            .contains("on sm_80, Fake A100 (sm_80), cubin")
    );
    let startup = run(&["profile", "--startup", "-p", "5"]).output;
    assert!(startup.contains("device, code and weights") && startup.contains("Fake A100"), "{startup}");
}

#[test]
fn profile_measures_by_events_and_compares_with_the_data_sheet() {
    let report = run(&["profile", "-p", "10", "-n", "2", "--json"]).json();
    let kernels = report["kernels"].as_array().expect("an array");
    let of = |name: &str| kernels.iter().find(|kernel| kernel["name"] == name).expect("was called");
    // Every step takes a quarter of a millisecond; two chunks and two tokens.
    assert_eq!((&of("write_cache")["calls"], &of("write_cache")["us"]), (&4.into(), &1000.0.into()));
    assert_eq!(of("write_cache")["bytes"], 100 * 4 + 10 * 12 + (1..=10).sum::<u64>() + 1 + 2);
    assert_eq!(report["peak"]["read_bytes_per_s"], 2.0 * 1.215e9 * 5120.0 / 8.0);
    let text = run(&["profile", "--peak", "-p", "4", "-n", "1"]).output;
    assert!(text.contains("peak: 1555.2 GB/s read (by clock and width, not measured)"), "{text}");
    with(|fake| assert!(fake.count("cuEventElapsedTime") > 0));
}

#[test]
fn flags_of_the_other_kind_are_answered() {
    let ended = run(&["run", "--tokens", "1", "-n", "1", "--threads", "4"]);
    assert!(ended.errors.contains("`--threads` changes nothing"), "{}", ended.errors);
    let second = FakeDevice { name: c"Fake H100", capability: (9, 0), free_bytes: 1 << 30 };
    with(|fake| fake.devices.push(second));
    let ended = run(&["bench", "--device", "1", "-p", "0", "-n", "1", "-r", "1", "--json"]);
    assert_eq!(ended.json()["device"], "Fake H100 (sm_90), PTX for sm_80");
    run(&["run", "-p", "a", "--device", "2"]).says(&[
        "there is no GPU 2",
        "found: 0: Fake A100, 1: Fake H100",
        "needed: `--device 0` to `1`",
        "help: ",
    ]);
    assert!(matches!(run(&["run", "-p", "a", "--device", "x"]).result, Err(Failure::Usage(_))));
}

#[test]
fn what_needs_no_device_works_without_one() {
    with(|fake| fake.devices.clear());
    let info = run(&["info", "--verify", "--json"]).json();
    assert_eq!(info["target"], "sm_80");
    assert_eq!(info["images"][0], serde_json::json!({"architecture": "sm_80", "kind": "PTX", "bytes": 39}));
    assert!(run(&["info"]).output.contains("cubin for sm_80, 15 bytes"));
    assert!(run(&["--help"]).result.is_ok());
    with(|fake| assert_eq!(fake.calls, [""; 0]));
    for arguments in [&["run", "-p", "a"][..], &["chat"], &["bench"], &["profile"], &["self-test"]] {
        run(arguments).says(&["the CUDA driver finds none", "CUDA 12.4, no device", "`--target native`"]);
    }
}

#[test]
fn old_drivers_and_devices_are_named() {
    with(|fake| fake.version = 12000);
    let mut file = device_program_file();
    file.device_code.images.truncate(1);
    run_on(&file, &["run", "-p", "a"]).says(&["CUDA 12.0", "CUDA 12.1 or newer, for PTX 8.1", "update"]);
    // The cubin does not care.
    assert!(run(&["run", "--tokens", "1", "-n", "1"]).result.is_ok());
    with(|fake| fake.version = 11040);
    run(&["run", "-p", "a"]).says(&["too old", "CUDA 11.4", "CUDA 12.0"]);
    with(|fake| {
        *fake = Fake::new();
        fake.devices[0].capability = (7, 5);
    });
    run(&["run", "-p", "a"]).says(&["device 0: Fake A100 (sm_75)", "sm_80 or newer"]);
}

#[test]
fn memory_that_is_not_free_is_said_before_anything_is_loaded() {
    with(|fake| fake.devices[0].free_bytes = 10_000);
    run(&["run", "-p", "a"]).says(&[
        "10000 bytes",
        "17408 bytes",
        "1024 bytes (1.00 KiB) of weights",
        "`nvidia-smi`",
    ]);
    with(|fake| {
        assert_eq!(fake.count("cuModuleLoadDataEx") + fake.count("cuMemAlloc_v2"), 0);
        *fake = Fake::new();
        fake.failing = Some(("cuMemAlloc_v2", 1, 2));
    });
    run(&["run", "-p", "a"]).says(&[
        "could not reserve 1024 bytes (1.00 KiB) for the weights",
        "CUDA_ERROR_OUT_OF_MEMORY (2)",
        "--context",
    ]);
}

#[test]
fn ptx_stands_in_for_a_cubin_that_is_refused() {
    with(|fake| fake.refused_image = Some((b"\x7fELF", c"")));
    let ended = run(&["bench", "-p", "1", "-n", "0", "-r", "1", "--json"]);
    assert_eq!(ended.json()["device"], "Fake A100 (sm_80), PTX for sm_80");
    with(|fake| assert!(fake.images[0].starts_with(b"// counting\n.version")));
    // What the compiler says is shown, and the cubin before it is not forgotten.
    with(|fake| fake.refused_image = Some((b"", c"ptxas fatal: line 7\n\nno such register\n")));
    run(&["run", "-p", "a"]).says(&[
        "could not load the program's code (PTX for sm_80)",
        "CUDA_ERROR_INVALID_PTX (218)",
        "cause: ptxas fatal: line 7\n  cause: no such register",
        "before that, the CUDA driver could not load the program's code (cubin for sm_80)",
    ]);
}

#[test]
fn entry_points_that_are_missing_are_named() {
    let mut file = device_program_file();
    "gather2".clone_into(&mut file.lists.kernels[2].launches[0].symbol);
    run_on(&file, &["run", "-p", "a"]).says(&["the entry point `gather2`", "CUDA_ERROR_NOT_FOUND"]);
}
