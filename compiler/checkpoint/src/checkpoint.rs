//! A checkpoint: its description, and its tensors checked against it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use qwen2c_format::Diagnostic;
use qwen2c_graph::{ModelConfig, SourceError, TensorSource};
use qwen2c_request::{Quantization, QuantizedRows};

use crate::description::{ModelDescription, describe_folder, open_gguf, read_folder_config};
use crate::expected::each_expected_tensor;
use crate::gguf::{canonical_tensors, describe_gguf, insert_experts};
use crate::safetensors::open_safetensors;
use crate::tensors::{StoredTensor, TensorTable};

/// An opened checkpoint. Every tensor that the model needs is there with the right shape; their values
/// are read on demand.
#[derive(Debug)]
pub struct Checkpoint {
    /// Everything besides the tensors.
    pub description: ModelDescription,
    table: TensorTable,
}

impl Checkpoint {
    /// Opens a directory with `config.json` and safetensors, or a GGUF file.
    ///
    /// # Errors
    ///
    /// When a file is missing or damaged, when a tensor is missing, has another shape or has no place in
    /// the model, or when the model cannot be served.
    pub fn open(path: &Path) -> Result<Self, Diagnostic> {
        let checkpoint = if path.is_dir() { Self::open_folder(path)? } else { Self::open_gguf(path)? };
        checkpoint.check_tensors()?;
        Ok(checkpoint)
    }

    fn open_folder(folder: &Path) -> Result<Self, Diagnostic> {
        // The configuration comes first: without it "no tensors" would be the wrong complaint.
        read_folder_config(folder, None)?;
        let mut table = open_safetensors(folder)?;
        let head_stored = table.tensors.contains_key("lm_head.weight");
        let description = describe_folder(folder, Some(head_stored))?;
        split_merged_experts(&mut table, &description.config)?;
        Ok(Self { description, table })
    }

    fn open_gguf(path: &Path) -> Result<Self, Diagnostic> {
        let gguf = open_gguf(path)?;
        let description = describe_gguf(&gguf)?;
        let tensors = canonical_tensors(&gguf, &description.config)?;
        Ok(Self { description, table: TensorTable { files: vec![gguf.file], tensors } })
    }

    /// Checks that every tensor of the model is there with the right shape, and that there are no others.
    ///
    /// # Errors
    ///
    /// Names the first tensor that is wrong, found against needed.
    pub fn check_tensors(&self) -> Result<(), Diagnostic> {
        let mut known: BTreeSet<&str> = BTreeSet::new();
        each_expected_tensor(&self.description.config, &mut |name, needed| {
            let Some((name, tensor)) = self.table.tensors.get_key_value(name) else {
                return Err(missing_tensor(name, needed));
            };
            known.insert(name);
            if same_shape(tensor, needed) { Ok(()) } else { Err(self.wrong_shape(name, tensor, needed)) }
        })?;
        for (name, tensor) in &self.table.tensors {
            if !known.contains(name.as_str()) && !is_harmless(name, &self.description.config) {
                return Err(Diagnostic::new(format!("tensor `{name}` has no place in the model"))
                    .at(self.table.place_of(tensor))
                    .cause("a tensor that is ignored would change the text without an error")
                    .help("is this the configuration that belongs to the checkpoint?"));
            }
        }
        Ok(())
    }

    /// Bytes that the tensors take in the checkpoint.
    pub fn stored_bytes(&self) -> u64 {
        self.table.tensors.values().map(StoredTensor::stored_bytes).sum()
    }

    fn wrong_shape(&self, name: &str, tensor: &StoredTensor, needed: &[u64]) -> Diagnostic {
        Diagnostic::new(format!("tensor `{name}` has the wrong shape"))
            .at(self.table.place_of(tensor))
            .found(format!("{:?}", tensor.shape))
            .needed(format!("{needed:?}"))
            .help("is this the configuration that belongs to the checkpoint?")
    }
}

impl TensorSource for Checkpoint {
    fn read_rows(
        &self,
        tensor: &str,
        columns: u64,
        first_row: u64,
        out: &mut [f32],
    ) -> Result<(), SourceError> {
        self.table.read_rows(tensor, columns, first_row, out)
    }

    fn quantization(&self, tensor: &str) -> Option<Quantization> {
        self.table.quantization(tensor)
    }

    fn read_groups(
        &self,
        tensor: &str,
        columns: u64,
        first_row: u64,
        out: &mut QuantizedRows<'_>,
    ) -> Result<(), SourceError> {
        self.table.read_groups(tensor, columns, first_row, out)
    }
}

fn missing_tensor(name: &str, needed: &[u64]) -> Diagnostic {
    let diagnostic = Diagnostic::new(format!("tensor `{name}` is missing from the checkpoint"))
        .needed(format!("{needed:?}"));
    if name == "lm_head.weight" {
        return diagnostic.help("if the head is the embedding, `tie_word_embeddings` must be `true`");
    }
    diagnostic.help("is this the configuration that belongs to the checkpoint?")
}

/// Whether a tensor can be read as `needed`. GGUF drops leading extents of 1.
fn same_shape(tensor: &StoredTensor, needed: &[u64]) -> bool {
    let significant = |shape: &[u64]| {
        let leading = shape[..shape.len().saturating_sub(1)].iter().take_while(|&&size| size == 1).count();
        shape[leading..].to_vec()
    };
    significant(&tensor.shape) == significant(needed)
}

/// Tensors that repeat what the configuration or another tensor says.
fn is_harmless(name: &str, config: &ModelConfig) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (name == "lm_head.weight" && config.tied_embedding)
}

/// Presents the merged experts that transformers 5 may write, `[experts, 2 · intermediate, hidden]` gate
/// and up, `[experts, hidden, intermediate]` down, as one tensor for each expert and projection.
fn split_merged_experts(table: &mut TensorTable, config: &ModelConfig) -> Result<(), Diagnostic> {
    let mut split = BTreeMap::new();
    for (name, tensor) in std::mem::take(&mut table.tensors) {
        let merged = name.split_once(".mlp.experts.").and_then(|(prefix, projection)| match projection {
            "gate_up_proj" => Some((prefix, ["gate_proj", "up_proj"].as_slice())),
            "down_proj" => Some((prefix, ["down_proj"].as_slice())),
            _ => None,
        });
        match merged {
            Some((prefix, projections)) => {
                insert_experts(&mut split, &name, prefix, &tensor, config, projections)
                    .map_err(|diagnostic| diagnostic.at(table.place_of(&tensor)))?;
            }
            None => {
                split.insert(name, tensor);
            }
        }
    }
    table.tensors = split;
    Ok(())
}
