//! Every kernel, compiled, loaded and compared with its formula in plain loops.

mod attention;
mod compiled;
mod device;
mod elementwise;
mod experts;
mod fused_products;
mod largest;
mod matrix_attention;
mod matrix_products;
mod persistent;
mod products;
mod tensor_cores;
mod traffic;
pub(super) mod weights;

use std::ffi::{CString, c_void};
use std::process::Command;

use qwen2c_request::{
    CacheKind, CacheType, Dimension, Element, KernelRequest, Operation, Quantization, QuantizedRow, Real,
    Size, Target, TensorType, WeightLayout, WeightType, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16,
    quantize_activations,
};

use crate::{AnyTarget, KeepText, KernelSource, compile_kernels, resolve_target};
use compiled::Compiled;
use weights::{FORMATS, dequantized, is_made, pack};

/// The processors' levels that this machine can run, at least the lowest. `matrix_products` tests what
/// `x86-64-amx` has beyond them.
fn processors() -> Vec<AnyTarget> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    ["x86-64-v3", "x86-64-v4", "x86-64-v4+avx512vnni", "x86-64-v4+avx512vnni+avx512bf16"]
        .into_iter()
        .map(|name| resolve_target(&[name]).unwrap())
        .filter(|target| {
            target
                .description()
                .required_features
                .iter()
                .all(|feature| cpuinfo.contains(&format!(" {feature}")))
        })
        .collect()
}

/// The processors, and an emulated device.
fn targets() -> Vec<AnyTarget> {
    let mut targets = processors();
    targets.push(resolve_target(&["sm_80"]).unwrap());
    targets
}

fn tensor(element: Element, first: Dimension, extents: &[u64]) -> TensorType {
    let mut dimensions = vec![first];
    dimensions.extend(extents.iter().map(|extent| Dimension::constant("n", *extent)));
    TensorType { dimensions, element }
}

pub(crate) fn rows(element: Element, extents: &[u64]) -> TensorType {
    tensor(element, Dimension::rows(), extents)
}

pub(crate) fn weight(element: Element, extents: &[u64]) -> WeightType {
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
            Element::I8 { .. } | Element::I16 { .. } => {
                unreachable!("rows of integers are written by `quantized_rows`")
            }
        })
        .collect()
}

/// The bytes of a value, from its numbers.
fn value_bytes(ty: &TensorType, values: &[f32]) -> Vec<u8> {
    match ty.element.integer_group() {
        Some(group) => quantized_rows(ty.element, values, ty.columns(), group),
        None => to_bytes(ty.element, values),
    }
}

/// Rows of integers with scales, written from the format's definition.
fn quantized_rows(element: Element, values: &[f32], columns: u64, group: u32) -> Vec<u8> {
    let is_wide = matches!(element, Element::I16 { .. });
    let most: f32 = if is_wide { 32512.0 } else { 127.0 };
    let mut bytes = Vec::new();
    for row in values.chunks(columns as usize) {
        let (mut high, mut low) = (Vec::new(), Vec::new());
        let (mut scales, mut sums) = (Vec::new(), Vec::new());
        for group_values in row.chunks(group as usize) {
            let largest = group_values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let inverse = if largest > 0.0 { most / largest } else { 0.0 };
            let mut integers: Vec<i32> =
                group_values.iter().map(|x| (x * inverse).round_ties_even() as i32).collect();
            integers.resize(group as usize, 0);
            let sum: i32 = integers.iter().sum();
            low.extend(integers.iter().map(|integer| *integer as u8));
            high.extend(integers.iter().map(|integer| ((integer - i32::from(*integer as i8)) / 256) as u8));
            scales.extend((largest * (1.0 / most)).to_le_bytes());
            sums.extend((-sum).to_le_bytes());
        }
        bytes.extend(if is_wide { high } else { Vec::new() });
        bytes.extend(low);
        bytes.extend(scales);
        bytes.extend(sums);
    }
    bytes
}

/// The numbers that `quantized_rows` stands for.
fn from_quantized_rows(bytes: &[u8], extents: QuantizedRow) -> Vec<f32> {
    let row_values = |row: &[u8]| -> Vec<f32> {
        let scales = &row[extents.scales_at_bytes() as usize..];
        let value = |column: usize| {
            let scale = &scales[column / extents.group as usize * 4..][..4];
            let plane = |plane: u64| f32::from(row[(plane * extents.plane_bytes()) as usize + column] as i8);
            let integer = if extents.planes == 2 { 256.0 * plane(0) + plane(1) } else { plane(0) };
            integer * f32::from_le_bytes(scale.try_into().unwrap())
        };
        (0..extents.elements as usize).map(value).collect()
    };
    bytes.chunks_exact(extents.bytes() as usize).flat_map(row_values).collect()
}

