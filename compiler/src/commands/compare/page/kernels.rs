//! Bars of the time in each kernel, the programs side by side.

use super::scale::{linear_ticks, tick_label};
use super::svg::{Anchor, Svg};
use super::{Comparison, colour, short_name};
use crate::commands::compare::comparison::KernelRow;
use crate::commands::compare::table::{microseconds, percent};
use crate::commands::compare::workload::Phase;

const WIDTH: f64 = 560.0;
/// Room right of the longest bar, for its figures.
const RIGHT: f64 = 128.0;
const TOP: f64 = 8.0;
/// Height of a kernel's name.
const NAME_HEIGHT: f64 = 22.0;
const BAR_PITCH: f64 = 17.0;
const BAR_HEIGHT: f64 = 13.0;
/// Room between two kernels.
const GAP: f64 = 9.0;
const BOTTOM: f64 = 44.0;
/// Kernels below this share of the longest one's time are in the table alone.
const SMALLEST_SHARE: f64 = 0.01;

/// The kernels of one phase; none where nobody told of any.
pub(super) fn draw(comparison: &Comparison, phase: Phase) -> Option<String> {
    let longest = comparison.kernels(phase).map(KernelRow::longest_us).fold(0.0, f64::max);
    let rows: Vec<&KernelRow> =
        comparison.kernels(phase).filter(|row| row.longest_us() >= SMALLEST_SHARE * longest).collect();
    if rows.is_empty() {
        return None;
    }
    // A prompt's kernels take thousands of microseconds.
    let (unit_us, unit) = if longest >= 10_000.0 { (1000.0, "ms") } else { (1.0, "µs") };
    let scale = |us: f64| us / longest.max(f64::MIN_POSITIVE) * (WIDTH - RIGHT);
    let height_of =
        |row: &KernelRow| NAME_HEIGHT + BAR_PITCH * row.entrants.iter().flatten().count() as f64 + GAP;
    let bottom = TOP + rows.iter().map(|row| height_of(row)).sum::<f64>();
    let mut svg = Svg::new(WIDTH);
    for tick in linear_ticks(longest / unit_us, 5) {
        let x = scale(tick * unit_us);
        svg.line("grid", (x, TOP), (x, bottom));
        let anchor = if tick == 0.0 { Anchor::Start } else { Anchor::Middle };
        svg.text("axis", (x, bottom + 16.0), anchor, &tick_label(tick));
    }
    let axis = format!("{unit} per {}", phase.unit());
    svg.text("axis", ((WIDTH - RIGHT) / 2.0, bottom + 36.0), Anchor::Middle, &axis);
    let mut top = TOP;
    for row in rows {
        svg.text("name", (0.0, top + 16.0), Anchor::Start, &short_name(&row.name));
        let mut bar_top = top + NAME_HEIGHT;
        for (entrant, figures) in comparison.entrants.iter().zip(&row.entrants) {
            let Some(figures) = figures else { continue };
            let name = &entrant.description.name;
            let (time, share) = (microseconds(figures.us.median), percent(figures.share_of_peak));
            let title = format!("{} in {name}: {time} µs, {share} of the machine's peak", row.name);
            let width = scale(figures.us.median).max(1.0);
            let class = format!("bar {}", colour(comparison, entrant));
            svg.bar(&class, (0.0, bar_top), (width, BAR_HEIGHT), &title);
            let value = tick_label_of_time(figures.us.median / unit_us);
            let at = (width + 7.0, bar_top + BAR_HEIGHT - 2.0);
            svg.text("small", at, Anchor::Start, &format!("{value} {unit}, {share}"));
            bar_top += BAR_PITCH;
        }
        top += height_of(row);
    }
    Some(
        svg.finish(bottom + BOTTOM, &format!("time in each kernel, {}", comparison.workload.sentence(phase))),
    )
}

/// A time with about three digits.
fn tick_label_of_time(time: f64) -> String {
    if time >= 99.95 { tick_label(time.round()) } else { format!("{time:.1}") }
}
