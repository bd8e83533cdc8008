//! Products of devices with a norm in front of them and the way into the caches behind them.

use super::device::count;
use super::*;

fn device() -> AnyTarget {
    resolve_target(&["sm_80"]).unwrap()
}

const EPSILON: f32 = 1.0;

/// `count` rows of which the mean square is 3 or 8 in every row, so that with [`EPSILON`] the norm divides by
/// 2 or 3, whatever the order of the sum: 2 is exact, and 3 stays between numbers of 16 bits.
fn exact_rows(count: u64, columns: u64) -> Vec<f32> {
    (0..count * columns)
        .map(|index| {
            let (row, column) = (index / columns, index % columns);
            // The squares of a row with a rest of one column are not to be had in pieces of four.
            let squares = [[1.0_f32, 1.0, 1.0, 3.0], [0.0, 4.0, 4.0, 0.0]][row as usize % 2];
            let sign = if index % 3 == 0 { -1.0 } else { 1.0 };
            let of_rest = if row % 2 == 0 { 3.0_f32.sqrt() } else { 8.0_f32.sqrt() };
            sign * if column >= columns / 4 * 4 { of_rest } else { squares[column as usize % 4] }
        })
        .collect()
}

/// Normalized rows, rounded to `element`.
fn normalized(x: &[f32], weight: &[f32], element: Element) -> Vec<f32> {
    x.chunks(weight.len())
        .flat_map(|row| {
            let squares: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            let factor = 1.0 / (squares / row.len() as f64 + f64::from(EPSILON)).sqrt();
            row.iter().zip(weight).map(move |(x, w)| element.round((f64::from(*x) * factor) as f32 * w))
        })
        .collect()
}

/// Weights of a norm that 16 bits do not hold.
fn norm_weights(columns: u64) -> Vec<f32> {
    numbers(columns, 51).iter().map(|number| 1.0 + number / 37.0).collect()
}

/// How weights may be stored: as elements, in one format of each kind, with groups longer than a load.
const STORAGES: [Option<Quantization>; 4] = [
    None,
    Some(Quantization::signed(8, 32)),
    Some(Quantization::signed(4, 32)),
    Some(Quantization { has_minimum: true, ..Quantization::signed(4, 64) }),
];

fn stored(element: Element, extents: &[u64], quantization: Option<Quantization>) -> WeightType {
    WeightType { quantization, ..weight(element, extents) }
}

/// What the kernel reads of `w`.
fn as_stored(w: &[f32], columns: u64, quantization: Option<Quantization>) -> Vec<f32> {
    quantization.map_or_else(|| w.to_vec(), |quantization| dequantized(quantization, w, columns))
}

#[test]
fn products_normalize_their_rows() {
    let sizes = [
        (Element::Bf16, 896_u64, 40_u64, 1_u64, 1_u64),
        (Element::Bf16, 77, 41, 1, 1),
        (Element::F16, 1100, 16, 1, 1),
        (Element::F32, 260, 33, 1, 1),
        // Blocks that take several tasks.
        (Element::Bf16, 8, 30000, 1, 1),
        // What no pass asks for, and is served all the same.
        (Element::Bf16, 100, 24, 13, 256),
    ];
    for quantization in STORAGES {
        for (element, inputs, outputs, count, max_rows) in sizes {
            for (bias, residual, gated) in [(true, true, false), (false, false, true)] {
                let columns = if gated { 2 * outputs } else { outputs };
                let result = if gated { element } else { Element::F32 };
                let mut ty = request(
                    Operation::Matmul { norm: Some(Real(EPSILON)), bias, residual, silu_multiply: gated },
                    vec![rows(Element::F32, &[inputs])],
                    vec![stored(element, &[columns, inputs], quantization)],
                    vec![rows(result, &[outputs])],
                );
                ty.max_rows = max_rows;
                let (x, norm) = (exact_rows(count, inputs), norm_weights(inputs));
                let (w, b, r) =
                    (numbers(columns * inputs, 52), numbers(columns, 53), numbers(count * outputs, 54));
                let (mut given, mut weights) = (vec![x.clone()], vec![w.clone()]);
                if residual {
                    ty.inputs.push(rows(Element::F32, &[outputs]));
                    given.push(r.clone());
                }
                if bias {
                    ty.weights.push(weight(Element::F32, &[outputs]));
                    weights.push(b.clone());
                }
                ty.weights.push(weight(Element::F32, &[inputs]));
                weights.push(norm.clone());
                let found = run(&device(), &ty, count, &given, &weights, &mut []);
                let x = normalized(&x, &norm, element);
                let sums = product(&x, &as_stored(&w, inputs, quantization), inputs as usize);
                let (n, width) = (outputs as usize, columns as usize);
                let expected: Vec<f32> = if gated {
                    let gate = |row: &[f32]| (0..n).map(|i| silu(row[i]) * row[i + n]).collect::<Vec<_>>();
                    sums.chunks(width).flat_map(gate).collect()
                } else {
                    sums.iter().enumerate().map(|(i, sum)| sum + b[i % n] + r[i]).collect()
                };
                let tolerance = match (gated, element) {
                    (true, Element::Bf16) => 1e-2,
                    (true, Element::F16) => 2e-3,
                    _ => 5e-5,
                };
                assert_close(&found[0], &expected, tolerance);
            }
        }
    }
}

