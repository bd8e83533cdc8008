//! Whatever stands in a module, it is refused with a line and never with a panic.

use crate::device::{KERNELS, Numbers, kernel};
use qwen2c_emulator::Module;

#[test]
fn what_is_unknown_is_refused_with_its_line() {
    let refuse = |body: &str, expected: &str| {
        let text = kernel("", body);
        let error = Module::parse(&text).unwrap_err();
        assert!(error.what.contains(expected), "{error}");
        assert_eq!(text.lines().nth(error.line as usize - 1).map(str::trim), Some(&*error.text));
        assert!(error.text.contains(body.lines().last().unwrap()), "{error}");
    };
    refuse("frobnicate.b32 %r1, %r2;", "`frobnicate` is not known");
    refuse("mov.b32 %r1, 0;\nadd.sat.cc.s32 %r1, %r2, %r3;", "modifiers that are not known here: .sat.cc");
    refuse("add.s32 %r1, %r2;", "2 operands where 3 are due");
    refuse("add.s32 %r1, %r2, %x3;", "`%x3` is not known");
    refuse("add.s32 %r1, %r2, %d3;", "not the 4 of the type");
    refuse("bra NOWHERE;", "`NOWHERE` is not a label");
    refuse("ld.global.v4.b64 %d1, [%d0];", "1 registers where 4 are due");
    refuse("cvt.s32.f32 %r1, %f1;", "rounding `none`");
    refuse(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.f16.f32 {%f1, %f2, %f3, %f4}, {%r1, %r1}, {%r1}, {%r1};",
        "a product of depth 16",
    );
    refuse(".global .b32 x;", "`.global` is not known here");
}

#[test]
fn damaged_text_does_not_panic() {
    let mut numbers = Numbers::new(11);
    let pieces: Vec<&str> = KERNELS.split_inclusive([' ', '\t', '\n', ',', ';', '.', '{', '[']).collect();
    let mut refused = 0;
    for _ in 0..600 {
        let mut damaged: Vec<&str> = pieces.clone();
        for _ in 0..=numbers.word() % 3 {
            let at = numbers.word() as usize % damaged.len();
            let from = numbers.word() as usize % pieces.len();
            match numbers.word() % 3 {
                0 => drop(damaged.remove(at)),
                1 => damaged.insert(at, pieces[from]),
                _ => damaged[at] = pieces[from],
            }
        }
        refused += u32::from(Module::parse(&damaged.concat()).is_err());
    }
    assert!(refused > 300, "only {refused} of 600 were refused");
}

#[test]
fn text_that_ends_anywhere_does_not_panic() {
    for end in (0..KERNELS.len()).step_by(97) {
        let _ = Module::parse(&KERNELS[..end]);
    }
}

#[test]
fn sizes_beyond_all_measure_are_refused() {
    for outside in [
        ".shared .align 16 .b8 s[4000000000];",
        ".shared .align 3 .b8 s[4];",
        ".const .align 4 .b8 t[4] = {1, 2, 3, 4, 5};",
        ".global .align 4 .b8 t[4];",
        ".extern .global .b8 t[4];",
        ".func f() { ret; }",
        ".address_size 32",
        ".target gfx90",
    ] {
        assert!(Module::parse(&kernel(outside, "")).is_err(), "{outside}");
    }
    for body in [".reg .b32 %x<4000000000>;", ".reg .b128 %x<2>;", ".local .align 8 .b8 d[4000000000];"] {
        assert!(Module::parse(&kernel("", body)).is_err(), "{body}");
    }
    let parameters =
        kernel("", "").replace(".param .u64 p", ".param .u64 p, .param .align 4 .b8 q[4000000000]");
    assert!(Module::parse(&parameters).is_err());
    assert!(Module::parse("").is_err());
}
