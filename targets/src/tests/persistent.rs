//! The persistent kernel: launches one after another in one grid, against the same launches by themselves.

use qwen2c_emulator::{Counts, Fault, LaunchShape, Memory, Module, Schedule, launch};

use super::*;
use crate::CompiledKernels;

/// Width of the residual stream: a product of this size is shared by several warps.
const WIDTH: u64 = 512;

/// Memory of the device: more than the test needs.
const CAPACITY_BYTES: u64 = 1 << 26;

/// Two layers of a norm and a product that is added to the residual stream.
struct Chain {
    compiled: CompiledKernels,
    /// Kernel and operands of each step, by the numbers of buffers.
    steps: Vec<(usize, Vec<usize>)>,
    buffers: Vec<Vec<u8>>,
}

fn chain() -> Chain {
    let target = resolve_target(&["sm_80"]).unwrap();
    let mut norm = request(
        Operation::RmsNorm { epsilon: Real(1e-6) },
        vec![rows(Element::F32, &[WIDTH])],
        vec![weight(Element::F32, &[WIDTH])],
        vec![rows(Element::Bf16, &[WIDTH])],
    );
    let mut matmul = request(
        Operation::Matmul { norm: None, bias: false, residual: true, silu_multiply: false },
        vec![rows(Element::Bf16, &[WIDTH]), rows(Element::F32, &[WIDTH])],
        vec![weight(Element::Bf16, &[WIDTH, WIDTH])],
        vec![rows(Element::F32, &[WIDTH])],
    );
    (norm.max_rows, matmul.max_rows) = (1, 1);
    let requests = [norm, matmul];
    let layouts = requests.each_ref().map(|request| -> Vec<WeightLayout> {
        target.choose(request).unwrap().layouts.iter().map(|options| options[0].layout).collect()
    });
    let source = |index: usize| KernelSource {
        name: ["norm", "product"][index],
        request: &requests[index],
        layouts: &layouts[index],
        is_persistent: true,
    };
    // A kernel that the list does not have is counted, and nothing else.
    let other = KernelSource { name: "other", is_persistent: false, ..source(0) };
    let compiled = compile_kernels(&target, &[other, source(0), source(1)], KeepText::default()).unwrap();
    let vector = |seed| to_bytes(Element::F32, &numbers(WIDTH, seed));
    let matrix = |seed| pack(&requests[1].weights[0], layouts[1][0], &numbers(WIDTH * WIDTH, seed));
    let empty = |element: Element| vec![0; (WIDTH * element.bytes()) as usize];
    Chain {
        compiled,
        // 0 and 1 are the residual stream, 2 is normalized; then the weights of two layers.
        steps: vec![(1, vec![0, 3, 2]), (2, vec![2, 0, 4, 1]), (1, vec![1, 5, 2]), (2, vec![2, 1, 6, 0])],
        buffers: vec![
            vector(1),
            empty(Element::F32),
            empty(Element::Bf16),
            vector(2),
            matrix(3),
            vector(4),
            matrix(5),
        ],
    }
}

/// The device with the chain's buffers, and their addresses.
fn device(chain: &Chain) -> (Memory, Vec<u64>) {
    let mut memory = Memory::new(CAPACITY_BYTES);
    let addresses = chain
        .buffers
        .iter()
        .map(|bytes| {
            let address = memory.allocate(bytes.len() as u64).unwrap();
            memory.write(address, bytes).unwrap();
            address
        })
        .collect();
    (memory, addresses)
}

fn results(mut memory: Memory, addresses: &[u64], chain: &Chain) -> Vec<Vec<u8>> {
    let read = |(address, bytes): (&u64, &Vec<u8>)| {
        let mut found = vec![0; bytes.len()];
        memory.read(*address, &mut found).unwrap();
        found
    };
    addresses.iter().zip(&chain.buffers).map(read).collect()
}

/// One launch after another.
fn separately(chain: &Chain) -> Vec<Vec<u8>> {
    let module = Module::parse(&chain.compiled.images[0].ptx).unwrap();
    let (mut memory, addresses) = device(chain);
    for (kernel, operands) in &chain.steps {
        let mut parameters: Vec<u8> =
            operands.iter().flat_map(|operand| addresses[*operand].to_le_bytes()).collect();
        parameters.extend(1_u32.to_le_bytes());
        for step in &chain.compiled.launches[*kernel] {
            let shape = LaunchShape {
                grid: [step.blocks, 1, 1],
                block: [step.threads, 1, 1],
                shared_bytes: step.shared_bytes,
            };
            let entry = module.entry(&step.symbol).unwrap();
            launch(entry, &shape, &parameters, &mut memory, Schedule { seed: 3 }).unwrap();
        }
    }
    results(memory, &addresses, chain)
}

