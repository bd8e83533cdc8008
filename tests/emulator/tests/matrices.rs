//! Matrix products and the loads of their fragments, against sums in double precision.
//!
//! Where an element lies is written down as the PTX ISA gives it, shape by shape, and not as the emulator
//! computes it: `(row, column)` of element `i` of a lane, with `group = lane / 4` and `place = lane % 4`.

use crate::device::{Argument, Device, Numbers, kernel, shape};

type Place = fn(group: usize, place: usize, i: usize) -> (usize, usize);

/// A product as PTX names it.
struct Product {
    name: &'static str,
    depth: usize,
    /// Elements of A and B in a register.
    packed: usize,
    of_a: Place,
    /// Row of B is the depth, column the column of the result.
    of_b: Place,
    decode: [fn(u32) -> f64; 2],
}

fn half(bits: u32) -> f64 {
    let (exponent, mantissa) = (bits >> 10 & 31, f64::from(bits & 1023));
    let value = if exponent == 0 {
        mantissa * 2f64.powi(-24)
    } else {
        (1024.0 + mantissa) * 2f64.powi(exponent as i32 - 25)
    };
    if bits & 0x8000 != 0 { -value } else { value }
}

fn brain(bits: u32) -> f64 {
    f64::from(f32::from_bits(bits << 16))
}

fn tensor(bits: u32) -> f64 {
    f64::from(f32::from_bits(bits & !0x1fff))
}

fn signed(bits: u32) -> f64 {
    f64::from(bits as u8 as i8)
}

fn unsigned(bits: u32) -> f64 {
    f64::from(bits as u8)
}

// m16n8k16, .f16 and .bf16: a0 … a7, b0 … b3.
fn a_of_depth_16(group: usize, place: usize, i: usize) -> (usize, usize) {
    let row = if matches!(i, 0 | 1 | 4 | 5) { group } else { group + 8 };
    let column = if i < 4 { place * 2 + (i & 1) } else { place * 2 + (i & 1) + 8 };
    (row, column)
}

fn b_of_depth_16(group: usize, place: usize, i: usize) -> (usize, usize) {
    let row = if i < 2 { place * 2 + (i & 1) } else { place * 2 + (i & 1) + 8 };
    (row, group)
}

// m16n8k8, .f16 and .bf16: a0 … a3, b0 and b1.
fn a_of_depth_8(group: usize, place: usize, i: usize) -> (usize, usize) {
    (if i < 2 { group } else { group + 8 }, place * 2 + (i & 1))
}

fn b_of_depth_8(group: usize, place: usize, i: usize) -> (usize, usize) {
    (place * 2 + i, group)
}

// m16n8k4 and m16n8k8, .tf32.
fn tensor_a_of_depth_4(group: usize, place: usize, i: usize) -> (usize, usize) {
    (if i == 0 { group } else { group + 8 }, place)
}

fn tensor_a_of_depth_8(group: usize, place: usize, i: usize) -> (usize, usize) {
    let row = if i == 0 || i == 2 { group } else { group + 8 };
    (row, if i < 2 { place } else { place + 4 })
}

fn tensor_b(group: usize, place: usize, i: usize) -> (usize, usize) {
    (if i == 0 { place } else { place + 4 }, group)
}

// m16n8k16 and m16n8k32, .s8 and .u8: a0 … a7 or a15, b0 … b3 or b7.
fn byte_a_of_depth_16(group: usize, place: usize, i: usize) -> (usize, usize) {
    (if i < 4 { group } else { group + 8 }, place * 4 + (i & 3))
}

fn byte_b_of_depth_16(group: usize, place: usize, i: usize) -> (usize, usize) {
    (place * 4 + i, group)
}

fn byte_a_of_depth_32(group: usize, place: usize, i: usize) -> (usize, usize) {
    let row = if i < 4 || (8..12).contains(&i) { group } else { group + 8 };
    let column = if i < 8 { place * 4 + (i & 3) } else { place * 4 + (i & 3) + 16 };
    (row, column)
}

fn byte_b_of_depth_32(group: usize, place: usize, i: usize) -> (usize, usize) {
    (if i < 4 { place * 4 + (i & 3) } else { place * 4 + (i & 3) + 16 }, group)
}

