//! Exchanges between lanes, atomic operations, barriers that reduce, and the memories of a thread.

use crate::device::{Device, assert_fault, kernel, run_body, run_text, shape, with_shared};

/// `body` computes `%r9` from `%r0`; what every lane of one warp got.
fn lanes(body: &str) -> Vec<u32> {
    let body =
        format!("mul.wide.u32 %d1, %r0, 4;\nadd.s64 %d1, %d1, %d0;\n{body}\nst.global.b32 [%d1], %r9;");
    run_body(&body, 32, &[0; 32]).unwrap_or_else(|fault| panic!("{fault}"))
}

fn expect(body: &str, of_lane: impl Fn(u32) -> u32) {
    assert_eq!(lanes(body), (0..32).map(of_lane).collect::<Vec<u32>>(), "{body}");
}

#[test]
fn shuffles_read_other_lanes() {
    let shuffle = |mode: &str, offset: u32, clamp: u32| {
        format!("add.s32 %r1, %r0, 100;\nshfl.sync.{mode}.b32 %r9, %r1, {offset}, {clamp}, -1;")
    };
    for offset in [0, 1, 5, 16, 31] {
        expect(&shuffle("up", offset, 0), |lane| 100 + if lane >= offset { lane - offset } else { lane });
        expect(&shuffle("down", offset, 31), |lane| {
            100 + if lane + offset < 32 { lane + offset } else { lane }
        });
        expect(&shuffle("bfly", offset, 31), |lane| 100 + (lane ^ offset));
        expect(&shuffle("idx", offset, 31), |_| 100 + offset);
        // Segments of eight lanes: 0x18 in bits 8 to 12.
        let within = |lane: u32, to: u32| if lane / 8 == to / 8 && to < 32 { to } else { lane };
        expect(&shuffle("up", offset, 0x1800), |lane| {
            100 + if lane % 8 >= offset { lane - offset } else { lane }
        });
        expect(&shuffle("down", offset, 0x181f), |lane| 100 + within(lane, lane + offset));
        expect(&shuffle("bfly", offset, 0x181f), |lane| {
            100 + if (lane ^ offset) <= (lane | 7) { lane ^ offset } else { lane }
        });
        expect(&shuffle("idx", offset, 0x181f), |lane| 100 + (lane / 8 * 8 + offset % 8));
    }
    let valid = "shfl.sync.down.b32 %r9|%p1, %r0, 4, 31, -1;\nselp.b32 %r9, 1, 0, %p1;";
    expect(valid, |lane| u32::from(lane < 28));
}

#[test]
fn votes_and_matches() {
    let even = "and.b32 %r1, %r0, 1;\nsetp.eq.u32 %p1, %r1, 0;\n";
    expect(&format!("{even}vote.sync.ballot.b32 %r9, %p1, -1;"), |_| 0x5555_5555);
    expect(&format!("{even}vote.sync.ballot.b32 %r9, !%p1, -1;"), |_| 0xaaaa_aaaa);
    for (mode, found) in [("all", 0), ("any", 1), ("uni", 0)] {
        expect(&format!("{even}vote.sync.{mode}.pred %p2, %p1, -1;\nselp.b32 %r9, 1, 0, %p2;"), |_| found);
    }
    let always = "setp.ge.u32 %p1, %r0, 0;\n";
    for mode in ["all", "any", "uni"] {
        expect(&format!("{always}vote.sync.{mode}.pred %p2, %p1, -1;\nselp.b32 %r9, 1, 0, %p2;"), |_| 1);
    }
    expect("shr.u32 %r1, %r0, 3;\nmatch.any.sync.b32 %r9, %r1, -1;", |lane| 0xff << (lane / 8 * 8));
    expect("mov.b32 %r1, 5;\nmatch.all.sync.b32 %r9|%p1, %r1, -1;", |_| u32::MAX);
    expect("match.all.sync.b32 %r9|%p1, %r0, -1;", |_| 0);
    expect("activemask.b32 %r9;", |_| u32::MAX);
    let part = "mov.b32 %r9, 0;\nsetp.lt.u32 %p1, %r0, 8;\n@!%p1 bra SKIP;\nactivemask.b32 %r9;\nSKIP:";
    expect(part, |lane| if lane < 8 { 0xff } else { 0 });
    for (operation, found) in
        [("add.u32", 496), ("min.s32", 0), ("max.u32", 31), ("xor.b32", 0), ("or.b32", 31), ("and.b32", 0)]
    {
        expect(&format!("redux.sync.{operation} %r9, %r0, -1;"), |_| found);
    }
    expect("mov.u32 %r9, %lanemask_lt;", |lane| (1 << lane) - 1);
}

