//! Routing, grouping and products of experts.

use super::*;

#[test]
fn experts_are_chosen_grouped_multiplied_and_combined() {
    let (experts, choices, hidden, width, count) = (30_u64, 3_u64, 33_u64, 21_u64, 40_u64);
    let logits = numbers(count * experts, 16);
    let softmax: Vec<f32> = logits
        .chunks(30)
        .flat_map(|row| {
            let sum: f32 = row.iter().map(|x| x.exp()).sum();
            row.iter().map(move |x| x.exp() / sum).collect::<Vec<_>>()
        })
        .collect();
    let mut chosen = Vec::new();
    let mut weights = Vec::new();
    for row in softmax.chunks(30) {
        // A stable sort keeps the lower number first where equal; `numbers` has many ties.
        let mut order: Vec<usize> = (0..30).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        let sum: f32 = order[..3].iter().map(|expert| row[*expert]).sum();
        chosen.extend(order[..3].iter().map(|expert| *expert as f32));
        weights.extend(order[..3].iter().map(|expert| row[*expert] / sum));
    }
    let (x, w) = (numbers(count * hidden, 17), numbers(experts * 2 * width * hidden, 18));
    let expected: Vec<f32> = (0..(count * choices) as usize)
        .flat_map(|entry| {
            let x = &x[entry / 3 * 33..][..33];
            let w = &w[chosen[entry] as usize * 42 * 33..][..42 * 33];
            let sums = product(x, w, 33);
            (0..21).map(|n| silu(sums[n]) * sums[n + 21]).collect::<Vec<_>>()
        })
        .collect();
    let table_size = 2 + 2 * experts + count * choices;
    for target in targets() {
        let probabilities = rows(Element::F32, &[experts]);
        let ty =
            request(Operation::Softmax, vec![probabilities.clone()], vec![], vec![probabilities.clone()]);
        assert_close(
            &run(&target, &ty, count, std::slice::from_ref(&logits), &[], &mut [])[0],
            &softmax,
            1e-6,
        );

        let ty = request(
            Operation::TopK { k: choices, normalize: true },
            vec![probabilities],
            vec![],
            vec![rows(Element::F32, &[choices]), rows(Element::I32, &[choices])],
        );
        let found = run(&target, &ty, count, std::slice::from_ref(&softmax), &[], &mut []);
        assert_close(&found[0], &weights, 1e-6);
        assert_eq!(found[1], chosen);

        let table_type = TensorType {
            dimensions: vec![Dimension { name: "table".to_owned(), size: Size::Constant(table_size) }],
            element: Element::I32,
        };
        let ty = request(
            Operation::GroupRows { experts },
            vec![rows(Element::I32, &[choices])],
            vec![],
            vec![table_type.clone()],
        );
        let table = run(&target, &ty, count, std::slice::from_ref(&chosen), &[], &mut []).remove(0);
        let mut active: Vec<usize> = chosen.iter().map(|expert| *expert as usize).collect();
        active.sort_unstable();
        active.dedup();
        assert_eq!(table[0] as usize, active.len());
        assert_eq!(table[1..=active.len()].iter().map(|expert| *expert as usize).collect::<Vec<_>>(), active);

        for grouped in [false, true] {
            let mut ty = request(
                Operation::ExpertMatmul { grouped, silu_multiply: true },
                vec![rows(Element::F32, &[hidden]), rows(Element::I32, &[choices])],
                vec![weight(Element::F32, &[experts, 2 * width, hidden])],
                vec![rows(Element::F32, &[choices, width])],
            );
            let mut given = vec![x.clone(), chosen.clone()];
            if grouped {
                ty.inputs.push(table_type.clone());
                given.push(table.clone());
            }
            let found = run(&target, &ty, count, &given, std::slice::from_ref(&w), &mut []);
            assert_close(&found[0], &expected, 1e-5);
        }

        // Behind the first product every choice has a row of its own.
        let down = numbers(experts * hidden * width, 19);
        let ty = request(
            Operation::ExpertMatmul { grouped: true, silu_multiply: false },
            vec![rows(Element::F32, &[choices, width]), rows(Element::I32, &[choices]), table_type],
            vec![weight(Element::F32, &[experts, hidden, width])],
            vec![rows(Element::F32, &[choices, hidden])],
        );
        let found = run(
            &target,
            &ty,
            count,
            &[expected.clone(), chosen.clone(), table.clone()],
            std::slice::from_ref(&down),
            &mut [],
        );
        let outputs: Vec<f32> = (0..(count * choices) as usize)
            .flat_map(|entry| {
                product(
                    &expected[entry * 21..][..21],
                    &down[chosen[entry] as usize * 33 * 21..][..33 * 21],
                    21,
                )
            })
            .collect();
        assert_close(&found[0], &outputs, 1e-5);

        let ty = request(
            Operation::CombineExperts { residual: true },
            vec![
                rows(Element::F32, &[choices, hidden]),
                rows(Element::F32, &[choices]),
                rows(Element::F32, &[hidden]),
            ],
            vec![],
            vec![rows(Element::F32, &[hidden])],
        );
        let combined = run(&target, &ty, count, &[outputs.clone(), weights.clone(), x.clone()], &[], &mut []);
        let expected: Vec<f32> = (0..(count * hidden) as usize)
            .map(|n| {
                let (row, column) = (n / 33, n % 33);
                x[n] + (0..3)
                    .map(|choice| weights[row * 3 + choice] * outputs[(row * 3 + choice) * 33 + column])
                    .sum::<f32>()
            })
            .collect();
        assert_close(&combined[0], &expected, 1e-5);

        let ty = request(
            Operation::ScaleRows,
            vec![rows(Element::F32, &[hidden]), rows(Element::F32, &[1])],
            vec![],
            vec![rows(Element::F32, &[hidden])],
        );
        let factors = numbers(count, 20);
        let scaled: Vec<f32> = x.iter().enumerate().map(|(n, x)| x * factors[n / 33]).collect();
        assert_eq!(run(&target, &ty, count, &[x.clone(), factors], &[], &mut [])[0], scaled);
    }
}

#[test]
fn products_of_quantized_experts() {
    let (experts, choices, hidden, width, count) = (5_u64, 2_u64, 40_u64, 12_u64, 7_u64);
    let quantization = Quantization::signed(4, 32);
    let (x, w) = (numbers(count * hidden, 23), numbers(experts * 2 * width * hidden, 24));
    let rounded = dequantized(quantization, &w, hidden);
    let chosen: Vec<f32> = (0..count * choices).map(|entry| (entry * 3 % experts) as f32).collect();
    let expected: Vec<f32> = (0..(count * choices) as usize)
        .flat_map(|entry| {
            let sums = product(
                &x[entry / 2 * 40..][..40],
                &rounded[chosen[entry] as usize * 24 * 40..][..24 * 40],
                40,
            );
            (0..12).map(|n| silu(sums[n]) * sums[n + 12]).collect::<Vec<_>>()
        })
        .collect();
    for target in targets() {
        let mut w_type = weight(Element::F32, &[experts, 2 * width, hidden]);
        w_type.quantization = Some(quantization);
        let ty = request(
            Operation::ExpertMatmul { grouped: false, silu_multiply: true },
            vec![rows(Element::F32, &[hidden]), rows(Element::I32, &[choices])],
            vec![w_type],
            vec![rows(Element::F32, &[choices, width])],
        );
        let found = run(&target, &ty, count, &[x.clone(), chosen.clone()], std::slice::from_ref(&w), &mut []);
        assert_close(&found[0], &expected, 1e-5);
    }
}