// C and D of all of them: c0 … c3.
fn sum(group: usize, place: usize, i: usize) -> (usize, usize) {
    (if i < 2 { group } else { group + 8 }, place * 2 + (i & 1))
}

/// Registers of 32 lanes that hold a matrix of raw elements.
fn fragments(matrix: &[Vec<u32>], of: Place, elements: usize, packed: usize) -> Vec<[u32; 32]> {
    let mut registers = vec![[0; 32]; elements / packed];
    for i in 0..elements {
        for (lane, word) in registers[i / packed].iter_mut().enumerate() {
            let (row, column) = of(lane / 4, lane % 4, i);
            *word |= matrix[row][column] << (32 / packed * (i % packed));
        }
    }
    registers
}

fn random(rows: usize, columns: usize, numbers: &mut Numbers, element: impl Fn(u32) -> u32) -> Vec<Vec<u32>> {
    (0..rows).map(|_| (0..columns).map(|_| element(numbers.word())).collect()).collect()
}

/// Runs `instruction` on registers `%r1` … of all lanes; the registers `%r40` … after it.
fn run(instruction: &str, registers: &[[u32; 32]], results: usize) -> Vec<[u32; 32]> {
    let mut body = "mul.wide.u32 %d1, %r0, 4;\nadd.s64 %d1, %d1, %d0;\n".to_owned();
    for at in 0..registers.len() {
        body += &format!("ld.global.b32 %r{}, [%d1+{}];\n", at + 1, 128 * at);
    }
    body += &format!("{instruction}\n");
    for at in 0..results {
        body += &format!("st.global.b32 [%d1+{}], %r{};\n", 128 * at, 40 + at);
    }
    let mut words: Vec<u32> = registers.iter().flatten().copied().collect();
    words.resize(words.len().max(32 * results), 0);
    let mut device = Device::new();
    let address = device.upload_words(&words);
    let counts =
        device.run(&kernel("", &body), "k", shape(1, 32), &[Argument::Pointer(address)]).expect("no fault");
    assert!(!instruction.contains("mma") || counts.matrix_operations == 1);
    device.words(address, 32 * results).chunks(32).map(|lanes| lanes.try_into().expect("32 lanes")).collect()
}

fn list(first: usize, count: usize) -> String {
    let names: Vec<String> = (first..first + count).map(|at| format!("%r{at}")).collect();
    format!("{{{}}}", names.join(", "))
}

/// Elements of a size that keeps whole sums exact and float sums near.
fn element(name: &str, word: u32) -> u32 {
    let short = word & 0x8000;
    if name.contains("bf16") {
        short | ((word >> 16 & 0xff) + 0x3f00)
    } else if name.contains("f16") {
        short | ((word >> 16 & 0x7ff) + 0x3a00)
    } else if name.contains("tf32") {
        word & 0x80ff_ffff | 0x3f00_0000
    } else {
        word >> 8 & 0xff
    }
}

