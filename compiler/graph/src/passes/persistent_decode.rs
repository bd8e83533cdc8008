//! Lets a device run a token in one launch.
//!
//! # What it does
//!
//! Marks the graph. Its operations stay as they are; the target compiles the bodies of their kernels into
//! one more kernel, whose blocks stay on the device for the whole token and wait for one another between
//! operations.
//!
//! # Why
//!
//! A token of a small model is hundreds of launches of a few microseconds each. A barrier between blocks
//! that are there already needs no command processor, and the next weights can be on their way before it.
//!
//! # Before
//!
//! ```text
//! graph decode {
//! ```
//!
//! # After
//!
//! ```text
//! graph decode persistent {
//! ```
//!
//! # When it does not apply
//!
//! To lists of several rows, whose kernels have work enough to hide a launch.

use crate::Graph;
use crate::passes::PassContext;

/// Marks a graph of one row.
pub(super) fn run(graph: &mut Graph, context: &PassContext<'_>) -> u64 {
    graph.is_persistent = context.max_rows == 1;
    u64::from(graph.is_persistent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::tests::{ATTENTION, rewrite};

    #[test]
    fn a_graph_of_one_row_is_marked_and_nothing_else() {
        let (rewrites, after) = rewrite(run, ATTENTION, 1);
        assert_eq!(rewrites, 1);
        let (header, rest) = ATTENTION.split_once(" {").expect("a graph has a header");
        assert_eq!(after, format!("{header} persistent {{{rest}"));
    }

    #[test]
    fn a_graph_of_several_rows_stays() {
        assert_eq!(rewrite(run, ATTENTION, 8), (0, ATTENTION.to_owned()));
    }
}