/// A projection and its way into the caches, in one kernel and in two.
#[test]
fn a_projection_writes_to_the_caches() {
    let (heads, kv_heads, context) = (6_u64, 2_u64, 300_u64);
    for quantization in STORAGES {
        // Halves of heads of 6, 40 and 24: no panel of 8 rows has only rows of one, some do, all do.
        for (element, head_dim, inputs, count, max_rows) in [
            (Element::Bf16, 6_u64, 130_u64, 1_u64, 1_u64),
            (Element::Bf16, 40, 96, 1, 1),
            (Element::F32, 32, 260, 1, 1),
            (Element::F16, 64, 1100, 1, 1),
            (Element::Bf16, 16, 64, 7, 256),
        ] {
            for (bias, norm) in [(true, true), (false, false)] {
                let cache = |kind| CacheType { kind, slots: 2, kv_heads, context, head_dim, element };
                let caches = vec![cache(CacheKind::Key), cache(CacheKind::Value)];
                let width = (heads + 2 * kv_heads) * head_dim;
                let indices = || vec![rows(Element::I32, &[]), rows(Element::I32, &[])];
                let queries = || vec![rows(Element::F32, &[heads * head_dim])];
                let w_type = stored(element, &[width, inputs], quantization);
                let (table_type, bias_type) =
                    (weight(Element::F32, &[context, head_dim]), weight(Element::F32, &[width]));
                let mut product_type = request(
                    Operation::Matmul { norm: None, bias: false, residual: false, silu_multiply: false },
                    vec![rows(element, &[inputs])],
                    vec![w_type.clone()],
                    vec![rows(Element::F32, &[width])],
                );
                product_type.max_rows = max_rows;
                let mut write_type = request(
                    Operation::RotateAndWriteCache { heads, bias },
                    [product_type.outputs.clone(), indices()].concat(),
                    vec![table_type.clone()],
                    queries(),
                );
                let mut fused = request(
                    Operation::ProjectAndWriteCache { heads, bias, norm: norm.then_some(Real(EPSILON)) },
                    [vec![rows(if norm { Element::F32 } else { element }, &[inputs])], indices()].concat(),
                    vec![w_type, table_type],
                    queries(),
                );
                (fused.max_rows, fused.caches, write_type.caches) =
                    (max_rows, caches.clone(), caches.clone());
                let (x, w) = (exact_rows(count, inputs), numbers(width * inputs, 61));
                let (table, b) = (numbers(context * head_dim, 62), numbers(width, 63));
                let (mut weights, mut write_weights) = (vec![w.clone(), table.clone()], vec![table]);
                if bias {
                    fused.weights.push(bias_type.clone());
                    write_type.weights.push(bias_type);
                    weights.push(b.clone());
                    write_weights.push(b);
                }
                let mut rounded: Vec<f32> = x.iter().map(|x| element.round(*x)).collect();
                if norm {
                    fused.weights.push(weight(Element::F32, &[inputs]));
                    weights.push(norm_weights(inputs));
                    rounded = normalized(&x, &norm_weights(inputs), element);
                }
                let positions: Vec<f32> = (0..count).map(|row| (290 - 40 * row) as f32).collect();
                let slots: Vec<f32> = (0..count).map(|row| (row % 2) as f32).collect();
                let blank = |ty: &CacheType| {
                    let elements = device().cache_bytes(ty) / element.bytes();
                    to_bytes(element, &vec![77.0; elements as usize])
                };
                let mut expected_caches: Vec<Vec<u8>> = caches.iter().map(blank).collect();
                let mut found_caches = expected_caches.clone();
                let qkv = run(&device(), &product_type, count, &[rounded], &weights[..1], &mut []);
                let given = [qkv[0].clone(), positions.clone(), slots.clone()];
                let expected =
                    run(&device(), &write_type, count, &given, &write_weights, &mut expected_caches);
                let found =
                    run(&device(), &fused, count, &[x, positions, slots], &weights, &mut found_caches);
                assert_close(&found[0], &expected[0], 5e-5);
                let tolerance = if element == Element::F32 { 5e-5 } else { 1e-2 };
                for (found, expected) in found_caches.iter().zip(&expected_caches) {
                    assert_close(&from_bytes(element, found), &from_bytes(element, expected), tolerance);
                }
            }
        }
    }
}

