//! The table of sizes: models that can be named without a checkpoint.
//!
//! The table serves `--model 7B --weights random`, plans, and names repositories on the hub. A
//! checkpoint's own configuration always decides: the table is never mixed into it.

use std::collections::BTreeMap;

use qwen2c_format::{Diagnostic, GenerationDefaults};
use qwen2c_graph::{ExpertConfig, Family, ModelConfig, Rope, RopeScaling};

use crate::config::table_fields;
use crate::description::{ModelDescription, TokenizerSource};

/// A model that has a name.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownModel {
    /// Lower-case name: `qwen2-0.5b-instruct`.
    pub name: String,
    /// Repository on the hub.
    pub repository: &'static str,
    /// Number of parameters.
    pub parameters: u64,
    /// Ids that end an answer.
    stop_ids: &'static [u32],
    config: ModelConfig,
}

/// One row of the table: a size with its base and its tuned release.
struct Row {
    generation: &'static str,
    size: &'static str,
    /// Hidden, layers, heads, kv heads, intermediate, vocabulary.
    shape: [u64; 6],
    tied: bool,
    /// Epsilons of the base and the tuned release.
    epsilon: [f32; 2],
    /// Largest contexts of the base and the tuned release.
    context: [u64; 2],
    /// Experts, experts per token, their width, the shared expert's width.
    experts: Option<[u64; 4]>,
    /// Repositories of the base and the tuned release.
    repositories: [&'static str; 2],
}

const QWEN2: &str = "qwen2";
const QWEN2_5: &str = "qwen2.5";
const QWEN1_5: &str = "qwen1.5";
const BOTH_1E6: [f32; 2] = [1e-6, 1e-6];
const BASE_1E5: [f32; 2] = [1e-5, 1e-6];
const LONG_BASE: [u64; 2] = [131_072, 32_768];
const SHORT: [u64; 2] = [32_768, 32_768];

/// A dense row.
const fn dense(
    generation: &'static str,
    size: &'static str,
    shape: [u64; 6],
    tied: bool,
    epsilon: [f32; 2],
    context: [u64; 2],
    repositories: [&'static str; 2],
) -> Row {
    Row { generation, size, shape, tied, epsilon, context, experts: None, repositories }
}

/// A row with experts; untied like all of them.
const fn sparse(
    generation: &'static str,
    size: &'static str,
    shape: [u64; 6],
    context: [u64; 2],
    experts: [u64; 4],
    repositories: [&'static str; 2],
) -> Row {
    Row {
        generation,
        size,
        shape,
        tied: false,
        epsilon: BOTH_1E6,
        context,
        experts: Some(experts),
        repositories,
    }
}

/// From the releases' `config.json`; Qwen2 comes first because a bare size names it.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    dense(QWEN2, "0.5b", [896, 24, 14, 2, 4864, 151_936], true, BOTH_1E6, LONG_BASE, ["Qwen/Qwen2-0.5B", "Qwen/Qwen2-0.5B-Instruct"]),
    dense(QWEN2, "1.5b", [1536, 28, 12, 2, 8960, 151_936], true, BOTH_1E6, LONG_BASE, ["Qwen/Qwen2-1.5B", "Qwen/Qwen2-1.5B-Instruct"]),
    dense(QWEN2, "7b", [3584, 28, 28, 4, 18_944, 152_064], false, BOTH_1E6, LONG_BASE, ["Qwen/Qwen2-7B", "Qwen/Qwen2-7B-Instruct"]),
    dense(QWEN2, "72b", [8192, 80, 64, 8, 29_568, 152_064], false, BASE_1E5, LONG_BASE, ["Qwen/Qwen2-72B", "Qwen/Qwen2-72B-Instruct"]),
    sparse(QWEN2, "57b-a14b", [3584, 28, 28, 4, 18_944, 151_936], LONG_BASE, [64, 8, 2560, 20_480], ["Qwen/Qwen2-57B-A14B", "Qwen/Qwen2-57B-A14B-Instruct"]),
    dense(QWEN2_5, "0.5b", [896, 24, 14, 2, 4864, 151_936], true, BOTH_1E6, SHORT, ["Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct"]),
    dense(QWEN2_5, "1.5b", [1536, 28, 12, 2, 8960, 151_936], true, BOTH_1E6, LONG_BASE, ["Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B-Instruct"]),
    dense(QWEN2_5, "3b", [2048, 36, 16, 2, 11_008, 151_936], true, BOTH_1E6, SHORT, ["Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B-Instruct"]),
    dense(QWEN2_5, "7b", [3584, 28, 28, 4, 18_944, 152_064], false, BOTH_1E6, LONG_BASE, ["Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"]),
    dense(QWEN2_5, "14b", [5120, 48, 40, 8, 13_824, 152_064], false, BASE_1E5, LONG_BASE, ["Qwen/Qwen2.5-14B", "Qwen/Qwen2.5-14B-Instruct"]),
    dense(QWEN2_5, "32b", [5120, 64, 40, 8, 27_648, 152_064], false, BASE_1E5, LONG_BASE, ["Qwen/Qwen2.5-32B", "Qwen/Qwen2.5-32B-Instruct"]),
    dense(QWEN2_5, "72b", [8192, 80, 64, 8, 29_568, 152_064], false, BASE_1E5, LONG_BASE, ["Qwen/Qwen2.5-72B", "Qwen/Qwen2.5-72B-Instruct"]),
    dense(QWEN1_5, "0.5b", [1024, 24, 16, 16, 2816, 151_936], true, BOTH_1E6, SHORT, ["Qwen/Qwen1.5-0.5B", "Qwen/Qwen1.5-0.5B-Chat"]),
    dense(QWEN1_5, "1.8b", [2048, 24, 16, 16, 5504, 151_936], false, BOTH_1E6, SHORT, ["Qwen/Qwen1.5-1.8B", "Qwen/Qwen1.5-1.8B-Chat"]),
    dense(QWEN1_5, "4b", [2560, 40, 20, 20, 6912, 151_936], false, BOTH_1E6, SHORT, ["Qwen/Qwen1.5-4B", "Qwen/Qwen1.5-4B-Chat"]),
    dense(QWEN1_5, "7b", [4096, 32, 32, 32, 11_008, 151_936], false, BOTH_1E6, SHORT, ["Qwen/Qwen1.5-7B", "Qwen/Qwen1.5-7B-Chat"]),
    dense(QWEN1_5, "14b", [5120, 40, 40, 40, 13_696, 152_064], false, BOTH_1E6, SHORT, ["Qwen/Qwen1.5-14B", "Qwen/Qwen1.5-14B-Chat"]),
    dense(QWEN1_5, "32b", [5120, 64, 40, 8, 27_392, 152_064], false, BOTH_1E6, SHORT, ["Qwen/Qwen1.5-32B", "Qwen/Qwen1.5-32B-Chat"]),
    dense(QWEN1_5, "72b", [8192, 80, 64, 64, 24_576, 152_064], false, BOTH_1E6, SHORT, ["Qwen/Qwen1.5-72B", "Qwen/Qwen1.5-72B-Chat"]),
    dense(QWEN1_5, "110b", [8192, 80, 64, 8, 49_152, 152_064], false, BOTH_1E6, SHORT, ["Qwen/Qwen1.5-110B", "Qwen/Qwen1.5-110B-Chat"]),
    sparse(QWEN1_5, "moe-a2.7b", [2048, 24, 16, 16, 5632, 151_936], SHORT, [60, 4, 1408, 5632], ["Qwen/Qwen1.5-MoE-A2.7B", "Qwen/Qwen1.5-MoE-A2.7B-Chat"]),
];

/// First-generation models: known by name, not yet served.
const FIRST_GENERATION: [&str; 4] = ["qwen-1.8b", "qwen-7b", "qwen-14b", "qwen-72b"];

impl Row {
    /// The base release, or the one tuned for conversation.
    fn model(&self, tuned: bool) -> KnownModel {
        let [hidden, layers, heads, kv_heads, intermediate, vocabulary] = self.shape;
        let release = usize::from(tuned);
        let suffix = match (tuned, self.generation) {
            (false, _) => "",
            (true, QWEN1_5) => "-chat",
            (true, _) => "-instruct",
        };
        let name = format!("{}-{}{suffix}", self.generation, self.size);
        let experts = self.experts.map(|[experts, experts_per_token, intermediate, shared_intermediate]| {
            ExpertConfig {
                experts,
                experts_per_token,
                intermediate,
                shared_intermediate,
                normalize_weights: false,
                sparse_step: 1,
                dense_layers: Vec::new(),
            }
        });
        let config = ModelConfig {
            name: name.clone(),
            family: if experts.is_some() { Family::Qwen2Moe } else { Family::Qwen2 },
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim: hidden / heads,
            intermediate,
            vocabulary,
            qkv_bias: true,
            tied_embedding: self.tied,
            epsilon: self.epsilon[release],
            rope: Rope { theta: 1e6, scaling: RopeScaling::None },
            max_context: self.context[release],
            experts,
        };
        KnownModel {
            name,
            repository: self.repositories[release],
            parameters: parameter_count(&config),
            stop_ids: if tuned { &[151_645, 151_643] } else { &[151_643] },
            config,
        }
    }
}

impl KnownModel {
    /// Number of routed experts; 0 for a dense model.
    pub fn experts(&self) -> u64 {
        self.config.experts.as_ref().map_or(0, |experts| experts.experts)
    }

    /// The table's description: no tokenizer, no chat template, greedy.
    pub fn describe(&self) -> ModelDescription {
        ModelDescription {
            config: self.config.clone(),
            fields: table_fields(&self.config),
            generation: GenerationDefaults {
                stop_ids: self.stop_ids.to_vec(),
                bos_id: None,
                temperature: 0.0,
                top_k: 0,
                top_p: 1.0,
                repetition_penalty: 1.0,
            },
            chat_template: None,
            template_tokens: Vec::new(),
            tokenizer: TokenizerSource::Absent,
            quantized_tensors: BTreeMap::new(),
        }
    }

    /// Checks that a checkpoint has this model's main sizes.
    pub(crate) fn check_belongs(&self, found: &ModelConfig) -> Result<(), Diagnostic> {
        let sizes = |config: &ModelConfig| (config.family, config.hidden, config.layers, config.heads);
        if sizes(&self.config) == sizes(found) {
            return Ok(());
        }
        let print = |config: &ModelConfig| {
            format!(
                "{}, hidden size {}, {} layers, {} heads",
                config.family.name(),
                config.hidden,
                config.layers,
                config.heads
            )
        };
        Err(Diagnostic::new(format!("the checkpoint is not `{}`", self.name))
            .at("`--weights`")
            .found(print(found))
            .needed(print(&self.config))
            .help("pass the checkpoint as `--model` to take its own configuration"))
    }
}

/// All models that can be named, Qwen2 first.
pub fn known_models() -> Vec<KnownModel> {
    ROWS.iter().flat_map(|row| [row.model(false), row.model(true)]).collect()
}

/// The model that `text` names; `None` where it names an existing path instead.
pub(crate) fn find_model(text: &str) -> Result<Option<KnownModel>, Diagnostic> {
    let wanted = text.to_lowercase();
    let wanted = wanted.strip_prefix("qwen/").unwrap_or(&wanted);
    let (stem, tuned) = match wanted.strip_suffix("-instruct").or_else(|| wanted.strip_suffix("-chat")) {
        Some(stem) => (stem, true),
        None => (wanted, false),
    };
    for row in ROWS {
        let full = stem.strip_prefix(row.generation).and_then(|rest| rest.strip_prefix('-'));
        if full == Some(row.size) || (row.generation == QWEN2 && stem == row.size) {
            return Ok(Some(row.model(tuned)));
        }
    }
    if std::path::Path::new(text).exists() {
        return Ok(None);
    }
    if FIRST_GENERATION.contains(&stem) {
        return Err(Diagnostic::new(format!("`{text}` is a first-generation Qwen, which is not served yet"))
            .at("`--model`")
            .cause("its dynamic NTK rotation and logn attention are not compiled by this version")
            .help(format!("the next generation has the same size: `qwen1.5{}`", &wanted["qwen".len()..])));
    }
    Err(unknown_model(text, stem))
}

/// Refuses what names the model and a checkpoint's directory too: a published model would be fetched and compiled
/// instead of somebody's own, or the other way round.
///
/// Other directories, and files, may have any name: a program that was built before, for example.
pub(crate) fn refuse_two_meanings(text: &str, model: &KnownModel) -> Result<(), Diagnostic> {
    if !std::path::Path::new(text).join("config.json").is_file() {
        return Ok(());
    }
    let other_name = if text == model.repository { &model.name } else { model.repository };
    Err(Diagnostic::new(format!("`{text}` is a published model and a checkpoint in the working directory"))
        .at("`--model`")
        .help(format!("`./{text}` names the directory, `{other_name}` the published model")))
}

/// Neither a name nor a path.
fn unknown_model(text: &str, stem: &str) -> Diagnostic {
    let diagnostic = Diagnostic::new(format!("unknown model `{text}`"))
        .at("`--model`")
        .needed("a name from `qwen2c models`, a directory with `config.json`, or a GGUF file");
    if text.contains('/') || text.ends_with(".gguf") || text.ends_with(".safetensors") {
        return diagnostic.cause("there is no such file or directory");
    }
    if stem.starts_with("qwen3") || stem.starts_with("qwq") {
        return diagnostic.cause("the compiler serves Qwen1.5, Qwen2 and Qwen2.5");
    }
    let nearest = ROWS
        .iter()
        .flat_map(|row| [format!("{}-{}", row.generation, row.size), row.size.to_owned()])
        .map(|name| (edit_distance(&name, stem), name))
        .min();
    match nearest {
        Some((distance, name)) if distance <= 2 => diagnostic.help(format!("did you mean `{name}`?")),
        _ => diagnostic,
    }
}

/// Insertions, deletions and replacements between two words (Levenshtein 1965).
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

/// Number of parameters of a model; a tied head counts once.
pub fn parameter_count(config: &ModelConfig) -> u64 {
    let mut count = 0;
    crate::expected::each_expected_tensor(config, &mut |_, shape| {
        count += shape.iter().product::<u64>();
        Ok::<(), std::convert::Infallible>(())
    })
    .unwrap_or_else(|never| match never {});
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(text: &str) -> String {
        find_model(text).unwrap().unwrap().name
    }

    #[test]
    fn names_are_found_whatever_their_case_and_suffix() {
        assert_eq!(name_of("0.5B"), "qwen2-0.5b");
        assert_eq!(name_of("7b-instruct"), "qwen2-7b-instruct");
        assert_eq!(name_of("57B-A14B-Chat"), "qwen2-57b-a14b-instruct");
        assert_eq!(name_of("Qwen2.5-7B"), "qwen2.5-7b");
        assert_eq!(name_of("Qwen/Qwen2.5-14B-Instruct"), "qwen2.5-14b-instruct");
        assert_eq!(name_of("qwen1.5-moe-a2.7b"), "qwen1.5-moe-a2.7b");
        assert_eq!(name_of("QWEN1.5-110B-CHAT"), "qwen1.5-110b-chat");
    }

    #[test]
    fn every_row_is_found_by_its_own_name() {
        for model in known_models() {
            assert_eq!(name_of(&model.name), model.name);
            assert_eq!(name_of(model.repository), model.name);
        }
    }

    #[test]
    fn parameters_match_the_published_counts() {
        let billions =
            |text: &str| (find_model(text).unwrap().unwrap().parameters as f64 / 1e6).round() / 1e3;
        assert_eq!(billions("0.5B"), 0.494);
        assert_eq!(billions("1.5B"), 1.544);
        assert_eq!(billions("qwen2.5-3b"), 3.086);
        assert_eq!(billions("7B"), 7.616);
        assert_eq!(billions("qwen2.5-14b"), 14.770);
        assert_eq!(billions("qwen2.5-32b"), 32.764);
        assert_eq!(billions("57B-A14B"), 57.409);
        assert_eq!(billions("72B"), 72.706);
        assert_eq!(billions("qwen1.5-moe-a2.7b"), 14.316);
    }

    #[test]
    fn head_dimensions_divide() {
        for model in known_models() {
            assert_eq!(model.config.head_dim * model.config.heads, model.config.hidden, "{}", model.name);
        }
    }

    fn check(text: &str, expected: &str) {
        let message = find_model(text).unwrap_err().to_string();
        assert_eq!(message, expected);
    }

    #[test]
    fn unknown_names_are_answered_with_a_reason() {
        let needed =
            "\n  needed: a name from `qwen2c models`, a directory with `config.json`, or a GGUF file";
        check(
            "qwen2-0.6b",
            &format!(
                "unknown model `qwen2-0.6b`\n  --> `--model`{needed}\n  help: did you mean `qwen2-0.5b`?"
            ),
        );
        check(
            "qwen3-8b",
            &format!(
                "unknown model `qwen3-8b`\n  --> `--model`{needed}\n  cause: the compiler serves Qwen1.5, Qwen2 and Qwen2.5"
            ),
        );
        check(
            "no/such/folder",
            &format!(
                "unknown model `no/such/folder`\n  --> `--model`{needed}\n  cause: there is no such file or directory"
            ),
        );
        check(
            "Qwen-7B-Chat",
            "`Qwen-7B-Chat` is a first-generation Qwen, which is not served yet\n  --> `--model`\n  cause: its dynamic NTK rotation and logn attention are not compiled by this version\n  help: the next generation has the same size: `qwen1.5-7b-chat`",
        );
    }

    #[test]
    fn edit_distance_counts_single_changes() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("7b", "7b"), 0);
    }
}
