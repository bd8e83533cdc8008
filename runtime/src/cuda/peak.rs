//! What a device can do at most, from its data sheet's numbers: the driver tells clocks and widths.
//!
//! Memory transfers on both edges of its clock. What a multiprocessor computes in a cycle follows from its
//! architecture; a consumer device of the same architecture may do half as much with sums in `f32`.

use super::device::DeviceFacts;
use crate::peak::Peak;

/// Operations of one multiprocessor in one cycle, a multiply-add counted as two.
struct Rates {
    architecture: u32,
    in_f32: u32,
    in_bf16: u32,
    in_int8: u32,
}

/// By ascending architecture; a device has the rates of the newest one that is not newer than it.
const RATES: [Rates; 5] = [
    Rates { architecture: 80, in_f32: 128, in_bf16: 2048, in_int8: 4096 },
    Rates { architecture: 86, in_f32: 256, in_bf16: 1024, in_int8: 2048 },
    Rates { architecture: 90, in_f32: 256, in_bf16: 4096, in_int8: 8192 },
    Rates { architecture: 100, in_f32: 256, in_bf16: 8192, in_int8: 16384 },
    Rates { architecture: 120, in_f32: 256, in_bf16: 1024, in_int8: 2048 },
];

/// The device's peak.
pub(crate) fn peak(facts: &DeviceFacts) -> Peak {
    let edges = 2.0;
    let read_bytes_per_s =
        edges * f64::from(facts.memory_clock_khz) * 1e3 * f64::from(facts.memory_bus_bits) / 8.0;
    let rates =
        RATES.iter().rev().find(|rates| rates.architecture <= facts.architecture).unwrap_or(&RATES[0]);
    let cycles_per_s = f64::from(facts.multiprocessors) * f64::from(facts.clock_khz) * 1e3;
    // A driver that does not tell leaves zeros, over which no share can be had.
    let known = |rate: f64| if rate > 0.0 { rate } else { f64::INFINITY };
    Peak {
        read_bytes_per_s: known(read_bytes_per_s),
        operations_per_s: known(cycles_per_s * f64::from(rates.in_f32)),
        bf16_operations_per_s: Some(known(cycles_per_s * f64::from(rates.in_bf16))),
        int8_operations_per_s: Some(known(cycles_per_s * f64::from(rates.in_int8))),
        threads: 1,
        best_read: "by clock and width, not measured",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published: 2039 GB/s and 312 TFLOP/s; 600 GB/s and 125 TFLOP/s.
    #[test]
    fn peaks_are_those_of_data_sheets() {
        let mut facts = DeviceFacts {
            number: 0,
            name: "NVIDIA A100-SXM4-80GB".to_owned(),
            architecture: 80,
            memory_bytes: 80 << 30,
            shared_bytes_of_a_block: 166_912,
            multiprocessors: 108,
            runs_blocks_together: true,
            clock_khz: 1_410_000,
            memory_clock_khz: 1_593_000,
            memory_bus_bits: 5120,
        };
        let near = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 0.01, "{found}");
        near(peak(&facts).read_bytes_per_s, 2039e9);
        near(peak(&facts).matrix_operations_per_s(), 312e12);
        facts.architecture = 86;
        facts.multiprocessors = 72;
        facts.clock_khz = 1_695_000;
        (facts.memory_clock_khz, facts.memory_bus_bits) = (6_251_000, 384);
        near(peak(&facts).read_bytes_per_s, 600e9);
        near(peak(&facts).matrix_operations_per_s(), 125e12);
        facts.memory_clock_khz = 0;
        assert_eq!(1.0 / peak(&facts).read_bytes_per_s, 0.0);
    }
}
