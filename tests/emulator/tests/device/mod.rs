//! What the tests need to run kernels: uploads, launches, random numbers, fixtures.

pub(crate) mod compute;
pub(crate) mod product;

use qwen2c_emulator::{Counts, Fault, LaunchShape, Memory, Module, Schedule, launch};

/// The kernels of `kernels/kernels.cu`.
pub(crate) const KERNELS: &str = include_str!("../kernels/kernels.ptx");

/// A device and what was given to the next launch.
pub(crate) struct Device {
    pub(crate) memory: Memory,
    pub(crate) seed: u64,
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Argument {
    Pointer(u64),
    Word(u32),
}

/// A one-dimensional launch.
pub(crate) fn shape(blocks: u32, threads: u32) -> LaunchShape {
    LaunchShape { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0 }
}

impl Device {
    pub(crate) fn new() -> Device {
        Device { memory: Memory::new(1 << 30), seed: 0 }
    }

    /// Bytes that nobody wrote yet.
    pub(crate) fn reserve(&mut self, bytes: usize) -> u64 {
        self.memory.allocate(bytes as u64).expect("memory")
    }

    pub(crate) fn upload(&mut self, bytes: &[u8]) -> u64 {
        let address = self.reserve(bytes.len());
        self.memory.write(address, bytes).expect("a range of one allocation");
        address
    }

    pub(crate) fn upload_words(&mut self, words: &[u32]) -> u64 {
        self.upload(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>())
    }

    pub(crate) fn upload_floats(&mut self, values: &[f32]) -> u64 {
        self.upload_words(&values.iter().map(|value| value.to_bits()).collect::<Vec<_>>())
    }

    pub(crate) fn words(&mut self, address: u64, count: usize) -> Vec<u32> {
        let mut bytes = vec![0; 4 * count];
        self.memory.read(address, &mut bytes).expect("a range of one allocation");
        bytes.chunks(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
    }

    pub(crate) fn floats(&mut self, address: u64, count: usize) -> Vec<f32> {
        self.words(address, count).into_iter().map(f32::from_bits).collect()
    }

    pub(crate) fn run(
        &mut self,
        text: &str,
        entry: &str,
        shape: LaunchShape,
        arguments: &[Argument],
    ) -> Result<Counts, Fault> {
        let module = Module::parse(text).unwrap_or_else(|error| panic!("{error}"));
        let entry = module.entry(entry).expect("an entry of that name");
        let mut bytes = Vec::new();
        for argument in arguments {
            match argument {
                Argument::Pointer(address) => {
                    bytes.resize(bytes.len().next_multiple_of(8), 0);
                    bytes.extend(address.to_le_bytes());
                }
                Argument::Word(word) => bytes.extend(word.to_le_bytes()),
            }
        }
        launch(entry, &shape, &bytes, &mut self.memory, Schedule { seed: self.seed })
    }
}

/// A module with one entry `k` that has a pointer `p` as its only parameter.
///
/// `%r` and `%f` have 32 bits, `%h` 16, `%d` 64, `%p` are predicates; `%d0` holds the pointer, `%r0` the thread.
pub(crate) fn kernel(outside: &str, body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n{outside}\n.visible .entry k(.param .u64 p)\n{{\n\
         .reg .b32 %r<64>;\n.reg .b32 %f<64>;\n.reg .b16 %h<16>;\n.reg .b64 %d<32>;\n.reg .pred %p<16>;\n\
         ld.param.b64 %d0, [p];\nmov.u32 %r0, %tid.x;\n{body}\nret;\n}}\n"
    )
}

/// `%d1` points at the word of the thread, `%r1` at that in shared memory `s`.
const PLACES: &str = "mul.wide.u32 %d1, %r0, 4; add.s64 %d1, %d1, %d0; shl.b32 %r1, %r0, 2; mov.b32 %r2, s; \
                      add.s32 %r1, %r1, %r2;";

/// 4 KiB of shared memory called `s`.
pub(crate) const SHARED: &str = ".shared .align 16 .b8 s[4096];";

/// A kernel with shared memory `s`; `%d1` points at the word of the thread, `%r1` at that in `s`.
pub(crate) fn with_shared(body: &str) -> String {
    kernel(SHARED, &format!("{PLACES}\n{body}"))
}

/// Runs `body` with `threads` threads of one block on words at the pointer; the words after it.
pub(crate) fn run_body(body: &str, threads: u32, words: &[u32]) -> Result<Vec<u32>, Fault> {
    run_text(&kernel("", body), shape(1, threads), words, 0)
}

/// Runs entry `k` of `text` on words at the pointer; the words after it.
pub(crate) fn run_text(text: &str, shape: LaunchShape, words: &[u32], seed: u64) -> Result<Vec<u32>, Fault> {
    let mut device = Device::new();
    device.seed = seed;
    let address = device.upload_words(words);
    device.run(text, "k", shape, &[Argument::Pointer(address)])?;
    Ok(device.words(address, words.len()))
}

/// Asserts that `body` is refused with a message that has `expected` in it, at the line that has `at` in it.
#[track_caller]
pub(crate) fn assert_fault(text: &str, shape: LaunchShape, words: &[u32], at: &str, expected: &str) {
    for seed in 0..8 {
        match run_text(text, shape, words, seed) {
            Ok(_) => panic!("no fault, although `{expected}` was expected (seed {seed})"),
            Err(fault) => {
                assert!(fault.what.contains(expected), "another fault: {fault}");
                assert!(fault.instruction.contains(at), "at another place: {fault}");
                assert_eq!(
                    text.lines().nth(fault.line as usize - 1).map(str::trim),
                    Some(&*fault.instruction)
                );
            }
        }
    }
}

/// Asserts that `body` runs under several schedules.
#[track_caller]
pub(crate) fn assert_runs(text: &str, shape: LaunchShape, words: &[u32]) {
    for seed in 0..8 {
        if let Err(fault) = run_text(text, shape, words, seed) {
            panic!("seed {seed}: {fault}");
        }
    }
}

/// Numbers that are the same in every run.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Numbers {
        Numbers(seed ^ 0x1234_5678_9abc_def1)
    }

    pub(crate) fn word(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// Between -1 and 1.
    pub(crate) fn float(&mut self) -> f32 {
        (f64::from(self.word()) / f64::from(u32::MAX) * 2.0 - 1.0) as f32
    }
}
