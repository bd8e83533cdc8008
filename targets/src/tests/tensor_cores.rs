//! Kernels for prompts on the matrix unit of CUDA devices: results, and what the emulator counts.

use std::ops::Range;

use qwen2c_emulator::Counts;

use super::*;

/// Runs a request on the emulated device; the first result and the counts.
fn run_counted(
    request: &KernelRequest,
    count: u64,
    inputs: &[Vec<f32>],
    weights: &[Vec<f32>],
    caches: &[Vec<u8>],
    gaps: &[(usize, Range<usize>)],
) -> (Vec<f32>, Counts) {
    let target = resolve_target(&["sm_80"]).unwrap();
    let choice = target.choose(request).unwrap();
    let layouts: Vec<WeightLayout> = choice.layouts.iter().map(|options| options[0].layout).collect();
    let mut buffers: Vec<Vec<u8>> =
        request.inputs.iter().zip(inputs).map(|(ty, x)| value_bytes(ty, x)).collect();
    for ((ty, layout), values) in request.weights.iter().zip(&layouts).zip(weights) {
        buffers.push(pack(ty, *layout, values));
    }
    buffers.extend_from_slice(caches);
    let ty = &request.outputs[0];
    let elements = ty.bytes(count, count) / ty.element.bytes();
    buffers.push(to_bytes(ty.element, &vec![77.0; elements as usize]));
    let source = KernelSource { name: "kernel", request, layouts: &layouts, is_persistent: false };
    let workspace_bytes = choice.workspace_bytes;
    let counts = device::run_with_gaps(&target, &source, workspace_bytes, count, &mut buffers, gaps);
    (from_bytes(ty.element, buffers.last().unwrap()), counts)
}

/// What follows a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Epilogue {
    Nothing,
    BiasAndResidual,
    SiluMultiply,
}

const EPILOGUES: [Epilogue; 3] = [Epilogue::Nothing, Epilogue::BiasAndResidual, Epilogue::SiluMultiply];

/// Runs a product and compares it; returns its counts.
fn check_product(
    element: Element,
    quantization: Option<Quantization>,
    (inputs, outputs): (u64, u64),
    epilogue: Epilogue,
    (count, max_rows): (u64, u64),
) -> Counts {
    let (adds, gated) = (epilogue == Epilogue::BiasAndResidual, epilogue == Epilogue::SiluMultiply);
    let mut w_type = weight(element, &[if gated { 2 * outputs } else { outputs }, inputs]);
    w_type.quantization = quantization;
    let (x, w) = (numbers(count * inputs, 1), numbers(w_type.rows() * inputs, 2));
    let (b, r) = (numbers(outputs, 3), numbers(count * outputs, 4));
    let mut ty = request(
        Operation::Matmul { norm: None, bias: adds, residual: adds, silu_multiply: gated },
        vec![rows(element, &[inputs])],
        vec![w_type],
        vec![rows(if gated { element } else { Element::F32 }, &[outputs])],
    );
    ty.max_rows = max_rows;
    let (mut given, mut weights) = (vec![x.clone()], vec![w.clone()]);
    if adds {
        ty.inputs.push(rows(Element::F32, &[outputs]));
        ty.weights.push(weight(Element::F32, &[outputs]));
        given.push(r.clone());
        weights.push(b.clone());
    }
    let (found, counts) = run_counted(&ty, count, &given, &weights, &[], &[]);
    let w = quantization.map_or(w.clone(), |quantization| dequantized(quantization, &w, inputs));
    let sums = product(&x, &w, inputs as usize);
    let n = outputs as usize;
    // Scaled sums round, in the plain loop as well.
    let tolerance = if quantization.is_some() { 2e-4 } else { 1e-5 };
    let (expected, tolerance): (Vec<f32>, f32) = match epilogue {
        Epilogue::Nothing => (sums, tolerance),
        Epilogue::BiasAndResidual => {
            let add = |(place, (sum, r)): (usize, (&f32, &f32))| sum + b[place % n] + r;
            (sums.iter().zip(&r).enumerate().map(add).collect(), tolerance)
        }
        Epilogue::SiluMultiply => {
            let combine = |row: &[f32]| -> Vec<f32> { (0..n).map(|i| silu(row[i]) * row[i + n]).collect() };
            (
                sums.chunks(2 * n).flat_map(combine).collect(),
                if element == Element::F16 { 1e-3 } else { 1e-2 },
            )
        }
    };
    assert_close(&found, &expected, tolerance);
    counts
}

