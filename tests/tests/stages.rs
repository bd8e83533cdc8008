//! The text of every stage, for a tiny dense model and a tiny mixture of experts.
//!
//! Full text down to the plan, and the manifest; below the plan a kernel of each kind as MLIR and the
//! list of kernels, because LLVM's text changes with every tuning of a kernel.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use qwen2c_tests::{Build, Golden, Program, goldens_directory};
use serde_json::Value;
use tempfile::TempDir;

const STAGES: &str = "config,graph,fused,scheduled,plan,mlir,llvm,asm,ptx,manifest";

/// A build that wrote the text of every stage.
struct Staged {
    program: Program,
}

impl Staged {
    fn build(name: &str, quant: &str) -> Self {
        Self::build_for("x86-64-v3", name, quant)
    }

    fn build_for(target: &str, name: &str, quant: &str) -> Self {
        let build = Build::new(Golden::load(name).model());
        let options = ["--target", target, "--dtype", "bf16", "--context", "64", "--emit", STAGES];
        Self { program: build.with(options).with(["--quant", quant]).finish() }
    }

    /// The default folder: beside the program.
    fn folder(&self) -> PathBuf {
        self.program.directory().join("program.emit")
    }

    /// The text of a stage that is one file.
    fn text(&self, stage: &str) -> String {
        let file =
            files(&self.folder()).into_iter().find(|file| file.file_stem().is_some_and(|stem| stem == stage));
        fs::read_to_string(file.unwrap_or_else(|| panic!("no text of `{stage}`"))).expect("UTF-8")
    }

    /// The files of a stage that is a folder, one for each kernel.
    fn kernels(&self, stage: &str) -> Vec<PathBuf> {
        files(&self.folder().join(stage))
    }

    /// Names of the kernels that a stage has files for.
    fn kernel_names(&self, stage: &str) -> BTreeSet<String> {
        let stem = |file: &PathBuf| file.file_stem().expect("a name").to_string_lossy().into_owned();
        self.kernels(stage).iter().map(stem).collect()
    }
}

/// The files in a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.expect("readable").path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

/// The manifest, the self-test's long lists replaced by their lengths.
fn manifest_text(staged: &Staged) -> String {
    let mut manifest: Value = serde_json::from_str(&staged.text("manifest")).expect("JSON");
    for list in ["columns", "logits"] {
        let list = &mut manifest["self_test"][list];
        *list = list.as_array().map(|values| format!("{} numbers", values.len())).into();
    }
    serde_json::to_string_pretty(&manifest).expect("JSON")
}

fn assert_stages(name: &str, mlir_of: &[&str]) {
    let staged = Staged::build(name, "none");
    for stage in ["config", "graph", "fused", "fused.prefill", "scheduled", "plan"] {
        insta::assert_snapshot!(format!("{name}.{stage}"), staged.text(stage));
    }
    insta::assert_snapshot!(format!("{name}.manifest"), manifest_text(&staged));

    let names = staged.kernel_names("mlir");
    assert!(names.len() > 5, "{names:?}");
    assert_eq!(names, staged.kernel_names("llvm"));
    assert_eq!(names, staged.kernel_names("asm"));
    insta::assert_snapshot!(format!("{name}.kernels"), names.iter().cloned().collect::<Vec<_>>().join("\n"));
    for kind in mlir_of {
        let files = staged.kernels("mlir");
        let file = files
            .iter()
            .find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(kind)));
        let text = fs::read_to_string(file.unwrap_or_else(|| panic!("no kernel `{kind}` among {names:?}")))
            .expect("UTF-8");
        insta::assert_snapshot!(format!("{name}.mlir.{kind}"), text);
    }
    for file in staged.kernels("asm") {
        assert_calls_nothing_outside(&file);
    }
}

/// Kernels call no libc: a vectorized `exp` would call 16 of them, and tokens would vary with the machine.
#[track_caller]
fn assert_calls_nothing_outside(file: &Path) {
    let text = fs::read_to_string(file).expect("UTF-8");
    let labels: BTreeSet<&str> =
        text.lines().filter_map(|line| line.split(':').next()).map(|label| label.trim_matches('"')).collect();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if !words.next().is_some_and(|mnemonic| mnemonic.starts_with("call")) {
            continue;
        }
        let callee = words.next().unwrap_or_default().trim_end_matches("@PLT").trim_matches('"');
        // An indirect call goes through a register.
        assert!(callee.starts_with('*') || labels.contains(callee), "{} calls `{callee}`", file.display());
    }
}

