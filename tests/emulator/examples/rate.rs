//! Measures how many instructions the interpreter executes in a second, all checks on.
//!
//! `cargo run --release -p qwen2c-emulator --example rate`

use std::time::Instant;

use qwen2c_emulator::{Counts, LaunchShape, Memory, Module, Schedule, launch};

const KERNELS: &str = include_str!("../tests/kernels/kernels.ptx");
const LOOP: &str = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry spin(.param .u64 p) {
.reg .b32 %r<8>;\n.reg .b32 %f<8>;\n.reg .pred %p<2>;
mov.b32 %r1, 0;\nmov.b32 %f1, 0f3F800000;\nmov.b32 %f2, 0f3F800001;\nmov.b32 %r2, 7;
AGAIN:
fma.rn.f32 %f1, %f1, %f2, %f2;\nadd.f32 %f3, %f1, %f2;\nmul.f32 %f2, %f2, %f2;
xor.b32 %r2, %r2, %r1;\nmad.lo.s32 %r3, %r2, %r1, %r2;\nshl.b32 %r4, %r3, 3;
add.s32 %r1, %r1, 1;\nsetp.lt.u32 %p1, %r1, 20000;\n@%p1 bra AGAIN;\nret;\n}";

fn report(name: &str, counts: &Counts, began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    let lanes_per_us = counts.lane_instructions as f64 / seconds / 1e6;
    let megabytes_per_s = counts.global_read_bytes as f64 / seconds / 1e6;
    eprintln!(
        "{name:10} {lanes_per_us:7.0} M lane instructions/s {megabytes_per_s:7.0} MB/s read, {seconds:.3} s"
    );
}

fn main() {
    let mut memory = Memory::new(1 << 32);
    let shape =
        |blocks, threads| LaunchShape { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0 };
    let spin = Module::parse(LOOP).expect("a module");
    let entry = spin.entry("spin").expect("an entry");
    let began = Instant::now();
    let counts = launch(entry, &shape(8, 128), &[0; 8], &mut memory, Schedule::default()).expect("no fault");
    report("loop", &counts, began);

    let module = Module::parse(KERNELS).expect("a module");
    let entry = module.entry("matvec").expect("an entry");
    let (rows, pieces) = (8192u32, 8u32);
    let weights = memory.allocate(u64::from(rows * pieces) * 512).expect("memory");
    memory.fill(weights, 0x3f, u64::from(rows * pieces) * 512).expect("a range");
    let x = memory.allocate(u64::from(pieces) * 512).expect("memory");
    memory.fill(x, 0x3f, u64::from(pieces) * 512).expect("a range");
    let out = memory.allocate(u64::from(rows) * 4).expect("memory");
    let mut parameters = [weights, x, out].map(u64::to_le_bytes).concat();
    parameters.extend(pieces.to_le_bytes());
    for name in ["matvec", "again"] {
        let began = Instant::now();
        let counts = launch(entry, &shape(rows / 4, 128), &parameters, &mut memory, Schedule::default())
            .expect("no fault");
        report(name, &counts, began);
    }

    let entry = module.entry("matmul").expect("an entry");
    let (extent, tiles) = (512u32, 16u32);
    let mut matrix = |bytes: u32| {
        let address = memory.allocate(u64::from(bytes)).expect("memory");
        memory.fill(address, 0x3f, u64::from(bytes)).expect("a range");
        address
    };
    let pointers = [matrix(2 * extent * extent), matrix(2 * extent * extent), matrix(4 * extent * extent)];
    let mut parameters = pointers.map(u64::to_le_bytes).concat();
    parameters.extend([extent, tiles].map(u32::to_le_bytes).concat());
    let shape = LaunchShape { grid: [extent / 32, extent / 32, 1], block: [128, 1, 1], shared_bytes: 10240 };
    let began = Instant::now();
    let counts = launch(entry, &shape, &parameters, &mut memory, Schedule::default()).expect("no fault");
    report("matmul", &counts, began);
    let products_per_s = counts.matrix_operations as f64 / began.elapsed().as_secs_f64();
    eprintln!("{:10} {products_per_s:7.0} mma/s", "");
}
