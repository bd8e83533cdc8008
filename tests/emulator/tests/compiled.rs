//! Kernels as clang and LLVM write them: right results under several schedules, exact counts.

mod device;

use device::product::multiply;
use device::{Argument, Device, KERNELS, Numbers, shape};

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
