//! The roofline: what each kernel reaches under what the machine allows.
//!
//! A kernel that does few operations for each byte cannot be faster than memory (the slope), one that
//! does many not faster than the multipliers (the ceilings). The distance of a point to the roof above
//! it is what tuning could still win; its area is the share of the time that this would concern.

use super::labels::Labels;
use super::scale::{Logarithmic, tick_label};
use super::svg::{Anchor, Svg};
use super::{Comparison, colour, short_name};
use crate::commands::compare::comparison::{KernelFigures, KernelRow, PeakSpread};
use crate::commands::compare::statistics::Spread;
use crate::commands::compare::workload::Phase;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 500.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 748.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 446.0;
/// Radius of a kernel that takes all the time of its phase.
const LARGEST_RADIUS: f64 = 17.0;
const SMALLEST_RADIUS: f64 = 2.5;
/// Kernels below this share of their phase's time are not in the plot.
const SMALLEST_SHARE: f64 = 0.001;
/// Kernels below this share have no name in the plot.
const SMALLEST_NAMED_SHARE: f64 = 0.03;

/// A kernel of an entrant as a point.
struct Point<'a> {
    row: &'a KernelRow,
    figures: &'a KernelFigures,
    entrant: usize,
    /// Of the entrant's time in this phase.
    share_of_time: f64,
}

/// The plot; none where nobody told of kernels and peaks.
pub(super) fn draw(comparison: &Comparison) -> Option<String> {
    let peak = comparison.peak.as_ref()?;
    let points = points(comparison);
    let intensities = || points.iter().map(|point| point.figures.operations_per_byte());
    let rates = || points.iter().map(|point| point.figures.operations_per_s() / 1e9);
    let (matrix, _) = peak.matrix_operations_per_s();
    let highest = peak.int8_operations_per_s.map_or(matrix.max, |rate| rate.max.max(matrix.max)) / 1e9;
    // Both corners of the roof are seen, and every point.
    let corner = highest * 1e9 / peak.read_bytes_per_s.median;
    let smallest = intensities().fold(1.0, f64::min);
    let x = Logarithmic::around(smallest, intensities().fold(4.0 * corner, f64::max), LEFT, RIGHT);
    let slowest = (smallest * peak.read_bytes_per_s.median / 1e9).min(rates().fold(1.0, f64::min));
    let y = Logarithmic::around(slowest, rates().fold(highest, f64::max), BOTTOM, TOP);
    let mut svg = Svg::new(WIDTH);
    axes(&mut svg, x, y);
    let mut labels = Labels::within((LEFT, TOP), (RIGHT, BOTTOM));
    let roof_names = roofs(&mut svg, &mut labels, peak, x, y);
    let place = |point: &Point<'_>| {
        (x.place(point.figures.operations_per_byte()), y.place(point.figures.operations_per_s() / 1e9))
    };
    for point in &points {
        draw_point(&mut svg, comparison, point, place(point));
        labels.block(place(point), radius(point));
    }
    for (at, name) in &roof_names {
        svg.text("roof-name", *at, Anchor::End, name);
    }
    for point in named(&points) {
        let name = short_name(&point.row.name);
        let center = place(point);
        if let Some(label) = labels.beside(center, radius(point), &name) {
            if label.is_far {
                svg.line("leader", center, (label.at.0, label.at.1 - 4.0));
            }
            svg.text("label", label.at, label.anchor, &name);
        }
    }
    Some(svg.finish(HEIGHT, "roofline: operations per second of each kernel over operations per byte"))
}

/// Every kernel that computes and takes a noticeable time, the largest shares first, so that small
/// points lie on top.
fn points(comparison: &Comparison) -> Vec<Point<'_>> {
    let mut points = Vec::new();
    for phase in comparison.workload.phases() {
        for entrant in 0..comparison.entrants.len() {
            let us = |row: &KernelRow| row.entrants[entrant].as_ref().map(|figures| figures.us.median);
            let all_us: f64 = comparison.kernels(phase).filter_map(us).sum();
            points.extend(comparison.kernels(phase).filter_map(|row| {
                let figures = row.entrants[entrant].as_ref().filter(|figures| figures.operations > 0.0)?;
                let share_of_time = figures.us.median / all_us.max(f64::MIN_POSITIVE);
                let point = Point { row, figures, entrant, share_of_time };
                (share_of_time >= SMALLEST_SHARE).then_some(point)
            }));
        }
    }
    points.sort_by(|one, other| other.share_of_time.total_cmp(&one.share_of_time));
    points
}

/// One point of each kernel that takes a noticeable time: the first in the order of shares.
fn named<'p, 'a>(points: &'p [Point<'a>]) -> impl Iterator<Item = &'p Point<'a>> {
    points.iter().enumerate().filter_map(move |(index, point)| {
        let is_same =
            |other: &Point<'_>| (other.row.phase, &other.row.name) == (point.row.phase, &point.row.name);
        let is_first = !points[..index].iter().any(is_same);
        (is_first && point.share_of_time >= SMALLEST_NAMED_SHARE).then_some(point)
    })
}

