//! Commands from the command line to their output, on the counting program of [`crate::testing`].

mod machines;

use std::ffi::OsString;
use std::io::{self, Write};

use qwen2c_format::ProgramFile;
use serde_json::Value;

use super::execute;
use crate::Program;
use crate::console::{Console, Failure};
use crate::memory::Mapping;
use crate::testing::{CONTEXT, KERNELS, expected_logits, program_file, weights};

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

    /// The message of a failure with exit code 1 or 2.
    fn message(&self) -> (i32, String) {
        match &self.result {
            Err(Failure::Input(diagnostic)) => (1, diagnostic.to_string()),
            Err(Failure::Usage(diagnostic)) => (2, diagnostic.to_string()),
            other => panic!("{other:?} with output {:?}", self.output),
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
    Program::from_parts(file, &KERNELS, mapping).expect("the parts fit")
}

fn execute_on(file: &ProgramFile, arguments: &[&str], input: &[u8], output: &mut dyn Write) -> Ended {
    execute_program(&|| program(file.clone()), arguments, input, output)
}

fn execute_program(
    open: &dyn Fn() -> Program,
    arguments: &[&str],
    input: &[u8],
    output: &mut dyn Write,
) -> Ended {
    let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
    let mut errors = Vec::new();
    let mut console = Console {
        input: &mut { input },
        input_is_terminal: false,
        output,
        errors: &mut errors,
        quiet: false,
    };
    let result = execute("program", &arguments, &|| Ok(open()), &mut console);
    Ended { result, output: String::new(), errors: String::from_utf8(errors).expect("notes are text") }
}

fn run_on(file: &ProgramFile, arguments: &[&str], input: &[u8]) -> Ended {
    let mut output = Vec::new();
    let ended = execute_on(file, arguments, input, &mut output);
    Ended { output: String::from_utf8(output).expect("output is text"), ..ended }
}

fn run(arguments: &[&str], input: &[u8]) -> Ended {
    run_on(&program_file(), arguments, input)
}

/// Output of a command that must end well.
fn output(arguments: &[&str], input: &[u8]) -> String {
    let ended = run(arguments, input);
    assert!(ended.result.is_ok(), "{:?}", ended.result);
    ended.output
}

#[test]
fn prompts_come_from_arguments_files_and_standard_input() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("prompt");
    std::fs::write(&path, "xa\n").expect("it can be written");
    let path = path.to_str().expect("the path is text");
    assert_eq!(output(&["run", "--raw", "-p", "xa", "-n", "3"], b""), "bcd\n");
    assert_eq!(output(&["run", "--raw", "-n", "3"], b"xa"), "bcd\n");
    // The template ends with `a:`, and `;` follows `:`.
    assert_eq!(output(&["run", "-p", "hi", "-n", "3"], b""), ";<=\n");
    assert_eq!(output(&["run", "-f", path, "-n", "3"], b""), ";<=\n");
    assert_eq!(output(&["-n", "3"], b"hi\n"), ";<=\n");
    assert_eq!(output(&["--quiet"], b"hi\n").chars().next(), Some(';'));
    // Raw text keeps its last newline: 10 is followed by 11.
    assert_eq!(output(&["run", "--raw", "-f", path, "-n", "1"], b""), "\u{b}\n");
    assert_eq!(output(&["run", "--tokens", "5, 97", "-n", "2"], b""), "bc\n");
}

#[test]
fn ids_are_printed_without_the_one_that_stopped() {
    assert_eq!(output(&["run", "--tokens", "252", "--print-tokens"], b""), "253,254,255\n");
    let on = output(&["run", "--tokens", "253", "--print-tokens", "--ignore-eos", "-n", "5"], b"");
    // 257 and more are padding and never chosen; then the largest of the others is id 0.
    assert_eq!(on, "254,255,256,0,1\n");
    assert_eq!(output(&["run", "--tokens", "7", "--print-tokens", "-n", "0"], b""), "\n");
}

#[test]
fn answers_end_before_a_stop_text() {
    let stop = ["run", "--raw", "-p", "a", "--stop", "zz", "--stop", "ef"];
    assert_eq!(output(&stop, b""), "bcd\n");
    let ids = [&stop[..], &["--print-tokens"]].concat();
    assert_eq!(output(&ids, b""), "98,99,100,101\n");
}