#[test]
fn lanes_part_and_meet() {
    // Loops of different lengths, then together again.
    let body = "mov.b32 %r9, 0;\nmov.b32 %r1, 0;\nAGAIN:\nadd.s32 %r9, %r9, %r0;\nadd.s32 %r1, %r1, 1;\nsetp.le.u32 %p1, %r1, %r0;\n\
                @%p1 bra AGAIN;\nshfl.sync.bfly.b32 %r9, %r9, 1, 31, -1;";
    expect(body, |lane| (lane ^ 1) * ((lane ^ 1) + 1));
    let nested = "setp.lt.u32 %p1, %r0, 20;\nsetp.lt.u32 %p2, %r0, 10;\n@%p1 bra LOW;\nmov.b32 %r9, 3;\nbra END;\n\
                  LOW:\n@%p2 bra LOWER;\nmov.b32 %r9, 2;\nbra MEET;\nLOWER:\nmov.b32 %r9, 1;\nMEET:\nshfl.sync.idx.b32 %r8, %r9, 0, 31, 0xfffff;\nadd.s32 %r9, %r9, %r8;\nEND:";
    expect(nested, |lane| if lane < 10 { 2 } else { 3 });
    let table = "and.b32 %r1, %r0, 3;\nTABLE: .branchtargets A, B, C, D;\nbrx.idx %r1, TABLE;\n\
                 A: mov.b32 %r9, 10;\nbra.uni END;\nB: mov.b32 %r9, 20;\nbra.uni END;\nC: mov.b32 %r9, 30;\nbra.uni END;\nD: mov.b32 %r9, 40;\nEND:\nbar.warp.sync -1;";
    expect(table, |lane| 10 * (lane % 4 + 1));
    // Lanes that exit early are not waited for.
    let body = "setp.ge.u32 %p1, %r0, 16;\nmov.b32 %r9, 0;\n@%p1 ret;\nbar.sync 0;\nshfl.sync.bfly.b32 %r9, %r0, 1, 31, 0xffff;";
    expect(body, |lane| if lane < 16 { lane ^ 1 } else { 0 });
}

/// Every thread of two blocks of 64 applies `operation` with its number in the grid to one word.
fn atomically(space: &str, operation: &str, start: u32) -> u32 {
    let body = format!(
        "mov.u32 %r1, %ctaid.x;\nmad.lo.s32 %r1, %r1, 64, %r0;\nadd.s32 %r2, %r1, 1;\n{}",
        if space == "global" {
            format!("red.global.{operation} [%d0], %r2;")
        } else {
            format!(
                "setp.eq.u32 %p1, %r0, 0;\n@%p1 st.shared.b32 [s], {start};\nbar.sync 0;\natom.shared.{operation} %r3, [s], %r2;\n\
                 bar.sync 0;\nld.shared.b32 %r4, [s];\n@%p1 st.global.b32 [%d0], %r4;"
            )
        }
    );
    let blocks = if space == "global" { 2 } else { 1 };
    for seed in 0..4 {
        let text = kernel(".shared .align 4 .b8 s[4];", &body);
        let found =
            run_text(&text, shape(blocks, 64), &[start], seed).unwrap_or_else(|fault| panic!("{fault}"));
        if seed == 3 {
            return found[0];
        }
    }
    0
}

