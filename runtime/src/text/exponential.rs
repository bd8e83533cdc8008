//! The exponential function from additions and multiplications alone.
//!
//! `f64::exp` calls the machine's mathematics library, whose last bits differ between versions; a sampled token
//! would then depend on where the program runs.

/// High part of ln 2: its low bits are zero, so that its product with a small integer is exact.
const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;

/// ln 2 − [`LN_2_HIGH`].
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// Adding it to a small number leaves no bits for a fraction: the sum is rounded to an integer, ties to even.
/// (An instruction rounds too, but the runtime is compiled for all processors of its kind, of which not all
/// have it, and then it is a call.)
const NO_FRACTION: f64 = (3_u64 << 51) as f64;

/// 1 / n! for n from 0: Taylor's series.
const SERIES: [f64; 14] = {
    let (mut series, mut factorial, mut term) = ([1.0; 14], 1.0, 1);
    while term < series.len() {
        factorial *= term as f64;
        series[term] = 1.0 / factorial;
        term += 1;
    }
    series
};

/// eˣ for x ≤ 0, to about 1e-15 relative; 0 below −700, where the result is of no use as a probability.
pub(super) fn exponential(x: f64) -> f64 {
    if x <= -700.0 {
        return 0.0;
    }
    let exponent = (x * std::f64::consts::LOG2_E + NO_FRACTION) - NO_FRACTION;
    let rest = (x - exponent * LN_2_HIGH) - exponent * LN_2_LOW;
    // |rest| ≤ ln 2 / 2, so the fifteenth term is below 2⁻⁵⁶.
    let series = SERIES.iter().rev().fold(0.0, |sum, coefficient| coefficient + sum * rest);
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
