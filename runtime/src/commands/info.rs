//! `info`: what the program is made of.

use std::fmt::Write as _;

use qwen2c_format::{DeviceImage, Manifest, ModelSummary};
use serde::Serialize;

use super::{OpenProgram, print_json};
use crate::Program;
use crate::arguments::Arguments;
use crate::console::{Console, Failure};
use crate::cuda::image_name;
use crate::program::bytes_text;

/// The libraries that are linked into every program, their licences, and the text of the one that most
/// have.
const LICENSES: &str = concat!(include_str!("../licenses.txt"), include_str!("../../../LICENSE"));

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    target: &'a str,
    quant: &'a str,
    dtype: &'a str,
    context: u64,
    slots: u64,
    weight_bytes: u64,
    kv_cache_bytes: u64,
    arena_bytes: u64,
    program_bytes: u64,
    build: &'a str,
    architecture: &'a ModelSummary,
    required_features: &'a [String],
    has_tokenizer: bool,
    has_chat_template: bool,
    /// Code for a GPU, where the program runs on one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    images: Vec<Image>,
    /// None where nobody asked for the check; it ends the command where it fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified_weights: Option<usize>,
}

/// A form of the kernels that a GPU may be given.
#[derive(Serialize)]
struct Image {
    architecture: String,
    kind: &'static str,
    bytes: usize,
}

/// Prints facts; with `--verify` reads all weights first.
pub(super) fn info(
    arguments: &Arguments,
    open: OpenProgram<'_>,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    if arguments.has("--licenses") {
        return console.print(LICENSES);
    }
    let program = open()?;
    let mut verified_weights = None;
    if arguments.has("--verify") {
        let mut count = 0;
        program.verify_weights(|_| count += 1)?;
        verified_weights = Some(count);
    }
    let manifest = program.manifest();
    if arguments.has("--json") {
        return print_json(&report(&program, manifest, verified_weights), console);
    }
    console.print(&table(&program, manifest, verified_weights))
}

fn report<'a>(program: &Program, manifest: &'a Manifest, verified_weights: Option<usize>) -> Report<'a> {
    Report {
        model: &manifest.model.name,
        target: &manifest.target,
        quant: &manifest.quant,
        dtype: &manifest.dtype,
        context: manifest.context,
        slots: manifest.slots,
        weight_bytes: manifest.weight_bytes,
        kv_cache_bytes: manifest.kv_cache_bytes,
        arena_bytes: manifest.arena_bytes,
        program_bytes: program.program_bytes(),
        build: &manifest.build,
        architecture: &manifest.model,
        required_features: &manifest.required_features,
        has_tokenizer: program.tokenizer().is_some(),
        has_chat_template: manifest.chat_template.is_some(),
        images: program.device_code().images.iter().map(image).collect(),
        verified_weights,
    }
}

fn image(image: &DeviceImage) -> Image {
    let architecture = format!("sm_{}", image.architecture);
    Image { architecture, kind: image.kind.name(), bytes: image.bytes.len() }
}

fn table(program: &Program, manifest: &Manifest, verified_weights: Option<usize>) -> String {
    let ModelSummary { name, architecture, parameters, layers, hidden, heads, kv_heads, head_dim, .. } =
        &manifest.model;
    let mut rows = vec![
        ("model", format!("{name} ({architecture}, {parameters} parameters)")),
        ("shape", format!("{layers} layers of {hidden}, {heads} heads over {kv_heads}, {head_dim} each")),
        ("target", manifest.target.clone()),
        ("types", format!("activations {}, quantization {}", manifest.dtype, manifest.quant)),
        ("context", format!("{} positions", manifest.context)),
        ("weights", bytes_text(manifest.weight_bytes)),
        ("cache", bytes_text(manifest.kv_cache_bytes)),
        ("arena", format!("{}, with the cache", bytes_text(manifest.arena_bytes))),
        ("program", bytes_text(program.program_bytes())),
        ("build", manifest.build.clone()),
    ];
    if manifest.model.experts > 0 {
        let (experts, chosen) = (manifest.model.experts, manifest.model.experts_per_token);
        rows.insert(2, ("experts", format!("{chosen} of {experts} for each token")));
    }
    for image in &program.device_code().images {
        rows.push(("code", format!("{}, {}", image_name(image), bytes_text(image.bytes.len() as u64))));
    }
    if program.tokenizer().is_none() {
        rows.push(("tokenizer", "none: token ids only".to_owned()));
    }
    if let Some(count) = verified_weights {
        rows.push(("verified", format!("{count} weights have the hashes recorded at build")));
    }
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:<10} {value}");
        text
    })
}
