//! Runs one instruction on many values.

use super::{Argument, Device, shape};

/// Values of an operand and its bits.
pub(crate) type Operand<'values> = (u32, &'values [u64]);

/// Runs `instruction`, whose operands are called `A`, `B`, `C` and whose result is called `O`, with `out` bits.
///
/// Operands of one bit are predicates.
pub(crate) fn compute(instruction: &str, out: u32, operands: &[Operand<'_>]) -> Vec<u64> {
    let count = operands[0].1.len();
    let mut results = Vec::with_capacity(count);
    let chunk = 1024;
    for start in (0..count).step_by(chunk) {
        let threads = chunk.min(count - start);
        let parts: Vec<Operand<'_>> =
            operands.iter().map(|(bits, values)| (*bits, &values[start..start + threads])).collect();
        results.extend(compute_at_once(instruction, out, &parts));
    }
    results
}

fn register(bits: u32) -> String {
    if bits == 1 { ".pred".to_owned() } else { format!(".b{bits}") }
}

fn compute_at_once(instruction: &str, out: u32, operands: &[Operand<'_>]) -> Vec<u64> {
    let threads = operands[0].1.len();
    let mut declarations = format!(".reg {} O;\n", register(out));
    let mut loads = String::new();
    let mut device = Device::new();
    let mut bytes = Vec::new();
    for (at, (bits, values)) in operands.iter().enumerate() {
        let name = ["A", "B", "C"][at];
        declarations += &format!(".reg {} {name};\n", register(*bits));
        let offset = bytes.len();
        loads += &if *bits == 1 {
            format!("ld.global.b32 %t, [%d1+{offset}];\nsetp.ne.u32 {name}, %t, 0;\n")
        } else {
            format!("ld.global.b{bits} {name}, [%d1+{offset}];\n")
        };
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    let store = if out == 1 {
        "selp.b32 %t, 1, 0, O;\nst.global.b32 [%d2], %t;".to_owned()
    } else {
        format!("st.global.b{out} [%d2], O;")
    };
    let text = format!(
        ".version 8.6\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 p, .param .u64 q)\n{{\n\
         .reg .b64 %d<3>;\n.reg .b32 %t;\n{declarations}ld.param.b64 %d1, [p];\nld.param.b64 %d2, [q];\n\
         mov.u32 %t, %tid.x;\nmul.wide.u32 %d0, %t, 8;\nadd.s64 %d1, %d1, %d0;\nadd.s64 %d2, %d2, %d0;\n\
         {loads}{instruction}\n{store}\nret;\n}}\n"
    );
    let from = device.upload(&bytes);
    let to = device.upload(&vec![0; 8 * threads]);
    let result = device.run(&text, "k", shape(1, threads as u32), &[from, to].map(Argument::Pointer));
    result.unwrap_or_else(|fault| panic!("{fault}"));
    let words = device.words(to, 2 * threads);
    words.chunks(2).map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32).collect()
}

/// Asserts that `instruction` gives what `expected` computes, for every tuple of operands.
#[track_caller]
pub(crate) fn assert_computes(
    instruction: &str,
    out: u32,
    operands: &[Operand<'_>],
    expected: impl Fn(&[u64]) -> u64,
) {
    let found = compute(instruction, out, operands);
    for (at, found) in found.into_iter().enumerate() {
        let values: Vec<u64> = operands.iter().map(|(_, values)| values[at]).collect();
        let expected = expected(&values);
        assert_eq!(found, expected, "{instruction} of {values:x?} gave {found:#x}, not {expected:#x}");
    }
}