/// All of it `tokens` times, in one grid of `blocks` each time.
fn persistently(chain: &Chain, blocks: u32, tokens: u32, seed: u64) -> (Vec<Vec<u8>>, Counts) {
    let ptx = &chain.compiled.images[0].ptx;
    run_ptx(chain, ptx, blocks, tokens, seed)
        .unwrap_or_else(|fault| panic!("{blocks} blocks: {fault:?}\n{ptx}"))
}

/// As [`persistently`], with another text in the place of the module's.
fn run_ptx(
    chain: &Chain,
    ptx: &str,
    blocks: u32,
    tokens: u32,
    seed: u64,
) -> Result<(Vec<Vec<u8>>, Counts), Fault> {
    let module = Module::parse(ptx).unwrap();
    let kernel = chain.compiled.persistent.as_ref().unwrap();
    let (mut memory, addresses) = device(chain);
    // Every kernel here is one launch, whose number is then the kernel's.
    let words: Vec<u64> = chain
        .steps
        .iter()
        .flat_map(|(kernel, operands)| {
            let operands = operands.iter().map(|operand| addresses[*operand]);
            let row = std::iter::once(*kernel as u64).chain(operands).chain([0; 8]);
            row.take(chain.compiled.persistent.as_ref().unwrap().row_words as usize).collect::<Vec<_>>()
        })
        .collect();
    let table = memory.allocate(8 * words.len() as u64).unwrap();
    memory.write(table, &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    let barrier = memory.allocate(4).unwrap();
    memory.write(barrier, &[0; 4]).unwrap();
    let mut parameters: Vec<u8> = [table, barrier].into_iter().flat_map(u64::to_le_bytes).collect();
    parameters.extend((chain.steps.len() as u32).to_le_bytes());
    let shape = LaunchShape {
        grid: [blocks, 1, 1],
        block: [kernel.threads, 1, 1],
        shared_bytes: kernel.shared_bytes,
    };
    let entry = module.entry(&kernel.symbol).unwrap();
    let mut counts = Counts::default();
    for token in 0..tokens {
        let schedule = Schedule { seed: seed + u64::from(token) };
        counts += &launch(entry, &shape, &parameters, &mut memory, schedule)?;
    }
    Ok((results(memory, &addresses, chain), counts))
}

#[test]
fn one_grid_finds_the_bits_of_many_launches() {
    let mut chain = chain();
    let first = separately(&chain);
    chain.buffers[0].clone_from(&first[0]);
    let second = separately(&chain);
    chain.buffers[0] = to_bytes(Element::F32, &numbers(WIDTH, 1));
    assert_ne!(first[0], chain.buffers[0]);
    assert_ne!(first[0], second[0]);
    for (blocks, seed) in [(1, 0), (3, 1), (16, 2), (200, 3)] {
        assert_eq!(persistently(&chain, blocks, 1, seed).0, first, "{blocks} blocks");
    }
    // The barrier's word is left as the next token needs it.
    for tokens_seed in [5, 6] {
        assert_eq!(persistently(&chain, 7, 2, tokens_seed).0, second);
    }
}

#[test]
fn weights_are_read_once_and_16_bytes_at_a_time() {
    let chain = chain();
    let (_, counts) = persistently(&chain, 32, 1, 0);
    let weights = 2 * WIDTH * WIDTH * 2;
    assert!(counts.global_loads_of_16_bytes * 16 * 32 >= weights);
    // Besides the weights: vectors and the table.
    let rest = counts.global_distinct_read_bytes - weights;
    assert!(rest < 16 * WIDTH, "{rest} bytes beside the weights");
}

/// What holds the steps apart, each missing once: the emulator must see it, whatever came out.
#[test]
fn a_barrier_that_lets_blocks_through_is_a_race() {
    let chain = chain();
    let ptx = &chain.compiled.images[0].ptx;
    for (what, weaker) in [("fence.acq_rel.gpu;", ""), ("ld.acquire.gpu.global", "ld.relaxed.gpu.global")] {
        assert_eq!(ptx.matches(what).count(), 1, "{what} in\n{ptx}");
        let mutated = ptx.replace(what, weaker);
        let fault = run_ptx(&chain, &mutated, 16, 1, 0).expect_err(what);
        assert!(fault.what.contains("race"), "{what}: {fault:?}");
    }
}