#[test]
fn a_full_context_is_said() {
    let ended = run(&["run", "--tokens", "1", "--print-tokens"], b"");
    assert!(ended.result.is_ok());
    assert_eq!(ended.output.split(',').count(), CONTEXT);
    assert!(ended.errors.contains("the context of 40 positions is full"), "{}", ended.errors);
    let tokens = vec!["1"; CONTEXT + 1].join(",");
    let (code, message) = run(&["run", "--tokens", &tokens], b"").message();
    assert!(code == 1 && message.contains("41 positions wanted"), "{message}");
}

#[test]
fn statistics_are_a_note() {
    let ended = run(&["run", "--raw", "-p", "ab", "-n", "2"], b"");
    assert!(ended.errors.starts_with("2 prompt tokens in "), "{}", ended.errors);
    assert!(ended.errors.contains(", 2 tokens in "), "{}", ended.errors);
    assert_eq!(run(&["run", "--raw", "-p", "ab", "-n", "2", "--quiet"], b"").errors, "");
}

#[test]
fn bad_prompts_get_a_message() {
    let refused = |arguments: &[&str], input: &[u8], code: i32, text: &str| {
        let (found, message) = run(arguments, input).message();
        assert!(found == code && message.contains(text), "{arguments:?}: {found} {message}");
    };
    refused(&["run"], b"", 1, "the prompt is empty");
    refused(&["run", "-p", ""], b"", 1, "the prompt is empty");
    refused(&["run", "--tokens", ""], b"", 1, "the prompt is empty");
    refused(&["run"], b"a\xffb", 1, "byte 0xff at offset 1");
    refused(&["run", "-f", "/nonexistent/file"], b"", 1, "/nonexistent/file");
    refused(&["run", "--tokens", "1,260"], b"", 1, "id 260 lies outside the vocabulary");
    refused(&["run", "--tokens", "-1"], b"", 1, "id -1 lies outside the vocabulary");
    refused(&["run", "--tokens", "99999999999"], b"", 1, "id 99999999999");
    refused(&["run", "--tokens", "1,x"], b"", 2, "`--tokens` does not take `x`");
    refused(&["run", "-p", "a", "-f", "b"], b"", 2, "exclude one another");
    refused(&["run", "-p", "a", "--temperature", "-1"], b"", 2, "`--temperature` does not take `-1`");
    refused(&["run", "-p", "a", "--temperature", "NaN"], b"", 2, "`--temperature`");
    refused(&["run", "-p", "a", "--threads", "0"], b"", 2, "`--threads` does not take `0`");
    refused(&["run", "-p", "a", "--device", "1"], b"", 2, "device 0");
    refused(&["logits", "--tokens", "1"], b"", 2, "`-o FILE` is missing");
    refused(&["perplexity"], b"", 2, "file is missing");
}

#[test]
fn programs_without_a_tokenizer_speak_ids() {
    let file = ProgramFile { tokenizer: None, ..program_file() };
    assert_eq!(run_on(&file, &["run", "--tokens", "1", "-n", "2"], b"").output, "2,3\n");
    for arguments in [&["run", "-p", "hi"][..], &["chat"], &["run", "--tokens", "1", "--stop", "x"]] {
        let (code, message) = run_on(&file, arguments, b"").message();
        assert!(code == 1 && message.contains("speaks token ids only"), "{message}");
    }
    // Without a tokenizer nothing is padding.
    let on = run_on(&file, &["run", "--tokens", "255", "-n", "3", "--ignore-eos"], b"");
    assert_eq!(on.output, "256,257,258\n");
}

#[test]
fn a_conversation_keeps_what_is_cached() {
    // Every answer is two tokens; the template is one position a byte: `u:x;a:` and `;<`.
    let ended = run(&["chat", "-n", "2"], b"x\n\ny\n");
    assert!(ended.result.is_ok(), "{:?}", ended.result);
    assert_eq!(ended.output, ";<\n;<\n");
    // A stop text leaves a token in the cache that the conversation does not have. Were it not forgotten,
    // the fifth prompt, of 38 positions, and its answer would not fit into 40.
    let ended = run(&["chat", "--stop", "<="], b"x\nx\nx\nx\nx\n");
    assert!(ended.result.is_ok(), "{:?}", ended.result);
    assert_eq!(ended.output, ";\n".repeat(5));
    let long = run(&["chat", "-n", "2"], "x".repeat(CONTEXT).as_bytes());
    assert!(long.message().1.contains("start a new chat"));
    let mut plain = program_file();
    plain.manifest.chat_template = None;
    assert!(run_on(&plain, &["chat"], b"x\n").message().1.contains("no chat template"));
    assert_eq!(run_on(&plain, &["run", "-p", "xa", "-n", "1"], b"").output, "b\n");
    let system = run_on(&plain, &["run", "-p", "xa", "--system", "be brief"], b"");
    assert!(system.message().1.contains("no chat template"));
}

