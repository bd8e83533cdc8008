//! Kernels as clang and LLVM write them: right results under several schedules, exact counts.

use crate::device::product::multiply;
use crate::device::{Argument, Device, KERNELS, Numbers, shape};

const SEEDS: std::ops::Range<u64> = 0..6;

#[test]
fn vectors_are_added_sixteen_bytes_at_a_time() {
    let mut numbers = Numbers::new(1);
    let count = 1000;
    let a: Vec<f32> = (0..count).map(|_| numbers.float()).collect();
    let b: Vec<f32> = (0..count).map(|_| numbers.float()).collect();
    for seed in SEEDS {
        let mut device = Device::new();
        device.seed = seed;
        let (first, second) = (device.upload_floats(&a), device.upload_floats(&b));
        let out = device.reserve(4 * count);
        let arguments = [first, second, out].map(Argument::Pointer);
        let arguments = [&arguments[..], &[Argument::Word(count as u32)]].concat();
        let counts = device.run(KERNELS, "vector_add", shape(2, 128), &arguments).unwrap();
        let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        assert_eq!(device.floats(out, count), expected);
        assert_eq!(counts.global_read_bytes, 8000);
        assert_eq!(counts.global_written_bytes, 4000);
        assert_eq!(counts.global_load_transactions, 250);
        assert_eq!((counts.global_loads, counts.global_loads_of_16_bytes), (500, 500));
        assert_eq!(counts.scalar_operations, 1000);
    }
}

#[test]
fn blocks_are_summed_through_shuffles_and_shared_memory() {
    let mut numbers = Numbers::new(2);
    let blocks = 7;
    let a: Vec<f32> = (0..256 * blocks).map(|_| numbers.float()).collect();
    for seed in SEEDS {
        let mut device = Device::new();
        device.seed = seed;
        let (from, out) = (device.upload_floats(&a), device.reserve(4 * blocks));
        let arguments = [from, out].map(Argument::Pointer);
        let counts = device.run(KERNELS, "block_sum", shape(blocks as u32, 256), &arguments).unwrap();
        for (block, sum) in device.floats(out, blocks).into_iter().enumerate() {
            let exact: f64 = a[256 * block..256 * (block + 1)].iter().map(|value| f64::from(*value)).sum();
            assert!((f64::from(sum) - exact).abs() < 1e-4, "{sum} {exact}");
        }
        assert_eq!(counts.barriers, 8 * blocks as u64);
    }
}

#[test]
fn matrices_are_multiplied_through_two_stages() {
    for seed in SEEDS {
        let (error, counts) = multiply(KERNELS, seed).unwrap();
        assert!(error < 1e-4, "the greatest error is {error}");
        // 64 × 96 × 96 in pieces of 16 × 8 × 16.
        assert_eq!(counts.matrix_operations, 4 * 12 * 6);
        assert_eq!(counts.matrix_scalar_operations, 2 * 64 * 96 * 96);
        // Eight lanes copy two rows of 64 bytes, 80 bytes apart, which share four banks; `ldmatrix` has no conflict.
        assert_eq!(counts.shared_bank_conflicts, 6 * 3 * 2 * 4 * 4);
        assert_eq!(counts.global_loads, counts.global_loads_of_16_bytes);
        assert_eq!(counts.global_read_bytes, 6 * 2 * 32 * 96 * 2);
    }
}

#[test]
fn a_product_with_a_vector_reads_every_weight_once() {
    let (rows, pieces) = (24usize, 3usize);
    let columns = 256 * pieces;
    let mut numbers = Numbers::new(4);
    let mut short =
        |count: usize| -> Vec<u16> { (0..count).map(|_| (numbers.float().to_bits() >> 16) as u16).collect() };
    let (weights, x) = (short(rows * columns), short(columns));
    let bytes = |values: &[u16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    for seed in SEEDS {
        let mut device = Device::new();
        device.seed = seed;
        let pointers = [device.upload(&bytes(&weights)), device.upload(&bytes(&x)), device.reserve(4 * rows)];
        let arguments = [&pointers.map(Argument::Pointer)[..], &[Argument::Word(pieces as u32)]].concat();
        let counts = device.run(KERNELS, "matvec", shape(rows as u32 / 4, 128), &arguments).unwrap();
        let widen = |value: u16| f64::from(f32::from_bits(u32::from(value) << 16));
        for (row, found) in device.floats(pointers[2], rows).into_iter().enumerate() {
            let exact: f64 = (0..columns).map(|k| widen(weights[row * columns + k]) * widen(x[k])).sum();
            assert!((f64::from(found) - exact).abs() < 1e-4, "row {row}: {found}, not {exact}");
        }
        let (weight_bytes, x_bytes) = (2 * (rows * columns) as u64, 2 * columns as u64);
        assert_eq!(counts.global_distinct_read_bytes, weight_bytes + x_bytes);
        assert_eq!(counts.global_read_bytes, weight_bytes + rows as u64 * x_bytes);
        assert_eq!(counts.global_distinct_written_bytes, 4 * rows as u64);
        assert_eq!(counts.global_loads, counts.global_loads_of_16_bytes);
        assert_eq!(counts.global_load_transactions, (weight_bytes + rows as u64 * x_bytes) / 32);
        // Two operations a weight, and four sums of every lane; the fifth only where it is stored.
        assert_eq!(counts.scalar_operations, (2 * rows * columns + (4 * 32 + 1) * rows) as u64);
    }
}
