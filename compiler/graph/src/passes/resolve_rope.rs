//! Computes the rotary frequencies.
//!
//! # What it does
//!
//! Gives every table of cosines and sines that the graph left open its frequencies and attention
//! factor: `theta^(−2i/d)` (Su et al. 2021), stretched by YaRN (Peng et al. 2023) where the
//! configuration asks for it.
//!
//! # Why
//!
//! The frequencies are constants of the model. The arithmetic is that of HF transformers step by step
//! in `f32`, so that angles at positions beyond ten thousand agree with the reference's.
//!
//! # Before
//!
//! ```text
//! weight @rope: f32[context=64, head_dim=4] = rope(unresolved)
//! ```
//!
//! # After
//!
//! ```text
//! weight @rope: f32[context=64, head_dim=4] = rope(attention_factor=1.0, inverse_frequencies=[1.0, 0.01])
//! ```
//!
//! # When it does not apply
//!
//! To tables that have their frequencies. It cannot be switched off: no kernel could run.

use crate::passes::PassContext;
use crate::{Graph, Rope, RopeScaling, RopeTable, WeightSource};

/// Resolves all tables.
pub(super) fn run(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
    let mut rewrites = 0;
    for weight in &mut graph.weights {
        if weight.source == WeightSource::UnresolvedRopeTable {
            weight.source = WeightSource::RopeTable(rope_table(&context.config.rope, weight.ty.columns()));
            rewrites += 1;
        }
    }
    rewrites
}

/// The table for heads of `head_dim` elements.
fn rope_table(rope: &Rope, head_dim: u64) -> RopeTable {
    // `theta ** (arange(0, d, 2) / d)` in f32: the f64 power rounded to f32 is the nearest value.
    let theta = f64::from(rope.theta as f32);
    let periods: Vec<f32> = (0..head_dim / 2)
        .map(|index| libm::pow(theta, f64::from((2 * index) as f32 / head_dim as f32)) as f32)
        .collect();
    match &rope.scaling {
        RopeScaling::None => RopeTable {
            inverse_frequencies: periods.iter().map(|period| 1.0 / period).collect(),
            attention_factor: 1.0,
        },
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
            let corrected = |rotations: f64| {
                let context = *original_context as f64;
                head_dim as f64 * libm::log(context / (rotations * 2.0 * std::f64::consts::PI))
                    / (2.0 * libm::log(rope.theta))
            };
            let low = libm::floor(corrected(*beta_fast)).max(0.0);
            let high = libm::ceil(corrected(*beta_slow)).min(head_dim as f64 - 1.0);
            let width = if low == high { 0.001 } else { high - low };
            let inverse_frequencies = periods.iter().enumerate().map(|(index, period)| {
                let ramp = ((index as f32 - low as f32) / width as f32).clamp(0.0, 1.0);
                let kept = 1.0 - ramp;
                let interpolated = 1.0 / (*factor as f32 * period);
                interpolated * (1.0 - kept) + 1.0 / period * kept
            });
            RopeTable {
                inverse_frequencies: inverse_frequencies.collect(),
                attention_factor: *attention_factor as f32,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::tests::{rewrite, tiny_config};

    const UNRESOLVED: &str = "graph rope {
  input %position: i32[rows]
  input %q: f32[rows, query=8]
  weight @rope: f32[context=64, head_dim=4] = rope(unresolved)
  %rotated: f32[rows, query=8] = rotate(%q, %position, @rope) {head_dim=4}
  output %rotated
}
";

    #[test]
    fn an_open_table_gets_its_frequencies() {
        let (rewrites, after) = rewrite(run, UNRESOLVED, 1);
        assert_eq!(rewrites, 1);
        insta::assert_snapshot!(after);
    }

    #[test]
    fn a_table_with_frequencies_stays() {
        let resolved = UNRESOLVED
            .replace("rope(unresolved)", "rope(attention_factor=2.0, inverse_frequencies=[0.5, 0.25])");
        assert_eq!(rewrite(run, &resolved, 1), (0, resolved));
    }

    #[test]
    fn yarn_keeps_fast_dimensions_and_interpolates_slow_ones() {
        // Qwen2-7B-Instruct at factor 4; the ramp runs from dimension 23 to 40.
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_context: 32768,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.138_629_436_111_989,
        };
        let plain = rope_table(&Rope { theta: 1e6, scaling: RopeScaling::None }, 128).inverse_frequencies;
        let table = rope_table(&Rope { theta: 1e6, scaling }, 128);
        let ratio = |index: usize| table.inverse_frequencies[index] / plain[index];
        assert!((0..=23).all(|index| ratio(index) == 1.0));
        assert!((24..40).all(|index| ratio(index) < ratio(index - 1)));
        assert!((40..64).all(|index| ratio(index) == 0.25));
        assert_eq!(table.attention_factor, 1.138_629_4);
    }

    #[test]
    fn a_ramp_of_no_width_is_a_step() {
        // Both corrected dimensions fall below zero and are clamped to it or rounded up to it.
        let scaling = RopeScaling::Yarn {
            factor: 2.0,
            original_context: 6,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.0,
        };
        let mut config = tiny_config();
        config.rope = Rope { theta: 1e4, scaling };
        let table = rope_table(&config.rope, 4);
        assert_eq!(table.inverse_frequencies[0], 1.0);
        assert_eq!(table.inverse_frequencies[1], 0.005);
    }
}
