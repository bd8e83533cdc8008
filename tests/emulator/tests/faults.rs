//! Every fault there is, triggered, each beside a kernel that only just does nothing wrong.

use crate::device::{Device, assert_fault, assert_runs, kernel, run_text, shape, with_shared};
use qwen2c_emulator::LaunchShape;

#[test]
fn global_accesses_stay_in_their_allocation() {
    let text = |offset| kernel("", &format!("ld.global.b32 %r1, [%d0+{offset}];"));
    assert_runs(&text(12), shape(1, 32), &[1; 4]);
    assert_fault(&text(16), shape(1, 32), &[1; 4], "ld.global", "lies in no allocation");
    assert_fault(&text(-4), shape(1, 32), &[1; 4], "ld.global", "lies in no allocation");
    let text = |offset| kernel("", &format!("@%p0 st.global.v4.b32 [%d0+{offset}], {{0, 0, 0, 0}};"));
    let first_only = |offset| text(offset).replace("@%p0", "setp.eq.u32 %p0, %r0, 0;\n@%p0");
    assert_runs(&first_only(16), shape(1, 32), &[1; 8]);
    assert_fault(&first_only(32), shape(1, 32), &[1; 8], "st.global", "lies in no allocation");
    assert_fault(&first_only(16), shape(1, 32), &[1; 7], "st.global", "reaches over the end");
}

#[test]
fn accesses_are_aligned_to_their_size() {
    let text = |offset| kernel("", &format!("ld.global.v2.b32 {{%r1, %r2}}, [%d0+{offset}];"));
    assert_runs(&text(8), shape(1, 32), &[1; 4]);
    assert_fault(&text(4), shape(1, 32), &[1; 4], "ld.global", "misaligned");
    let text = |offset| {
        with_shared(&format!("@%p0 st.shared.b64 [s+{offset}], %d0;"))
            .replace("@%p0", "setp.eq.u32 %p0, %r0, 0;\n@%p0")
    };
    assert_runs(&text(8), shape(1, 32), &[1]);
    assert_fault(&text(4), shape(1, 32), &[1], "st.shared", "misaligned");
}

#[test]
fn shared_accesses_stay_in_the_memory_of_the_block() {
    let text = |offset| with_shared(&format!("add.s32 %r1, %r1, {offset};\nst.shared.b32 [%r1], 0;"));
    assert_runs(&text(4096 - 128), shape(1, 32), &[1]);
    assert_fault(
        &text(4096 - 124),
        shape(1, 32),
        &[1],
        "st.shared",
        "outside the 4096 bytes of shared memory",
    );
    assert_fault(&text(-4), shape(1, 32), &[1], "st.shared", "outside");
    // Dynamic shared memory lies behind, as much as the launch says.
    let text = kernel(".extern .shared .align 16 .b8 dynamic[];", "st.shared.b32 [dynamic+4], %r0;");
    let text = text.replace("st.shared", "setp.eq.u32 %p0, %r0, 0;\n@%p0 st.shared");
    let with_bytes = |shared_bytes| LaunchShape { shared_bytes, ..shape(1, 32) };
    assert_runs(&text, with_bytes(8), &[1]);
    assert_fault(&text, with_bytes(4), &[1], "st.shared", "outside");
}

#[test]
fn what_nobody_wrote_is_not_read() {
    let mut device = Device::new();
    let address = device.reserve(8);
    device.memory.write(address, &[1; 4]).unwrap();
    let text = |offset| kernel("", &format!("ld.global.b32 %r1, [%d0+{offset}];"));
    let argument = [crate::device::Argument::Pointer(address)];
    device.run(&text(0), "k", shape(1, 32), &argument).unwrap();
    let fault = device.run(&text(4), "k", shape(1, 32), &argument).unwrap_err();
    assert!(fault.what.contains("which nobody wrote"), "{fault}");

    let text = |bytes| {
        with_shared(&format!("st.shared.b{bytes} [%r1], {{}};\nbar.sync 0;\nld.shared.b32 %r3, [%r1];"))
    };
    assert_runs(&text(32).replace("{}", "%r0"), shape(1, 32), &[1]);
    assert_fault(&text(16).replace("{}", "0"), shape(1, 32), &[1], "ld.shared", "which nobody wrote");
    let text = with_shared("setp.ne.u32 %p1, %r0, 3;\n@%p1 mov.b32 %r5, 1;\nadd.s32 %r6, %r5, 1;");
    assert_fault(&text, shape(1, 32), &[1], "add.s32 %r6", "a register is read");
    assert_runs(&text, shape(1, 3), &[1]);
}