#[test]
fn products_of_elements() {
    for element in [Element::Bf16, Element::F16] {
        for epilogue in EPILOGUES {
            // Whole tiles, odd extents, rows that end within a stage; blocks of 32, 64 and 128 rows.
            for (extents, counts) in [
                ((64, 128), (64, 64)),
                ((200, 107), (77, 256)),
                ((1000, 40), (13, 16)),
                ((72, 250), (130, 4096)),
                ((136, 300), (130, 8192)),
            ] {
                let counts = check_product(element, None, extents, epilogue, counts);
                assert!(counts.matrix_operations > 0);
                assert_eq!(counts.shared_bank_conflicts, 0);
            }
        }
    }
}

#[test]
fn products_of_integers() {
    // A group of 16 inputs is less than what is multiplied at a time.
    for quantization in FORMATS.into_iter().filter(|quantization| quantization.group >= 32) {
        let quantization = Some(quantization);
        for (element, epilogue, extents, counts) in [
            (Element::Bf16, Epilogue::Nothing, (128, 128), (64, 64)),
            (Element::Bf16, Epilogue::BiasAndResidual, (1128, 107), (77, 256)),
            (Element::Bf16, Epilogue::SiluMultiply, (200, 107), (130, 8192)),
            (Element::F16, Epilogue::Nothing, (2088, 40), (13, 16)),
        ] {
            let counts = check_product(element, quantization, extents, epilogue, counts);
            assert!(counts.matrix_operations > 0);
            assert_eq!(counts.shared_bank_conflicts, 0);
        }
    }
}

/// Lists for more rows have larger blocks; a row's result is the same.
#[test]
fn blocks_of_32_64_and_128_rows_give_the_same_bits() {
    for quantization in [None, Some(Quantization::signed(4, 32))] {
        let (inputs, outputs, count) = (200, 300, 70);
        let mut w_type = weight(Element::Bf16, &[outputs, inputs]);
        w_type.quantization = quantization;
        let (x, w) = (numbers(count * inputs, 1), numbers(outputs * inputs, 2));
        let results = [96, 4096, 8192].map(|max_rows| {
            let mut ty = request(
                Operation::Matmul { norm: None, bias: false, residual: false, silu_multiply: false },
                vec![rows(Element::Bf16, &[inputs])],
                vec![w_type.clone()],
                vec![rows(Element::F32, &[outputs])],
            );
            ty.max_rows = max_rows;
            let grid = resolve_target(&["sm_80"]).unwrap().choose(&ty).unwrap().launches[0];
            let given = [std::slice::from_ref(&x), std::slice::from_ref(&w)];
            (grid.rows_per_block, run_counted(&ty, count, given[0], given[1], &[], &[]).0)
        });
        let largest = if quantization.is_some() { 64 } else { 128 };
        assert_eq!(results.each_ref().map(|(rows, _)| *rows), [32, 64, largest]);
        assert_eq!(results[0].1, results[1].1, "{quantization:?}");
        assert_eq!(results[0].1, results[2].1, "{quantization:?}");
    }
}

#[test]
fn no_product_is_executed_in_vain() {
    for quantization in [None, Some(Quantization::signed(4, 32))] {
        for epilogue in EPILOGUES {
            let (inputs, outputs, count) = (256, 256, 256);
            let counts =
                check_product(Element::Bf16, quantization, (inputs, outputs), epilogue, (count, count));
            let halves = if epilogue == Epilogue::SiluMultiply { 2 } else { 1 };
            assert_eq!(counts.matrix_operations, inputs * halves * outputs * count / (16 * 8 * 16));
        }
    }
}

