//! Kernels that are spoilt in one place; each must turn red, or the emulator proves nothing.

use crate::device::product::multiply;
use crate::device::{Argument, Device, KERNELS, Numbers, shape};

/// `text` with the occurrence numbered `at` of `from` replaced by `to`.
#[track_caller]
fn spoil(text: &str, from: &str, at: usize, to: &str) -> String {
    let (start, _) = text.match_indices(from).nth(at).expect("a place to spoil");
    format!("{}{to}{}", &text[..start], &text[start + from.len()..])
}

/// The entry of the matrix product alone, so that nothing else is spoilt.
fn matmul() -> String {
    let start = KERNELS.find(".visible .entry matmul").expect("an entry");
    let header = &KERNELS[..KERNELS.find(".visible").expect("an entry")];
    format!("{header}{}", &KERNELS[start..])
}

#[track_caller]
fn assert_red(text: &str, expected: &str, at: &str) {
    for seed in 0..6 {
        match multiply(text, seed) {
            Ok((error, _)) => panic!("no fault, greatest error {error} (seed {seed})"),
            Err(fault) => {
                assert!(fault.what.contains(expected), "another fault: {fault}");
                assert!(fault.instruction.contains(at), "at another place: {fault}");
            }
        }
    }
}

#[test]
fn nothing_spoilt_is_green() {
    for seed in 0..6 {
        assert!(multiply(&matmul(), seed).unwrap().0 < 1e-4);
    }
}

#[test]
fn a_wait_that_is_one_too_weak() {
    let text = spoil(&matmul(), "cp.async.wait_group \t1;", 0, "cp.async.wait_group \t2;");
    assert_red(&text, "has not landed", "ldmatrix");
}

#[test]
fn no_barrier_between_the_wait_and_the_product() {
    // Other warps' copies have not landed yet, or have, and nothing orders them.
    let text = spoil(&matmul(), "bar.sync \t0;", 0, "");
    assert_red(&text, "", "");
}

#[test]
fn no_barrier_between_the_product_and_the_next_copy() {
    let text = spoil(&matmul(), "bar.sync \t0;", 1, "");
    for seed in 0..6 {
        let fault = multiply(&text, seed).unwrap_err();
        let is_found = fault.what.contains("race: ") || fault.what.contains("has not landed");
        assert!(is_found, "{fault}");
    }
}

#[test]
fn two_registers_of_a_fragment_of_b_swapped() {
    let text = spoil(&matmul(), "{%r24,%r25}, {%r53", 0, "{%r25,%r24}, {%r53");
    for seed in 0..3 {
        assert!(multiply(&text, seed).unwrap().0 > 0.1, "the result is still right");
    }
}

#[test]
fn one_tile_too_many() {
    // The loop compares with one more than the number of tiles.
    let text = spoil(&matmul(), "setp.ge.u32 \t%p2, %r8, %r10;", 0, "setp.gt.u32 \t%p2, %r8, %r10;");
    for seed in 0..6 {
        let fault = multiply(&text, seed).unwrap_err();
        assert!(fault.what.contains("lies in no allocation"), "{fault}");
        assert!(fault.instruction.contains("cp.async.cg"), "{fault}");
    }
}

#[test]
fn a_barrier_under_a_divergent_predicate() {
    let text = spoil(
        &matmul(),
        "bar.sync \t0;",
        0,
        "and.b32 %r40, %r3, 1;\nsetp.eq.b32 %p1, %r40, 0;\n@%p1 bar.sync 0;",
    );
    assert_red(&text, "divergent barrier: 16 of the 32 live lanes", "bar.sync");
    let text = spoil(&matmul(), "bar.sync \t0;", 0, "setp.lt.u32 %p1, %r3, 64;\n@%p1 bar.sync 0;");
    assert_red(&text, "", "");
}

#[test]
fn output_stores_that_overlap() {
    let text = spoil(&matmul(), "[%rd44+4], %r54", 0, "[%rd44+8], %r54");
    assert_red(&text, "race: writing 4 bytes of global memory", "st.global");
    // Blocks that write the same rows.
    let text = spoil(&matmul(), "mov.u32 \t%r12, %ctaid.y;", 0, "mov.u32 \t%r12, 0;");
    assert_red(&text, "race: writing 4 bytes of global memory", "st.global");
}

#[test]
fn a_reduction_without_its_barrier() {
    let mut numbers = Numbers::new(9);
    let values: Vec<f32> = (0..256).map(|_| numbers.float()).collect();
    let run = |text: &str, seed: u64| {
        let mut device = Device::new();
        device.seed = seed;
        let (from, out) = (device.upload_floats(&values), device.reserve(4));
        device.run(text, "block_sum", shape(1, 256), &[from, out].map(Argument::Pointer))
    };
    let spoilt = spoil(KERNELS, "bar.sync \t0;", 0, "");
    for seed in 0..6 {
        run(KERNELS, seed).unwrap();
        let fault = run(&spoilt, seed).unwrap_err();
        assert!(fault.instruction.contains("ld.shared"), "{fault}");
    }
    // A shuffle by the lanes that the branch before it left.
    let spoilt = spoil(KERNELS, "@%p3 bra \t$L__BB1_5;", 0, "@%p3 bra \t$L__BB1_7;");
    let fault = run(&spoilt, 0).unwrap_err();
    assert!(fault.what.contains("do not arrive converged"), "{fault}");
}