fn check(product: &Product) {
    let mut numbers = Numbers::new(product.depth as u64);
    let is_whole = product.name.contains("s32");
    let is_short_sum = product.name.contains(".col.f16");
    for _ in 0..4 {
        let a = random(16, product.depth, &mut numbers, |word| element(product.name, word));
        let b = random(product.depth, 8, &mut numbers, |word| element(product.name, word));
        let c = random(16, 8, &mut numbers, |word| match (is_whole, is_short_sum) {
            (true, _) => word >> 12,
            (_, true) => element("f16", word),
            _ => (word as f32 / u32::MAX as f32).to_bits(),
        });
        let in_a = product.depth / 2;
        let in_b = product.depth / 4;
        let packed_sums = if is_short_sum { 2 } else { 1 };
        let mut registers = fragments(&a, product.of_a, in_a, product.packed);
        registers.extend(fragments(&b, product.of_b, in_b, product.packed));
        registers.extend(fragments(&c, sum, 4, packed_sums));
        let counts = [in_a / product.packed, in_b / product.packed, 4 / packed_sums];
        let instruction = format!(
            "mma.sync.aligned.{} {}, {}, {}, {};",
            product.name,
            list(40, counts[2]),
            list(1, counts[0]),
            list(1 + counts[0], counts[1]),
            list(1 + counts[0] + counts[1], counts[2])
        );
        let found = run(&instruction, &registers, counts[2]);
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = sum(lane / 4, lane % 4, i);
                let [first, second] = product.decode;
                let products: f64 = (0..product.depth).map(|k| first(a[row][k]) * second(b[k][column])).sum();
                let word =
                    found[i / packed_sums][lane] >> (16 * (i % packed_sums) as u32 * u32::from(is_short_sum));
                let name = product.name;
                if is_whole {
                    assert_eq!(
                        word as i32,
                        (products + f64::from(c[row][column])) as i32,
                        "{name} ({row}, {column})"
                    );
                } else if is_short_sum {
                    let exact = products + half(c[row][column]);
                    let found = half(word & 0xffff);
                    assert!(
                        (found - exact).abs() <= exact.abs() / 2048.0 + 1e-6,
                        "{name}: {found}, not {exact}"
                    );
                } else {
                    let exact = products + f64::from(f32::from_bits(c[row][column]));
                    let found = f64::from(f32::from_bits(word));
                    assert!((found - exact).abs() < 1e-5, "{name} ({row}, {column}): {found}, not {exact}");
                }
            }
        }
    }
}

#[test]
fn products_of_short_floats() {
    for (name, depth, of_a, of_b, decode) in [
        (
            "m16n8k16.row.col.f32.bf16.bf16.f32",
            16,
            a_of_depth_16 as Place,
            b_of_depth_16 as Place,
            brain as fn(u32) -> f64,
        ),
        ("m16n8k16.row.col.f32.f16.f16.f32", 16, a_of_depth_16, b_of_depth_16, half),
        ("m16n8k16.row.col.f16.f16.f16.f16", 16, a_of_depth_16, b_of_depth_16, half),
        ("m16n8k8.row.col.f32.bf16.bf16.f32", 8, a_of_depth_8, b_of_depth_8, brain),
        ("m16n8k8.row.col.f32.f16.f16.f32", 8, a_of_depth_8, b_of_depth_8, half),
        ("m16n8k8.row.col.f16.f16.f16.f16", 8, a_of_depth_8, b_of_depth_8, half),
    ] {
        check(&Product { name, depth, packed: 2, of_a, of_b, decode: [decode; 2] });
    }
}

#[test]
fn products_of_cut_singles() {
    let decode = [tensor as fn(u32) -> f64; 2];
    let name = "m16n8k4.row.col.f32.tf32.tf32.f32";
    check(&Product { name, depth: 4, packed: 1, of_a: tensor_a_of_depth_4, of_b: tensor_b, decode });
    let name = "m16n8k8.row.col.f32.tf32.tf32.f32";
    check(&Product { name, depth: 8, packed: 1, of_a: tensor_a_of_depth_8, of_b: tensor_b, decode });
}

#[test]
fn products_of_bytes() {
    let types = [("s8", signed as fn(u32) -> f64), ("u8", unsigned)];
    for (first, decode_first) in types {
        for (second, decode_second) in types {
            for saturates in ["", ".satfinite"] {
                let name = |depth| {
                    let name = format!("m16n8k{depth}.row.col{saturates}.s32.{first}.{second}.s32");
                    &*name.leak()
                };
                let decode = [decode_first, decode_second];
                let (of_a, of_b) = (byte_a_of_depth_16 as Place, byte_b_of_depth_16 as Place);
                check(&Product { name: name(16), depth: 16, packed: 4, of_a, of_b, decode });
                let (of_a, of_b) = (byte_a_of_depth_32 as Place, byte_b_of_depth_32 as Place);
                check(&Product { name: name(32), depth: 32, packed: 4, of_a, of_b, decode });
            }
        }
    }
}