/// Runs a product of grouped experts and compares it; each of `experts` but the last two has entries.
fn check_experts(
    element: Element,
    quantization: Option<Quantization>,
    (experts, inputs, outputs): (u64, u64, u64),
    (is_by_entry, gated): (bool, bool),
    (count, max_rows): (u64, u64),
) -> Counts {
    let choices = 3;
    let mut w_type = weight(element, &[experts, if gated { 2 * outputs } else { outputs }, inputs]);
    w_type.quantization = quantization;
    let matrix = (w_type.rows() / experts * inputs) as usize;
    let x_extents = if is_by_entry { vec![choices, inputs] } else { vec![inputs] };
    let (x_type, n) = (rows(element, &x_extents), inputs as usize);
    let (x, w) = (numbers(count * x_type.row_elements(), 1), numbers(w_type.rows() * inputs, 2));
    let chosen: Vec<usize> =
        (0..(count * choices) as usize).map(|entry| entry * 7 % (experts as usize - 2)).collect();
    let mut entries: Vec<usize> = (0..chosen.len()).collect();
    entries.sort_by_key(|entry| chosen[*entry]);
    let offset = |expert: usize| entries.partition_point(|entry| chosen[*entry] < expert);
    let table: Vec<usize> = std::iter::once(experts as usize - 2)
        .chain((0..experts as usize).map(|place| if place < experts as usize - 2 { place } else { 0 }))
        .chain((0..=experts as usize).map(offset))
        .chain(entries.iter().copied())
        .collect();
    let table_type = TensorType {
        dimensions: vec![Dimension::constant("table", table.len() as u64)],
        element: Element::I32,
    };
    let mut ty = request(
        Operation::ExpertMatmul { grouped: true, silu_multiply: gated },
        vec![x_type, rows(Element::I32, &[choices]), table_type],
        vec![w_type],
        vec![rows(if gated { element } else { Element::F32 }, &[choices, outputs])],
    );
    ty.max_rows = max_rows;
    let as_numbers = |indices: &[usize]| indices.iter().map(|index| *index as f32).collect::<Vec<f32>>();
    let given = [x.clone(), as_numbers(&chosen), as_numbers(&table)];
    let (found, counts) = run_counted(&ty, count, &given, std::slice::from_ref(&w), &[], &[]);
    let w = quantization.map_or(w.clone(), |quantization| dequantized(quantization, &w, inputs));
    let of_entry = |(entry, expert): (usize, &usize)| -> Vec<f32> {
        let row = if is_by_entry { entry } else { entry / choices as usize };
        let sums = product(&x[row * n..][..n], &w[expert * matrix..][..matrix], n);
        let half = outputs as usize;
        if gated { (0..half).map(|i| silu(sums[i]) * sums[i + half]).collect() } else { sums }
    };
    let expected: Vec<f32> = chosen.iter().enumerate().flat_map(of_entry).collect();
    assert_close(&found, &expected, if gated { 1e-2 } else { 1e-4 });
    counts
}

#[test]
fn products_of_grouped_experts() {
    for quantization in [None, Some(Quantization::signed(4, 32)), Some(Quantization::signed(8, 64))] {
        // Many entries of few experts, then few of many.
        for (extents, kind, counts) in [
            ((5, 200, 107), (false, true), (70, 128)),
            ((4, 136, 128), (true, false), (60, 64)),
            ((12, 64, 40), (false, false), (33, 64)),
        ] {
            let counts = check_experts(Element::Bf16, quantization, extents, kind, counts);
            assert!(counts.matrix_operations > 0);
            assert_eq!(counts.shared_bank_conflicts, 0);
        }
    }
}