#[test]
fn logits_are_written_for_every_token() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("out.safetensors");
    let shown = path.to_str().expect("the path is text");
    for rows in ["1", "3", "100"] {
        output(&["logits", "--tokens", "3,1,4,1,5", "-o", shown, "--prompt-rows", rows], b"");
        let bytes = std::fs::read(&path).expect("it was written");
        let header_bytes = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let expected: Vec<u8> = (1..=5)
            .flat_map(|tokens| expected_logits(&[3, 1, 4, 1, 5][..tokens]))
            .flat_map(f32::to_le_bytes)
            .collect();
        assert!(bytes[8 + header_bytes..] == expected, "{rows} rows");
    }
    assert_eq!(run(&["logits", "--tokens", "999", "-o", shown], b"").message().0, 1);
}

#[test]
fn perplexity_scores_windows() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("text");
    std::fs::write(&path, "abcabd!").expect("it can be written");
    let shown = path.to_str().expect("the path is text");
    let score = run(&["perplexity", shown, "--window", "3", "--json"], b"").json();
    // Windows `abc` and `abd` have two scored tokens each; the tail `!` has nothing to score.
    let surprise = |tokens: &str, next: u8| {
        let tokens: Vec<u32> = tokens.bytes().map(u32::from).collect();
        let logits = expected_logits(&tokens);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        sum.ln() - f64::from(logits[usize::from(next)])
    };
    let nll = 2.0 * surprise("a", b'b') + surprise("ab", b'c') + surprise("ab", b'd');
    assert_eq!(score["tokens"], 4);
    assert!((score["nll"].as_f64().expect("a number") - nll).abs() < 1e-6, "{score}");
    let perplexity = score["perplexity"].as_f64().expect("a number");
    assert!((perplexity - (nll / 4.0).exp()).abs() < 1e-6);
    // A tail of two tokens counts.
    let score = run(&["perplexity", shown, "--window", "5", "--json"], b"").json();
    assert_eq!(score["tokens"], 5);
    assert!(run(&["perplexity", shown, "--window", "41"], b"").message().1.contains("context"));
    std::fs::write(&path, "a").expect("it can be written");
    assert!(run(&["perplexity", shown], b"").message().1.contains("too short"));
}