#[test]
fn atomic_operations_do_not_race() {
    assert_eq!(atomically("global", "add.u32", 5), 5 + 128 * 129 / 2);
    assert_eq!(atomically("shared", "add.u32", 5), 5 + 64 * 65 / 2);
    assert_eq!(atomically("global", "max.u32", 5), 128);
    assert_eq!(atomically("global", "min.s32", 5), 1);
    assert_eq!(atomically("shared", "or.b32", 0), 127);
    assert_eq!(atomically("global", "xor.b32", 0), 128);
    assert_eq!(run_body("red.global.inc.u32 [%d0], 20;", 64, &[0]).unwrap(), [64 % 21]);
    assert_eq!(run_body("red.global.dec.u32 [%d0], 20;", 64, &[0]).unwrap(), [21 * 4 - 64]);
    let body = "mov.b32 %f1, 0f3F000000;\nred.global.add.f32 [%d0], %f1;";
    assert_eq!(run_body(body, 96, &[0]).unwrap(), [48f32.to_bits()]);
    let body = "mov.b32 %r1, 0x3F803F80;\nred.global.add.noftz.bf16x2 [%d0], %r1;";
    assert_eq!(run_body(body, 8, &[0]).unwrap(), [0x4100_4100]);
    // A lock by compare and swap: one thread gets it.
    let body = "atom.acquire.gpu.global.cas.b32 %r1, [%d0], 0, 1;\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 st.global.b32 [%d0+4], %r0;\n@%p1 red.relaxed.gpu.global.add.u32 [%d0+8], 1;";
    assert_eq!(run_body(body, 64, &[0; 3]).unwrap()[2], 1);
    let text = kernel("", "red.global.add.u32 [%d0], 1;\nld.global.b32 %r1, [%d0];");
    assert_fault(&text, shape(1, 32), &[0], "", "race");
}

#[test]
fn barriers_reduce() {
    let body = |reduction: &str| {
        with_shared(&format!("setp.lt.u32 %p1, %r0, 40;\n{reduction}\nst.global.b32 [%d1], %r9;"))
    };
    let run = |reduction: &str| run_text(&body(reduction), shape(1, 96), &[0; 96], 1).unwrap();
    assert_eq!(run("bar.red.popc.u32 %r9, 0, %p1;"), [40; 96]);
    assert_eq!(run("barrier.cta.red.popc.aligned.u32 %r9, 1, 96, !%p1;"), [56; 96]);
    let selected = |name: &str| run(&format!("bar.red.{name}.pred %p2, 0, %p1;\nselp.b32 %r9, 1, 0, %p2;"));
    assert_eq!(selected("and"), [0; 96]);
    assert_eq!(selected("or"), [1; 96]);
}

#[test]
fn addresses_are_resolved_by_their_window() {
    let body = ".local .align 8 .b8 depot[16];\nmov.b64 %d2, depot;\ncvta.local.u64 %d3, %d2;\nst.b32 [%d3+4], %r0;\nld.local.b32 %r3, [depot+4];\n\
                cvt.u64.u32 %d4, %r1;\ncvta.shared.u64 %d4, %d4;\nst.b32 [%d4], %r3;\nld.shared.b32 %r4, [%r1];\n\
                cvta.to.shared.u64 %d5, %d4;\nld.shared.b32 %r5, [%d5];\nadd.s32 %r4, %r4, %r5;\n\
                cvta.to.global.u64 %d6, %d1;\nst.b32 [%d1], %r4;\nld.global.b32 %r6, [%d6];";
    let found = run_text(&with_shared(body), shape(1, 32), &[0; 32], 0).unwrap();
    assert_eq!(found, (0..32).map(|lane| 2 * lane).collect::<Vec<u32>>());
    let text = kernel("", ".local .align 8 .b8 depot[16];\nld.local.b32 %r1, [depot+4];");
    assert_fault(&text, shape(1, 32), &[0], "ld.local", "local memory, which nobody wrote");
    let text = kernel("", ".local .align 8 .b8 depot[16];\nst.local.b32 [depot+16], 1;");
    assert_fault(&text, shape(1, 32), &[0], "st.local", "outside the local memory");
}

#[test]
fn constants_come_with_the_module() {
    let table = ".const .align 4 .b8 table[12] = {1, 0, 0, 0, 255, 255, 255, 255};\n\
                 .global .align 4 .b32 other[2] = {7, 0x10};";
    let body = "mov.b64 %d2, table;\nadd.s64 %d2, %d2, 4;\nld.const.b32 %r1, [%d2];\nld.const.b32 %r2, [table];\n\
                ld.const.b32 %r3, [table+8];\nld.global.b32 %r4, [other+4];\n\
                st.global.v4.b32 [%d0], {%r1, %r2, %r3, %r4};";
    let found =
        run_text(&kernel(table, body), shape(1, 1), &[9; 4], 0).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(found, [u32::MAX, 1, 0, 16]);
    assert_fault(
        &kernel(table, "ld.const.b32 %r1, [table+20];"),
        shape(1, 1),
        &[0],
        "ld.const",
        "lies in no allocation",
    );
    assert_fault(
        &kernel(table, "st.global.b32 [other], 1;"),
        shape(1, 1),
        &[0],
        "st.global",
        "of a constant",
    );
}