#[test]
fn whole_sums_wrap_or_stop() {
    let ones = [0x7f7f_7f7fu32; 32];
    let full = [i32::MAX as u32; 32];
    for (saturates, expected) in [("", i32::MAX.wrapping_add(16 * 127 * 127)), (".satfinite", i32::MAX)] {
        let instruction = format!(
            "mma.sync.aligned.m16n8k16.row.col{saturates}.s32.s8.s8.s32 {}, {}, {{%r3}}, {};",
            list(40, 4),
            list(1, 2),
            list(4, 4)
        );
        let found = run(&instruction, &[ones, ones, ones, full, full, full, full], 4);
        assert_eq!(found, [[expected as u32; 32]; 4]);
    }
}

/// Shared memory with rows of 16 bytes, element `e` of row `r` being `100 r + e`; lanes get rows in reverse.
fn load(matrices: usize, transposed: &str) -> Vec<[u32; 32]> {
    let body = format!(
        "mov.b32 %r2, s;\nshl.b32 %r3, %r0, 4;\nadd.s32 %r3, %r3, %r2;\nmul.lo.s32 %r4, %r0, 100;\n{}\nbar.sync 0;\n\
         sub.s32 %r5, {}, %r0;\nand.b32 %r5, %r5, 31;\nshl.b32 %r5, %r5, 4;\nadd.s32 %r5, %r5, %r2;\n\
         ldmatrix.sync.aligned.m8n8.x{matrices}{transposed}.shared.b16 {}, [%r5];\n\
         mul.wide.u32 %d1, %r0, 4;\nadd.s64 %d1, %d1, %d0;\n{}",
        (0..8)
            .map(|e| format!(
                "add.s32 %r6, %r4, {e};\ncvt.u16.u32 %h1, %r6;\nst.shared.b16 [%r3+{}], %h1;\n",
                2 * e
            ))
            .collect::<String>(),
        8 * matrices - 1,
        list(40, matrices),
        (0..matrices)
            .map(|m| format!("st.global.b32 [%d1+{}], %r{};\n", 128 * m, 40 + m))
            .collect::<String>(),
    );
    let mut device = Device::new();
    let address = device.upload_words(&vec![0; 32 * matrices]);
    let text = kernel(".shared .align 16 .b8 s[512];", &body);
    device.run(&text, "k", shape(1, 32), &[Argument::Pointer(address)]).expect("no fault");
    device.words(address, 32 * matrices).chunks(32).map(|lanes| lanes.try_into().expect("32 lanes")).collect()
}

#[test]
fn fragments_are_loaded_from_rows() {
    for matrices in [1, 2, 4] {
        // Lane i gives row i of all matrices; the rows were dealt out in reverse.
        let element =
            |matrix: usize, row: usize, column: usize| 100 * (8 * matrices - 1 - (8 * matrix + row)) + column;
        for (matrix, lanes) in load(matrices, "").iter().enumerate() {
            for (lane, word) in lanes.iter().enumerate() {
                let low = element(matrix, lane / 4, 2 * (lane % 4));
                let high = element(matrix, lane / 4, 2 * (lane % 4) + 1);
                assert_eq!(*word as usize, low | high << 16, "x{matrices}, matrix {matrix}, lane {lane}");
            }
        }
        for (matrix, lanes) in load(matrices, ".trans").iter().enumerate() {
            for (lane, word) in lanes.iter().enumerate() {
                let low = element(matrix, 2 * (lane % 4), lane / 4);
                let high = element(matrix, 2 * (lane % 4) + 1, lane / 4);
                assert_eq!(
                    *word as usize,
                    low | high << 16,
                    "x{matrices}.trans, matrix {matrix}, lane {lane}"
                );
            }
        }
    }
}

#[test]
fn a_matrix_in_registers_is_transposed() {
    let rows: [u32; 32] = std::array::from_fn(|lane| {
        let (row, column) = (lane / 4, 2 * (lane % 4));
        (10 * row + column) as u32 | ((10 * row + column + 1) as u32) << 16
    });
    let found = run("movmatrix.sync.aligned.m8n8.trans.b16 %r40, %r1;", &[rows], 1);
    for (lane, word) in found[0].iter().enumerate() {
        let (row, column) = (lane / 4, 2 * (lane % 4));
        assert_eq!(*word as usize, (10 * column + row) | (10 * (column + 1) + row) << 16);
    }
}