/// One launch where panels divide the halves of heads, and two where they do not.
#[test]
fn heads_that_panels_do_not_divide_take_a_launch_more() {
    for (head_dim, quantization, launches) in [
        (6, None, 1),
        (6, Some(Quantization::signed(8, 32)), 2),
        (24, Some(Quantization::signed(4, 32)), 2),
        (48, Some(Quantization::signed(4, 32)), 1),
        (128, Some(Quantization::signed(8, 32)), 1),
    ] {
        let (heads, kv_heads) = (4, 2);
        let mut ty = request(
            Operation::ProjectAndWriteCache { heads, bias: false, norm: None },
            vec![rows(Element::Bf16, &[64]), rows(Element::I32, &[]), rows(Element::I32, &[])],
            vec![
                stored(Element::Bf16, &[(heads + 2 * kv_heads) * head_dim, 64], quantization),
                weight(Element::F32, &[32, head_dim]),
            ],
            vec![rows(Element::F32, &[heads * head_dim])],
        );
        let cache =
            |kind| CacheType { kind, slots: 1, kv_heads, context: 32, head_dim, element: Element::Bf16 };
        ty.caches = vec![cache(CacheKind::Key), cache(CacheKind::Value)];
        let choice = device().choose(&ty).unwrap();
        assert_eq!(
            (choice.launches.len(), choice.workspace_bytes > 0),
            (launches, launches == 2),
            "{head_dim}"
        );
    }
}

/// Beside the weights, memory gives the row and its norm once; blocks find them in a cache.
#[test]
fn a_norm_in_a_product_costs_no_traffic() {
    for quantization in STORAGES {
        let (inputs, outputs) = (896, 320);
        let mut ty = request(
            Operation::Matmul {
                norm: Some(Real(EPSILON)),
                bias: false,
                residual: false,
                silu_multiply: false,
            },
            vec![rows(Element::F32, &[inputs])],
            vec![stored(Element::Bf16, &[outputs, inputs], quantization), weight(Element::F32, &[inputs])],
            vec![rows(Element::F32, &[outputs])],
        );
        ty.max_rows = 1;
        let given = [exact_rows(1, inputs)];
        let weights = [numbers(outputs * inputs, 71), norm_weights(inputs)];
        let (counts, bytes) = count(&device(), &ty, 1, &given, &weights, &[]);
        assert!(counts.global_distinct_read_bytes <= bytes.weights + inputs * 4);
        assert_eq!(counts.global_loads, counts.global_loads_of_16_bytes, "{quantization:?}");
        assert_eq!(counts.shared_bank_conflicts, 0, "{quantization:?}");
    }
}

#[test]
fn rows_too_long_for_a_block_are_refused() {
    let product = |target: &AnyTarget, inputs: u64, norm: Option<Real>| {
        let mut ty = request(
            Operation::Matmul { norm, bias: false, residual: false, silu_multiply: false },
            vec![rows(if norm.is_some() { Element::F32 } else { Element::Bf16 }, &[inputs])],
            vec![weight(Element::Bf16, &[8, inputs])],
            vec![rows(Element::F32, &[8])],
        );
        ty.weights.extend(norm.map(|_| weight(Element::F32, &[inputs])));
        target.choose(&ty)
    };
    let norm = Some(Real(EPSILON));
    assert!(product(&device(), 16384, norm).is_ok());
    assert!(product(&device(), 16388, None).is_ok());
    let error = product(&device(), 16388, norm).unwrap_err();
    assert!(error.reason.starts_with("a norm of 16388 elements inside a product; up to 16384"), "{error}");
    // The pass that would make such a product knows.
    assert_eq!(device().description().longest_fused_norm, 16384);
    // A processor keeps norms apart.
    assert!(processors().iter().all(|target| product(target, 64, norm).is_err()));
}
