//! What a static verifier says of the emitted PTX: in no order of threads do two of them race, and every barrier
//! is reached by all.
//!
//! The verifier (sentryward) takes one launch with fixed sizes. It knows nothing of what memory holds, except for
//! integers that it is told: those from which kernels compute addresses and branches are told here. Pointers of a
//! launch are taken to be disjoint, as the planner makes them.
//!
//! Kernels are tiny. What a thread does is the same in large ones, and so is what separates threads.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use qwen2c_tests::{Build, Golden, Program, run, skip};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Inputs of a product that pass through every stage of shared memory and come back to the first.
pub(crate) const MANY_INPUTS: u64 = 320;

/// Ids of models with so many inputs: two blocks look for the largest logits, and another merges what they found.
const MANY_IDS: u64 = 2100;

/// Behind a whole block of the cache, so that decode attention is split and prompts go through many stages.
const FIRST_POSITION: u64 = 300;

const EXPERTS: u64 = 4;
const CHOICES: u64 = 2;

/// Seconds that a kernel may take on a busy machine; a quiet one needs 10.
const TIME_LIMIT_SECONDS: &str = "400";

/// What several tests ask for, made once by the first that does; the others wait for it.
struct Shared<T: 'static>(Mutex<BTreeMap<String, &'static OnceLock<T>>>);

impl<T> Shared<T> {
    const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    fn get_or_make(&self, key: String, make: impl FnOnce() -> T) -> &'static T {
        let mut slots = self.0.lock().expect("nothing is made under the lock");
        let slot: &'static OnceLock<T> = slots.entry(key).or_insert_with(|| Box::leak(Box::default()));
        drop(slots);
        slot.get_or_init(make)
    }
}

/// The verifier: `QWEN2C_TEST_SENTRYWARD`.
fn verifier() -> Option<PathBuf> {
    let found = std::env::var_os("QWEN2C_TEST_SENTRYWARD").map(PathBuf::from);
    if found.is_none() {
        skip("QWEN2C_TEST_SENTRYWARD does not name sentryward's program `sentryward-ptx`");
    }
    found
}

/// A tiny model of the family of `golden` with this many intermediate features, in bf16; weights are random.
pub(crate) fn build(golden: &str, intermediate: u64, quant: &str) -> Program {
    build_with(golden, &json!({ "intermediate_size": intermediate }), "bf16", &["--quant", quant])
}

/// A tiny model with these values in its configuration, and further options of its build.
fn build_with(golden: &str, values: &Value, dtype: &str, more: &[&str]) -> Program {
    let text = fs::read(Golden::load(golden).model().join("config.json")).expect("readable");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    let is_mixture = config.get("num_experts").is_some();
    let intermediate = values["intermediate_size"].as_u64().unwrap_or(64);
    let vocabulary = if intermediate == MANY_INPUTS { MANY_IDS } else { 32 };
    let mut shapes = json!({
        "hidden_size": 32, "intermediate_size": intermediate, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_hidden_layers": 2, "max_window_layers": 2, "vocab_size": vocabulary,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": false, "max_position_embeddings": 512,
    });
    if is_mixture {
        shapes["num_experts"] = json!(EXPERTS);
        shapes["num_experts_per_tok"] = json!(CHOICES);
        shapes["moe_intermediate_size"] = json!(intermediate);
        shapes["shared_expert_intermediate_size"] = json!(32);
    }
    let objects = [&shapes, values].map(|values| values.as_object().expect("an object"));
    for (name, value) in objects.into_iter().flatten() {
        config[name] = value.clone();
    }
    let scratch = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    fs::write(scratch.path().join("config.json"), config.to_string()).expect("writable");
    let options = ["--target", "sm_80", "--weights", "random", "--dtype", dtype];
    Build::new(scratch.path())
        .with(options)
        .with(more.iter().copied())
        .with(["--emit", "ptx,scheduled"])
        .finish()
}

