//! From what the command line says to an opened model.

use std::path::{Path, PathBuf};

use qwen2c_format::Diagnostic;
use qwen2c_graph::TensorSource;

use crate::checkpoint::Checkpoint;
use crate::description::{ModelDescription, describe_checkpoint};
use crate::hub::{DownloadEvent, locate_checkpoint};
use crate::models::{KnownModel, find_model};
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

/// What `--model` names.
#[derive(Clone, Debug)]
pub enum ResolvedModel {
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
/// When it is neither a known name nor an existing path; with suggestions where a name is near.
pub fn resolve_model(text: &str) -> Result<ResolvedModel, Diagnostic> {
    match find_model(text) {
        Ok(Some(model)) => Ok(ResolvedModel::Known(Box::new(model))),
        Ok(None) => Ok(ResolvedModel::Path(PathBuf::from(text))),
        Err(diagnostic) => Err(diagnostic),
    }
}

/// Describes a model without its tensors, and without the hub: what `plan` needs.
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
    match resolve_model(request.model)? {
        ResolvedModel::Known(model) => Ok(model.describe()),
        ResolvedModel::Path(path) => describe_checkpoint(&path),
    }
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
    let resolved = resolve_model(request.model)?;
    if let Some(weights) = request.weights {
        if let Some(seed) = parse_seed(weights)? {
            let description = match &resolved {
                ResolvedModel::Known(model) => model.describe(),
                ResolvedModel::Path(path) => describe_checkpoint(path)?,
            };
            return Ok(OpenedModel { description, tensors: Box::new(RandomWeights::new(seed)) });
        }
        let checkpoint = Checkpoint::open(Path::new(weights))?;
        return named(checkpoint, &resolved);
    }
    let checkpoint = match &resolved {
        ResolvedModel::Known(model) => {
            let folder = locate_checkpoint(model.repository, request.revision.unwrap_or("main"), progress)?;
            Checkpoint::open(&folder)?
        }
        ResolvedModel::Path(path) => Checkpoint::open(path)?,
    };
    named(checkpoint, &resolved)
}

/// Gives a checkpoint the name it was asked for by.
fn named(checkpoint: Checkpoint, resolved: &ResolvedModel) -> Result<OpenedModel, Diagnostic> {
    let mut description = checkpoint.description.clone();
    if let ResolvedModel::Known(model) = resolved {
        model.check_belongs(&description.config)?;
        description.config.name = model.name.clone();
        if let Some(field) = description.fields.iter_mut().find(|field| field.name == "name") {
            field.value = model.name.clone();
            field.origin = "`--model`".to_owned();
        }
    }
    Ok(OpenedModel { description, tensors: Box::new(checkpoint) })
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
