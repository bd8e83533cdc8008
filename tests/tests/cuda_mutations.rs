//! Kernels that the compiler emitted, spoilt in one place of a program that is whole otherwise; each must turn red on
//! the emulated device, or the other tests on it prove nothing.
//!
//! The kernel is a product for prompts with a pipeline of copies through shared memory. Places are found by what
//! stands there and not by numbers of registers, which change with every change of the kernel.

use std::fs;
use std::ops::Range;
use std::sync::OnceLock;

use qwen2c_format::{ProgramFile, encode_program_head};
use qwen2c_tests::{Device, Program, Tensor, relative_l2};

use crate::cuda_races::{MANY_INPUTS, build};

/// The kernel that is spoilt.
const KERNEL: &str = "matmul_32x320_residual_rows256";

/// Ids of the prompt, for two blocks of 32 rows.
const PROMPT_TOKENS: u32 = 40;

/// Orders of blocks and warps under which a fault must be found.
const SEEDS: [u64; 3] = [0, 1, 2];

/// What a warp finds that does not wait for the others: their copies were not begun, or are under way, or landed and
/// nothing says so.
const NOT_THERE: [&str; 3] = ["which nobody wrote", "has not landed", "race: "];

fn intact() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| build("dense-gqa", MANY_INPUTS, "none"))
}

fn prompt() -> Vec<u32> {
    (1..=PROMPT_TOKENS).collect()
}

/// Logits of the intact program, whose kernels do nothing wrong under any seed.
fn right_logits() -> &'static Tensor {
    static LOGITS: OnceLock<Tensor> = OnceLock::new();
    LOGITS.get_or_init(|| {
        let found = SEEDS.map(|seed| {
            let device = Device::new(80, seed);
            let logits = device.logits(intact(), &prompt());
            assert_eq!(device.report()["faults"], serde_json::json!([]));
            logits
        });
        assert!(found.iter().all(|logits| logits.values == found[0].values), "seeds change the logits");
        found.into_iter().next().expect("there are seeds")
    })
}

/// The program with another text of the kernel, and all else as it was.
#[track_caller]
fn spoil(change: impl FnOnce(&str) -> String) -> Program {
    let mut bytes = fs::read(intact().path()).expect("readable");
    let mut parts =
        ProgramFile::read(&fs::File::open(intact().path()).expect("readable")).expect("a program");
    let ptx = &mut parts.device_code.images[0].bytes;
    let text = String::from_utf8(ptx.clone()).expect("PTX is text");
    let start = text.find(&format!(".visible .entry {KERNEL}(")).expect("the kernel is emitted");
    let end = start + text[start..].find("\n}").expect("an entry ends");
    let right = &text[start..end];
    let wrong = change(right);
    assert_ne!(wrong, right, "nothing was changed");
    *ptx = [&text[..start], &wrong, &text[end..]].concat().into_bytes();
    let ProgramFile { locator, manifest, lists, weights, tokenizer, device_code } = parts;
    let head = encode_program_head(&manifest, &lists, &weights, tokenizer.as_deref(), &device_code);
    let room = &mut bytes[locator.header_offset as usize..locator.weights_offset as usize];
    room.fill(0);
    room[..head.len()].copy_from_slice(&head);
    intact().with_file(&bytes)
}

/// Where the instruction that begins with `opcode` stands, the first of them or the one numbered `number`.
#[track_caller]
fn instruction(text: &str, opcode: &str, number: usize) -> Range<usize> {
    let (start, _) = text.match_indices(opcode).nth(number).unwrap_or_else(|| panic!("no {opcode}"));
    start..start + text[start..].find(';').expect("instructions end") + 1
}

/// `text` with another instruction in that place.
fn replace(text: &str, place: Range<usize>, instruction: &str) -> String {
    [&text[..place.start], instruction, &text[place.end..]].concat()
}

/// What the program does with the prompt: ends with a fault of the kernel, under every seed; one of `whats`, at one
/// of the instructions `at`.
#[track_caller]
fn assert_fault(wrong: &Program, whats: &[&str], at: &[&str]) {
    right_logits();
    for seed in SEEDS {
        let device = Device::new(80, seed);
        let ids = qwen2c_tests::id_list(&prompt());
        let outcome = device.run(wrong, ["run", "--tokens", &ids, "-n", "1", "--quiet"]);
        assert_eq!(outcome.code(), Some(1), "seed {seed}: no fault: {}", outcome.stderr);
        let report = device.report();
        let fault = &report["faults"][0];
        let field = |name: &str| fault[name].as_str().unwrap_or_else(|| panic!("no {name}: {fault}"));
        assert_eq!(field("kernel"), KERNEL, "{fault}");
        assert!(whats.iter().any(|what| field("what").contains(what)), "seed {seed}: another fault: {fault}");
        assert!(at.iter().any(|at| field("instruction").contains(at)), "seed {seed}: elsewhere: {fault}");
    }
}