/// One launch of a kernel, as the verifier is asked about it.
#[derive(Clone)]
struct Subject {
    kernel: String,
    symbol: String,
    ptx: String,
    input: Value,
}

/// The verifier's answer.
struct Answer {
    /// `race_free`, or what it found, or why it could not tell.
    result: String,
    /// Witnesses and diagnostics.
    evidence: String,
}

/// The first number in front of `unit` in a line of `inspect`.
fn number_before(line: &str, unit: &str) -> u64 {
    let at = line.find(unit).unwrap_or_else(|| panic!("no `{unit}` in `{line}`"));
    let word = line[..at].split_whitespace().next_back().expect("a number");
    word.parse().unwrap_or_else(|_| panic!("no number before `{unit}` in `{line}`"))
}

/// Names of the inputs of each kernel's first step, in the order of its parameters.
fn operands(program: &Program) -> BTreeMap<String, Vec<String>> {
    let path = program.directory().join("program.emit/scheduled.txt");
    let text = fs::read_to_string(path).expect("readable");
    let mut operands = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("  %")) {
        let (step, kernel) = line.rsplit_once(" // ").expect("a step names its kernel");
        let (_, call) = step.split_once(" = ").expect("a step has results");
        let inputs = call.split(['(', ')']).nth(1).expect("an operation has inputs");
        let names = inputs.split(", ").map(str::to_owned).collect();
        operands.entry(kernel.to_owned()).or_insert(names);
    }
    operands
}

/// What an operand holds where kernels branch on it or find their addresses with it.
fn contents(operand: &str, rows: u64) -> Option<Vec<u64>> {
    let of_row = |row: u64| (0..CHOICES).map(move |choice| (row + choice) % EXPERTS);
    let chosen: Vec<u64> = (0..rows).flat_map(of_row).collect();
    let entries_of = |expert: u64| {
        let of_expert = chosen.iter().enumerate().filter(move |(_, found)| **found == expert);
        of_expert.map(|(entry, _)| entry as u64)
    };
    Some(match operand {
        "%token" => (0..rows).map(|row| 3 * row + 1).collect(),
        "%position" => (0..rows).map(|row| FIRST_POSITION + row).collect(),
        "%slot" => vec![0; rows as usize],
        "%logit_rows" => (0..rows).rev().collect(),
        _ if operand.ends_with(".router.probabilities") => {
            let one_row = [0.1_f32, 0.4, 0.2, 0.3].map(|probability| u64::from(probability.to_bits()));
            one_row.repeat(rows as usize)
        }
        _ if operand.ends_with(".router.experts") => chosen,
        // Active count, active experts, offsets, entries.
        _ if operand.ends_with(".router.experts.groups") => {
            let mut table: Vec<u64> =
                (0..EXPERTS).filter(|expert| entries_of(*expert).next().is_some()).collect();
            table.insert(0, table.len() as u64);
            table.resize(1 + EXPERTS as usize, 0);
            table.extend((0..=EXPERTS).map(|end| chosen.iter().filter(|found| **found < end).count() as u64));
            table.extend((0..EXPERTS).flat_map(entries_of));
            table
        }
        _ => return None,
    })
}

/// A launch with the verifier's input: `line` is that of `inspect`.
fn subject(kernel: &str, line: &str, ptx: String, operands: &[String]) -> Subject {
    let symbol = line.trim_start().split(':').next().expect("a symbol").to_owned();
    let most_rows = kernel.rsplit_once("_rows").expect("kernels are named after their rows").1;
    let rows: u64 = match most_rows.split('.').next() {
        Some("1") => 1,
        Some("8") => 3,
        _ => 5,
    };
    let signature = ptx.split(&format!(".entry {symbol}(")).nth(1).expect("the launch has an entry");
    let signature = signature.split(')').next().expect("an entry ends");
    let parameters: Vec<&str> = signature
        .split(',')
        .map(|parameter| parameter.split_whitespace().next_back().expect("a name"))
        .collect();
    let known = parameters.iter().zip(operands).filter_map(|(parameter, operand)| {
        contents(operand, rows).map(|values| json!({ "parameter": parameter, "shapes": [values] }))
    });
    let row_blocks = rows.div_ceil(number_before(line, " rows,"));
    let input = json!({
        "schema": "spverify.kernel-input/v1",
        "entry": symbol,
        "launch": {
            "grid_dim": [number_before(line, " blocks"), row_blocks, 1],
            "block_dim": [number_before(line, " threads"), 1, 1],
            "cluster_dim": [1, 1, 1],
            "dynamic_shared_bytes": number_before(line, " bytes of shared"),
        },
        "arguments": [{ "parameter": parameters.last().expect("rows"), "type": "u32", "value": rows }],
        "shape_arrays": known.collect::<Vec<Value>>(),
    });
    Subject { kernel: kernel.to_owned(), symbol, ptx, input }
}

