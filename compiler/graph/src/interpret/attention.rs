//! Rotary positions, caches and attention.

use qwen2c_request::{CACHE_BLOCK_POSITIONS, Element};

use super::matmul::{add_to_rows, dot, product};
use super::operands::Operands;
use super::{InterpretError, Results, Tensor};

/// Rotates each head of a row in place; `table` is the position's `head_dim / 2` cosines, then sines.
fn rotate_row(row: &mut [f32], table: &[f32]) {
    let half = table.len() / 2;
    let (cosines, sines) = table.split_at(half);
    for head in row.chunks_exact_mut(table.len()) {
        let (first, second) = head.split_at_mut(half);
        for index in 0..half {
            let (x, y) = (first[index], second[index]);
            first[index] = x * cosines[index] - y * sines[index];
            second[index] = y * cosines[index] + x * sines[index];
        }
    }
}

/// The row of the rotary table, weight `table`, for each row of the step, from the position in input 1.
/// Rows are computed when they are needed: the table of a long context is larger than many models' layers.
fn rotary_rows(operands: &Operands<'_>, table: usize) -> Result<Vec<f32>, InterpretError> {
    let ty = &operands.weight(table).ty;
    let positions = operands.indices(1, ty.rows())?;
    let mut rows = vec![0.0; positions.len() * ty.columns() as usize];
    for (position, row) in positions.into_iter().zip(rows.chunks_exact_mut(ty.columns() as usize)) {
        operands.weight_row(table, position as u64, row)?;
    }
    Ok(rows)
}

/// [`Operation::Rotate`](qwen2c_request::Operation::Rotate)
pub(super) fn rotate(operands: &mut Operands<'_>, head_dim: usize) -> Results {
    let mut out = operands.floats(0).to_vec();
    let tables = rotary_rows(operands, 0)?;
    let width = operands.input_width(0);
    for (row, table) in out.chunks_exact_mut(width).zip(tables.chunks_exact(head_dim)) {
        rotate_row(row, table);
    }
    Ok(vec![Tensor::Floats(out)])
}

/// Slot and position of each row, within what cache `0` holds.
fn places(operands: &mut Operands<'_>) -> Result<Vec<(usize, usize)>, InterpretError> {
    let ty = operands.cache(0).ty();
    let (slots, context) = (ty.slots, ty.context);
    let positions = operands.indices(1, context)?;
    let slots = operands.indices(2, slots)?;
    Ok(slots.into_iter().zip(positions).collect())
}

/// [`Operation::WriteCache`](qwen2c_request::Operation::WriteCache)
pub(super) fn write_cache(operands: &mut Operands<'_>) -> Results {
    let places = places(operands)?;
    let (x, width) = (operands.floats(0), operands.input_width(0));
    let cache = operands.cache(0);
    for ((slot, position), row) in places.into_iter().zip(x.chunks_exact(width)) {
        cache.write(slot, position, row);
    }
    Ok(Vec::new())
}

/// [`Operation::RotateAndWriteCache`](qwen2c_request::Operation::RotateAndWriteCache)
pub(super) fn rotate_and_write_cache(operands: &mut Operands<'_>, heads: usize, bias: bool) -> Results {
    let qkv = operands.floats(0).to_vec();
    write_rotated(operands, qkv, heads, bias, 0)
}

/// [`Operation::ProjectAndWriteCache`](qwen2c_request::Operation::ProjectAndWriteCache)
pub(super) fn project_and_write_cache(operands: &mut Operands<'_>, heads: usize, bias: bool) -> Results {
    let qkv = product(operands)?;
    write_rotated(operands, qkv, heads, bias, 1)
}

/// Sends merged projections on their way; weight `table` is the rotary table, the one behind it the bias.
fn write_rotated(
    operands: &mut Operands<'_>,
    mut qkv: Vec<f32>,
    heads: usize,
    bias: bool,
    table: usize,
) -> Results {
    let places = places(operands)?;
    if bias {
        add_to_rows(&mut qkv, operands.kept_weight(table + 1)?);
    }
    let tables = rotary_rows(operands, table)?;
    let ty = operands.cache(0).ty();
    let (kv_heads, head_dim) = (ty.kv_heads as usize, ty.head_dim as usize);
    let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
    let mut out = Vec::with_capacity(places.len() * queries);
    let rows = qkv.chunks_exact_mut(queries + 2 * keys);
    for ((row, (slot, position)), qkv) in places.into_iter().enumerate().zip(rows) {
        let (rotated, values) = qkv.split_at_mut(queries + keys);
        rotate_row(rotated, &tables[row * head_dim..(row + 1) * head_dim]);
        operands.cache(0).write(slot, position, &rotated[queries..]);
        operands.cache(1).write(slot, position, values);
        out.extend_from_slice(&rotated[..queries]);
    }
    Ok(vec![Tensor::Floats(out)])
}

