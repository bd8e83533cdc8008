//! Every kernel, compiled, loaded and compared with its formula in plain loops.

use std::ffi::{CString, c_void};
use std::process::Command;

use qwen2c_request::{
    CacheKind, CacheType, Dimension, Element, KernelRequest, Operation, Quantization, Real, Size, Target,
    TensorType, WeightLayout, WeightType, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, round_row,
};

use super::describe::{CpuTarget, resolve_target};
use super::emit::{KeepText, KernelSource, compile_kernels};
use super::layout::pack_weight;

/// The targets that this machine can run, at least the lowest.
fn targets() -> Vec<CpuTarget> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    ["x86-64-v3", "x86-64-v4"]
        .into_iter()
        .map(|name| resolve_target(name).unwrap())
        .filter(|target| {
            target
                .description()
                .required_features
                .iter()
                .all(|feature| cpuinfo.contains(&format!(" {feature}")))
        })
        .collect()
}

fn tensor(element: Element, first: Dimension, extents: &[u64]) -> TensorType {
    let mut dimensions = vec![first];
    dimensions.extend(extents.iter().map(|extent| Dimension::constant("n", *extent)));
    TensorType { dimensions, element }
}

fn rows(element: Element, extents: &[u64]) -> TensorType {
    tensor(element, Dimension::rows(), extents)
}

fn weight(element: Element, extents: &[u64]) -> WeightType {
    WeightType {
        dimensions: extents.iter().map(|extent| Dimension::constant("n", *extent)).collect(),
        element,
        quantization: None,
    }
}

fn to_bytes(element: Element, values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| match element {
            Element::F32 => value.to_le_bytes().to_vec(),
            Element::I32 => (*value as i32).to_le_bytes().to_vec(),
            Element::Bf16 => f32_to_bf16(*value).to_le_bytes().to_vec(),
            Element::F16 => f32_to_f16(*value).to_le_bytes().to_vec(),
        })
        .collect()
}

fn from_bytes(element: Element, bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(element.bytes() as usize)
        .map(|chunk| match element {
            Element::F32 => f32::from_le_bytes(chunk.try_into().unwrap()),
            Element::I32 => i32::from_le_bytes(chunk.try_into().unwrap()) as f32,
            Element::Bf16 => bf16_to_f32(u16::from_le_bytes(chunk.try_into().unwrap())),
            Element::F16 => f16_to_f32(u16::from_le_bytes(chunk.try_into().unwrap())),
        })
        .collect()
}

/// Small, exactly representable in every type, of both signs, without pattern.
fn numbers(count: u64, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 59) as f32 - 15.5) / 16.0
        })
        .collect()
}

type Tiles = unsafe extern "C" fn(*const *mut u8, i64) -> i64;
type Body = unsafe extern "C" fn(*const *mut u8, i64, i64);

/// A compiled kernel in this process.
struct Loaded {
    tiles: Tiles,
    body: Body,
}

fn load(target: &CpuTarget, request: &KernelRequest, layouts: &[WeightLayout]) -> Loaded {
    let source = KernelSource { name: "kernel", request, layouts };
    let compiled = compile_kernels(target, &[source], KeepText::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (object, library) = (folder.path().join("kernel.o"), folder.path().join("kernel.so"));
    std::fs::write(&object, &compiled.object).unwrap();
    // Undefined symbols are refused: a kernel calls nothing.
    let status = Command::new("cc")
        .args(["-shared", "-nostdlib", "-Wl,-z,defs", "-o"])
        .args([&library, &object])
        .status()
        .unwrap();
    assert!(status.success());
    let path = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: the library was just made from our object; it has no initializers and stays loaded.
    unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        assert!(!handle.is_null());
        let symbol = |name: &str| libc::dlsym(handle, CString::new(name).unwrap().as_ptr());
        let (tiles, body) = (symbol("kernel.tiles"), symbol("kernel"));
        assert!(!tiles.is_null() && !body.is_null());
        Loaded {
            tiles: std::mem::transmute::<*mut c_void, Tiles>(tiles),
            body: std::mem::transmute::<*mut c_void, Body>(body),
        }
    }
}