/// All launches of a program of [`build`] whose kernels are `wanted`.
fn subjects(golden: &str, intermediate: u64, quant: &str, wanted: Wanted) -> Vec<Subject> {
    static SUBJECTS: Shared<Vec<Subject>> = Shared::new();
    let all = SUBJECTS.get_or_make(format!("{golden} {intermediate} {quant}"), || {
        subjects_of(&build(golden, intermediate, quant))
    });
    let subjects: Vec<Subject> = all.iter().filter(|subject| wanted(&subject.kernel)).cloned().collect();
    assert!(!subjects.is_empty(), "{golden} {intermediate} {quant} has no such kernels");
    subjects
}

/// All launches of a program.
fn subjects_of(program: &Program) -> Vec<Subject> {
    let text =
        run(Command::new(qwen2c_tests::compiler()).arg("inspect").arg(program.path())).success().text();
    let operands = operands(program);
    let folder = program.directory().join("program.emit/ptx");
    let mut kernel = "";
    let mut subjects = Vec::new();
    for line in text.lines().skip_while(|line| *line != "  kernels").skip(1).take_while(|l| !l.is_empty()) {
        if !line.starts_with("        ") {
            kernel = line.trim();
        } else {
            let ptx = fs::read_to_string(folder.join(format!("{kernel}.ptx"))).expect("readable");
            let operands = operands.get(kernel).unwrap_or_else(|| panic!("no step of {kernel}"));
            subjects.push(subject(kernel, line, ptx, operands));
        }
    }
    subjects
}

/// The verifier's answer; it is asked once about the same PTX and launch.
fn verify(verifier: &Path, subject: &Subject) -> &'static Answer {
    static ANSWERS: Shared<Answer> = Shared::new();
    ANSWERS.get_or_make(format!("{}\n{}", subject.input, subject.ptx), || ask(verifier, subject))
}

/// Asks the verifier.
fn ask(verifier: &Path, subject: &Subject) -> Answer {
    let scratch = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
    let (ptx, input) = (scratch.path().join("kernel.ptx"), scratch.path().join("input.json"));
    fs::write(&ptx, &subject.ptx).expect("writable");
    fs::write(&input, subject.input.to_string()).expect("writable");
    let mut command = Command::new(verifier);
    command.arg("--ptx").arg(ptx).arg("--config").arg(input);
    command.args(["--sync-threads", "1", "--timeout-seconds", TIME_LIMIT_SECONDS]);
    let report = run(&mut command).json();
    let result = report["result"].as_str().expect("a report has a result").to_owned();
    let evidence = format!("{}\n{}\n{}", report["checks"], report["diagnostics"], report["races"]);
    let codes: Vec<&str> = report["diagnostics"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|found| found["code"].as_str())
        .collect();
    let result = if codes.is_empty() { result } else { format!("{result}: {}", codes.join(", ")) };
    Answer { result, evidence }
}

