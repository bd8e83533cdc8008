//! From quantities to places on an axis.

/// Round numbers from zero to at most `end`, about `count` of them.
pub(super) fn linear_ticks(end: f64, count: usize) -> Vec<f64> {
    if !(end > 0.0 && end.is_finite()) {
        return vec![0.0];
    }
    let rough = end / count.max(1) as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|&step| step >= rough);
    let step = step.unwrap_or(10.0 * power);
    (0..).map(|index| f64::from(index) * step).take_while(|&tick| tick <= end * 1.0001).collect()
}

/// A logarithmic axis between two places of a drawing.
#[derive(Clone, Copy)]
pub(super) struct Logarithmic {
    from: f64,
    to: f64,
    first: f64,
    last: f64,
}

impl Logarithmic {
    /// From a little below `smallest` to a little above `largest`, drawn from `first` to `last`.
    pub(super) fn around(smallest: f64, largest: f64, first: f64, last: f64) -> Self {
        /// Decades at either end.
        const MARGIN: f64 = 0.12;
        let from = smallest.max(f64::MIN_POSITIVE).log10() - MARGIN;
        let to = largest.max(f64::MIN_POSITIVE).log10().max(from + 1.0) + MARGIN;
        Self { from, to, first, last }
    }

    /// The place of a value; values beyond the ends stay on the axis.
    pub(super) fn place(&self, value: f64) -> f64 {
        let decade = value.max(f64::MIN_POSITIVE).log10().clamp(self.from, self.to);
        self.first + (decade - self.from) / (self.to - self.from) * (self.last - self.first)
    }

    /// Multiples of powers of ten on the axis, and whether each is a power itself.
    pub(super) fn ticks(&self) -> Vec<(f64, bool)> {
        let powers = self.from.floor() as i32..=self.to.ceil() as i32;
        let all = powers.flat_map(|power| (1..10).map(move |digit| (power, digit)));
        all.map(|(power, digit)| (10_f64.powi(power) * f64::from(digit), digit == 1))
            .filter(|(value, _)| (self.from..=self.to).contains(&value.log10()))
            .collect()
    }

    /// The smallest value on the axis.
    pub(super) fn smallest(&self) -> f64 {
        10_f64.powf(self.from)
    }

    /// The largest value on the axis.
    pub(super) fn largest(&self) -> f64 {
        10_f64.powf(self.to)
    }
}

/// A number at a tick, without digits that say nothing: `0.1`, `5`, `1 000`.
pub(super) fn tick_label(value: f64) -> String {
    if value >= 1000.0 {
        crate::units::grouped(value.round() as u64)
    } else {
        // At most four decimals, and only those that are there.
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::{Logarithmic, linear_ticks, tick_label};

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(linear_ticks(47.0, 5), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(linear_ticks(1000.0, 5), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
        assert_eq!(linear_ticks(0.0, 5), [0.0]);
        assert_eq!(linear_ticks(f64::NAN, 5), [0.0]);
        let labels: Vec<String> = [0.001, 0.1, 5.0, 20.0, 1000.0].into_iter().map(tick_label).collect();
        assert_eq!(labels, ["0.001", "0.1", "5", "20", "1 000"]);
    }

    #[test]
    fn decades_lie_evenly_and_nothing_leaves_the_axis() {
        let axis = Logarithmic::around(0.3, 40.0, 0.0, 300.0);
        let powers: Vec<f64> = axis.ticks().into_iter().filter(|tick| tick.1).map(|tick| tick.0).collect();
        assert_eq!(powers, [1.0, 10.0]);
        assert_eq!(axis.ticks().len(), 21, "0.3 to 0.9, 1 to 9, 10 to 50");
        let [one, ten] = [1.0, 10.0].map(|value| axis.place(value));
        assert!(one < ten);
        assert!((axis.place(10_f64.sqrt()) - f64::midpoint(one, ten)).abs() < 1e-9);
        assert_eq!([0.0, 1e9].map(|value| axis.place(value)), [0.0, 300.0]);
    }
}
