//! Everything a checkpoint says besides its tensors.

use std::collections::BTreeMap;
use std::path::Path;

use qwen2c_format::{Diagnostic, GenerationDefaults};
use qwen2c_graph::ModelConfig;
use qwen2c_request::Quantization;
use serde_json::{Map, Value};

use crate::chat_template::{read_chat_template, read_template_tokens};
use crate::config::{ConfigField, parse_config_json};
use crate::files::{read_file_if_present, read_json_if_present};
use crate::generation::generation_defaults;
use crate::gguf::{GgufFile, describe_gguf};
use crate::tokenizer::GgufTokenizer;

/// A model's description: what `build` needs to know before it reads the first tensor.
#[derive(Clone, Debug)]
pub struct ModelDescription {
    /// Every number the graph depends on.
    pub config: ModelConfig,
    /// The same with the origin of each value, for the `config` stage.
    pub fields: Vec<ConfigField>,
    /// Sampling defaults.
    pub generation: GenerationDefaults,
    /// The checkpoint's chat template (Jinja).
    pub chat_template: Option<String>,
    /// Variables of the template: `bos_token`, `eos_token` and their texts.
    pub template_tokens: Vec<(String, String)>,
    /// The tokenizer as it lies in the checkpoint.
    pub tokenizer: TokenizerSource,
    /// The tensors that the checkpoint holds quantized already, by canonical name.
    pub quantized_tensors: BTreeMap<String, Quantization>,
}

/// The tokenizer as it lies in the checkpoint.
#[derive(Clone, Debug)]
pub enum TokenizerSource {
    /// There is none: the program speaks token ids only.
    Absent,
    /// Contents of `tokenizer.json`.
    Json(Vec<u8>),
    /// The metadata of a GGUF file.
    Gguf(GgufTokenizer),
}

/// Describes the checkpoint at `path`, a directory or a GGUF file, without opening its tensors. A
/// directory need not hold any.
///
/// # Errors
///
/// When a file is missing, damaged, or says something that cannot be served.
pub fn describe_checkpoint(path: &Path) -> Result<ModelDescription, Diagnostic> {
    if path.is_dir() {
        return describe_folder(path, None);
    }
    describe_gguf(&open_gguf(path)?)
}

/// Opens a path that is not a directory.
pub(crate) fn open_gguf(path: &Path) -> Result<GgufFile, Diagnostic> {
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        return Err(Diagnostic::new("a safetensors checkpoint is named by its directory")
            .at(path.display().to_string())
            .help("pass the directory that also holds `config.json`"));
    }
    GgufFile::open(path)
}

/// `config.json` of a directory.
pub(crate) struct FolderConfig {
    object: Map<String, Value>,
    config: ModelConfig,
    fields: Vec<ConfigField>,
}

/// Reads `config.json` of a directory; `head_stored` says whether its tensors include `lm_head.weight`.
pub(crate) fn read_folder_config(
    folder: &Path,
    head_stored: Option<bool>,
) -> Result<FolderConfig, Diagnostic> {
    let path = folder.join("config.json");
    let Some(object) = read_json_if_present(&path)? else {
        return Err(Diagnostic::new("the directory holds no `config.json`")
            .at(folder.display().to_string())
            .needed("a checkpoint of HF transformers: `config.json` and `model.safetensors`")
            .help("a GGUF file is named itself, not its directory"));
    };
    let (config, fields) = parse_config_json(&object, head_stored, &path.display().to_string())?;
    Ok(FolderConfig { object, config, fields })
}

/// Describes a directory; `head_stored` as in [`read_folder_config`].
pub(crate) fn describe_folder(
    folder: &Path,
    head_stored: Option<bool>,
) -> Result<ModelDescription, Diagnostic> {
    let FolderConfig { object, config, fields } = read_folder_config(folder, head_stored)?;
    let tokenizer_config = read_json_if_present(&folder.join("tokenizer_config.json"))?;
    let generation_config = read_json_if_present(&folder.join("generation_config.json"))?;
    let adds_bos = tokenizer_config
        .as_ref()
        .and_then(|config| config.get("add_bos_token"))
        .is_some_and(|value| value.as_bool() == Some(true));
    let tokenizer = match read_file_if_present(&folder.join("tokenizer.json"))? {
        Some(bytes) => TokenizerSource::Json(bytes),
        None => TokenizerSource::Absent,
    };
    Ok(ModelDescription {
        generation: generation_defaults(generation_config.as_ref(), &object, config.vocabulary, adds_bos)?,
        chat_template: read_chat_template(folder, tokenizer_config.as_ref())?,
        template_tokens: read_template_tokens(tokenizer_config.as_ref()),
        config,
        fields,
        tokenizer,
        quantized_tensors: BTreeMap::new(),
    })
}