/// Runs a request for `count` rows. `inputs` and `weights` are given as numbers, caches as their bytes,
/// which come back changed; outputs come back as numbers, whatever was not written as 77.
fn run(
    target: &CpuTarget,
    request: &KernelRequest,
    count: u64,
    inputs: &[Vec<f32>],
    weights: &[Vec<f32>],
    caches: &mut [Vec<u8>],
) -> Vec<Vec<f32>> {
    let choice = target.choose(request).unwrap();
    let layouts: Vec<WeightLayout> =
        choice.layouts.iter().map(|options| options.last().unwrap().layout).collect();
    let kernel = load(target, request, &layouts);
    let mut buffers: Vec<Vec<u8>> =
        request.inputs.iter().zip(inputs).map(|(ty, x)| to_bytes(ty.element, x)).collect();
    for ((ty, layout), values) in request.weights.iter().zip(&layouts).zip(weights) {
        let mut bytes = Vec::new();
        pack_weight::<()>(
            ty,
            *layout,
            &mut |first, out| {
                out.copy_from_slice(&values[(first * ty.columns()) as usize..][..out.len()]);
                Ok(())
            },
            &mut |block| {
                bytes.extend_from_slice(block);
                Ok(())
            },
        )
        .unwrap();
        buffers.push(bytes);
    }
    let first_cache = buffers.len();
    buffers.extend(caches.iter().cloned());
    let first_output = buffers.len();
    buffers.extend(request.outputs.iter().map(|ty| {
        let elements = ty.bytes(count, count) / ty.element.bytes();
        to_bytes(ty.element, &vec![77.0; elements as usize])
    }));
    let operands: Vec<*mut u8> = buffers.iter_mut().map(Vec::as_mut_ptr).collect();
    // SAFETY: the operands are as large as the request says.
    unsafe {
        let tiles = (kernel.tiles)(operands.as_ptr(), count as i64);
        // Descending, since the order must not matter.
        for tile in (0..tiles).rev() {
            (kernel.body)(operands.as_ptr(), count as i64, tile);
        }
    }
    for (cache, bytes) in caches.iter_mut().zip(&buffers[first_cache..]) {
        cache.clone_from(bytes);
    }
    request
        .outputs
        .iter()
        .zip(&buffers[first_output..])
        .map(|(ty, bytes)| from_bytes(ty.element, bytes))
        .collect()
}

