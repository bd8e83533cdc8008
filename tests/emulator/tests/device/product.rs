//! Runs the matrix product of `kernels.cu` and compares it with sums in double precision.

use qwen2c_emulator::{Counts, Fault, LaunchShape};

use super::{Argument, Device, Numbers};

const ROWS: usize = 64;
const COLUMNS: usize = 96;
/// Tiles of depth 32.
const TILES: usize = 3;

/// Runs entry `matmul` of `text` under a schedule; the greatest error, and the counts.
pub(crate) fn multiply(text: &str, seed: u64) -> Result<(f64, Counts), Fault> {
    let depth = 32 * TILES;
    let mut numbers = Numbers::new(7);
    let mut short =
        |count: usize| -> Vec<u16> { (0..count).map(|_| (numbers.float().to_bits() >> 16) as u16).collect() };
    let (a, b) = (short(ROWS * depth), short(COLUMNS * depth));
    let bytes = |values: &[u16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    let mut device = Device::new();
    device.seed = seed;
    let (first, second) = (device.upload(&bytes(&a)), device.upload(&bytes(&b)));
    let out = device.reserve(4 * ROWS * COLUMNS);
    let arguments = [
        Argument::Pointer(first),
        Argument::Pointer(second),
        Argument::Pointer(out),
        Argument::Word(COLUMNS as u32),
        Argument::Word(TILES as u32),
    ];
    let shape = LaunchShape { grid: [3, 2, 1], block: [128, 1, 1], shared_bytes: 4 * 32 * 80 };
    let counts = device.run(text, "matmul", shape, &arguments)?;
    let widen = |value: u16| f64::from(f32::from_bits(u32::from(value) << 16));
    let mut worst = 0f64;
    for (at, found) in device.floats(out, ROWS * COLUMNS).into_iter().enumerate() {
        let (row, column) = (at / COLUMNS, at % COLUMNS);
        let exact: f64 = (0..depth).map(|k| widen(a[row * depth + k]) * widen(b[column * depth + k])).sum();
        worst = worst.max((f64::from(found) - exact).abs());
    }
    Ok((worst, counts))
}
