//! The page's tables: every figure that the plots show.

use super::svg::escape;
use super::{Comparison, colour};
use crate::commands::compare::comparison::{KernelRow, Measured};
use crate::commands::compare::table::{microseconds, percent};
use crate::commands::compare::workload::Phase;
use crate::units;

/// All tables; those of kernels are folded.
pub(super) fn tables(comparison: &Comparison) -> String {
    let mut text = speeds(comparison);
    text.push_str(&entrants(comparison));
    text.push_str(&peaks(comparison));
    for phase in comparison.workload.phases() {
        if comparison.kernels(phase).next().is_some() {
            text.push_str(&kernels(comparison, phase));
        }
    }
    text
}

/// A table; the first `texts` columns are words, the others numbers. Cells are HTML.
fn table(texts: usize, heads: &[String], rows: &[Vec<String>]) -> String {
    let line = |tag: &str, cells: &[String]| {
        let cells = cells.iter().enumerate().map(|(column, cell)| {
            let class = if column < texts { "" } else { " class=\"n\"" };
            format!("<{tag}{class}>{cell}</{tag}>")
        });
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let body: String = rows.iter().map(|row| line("td", row)).collect();
    format!(
        "<div class=\"scroll\"><table>\n<thead>{}</thead>\n<tbody>\n{body}</tbody>\n</table></div>\n",
        line("th", heads).trim_end()
    )
}

fn heads(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn name_cell(comparison: &Comparison, entrant: &Measured) -> String {
    let (class, name) = (colour(comparison, entrant), escape(&entrant.description.name));
    format!("<span class=\"key {class}\"></span>{name}")
}

fn speeds(comparison: &Comparison) -> String {
    let mut rows = Vec::new();
    for phase in comparison.workload.phases() {
        for (entrant, result) in comparison.results(phase) {
            let (speed, ratio) = (result.tokens_per_s, result.ratio);
            rows.push(vec![
                result.test.clone(),
                name_cell(comparison, entrant),
                units::tokens_per_s(speed.median),
                format!("{}–{}", units::tokens_per_s(speed.min), units::tokens_per_s(speed.max)),
                format!("{:.2}", ratio.median),
                format!("{:.2}–{:.2}", ratio.min, ratio.max),
                result.share_of_read.map_or_else(String::new, percent),
                result.share_of_matrix.map_or_else(String::new, percent),
            ]);
        }
    }
    let words =
        ["test", "program", "tokens/s", "min–max", "ratio", "min–max", "of read bandwidth", "of matrix rate"];
    table(2, &heads(&words), &rows)
}

fn entrants(comparison: &Comparison) -> String {
    let row = |entrant: &Measured| {
        let description = &entrant.description;
        vec![
            name_cell(comparison, entrant),
            escape(&description.model),
            escape(&description.quant),
            escape(&description.target.replace('+', " +")),
            units::bytes(description.weight_bytes),
            entrant.threads.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = comparison.entrants.iter().map(row).collect();
    table(4, &heads(&["program", "model", "weights", "target", "size", "threads"]), &rows)
}

fn peaks(comparison: &Comparison) -> String {
    let Some(peak) = &comparison.peak else { return String::new() };
    let limits = [
        ("read bandwidth, GB/s", Some(peak.read_bytes_per_s)),
        ("multiply-add in f32, GFLOP/s", Some(peak.operations_per_s)),
        ("multiply-add in bf16, GFLOP/s", peak.bf16_operations_per_s),
        ("multiply-add of 8-bit integers, GOP/s", peak.int8_operations_per_s),
    ];
    let rows: Vec<Vec<String>> = limits
        .into_iter()
        .filter_map(|(name, spread)| {
            let spread = spread?;
            let figure = |rate: f64| format!("{:.1}", rate / 1e9);
            Some(vec![
                name.to_owned(),
                figure(spread.median),
                format!("{}–{}", figure(spread.min), figure(spread.max)),
            ])
        })
        .collect();
    table(1, &heads(&["the machine's peak", "median", "min–max"]), &rows)
}

fn kernels(comparison: &Comparison, phase: Phase) -> String {
    let programs: Vec<&Measured> = comparison.entrants.iter().collect();
    let mut rows = Vec::new();
    for row in comparison.kernels(phase) {
        for (index, (entrant, figures)) in programs.iter().zip(&row.entrants).enumerate() {
            let Some(figures) = figures else { continue };
            rows.push(vec![
                kernel_cell(row, index),
                name_cell(comparison, entrant),
                format!("{:.0}", figures.calls),
                microseconds(figures.us.median),
                format!("{}–{}", microseconds(figures.us.min), microseconds(figures.us.max)),
                row.ratio(index).map_or_else(String::new, |ratio| format!("{ratio:.2}")),
                format!("{:.1}", figures.bytes_per_s() / 1e9),
                format!("{:.1}", figures.operations_per_s() / 1e9),
                percent(figures.share_of_peak),
            ]);
        }
    }
    let words = ["kernel", "program", "calls", "µs", "min–max", "ratio", "GB/s", "GFLOP/s", "of peak"];
    format!(
        "<details><summary>Kernels per {}, {}</summary>\n{}</details>\n",
        phase.unit(),
        escape(&comparison.workload.sentence(phase)),
        table(2, &heads(&words), &rows)
    )
}

/// The kernel's name in the first of its rows, nothing in the others.
fn kernel_cell(row: &KernelRow, index: usize) -> String {
    let is_first = row.entrants[..index].iter().all(Option::is_none);
    if is_first { format!("<code>{}</code>", escape(&row.name)) } else { String::new() }
}