#[test]
fn a_register_that_was_never_written_may_be_moved_but_not_used() {
    assert_runs(&kernel("", "mov.b32 %r5, %r6;"), shape(1, 32), &[1]);
    assert_fault(
        &kernel("", "mov.b32 %r5, %r6;\nadd.s32 %r7, %r5, 1;"),
        shape(1, 32),
        &[1],
        "add",
        "a register is read",
    );
    let packed = |used: &str| {
        kernel(
            "",
            &format!("mov.b32 %r1, 5;\nmov.b64 %d1, {{%r1, %r6}};\nmov.b64 {{%r2, %r3}}, %d1;\n{used}"),
        )
    };
    assert_runs(&packed(""), shape(1, 32), &[1]);
    assert_fault(&packed("add.s64 %d2, %d1, 1;"), shape(1, 32), &[1], "add.s64", "a register is read");
    assert_fault(&packed("add.s32 %r4, %r3, 1;"), shape(1, 32), &[1], "add.s32", "a register is read");
}

#[test]
fn all_threads_of_a_block_meet_at_one_barrier() {
    let some = |threads| {
        kernel("", &format!("setp.lt.u32 %p0, %r0, {threads};\n@!%p0 bra SKIP;\nbar.sync 0;\nSKIP:"))
    };
    assert_runs(&some(64), shape(1, 64), &[0]);
    assert_fault(&some(40), shape(1, 64), &[0], "bar.sync", "divergent barrier: 8 of the 32 live lanes");
    // Whole warps that stay away have exited, and are not waited for.
    assert_runs(&some(32), shape(1, 64), &[0]);
    let guarded = kernel("", "setp.lt.u32 %p0, %r0, 5;\n@%p0 bar.sync 0;");
    assert_fault(&guarded, shape(1, 64), &[0], "bar.sync", "divergent barrier: 5 of the 32");
    let different = kernel(
        "",
        "setp.lt.u32 %p0, %r0, 32;\n@%p0 bra OTHER;\nbar.sync 0;\nbra END;\nOTHER: bar.sync 0;\nEND:",
    );
    assert_fault(
        &different,
        shape(1, 64),
        &[0],
        "bar.sync",
        "divergent barrier: other threads of the block wait",
    );
}

#[test]
fn a_barrier_that_nobody_completes_is_a_deadlock() {
    let text = |threads| kernel("", &format!("bar.sync 1, {threads};"));
    assert_runs(&text(64), shape(1, 64), &[0]);
    assert_fault(&text(96), shape(1, 64), &[0], "bar.sync", "deadlock: ");
    // Producers arrive, consumers wait.
    let text = |number| {
        kernel(
            "",
            &format!(
                "setp.lt.u32 %p0, %r0, 32;\n@%p0 bra WAIT;\nbar.arrive 1, 64;\nbra END;\nWAIT: bar.sync {number}, 64;\nEND:"
            ),
        )
    };
    assert_runs(&text(1), shape(1, 64), &[0]);
    assert_fault(&text(2), shape(1, 64), &[0], "bar.sync", "deadlock: ");
}

#[test]
fn a_thread_that_polls_for_ever_is_found() {
    let text = |at| {
        kernel(
            "",
            &format!(
                "@%p0 st.volatile.global.b32 [%d0], 1;\nASK: ld.volatile.global.b32 %r1, [%d0+{at}];\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 bra ASK;"
            ),
        )
    };
    let text = |at| text(at).replace("@%p0", "setp.eq.u32 %p0, %r0, 0;\n@%p0");
    assert_runs(&text(0), shape(1, 32), &[0; 2]);
    let fault = run_text(&text(4), shape(1, 32), &[0; 2], 0).unwrap_err();
    assert!(fault.what.contains("none makes progress"), "{fault}");
}

