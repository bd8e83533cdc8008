use super::comparison::{Comparison, Machine};
use super::entrant::{Description, Generation, KernelTotals, Peak, PhaseMeasurement, Profile, Turn};
use super::workload::{Phase, Workload};
use super::{page, table};
use crate::arguments::CompareArguments;

fn description(name: &str, quant: &str, is_peer: bool) -> Description {
    Description {
        name: name.to_owned(),
        path: format!("programs/{name}"),
        model: "qwen2-0.5b".to_owned(),
        target: "x86-64-v4+avx512vnni".to_owned(),
        quant: quant.to_owned(),
        weight_bytes: 400 << 20,
        is_peer,
    }
}

/// A program's turn: each kernel does so many billions of operations on so many millions of bytes.
fn phase(phase: Phase, tokens_per_s: f64, read: f64, kernels: &[(&str, f64, u64, u64)]) -> PhaseMeasurement {
    let peak = Peak {
        read_bytes_per_s: read * 1e9,
        operations_per_s: 150e9,
        bf16_operations_per_s: Some(300e9),
        int8_operations_per_s: None,
    };
    let kernels = kernels.iter().map(|&(name, us, gigaoperations, megabytes)| KernelTotals {
        name: name.to_owned(),
        calls: 24,
        us,
        bytes: megabytes * 1_000_000,
        operations: gigaoperations * 1_000_000_000,
        share_of_peak: 0.5,
    });
    let kernels = kernels.collect();
    PhaseMeasurement { phase, tokens_per_s, profile: Some(Profile { peak, kernels, generation: None }) }
}

fn fused(prompt: f64, generation: f64, read: f64) -> Turn {
    let prompt_kernels =
        [("matmul_8x8_silu_multiply_rows256", 400e3, 80, 400), ("attention_2x4_rows256", 20e3, 2, 90)];
    let generation_kernels = [("matmul_8x8_silu_multiply_rows1", 20e3, 2, 800)];
    let phases = vec![
        phase(Phase::Prompt, prompt, read, &prompt_kernels),
        phase(Phase::Generation, generation, read, &generation_kernels),
    ];
    Turn { threads: 2, phases }
}

fn unfused(prompt: f64, generation: f64) -> Turn {
    let prompt_kernels = [("matmul_8x8_rows256", 500e3, 80, 400), ("attention_2x4_rows256", 40e3, 2, 90)];
    let phases = vec![
        phase(Phase::Prompt, prompt, 30.0, &prompt_kernels),
        phase(Phase::Generation, generation, 30.0, &[("matmul_8x8_rows1", 40e3, 2, 800)]),
    ];
    Turn { threads: 2, phases }
}

fn peer(prompt: f64, generation: f64) -> Turn {
    let phases = [(Phase::Prompt, prompt), (Phase::Generation, generation)];
    let phases = phases.map(|(phase, tokens_per_s)| PhaseMeasurement { phase, tokens_per_s, profile: None });
    Turn { threads: 2, phases: phases.into() }
}

fn workload() -> Workload {
    Workload { prompt: 512, generate: 40, depth: 512, turns: 2, threads: None }
}

fn comparison() -> Comparison {
    let machine = Machine { processor: "a <fast> processor".to_owned() };
    let described = vec![
        description("fused", "int8", false),
        description("unfused", "int8", false),
        description("llama.cpp m-Q8_0.gguf", "Q8_0", true),
    ];
    let turns = [
        vec![fused(1000.0, 50.0, 28.0), unfused(800.0, 25.0), peer(500.0, 40.0)],
        vec![fused(1200.0, 40.0, 32.0), unfused(600.0, 20.0), peer(540.0, 42.0)],
    ];
    Comparison::new(machine, workload(), described, &turns)
}

#[test]
fn the_table_has_speeds_with_spread_and_kernels_side_by_side() {
    insta::assert_snapshot!(table::lines(&comparison()).join("\n"));
}

#[test]
fn what_was_read_around_the_tokens_goes_before_the_peak() {
    let turn = |share_of_read| {
        let mut turn = fused(100.0, 50.0, 28.0);
        let profile = turn.phases[1].profile.as_mut().expect("a program has one");
        profile.generation = Some(Generation { share_of_read });
        vec![turn]
    };
    let turns = [turn(0.75), turn(0.5), turn(1.0)];
    let machine = Machine { processor: String::new() };
    let described = vec![description("fused", "int8", false)];
    let comparison = Comparison::new(machine, workload(), described, &turns);
    let (_, result) = comparison.results(Phase::Generation).next().expect("the first entrant");
    assert_eq!(result.share_of_read, Some(0.75));
}

#[test]
fn shares_are_what_the_speed_needs_of_the_limits() {
    let comparison = comparison();
    let (_, result) = comparison.results(Phase::Generation).next().expect("the first entrant");
    // 20 MB a token: 50 tokens/s of 28 GB/s, and 40 of 32.
    let expected = f64::midpoint(50.0 * 0.02 / 28.0, 40.0 * 0.02 / 32.0);
    assert!((result.share_of_read.expect("known") - expected).abs() < 1e-12);
    // 50 million operations a token, of 300 GFLOP/s.
    let expected = 45.0 * 50e6 / 300e9;
    assert!((result.share_of_matrix.expect("known") - expected).abs() < 1e-12);
    let (_, peer) = comparison.results(Phase::Generation).last().expect("the peer");
    assert_eq!((peer.share_of_read, peer.share_of_matrix), (None, None));
}