/// Asks about many launches, as many at a time as there are processors; answers in their order.
fn verify_all(verifier: &Path, subjects: &[Subject]) -> Vec<&'static Answer> {
    let next = AtomicUsize::new(0);
    let answers = Mutex::new(BTreeMap::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((number, subject)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| Some((n, subjects.get(n)?)))
                {
                    let answer = verify(verifier, subject);
                    answers.lock().expect("no worker panics with it").insert(number, answer);
                }
            });
        }
    });
    answers.into_inner().expect("no worker panics with it").into_values().collect()
}

/// Whether a kernel is asked about.
type Wanted = fn(&str) -> bool;

fn is_any(_: &str) -> bool {
    true
}

/// Products for prompts whose inputs are many.
fn is_deep(kernel: &str) -> bool {
    kernel.contains(&format!("x{MANY_INPUTS}_")) && !kernel.ends_with("_rows1")
}

/// The same, and the choice of the largest of many logits.
fn is_deep_or_choice(kernel: &str) -> bool {
    is_deep(kernel) || kernel.starts_with("top_k_64_")
}

#[test]
fn no_kernel_races_in_any_order_of_threads() {
    let Some(verifier) = verifier() else { return };
    let (dense, mixture) = ("dense-gqa", "moe-sparse-step");
    let programs: [(&str, &str, u64, Wanted); 9] = [
        (dense, "none", 64, is_any),
        (dense, "int4", 64, is_any),
        (dense, "int8", 64, is_any),
        (mixture, "none", 32, is_any),
        (mixture, "int4", 32, is_any),
        (dense, "none", MANY_INPUTS, is_deep_or_choice),
        (dense, "int4", MANY_INPUTS, is_deep),
        (dense, "int8", MANY_INPUTS, is_deep),
        (mixture, "none", MANY_INPUTS, is_deep),
    ];
    let (mut asked, mut names, mut all) = (HashSet::new(), Vec::new(), Vec::new());
    for (golden, quant, intermediate, wanted) in programs {
        for subject in subjects(golden, intermediate, quant, wanted) {
            let (symbol, input) = (&subject.symbol, subject.input.to_string());
            // Kernels of several programs may differ by their names alone.
            if asked.insert((subject.ptx.replace(symbol, ""), input.replace(symbol, ""))) {
                names.push(format!("{golden} {quant} {symbol}"));
                all.push(subject);
            }
        }
    }
    let mut list = String::new();
    for (name, answer) in names.iter().zip(verify_all(&verifier, &all)) {
        let Answer { result, evidence } = answer;
        let is_undecided = result.starts_with("unsupported: ");
        assert!(result == "race_free" || is_undecided, "{name}: {result}\n{evidence}");
        writeln!(list, "{name}: {result}").expect("a string takes all");
    }
    insta::assert_snapshot!("races", list);
}

/// Products of 128 rows, from lists for long prompts, of which two blocks are asked about: they pass through every
/// stage of shared memory and come back to the first.
fn long_prompts() -> Vec<(&'static str, Subject)> {
    let values = json!({
        "hidden_size": 192, "num_attention_heads": 12, "intermediate_size": 512, "max_position_embeddings": 2048,
    });
    let all = subjects_of(&build_with("dense-gqa", &values, "bf16", &["--quant", "none"]));
    let is_long =
        |subject: &Subject| ["_rows1024", "_rows2048"].iter().any(|end| subject.kernel.ends_with(end));
    let mut long: Vec<Subject> = all.into_iter().filter(is_long).collect();
    long.iter_mut().for_each(|subject| subject.input["launch"]["grid_dim"][0] = 2.into());
    long.into_iter().map(|subject| ("bf16", subject)).collect()
}

/// A product for prompts in other types, and attention in f16.
fn other_types() -> Vec<(&'static str, Subject)> {
    let of_type = |dtype: &'static str, wanted: Wanted| {
        let all = subjects_of(&build_with("dense-gqa", &json!({}), dtype, &["--quant", "none"]));
        all.into_iter().filter(move |subject| wanted(&subject.kernel)).map(move |subject| (dtype, subject))
    };
    let of_halves =
        of_type("f16", |kernel| is_prompt_attention(kernel) || kernel.contains("x64_residual_rows256"));
    let of_floats = of_type("f32", |kernel| kernel.contains("x64_residual_rows256"));
    of_halves.chain(of_floats).collect()
}