fn radius(point: &Point<'_>) -> f64 {
    (LARGEST_RADIUS * point.share_of_time.sqrt()).max(SMALLEST_RADIUS)
}

fn draw_point(svg: &mut Svg, comparison: &Comparison, point: &Point<'_>, at: (f64, f64)) {
    let Point { row, figures, entrant, share_of_time } = point;
    let entrant = &comparison.entrants[*entrant];
    let title = format!(
        "{} in {} ({}): {:.1} operations per byte, {:.1} GFLOP/s, {:.1} GB/s, {:.1} % of peak, {:.1} % of the time",
        row.name,
        entrant.description.name,
        comparison.workload.test_name(row.phase),
        figures.operations_per_byte(),
        figures.operations_per_s() / 1e9,
        figures.bytes_per_s() / 1e9,
        100.0 * figures.share_of_peak,
        100.0 * share_of_time
    );
    let class = format!("point {}", colour(comparison, entrant));
    match row.phase {
        Phase::Prompt => svg.square(&class, at, radius(point), &title),
        Phase::Generation => svg.disc(&class, at, radius(point), &title),
    }
}

fn axes(svg: &mut Svg, x: Logarithmic, y: Logarithmic) {
    let class = |is_power: bool| if is_power { "grid" } else { "fine" };
    for (value, is_power) in x.ticks() {
        svg.line(class(is_power), (x.place(value), TOP), (x.place(value), BOTTOM));
        if is_power {
            svg.text("axis", (x.place(value), BOTTOM + 17.0), Anchor::Middle, &tick_label(value));
        }
    }
    for (value, is_power) in y.ticks() {
        svg.line(class(is_power), (LEFT, y.place(value)), (RIGHT, y.place(value)));
        if is_power {
            svg.text("axis", (LEFT - 7.0, y.place(value) + 4.0), Anchor::End, &tick_label(value));
        }
    }
    let middle = f64::midpoint(LEFT, RIGHT);
    svg.text("axis", (middle, BOTTOM + 40.0), Anchor::Middle, "operations per byte moved");
    svg.turned_text("axis", (14.0, f64::midpoint(TOP, BOTTOM)), Anchor::Middle, -90.0, "GFLOP/s");
}

/// The slope of the memory and a ceiling for each type, each as a band of all samples. Returns the
/// ceilings' names, which stand above the points.
fn roofs(
    svg: &mut Svg,
    labels: &mut Labels,
    peak: &PeakSpread,
    x: Logarithmic,
    y: Logarithmic,
) -> Vec<((f64, f64), String)> {
    let ceilings = [
        ("f32", Some(peak.operations_per_s)),
        ("bf16", peak.bf16_operations_per_s),
        ("int8", peak.int8_operations_per_s),
    ];
    let highest = ceilings.iter().filter_map(|(_, rate)| *rate).map(|rate| rate.median).fold(0.0, f64::max);
    let read = peak.read_bytes_per_s;
    // Under the bandwidth, `rate = intensity · bandwidth`: a line of slope one in logarithmic axes.
    let from = x.smallest().max(y.smallest() * 1e9 / read.min);
    let to = highest / read.median;
    let on_slope = |intensity: f64, bandwidth: f64| {
        (x.place(intensity), y.place((intensity * bandwidth / 1e9).min(y.largest())))
    };
    let band =
        [on_slope(from, read.min), on_slope(from, read.max), on_slope(to, read.max), on_slope(to, read.min)];
    svg.polygon("band", &band);
    svg.line("roof", on_slope(from, read.median), on_slope(to, read.median));
    let (start, end) = (on_slope(from, read.median), on_slope(to, read.median));
    let degrees = (end.1 - start.1).atan2(end.0 - start.0).to_degrees();
    // Points beside the slope keep their names off it.
    for part in 0..100 {
        let along = f64::from(part) / 100.0;
        labels.block((start.0 + along * (end.0 - start.0), start.1 + along * (end.1 - start.1)), 3.0);
    }
    // Above the roof there is room: nothing can lie there.
    let at = (start.0 + 0.3 * (end.0 - start.0), start.1 + 0.3 * (end.1 - start.1));
    let (rise, run) = degrees.to_radians().sin_cos();
    let text = format!("read {:.1} GB/s", read.median / 1e9);
    svg.turned_text("roof-name", (at.0 + 9.0 * rise, at.1 - 9.0 * run), Anchor::Middle, degrees, &text);
    let mut names = Vec::new();
    let mut right = RIGHT - 4.0;
    for (element, rate) in ceilings {
        let Some(Spread { median, min, max }) = rate else { continue };
        let left = x.place(median / read.median);
        let (low, high) = (y.place(min / 1e9), y.place(max / 1e9));
        svg.polygon("band", &[(left, low), (left, high), (RIGHT, high), (RIGHT, low)]);
        let height = y.place(median / 1e9);
        svg.line("roof", (left, height), (RIGHT, height));
        let text = format!("{element} {} GFLOP/s", tick_label((median / 1e9).round()));
        labels.block_text((right, height - 5.0), Anchor::End, &text);
        names.push(((right, height - 5.0), text));
        // Ceilings may lie close to each other: their names stand side by side.
        right -= 112.0;
    }
    names
}
