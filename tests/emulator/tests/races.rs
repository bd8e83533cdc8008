//! Races that only the order of the schedule would hide, each beside a kernel that orders its accesses.

use crate::device::{assert_fault, assert_runs, kernel, run_text, shape, with_shared};

#[test]
fn lanes_that_exchange_through_shared_memory_need_a_barrier() {
    let text = |between: &str| {
        with_shared(&format!(
            "st.shared.b32 [%r1], %r0;\n{between}\nxor.b32 %r3, %r1, 4;\nld.shared.b32 %r4, [%r3];\nst.global.b32 [%d1], %r4;"
        ))
    };
    for order in ["bar.warp.sync -1;", "bar.sync 0;", "barrier.cta.sync.aligned 0;"] {
        assert_runs(&text(order), shape(1, 32), &[0; 32]);
    }
    let result = run_text(&text("bar.warp.sync -1;"), shape(1, 32), &[0; 32], 3).unwrap();
    assert_eq!(result, (0..32).map(|lane| lane ^ 1).collect::<Vec<u32>>());
    for nothing in
        ["", "shfl.sync.bfly.b32 %r5, %r0, 1, 31, -1;", "vote.sync.ballot.b32 %r5, %p0, -1;", "membar.cta;"]
    {
        let text = text(&format!("setp.eq.u32 %p0, %r0, 0;\n{nothing}"));
        assert_fault(&text, shape(1, 32), &[0; 32], "ld.shared", "race: reading 4 bytes of shared memory");
    }
}

#[test]
fn reads_are_over_before_others_write() {
    let text = |between: &str| {
        with_shared(&format!(
            "st.shared.b32 [%r1], %r0;\nbar.sync 0;\nxor.b32 %r3, %r1, 128;\nld.shared.b32 %r4, [%r3];\n{between}\nst.shared.b32 [%r1], %r4;"
        ))
    };
    assert_runs(&text("bar.sync 0;"), shape(1, 64), &[0]);
    assert_fault(&text(""), shape(1, 64), &[0], "", "race: ");
    assert_fault(&text("bar.warp.sync -1;"), shape(1, 64), &[0], "", "race: ");
}

#[test]
fn warps_need_a_barrier_of_their_block() {
    let text = |between: &str| {
        let store = "st.shared.b32 [%r1], %r0;";
        with_shared(&format!(
            "{store}\nbar.sync 0;\n{store}\n{between}\nxor.b32 %r3, %r1, 128;\nld.shared.b32 %r4, [%r3];"
        ))
    };
    assert_runs(&text("bar.sync 0;"), shape(1, 64), &[0]);
    assert_runs(&text("bar.sync 3, 64;"), shape(1, 64), &[0]);
    assert_fault(&text("bar.warp.sync -1;"), shape(1, 64), &[0], "", "race: ");
}

#[test]
fn threads_write_different_bytes() {
    let text = |shift| {
        kernel(
            "",
            &format!(
                "shr.u32 %r1, %r0, {shift};\ncvt.u64.u32 %d1, %r1;\nadd.s64 %d1, %d1, %d0;\nst.global.b8 [%d1], 1;"
            ),
        )
    };
    assert_runs(&text(0), shape(1, 64), &[0; 16]);
    assert_fault(&text(1), shape(1, 64), &[0; 16], "st.global", "race: writing 1 bytes of global memory");
    // Neighbours of one word by different blocks are fine, the same byte is not.
    let text = |factor| {
        kernel(
            "",
            &format!(
                "mov.u32 %r1, %ctaid.x;\nmul.lo.s32 %r1, %r1, {factor};\ncvt.u64.u32 %d1, %r1;\nadd.s64 %d1, %d1, %d0;\nst.global.b16 [%d1], 1;"
            ),
        )
    };
    assert_runs(&text(2), shape(2, 1), &[0]);
    assert_fault(&text(0), shape(2, 1), &[0], "st.global", "race: ");
}

#[test]
fn blocks_do_not_write_what_others_read() {
    let text = |offset| {
        kernel(
            "",
            &format!(
                "mov.u32 %r1, %ctaid.x;\nld.global.b32 %r2, [%d0];\nmul.wide.u32 %d1, %r1, 4;\nadd.s64 %d1, %d1, %d0;\nst.global.b32 [%d1+{offset}], %r2;"
            ),
        )
    };
    assert_runs(&text(4), shape(4, 1), &[0; 8]);
    assert_fault(&text(0), shape(4, 1), &[0; 8], "", "race: ");
}

/// Block 0 passes a word to block 1.
fn hand_over(tell: &str, ask: &str) -> String {
    kernel(
        "",
        &format!(
            "mov.u32 %r1, %ctaid.x;\nsetp.eq.u32 %p0, %r1, 0;\n@%p0 bra TELL;\n\
             ASK: {ask}\nsetp.eq.u32 %p1, %r2, 0;\n@%p1 bra ASK;\nld.global.b32 %r3, [%d0];\nst.global.b32 [%d0+8], %r3;\nbra END;\n\
             TELL: st.global.b32 [%d0], 7;\n{tell}\nEND:"
        ),
    )
}

