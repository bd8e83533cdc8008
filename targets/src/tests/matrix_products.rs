//! Products on the matrix unit: the shapes where it is used, and that it is.

use super::*;

/// Numbers of many magnitudes, so that sums are rounded and their order shows.
fn uneven(count: u64, seed: u64) -> Vec<f32> {
    let exponents = numbers(count, seed + 100);
    let scaled = numbers(count, seed).into_iter().zip(exponents);
    scaled.map(|(x, exponent)| x * (exponent * 7.0).round().exp2()).collect()
}

pub(super) fn target() -> AnyTarget {
    resolve_target(&["x86-64-amx"]).unwrap()
}

/// Whether this machine runs what surrounds the unit's instructions, which are emulated where it lacks them.
pub(super) fn can_run() -> bool {
    qwen2c_matrix_unit::prepare();
    let can_run = processors().iter().any(|target| target.description().name.contains("bf16"));
    if !can_run {
        eprintln!("this machine lacks AVX-512, VNNI or BF16: nothing around the matrix unit can run");
    }
    can_run
}

fn matmul(
    x: Element,
    inputs: u64,
    outputs: u64,
    quantization: Option<Quantization>,
    max_rows: u64,
) -> KernelRequest {
    let mut w_type = weight(Element::Bf16, &[outputs, inputs]);
    w_type.quantization = quantization;
    let mut ty = request(
        Operation::Matmul { norm: None, bias: false, residual: false, silu_multiply: false },
        vec![rows(x, &[inputs])],
        vec![w_type],
        vec![rows(Element::F32, &[outputs])],
    );
    ty.max_rows = max_rows;
    ty
}

#[test]
fn products_of_bf16_by_rows_and_epilogues() {
    if !can_run() {
        return;
    }
    // Blocks of inputs: part of one, two, two and a part. Panels: odd and even numbers, the last one cut.
    for (inputs, outputs) in [(32_u64, 24_u64), (544, 107), (1056, 160)] {
        for count in [16_u64, 37, 300] {
            for (bias, residual, gated) in [(false, false, false), (true, true, false), (true, false, true)] {
                if count == 300 && gated {
                    continue;
                }
                let columns = if gated { 2 * outputs } else { outputs };
                let mut ty = matmul(Element::Bf16, inputs, columns, None, 256);
                ty.operation = Operation::Matmul { norm: None, bias, residual, silu_multiply: gated };
                ty.outputs = vec![rows(Element::F32, &[outputs])];
                let (x, w) = (numbers(count * inputs, 1), numbers(columns * inputs, 2));
                let (b, r) = (numbers(columns, 3), numbers(count * outputs, 4));
                let (mut given, mut weights) = (vec![x.clone()], vec![w.clone()]);
                if residual {
                    ty.inputs.push(rows(Element::F32, &[outputs]));
                    given.push(r.clone());
                }
                if bias {
                    ty.weights.push(weight(Element::F32, &[columns]));
                    weights.push(b.clone());
                }
                let found = run(&target(), &ty, count, &given, &weights, &mut []).remove(0);
                let sums = product(&x, &w, inputs as usize);
                let with_bias: Vec<f32> = sums
                    .iter()
                    .enumerate()
                    .map(|(n, sum)| sum + if bias { b[n % columns as usize] } else { 0.0 })
                    .collect();
                let expected: Vec<f32> = if gated {
                    let half = outputs as usize;
                    with_bias
                        .chunks(columns as usize)
                        .flat_map(|row| (0..half).map(|n| silu(row[n]) * row[n + half]))
                        .collect()
                } else {
                    let residual = |n: usize| if residual { r[n] } else { 0.0 };
                    with_bias.iter().enumerate().map(|(n, sum)| sum + residual(n)).collect()
                };
                assert_close(&found, &expected, 1e-5);
            }
        }
    }
}

