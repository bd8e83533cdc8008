//! Products of rows with weights.

use super::*;

#[test]
fn products_of_all_types_sizes_and_epilogues() {
    for target in targets() {
        for (element, tolerance) in [(Element::F32, 1e-5), (Element::Bf16, 1e-2), (Element::F16, 2e-3)] {
            for (inputs, outputs, count, max_rows) in
                [(64_u64, 64_u64, 1_u64, 1_u64), (33, 107, 1, 1), (33, 107, 77, 256), (48, 33, 9, 16)]
            {
                for (bias, residual, gated) in
                    [(false, false, false), (true, true, false), (false, false, true)]
                {
                    let result = if gated { element } else { Element::F32 };
                    let columns = if gated { 2 * outputs } else { outputs };
                    let mut ty = request(
                        Operation::Matmul { norm: None, bias, residual, silu_multiply: gated },
                        vec![rows(element, &[inputs])],
                        vec![weight(element, &[columns, inputs])],
                        vec![rows(result, &[outputs])],
                    );
                    ty.max_rows = max_rows;
                    let (x, w) = (numbers(count * inputs, 1), numbers(columns * inputs, 2));
                    let (b, r) = (numbers(outputs, 3), numbers(count * outputs, 4));
                    let (mut given, mut weights) = (vec![x.clone()], vec![w.clone()]);
                    if residual {
                        ty.inputs.push(rows(Element::F32, &[outputs]));
                        given.push(r.clone());
                    }
                    if bias {
                        ty.weights.push(weight(Element::F32, &[outputs]));
                        weights.push(b.clone());
                    }
                    let found = run(&target, &ty, count, &given, &weights, &mut []);
                    let sums = product(&x, &w, inputs as usize);
                    let expected: Vec<f32> = if gated {
                        sums.chunks(columns as usize)
                            .flat_map(|row| {
                                (0..outputs as usize).map(|n| silu(row[n]) * row[n + outputs as usize])
                            })
                            .collect()
                    } else {
                        let bias = |n: usize| if bias { b[n % outputs as usize] } else { 0.0 };
                        let residual = |n: usize| if residual { r[n] } else { 0.0 };
                        sums.iter().enumerate().map(|(n, sum)| sum + bias(n) + residual(n)).collect()
                    };
                    assert_close(&found[0], &expected, if gated { tolerance } else { 1e-5 });
                }
            }
        }
    }
}

/// A weight's format, then element type, inputs, outputs, rows and most rows of a product with it.
type QuantizedCase = (Quantization, (Element, u64, u64, u64, u64));

/// The formats that a target takes, each in several sizes.
fn quantized_cases(target: &AnyTarget) -> Vec<QuantizedCase> {
    let sizes = [
        (Element::Bf16, 101, 107, 1, 1),
        (Element::F32, 71, 33, 9, 256),
        (Element::Bf16, 101, 40, 13, 256),
        (Element::Bf16, 128, 64, 1, 1),
        (Element::F16, 132, 33, 9, 256),
    ];
    // A thread of a device loads 32 weights of one group.
    let is_taken =
        |format: &Quantization| matches!(target, AnyTarget::Cpu(_)) || format.bits != 4 || format.group >= 32;
    let formats = FORMATS.into_iter().filter(is_taken);
    // What differs between formats of checkpoints shows in a few sizes.
    let count = |format| if is_made(format) { sizes.len() } else { 2 };
    formats.flat_map(|format| sizes.into_iter().take(count(format)).map(move |size| (format, size))).collect()
}

fn check_quantized_products(target: &AnyTarget) {
    for (quantization, (element, inputs, outputs, count, max_rows)) in quantized_cases(target) {
        let mut w_type = weight(element, &[outputs, inputs]);
        w_type.quantization = Some(quantization);
        let (x, w) = (numbers(count * inputs, 21), numbers(outputs * inputs, 22));
        let rounded = dequantized(quantization, &w, inputs);
        let mut ty = request(
            Operation::Matmul { norm: None, bias: false, residual: false, silu_multiply: false },
            vec![rows(element, &[inputs])],
            vec![w_type],
            vec![rows(Element::F32, &[outputs])],
        );
        ty.max_rows = max_rows;
        let found = run(target, &ty, count, std::slice::from_ref(&x), std::slice::from_ref(&w), &mut []);
        assert_close(&found[0], &product(&x, &rounded, inputs as usize), 1e-5);
    }
}

#[test]
fn products_of_quantized_weights_on_a_device() {
    check_quantized_products(&resolve_target(&["sm_80"]).unwrap());
}

#[test]
fn products_of_quantized_weights_on_processors() {
    processors().iter().for_each(check_quantized_products);
}

#[test]
fn gathers_of_quantized_weights() {
    for target in targets() {
        for (quantization, (element, inputs, outputs, _, _)) in quantized_cases(&target) {
            let mut w_type = weight(element, &[outputs, inputs]);
            w_type.quantization = Some(quantization);
            let w = numbers(outputs * inputs, 22);
            let rounded = dequantized(quantization, &w, inputs);
            let embed = request(
                Operation::Embed,
                vec![rows(Element::I32, &[])],
                vec![w_type],
                vec![rows(Element::F32, &[inputs])],
            );
            let tokens = vec![outputs as f32 - 1.0, 0.0, 17.0];
            let expected: Vec<f32> = tokens
                .iter()
                .flat_map(|token| rounded[*token as usize * inputs as usize..][..inputs as usize].to_vec())
                .collect();
            let found = run(&target, &embed, 3, &[tokens], std::slice::from_ref(&w), &mut []);
            assert_eq!(found[0], expected);
        }
    }
}

