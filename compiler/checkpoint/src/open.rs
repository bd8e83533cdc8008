//! From what the command line says to an opened model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qwen2c_format::Diagnostic;
use qwen2c_graph::TensorSource;

use crate::checkpoint::Checkpoint;
use crate::description::{ModelDescription, describe_checkpoint};
use crate::hub::{DownloadEvent, cached_checkpoint, locate_checkpoint};
use crate::models::{KnownModel, find_model, refuse_two_meanings};
use crate::random::RandomWeights;

/// What the command line says about the model.
#[derive(Clone, Copy, Debug)]
pub struct ModelRequest<'a> {
    /// `--model`: a name, a directory, or a GGUF file.
    pub model: &'a str,
    /// `--weights`: a directory, a file, or `random[:SEED]`.
    pub weights: Option<&'a str>,
    /// `--revision` of the hub's repository; `main` where absent.
    pub revision: Option<&'a str>,
}

impl ModelRequest<'_> {
    fn revision(&self) -> &str {
        self.revision.unwrap_or("main")
    }
}

/// What `--model` names.
#[derive(Clone, Debug)]
enum ResolvedModel {
    /// A row of the table of sizes.
    Known(Box<KnownModel>),
    /// A directory with `config.json`, or a GGUF file.
    Path(PathBuf),
}

/// A model ready to be compiled.
pub struct OpenedModel {
    /// Everything besides the tensors.
    pub description: ModelDescription,
    /// The tensors.
    pub tensors: Box<dyn TensorSource + Send + Sync>,
}

/// Finds out what `text`, the argument of `--model`, names.
///
/// # Errors
///
/// When it is neither a known name nor an existing path, with suggestions where a name is near; when it is a known
/// name and a checkpoint's directory.
fn resolve_model(text: &str) -> Result<ResolvedModel, Diagnostic> {
    let resolved = resolve_name(text)?;
    if let ResolvedModel::Known(model) = &resolved {
        refuse_two_meanings(text, model)?;
    }
    Ok(resolved)
}

/// Where the tensors are known to lie elsewhere, a directory of the model's name is no other meaning of it.
fn resolve_name(text: &str) -> Result<ResolvedModel, Diagnostic> {
    Ok(match find_model(text)? {
        Some(model) => ResolvedModel::Known(Box::new(model)),
        None => ResolvedModel::Path(PathBuf::from(text)),
    })
}

/// Describes a model without its tensors, and without the hub: what `plan` needs. A name is described by its
/// checkpoint where that lies in the local Hugging Face cache, because it is what would be compiled.
///
/// # Errors
///
/// When the name is unknown or the configuration cannot be served.
pub fn describe_model(request: &ModelRequest<'_>) -> Result<ModelDescription, Diagnostic> {
    if let Some(weights) = request.weights
        && parse_seed(weights)?.is_none()
    {
        return describe_checkpoint(Path::new(weights));
    }
    let resolved = resolve_model(request.model)?;
    let mut description = match &resolved {
        ResolvedModel::Known(model) => match checkpoint_at_hand(model, request) {
            Some(folder) => named(describe_checkpoint(&folder)?, &resolved)?,
            None => model.describe(),
        },
        ResolvedModel::Path(path) => describe_checkpoint(path)?,
    };
    // Random numbers replace whatever the checkpoint holds.
    if request.weights.is_some() {
        description.quantized_tensors.clear();
    }
    Ok(description)
}

