//! The comparison as text: speeds with their spread, then kernels side by side.

use super::comparison::Comparison;
use super::workload::Phase;
use crate::table::{Side, Table};
use crate::units;

/// Everything that is printed, line by line.
pub(super) fn lines(comparison: &Comparison) -> Vec<String> {
    let mut lines = vec![heading(comparison)];
    lines.extend(peak(comparison));
    lines.extend(note_on_noise(comparison));
    lines.push(String::new());
    lines.extend(speeds(comparison).lines(0));
    for phase in comparison.workload.phases() {
        if comparison.kernels(phase).next().is_some() {
            lines.push(String::new());
            lines.push(format!("µs per {}, {}:", phase.unit(), comparison.workload.sentence(phase)));
            lines.extend(kernels(comparison, phase).lines(0));
        }
    }
    lines
}

/// How it was measured.
pub(super) fn heading(comparison: &Comparison) -> String {
    let threads = comparison.entrants.first().map_or(0, |entrant| entrant.threads);
    format!(
        "{} on {}, medians of {}",
        units::count(threads, "thread"),
        comparison.machine.processor,
        units::count(comparison.workload.turns, "turn")
    )
}

/// The machine's peak, in one line.
pub(super) fn peak(comparison: &Comparison) -> Option<String> {
    let peak = comparison.peak.as_ref()?;
    let read = peak.read_bytes_per_s;
    let (matrix, element) = peak.matrix_operations_per_s();
    Some(format!(
        "peak: {:.1} GB/s read ({:.1}–{:.1}), {:.0} GFLOP/s in {element} ({:.0}–{:.0})",
        read.median / 1e9,
        read.min / 1e9,
        read.max / 1e9,
        matrix.median / 1e9,
        matrix.min / 1e9,
        matrix.max / 1e9
    ))
}

/// What to think of figures that differ much from turn to turn.
pub(super) fn note_on_noise(comparison: &Comparison) -> Option<String> {
    /// A machine that does nothing else repeats itself better than this.
    const LARGEST_QUIET_SPREAD: f64 = 1.25;
    let results = comparison.entrants.iter().flat_map(|entrant| &entrant.results);
    let spreads =
        results.map(|result| result.tokens_per_s.max / result.tokens_per_s.min.max(f64::MIN_POSITIVE));
    let largest = spreads.fold(1.0, f64::max);
    (largest > LARGEST_QUIET_SPREAD).then(|| {
        format!("note: speeds differ {largest:.1}-fold between turns: the machine does other things as well")
    })
}

fn speeds(comparison: &Comparison) -> Table {
    use Side::{Left, Right};
    let mut table = Table::new(&[Left, Left, Left, Right, Right, Right, Right, Right, Right]);
    let of_matrix = format!(
        "of {} rate",
        comparison.peak.as_ref().map_or("f32", |peak| peak.matrix_operations_per_s().1)
    );
    table.row([
        "test",
        "program",
        "weights",
        "tokens/s",
        "min–max",
        "ratio",
        "min–max",
        "of read",
        of_matrix.as_str(),
    ]);
    for phase in comparison.workload.phases() {
        for (entrant, result) in comparison.results(phase) {
            let (speed, ratio) = (result.tokens_per_s, result.ratio);
            table.row([
                result.test.clone(),
                entrant.description.name.clone(),
                entrant.description.quant.clone(),
                units::tokens_per_s(speed.median),
                format!("{}–{}", units::tokens_per_s(speed.min), units::tokens_per_s(speed.max)),
                format!("{:.2}", ratio.median),
                format!("{:.2}–{:.2}", ratio.min, ratio.max),
                result.share_of_read.map_or_else(String::new, percent),
                result.share_of_matrix.map_or_else(String::new, percent),
            ]);
        }
    }
    table
}

fn kernels(comparison: &Comparison, phase: Phase) -> Table {
    let programs: Vec<usize> = (0..comparison.entrants.len())
        .filter(|&entrant| comparison.kernels(phase).any(|row| row.entrants[entrant].is_some()))
        .collect();
    let mut sides = vec![Side::Left];
    let mut heads = vec!["kernel".to_owned()];
    for &program in &programs {
        sides.extend([Side::Right, Side::Right]);
        heads.extend([comparison.entrants[program].description.name.clone(), "of peak".to_owned()]);
        if program > 0 {
            sides.push(Side::Right);
            heads.push("ratio".to_owned());
        }
    }
    let mut table = Table::new(&sides);
    table.row(heads);
    for row in comparison.kernels(phase) {
        let mut cells = vec![row.name.clone()];
        for &program in &programs {
            let figures = row.entrants[program].as_ref();
            cells.push(figures.map_or_else(|| "–".to_owned(), |figures| microseconds(figures.us.median)));
            cells.push(figures.map_or_else(String::new, |figures| percent(figures.share_of_peak)));
            if program > 0 {
                cells.push(row.ratio(program).map_or_else(String::new, |ratio| format!("{ratio:.2}")));
            }
        }
        table.row(cells);
    }
    table
}

/// A share of a limit.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Microseconds: three digits or more.
pub(super) fn microseconds(duration_us: f64) -> String {
    if duration_us >= 100.0 {
        units::grouped(duration_us.round() as u64)
    } else {
        format!("{duration_us:.1}")
    }
}