#[test]
fn a_step_of_the_inner_loop_loads_four_registers_for_four_products() {
    if !can_run() || qwen2c_matrix_unit::prepare() {
        return;
    }
    // 4 blocks of rows, 2 pairs of panels, 40 steps in 3 blocks of inputs.
    let (inputs, outputs, count) = (1280, 64, 64);
    let ty = matmul(Element::Bf16, inputs, outputs, None, 256);
    qwen2c_matrix_unit::take_counts();
    run(&target(), &ty, count, &[numbers(count * inputs, 1)], &[numbers(outputs * inputs, 2)], &mut []);
    let (blocks, panels, steps, visits) = (4, 4, 40, 3);
    let products = blocks * panels * steps;
    let sums = blocks * panels * visits;
    assert_eq!(
        qwen2c_matrix_unit::take_counts(),
        qwen2c_matrix_unit::Counts { loads: products + sums, stores: sums, products }
    );
}

/// The innermost loop around the first instruction of this name.
fn loop_around(ty: &KernelRequest, instruction: &str) -> String {
    let layouts: Vec<WeightLayout> =
        target().choose(ty).unwrap().layouts.iter().map(|options| options[0].layout).collect();
    let source = KernelSource { name: "kernel", request: ty, layouts: &layouts, is_persistent: false };
    let keep = KeepText { asm: true, ..KeepText::default() };
    let mut compiled = compile_kernels(&target(), &[source], keep).unwrap();
    let asm = compiled.texts.remove(0).asm.unwrap();
    let place = asm.find(instruction).expect("the kernel has the instruction");
    let start = asm[..place].rfind("\n.L").unwrap();
    let end = place + asm[place..].find("\tj").unwrap();
    asm[start..end].to_owned()
}

#[test]
fn inner_loops_keep_sums_in_registers() {
    let loop_of_bf16 = loop_around(&matmul(Element::Bf16, 896, 1152, None, 256), "tdpbf16ps");
    let count = |text: &str, word: &str| text.matches(word).count();
    assert_eq!(count(&loop_of_bf16, "tileload"), count(&loop_of_bf16, "tdpbf16ps"));
    assert_eq!(count(&loop_of_bf16, "tdpbf16ps") % 4, 0);
    assert_eq!(count(&loop_of_bf16, "tilestored"), 0);
    let formats = [Quantization::signed(8, 32), Quantization::signed(4, 32), Quantization::signed(4, 128)];
    for (quantization, x) in with_activations(&formats) {
        let Some(quantization) = quantization else { continue };
        let ty = matmul(x, 896, 1152, Some(quantization), 256);
        let products = loop_around(&ty, "tdpbssd");
        let steps = usize::try_from(quantization.group.div_ceil(64)).unwrap();
        assert_eq!(count(&products, "tdpbssd"), steps * count(&products, "tilestored"), "{products}");
        assert_eq!(2 * count(&products, "tileload"), 3 * count(&products, "tdpbssd"), "{products}");
        let scaled = loop_around(&ty, "vfmadd");
        assert_eq!(count(&scaled, "vcvtdq2ps") % 16, 0, "{scaled}");
        assert_eq!(count(&scaled, "vfmadd"), count(&scaled, "vcvtdq2ps"), "{scaled}");
        // A register that goes to memory is a sum that found no place.
        let stored = scaled.lines().filter(|line| line.contains("vmov") && line.ends_with("(%rsp)"));
        assert_eq!(stored.count(), 0, "{scaled}");
    }
}

#[test]
fn rows_get_the_same_bits_alone_and_in_blocks() {
    if !can_run() {
        return;
    }
    let (inputs, outputs, count) = (1184_u64, 50_u64, 37_u64);
    for (quantization, x_element) in with_activations(&FORMATS) {
        let (x, w) = (uneven(count * inputs, 5), uneven(outputs * inputs, 6));
        let mut ty = matmul(x_element, inputs, outputs, quantization, 256);
        qwen2c_matrix_unit::take_counts();
        let together =
            run(&target(), &ty, count, std::slice::from_ref(&x), std::slice::from_ref(&w), &mut []);
        let uses_unit = qwen2c_matrix_unit::prepare() || qwen2c_matrix_unit::take_counts().products > 0;
        assert!(uses_unit, "{quantization:?}: nothing was multiplied on the matrix unit");
        let few =
            run(&target(), &ty, 5, &[x[..5 * inputs as usize].to_vec()], std::slice::from_ref(&w), &mut []);
        assert_eq!(few[0], together[0][..5 * outputs as usize], "{quantization:?}");
        ty.max_rows = 1;
        for row in [0, 17, 36] {
            let alone = x[row * inputs as usize..][..inputs as usize].to_vec();
            let found = run(&target(), &ty, 1, &[alone], std::slice::from_ref(&w), &mut []);
            assert_eq!(
                found[0],
                together[0][row * outputs as usize..][..outputs as usize],
                "{quantization:?}"
            );
        }
        if quantization.is_some() {
            // Sums of integers are exact on every level.
            let level = resolve_target(&["x86-64-v4"]).unwrap();
            let elsewhere = run(&level, &ty_of_many(&ty), count, &[x], &[w], &mut []);
            assert_eq!(elsewhere, together, "{quantization:?}");
        }
    }
}