/// What the program does with the prompt: nothing that is forbidden, and other logits.
#[track_caller]
fn assert_wrong_logits(wrong: &Program) {
    let device = Device::new(80, 0);
    let found = device.logits(wrong, &prompt());
    assert_eq!(device.report()["faults"], serde_json::json!([]));
    let error = relative_l2(&found.values, &right_logits().values);
    assert!(error > 1e-3, "the logits are off by {error:.2e} alone");
}

#[test]
fn a_wait_that_is_one_too_weak() {
    let wrong = spoil(|text| {
        let place = instruction(text, "cp.async.wait_group", 0);
        let groups = text[place.clone()].trim_end_matches(';').split_whitespace().next_back();
        let groups: u64 = groups.and_then(|groups| groups.parse().ok()).expect("a number of groups");
        replace(text, place, &format!("cp.async.wait_group {};", groups + 1))
    });
    assert_fault(&wrong, &["has not landed"], &["ld.shared"]);
}

#[test]
fn no_barrier_in_the_loop() {
    let wrong = spoil(|text| {
        assert_eq!(text.matches("bar.sync").count(), 1, "the loop has the kernel's only barrier");
        replace(text, instruction(text, "bar.sync", 0), "")
    });
    assert_fault(&wrong, &NOT_THERE, &["ld.shared"]);
}

#[test]
fn two_registers_of_a_fragment_of_b_swapped() {
    let wrong = spoil(|text| {
        let place = instruction(text, "mma.sync", 0);
        let product = &text[place.clone()];
        // Results, A, B, what is added.
        let (start, _) = product.match_indices('{').nth(2).expect("four operands");
        let end = start + product[start..].find('}').expect("an operand ends");
        let (first, second) = product[start + 1..end].split_once(", ").expect("two registers of B");
        let swapped = [&product[..start], "{", second, ", ", first, &product[end..]].concat();
        replace(text, place, &swapped)
    });
    assert_wrong_logits(&wrong);
}

#[test]
fn one_tile_too_many() {
    let wrong = spoil(|text| {
        // Tiles are 32 inputs of 2 bytes, and the loop ends where a row does.
        let (end, one_more) = (2 * MANY_INPUTS, 2 * MANY_INPUTS + 64);
        let comparisons = text.lines().filter(|line| line.contains("setp.ne.b64"));
        let mut at_end = comparisons.filter(|line| line.ends_with(&format!(", {end};")));
        let line = at_end.next().expect("the loop compares with the end of a row");
        assert_eq!(at_end.next(), None, "nothing else does");
        text.replace(line, &line.replace(&format!(", {end};"), &format!(", {one_more};")))
    });
    assert_wrong_logits(&wrong);
}

/// The barrier, where `condition` of thread number `%spoilt` holds.
fn with_conditional_barrier(text: &str, condition: &str) -> String {
    let declared = text.replacen("\n{\n", "\n{\n.reg .pred %spoils;\n.reg .b32 %spoilt;\n", 1);
    let barrier = format!("mov.u32 %spoilt, %tid.x;\n{condition}\n@%spoils bar.sync 0;");
    replace(&declared, instruction(&declared, "bar.sync", 0), &barrier)
}

#[test]
fn a_barrier_under_a_divergent_predicate() {
    // Every other lane of a warp.
    let odd = "and.b32 %spoilt, %spoilt, 1;\nsetp.eq.b32 %spoils, %spoilt, 0;";
    let wrong = spoil(|text| with_conditional_barrier(text, odd));
    assert_fault(&wrong, &["divergent barrier: 16 of the 32 live lanes"], &["bar.sync"]);
    // Two of four warps.
    let wrong = spoil(|text| with_conditional_barrier(text, "setp.lt.u32 %spoils, %spoilt, 64;"));
    assert_fault(&wrong, &NOT_THERE, &["ld.shared"]);
}

#[test]
fn output_stores_that_overlap() {
    // A thread's second result in the place of its neighbour's first.
    let wrong = spoil(|text| {
        let place = instruction(text, "st.global.b32", 1);
        let (address, value) = text[place.clone()].split_once("+32], ").expect("a second store");
        let store = format!("{address}+4], {value}");
        replace(text, place, &store)
    });
    assert_fault(&wrong, &["race: writing 4 bytes of global memory"], &["st.global"]);
    // Blocks that write the same rows.
    let wrong = spoil(|text| {
        let place = instruction(text, "mov.u32", 2);
        let (register, number) = text[place.clone()].split_once(", ").expect("two operands");
        assert_eq!(number, "%ctaid.y;");
        let zero = format!("{register}, 0;");
        replace(text, place, &zero)
    });
    assert_fault(&wrong, &["race: writing 4 bytes of global memory"], &["st.global"]);
}