/// `scale · q·k` of one query head for each cached key, `[position, head_dim]`.
fn scores_of_head(query: &[f32], keys: &[f32], scale: f32) -> Vec<f32> {
    keys.chunks_exact(query.len()).map(|key| (f64::from(scale) * dot(query, key)) as f32).collect()
}

fn exponential(score: f32, largest: f32) -> f64 {
    libm::exp(f64::from(score) - f64::from(largest))
}

/// Softmax in place.
pub(super) fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> = scores.iter().map(|score| exponential(*score, largest)).collect();
    let sum: f64 = exponentials.iter().sum();
    for (score, exponential) in scores.iter_mut().zip(exponentials) {
        *score = (exponential / sum) as f32;
    }
}

/// Rounds the ratios of probabilities to the largest of their block to bf16.
fn round_ratios(probabilities: &mut [f32]) {
    for block in probabilities.chunks_mut(CACHE_BLOCK_POSITIONS as usize) {
        let largest = block.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        for probability in block {
            *probability = largest * Element::Bf16.round(*probability / largest);
        }
    }
}

/// `Σ p · v` over the cached values, `[position, head_dim]`.
fn weighted_sum(probabilities: &[f32], values: &[f32], out: &mut [f32]) {
    let mut sums = vec![0.0_f64; out.len()];
    for (probability, value) in probabilities.iter().zip(values.chunks_exact(out.len())) {
        for (sum, element) in sums.iter_mut().zip(value) {
            *sum += f64::from(*probability) * f64::from(*element);
        }
    }
    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
}

/// [`Operation::AttentionScores`](qwen2c_request::Operation::AttentionScores)
pub(super) fn attention_scores(operands: &mut Operands<'_>, heads: usize, scale: f32) -> Results {
    let places = places(operands)?;
    let mut out = operands.zeros(0);
    let (context, head_dim) = (operands.output_width(0) / heads, operands.input_width(0) / heads);
    let queries = operands.floats(0);
    let cache = operands.cache(0);
    let heads_per_kv_head = heads / cache.ty().kv_heads as usize;
    for (index, (query, scores)) in
        queries.chunks_exact(head_dim).zip(out.chunks_exact_mut(context)).enumerate()
    {
        let ((slot, position), head) = (places[index / heads], index % heads);
        let keys = cache.read(slot, head / heads_per_kv_head, position);
        scores[..=position].copy_from_slice(&scores_of_head(query, keys, scale));
    }
    Ok(vec![Tensor::Floats(out)])
}

/// [`Operation::CausalSoftmax`](qwen2c_request::Operation::CausalSoftmax)
pub(super) fn causal_softmax(operands: &mut Operands<'_>) -> Results {
    let extents = operands.input_extents(0);
    let (heads, context) = (extents[0], extents[1]);
    let positions = operands.indices(1, context as u64)?;
    let mut out = operands.floats(0).to_vec();
    for (index, scores) in out.chunks_exact_mut(context).enumerate() {
        softmax(&mut scores[..=positions[index / heads]]);
    }
    Ok(vec![Tensor::Floats(out)])
}

/// [`Operation::AttentionValues`](qwen2c_request::Operation::AttentionValues)
pub(super) fn attention_values(operands: &mut Operands<'_>, heads: usize, rounded: bool) -> Results {
    let places = places(operands)?;
    let mut out = operands.zeros(0);
    let (context, head_dim) = (operands.input_width(0) / heads, operands.output_width(0) / heads);
    let mut probabilities = operands.floats(0).to_vec();
    let cache = operands.cache(0);
    let heads_per_kv_head = heads / cache.ty().kv_heads as usize;
    for (index, (probabilities, out)) in
        probabilities.chunks_exact_mut(context).zip(out.chunks_exact_mut(head_dim)).enumerate()
    {
        let ((slot, position), head) = (places[index / heads], index % heads);
        let values = cache.read(slot, head / heads_per_kv_head, position);
        let seen = &mut probabilities[..=position];
        if rounded {
            round_ratios(seen);
        }
        weighted_sum(seen, values, out);
    }
    Ok(vec![Tensor::Floats(out)])
}

