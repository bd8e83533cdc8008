//! Bars of tokens/s, one drawing for each test, with the spread over the turns.

use super::scale::{linear_ticks, tick_label};
use super::svg::{Anchor, Svg};
use super::{Comparison, colour};
use crate::commands::compare::workload::Phase;
use crate::units;

const WIDTH: f64 = 560.0;
/// Room right of the longest bar, for its figures.
const RIGHT: f64 = 116.0;
const TOP: f64 = 8.0;
/// From one entrant to the next: its name stands above its bar.
const PITCH: f64 = 50.0;
const BAR_HEIGHT: f64 = 20.0;
/// Room below the bars, for the axis.
const BOTTOM: f64 = 44.0;

/// The bars of one phase.
pub(super) fn draw(comparison: &Comparison, phase: Phase) -> String {
    let results: Vec<_> = comparison.results(phase).collect();
    let largest = results.iter().map(|(_, result)| result.tokens_per_s.max).fold(0.0, f64::max);
    let scale = |speed: f64| speed / largest.max(f64::MIN_POSITIVE) * (WIDTH - RIGHT);
    let bottom = TOP + PITCH * results.len() as f64;
    let mut svg = Svg::new(WIDTH);
    for tick in linear_ticks(largest, 5) {
        svg.line("grid", (scale(tick), TOP), (scale(tick), bottom));
        let anchor = if tick == 0.0 { Anchor::Start } else { Anchor::Middle };
        svg.text("axis", (scale(tick), bottom + 16.0), anchor, &tick_label(tick));
    }
    svg.text("axis", ((WIDTH - RIGHT) / 2.0, bottom + 36.0), Anchor::Middle, "tokens per second");
    for (index, (entrant, result)) in results.iter().enumerate() {
        let (speed, ratio) = (result.tokens_per_s, result.ratio);
        let top = TOP + PITCH * index as f64;
        let bar_top = top + 22.0;
        let middle = bar_top + BAR_HEIGHT / 2.0;
        svg.text("name", (0.0, top + 15.0), Anchor::Start, &entrant.description.name);
        let title = format!(
            "{}: {} tokens/s ({}–{}), {:.2} times the first",
            entrant.description.name,
            units::tokens_per_s(speed.median),
            units::tokens_per_s(speed.min),
            units::tokens_per_s(speed.max),
            ratio.median
        );
        let class = format!("bar {}", colour(comparison, entrant));
        svg.bar(&class, (0.0, bar_top), (scale(speed.median), BAR_HEIGHT), &title);
        svg.line("whisker", (scale(speed.min), middle), (scale(speed.max), middle));
        for end in [speed.min, speed.max] {
            svg.line("whisker", (scale(end), middle - 4.0), (scale(end), middle + 4.0));
        }
        let end = scale(speed.max) + 8.0;
        svg.text("value", (end, middle + 5.0), Anchor::Start, &units::tokens_per_s(speed.median));
        svg.text("axis", (WIDTH, middle + 5.0), Anchor::End, &format!("{:.2}×", ratio.median));
    }
    svg.finish(bottom + BOTTOM, &format!("tokens per second, {}", comparison.workload.sentence(phase)))
}