#[test]
fn ratios_compare_runs_of_the_same_turn() {
    let comparison = comparison();
    let (_, unfused) = comparison.results(Phase::Prompt).nth(1).expect("the second entrant");
    assert_eq!((unfused.ratio.min, unfused.ratio.max), (0.5, 0.8));
    let attention = comparison.kernels(Phase::Prompt).find(|row| row.name.starts_with("attention"));
    assert_eq!(attention.expect("both have it").ratio(1), Some(0.5));
}

#[test]
fn json_keeps_every_run() {
    let value = serde_json::to_value(comparison()).expect("figures");
    assert_eq!(value["entrants"][0]["name"], "fused");
    assert_eq!(value["entrants"][0]["results"][0]["runs"], serde_json::json!([1000.0, 1200.0]));
    assert_eq!(value["entrants"][2]["results"][1]["tokens_per_s"]["median"], 41.0);
    assert_eq!(value["kernels"][0]["phase"], "prompt");
    assert!(value["kernels"][0]["entrants"][2].is_null(), "peers tell of no kernels");
}

#[test]
fn the_page_needs_nothing_beside_it() {
    let page = page::page(&comparison());
    for wanted in
        ["<!DOCTYPE html>", "prefers-color-scheme: dark", "a &lt;fast&gt; processor", "<svg viewBox"]
    {
        assert!(page.contains(wanted), "`{wanted}` is not in the page");
    }
    for unwanted in ["<script", "http:", "https:", "url(", "@import", "<fast>", "NaN", "inf"] {
        assert!(!page.contains(unwanted), "`{unwanted}` is in the page");
    }
    for tag in ["section", "figure", "svg", "table", "details", "div", "ul"] {
        let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "<{tag}>");
    }
}

#[test]
fn the_page_without_its_drawings_reads_like_this() {
    let page = page::page(&comparison());
    let body = page.split_once("<body>").expect("a body").1;
    let mut skeleton = String::new();
    let mut rest = body;
    while let Some((before, drawing)) = rest.split_once("<svg ") {
        skeleton.push_str(before);
        skeleton.push_str("<svg/>");
        rest = drawing.split_once("</svg>").expect("closed").1;
    }
    skeleton.push_str(rest);
    insta::assert_snapshot!(skeleton);
}

#[test]
fn the_drawings_are_these() {
    let page = page::page(&comparison());
    let drawings: Vec<&str> =
        page.split("<svg ").skip(1).filter_map(|rest| Some(rest.split_once("</svg>")?.0)).collect();
    // The fine lines of the roofline's grid say nothing that its coarse lines do not.
    let lines = drawings.iter().flat_map(|drawing| drawing.lines().chain([""]));
    let lines: Vec<&str> = lines.filter(|line| !line.contains(r#"class="fine""#)).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

fn arguments(prompt: Option<u64>, generate: Option<u64>, depth: Option<u64>) -> CompareArguments {
    CompareArguments {
        programs: Vec::new(),
        html: None,
        json: false,
        llama_bench: Vec::new(),
        prompt,
        generate,
        depth,
        turns: 3,
        threads: None,
    }
}

#[test]
fn defaults_shrink_to_the_context_and_wishes_do_not() {
    let sizes = |workload: Workload| (workload.prompt, workload.generate, workload.depth);
    let new = |prompt, generate, depth, context| {
        Workload::new(&arguments(prompt, generate, depth), context).map_err(|failure| failure.to_string())
    };
    assert_eq!(new(None, None, None, Some(8192)).map(sizes), Ok((512, 64, 512)));
    assert_eq!(new(None, None, None, None).map(sizes), Ok((512, 64, 512)));
    assert_eq!(new(None, None, None, Some(100)).map(sizes), Ok((100, 50, 50)));
    assert!(new(Some(101), None, None, Some(100)).is_err_and(|message| message.contains("at most 100")));
    assert!(new(None, Some(60), None, Some(100)).is_err_and(|message| message.contains("110 positions")));
    assert!(new(None, None, Some(100), Some(100)).is_err_and(|message| message.contains("101 positions")));
    assert!(new(Some(0), Some(0), None, None).is_err_and(|message| message.contains("nothing is left")));
    // Without a generation its context is not needed.
    assert!(new(Some(10), Some(0), Some(500), Some(100)).is_ok());
}

#[test]
fn tests_are_named_as_programs_name_them() {
    assert_eq!(workload().test_name(Phase::Prompt), "pp512");
    assert_eq!(workload().test_name(Phase::Generation), "tg40@d512");
    assert_eq!(workload().flags(Phase::Generation), ["-p", "0", "-n", "40", "-d", "512"]);
    assert_eq!(workload().flags(Phase::Prompt), ["-p", "512", "-n", "0", "-d", "0"]);
}
