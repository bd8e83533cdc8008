//! What `plan` promises, against what `build` writes.

use std::path::Path;
use std::process::Command;

use qwen2c_tests::{Build, Golden, compiler, copy_directory, run, write_tensors};
use serde_json::Value;

fn plan(model: &Path, quant: &str) -> Value {
    let mut command = Command::new(compiler());
    command.args(["plan", "--target", "native", "--dtype", "f32", "--bandwidth", "50", "--json"]);
    run(command.args(["--quant", quant, "--model"]).arg(model)).success().json()
}

fn written_bytes(model: &Path, quant: &str) -> u64 {
    let program = Build::new(model).with(["--quant", quant]).finish();
    program.run(["info", "--json"]).success().json()["weight_bytes"].as_u64().expect("a number")
}

/// Puts every down projection on 16 values in each group, none of them negative, so that it wants minima.
fn put_on_grid(folder: &Path) {
    write_tensors(&folder.join("model.safetensors"), |tensors| {
        let of_down = tensors.iter_mut().filter(|(name, _)| name.ends_with("down_proj.weight"));
        for (_, (dtype, shape, bytes)) in of_down {
            *dtype = safetensors::Dtype::F32;
            let elements: usize = shape.iter().product();
            let value = |index: usize| (index * 7 % 16) as f32 * 0.125;
            *bytes = (0..elements).flat_map(|index| value(index).to_le_bytes()).collect();
        }
    });
}

#[test]
fn planned_weights_are_those_that_a_build_writes_with_and_without_minima() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    copy_directory(&Golden::load("dense-gqa").model(), folder.path());
    let without = plan(folder.path(), "int4");
    assert_eq!(without["memory"]["weight_bytes"].as_u64(), Some(written_bytes(folder.path(), "int4")));
    assert!(without["most_weight_bytes"].is_null(), "{without}");
    put_on_grid(folder.path());
    let with = plan(folder.path(), "int4");
    assert_eq!(with["memory"]["weight_bytes"].as_u64(), Some(written_bytes(folder.path(), "int4")));
    let bytes = |plan: &Value, name: &str| plan[name].as_u64().expect("a number");
    let weights = |plan: &Value| bytes(&plan["memory"], "weight_bytes");
    assert!(weights(&with) > weights(&without), "the grid wants minima: {with}");
    // What needs no sample has no range either.
    assert!(plan(folder.path(), "none")["most_weight_bytes"].is_null());

    std::fs::remove_file(folder.path().join("model.safetensors")).expect("it is there");
    let unknown = plan(folder.path(), "int4");
    assert_eq!(weights(&unknown), weights(&without));
    assert!(bytes(&unknown, "most_weight_bytes") >= weights(&with), "{unknown}");
    let mut command = Command::new(compiler());
    command.args(["plan", "--target", "native", "--bandwidth", "50", "--quant", "int4", "--model", "0.5B"]);
    let text = run(&mut command).success().text();
    assert!(text.contains("if their groups want minima"), "{text}");
}