#[test]
fn named_lanes_arrive_together() {
    let divergent = |mask: &str| {
        kernel(
            "",
            &format!(
                "setp.lt.u32 %p0, %r0, 16;\n@!%p0 bra SKIP;\nshfl.sync.bfly.b32 %r1, %r0, 1, 31, {mask};\nSKIP:"
            ),
        )
    };
    assert_runs(&divergent("0xffff"), shape(1, 32), &[0]);
    assert_fault(&divergent("-1"), shape(1, 32), &[0], "shfl", "do not arrive converged");
    assert_fault(&divergent("0xff"), shape(1, 32), &[0], "shfl", "does not name");
    let alone = kernel("", "shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;");
    assert_runs(&alone, shape(1, 32), &[0]);
    assert_fault(&alone, shape(1, 16), &[0], "shfl", "do not exist or have exited");
    let divergent = kernel("", "setp.lt.u32 %p0, %r0, 16;\n@!%p0 bra SKIP;\nbar.warp.sync -1;\nSKIP:");
    assert_fault(&divergent, shape(1, 32), &[0], "bar.warp.sync", "do not arrive converged");
    let mma = |lanes| {
        kernel(
            "",
            &format!(
                "mov.b32 %r1, 0;\nsetp.lt.u32 %p0, %r0, {lanes};\n@%p0 mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {{%f1, %f2, %f3, %f4}}, {{%r1, %r1}}, {{%r1}}, {{%r1, %r1, %r1, %r1}};"
            ),
        )
    };
    assert_runs(&mma(32), shape(1, 32), &[0]);
    assert_fault(&mma(31), shape(1, 32), &[0], "mma", "by 31 of 32 lanes");
}

#[test]
fn a_shuffle_reads_lanes_that_take_part() {
    let text = |lane| {
        kernel(
            "",
            &format!(
                "setp.lt.u32 %p0, %r0, 16;\n@!%p0 bra SKIP;\nshfl.sync.idx.b32 %r1, %r0, {lane}, 31, 0xffff;\nSKIP:"
            ),
        )
    };
    assert_runs(&text(15), shape(1, 32), &[0]);
    assert_fault(&text(16), shape(1, 32), &[0], "shfl", "reads lane 16, which takes no part");
}

#[test]
fn a_trap_is_a_fault() {
    let text = |bound| kernel("", &format!("setp.ge.u32 %p0, %r0, {bound};\n@%p0 trap;"));
    assert_runs(&text(32), shape(1, 32), &[0]);
    assert_fault(&text(31), shape(1, 32), &[0], "trap", "trapped");
}

#[test]
fn a_uniform_branch_does_not_part_lanes() {
    let text = |bound| {
        kernel("", &format!("setp.ge.u32 %p0, %r0, {bound};\n@%p0 bra.uni END;\nmov.b32 %r1, 0;\nEND:"))
    };
    assert_runs(&text(32), shape(1, 64), &[0]);
    assert_fault(&text(8), shape(1, 64), &[0], "bra.uni", "parts the lanes");
}

#[test]
fn launches_fit_the_kernel() {
    let mut device = Device::new();
    let text = kernel("", "").replace(".param .u64 p)\n", ".param .u64 p)\n.maxntid 64\n");
    let argument = [crate::device::Argument::Pointer(0)];
    device.run(&text, "k", shape(1, 64), &argument).unwrap();
    let mut refused = |shape, arguments: &[crate::device::Argument], expected: &str| {
        let fault = device.run(&text, "k", shape, arguments).unwrap_err();
        assert!(fault.what.contains(expected), "{fault}");
    };
    refused(shape(1, 96), &argument, ".maxntid");
    refused(shape(0, 64), &argument, "a grid of 0 blocks");
    refused(shape(1, 64), &[], "0 bytes of parameters where 8 are due");
    refused(LaunchShape { shared_bytes: 300_000, ..shape(1, 64) }, &argument, "bytes of shared memory");
}