fn request(
    operation: Operation,
    inputs: Vec<TensorType>,
    weights: Vec<WeightType>,
    outputs: Vec<TensorType>,
) -> KernelRequest {
    KernelRequest { operation, inputs, weights, caches: Vec::new(), outputs, max_rows: 256 }
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / expected.abs().max(1.0);
        assert!(error <= tolerance, "element {index}: found {found}, expected {expected}");
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// `x · wᵀ`, `[rows, n]`.
fn product(x: &[f32], w: &[f32], inputs: usize) -> Vec<f32> {
    x.chunks(inputs)
        .flat_map(|row| w.chunks(inputs).map(|weights| row.iter().zip(weights).map(|(x, w)| x * w).sum()))
        .collect()
}

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
                        Operation::Matmul { bias, residual, silu_multiply: gated },
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

/// `values` as the packer quantizes them.
fn dequantized(quantization: Quantization, values: &[f32], columns: u64) -> Vec<f32> {
    let mut values = values.to_vec();
    values.chunks_mut(columns as usize).for_each(|row| round_row(quantization, row));
    values
}

#[test]
fn products_and_gathers_of_quantized_weights() {
    for target in targets() {
        for (bits, group) in [(8, 32), (4, 32), (4, 64), (8, 128), (4, 128)] {
            let quantization = Quantization { bits, group };
            for (element, inputs, outputs, count, max_rows) in [
                (Element::Bf16, 128_u64, 64_u64, 1_u64, 1_u64),
                (Element::Bf16, 101, 107, 1, 1),
                (Element::Bf16, 101, 40, 13, 256),
                (Element::F32, 71, 33, 9, 256),
                (Element::F16, 132, 33, 9, 256),
            ] {
                let mut w_type = weight(element, &[outputs, inputs]);
                w_type.quantization = Some(quantization);
                let (x, w) = (numbers(count * inputs, 21), numbers(outputs * inputs, 22));
                let rounded = dequantized(quantization, &w, inputs);
                let mut ty = request(
                    Operation::Matmul { bias: false, residual: false, silu_multiply: false },
                    vec![rows(element, &[inputs])],
                    vec![w_type.clone()],
                    vec![rows(Element::F32, &[outputs])],
                );
                ty.max_rows = max_rows;
                let found =
                    run(&target, &ty, count, std::slice::from_ref(&x), std::slice::from_ref(&w), &mut []);
                assert_close(&found[0], &product(&x, &rounded, inputs as usize), 1e-5);

                let embed = request(
                    Operation::Embed,
                    vec![rows(Element::I32, &[])],
                    vec![w_type],
                    vec![rows(Element::F32, &[inputs])],
                );
                let tokens = vec![outputs as f32 - 1.0, 0.0, 17.0];
                let expected: Vec<f32> = tokens
                    .iter()
                    .flat_map(|token| {
                        rounded[*token as usize * inputs as usize..][..inputs as usize].to_vec()
                    })
                    .collect();
                let found = run(&target, &embed, 3, &[tokens], std::slice::from_ref(&w), &mut []);
                assert_eq!(found[0], expected);
            }
        }
    }
}

#[test]
fn products_of_quantized_experts() {
    let (experts, choices, hidden, width, count) = (5_u64, 2_u64, 40_u64, 12_u64, 7_u64);
    let quantization = Quantization { bits: 4, group: 32 };
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

#[test]
fn a_row_gets_the_same_bits_alone_and_among_others() {
    for target in targets() {
        let (inputs, outputs, count) = (61, 50, 13);
        let mut many = request(
            Operation::Matmul { bias: false, residual: false, silu_multiply: false },
            vec![rows(Element::Bf16, &[inputs])],
            vec![weight(Element::Bf16, &[outputs, inputs])],
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
    }
}

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

/// Rotated halves of one head.
fn rotated(x: &[f32], table: &[f32]) -> Vec<f32> {
    let half = x.len() / 2;
    let low = (0..half).map(|i| x[i] * table[i] - x[i + half] * table[i + half]);
    let high = (0..half).map(|i| x[i + half] * table[i] + x[i] * table[i + half]);
    low.chain(high).collect()
}

/// Attention in plain loops: `[rows, heads · head_dim]` for rows at `positions`.
fn attention(
    q: &[f32],
    keys: &[Vec<f32>],
    values: &[Vec<f32>],
    positions: &[usize],
    shape: (usize, usize, usize),
    scale: f32,
) -> Vec<f32> {
    let (heads, kv_heads, head_dim) = shape;
    let mut out = Vec::new();
    for (row, position) in positions.iter().enumerate() {
        for head in 0..heads {
            let q = &q[(row * heads + head) * head_dim..][..head_dim];
            let kv = head / (heads / kv_heads) * head_dim;
            let scores: Vec<f32> = (0..=*position)
                .map(|p| scale * q.iter().zip(&keys[p][kv..kv + head_dim]).map(|(q, k)| q * k).sum::<f32>())
                .collect();
            let largest = scores.iter().copied().fold(f32::MIN, f32::max);
            let weights: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
            let sum: f32 = weights.iter().sum();
            for column in 0..head_dim {
                let total: f32 =
                    weights.iter().enumerate().map(|(p, weight)| weight * values[p][kv + column]).sum();
                out.push(total / sum);
            }
        }
    }
    out
}

#[test]
fn attention_fused_and_in_steps_over_a_cache_of_several_blocks() {
    let (heads, kv_heads, context, count) = (6_u64, 3_u64, 600_u64, 600_u64);
    for (head_dim, element) in [(80_u64, Element::F32), (10, Element::F32), (64, Element::Bf16)] {
        let cache = |kind| CacheType { kind, slots: 2, kv_heads, context, head_dim, element };
        let (kv_width, q_width) = (kv_heads * head_dim, heads * head_dim);
        let width = q_width + 2 * kv_width;
        let table = numbers(context * head_dim, 11);
        let (qkv, bias) = (numbers(count * width, 12), numbers(width, 13));
        let row = |position: usize| -> Vec<f32> {
            (0..width as usize).map(|n| qkv[position * width as usize + n] + bias[n]).collect()
        };
        let rotate_heads = |x: &[f32], position: usize| -> Vec<f32> {
            let table = &table[position * head_dim as usize..][..head_dim as usize];
            x.chunks(head_dim as usize).flat_map(|head| rotated(head, table)).collect()
        };
        let all: Vec<Vec<f32>> = (0..count as usize).map(row).collect();
        let (q_end, k_end) = (q_width as usize, (q_width + kv_width) as usize);
        let round = |x: Vec<f32>| x.into_iter().map(|x| element.round(x)).collect::<Vec<f32>>();
        let queries: Vec<f32> =
            all.iter().enumerate().flat_map(|(p, x)| rotate_heads(&x[..q_end], p)).collect();
        let keys: Vec<Vec<f32>> =
            all.iter().enumerate().map(|(p, x)| round(rotate_heads(&x[q_end..k_end], p))).collect();
        let values: Vec<Vec<f32>> = all.iter().map(|x| round(x[k_end..].to_vec())).collect();
        let positions: Vec<f32> = (0..count).map(|position| position as f32).collect();
        let slots = vec![1.0; count as usize];
        for target in targets() {
            let bytes = |kind| vec![0_u8; target.cache_bytes(&cache(kind)) as usize];
            let mut caches = [bytes(CacheKind::Key), bytes(CacheKind::Value)];
            let indices = || vec![rows(Element::I32, &[]), rows(Element::I32, &[])];
            let mut write = request(
                Operation::RotateAndWriteCache { heads, bias: true },
                [vec![rows(Element::F32, &[width])], indices()].concat(),
                vec![weight(Element::F32, &[context, head_dim]), weight(Element::F32, &[width])],
                vec![rows(Element::F32, &[q_width])],
            );
            write.caches = vec![cache(CacheKind::Key), cache(CacheKind::Value)];
            let given = [qkv.clone(), positions.clone(), slots.clone()];
            let found = run(&target, &write, count, &given, &[table.clone(), bias.clone()], &mut caches);
            assert_close(&found[0], &queries, 1e-6);

            // Three rows look at the cache: within the first block, at its end, in the last.
            let looking = [5_usize, 255, 599];
            let q: Vec<f32> = looking.iter().flat_map(|p| queries[p * q_end..][..q_end].to_vec()).collect();
            let at: Vec<f32> = looking.iter().map(|position| *position as f32).collect();
            let scale = 0.3;
            let shape = (heads as usize, kv_heads as usize, head_dim as usize);
            let expected = attention(&q, &keys, &values, &looking, shape, scale);
            let given = [q, at.clone(), vec![1.0; 3]];
            let mut fused = request(
                Operation::Attention { heads, scale: Real(scale) },
                [vec![rows(Element::F32, &[q_width])], indices()].concat(),
                vec![],
                vec![rows(Element::F32, &[q_width])],
            );
            fused.caches = write.caches.clone();
            assert_close(&run(&target, &fused, 3, &given, &[], &mut caches)[0], &expected, 1e-5);

            let scores_type = || rows(Element::F32, &[heads, context]);
            let mut scores = request(
                Operation::AttentionScores { heads, scale: Real(scale) },
                fused.inputs.clone(),
                vec![],
                vec![scores_type()],
            );
            scores.caches = vec![cache(CacheKind::Key)];
            let found = run(&target, &scores, 3, &given, &[], &mut caches[..1]);
            assert_eq!(found[0][6], 77.0, "a hidden position was written");
            let softmax = request(
                Operation::CausalSoftmax,
                vec![scores_type(), rows(Element::I32, &[])],
                vec![],
                vec![scores_type()],
            );
            let found = run(&target, &softmax, 3, &[found[0].clone(), at], &[], &mut []);
            let mut sums = request(
                Operation::AttentionValues { heads },
                [vec![scores_type()], indices()].concat(),
                vec![],
                vec![rows(Element::F32, &[q_width])],
            );
            sums.caches = vec![cache(CacheKind::Value)];
            let given = [found[0].clone(), given[1].clone(), given[2].clone()];
            assert_close(&run(&target, &sums, 3, &given, &[], &mut caches[1..])[0], &expected, 1e-5);
        }
    }
}

#[test]
fn rotate_and_write_cache_in_steps_equal_the_fused_kernel() {
    let (heads, head_dim, context) = (3_u64, 10_u64, 20_u64);
    let table = numbers(context * head_dim, 14);
    let x = numbers(2 * heads * head_dim, 15);
    let at = vec![19.0, 4.0];
    let expected: Vec<f32> = x
        .chunks(10)
        .enumerate()
        .flat_map(|(head, x)| rotated(x, &table[if head < 3 { 190 } else { 40 }..][..10]))
        .collect();
    for target in targets() {
        let ty = request(
            Operation::Rotate { head_dim },
            vec![rows(Element::F32, &[30]), rows(Element::I32, &[])],
            vec![weight(Element::F32, &[context, head_dim])],
            vec![rows(Element::F32, &[30])],
        );
        let found = run(&target, &ty, 2, &[x.clone(), at.clone()], std::slice::from_ref(&table), &mut []);
        assert_close(&found[0], &expected, 1e-6);
        for kind in [CacheKind::Key, CacheKind::Value] {
            let cache =
                CacheType { kind, slots: 1, kv_heads: heads, context, head_dim, element: Element::F32 };
            let mut write = request(
                Operation::WriteCache,
                vec![rows(Element::F32, &[30]), rows(Element::I32, &[]), rows(Element::I32, &[])],
                vec![],
                vec![],
            );
            write.caches = vec![cache.clone()];
            let mut bytes = [vec![0; target.cache_bytes(&cache) as usize]];
            run(&target, &write, 2, &[x.clone(), at.clone(), vec![0.0; 2]], &[], &mut bytes);
            let stored = from_bytes(Element::F32, &bytes[0]);
            let padded = head_dim.next_multiple_of(target.lanes().into()) as usize;
            for (row, position) in [(0_usize, 19_usize), (1, 4)] {
                for head in 0..3 {
                    for column in 0..10 {
                        let place = match kind {
                            CacheKind::Key => (head * 10 + column) * 256 + position,
                            CacheKind::Value => (head * 256 + position) * padded + column,
                        };
                        assert_eq!(stored[place], x[row * 30 + head * 10 + column]);
                    }
                }
            }
        }
    }
}

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
