//! `group_rows`: lists the (row, choice) entries of each expert, by counting. One tile.
//!
//! ```text
//! offsets[e + 1] += 1 for each entry; prefix sums; cursors; entries in ascending order
//! table = active count | active experts [E] | offsets [E + 1] | entries [rows · k]
//! ```

use qwen2c_request::Element;

use super::Kernel;
use crate::builder::{Compare, Scalar, Val};

/// One tile.
pub(super) fn tiles<'k>(kernel: &Kernel<'k, '_>) -> Val<'k> {
    kernel.k.int(1)
}

/// The whole table.
pub(super) fn body(kernel: &Kernel<'_, '_>, experts: u64) {
    let k = kernel.k;
    let table = kernel.group_table(kernel.output(0), experts);
    let cursors = k.stack_array(Element::I32, experts);
    let (zero, one) = (k.int_of(Scalar::I32, 0), k.int_of(Scalar::I32, 1));
    let entries = kernel.rows * k.int(kernel.input_type(0).row_elements());
    let source = kernel.input(0);
    let all = k.int(experts);

    k.repeat(k.int(0), all, 1, |expert| cursors.store(expert, zero));
    k.repeat(k.int(0), entries, 1, |entry| {
        let expert = source.load_index(entry);
        cursors.store(expert, cursors.load(expert, 1) + one);
    });
    // Counts become first entries; the list of active experts grows beside them.
    let totals = k.for_each(k.int(0), all, 1, &[zero, k.int(0)], |expert, carried| {
        let count = cursors.load(expert, 1);
        table.offsets.store(expert, carried[0]);
        cursors.store(expert, carried[0]);
        let is_active = count.compare(Compare::Greater, zero);
        // Written even where the expert is idle: the next active one overwrites it.
        table.active.store(carried[1].minimum(k.int(experts - 1)), expert.truncate(Scalar::I32));
        vec![carried[0] + count, is_active.select(carried[1] + k.int(1), carried[1])]
    });
    table.offsets.store(all, totals[0]);
    table.active_count.store(k.int(0), totals[1].truncate(Scalar::I32));
    k.repeat(k.int(0), entries, 1, |entry| {
        let expert = source.load_index(entry);
        let place = cursors.load(expert, 1);
        table.entries.store(place.extend(Scalar::I64), entry.truncate(Scalar::I32));
        cursors.store(expert, place + one);
    });
}