#[test]
fn bench_measures_what_was_asked() {
    let report = run(&["bench", "-p", "6", "-n", "4", "-d", "3", "-r", "2", "--json"], b"").json();
    let results = report["results"].as_array().expect("an array");
    let tests: Vec<&str> = results.iter().filter_map(|result| result["test"].as_str()).collect();
    assert_eq!(tests, ["pp6@d3", "tg4@d3"]);
    for result in results {
        assert_eq!(result["runs"].as_array().map(Vec::len), Some(2));
        assert!(result["tokens_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{result}");
        assert!(result["stddev"].is_number());
    }
    for key in ["model", "target", "quant", "threads", "allocations_per_token"] {
        assert!(!report[key].is_null(), "{key}");
    }
    let only = run(&["bench", "-p", "0", "-n", "2", "-r", "1", "--json"], b"").json();
    assert_eq!(only["results"].as_array().map(Vec::len), Some(1));
    // Defaults shrink to the context, what was asked for does not.
    let report = run(&["bench", "-r", "1", "--json"], b"").json();
    assert_eq!(report["results"][0]["test"], "pp40");
    assert!(run(&["bench", "-p", "41"], b"").message().1.contains("context"));
}

#[test]
fn profile_cuts_the_start_into_phases() {
    let report = run(&["profile", "--startup", "-p", "5", "--json"], b"").json();
    let phases = report["startup"].as_array().expect("an array");
    assert_eq!(phases[4]["name"], "prompt of 5 tokens");
    let sum: f64 = phases.iter().filter_map(|phase| phase["us"].as_f64()).sum();
    assert!(
        sum > 0.0 && (report["first_token_us"].as_f64().expect("a number") - sum).abs() < 1e-6,
        "{report}"
    );
    assert!(phases[0]["page_faults"].as_u64().is_some_and(|faults| faults > 0), "{report}");
    assert!(report["resident_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 16), "{report}");
    let text = run(&["profile", "--startup"], b"").output;
    assert!(text.contains("first token") && text.contains("resident: "), "{text}");
    assert!(run(&["profile", "--startup", "-p", "41"], b"").message().1.contains("-p"));
}

#[test]
fn profile_counts_every_kernel() {
    let report = run(&["profile", "-p", "10", "-n", "2", "--json"], b"").json();
    assert!(report["peak"]["read_bytes_per_s"].as_f64().is_some_and(|peak| peak > 0.0));
    assert_eq!(report["workload"]["prompt"], 10);
    assert_eq!(report["steps"], 4);
    assert_eq!(report["peak_samples"].as_array().map(Vec::len), Some(1));
    let kernels = report["kernels"].as_array().expect("an array");
    let of = |name: &str| kernels.iter().find(|kernel| kernel["name"] == name).expect("was called");
    // Two chunks of the prompt and two tokens, both at the beginning of the context: 100 bytes for each
    // call, 10 for each of 12 rows, 1 for each row and position up to its own.
    assert_eq!(of("write_cache")["calls"], 4);
    assert_eq!(of("write_cache")["bytes"], 100 * 4 + 10 * 12 + (1..=10).sum::<u64>() + 1 + 2);
    for kernel in kernels {
        assert!(kernel["us"].as_f64().is_some_and(|us| us > 0.0), "{kernel}");
        assert!(kernel["operations"].is_u64() && kernel["share_of_peak"].is_number(), "{kernel}");
    }
}

#[test]
fn tokens_of_a_thorough_profile_stand_between_readings() {
    let report = run(&["profile", "--peak", "-p", "10", "-n", "3", "--json"], b"").json();
    let kernels = report["kernels"].as_array().expect("an array");
    // The readings are no steps of the program.
    assert_eq!((report["steps"].as_u64(), kernels.len()), (Some(5), 4), "{report}");
    assert_eq!(report["peak_samples"].as_array().map(Vec::len), Some(2));
    let generation = &report["generation"];
    for key in ["read_bytes_per_s", "token_us", "share_of_read"] {
        assert!(generation[key].as_f64().is_some_and(|value| value > 0.0), "{report}");
    }
    let text = output(&["profile", "--peak", "-n", "3"], b"");
    assert!(text.contains("a token (median): "), "{text}");
    let without_tokens = run(&["profile", "--peak", "-n", "0", "--json"], b"").json();
    assert!(without_tokens["generation"].is_null(), "{without_tokens}");
}

#[test]
fn self_test_compares_weights_and_logits() {
    let text = output(&["self-test"], b"");
    assert!(text.contains("2 weights are as built") && text.contains("24 logits agree"), "{text}");
    let mut file = program_file();
    file.weights.entries[1].sha256[0] ^= 1;
    let (code, message) = run_on(&file, &["self-test"], b"").message();
    assert!(code == 1 && message.contains("weight `second` was altered"), "{message}");
    assert!(run_on(&file, &["info", "--verify"], b"").message().1.contains("weight `second`"));
    let mut file = program_file();
    let record = file.manifest.self_test.as_mut().expect("the program has one");
    record.logits[4] += 1.0;
    let (code, message) = run_on(&file, &["self-test"], b"").message();
    assert!(code == 1 && message.contains("token 1, relative L2 error"), "{message}");
    file.manifest.self_test = None;
    assert!(run_on(&file, &["self-test"], b"").output.contains("no logits were recorded"));
}

#[test]
fn info_has_the_promised_fields() {
    let info = run(&["info", "--verify", "--json"], b"").json();
    for key in [
        "model",
        "target",
        "quant",
        "context",
        "weight_bytes",
        "kv_cache_bytes",
        "arena_bytes",
        "program_bytes",
        "build",
    ] {
        assert!(!info[key].is_null(), "{key}");
    }
    assert_eq!(info["verified_weights"], 2);
    assert!(output(&["info"], b"").contains("40 positions"));
    assert!(output(&["info", "--licenses"], b"").contains("Apache License"));
}

#[test]
fn a_closed_pipe_ends_quietly() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::BrokenPipe))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for arguments in [&["--help"][..], &["run", "-p", "a"], &["info"], &["self-test"]] {
        let ended = execute_on(&program_file(), arguments, b"", &mut Closed);
        assert!(matches!(ended.result, Err(Failure::ClosedPipe)), "{arguments:?}");
    }
}

#[test]
fn help_and_version_need_no_program() {
    let arguments = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
    for line in ["--help", "bench --help", "--version", "run --version"] {
        let mut output = Vec::new();
        let mut console = Console {
            input: &mut io::empty(),
            input_is_terminal: true,
            output: &mut output,
            errors: &mut io::sink(),
            quiet: false,
        };
        let open = || panic!("`{line}` opened the program");
        assert!(execute("program", &arguments(line), &open, &mut console).is_ok());
        assert!(!output.is_empty());
    }
}