/// Opens a model: configuration, tokenizer, tensors. A name is looked up in the local Hugging Face cache,
/// then on the hub, unless `weights` says where the checkpoint lies.
///
/// # Errors
///
/// When something is missing, cannot be read, or cannot be served.
pub fn open_model(
    request: &ModelRequest<'_>,
    progress: &mut dyn FnMut(DownloadEvent<'_>),
) -> Result<OpenedModel, Diagnostic> {
    if let Some(weights) = request.weights {
        if let Some(seed) = parse_seed(weights)? {
            let resolved = resolve_model(request.model)?;
            let description = ModelDescription {
                quantized_tensors: BTreeMap::new(),
                ..match &resolved {
                    ResolvedModel::Known(model) => model.describe(),
                    ResolvedModel::Path(path) => describe_checkpoint(path)?,
                }
            };
            return Ok(OpenedModel { description, tensors: Box::new(RandomWeights::new(seed)) });
        }
        let resolved = resolve_name(request.model)?;
        return opened(Checkpoint::open(Path::new(weights))?, &resolved);
    }
    let resolved = resolve_model(request.model)?;
    let checkpoint = match &resolved {
        ResolvedModel::Known(model) => {
            let folder = locate_checkpoint(model.repository, request.revision(), progress)?;
            Checkpoint::open(&folder)?
        }
        ResolvedModel::Path(path) => Checkpoint::open(path)?,
    };
    opened(checkpoint, &resolved)
}

/// Opens a model like [`open_model`], but for one whose checkpoint would have to be fetched from the hub.
///
/// # Errors
///
/// Those of [`open_model`].
pub fn open_model_at_hand(request: &ModelRequest<'_>) -> Result<Option<OpenedModel>, Diagnostic> {
    if request.weights.is_none()
        && let ResolvedModel::Known(model) = resolve_model(request.model)?
        && checkpoint_at_hand(&model, request).is_none()
    {
        return Ok(None);
    }
    open_model(request, &mut |_| {}).map(Some)
}

/// Where the checkpoint of a name lies, if it is what would be compiled and nothing has to be fetched for it.
fn checkpoint_at_hand(model: &KnownModel, request: &ModelRequest<'_>) -> Option<PathBuf> {
    if request.weights.is_some() {
        return None;
    }
    cached_checkpoint(model.repository, request.revision())
}

fn opened(checkpoint: Checkpoint, resolved: &ResolvedModel) -> Result<OpenedModel, Diagnostic> {
    let description = named(checkpoint.description.clone(), resolved)?;
    Ok(OpenedModel { description, tensors: Box::new(checkpoint) })
}

/// Gives a checkpoint's description the name it was asked for by.
fn named(
    mut description: ModelDescription,
    resolved: &ResolvedModel,
) -> Result<ModelDescription, Diagnostic> {
    if let ResolvedModel::Known(model) = resolved {
        model.check_belongs(&description.config)?;
        description.config.name = model.name.clone();
        if let Some(field) = description.fields.iter_mut().find(|field| field.name == "name") {
            field.value = model.name.clone();
            field.origin = "`--model`".to_owned();
        }
    }
    Ok(description)
}

/// The seed of `random[:SEED]`; `None` where `weights` is a path.
fn parse_seed(weights: &str) -> Result<Option<u64>, Diagnostic> {
    if weights == "random" {
        return Ok(Some(0));
    }
    let Some(seed) = weights.strip_prefix("random:") else {
        return Ok(None);
    };
    seed.parse().map(Some).map_err(|_| {
        Diagnostic::new("the seed of the random weights is not a number")
            .at("`--weights`")
            .found(format!("`{weights}`"))
            .needed("`random` or `random:SEED` with a seed from 0 to 18446744073709551615")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>(model: &'a str, weights: Option<&'a str>) -> ModelRequest<'a> {
        ModelRequest { model, weights, revision: None }
    }

    #[test]
    fn random_weights_need_no_checkpoint() {
        let opened = open_model(&request("57B-A14B", Some("random:7")), &mut |_| {}).unwrap();
        assert_eq!(opened.description.config.name, "qwen2-57b-a14b");
        assert!(opened.description.fields.iter().all(|field| field.origin == "table of sizes"));
        let mut from_model = [0.0; 4];
        let mut from_seed = [0.0; 4];
        opened.tensors.read_rows("lm_head.weight", 4, 9, &mut from_model).unwrap();
        RandomWeights::new(7).read_rows("lm_head.weight", 4, 9, &mut from_seed).unwrap();
        assert_eq!(from_model, from_seed);
    }

    #[test]
    fn a_folder_with_a_configuration_alone_serves_plans_and_random_weights() {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 5, "rope_theta": 1e4, "max_position_embeddings": 16}"#;
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        let model = folder.path().to_str().unwrap();
        assert_eq!(describe_model(&request(model, None)).unwrap().config.hidden, 8);
        assert!(open_model(&request(model, Some("random")), &mut |_| {}).is_ok());
        let Err(error) = open_model(&request(model, None), &mut |_| {}) else {
            panic!("there are no tensors");
        };
        assert!(error.to_string().starts_with("the directory holds no tensors"), "{error}");
        let Err(error) = open_model(&request("0.5B", Some(model)), &mut |_| {}) else {
            panic!("the folder holds another model");
        };
        assert!(error.to_string().starts_with("the directory holds no tensors"), "{error}");
    }

    #[test]
    fn seeds_are_numbers() {
        assert_eq!(parse_seed("random"), Ok(Some(0)));
        assert_eq!(parse_seed("random:18446744073709551615"), Ok(Some(u64::MAX)));
        assert_eq!(parse_seed("random-folder"), Ok(None));
        let message = parse_seed("random:-1").unwrap_err().to_string();
        assert_eq!(
            message,
            "the seed of the random weights is not a number\n  --> `--weights`\n  found: `random:-1`\n  needed: `random` or `random:SEED` with a seed from 0 to 18446744073709551615"
        );
    }

    #[test]
    fn a_name_with_another_model_s_weights_is_refused() {
        let small = match resolve_model("0.5B").unwrap() {
            ResolvedModel::Known(model) => model,
            ResolvedModel::Path(path) => panic!("{}", path.display()),
        };
        assert_eq!(small.check_belongs(&small.describe().config), Ok(()));
        let large = describe_model(&request("7B", Some("random"))).unwrap();
        let message = small.check_belongs(&large.config).unwrap_err().to_string();
        assert!(message.contains("found: qwen2, hidden size 3584, 28 layers, 28 heads"), "{message}");
    }
}