/// [`Operation::Attention`](qwen2c_request::Operation::Attention)
pub(super) fn attention(operands: &mut Operands<'_>, heads: usize, scale: f32, rounded: bool) -> Results {
    let places = places(operands)?;
    let mut out = operands.zeros(0);
    let head_dim = operands.input_width(0) / heads;
    let heads_per_kv_head = heads / operands.cache(0).ty().kv_heads as usize;
    let queries = operands.floats(0).chunks_exact(head_dim);
    for (index, (query, out)) in queries.zip(out.chunks_exact_mut(head_dim)).enumerate() {
        let ((slot, position), kv_head) = (places[index / heads], index % heads / heads_per_kv_head);
        let mut scores = scores_of_head(query, operands.cache(0).read(slot, kv_head, position), scale);
        softmax(&mut scores);
        if rounded {
            round_ratios(&mut scores);
        }
        weighted_sum(&scores, operands.cache(1).read(slot, kv_head, position), out);
    }
    Ok(vec![Tensor::Floats(out)])
}

/// [`Operation::AttentionBlocks`](qwen2c_request::Operation::AttentionBlocks)
pub(super) fn attention_blocks(
    operands: &mut Operands<'_>,
    heads: usize,
    scale: f32,
    rounded: bool,
) -> Results {
    let places = places(operands)?;
    let (mut sums, mut totals) = (operands.zeros(0), operands.zeros(1));
    let head_dim = operands.input_width(0) / heads;
    let blocks = operands.cache(0).ty().blocks() as usize;
    let heads_per_kv_head = heads / operands.cache(0).ty().kv_heads as usize;
    let queries = operands.floats(0).chunks_exact(head_dim);
    for (index, query) in queries.enumerate() {
        let (row, head) = (index / heads, index % heads);
        let ((slot, position), kv_head) = (places[row], head / heads_per_kv_head);
        let mut scores = scores_of_head(query, operands.cache(0).read(slot, kv_head, position), scale);
        let values = operands.cache(1).read(slot, kv_head, position);
        let block_positions = CACHE_BLOCK_POSITIONS as usize;
        let value_blocks = values.chunks(block_positions * head_dim);
        for (block, (scores, values)) in scores.chunks_mut(block_positions).zip(value_blocks).enumerate() {
            let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            scores.iter_mut().for_each(|score| *score = exponential(*score, largest) as f32);
            let place = row * blocks + block;
            totals[2 * heads * place + head] = largest;
            totals[2 * heads * place + heads + head] =
                scores.iter().map(|weight| f64::from(*weight)).sum::<f64>() as f32;
            if rounded {
                round_ratios(scores);
            }
            let out = &mut sums[(place * heads + head) * head_dim..][..head_dim];
            weighted_sum(scores, values, out);
        }
    }
    Ok(vec![Tensor::Floats(sums), Tensor::Floats(totals)])
}

/// [`Operation::MergeBlocks`](qwen2c_request::Operation::MergeBlocks)
pub(super) fn merge_blocks(operands: &mut Operands<'_>, heads: usize) -> Results {
    let blocks = operands.input_extents(0)[0];
    let block_positions = CACHE_BLOCK_POSITIONS as usize;
    let positions = operands.indices(2, (blocks * block_positions) as u64)?;
    let mut out = operands.zeros(0);
    let width = operands.output_width(0);
    let head_dim = width / heads;
    let (sums, totals) = (operands.floats(0), operands.floats(1));
    for (index, out) in out.chunks_exact_mut(head_dim).enumerate() {
        let (row, head) = (index / heads, index % heads);
        let seen = row * blocks..row * blocks + positions[row] / block_positions + 1;
        let total_of = |place: usize| &totals[2 * heads * place..][..2 * heads];
        let largest = seen.clone().map(|place| total_of(place)[head]).fold(f32::NEG_INFINITY, f32::max);
        let (mut sum, mut total) = (vec![0.0_f64; head_dim], 0.0_f64);
        for place in seen {
            let factor = exponential(total_of(place)[head], largest);
            total += factor * f64::from(total_of(place)[heads + head]);
            let of_block = &sums[place * width + head * head_dim..][..head_dim];
            sum.iter_mut().zip(of_block).for_each(|(sum, value)| *sum += factor * f64::from(*value));
        }
        out.iter_mut().zip(sum).for_each(|(out, sum)| *out = (sum / total) as f32);
    }
    Ok(vec![Tensor::Floats(out)])
}