#[test]
fn a_dense_model_through_every_stage() {
    assert_stages("dense-gqa", &["rms_norm", "attention"]);
}

#[test]
fn a_mixture_of_experts_through_every_stage() {
    assert_stages("moe-sparse-step", &["top_k", "combine_experts"]);
}

/// What quantization changes: types in the graph, roundings of activations, layouts, the product.
#[test]
fn a_quantized_model_through_the_stages_that_know_it() {
    let staged = Staged::build("dense-gqa", "int4");
    for stage in ["fused", "scheduled"] {
        insta::assert_snapshot!(format!("dense-gqa-int4.{stage}"), staged.text(stage));
    }
    let kernels = staged.kernels("mlir");
    let quantize = kernels.iter().find(|file| file.to_string_lossy().contains("quantize_rows"));
    let text = fs::read_to_string(quantize.expect("a kernel that quantizes")).expect("UTF-8");
    insta::assert_snapshot!("dense-gqa-int4.mlir.quantize_rows", text);
}

/// Which kernels of a program for `x86-64-amx` use the matrix unit, and what they ask of it: each names every
/// instruction once.
#[test]
fn products_use_what_processors_with_a_matrix_unit_have() {
    for name in ["dense-gqa", "moe-sparse-step"] {
        let staged = Staged::build_for("x86-64-amx", name, "int8");
        let mut text = String::new();
        for file in staged.kernels("asm") {
            let asm = fs::read_to_string(&file).expect("UTF-8");
            let mnemonics = asm.lines().filter_map(|line| line.split_whitespace().next());
            let of_unit: BTreeSet<&str> = mnemonics
                .filter(|mnemonic| {
                    ["tile", "tdp", "ldtile", "prefetch"].iter().any(|start| mnemonic.starts_with(start))
                })
                .collect();
            if !of_unit.is_empty() {
                let kernel = file.file_stem().expect("a name").to_string_lossy().into_owned();
                text.push_str(&format!("{kernel}: {}\n", of_unit.into_iter().collect::<Vec<_>>().join(" ")));
            }
            assert_calls_nothing_outside(&file);
        }
        insta::assert_snapshot!(format!("{name}-int8.matrix_unit"), text);
    }
}

/// What a CUDA device changes: no roundings of activations, layouts, launches instead of tiles, and PTX.
#[test]
fn a_model_for_a_device_through_the_stages_that_know_it() {
    for (name, quant) in [("dense-gqa", "int4"), ("moe-sparse-step", "none")] {
        let staged = Staged::build_for("sm_80", name, quant);
        for stage in ["fused", "scheduled", "plan"] {
            insta::assert_snapshot!(format!("{name}-sm_80.{stage}"), staged.text(stage));
        }
        let names = staged.kernel_names("mlir");
        assert_eq!(names, staged.kernel_names("llvm"));
        assert_eq!(names, staged.kernel_names("ptx"));
        for file in staged.kernels("ptx") {
            let text = fs::read_to_string(&file).expect("UTF-8");
            assert!(text.contains(".target sm_80") && text.contains(".visible .entry"), "{}", file.display());
            assert!(!text.contains("call"), "{} calls something", file.display());
        }
    }
    let staged = Staged::build_for("sm_80", "dense-gqa", "none");
    let kernels = staged.kernels("mlir");
    let norm = kernels.iter().find(|file| file.to_string_lossy().contains("rms_norm"));
    let text = fs::read_to_string(norm.expect("a kernel that normalizes")).expect("UTF-8");
    insta::assert_snapshot!("dense-gqa-sm_80.mlir.rms_norm", text);
}

/// All layers of a model share their kernels: the time to compile them does not grow with the layers.
#[test]
fn more_layers_need_no_more_kernels() {
    let kernels_of = |layers: u64| {
        let scratch = TempDir::with_prefix("qwen2c-test-").expect("a temporary directory");
        let path = goldens_directory().join("dense-gqa/config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON");
        config["num_hidden_layers"] = layers.into();
        fs::write(scratch.path().join("config.json"), config.to_string()).expect("writable");
        let build = Build::new(scratch.path()).with(["--weights", "random:7", "--emit", "asm"]);
        Staged { program: build.finish() }.kernel_names("asm")
    };
    let few = kernels_of(3);
    assert_eq!(few, kernels_of(9));
}
