//! Asynchronous copies land as late as they may, and nothing touches them before.

use crate::device::{SHARED, assert_fault, assert_runs, kernel, shape};

/// Copies 16 bytes and reads them.
fn copied(before: &str, after: &str) -> String {
    let text = format!(
        "shl.b32 %r1, %r0, 4;\nmov.b32 %r2, s;\nadd.s32 %r1, %r1, %r2;\nmul.wide.u32 %d1, %r0, 16;\nadd.s64 %d1, %d1, %d0;\n\
         {before}\ncp.async.cg.shared.global [%r1], [%d1], 16;\ncp.async.commit_group;\n{after}\nld.shared.b32 %r4, [%r1];"
    );
    kernel(SHARED, &text)
}

#[test]
fn copies_are_waited_for() {
    let words: Vec<u32> = (0..128).collect();
    assert_runs(&copied("", "cp.async.wait_group 0;"), shape(1, 32), &words);
    assert_runs(&copied("", "cp.async.wait_all;"), shape(1, 32), &words);
    let refused = ["", "cp.async.wait_group 1;", "bar.sync 0;", "bar.warp.sync -1;"];
    for after in refused {
        assert_fault(&copied("", after), shape(1, 32), &words, "ld.shared", "has not landed");
    }
    // Uncommitted copies belong to no group.
    let text = copied("", "").replace("cp.async.commit_group;", "cp.async.wait_group 0;");
    assert_fault(&text, shape(1, 32), &words, "ld.shared", "has not landed");
    let overwritten = "st.shared.b32 [%r1], 0;\ncp.async.wait_group 0;";
    assert_fault(&copied("", overwritten), shape(1, 32), &words, "st.shared", "has not landed");
}

#[test]
fn copies_of_others_need_a_barrier_after_the_wait() {
    let words: Vec<u32> = (0..128).collect();
    let read_other = "xor.b32 %r1, %r1, 16;";
    let after = |order: &str| format!("cp.async.wait_group 0;\n{order}\n{read_other}");
    assert_runs(&copied("", &after("bar.sync 0;")), shape(1, 32), &words);
    assert_runs(&copied("", &after("bar.warp.sync -1;")), shape(1, 32), &words);
    assert_fault(&copied("", &after("")), shape(1, 32), &words, "ld.shared", "");
    let early = format!("bar.sync 0;\ncp.async.wait_group 0;\n{read_other}");
    assert_fault(&copied("", &early), shape(1, 32), &words, "ld.shared", "");
}

#[test]
fn copies_do_not_overwrite_what_others_still_read() {
    let words: Vec<u32> = (0..128).collect();
    let before = |order: &str| {
        format!(
            "st.shared.v4.b32 [%r1], {{0, 0, 0, 0}};\nbar.sync 0;\nxor.b32 %r5, %r1, 16;\nld.shared.b32 %r6, [%r5];\n{order}"
        )
    };
    assert_runs(&copied(&before("bar.sync 0;"), "cp.async.wait_all;"), shape(1, 32), &words);
    assert_fault(
        &copied(&before(""), "cp.async.wait_all;"),
        shape(1, 32),
        &words,
        "cp.async.cg",
        "race: writing",
    );
}

#[test]
fn the_source_of_a_copy_does_not_change_on_the_way() {
    let words: Vec<u32> = (0..128).collect();
    let after = |offset: u32| format!("bar.sync 0;\nst.global.b32 [%d1+{offset}], 999;\ncp.async.wait_all;");
    assert_fault(&copied("", &after(4)), shape(1, 32), &words, "cp.async.wait_all", "changed while");
    let after = "cp.async.wait_all;\nst.global.b32 [%d1+4], 999;";
    assert_runs(&copied("", after), shape(1, 32), &words);
}