/// Runs attention for rows at positions from `first` on and compares it. Nothing behind the last row's position
/// was ever written.
fn check_attention(
    element: Element,
    (heads, kv_heads, head_dim): (u64, u64, u64),
    (first, count): (u64, u64),
    (context, max_rows): (u64, u64),
) -> Counts {
    let cache = |kind| CacheType { kind, slots: 1, kv_heads, context, head_dim, element };
    let index = || rows(Element::I32, &[]);
    let scale = 0.3;
    let mut ty = request(
        Operation::Attention { heads, scale: Real(scale), rounded: false },
        vec![rows(Element::F32, &[heads * head_dim]), index(), index()],
        vec![],
        vec![rows(element, &[heads * head_dim])],
    );
    ty.caches = vec![cache(CacheKind::Key), cache(CacheKind::Value)];
    ty.max_rows = max_rows;
    let written = first + count;
    let q = numbers(count * heads * head_dim, 5);
    let width = kv_heads * head_dim;
    let (keys, values) = (numbers(written * width, 6), numbers(written * width, 7));
    let of_positions =
        |x: &[f32]| -> Vec<Vec<f32>> { x.chunks(width as usize).map(<[f32]>::to_vec).collect() };
    let (keys, values) = (of_positions(&keys), of_positions(&values));
    let positions: Vec<usize> = (first as usize..written as usize).collect();
    let bytes = resolve_target(&["sm_80"]).unwrap().cache_bytes(&cache(CacheKind::Key)) as usize;
    let head_bytes = bytes / kv_heads as usize;
    let used = (written * head_dim * element.bytes()) as usize;
    let lay_out = |entries: &[Vec<f32>]| -> Vec<u8> {
        let head = |head: usize| {
            let of_head = |entry: &Vec<f32>| entry[head * head_dim as usize..][..head_dim as usize].to_vec();
            let mut bytes = to_bytes(element, &entries.iter().flat_map(of_head).collect::<Vec<f32>>());
            bytes.resize(head_bytes, 0xff);
            bytes
        };
        (0..kv_heads as usize).flat_map(head).collect()
    };
    let gaps: Vec<(usize, Range<usize>)> = (3..5)
        .flat_map(|cache| (0..kv_heads as usize).map(move |head| (cache, head * head_bytes)))
        .map(|(cache, start)| (cache, start + used..start + head_bytes))
        .collect();
    let given = [q.clone(), positions.iter().map(|p| *p as f32).collect(), vec![0.0; count as usize]];
    let (found, counts) = run_counted(&ty, count, &given, &[], &[lay_out(&keys), lay_out(&values)], &gaps);
    let shape = (heads as usize, kv_heads as usize, head_dim as usize);
    let expected = attention::attention(&q, &keys, &values, &positions, shape, scale, false);
    // Weights of values and results are rounded.
    assert_close(&found, &expected, if element == Element::F16 { 1e-3 } else { 5e-3 });
    counts
}

#[test]
fn attention_of_prompts() {
    for (element, heads, rows, sizes) in [
        (Element::Bf16, (4, 2, 64), (0, 77), (300, 128)),
        (Element::F16, (2, 2, 128), (100, 70), (300, 128)),
        (Element::Bf16, (7, 1, 128), (40, 33), (256, 64)),
        (Element::Bf16, (6, 1, 80), (250, 5), (512, 256)),
        (Element::Bf16, (3, 3, 16), (0, 130), (256, 256)),
    ] {
        let counts = check_attention(element, heads, rows, sizes);
        assert!(counts.matrix_operations > 0);
        // Other heads do not fill the banks evenly when they arrive.
        assert!(![64, 128].contains(&heads.2) || counts.shared_bank_conflicts == 0);
    }
}

#[test]
fn positions_that_nobody_sees_cost_nothing() {
    // 64 rows see 64 positions, the next 64 rows see 128.
    let counts = check_attention(Element::Bf16, (1, 1, 64), (0, 128), (1024, 1024));
    let of_tile = 2 * 64 * 64 * 64 / (16 * 8 * 16);
    assert_eq!(counts.matrix_operations, 3 * of_tile);
}
