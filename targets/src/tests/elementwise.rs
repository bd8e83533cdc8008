//! Norms, gathers and operations on single elements.

use super::*;

#[test]
fn norms_and_elementwise_operations() {
    let n = 45;
    let (a, b, w) = (numbers(3 * n, 7), numbers(3 * n, 8), numbers(n, 9));
    let f32_rows = || rows(Element::F32, &[n]);
    let norm = |x: &[f32]| -> Vec<f32> {
        x.chunks(n as usize)
            .flat_map(|row| {
                let mean = row.iter().map(|x| x * x).sum::<f32>() / n as f32;
                let factor = 1.0 / (mean + 1e-6).sqrt();
                row.iter().zip(&w).map(move |(x, w)| x * factor * w).collect::<Vec<_>>()
            })
            .collect()
    };
    let sum: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    let map =
        |function: fn(f32, f32) -> f32| a.iter().zip(&b).map(|(a, b)| function(*a, *b)).collect::<Vec<f32>>();
    let one = vec![f32_rows()];
    let two = vec![f32_rows(), f32_rows()];
    let gain = vec![weight(Element::F32, &[n])];
    let cases = [
        (Operation::RmsNorm { epsilon: Real(1e-6) }, one.clone(), gain.clone(), vec![norm(&a)]),
        (
            Operation::AddAndNorm { epsilon: Real(1e-6) },
            two.clone(),
            gain.clone(),
            vec![sum.clone(), norm(&sum)],
        ),
        (
            Operation::AddBias,
            one.clone(),
            gain,
            vec![a.iter().enumerate().map(|(i, a)| a + w[i % n as usize]).collect()],
        ),
        (Operation::Add, two.clone(), vec![], vec![sum]),
        (Operation::Scale { factor: Real(0.25) }, one.clone(), vec![], vec![map(|a, _| a * 0.25)]),
        (Operation::Silu, one.clone(), vec![], vec![map(|a, _| silu(a))]),
        (Operation::Sigmoid, one.clone(), vec![], vec![map(|a, _| 1.0 / (1.0 + (-a).exp()))]),
        (Operation::Multiply, two.clone(), vec![], vec![map(|a, b| a * b)]),
        (Operation::SiluMultiply, two.clone(), vec![], vec![map(|a, b| silu(a) * b)]),
        (
            Operation::Slice { first: 40 },
            one,
            vec![],
            vec![a.chunks(45).flat_map(|row| row[40..43].to_vec()).collect()],
        ),
    ];
    for target in targets() {
        for (operation, inputs, weights, expected) in &cases {
            let width = expected[0].len() as u64 / 3;
            let outputs = expected.iter().map(|_| rows(Element::F32, &[width])).collect();
            let ty = request(operation.clone(), inputs.clone(), weights.clone(), outputs);
            let found = run(
                &target,
                &ty,
                3,
                &[a.clone(), b.clone()][..inputs.len()],
                std::slice::from_ref(&w),
                &mut [],
            );
            for (found, expected) in found.iter().zip(expected) {
                assert_close(found, expected, 1e-6);
            }
        }
    }
}

#[test]
fn gathers_from_the_embedding_and_of_logit_rows() {
    let (vocabulary, hidden) = (37, 21);
    let table = numbers(vocabulary * hidden, 10);
    let tokens = [36.0, 0.0, 17.0];
    let expected: Vec<f32> =
        tokens.iter().flat_map(|token| table[*token as usize * 21..][..21].to_vec()).collect();
    for target in targets() {
        // `run` takes the last layout offered: panels.
        let embed = request(
            Operation::Embed,
            vec![rows(Element::I32, &[])],
            vec![weight(Element::Bf16, &[vocabulary, hidden])],
            vec![rows(Element::F32, &[hidden])],
        );
        assert_eq!(
            run(&target, &embed, 3, &[tokens.to_vec()], std::slice::from_ref(&table), &mut [])[0],
            expected
        );
        let gather = request(
            Operation::GatherRows,
            vec![rows(Element::F32, &[hidden]), tensor(Element::I32, Dimension::logit_rows(), &[])],
            vec![],
            vec![tensor(Element::F32, Dimension::logit_rows(), &[hidden])],
        );
        assert_eq!(run(&target, &gather, 3, &[table.clone(), tokens.to_vec()], &[], &mut [])[0], expected);
    }
}

#[test]
fn exponentials_over_the_whole_range() {
    let x: Vec<f32> = (0..4000).map(|step| step as f32 * 0.0213 - 43.0).collect();
    for target in targets() {
        let ty = request(
            Operation::Sigmoid,
            vec![rows(Element::F32, &[4000])],
            vec![],
            vec![rows(Element::F32, &[4000])],
        );
        let found = run(&target, &ty, 1, std::slice::from_ref(&x), &[], &mut []);
        for (x, found) in x.iter().zip(&found[0]) {
            let expected = 1.0 / (1.0 + (-f64::from(*x)).exp());
            let error = (f64::from(*found) - expected).abs() / expected;
            assert!(error < 4e-7, "sigmoid({x}) = {found}, expected {expected}, off by {error}");
        }
    }
}