/// The kernel that runs a token in one launch, in two blocks.
fn persistent() -> (&'static str, Subject) {
    let switches = ["--quant", "none", "--pass", "persistent_decode"];
    let program = build_with("dense-gqa", &json!({}), "bf16", &switches);
    let symbol = "persistent_decode";
    let path = program.directory().join(format!("program.emit/ptx/{symbol}.ptx"));
    let ptx = fs::read_to_string(path).expect("readable");
    let line = format!("{symbol}: 2 blocks for 1 rows, 128 threads, 4096 bytes of shared memory");
    ("bf16", subject(&format!("{symbol}_rows1"), &line, ptx, &[]))
}

/// Kernels of other programs than those above, and what cannot be decided about them.
#[test]
fn no_kernel_of_long_prompts_or_other_types_races() {
    let Some(verifier) = verifier() else { return };
    let named = [long_prompts(), other_types(), vec![persistent()]].concat();
    let all: Vec<Subject> = named.iter().map(|(_, subject)| subject.clone()).collect();
    let mut list = String::new();
    for ((dtype, subject), answer) in named.iter().zip(verify_all(&verifier, &all)) {
        let Answer { result, evidence } = answer;
        let is_undecided = result.starts_with("unsupported: ");
        assert!(result == "race_free" || is_undecided, "{dtype} {}: {result}\n{evidence}", subject.symbol);
        writeln!(list, "{dtype} {}: {result}", subject.symbol).expect("a string takes all");
    }
    insta::assert_snapshot!("more-races", list);
}

fn is_prompt_attention(kernel: &str) -> bool {
    kernel.starts_with("attention_") && !kernel.ends_with("_rows1")
}

/// The only launch of a kernel of a dense model, changed; it was right before.
#[track_caller]
fn assert_change_is_found(intermediate: u64, wanted: Wanted, change: fn(&str) -> String) {
    let Some(verifier) = verifier() else { return };
    let right = subjects("dense-gqa", intermediate, "none", wanted).remove(0);
    assert_eq!(verify(&verifier, &right).result, "race_free", "{}", right.kernel);
    let mut wrong = right.clone();
    wrong.ptx = change(&right.ptx);
    assert_ne!(wrong.ptx, right.ptx, "nothing was changed in {}", right.kernel);
    let answer = verify(&verifier, &wrong);
    let is_found = answer.result.starts_with("potential_race");
    assert!(is_found, "{}: {}\n{}", right.kernel, answer.result, answer.evidence);
}

/// PTX without its last barrier.
fn without_last_barrier(ptx: &str) -> String {
    let at = ptx.rfind("bar.sync").expect("a barrier");
    let end = at + ptx[at..].find(';').expect("instructions end") + 1;
    format!("{}{}", &ptx[..at], &ptx[end..])
}

/// PTX that leaves one group of copies more under way where it waits.
fn with_weaker_wait(ptx: &str) -> String {
    let mut parts = ptx.split("cp.async.wait_group");
    let mut changed = parts.next().expect("text").to_owned();
    for part in parts {
        let (count, rest) = part.split_once(';').expect("instructions end");
        let count: u64 = count.trim().parse().expect("a number of groups");
        write!(changed, "cp.async.wait_group {};{rest}", count + 1).expect("a string takes all");
    }
    changed
}

#[test]
fn a_missing_barrier_is_found() {
    assert_change_is_found(64, |kernel| kernel.starts_with("rms_norm_"), without_last_barrier);
    assert_change_is_found(64, is_prompt_attention, without_last_barrier);
}

#[test]
fn copies_that_are_not_waited_for_are_found() {
    assert_change_is_found(MANY_INPUTS, is_deep, with_weaker_wait);
    assert_change_is_found(MANY_INPUTS, is_deep, without_last_barrier);
}
