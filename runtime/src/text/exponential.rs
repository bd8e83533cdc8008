//! The exponential function from additions and multiplications alone.
//!
//! `f64::exp` calls the machine's mathematics library, whose last bits differ between versions; a sampled token
//! would then depend on where the program runs.

/// High part of ln 2: its low bits are zero, so that its product with a small integer is exact.
const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;

/// ln 2 − [`LN_2_HIGH`].
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// eˣ for x ≤ 0, to about 1e-15 relative; 0 below −700, where the result is of no use as a probability.
pub(super) fn exponential(x: f64) -> f64 {
    if x <= -700.0 {
        return 0.0;
    }
    let exponent = (x * std::f64::consts::LOG2_E).round_ties_even();
    let rest = (x - exponent * LN_2_HIGH) - exponent * LN_2_LOW;
    // Taylor's series: |rest| ≤ ln 2 / 2, so the fourteenth term is below 2⁻⁵⁶.
    let series = (1..=13).rev().fold(1.0, |sum, term| 1.0 + sum * rest / f64::from(term));
    series * f64::from_bits(((exponent as i64 + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_machine_to_a_few_units_in_the_last_place() {
        assert_eq!(exponential(0.0), 1.0);
        assert_eq!(exponential(f64::NEG_INFINITY), 0.0);
        for step in 0..70_000 {
            let x = f64::from(step) * -0.01 - 0.003;
            let error = (exponential(x) / x.exp() - 1.0).abs();
            assert!(error < 1e-14 || x <= -700.0, "{x}: {error:e}");
        }
    }
}
