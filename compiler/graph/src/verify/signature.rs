//! The signature of every operation, as a table, and the matching of operands against it.
//!
//! A pattern such as `T[rows, heads·head_dim]` is an element type and the dimensions:
//!
//! * element: a type's name; `T`, the activation type; `W`, `T` or f32 (router weights and most queries are
//!   kept in f32);
//!   `X`, `T` or integers with scales, `Q`, these alone; `E`, any type. A letter means the same type in the
//!   whole operation.
//! * dimension: a number; `rows`, either variable dimension, the same in the whole operation;
//!   `all_rows` and `logit_rows`, that one; a name, any number, the same in the whole operation; `2n`,
//!   twice a number; `a·b`, a product of which at most one factor is unknown so far.
//! * `…` alone: any shape that starts with rows, the same in the whole operation; `…, n`: any
//!   dimensions before the last.

mod bound;
#[cfg(test)]
mod tests;

use bound::Bound;
use qwen2c_request::{CacheKind, Element, Operation, Real, TensorType};

use crate::text::{tensor_type, weight_type};
use crate::{Graph, Op, ValueId};

/// What an operation takes and gives, and the numbers that its attributes fix.
struct Signature {
    inputs: Vec<&'static str>,
    weights: Vec<&'static str>,
    caches: Vec<CacheKind>,
    outputs: Vec<&'static str>,
    attributes: Vec<(&'static str, u64)>,
}

/// `items` where `present`, else nothing: the optional operands of a signature.
fn when(present: bool, items: &[&'static str]) -> Vec<&'static str> {
    if present { items.to_vec() } else { Vec::new() }
}

fn signature<const I: usize, const O: usize>(
    inputs: [&'static str; I],
    outputs: [&'static str; O],
) -> Signature {
    Signature {
        inputs: inputs.to_vec(),
        weights: Vec::new(),
        caches: Vec::new(),
        outputs: outputs.to_vec(),
        attributes: Vec::new(),
    }
}

impl Signature {
    fn more_inputs(mut self, inputs: Vec<&'static str>) -> Self {
        self.inputs.extend(inputs);
        self
    }

    fn weights<const N: usize>(mut self, weights: [&'static str; N]) -> Self {
        self.weights.extend(weights);
        self
    }

    fn more_weights(mut self, weights: Vec<&'static str>) -> Self {
        self.weights.extend(weights);
        self
    }

    fn caches<const N: usize>(mut self, caches: [CacheKind; N]) -> Self {
        self.caches = caches.to_vec();
        self
    }

    fn with(mut self, name: &'static str, value: u64) -> Self {
        self.attributes.push((name, value));
        self
    }
}

const POSITION: &str = "i32[rows]";
const SLOT: &str = "i32[rows]";

/// The table. Names bound by a cache: `kv_heads`, `context`, `head_dim`.
fn signature_of(graph: &Graph, op: &Op) -> Signature {
    use CacheKind::{Key, Value};
    match op.operation {
        Operation::Embed => {
            signature(["i32[rows]"], ["f32[rows, hidden]"]).weights(["T[vocabulary, hidden]"])
        }
        Operation::GatherRows => signature(["E[all_rows, n]", "i32[logit_rows]"], ["E[logit_rows, n]"]),
        Operation::RmsNorm { .. } => signature(["f32[rows, n]"], ["T[rows, n]"]).weights(["f32[n]"]),
        Operation::QuantizeRows => signature(["T[…]"], ["Q[…]"]),
        Operation::Matmul { norm, silu_multiply: true, .. } => {
            signature([if norm.is_some() { "f32[rows, k]" } else { "X[rows, k]" }], ["T[rows, n]"])
                .weights([if norm.is_some() { "T[2n, k]" } else { "W[2n, k]" }])
                .more_weights(when(norm.is_some(), &["f32[k]"]))
        }
        Operation::Matmul { norm, bias, residual, silu_multiply: false } => {
            signature([if norm.is_some() { "f32[rows, k]" } else { "X[rows, k]" }], ["f32[rows, n]"])
                .more_inputs(when(residual, &["f32[rows, n]"]))
                .weights([if norm.is_some() { "T[n, k]" } else { "W[n, k]" }])
                .more_weights(when(bias, &["f32[n]"]))
                .more_weights(when(norm.is_some(), &["f32[k]"]))
        }
        Operation::AddBias => signature(["f32[rows, n]"], ["f32[rows, n]"]).weights(["f32[n]"]),
        Operation::Rotate { head_dim } => {
            signature(["f32[rows, heads·head_dim]", POSITION], ["W[rows, heads·head_dim]"])
                .weights(["f32[context, head_dim]"])
                .with("head_dim", head_dim)
        }
        Operation::WriteCache => {
            let kind = op.caches.first().map_or(Key, |id| graph.cache(*id).ty.kind);
            signature(["f32[rows, kv_heads·head_dim]", POSITION, SLOT], []).caches([kind])
        }
        Operation::Scale { .. } => signature(["W[rows, n]"], ["f32[rows, n]"]),
        Operation::AttentionScores { heads, .. } => {
            signature(["W[rows, heads·head_dim]", POSITION, SLOT], ["f32[rows, heads, context]"])
                .caches([Key])
                .with("heads", heads)
        }
        Operation::CausalSoftmax => {
            signature(["f32[rows, heads, context]", POSITION], ["f32[rows, heads, context]"])
        }
        Operation::AttentionValues { heads, .. } => {
            signature(["f32[rows, heads, context]", POSITION, SLOT], ["T[rows, heads·head_dim]"])
                .caches([Value])
                .with("heads", heads)
        }
        Operation::Attention { heads, .. } => {
            signature(["W[rows, heads·head_dim]", POSITION, SLOT], ["T[rows, heads·head_dim]"])
                .caches([Key, Value])
                .with("heads", heads)
        }
        Operation::AttentionBlocks { heads, .. } => signature(
            ["W[rows, heads·head_dim]", POSITION, SLOT],
            ["f32[rows, blocks, heads·head_dim]", "f32[rows, blocks, 2heads]"],
        )
        .caches([Key, Value])
        .with("heads", heads)
        .with("blocks", op.caches.first().map_or(0, |id| graph.cache(*id).ty.blocks())),
        Operation::MergeBlocks { heads } => signature(
            ["f32[rows, blocks, heads·head_dim]", "f32[rows, blocks, 2heads]", POSITION],
            ["T[rows, heads·head_dim]"],
        )
        .with("heads", heads),
        Operation::RotateAndWriteCache { heads, bias } => {
            signature(["f32[rows, all_heads·head_dim]", POSITION, SLOT], ["W[rows, heads·head_dim]"])
                .weights(["f32[context, head_dim]"])
                .more_weights(when(bias, &["f32[all_heads·head_dim]"]))
                .caches([Key, Value])
                .with("heads", heads)
                .with("all_heads", all_heads(graph, op, heads))
        }
        Operation::ProjectAndWriteCache { heads, bias, norm } => {
            let x = if norm.is_some() { "f32[rows, k]" } else { "T[rows, k]" };
            signature([x, POSITION, SLOT], ["f32[rows, heads·head_dim]"])
                .weights(["T[all_heads·head_dim, k]", "f32[context, head_dim]"])
                .more_weights(when(bias, &["f32[all_heads·head_dim]"]))
                .more_weights(when(norm.is_some(), &["f32[k]"]))
                .caches([Key, Value])
                .with("heads", heads)
                .with("all_heads", all_heads(graph, op, heads))
        }
        Operation::Add => signature(["f32[rows, n]", "f32[rows, n]"], ["f32[rows, n]"]),
        Operation::AddAndNorm { .. } => {
            signature(["f32[rows, n]", "f32[rows, n]"], ["f32[rows, n]", "T[rows, n]"]).weights(["f32[n]"])
        }
        Operation::Slice { .. } => signature(["E[…, n]"], ["E[…, m]"]),
        Operation::Silu | Operation::Sigmoid => signature(["f32[…]"], ["f32[…]"]),
        Operation::Multiply | Operation::SiluMultiply => signature(["f32[…]", "f32[…]"], ["T[…]"]),
        Operation::ScaleRows => signature(["f32[rows, n]", "f32[rows, 1]"], ["f32[rows, n]"]),
        Operation::Softmax => signature(["f32[rows, experts]"], ["f32[rows, experts]"]),
        Operation::TopK { k, .. } => {
            signature(["f32[rows, experts]"], ["f32[rows, k]", "i32[rows, k]"]).with("k", k)
        }
        Operation::GroupRows { .. } => signature(["i32[rows, k]"], ["i32[table]"]),
        Operation::ExpertMatmul { grouped, silu_multiply } => {
            let rank = op.inputs.first().map_or(0, |id| graph.value(*id).ty.dimensions.len());
            let x = if rank == 3 { "X[rows, k, n]" } else { "X[rows, n]" };
            let y = if silu_multiply { "T[rows, k, m]" } else { "f32[rows, k, m]" };
            let weight = if silu_multiply { "W[experts, 2m, n]" } else { "W[experts, m, n]" };
            signature([x, "i32[rows, k]"], [y]).more_inputs(when(grouped, &["i32[table]"])).weights([weight])
        }
        Operation::CombineExperts { residual } => {
            signature(["f32[rows, k, n]", "f32[rows, k]"], ["f32[rows, n]"])
                .more_inputs(when(residual, &["f32[rows, n]"]))
        }
    }
}

/// Heads of queries, keys and values.
fn all_heads(graph: &Graph, op: &Op, heads: u64) -> u64 {
    let kv_heads = op.caches.first().map_or(0, |id| graph.cache(*id).ty.kv_heads);
    heads.saturating_add(kv_heads.saturating_mul(2))
}

/// Rules about attributes and numbers that no pattern says. `number` is the value of a name.
fn relations(operation: &Operation, number: &dyn Fn(&str) -> u64) -> Result<(), String> {
    let needs = |holds: bool, rule: String| if holds { Ok(()) } else { Err(rule) };
    let name = operation.name();
    let heads_are_shared = |heads: u64| {
        let kv_heads = number("kv_heads");
        needs(
            heads > 0 && heads.is_multiple_of(kv_heads.max(1)),
            format!("`{name}` has {heads} heads, needs a multiple of the cache's {kv_heads} kv heads"),
        )
    };
    let head_is_even = |head_dim: u64| {
        needs(
            head_dim > 0 && head_dim.is_multiple_of(2),
            format!("`{name}` needs an even head_dim, found {head_dim}"),
        )
    };
    let epsilon_is_sound = |epsilon: Real| {
        needs(
            epsilon.0.is_finite() && epsilon.0 >= 0.0,
            format!("`{name}` needs a finite epsilon of 0 or more, found {epsilon}"),
        )
    };
    operation.norm().map_or(Ok(()), epsilon_is_sound)?;
    match *operation {
        Operation::RmsNorm { epsilon } | Operation::AddAndNorm { epsilon } => epsilon_is_sound(epsilon),
        Operation::Matmul { bias, residual, silu_multiply, .. } => needs(
            !(silu_multiply && (bias || residual)),
            "`matmul` with silu_multiply has neither bias nor residual".to_owned(),
        ),
        Operation::Rotate { head_dim } => head_is_even(head_dim),
        Operation::Scale { factor } => {
            needs(factor.0.is_finite(), format!("`{name}` needs a finite factor, found {factor}"))
        }
        Operation::AttentionScores { heads, scale }
        | Operation::Attention { heads, scale, .. }
        | Operation::AttentionBlocks { heads, scale, .. } => {
            needs(scale.0.is_finite(), format!("`{name}` needs a finite scale, found {scale}"))?;
            heads_are_shared(heads)
        }
        Operation::AttentionValues { heads, .. } => heads_are_shared(heads),
        Operation::RotateAndWriteCache { heads, .. } | Operation::ProjectAndWriteCache { heads, .. } => {
            head_is_even(number("head_dim"))?;
            heads_are_shared(heads)
        }
        Operation::Slice { first } => {
            let (n, m) = (number("n"), number("m"));
            needs(
                first.checked_add(m).is_some_and(|end| end <= n),
                format!("`{name}` takes {m} elements from {first} on, its input has {n}"),
            )
        }
        Operation::TopK { k, .. } => {
            let experts = number("experts");
            needs((1..=experts).contains(&k), format!("`{name}` chooses {k} of {experts} experts"))
        }
        Operation::GroupRows { experts } => {
            let (table, k) = (number("table"), number("k"));
            let entries = experts.checked_mul(2).and_then(|head| table.checked_sub(2)?.checked_sub(head));
            needs(
                experts > 0 && entries.is_some_and(|entries| entries > 0 && entries.is_multiple_of(k.max(1))),
                format!("`{name}` needs a table of 2 + 2·{experts} + max_rows·{k} integers, found {table}"),
            )
        }
        _ => Ok(()),
    }
}

/// Checks an operation whose operands exist; returns what `T` is.
pub(super) fn check(graph: &Graph, op: &Op) -> Result<Option<Element>, String> {
    let name = op.operation.name();
    let signature = signature_of(graph, op);
    for (what, found, needed) in [
        ("input", op.inputs.len(), signature.inputs.len()),
        ("weight", op.weights.len(), signature.weights.len()),
        ("cache", op.caches.len(), signature.caches.len()),
        ("result", op.outputs.len(), signature.outputs.len()),
    ] {
        if found != needed {
            let plural = if needed == 1 { "" } else { "s" };
            return Err(format!("`{name}` needs {needed} {what}{plural}, has {found}"));
        }
    }
    let mut bound = Bound::default();
    bound.numbers.extend(signature.attributes.iter().copied());
    for (id, kind) in op.caches.iter().zip(&signature.caches) {
        let cache = graph.cache(*id);
        bound.cache(&cache.ty, *kind).map_err(|found| format!("cache `#{}` {found}", cache.name))?;
    }
    let misfit = |sigil: char, operand: &str, ty: String, pattern: &str, bound: &Bound| {
        format!("`{sigil}{operand}` is `{ty}`, but `{name}` needs `{pattern}`{}", bound.explain(pattern))
    };
    let value_fits = |id: ValueId, pattern: &'static str, bound: &mut Bound| {
        let value = graph.value(id);
        if bound.matches(&value.ty, pattern) {
            return Ok(());
        }
        Err(misfit('%', &value.name, tensor_type(&value.ty), pattern, bound))
    };
    for (id, pattern) in op.inputs.iter().zip(&signature.inputs) {
        value_fits(*id, pattern, &mut bound)?;
    }
    for (id, pattern) in op.weights.iter().zip(&signature.weights) {
        let weight = graph.weight(*id);
        let ty = TensorType { dimensions: weight.ty.dimensions.clone(), element: weight.ty.element };
        if !bound.matches(&ty, pattern) {
            return Err(misfit('@', &weight.name, weight_type(&weight.ty), pattern, &bound));
        }
    }
    for (id, pattern) in op.outputs.iter().zip(&signature.outputs) {
        value_fits(*id, pattern, &mut bound)?;
    }
    integers_match_weight(graph, op)?;
    relations(&op.operation, &|name| bound.numbers.get(name).copied().unwrap_or(0))?;
    Ok(bound.elements.get("T").copied())
}

/// Integers are multiplied with weights that have the same groups.
fn integers_match_weight(graph: &Graph, op: &Op) -> Result<(), String> {
    let (Operation::Matmul { .. } | Operation::ExpertMatmul { .. }, [x, ..], [weight, ..]) =
        (&op.operation, &op.inputs[..], &op.weights[..])
    else {
        return Ok(());
    };
    let (x, weight) = (graph.value(*x), graph.weight(*weight));
    let Some(group) = x.ty.element.integer_group() else { return Ok(()) };
    if weight.ty.quantization.is_some_and(|quantization| quantization.group == group) {
        return Ok(());
    }
    Err(format!(
        "`%{}` is integers in groups of {group}, but `@{}` is `{}`",
        x.name,
        weight.name,
        weight_type(&weight.ty)
    ))
}
