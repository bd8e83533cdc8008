//! Kernels of CUDA devices, run on the emulator.

use std::ops::Range;

use qwen2c_emulator::{Counts, LaunchShape, Memory, Module, Schedule, launch};

use qwen2c_request::{KernelRequest, Target, WeightLayout};

use super::compiled::Compiled;
use super::operands;
use crate::{AnyTarget, CompiledKernels, KeepText, KernelSource, compile_kernels};

/// Orders of blocks and warps that must give the same bits.
const SEEDS: [u64; 2] = [0, 7];

/// Memory of the device: more than any test needs.
const CAPACITY_BYTES: u64 = 1 << 32;

/// Bytes of a kernel's operands.
pub(super) struct Bytes {
    /// Of all weights, in their layouts.
    pub(super) weights: u64,
}

/// What a request's kernel moves and computes for `count` rows.
pub(super) fn count(
    target: &AnyTarget,
    request: &KernelRequest,
    count: u64,
    inputs: &[Vec<f32>],
    weights: &[Vec<f32>],
    caches: &[Vec<u8>],
) -> (Counts, Bytes) {
    let choice = target.choose(request).unwrap();
    let layouts: Vec<WeightLayout> = choice.layouts.iter().map(|options| options[0].layout).collect();
    let mut buffers = operands(request, &layouts, count, (inputs, weights, caches));
    let of_weights = buffers.iter().skip(request.inputs.len()).take(request.weights.len());
    let bytes = Bytes { weights: of_weights.map(|bytes| bytes.len() as u64).sum() };
    let source = KernelSource { name: "kernel", request, layouts: &layouts, is_persistent: false };
    (run(target, &source, choice.workspace_bytes, count, &mut buffers), bytes)
}

/// Runs all launches of a kernel on copies of `buffers`, which get what the device wrote; returns what it
/// counted.
///
/// # Panics
///
/// When the emulator finds a fault, or another order of blocks gives other bytes.
pub(super) fn run(
    target: &AnyTarget,
    source: &KernelSource<'_>,
    workspace_bytes: u64,
    count: u64,
    buffers: &mut [Vec<u8>],
) -> Counts {
    run_with_gaps(target, source, workspace_bytes, count, buffers, &[])
}

/// As [`run`]; of `gaps`, bytes of buffers by their numbers, the device's memory is never written.
pub(super) fn run_with_gaps(
    target: &AnyTarget,
    source: &KernelSource<'_>,
    workspace_bytes: u64,
    count: u64,
    buffers: &mut [Vec<u8>],
    gaps: &[(usize, Range<usize>)],
) -> Counts {
    static COMPILED: Compiled<CompiledKernels> = Compiled::new();
    let compiled = COMPILED.get_or_compile(target, source, |target, source| {
        compile_kernels(target, &[*source], KeepText::default()).unwrap()
    });
    let ptx = &compiled.images[0].ptx;
    let module = Module::parse(ptx).unwrap_or_else(|error| panic!("{error:?}\n{ptx}"));
    let given: Vec<Vec<u8>> = buffers.to_vec();
    let mut counts = Counts::default();
    for (index, seed) in SEEDS.into_iter().enumerate() {
        let mut memory = Memory::new(CAPACITY_BYTES);
        let addresses: Vec<u64> = given
            .iter()
            .enumerate()
            .map(|(number, bytes)| {
                let address = memory.allocate(bytes.len().max(1) as u64).unwrap();
                let mut written = 0;
                let gaps = gaps.iter().filter(|(buffer, _)| *buffer == number).map(|(_, gap)| gap.clone());
                for gap in gaps.chain(std::iter::once(bytes.len()..bytes.len())) {
                    memory.write(address + written as u64, &bytes[written..gap.start]).unwrap();
                    written = gap.end;
                }
                address
            })
            .collect();
        let workspace = (workspace_bytes > 0).then(|| memory.allocate(workspace_bytes).unwrap());
        let mut parameters: Vec<u8> =
            addresses.iter().copied().chain(workspace).flat_map(u64::to_le_bytes).collect();
        parameters.extend((count as u32).to_le_bytes());
        counts = Counts::default();
        for step in &compiled.launches[0] {
            let entry = module.entry(&step.symbol).expect("every launch has its entry point");
            let shape = LaunchShape {
                grid: [step.blocks, (count as u32).div_ceil(step.rows_per_block), 1],
                block: [step.threads, 1, 1],
                shared_bytes: step.shared_bytes,
            };
            counts += &launch(entry, &shape, &parameters, &mut memory, Schedule { seed })
                .unwrap_or_else(|fault| panic!("{:?}: {fault:?}\n{ptx}", source.request));
        }
        for (buffer, address) in buffers.iter_mut().zip(&addresses) {
            let mut found = vec![0; buffer.len()];
            memory.read(*address, &mut found).unwrap();
            assert!(index == 0 || *buffer == found, "{:?}: the order of blocks shows", source.request);
            *buffer = found;
        }
    }
    counts
}
