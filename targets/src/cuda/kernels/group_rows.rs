//! `group_rows`: lists the (row, choice) entries of each expert. One block for all rows; a thread counts and
//! then lists the entries of its experts, so that entries stand in ascending order.
//!
//! ```text
//! table = active count | active experts [E] | offsets [E + 1] | entries [rows · k]
//! offsets[e] = count of e           each thread its experts
//! prefix sums, active experts       one thread
//! entries from offsets[e] on        each thread its experts
//! ```

use super::Kernel;
use crate::builder::{Compare, Scalar, Val};

/// The whole table.
pub(super) fn body<'k>(kernel: &Kernel<'k, '_>, experts: u64) {
    let k = kernel.k;
    let table = kernel.group_table(kernel.output(0), experts);
    let zero = k.int_of(Scalar::I32, 0);
    let one = k.int_of(Scalar::I32, 1);
    let entries = kernel.rows * k.int(kernel.input_type(0).row_elements());
    let source = kernel.input(0);
    let all = k.int(experts);
    let is_of = |entry: Val<'k>, expert: Val<'k>| {
        let difference = source.load_index(entry) - expert;
        k.is_zero(difference)
    };
    kernel.for_each(all, |expert| {
        let count = k.for_each(k.int(0), entries, 1, &[zero], |entry, count| {
            vec![count[0] + is_of(entry, expert).select(one, zero)]
        });
        table.offsets.store(expert, count[0]);
    });
    k.barrier();
    k.when(k.is_zero(kernel.thread()), || {
        let totals = k.for_each(k.int(0), all, 1, &[zero, k.int(0)], |expert, carried| {
            let count = table.offsets.load(expert, 1);
            table.offsets.store(expert, carried[0]);
            let is_active = count.compare(Compare::Greater, zero);
            // Written even where the expert is idle: the next active one overwrites it.
            table.active.store(carried[1].minimum(k.int(experts - 1)), expert.truncate(Scalar::I32));
            vec![carried[0] + count, is_active.select(carried[1] + k.int(1), carried[1])]
        });
        table.offsets.store(all, totals[0]);
        table.active_count.store(k.int(0), totals[1].truncate(Scalar::I32));
    });
    k.barrier();
    kernel.for_each(all, |expert| {
        let first = table.offsets.load_index(expert);
        k.for_each(k.int(0), entries, 1, &[first], |entry, place| {
            k.values_when(is_of(entry, expert), &[place[0]], || {
                table.entries.store(place[0], entry.truncate(Scalar::I32));
                vec![place[0] + k.int(1)]
            })
        });
    });
}
