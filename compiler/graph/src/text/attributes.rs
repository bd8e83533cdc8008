//! Attributes of operations: one list for printing and one constructor for parsing.

use qwen2c_request::{Operation, Real};

/// Value of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attribute {
    /// Printed as its name where true, else not at all.
    Flag(bool),
    /// Printed `name=3`.
    Integer(u64),
    /// Printed `name=0.125`.
    Real(Real),
    /// Printed like the former where it is there, else not at all.
    Optional(Option<Real>),
}

/// The attributes of an operation in the order in which they are printed.
pub(super) fn attributes(operation: &Operation) -> Vec<(&'static str, Attribute)> {
    use Attribute::{Flag, Integer};
    match *operation {
        Operation::RmsNorm { epsilon } | Operation::AddAndNorm { epsilon } => {
            vec![("epsilon", Attribute::Real(epsilon))]
        }
        Operation::Matmul { norm, bias, residual, silu_multiply } => vec![
            ("norm", Attribute::Optional(norm)),
            ("bias", Flag(bias)),
            ("residual", Flag(residual)),
            ("silu_multiply", Flag(silu_multiply)),
        ],
        Operation::Rotate { head_dim } => vec![("head_dim", Integer(head_dim))],
        Operation::Scale { factor } => vec![("factor", Attribute::Real(factor))],
        Operation::AttentionScores { heads, scale } => {
            vec![("heads", Integer(heads)), ("scale", Attribute::Real(scale))]
        }
        Operation::AttentionValues { heads, rounded } => {
            vec![("heads", Integer(heads)), ("rounded", Flag(rounded))]
        }
        Operation::Attention { heads, scale, rounded }
        | Operation::AttentionBlocks { heads, scale, rounded } => {
            vec![("heads", Integer(heads)), ("scale", Attribute::Real(scale)), ("rounded", Flag(rounded))]
        }
        Operation::MergeBlocks { heads } => vec![("heads", Integer(heads))],
        Operation::RotateAndWriteCache { heads, bias } => {
            vec![("heads", Integer(heads)), ("bias", Flag(bias))]
        }
        Operation::ProjectAndWriteCache { heads, bias, norm } => {
            vec![("norm", Attribute::Optional(norm)), ("heads", Integer(heads)), ("bias", Flag(bias))]
        }
        Operation::TopK { k, normalize } => vec![("k", Integer(k)), ("normalize", Flag(normalize))],
        Operation::GroupRows { experts } => vec![("experts", Integer(experts))],
        Operation::ExpertMatmul { grouped, silu_multiply } => {
            vec![("grouped", Flag(grouped)), ("silu_multiply", Flag(silu_multiply))]
        }
        Operation::CombineExperts { residual } => vec![("residual", Flag(residual))],
        Operation::Slice { first } => vec![("first", Integer(first))],
        Operation::Embed
        | Operation::GatherRows
        | Operation::QuantizeRows
        | Operation::AddBias
        | Operation::WriteCache
        | Operation::CausalSoftmax
        | Operation::Add
        | Operation::Silu
        | Operation::Sigmoid
        | Operation::Multiply
        | Operation::SiluMultiply
        | Operation::ScaleRows
        | Operation::Softmax => Vec::new(),
    }
}

/// Attributes as they were read: name, and the text behind `=` where there is one.
#[derive(Debug, Default)]
pub(super) struct Written<'a>(pub(super) Vec<(&'a str, Option<&'a str>)>);