fn ty_of_many(ty: &KernelRequest) -> KernelRequest {
    KernelRequest { max_rows: 256, ..ty.clone() }
}

/// The routing of `count` rows with 2 choices of 4 experts: one expert with few entries, one with none.
fn routing(count: u64) -> (Vec<f32>, Vec<f32>) {
    let chosen: Vec<f32> = (0..count).flat_map(|row| [0.0, if row < 3 { 1.0 } else { 3.0 }]).collect();
    let places = |expert: f32| {
        let entries = chosen.iter().enumerate().filter(move |(_, chosen)| **chosen == expert);
        entries.map(|(entry, _)| entry as f32)
    };
    let entries: Vec<f32> = [0.0, 1.0, 2.0, 3.0].into_iter().flat_map(places).collect();
    let (few, all) = (count as f32 + 3.0, 2.0 * count as f32);
    let mut table = vec![3.0, 0.0, 1.0, 3.0, 3.0, 0.0, count as f32, few, few, all];
    table.extend(entries);
    (chosen, table)
}

#[test]
fn products_of_experts() {
    if !can_run() {
        return;
    }
    let formats = with_activations(&[Quantization::signed(8, 32), Quantization::signed(4, 64)]);
    for ((quantization, x_element), by_entry, gated) in
        formats.into_iter().flat_map(|format| [(format, false, true), (format, true, false)])
    {
        // More entries of an expert than a tile takes.
        let (experts, choices, inputs, outputs, count) = (4_u64, 2_u64, 96_u64, 41_u64, 150_u64);
        let (chosen, table) = routing(count);
        let columns = if gated { 2 * outputs } else { outputs };
        let mut w_type = weight(Element::Bf16, &[experts, columns, inputs]);
        w_type.quantization = quantization;
        let x_extents = if by_entry { vec![choices, inputs] } else { vec![inputs] };
        let table_type = TensorType {
            dimensions: vec![Dimension::constant("table", table.len() as u64)],
            element: Element::I32,
        };
        let ty = request(
            Operation::ExpertMatmul { grouped: true, silu_multiply: gated },
            vec![rows(x_element, &x_extents), rows(Element::I32, &[choices]), table_type],
            vec![w_type],
            vec![rows(Element::F32, &[choices, outputs])],
        );
        let x_rows = if by_entry { choices * count } else { count };
        let (x, w) = (numbers(x_rows * inputs, 7), numbers(experts * columns * inputs, 8));
        qwen2c_matrix_unit::take_counts();
        let given = [x.clone(), chosen.clone(), table];
        let found = run(&target(), &ty, count, &given, std::slice::from_ref(&w), &mut []).remove(0);
        assert!(qwen2c_matrix_unit::prepare() || qwen2c_matrix_unit::take_counts().products > 0);

        let (mut x, mut w) = (x, w);
        if let Some(quantization) = quantization {
            x.chunks_mut(inputs as usize).for_each(|row| quantize_activations(x_element, row));
            w = dequantized(quantization, &w, inputs);
        }
        let expected: Vec<f32> = (0..(choices * count) as usize)
            .flat_map(|entry| {
                let row = if by_entry { entry } else { entry / choices as usize };
                let matrix = (columns * inputs) as usize;
                let w = &w[chosen[entry] as usize * matrix..][..matrix];
                let sums = product(&x[row * inputs as usize..][..inputs as usize], w, inputs as usize);
                let half = outputs as usize;
                if gated { (0..half).map(|n| silu(sums[n]) * sums[n + half]).collect() } else { sums }
            })
            .collect();
        assert_close(&found, &expected, 1e-5);
    }
}
