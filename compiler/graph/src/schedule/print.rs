//! Text form of the stage `scheduled`.

use std::fmt::Write;

use super::Schedule;
use crate::text::{Subject, print_lines};

/// Every list's graph with the kernel behind each operation, then what the target chose for each kernel.
/// The choices stand in comments: what is left is the graph's own text form.
///
/// ```text
/// // list decode rows=1 logit_rows=1
/// graph decode {
///   %embedding: f32[rows, hidden=64] = embed(%token, @embedding) // embed_101x64_rows1
/// }
///
/// // kernels
/// // embed_101x64_rows1: tiles 1 row; layouts [panels(16, 2)]; workspace 0; bytes 384·rows; operations 0
/// ```
pub fn print_schedule(schedule: &Schedule) -> String {
    let mut text = String::new();
    for list in &schedule.lists {
        let _ =
            writeln!(text, "// list {} rows={} logit_rows={}", list.name, list.max_rows, list.max_logit_rows);
        for (subject, line) in print_lines(&list.graph) {
            text.push_str(&line);
            if let Subject::Operation(index) = subject
                && let Some(kernel) = list.kernel_of.get(index).and_then(|index| schedule.kernels.get(*index))
            {
                let _ = write!(text, " // {}", kernel.name);
            }
            text.push('\n');
        }
        text.push('\n');
    }
    text.push_str("// kernels\n");
    for kernel in &schedule.kernels {
        let layouts: Vec<String> = kernel.layouts.iter().map(ToString::to_string).collect();
        let cost = &kernel.choice.cost;
        let bytes = sum([
            (cost.fixed_bytes, ""),
            (cost.bytes_per_row, "·rows"),
            (cost.bytes_per_row_and_position, "·rows·positions"),
        ]);
        let operations = sum([
            (cost.operations_per_row, "·rows"),
            (cost.operations_per_row_and_position, "·rows·positions"),
            (0, ""),
        ]);
        let _ = writeln!(
            text,
            "// {}: tiles {}; layouts [{}]; workspace {}; bytes {bytes}; operations {operations}",
            kernel.name,
            kernel.choice.tiles,
            layouts.join(", "),
            kernel.choice.workspace_bytes,
        );
    }
    text
}

/// The terms that are not zero.
fn sum(terms: [(u64, &str); 3]) -> String {
    let terms: Vec<String> = terms
        .iter()
        .filter(|(factor, _)| *factor > 0)
        .map(|(factor, unit)| format!("{factor}{unit}"))
        .collect();
    if terms.is_empty() { "0".to_owned() } else { terms.join(" + ") }
}