impl<'a> Written<'a> {
    fn take(&mut self, name: &str) -> Option<Option<&'a str>> {
        let index = self.0.iter().position(|(written, _)| *written == name)?;
        Some(self.0.remove(index).1)
    }

    fn flag(&mut self, name: &str) -> Result<bool, String> {
        match self.take(name) {
            None => Ok(false),
            Some(None) => Ok(true),
            Some(Some(_)) => Err(format!("attribute `{name}` is a flag and takes no value")),
        }
    }

    fn text(&mut self, name: &str) -> Result<&'a str, String> {
        self.take(name).flatten().ok_or_else(|| format!("attribute `{name}=…` is missing"))
    }

    fn integer(&mut self, name: &str) -> Result<u64, String> {
        let text = self.text(name)?;
        text.parse().map_err(|_| format!("attribute `{name}` needs a whole number, found `{text}`"))
    }

    fn optional(&mut self, name: &str) -> Result<Option<Real>, String> {
        let is_written = self.0.iter().any(|(written, _)| *written == name);
        is_written.then(|| self.real(name)).transpose()
    }

    fn real(&mut self, name: &str) -> Result<Real, String> {
        let text = self.text(name)?;
        text.parse().map(Real).map_err(|_| format!("attribute `{name}` needs a number, found `{text}`"))
    }
}

/// The operation with this name and these attributes.
pub(super) fn operation(name: &str, mut written: Written<'_>) -> Result<Operation, String> {
    let operation = match name {
        "embed" => Operation::Embed,
        "gather_rows" => Operation::GatherRows,
        "rms_norm" => Operation::RmsNorm { epsilon: written.real("epsilon")? },
        "quantize_rows" => Operation::QuantizeRows,
        "matmul" => Operation::Matmul {
            norm: written.optional("norm")?,
            bias: written.flag("bias")?,
            residual: written.flag("residual")?,
            silu_multiply: written.flag("silu_multiply")?,
        },
        "add_bias" => Operation::AddBias,
        "rotate" => Operation::Rotate { head_dim: written.integer("head_dim")? },
        "write_cache" => Operation::WriteCache,
        "scale" => Operation::Scale { factor: written.real("factor")? },
        "attention_scores" => {
            Operation::AttentionScores { heads: written.integer("heads")?, scale: written.real("scale")? }
        }
        "causal_softmax" => Operation::CausalSoftmax,
        "attention_values" => {
            Operation::AttentionValues { heads: written.integer("heads")?, rounded: written.flag("rounded")? }
        }
        "attention" => Operation::Attention {
            heads: written.integer("heads")?,
            scale: written.real("scale")?,
            rounded: written.flag("rounded")?,
        },
        "attention_blocks" => Operation::AttentionBlocks {
            heads: written.integer("heads")?,
            scale: written.real("scale")?,
            rounded: written.flag("rounded")?,
        },
        "merge_blocks" => Operation::MergeBlocks { heads: written.integer("heads")? },
        "rotate_and_write_cache" => {
            Operation::RotateAndWriteCache { heads: written.integer("heads")?, bias: written.flag("bias")? }
        }
        "project_and_write_cache" => Operation::ProjectAndWriteCache {
            heads: written.integer("heads")?,
            bias: written.flag("bias")?,
            norm: written.optional("norm")?,
        },
        "add" => Operation::Add,
        "add_and_norm" => Operation::AddAndNorm { epsilon: written.real("epsilon")? },
        "slice" => Operation::Slice { first: written.integer("first")? },
        "silu" => Operation::Silu,
        "sigmoid" => Operation::Sigmoid,
        "multiply" => Operation::Multiply,
        "silu_multiply" => Operation::SiluMultiply,
        "scale_rows" => Operation::ScaleRows,
        "softmax" => Operation::Softmax,
        "top_k" => Operation::TopK { k: written.integer("k")?, normalize: written.flag("normalize")? },
        "group_rows" => Operation::GroupRows { experts: written.integer("experts")? },
        "expert_matmul" => Operation::ExpertMatmul {
            grouped: written.flag("grouped")?,
            silu_multiply: written.flag("silu_multiply")?,
        },
        "combine_experts" => Operation::CombineExperts { residual: written.flag("residual")? },
        _ => return Err(format!("no operation is called `{name}`")),
    };
    match written.0.first() {
        None => Ok(operation),
        Some((unknown, _)) => Err(format!("`{name}` has no attribute `{unknown}`, or it is given twice")),
    }
}
