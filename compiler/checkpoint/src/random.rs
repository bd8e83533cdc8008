//! Random weights: a model's shape without a checkpoint, for plans, builds and benchmarks.
//!
//! An element is a function of (seed, tensor's name, index in the tensor) alone, so any row of any
//! tensor can be read in any order, nothing is stored, and all machines agree: integer arithmetic and
//! one multiplication, no libm. Two neighbours share one draw of 64 bits, because drawing is what takes
//! the time.

use qwen2c_graph::{SourceError, TensorSource};

/// Standard deviation of matrix elements, biases, and of the noise around 1 in norms: the
/// `initializer_range` of the family.
const SIGMA: f64 = 0.02;

/// Tensors made up from a seed.
#[derive(Clone, Copy, Debug)]
pub struct RandomWeights {
    seed: u64,
}

impl RandomWeights {
    /// Weights of this seed.
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }
}

impl TensorSource for RandomWeights {
    fn read_rows(
        &self,
        tensor: &str,
        columns: u64,
        first_row: u64,
        out: &mut [f32],
    ) -> Result<(), SourceError> {
        let key = tensor_key(self.seed, tensor);
        let mean = if tensor.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let first = first_row.wrapping_mul(columns);
        // Rows of odd length may begin with the second element of a draw.
        let (alone, paired) = out.split_at_mut(out.len().min((first % 2) as usize));
        for element in alone {
            *element = mean + near_normal(byte_sums(draw(key, first / 2))[1]);
        }
        fill_pairs(key, first.div_ceil(2), mean, paired);
        Ok(())
    }
}

/// Fills `out` with the elements of consecutive draws.
fn fill_pairs(key: u64, first_draw: u64, mean: f32, out: &mut [f32]) {
    const BLOCK: usize = 64;
    let mut sums = [0; BLOCK];
    // Draws first and floats after them: the second loop becomes vector code.
    for (block, first) in out.chunks_mut(BLOCK).zip((first_draw..).step_by(BLOCK / 2)) {
        for (pair, index) in sums.as_chunks_mut().0.iter_mut().zip(first..) {
            *pair = byte_sums(draw(key, index));
        }
        for (element, sum) in block.iter_mut().zip(sums) {
            *element = mean + near_normal(sum);
        }
    }
}

/// The draw that the elements `2 · index` and `2 · index + 1` share.
const fn draw(key: u64, index: u64) -> u64 {
    mix(key.wrapping_add(index.wrapping_mul(GOLDEN_RATIO)))
}

/// 2⁶⁴ divided by the golden ratio: the increment of SplitMix64.
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea and Flood 2014).
const fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// A starting state for each (seed, name): FNV-1a over the name, mixed with the seed.
fn tensor_key(seed: u64, name: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    mix(hash ^ mix(seed.wrapping_add(GOLDEN_RATIO)))
}

/// The sums of the lower and of the upper four bytes.
const fn byte_sums(bits: u64) -> [u32; 2] {
    const BYTES: u64 = 0x00ff_00ff_00ff_00ff;
    let pairs = (bits & BYTES) + ((bits >> 8) & BYTES);
    let sums = pairs + (pairs >> 16);
    [sums as u32 & 0xffff, (sums >> 32) as u32 & 0xffff]
}

/// Four uniform bytes summed: close to a normal distribution, cut at 3.45 sigma.
fn near_normal(sum: u32) -> f32 {
    /// The mean of the sum, so that the result is symmetric around 0.
    const CENTRE: i32 = 2 * 0xff;
    /// The sum's standard deviation is √((2¹⁶ − 1) / 3).
    const SCALE: f32 = (SIGMA / 147.800_315_741_884_5) as f32;
    (sum as i32 - CENTRE) as f32 * SCALE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(seed: u64, tensor: &str, columns: u64, first_row: u64, rows: usize) -> Vec<f32> {
        let mut out = vec![0.0; rows * columns as usize];
        RandomWeights::new(seed).read_rows(tensor, columns, first_row, &mut out).unwrap();
        out
    }

    #[test]
    fn rows_do_not_depend_on_how_they_are_read() {
        let whole = read(7, "model.layers.0.mlp.up_proj.weight", 33, 0, 20);
        let tail = read(7, "model.layers.0.mlp.up_proj.weight", 33, 11, 9);
        assert_eq!(whole[11 * 33..], tail[..]);
    }

    #[test]
    fn rows_of_odd_length_share_draws_and_still_do_not_depend_on_how_they_are_read() {
        let whole = read(7, "lm_head.weight", 5, 0, 9);
        for row in 0..9 {
            assert_eq!(whole[row * 5..][..5], read(7, "lm_head.weight", 5, row as u64, 1), "row {row}");
        }
    }

    #[test]
    fn seeds_and_names_give_other_numbers() {
        let reference = read(1, "a.weight", 8, 0, 1);
        assert_ne!(reference, read(2, "a.weight", 8, 0, 1));
        assert_ne!(reference, read(1, "b.weight", 8, 0, 1));
    }

    #[test]
    fn elements_are_centred_with_the_family_s_deviation() {
        let values = read(0, "lm_head.weight", 1000, 0, 200);
        let count = values.len() as f64;
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
        let variance = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count;
        assert!(mean.abs() < 2e-4, "mean {mean}");
        assert!((variance.sqrt() - SIGMA).abs() < 2e-4, "deviation {}", variance.sqrt());
    }

    #[test]
    fn neighbouring_rows_are_not_correlated() {
        let values = read(3, "lm_head.weight", 4096, 0, 2);
        let (first, second) = values.split_at(4096);
        let product: f64 =
            first.iter().zip(second).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() / 4096.0;
        assert!((product / (SIGMA * SIGMA)).abs() < 0.06, "correlation {}", product / (SIGMA * SIGMA));
    }

    #[test]
    fn norms_lie_around_one() {
        assert!(read(0, "model.norm.weight", 896, 0, 1).iter().all(|value| (value - 1.0).abs() < 0.08));
    }

    #[test]
    fn values_are_the_same_on_every_machine() {
        let bits: Vec<u32> =
            read(0, "model.embed_tokens.weight", 4, 5, 1).iter().map(|v| v.to_bits()).collect();
        assert_eq!(bits, [1_016_513_107, 1_010_594_536, 1_025_809_817, 3_153_031_390]);
    }
}