fn from_bytes(element: Element, bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(element.bytes() as usize)
        .map(|chunk| match element {
            Element::F32 => f32::from_le_bytes(chunk.try_into().unwrap()),
            Element::I32 => i32::from_le_bytes(chunk.try_into().unwrap()) as f32,
            Element::Bf16 => bf16_to_f32(u16::from_le_bytes(chunk.try_into().unwrap())),
            Element::F16 => f16_to_f32(u16::from_le_bytes(chunk.try_into().unwrap())),
            Element::I8 { .. } | Element::I16 { .. } => {
                unreachable!("rows of integers are read by `from_quantized_rows`")
            }
        })
        .collect()
}

/// Weights as floats and in each of these formats, with the activations that products with them take.
///
/// The graph has 16 bits for weights of 8 alone, but kernels do not know that: one format of 4 is there too.
/// The type of scales has nothing to do with activations.
fn with_activations(formats: &[Quantization]) -> Vec<(Option<Quantization>, Element)> {
    let mut pairs = vec![(None, Element::Bf16)];
    for format in formats {
        pairs.push((Some(*format), Element::I8 { group: format.group }));
        let has_bytes = format.bits == 8 && format.scale == Element::F16;
        if has_bytes || *format == Quantization::signed(4, 32) {
            pairs.push((Some(*format), Element::I16 { group: format.group }));
        }
    }
    pairs
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
#[derive(Clone, Copy)]
struct Loaded {
    tiles: Tiles,
    body: Body,
}

fn load(target: &AnyTarget, source: &KernelSource<'_>) -> Loaded {
    let compiled = compile_kernels(target, &[*source], KeepText::default()).unwrap();
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
    target: &AnyTarget,
    request: &KernelRequest,
    count: u64,
    inputs: &[Vec<f32>],
    weights: &[Vec<f32>],
    caches: &mut [Vec<u8>],
) -> Vec<Vec<f32>> {
    let choice = target.choose(request).unwrap();
    let layouts: Vec<WeightLayout> =
        choice.layouts.iter().map(|options| options.last().unwrap().layout).collect();
    let mut buffers = operands(request, &layouts, count, (inputs, weights, caches));
    let first_cache = request.inputs.len() + request.weights.len();
    let first_output = first_cache + request.caches.len();
    let source = KernelSource { name: "kernel", request, layouts: &layouts, is_persistent: false };
    match target {
        AnyTarget::Cpu(_) => {
            static LOADED: Compiled<Loaded> = Compiled::new();
            run_here(&LOADED.get_or_compile(target, &source, load), count, &mut buffers);
        }
        AnyTarget::Cuda(_) => {
            device::run(target, &source, choice.workspace_bytes, count, &mut buffers);
        }
    }
    for (cache, bytes) in caches.iter_mut().zip(&buffers[first_cache..]) {
        cache.clone_from(bytes);
    }
    request
        .outputs
        .iter()
        .zip(&buffers[first_output..])
        .map(|(ty, bytes)| match QuantizedRow::new(ty.element, ty.columns()) {
            Some(extents) => from_quantized_rows(bytes, extents),
            None => from_bytes(ty.element, bytes),
        })
        .collect()
}

/// Inputs and weights as numbers, caches as their bytes.
type Given<'a> = (&'a [Vec<f32>], &'a [Vec<f32>], &'a [Vec<u8>]);

/// The bytes of inputs, weights, caches and outputs.
fn operands(
    request: &KernelRequest,
    layouts: &[WeightLayout],
    count: u64,
    (inputs, weights, caches): Given<'_>,
) -> Vec<Vec<u8>> {
    let mut buffers: Vec<Vec<u8>> =
        request.inputs.iter().zip(inputs).map(|(ty, x)| value_bytes(ty, x)).collect();
    for ((ty, layout), values) in request.weights.iter().zip(layouts).zip(weights) {
        buffers.push(pack(ty, *layout, values));
    }
    buffers.extend(caches.iter().cloned());
    buffers.extend(request.outputs.iter().map(|ty| {
        if ty.element.integer_group().is_some() {
            return vec![77; ty.bytes(count, count) as usize];
        }
        let elements = ty.bytes(count, count) / ty.element.bytes();
        to_bytes(ty.element, &vec![77.0; elements as usize])
    }));
    buffers
}

/// Calls a kernel for all of its tiles.
fn run_here(kernel: &Loaded, count: u64, buffers: &mut [Vec<u8>]) {
    let operands: Vec<*mut u8> = buffers.iter_mut().map(Vec::as_mut_ptr).collect();
    // SAFETY: the operands are as large as the request says.
    unsafe {
        let tiles = (kernel.tiles)(operands.as_ptr(), count as i64);
        // Descending, since the order must not matter.
        for tile in (0..tiles).rev() {
            (kernel.body)(operands.as_ptr(), count as i64, tile);
        }
    }
}

pub(crate) fn request(
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
