//! Routing and the products of experts.

use super::attention;
use super::matmul::{dot, silu_multiply_halves};
use super::operands::Operands;
use super::{InterpretError, Results, Tensor};

/// [`Operation::Softmax`](qwen2c_request::Operation::Softmax)
pub(super) fn softmax(operands: &Operands<'_>) -> Results {
    let mut out = operands.floats(0).to_vec();
    out.chunks_exact_mut(operands.input_width(0)).for_each(attention::softmax);
    Ok(vec![Tensor::Floats(out)])
}

/// [`Operation::TopK`](qwen2c_request::Operation::TopK)
pub(super) fn top_k(operands: &Operands<'_>, k: usize, normalize: bool) -> Results {
    let (mut weights, mut experts) = (Vec::new(), Vec::new());
    for row in operands.floats(0).chunks_exact(operands.input_width(0)) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        // A stable sort: the lower index first where equal.
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        order.truncate(k);
        let sum: f64 = order.iter().map(|expert| f64::from(row[*expert])).sum();
        let divisor = if normalize { sum } else { 1.0 };
        weights.extend(order.iter().map(|expert| (f64::from(row[*expert]) / divisor) as f32));
        experts.extend(order.iter().map(|expert| *expert as i32));
    }
    Ok(vec![Tensor::Floats(weights), Tensor::Integers(experts)])
}

/// [`Operation::GroupRows`](qwen2c_request::Operation::GroupRows)
pub(super) fn group_rows(operands: &Operands<'_>, experts: usize) -> Results {
    let chosen = operands.indices(0, experts as u64)?;
    let table_len = operands.output_width(0);
    if 2 + 2 * experts + chosen.len() > table_len {
        let needed = 2 + 2 * experts + chosen.len();
        return Err(InterpretError::Input(format!(
            "the step needs a table of {needed}, its type has {table_len}"
        )));
    }
    let lists = entries_of_experts(&chosen, experts);
    let active: Vec<usize> = (0..experts).filter(|expert| !lists[*expert].is_empty()).collect();
    let mut table = vec![active.len() as i32];
    table.extend(active.iter().map(|expert| *expert as i32));
    table.resize(1 + experts, 0);
    let mut offset = 0;
    table.push(offset);
    for list in &lists {
        offset += list.len() as i32;
        table.push(offset);
    }
    table.extend(lists.iter().flatten().map(|entry| *entry as i32));
    table.resize(table_len, 0);
    Ok(vec![Tensor::Integers(table)])
}

/// For each expert, the entries that chose it, ascending.
fn entries_of_experts(chosen: &[usize], experts: usize) -> Vec<Vec<usize>> {
    let mut lists = vec![Vec::new(); experts];
    for (entry, expert) in chosen.iter().enumerate() {
        lists[*expert].push(entry);
    }
    lists
}

/// For each expert, the entries `row·k + choice` it serves.
fn work_lists(
    operands: &Operands<'_>,
    grouped: bool,
    experts: usize,
) -> Result<Vec<Vec<usize>>, InterpretError> {
    let chosen = operands.indices(1, experts as u64)?;
    if !grouped {
        return Ok(entries_of_experts(&chosen, experts));
    }
    let table = operands.integers(2);
    let broken = || InterpretError::Input("the table of experts and rows is inconsistent".to_owned());
    let index = |number: i32| usize::try_from(number).map_err(|_| broken());
    let mut lists = vec![Vec::new(); experts];
    let entries = table.get(2 + 2 * experts..).ok_or_else(broken)?;
    for expert in table.get(1..1 + index(table[0])?.min(experts)).ok_or_else(broken)? {
        let expert = index(*expert)?;
        let list = lists.get_mut(expert).ok_or_else(broken)?;
        let (start, end) = (index(table[1 + experts + expert])?, index(table[2 + experts + expert])?);
        for entry in entries.get(start..end).ok_or_else(broken)? {
            let entry = index(*entry)?;
            if entry >= chosen.len() {
                return Err(broken());
            }
            list.push(entry);
        }
    }
    Ok(lists)
}

/// [`Operation::ExpertMatmul`](qwen2c_request::Operation::ExpertMatmul)
pub(super) fn expert_matmul(operands: &Operands<'_>, grouped: bool, silu_multiply: bool) -> Results {
    let extents = operands.weight(0).ty.extents();
    let (experts, m, n) = (extents[0] as usize, extents[1] as usize, extents[2] as usize);
    let k = operands.input_width(1);
    // `x` has one row for each row, or one for each choice.
    let entries_per_x_row = if operands.input_extents(0).len() == 2 { 1 } else { k };
    let x = operands.floats(0);
    let mut product = vec![0.0; operands.rows() * k * m];
    for (expert, entries) in work_lists(operands, grouped, experts)?.iter().enumerate() {
        if entries.is_empty() {
            continue;
        }
        operands.for_each_weight_row(0, (expert * m) as u64, m as u64, |column, weight| {
            for entry in entries {
                let x = &x[entry / entries_per_x_row * n..][..n];
                product[entry * m + column] = dot(x, weight) as f32;
            }
        })?;
    }
    if silu_multiply {
        product = silu_multiply_halves(&product, m);
    }
    Ok(vec![Tensor::Floats(product)])
}

/// [`Operation::CombineExperts`](qwen2c_request::Operation::CombineExperts)
pub(super) fn combine_experts(operands: &Operands<'_>, residual: bool) -> Results {
    let (width, k) = (operands.output_width(0), operands.input_width(1));
    let mut out = operands.zeros(0);
    let rows = operands.floats(0).chunks_exact(k * width).zip(operands.floats(1).chunks_exact(k));
    for ((y, weights), out) in rows.zip(out.chunks_exact_mut(width)) {
        for (column, out) in out.iter_mut().enumerate() {
            let sum =
                |(choice, weight): (usize, &f32)| f64::from(*weight) * f64::from(y[choice * width + column]);
            *out = weights.iter().enumerate().map(sum).sum::<f64>() as f32;
        }
    }
    if residual {
        out.iter_mut().zip(operands.floats(2)).for_each(|(sum, residual)| *sum += residual);
    }
    Ok(vec![Tensor::Floats(out)])
}
