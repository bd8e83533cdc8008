//! What kernels of devices move, to the byte: a token's time on a device is the time of its bytes.

use qwen2c_emulator::Counts;

use super::device::count;
use super::*;

fn device() -> AnyTarget {
    resolve_target(&["sm_80"]).unwrap()
}

fn product_of_one_row(quantization: Option<Quantization>, inputs: u64, outputs: u64) -> KernelRequest {
    let mut w_type = weight(Element::Bf16, &[outputs, inputs]);
    w_type.quantization = quantization;
    let mut ty = request(
        Operation::Matmul { norm: None, bias: false, residual: false, silu_multiply: false },
        vec![rows(Element::Bf16, &[inputs])],
        vec![w_type],
        vec![rows(Element::F32, &[outputs])],
    );
    ty.max_rows = 1;
    ty
}

/// A product with one row: every byte of the weight is asked for once, and the inputs once by each block, all of it
/// 16 bytes wide.
#[test]
fn a_token_reads_every_weight_once_and_16_bytes_at_a_time() {
    let formats = [
        (None, 4),
        (Some(Quantization::signed(8, 32)), 8),
        (Some(Quantization::signed(4, 32)), 8),
        (Some(Quantization::signed(4, 128)), 8),
    ];
    for (quantization, rows_of_warp) in formats {
        // The second has inputs for several blocks of 32 units and a remainder.
        for (inputs, outputs) in [(896_u64, 160_u64), (3648, 64)] {
            let ty = product_of_one_row(quantization, inputs, outputs);
            let (x, w) = (numbers(inputs, 41), numbers(outputs * inputs, 42));
            let (counts, bytes) = count(&device(), &ty, 1, &[x], &[w], &[]);
            let units = inputs * quantization.map_or(16, |quantization| u64::from(quantization.bits)) / 128;
            // As many warps share a task as have a block of 32 units each.
            let warps = [4, 2, 1].into_iter().find(|warps| *warps <= units.div_ceil(32)).unwrap();
            let of_inputs = (outputs / rows_of_warp * warps).div_ceil(4) * inputs * 2;
            // Threads whose units share a group ask for its scales each, in one instruction.
            let shared = quantization.map_or(0, |quantization| {
                let units = inputs * u64::from(quantization.bits) / 128;
                (units - inputs.div_ceil(quantization.group.into())) * 16 * (outputs / rows_of_warp)
            });
            let asked = counts.global_read_bytes - of_inputs - shared;
            // What pads a last block to whole sectors is never read.
            let padding = bytes.weights - asked;
            let most = quantization.map_or(0, |_| outputs / rows_of_warp * 16);
            assert!(padding <= most, "{quantization:?}, {inputs}: {padding} bytes were not read");
            // Memory delivers weights and inputs once; what warps ask for again lies in a cache.
            assert_eq!(counts.global_distinct_read_bytes, asked + inputs * 2);
            assert_eq!(counts.global_loads, counts.global_loads_of_16_bytes, "{quantization:?}, {inputs}");
            // A thread's inputs are next to one another: each of its loads takes half of a sector that the
            // cache has after the first. Weights come in whole sectors, but for runs that begin in the middle.
            let sectors_bytes = counts.global_load_transactions * 32;
            let most = bytes.weights + bytes.weights / 33 + 2 * of_inputs;
            assert!(sectors_bytes <= most, "{quantization:?}, {inputs}: {sectors_bytes}, at most {most}");
            assert_eq!(counts.global_written_bytes, outputs * 4);
            assert_eq!(counts.shared_bank_conflicts, 0);
        }
    }
}

/// A product that fills a device has the inputs in shared memory: a block of four warps, which have 16 output rows
/// each or half of the inputs of 16, asks for them once.
#[test]
fn blocks_of_a_large_product_ask_for_the_inputs_once() {
    let (inputs, outputs) = (2048_u64, 8192_u64);
    for (quantization, rows_of_block) in [(None, 64), (Some(Quantization::signed(4, 32)), 32)] {
        let ty = product_of_one_row(quantization, inputs, outputs);
        let (x, w) = (numbers(inputs, 44), numbers(outputs * inputs, 45));
        let (counts, bytes) = count(&device(), &ty, 1, &[x], &[w], &[]);
        let blocks = outputs / rows_of_block;
        assert_eq!(counts.global_read_bytes, bytes.weights + blocks * inputs * 2, "{quantization:?}");
        assert_eq!(counts.global_distinct_read_bytes, bytes.weights + inputs * 2, "{quantization:?}");
        assert_eq!(counts.global_loads, counts.global_loads_of_16_bytes, "{quantization:?}");
        assert_eq!(counts.shared_bank_conflicts, 0, "{quantization:?}");
    }
}

/// Attention of one row in a cache with so many positions of which some are behind it.
fn attention_of_one_row(
    (heads, kv_heads, head_dim): (u64, u64, u64),
    context: u64,
    positions: u64,
) -> Counts {
    let cache = |kind| CacheType { kind, slots: 1, kv_heads, context, head_dim, element: Element::Bf16 };
    let mut ty = request(
        Operation::Attention { heads, scale: Real(0.125), rounded: false },
        vec![rows(Element::F32, &[heads * head_dim]), rows(Element::I32, &[]), rows(Element::I32, &[])],
        vec![],
        vec![rows(Element::Bf16, &[heads * head_dim])],
    );
    ty.caches = vec![cache(CacheKind::Key), cache(CacheKind::Value)];
    ty.max_rows = 1;
    let cache_bytes = device().cache_bytes(&ty.caches[0]) as usize;
    let given = [numbers(heads * head_dim, 43), vec![positions as f32 - 1.0], vec![0.0]];
    count(&device(), &ty, 1, &given, &[], &[vec![0; cache_bytes], vec![0; cache_bytes]]).0
}

/// Keys and values of all query heads of a kv head are read once.
#[test]
fn a_token_reads_the_cache_once() {
    let (heads, kv_heads, head_dim, positions) = (14_u64, 2_u64, 64_u64, 900_u64);
    let counts = attention_of_one_row((heads, kv_heads, head_dim), 1024, positions);
    let floor = 2 * kv_heads * positions * head_dim * 2;
    // Beside the cache: queries, for each block of positions, and partial results.
    let blocks = positions.div_ceil(256);
    let queries = kv_heads * blocks * 128 * 7 * 8 * 4;
    let partial = heads * 128 * blocks * 4 * 5;
    let beside = counts.global_read_bytes.saturating_sub(queries + partial);
    assert!(beside <= floor + floor / 50, "{} bytes, {floor} at least", counts.global_read_bytes);
    assert!(counts.global_read_bytes >= floor);
}

/// Of a long text of a 7B memory delivers the cache, and queries and what the blocks leave once.
#[test]
fn a_token_of_7b_reads_a_long_cache_once() {
    let (heads, kv_heads, head_dim, positions) = (28_u64, 4_u64, 128_u64, 4000_u64);
    let counts = attention_of_one_row((heads, kv_heads, head_dim), 4096, positions);
    let floor = 2 * kv_heads * positions * head_dim * 2;
    let blocks = positions.div_ceil(256);
    // A block leaves its maximum and its sum with each head's result. The slot is read by the attention alone, the
    // position by the merge as well.
    let beside = heads * head_dim * 4 + heads * blocks * (head_dim + 2) * 4 + 12;
    let read = counts.global_distinct_read_bytes;
    assert!(
        read >= floor && read <= floor + beside,
        "{read} bytes, {floor} of the cache, {beside} beside it"
    );
}