#[test]
fn blocks_synchronise_by_release_and_acquire() {
    let releases = [
        "st.release.gpu.global.b32 [%d0+4], 1;",
        "fence.acq_rel.gpu;\nst.relaxed.gpu.global.b32 [%d0+4], 1;",
        "membar.gl;\nst.volatile.global.b32 [%d0+4], 1;",
        "membar.gl;\nred.global.add.u32 [%d0+4], 1;",
        "atom.acq_rel.gpu.global.add.u32 %r5, [%d0+4], 1;",
    ];
    let acquires = [
        "ld.acquire.gpu.global.b32 %r2, [%d0+4];",
        "ld.relaxed.gpu.global.b32 %r2, [%d0+4];\nfence.acq_rel.gpu;",
        "ld.volatile.global.b32 %r2, [%d0+4];\nmembar.gl;",
        "atom.acquire.gpu.global.cas.b32 %r2, [%d0+4], 0, 0;",
    ];
    for tell in releases {
        for ask in acquires {
            let text = hand_over(tell, ask);
            assert_runs(&text, shape(2, 1), &[0; 3]);
            assert_eq!(run_text(&text, shape(2, 1), &[0; 3], 5).unwrap(), [7, 1, 7]);
        }
    }
    let (release, acquire) = (releases[0], acquires[0]);
    let weak_releases = [
        "st.relaxed.gpu.global.b32 [%d0+4], 1;",
        "st.release.cta.global.b32 [%d0+4], 1;",
        "red.global.add.u32 [%d0+4], 1;",
    ];
    for tell in weak_releases {
        assert_fault(&hand_over(tell, acquire), shape(2, 1), &[0; 3], "ld.global.b32 %r3", "race: ");
    }
    for ask in ["ld.relaxed.gpu.global.b32 %r2, [%d0+4];", "ld.acquire.cta.global.b32 %r2, [%d0+4];"] {
        assert_fault(&hand_over(release, ask), shape(2, 1), &[0; 3], "ld.global.b32 %r3", "race: ");
    }
    assert_fault(&hand_over(release, "ld.global.b32 %r2, [%d0+4];"), shape(2, 1), &[0; 3], "", "race: ");
}

#[test]
fn what_is_read_as_constant_is_not_written() {
    let text = |offset| {
        kernel(
            "",
            &format!("@%p0 st.global.b32 [%d0+{offset}], 1;\nbar.sync 0;\nld.global.nc.b32 %r1, [%d0];"),
        )
    };
    let text = |offset| text(offset).replace("@%p0", "setp.eq.u32 %p0, %r0, 0;\n@%p0");
    assert_runs(&text(4), shape(1, 32), &[1; 2]);
    assert_fault(&text(0), shape(1, 32), &[1; 2], "ld.global.nc", "promises that nobody writes");
}

#[test]
fn accesses_of_different_sizes_meet() {
    let text = |between: &str| {
        let read = "and.b32 %r3, %r0, 15;\nmul.wide.u32 %d2, %r3, 16;\nadd.s64 %d2, %d2, %d0;\n\
                    ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%d2];";
        kernel(
            "",
            &format!(
                "mul.wide.u32 %d1, %r0, 4;\nadd.s64 %d1, %d1, %d0;\n{read}\n{between}\nst.global.b32 [%d1], %r4;"
            ),
        )
    };
    assert_runs(&text("bar.sync 0;"), shape(1, 64), &[1; 64]);
    assert_fault(&text("bar.warp.sync -1;"), shape(1, 64), &[1; 64], "", "race: ");
    // The bytes beside a byte that another thread writes.
    let text = |offset: u32| {
        kernel(
            "",
            &format!(
                "setp.eq.u32 %p1, %r0, 0;\n@%p1 st.global.b8 [%d0+3], 1;\n@!%p1 ld.global.b8 %h1, [%d0+{offset}];"
            ),
        )
    };
    assert_runs(&text(2), shape(1, 32), &[0]);
    assert_fault(&text(3), shape(1, 32), &[0], "", "race: ");
}

#[test]
fn a_fence_of_one_lane_orders_what_the_barrier_told_it() {
    // Every thread writes; after a barrier of the block one thread tells another block by a fence.
    let text = |barrier: &str| {
        kernel(
            "",
            &format!(
                "mov.u32 %r1, %ctaid.x;\nmul.wide.u32 %d1, %r0, 4;\nadd.s64 %d1, %d1, %d0;\nsetp.eq.u32 %p0, %r1, 0;\n\
                 setp.eq.u32 %p2, %r0, 0;\n@%p0 bra TELL;\n\
                 @!%p2 bra MEET;\nASK: ld.acquire.gpu.global.b32 %r2, [%d0+512];\nsetp.eq.u32 %p1, %r2, 0;\n@%p1 bra ASK;\n\
                 MEET: bar.sync 0;\nld.global.b32 %r3, [%d1];\nbra END;\n\
                 TELL: st.global.b32 [%d1], 7;\n{barrier}\n@!%p2 bra END;\nmembar.gl;\nred.global.add.u32 [%d0+512], 1;\nEND:"
            ),
        )
    };
    assert_runs(&text("bar.sync 1;"), shape(2, 64), &[0; 129]);
    assert_fault(&text(""), shape(2, 64), &[0; 129], "ld.global.b32 %r3", "race: ");
}

#[test]
fn every_reader_counts_and_not_only_the_last() {
    let text = |between: &str| {
        kernel(
            "",
            &format!(
                "ld.global.b32 %r1, [%d0];\n{between}\nsetp.eq.u32 %p1, %r0, 31;\n@%p1 st.global.b32 [%d0], %r1;"
            ),
        )
    };
    assert_runs(&text("bar.warp.sync -1;"), shape(1, 32), &[0]);
    assert_fault(&text(""), shape(1, 32), &[0], "st.global", "race: writing");
}