/// The largest sums that fit: extremes of both signs, without mercy for 16-bit lanes.
fn extremes(count: u64) -> Vec<f32> {
    (0..count).map(|index| if index % 32 == 31 || index / 32 % 2 == 1 { -1.0 } else { 1.0 }).collect()
}

#[test]
fn products_of_integers() {
    for target in processors() {
        for (quantization, x_element) in with_activations(&FORMATS) {
            let Some(quantization) = quantization else { continue };
            let sizes = [
                (101_u64, 107_u64, 1_u64, 1_u64),
                (101, 40, 13, 256),
                (128, 64, 1, 1),
                (71, 33, 9, 256),
                (260, 16, 70, 256),
            ];
            let is_common = is_made(quantization) && matches!(x_element, Element::I8 { .. });
            let sizes = if is_common { &sizes[..] } else { &sizes[..2] };
            for &(inputs, outputs, count, max_rows) in sizes {
                let mut w_type = weight(Element::Bf16, &[outputs, inputs]);
                w_type.quantization = Some(quantization);
                let mut ty = request(
                    Operation::Matmul { norm: None, bias: false, residual: false, silu_multiply: false },
                    vec![rows(x_element, &[inputs])],
                    vec![w_type],
                    vec![rows(Element::F32, &[outputs])],
                );
                ty.max_rows = max_rows;
                for (x, w) in [
                    (numbers(count * inputs, 21), numbers(outputs * inputs, 22)),
                    (extremes(count * inputs), extremes(outputs * inputs)),
                ] {
                    let found =
                        run(&target, &ty, count, std::slice::from_ref(&x), std::slice::from_ref(&w), &mut []);
                    let mut x = x;
                    x.chunks_mut(inputs as usize).for_each(|row| quantize_activations(x_element, row));
                    let w = dequantized(quantization, &w, inputs);
                    assert_close(&found[0], &product(&x, &w, inputs as usize), 1e-5);
                }
            }
        }
    }
}

/// A row that comes alone is cut into tiles where it is long: some, whole ones, one more element, and a last one
/// that begins with an incomplete group.
fn assert_long_rows_are_quantized_in_parts(target: &AnyTarget, rounded: Element) {
    for extents in [vec![1024_u64], vec![1025], vec![2048], vec![2, 3001], vec![2049 + 64]] {
        let (input, output) = (rows(Element::F32, &extents), rows(rounded, &extents));
        let (columns, x) = (input.columns() as usize, numbers(input.row_elements(), 32));
        let many = request(Operation::QuantizeRows, vec![input], vec![], vec![output]);
        let alone = KernelRequest { max_rows: 1, ..many.clone() };
        let [many, alone] =
            [many, alone].map(|request| run(target, &request, 1, std::slice::from_ref(&x), &[], &mut []));
        assert_eq!(many, alone, "{extents:?} as {rounded:?}");
        let mut expected = x;
        expected.chunks_mut(columns).for_each(|row| quantize_activations(rounded, row));
        assert_close(&alone[0], &expected, 1e-6);
    }
}

#[test]
fn rows_are_quantized_as_defined() {
    for target in processors() {
        for rounded in
            [16, 32, 64, 128].into_iter().flat_map(|group| [Element::I8 { group }, Element::I16 { group }])
        {
            for (element, extents) in [
                (Element::Bf16, vec![256_u64]),
                (Element::F16, vec![101]),
                (Element::F32, vec![7]),
                (Element::Bf16, vec![3, 130]),
            ] {
                let (input, output) = (rows(element, &extents), rows(rounded, &extents));
                let columns = input.columns() as usize;
                let mut x = numbers(5 * input.row_elements(), 31);
                x[..columns.min(40)].fill(0.0);
                let ty = request(Operation::QuantizeRows, vec![input], vec![], vec![output]);
                let found = run(&target, &ty, 5, std::slice::from_ref(&x), &[], &mut []);
                x.chunks_mut(columns).for_each(|row| quantize_activations(rounded, row));
                assert_close(&found[0], &x, 1e-6);
            }
            assert_long_rows_are_quantized_in_parts(&target, rounded);
        }
    }
}

#[test]
fn a_row_gets_the_same_bits_alone_and_among_others() {
    let formats = [
        Quantization::signed(4, 32),
        Quantization::signed(8, 64),
        Quantization { has_minimum: true, ..Quantization::signed(8, 32) },
    ];
    for (quantization, x_element) in with_activations(&formats) {
        let mut of_levels = Vec::new();
        for target in processors() {
            let (inputs, outputs, count) = (161, 50, 13);
            let mut w_type = weight(Element::Bf16, &[outputs, inputs]);
            w_type.quantization = quantization;
            let mut many = request(
                Operation::Matmul { norm: None, bias: false, residual: false, silu_multiply: false },
                vec![rows(x_element, &[inputs])],
                vec![w_type],
                vec![rows(Element::F32, &[outputs])],
            );
            let (x, w) = (numbers(count * inputs, 5), numbers(outputs * inputs, 6));
            let together =
                run(&target, &many, count, std::slice::from_ref(&x), std::slice::from_ref(&w), &mut []);
            many.max_rows = 1;
            for row in 0..count as usize {
                let alone = x[row * inputs as usize..][..inputs as usize].to_vec();
                let found = run(&target, &many, 1, &[alone], std::slice::from_ref(&w), &mut []);
                assert_eq!(found[0], together[0][row * outputs as usize..][..outputs as usize]);
            }
            of_levels.push(together);
        }
        // Sums of integers are exact, so that no level differs from another.
        if quantization.is_some() {
            assert!(
                of_levels.windows(2).all(|levels| levels[0] == levels[1]),
                "{quantization:?} {x_element}"
            );
        }
    }
}