#[test]
fn grids_wait_for_blocks_that_fit() {
    // A barrier of the whole grid: every block adds one, then waits for all.
    let body = "mov.u32 %r1, %nctaid.x;\nbar.sync 0;\nsetp.ne.u32 %p1, %r0, 0;\n@%p1 bra MEET;\nmembar.gl;\natom.global.add.u32 %r2, [%d0], 1;\n\
                ASK: ld.acquire.gpu.global.b32 %r3, [%d0];\nsetp.lt.u32 %p2, %r3, %r1;\n@%p2 bra ASK;\nMEET: bar.sync 0;";
    for (blocks, threads) in [(40, 64), (216, 1024)] {
        let found = run_text(&kernel("", body), shape(blocks, threads), &[0], 2)
            .unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(found, [blocks]);
    }
    let fault = run_text(&kernel("", body), shape(217, 1024), &[0], 2).unwrap_err();
    assert!(fault.what.contains("no more than 216 fit on the device"), "{fault}");
}

#[test]
fn a_grid_barrier_orders_what_blocks_wrote() {
    let body = |fence: &str| {
        format!(
            "mov.u32 %r1, %nctaid.x;\nmov.u32 %r8, %ctaid.x;\nmul.wide.u32 %d1, %r8, 4;\nadd.s64 %d1, %d1, %d0;\n\
             setp.eq.u32 %p3, %r0, 5;\n@%p3 st.global.b32 [%d1+4], %r8;\nbar.sync 0;\nsetp.ne.u32 %p1, %r0, 0;\n@%p1 bra MEET;\n\
             {fence}\natom.global.add.u32 %r2, [%d0], 1;\n\
             ASK: ld.acquire.gpu.global.b32 %r3, [%d0];\nsetp.lt.u32 %p2, %r3, %r1;\n@%p2 bra ASK;\nMEET: bar.sync 0;\n\
             add.s32 %r4, %r8, 1;\nrem.u32 %r4, %r4, %r1;\nmul.wide.u32 %d2, %r4, 4;\nadd.s64 %d2, %d2, %d0;\nsetp.eq.u32 %p4, %r0, 40;\n@%p4 ld.global.b32 %r5, [%d2+4];"
        )
    };
    crate::device::assert_runs(&kernel("", &body("membar.gl;")), shape(12, 64), &[0; 13]);
    let fault = run_text(&kernel("", &body("")), shape(12, 64), &[0; 13], 1).unwrap_err();
    assert!(fault.what.contains("race"), "{fault}");
}

#[test]
fn parameters_lie_where_they_are_declared() {
    let text = ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 p, .param .u32 a, .param .align 8 .b8 b[12], .param .u16 c)\n{\n\
                .reg .b64 %d<4>;\n.reg .b32 %r<8>;\n.reg .b16 %h<4>;\nld.param.b64 %d0, [p];\nld.param.u32 %r1, [a];\nld.param.v2.b32 {%r2, %r3}, [b];\nld.param.b32 %r4, [b+8];\nld.param.u16 %h1, [c];\n\
                st.global.v4.b32 [%d0], {%r1, %r2, %r3, %r4};\nst.global.b16 [%d0+16], %h1;\nret;\n}\n";
    let module = qwen2c_emulator::Module::parse(text).unwrap();
    assert_eq!((module.architecture(), module.version()), (90, (8, 0)));
    let entry = module.entry("k").unwrap();
    let offsets: Vec<(u32, u32)> =
        entry.parameters().iter().map(|p| (p.offset_bytes, p.size_bytes)).collect();
    assert_eq!(offsets, [(0, 8), (8, 4), (16, 12), (28, 2)]);
    let mut device = Device::new();
    let address = device.upload_words(&[0; 5]);
    let mut bytes = address.to_le_bytes().to_vec();
    for word in [1u32, 0, 2, 3, 4] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(5u16.to_le_bytes());
    let shape = shape(1, 1);
    qwen2c_emulator::launch(entry, &shape, &bytes, &mut device.memory, qwen2c_emulator::Schedule::default())
        .unwrap();
    assert_eq!(device.words(address, 5), [1, 2, 3, 4, 5]);
}
