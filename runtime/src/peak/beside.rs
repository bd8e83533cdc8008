//! The read rate beside a program's own steps: its workers read its weights the best way, between two tokens.
//!
//! On a machine that others use as well, the rate of a second ago says little about a token: it was seen to
//! double and to halve within a minute. So each token stands between two readings. What the token before left
//! in the caches, keys and values too, they displace: times are of caches that are cold.

use qwen2c_format::{Operand, Region, RowAxis, Step, StepCost, StepList, StepLists};

use super::Peak;
use super::read::{self, READS};
use crate::execute::Job;
use crate::kernel::KernelEntry;

/// A reading takes at most this much of the weights: more than the caches of most machines.
const MOST_BYTES: u64 = 256 << 20;
/// Of fewer weights too many would come from caches. (Tests have programs of few bytes.)
const LEAST_BYTES: u64 = if cfg!(test) { read::TILE_BYTES as u64 } else { 64 << 20 };

/// A program's step lists and one list more, which reads weights.
pub(crate) struct ReadsBeside {
    /// All lists, that of the reading last.
    pub(crate) lists: StepLists,
    /// The program's kernels and that which reads.
    pub(crate) kernels: Vec<KernelEntry>,
    /// Length of the arena.
    pub(crate) arena_bytes: u64,
    /// The reading.
    pub(crate) reading: Reading,
}

/// What to run to read once.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    /// The step.
    pub(crate) job: Job,
    /// Bytes that it reads.
    pub(crate) bytes: u64,
}

impl ReadsBeside {
    /// Adds a list that reads the first of `weights_bytes` in the way that `peak` found best. None where there
    /// is too little to read.
    pub(crate) fn new(
        lists: &StepLists,
        kernels: &[KernelEntry],
        weights_bytes: u64,
        arena_bytes: u64,
        peak: &Peak,
    ) -> Option<Self> {
        if weights_bytes < LEAST_BYTES {
            return None;
        }
        let tiles = weights_bytes.min(MOST_BYTES) / read::TILE_BYTES as u64;
        let way = READS.iter().find(|read| read.name == peak.best_read)?;
        let bytes = tiles * read::TILE_BYTES as u64;
        let results_at = arena_bytes.checked_next_multiple_of(64)?;
        let results = Operand { region: Region::Arena, offset: results_at, bytes: 64 * tiles };
        let step = Step {
            kernel: kernels.len() as u32,
            layer: None,
            row_axis: RowAxis::Rows,
            operands: vec![Operand { region: Region::Weights, offset: 0, bytes }, results],
            joins_previous: false,
            cost: StepCost::default(),
        };
        let rows = tiles as u32;
        let list = StepList {
            name: "reading".to_owned(),
            max_rows: rows,
            max_logit_rows: 1,
            body: vec![step],
            head: Vec::new(),
        };
        let job = Job { list: lists.lists.len(), steps: 0..1, rows, logit_rows: 1 };
        let (mut lists, mut kernels) = (lists.clone(), kernels.to_vec());
        lists.lists.push(list);
        kernels.push(KernelEntry { tiles: read::tile_count, body: way.body });
        let arena_bytes = results_at.checked_add(results.bytes)?;
        Some(Self { lists, kernels, arena_bytes, reading: Reading { job, bytes } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn beside(weights_bytes: u64, arena_bytes: u64, best_read: &'static str) -> Option<ReadsBeside> {
        let peak = Peak {
            read_bytes_per_s: 1.0,
            operations_per_s: 1.0,
            bf16_operations_per_s: None,
            int8_operations_per_s: None,
            threads: 1,
            best_read,
        };
        ReadsBeside::new(&testing::lists(), &testing::KERNELS, weights_bytes, arena_bytes, &peak)
    }

    #[test]
    fn a_reading_is_one_more_list_behind_the_arena() {
        let tile = read::TILE_BYTES as u64;
        let reads = beside(3 * tile + 7, 100, READS[1].name).expect("there is enough to read");
        let list = reads.lists.lists.last().expect("it was added");
        assert_eq!(reads.reading.job.list, reads.lists.lists.len() - 1);
        assert_eq!((reads.reading.bytes, reads.reading.job.rows, list.max_rows), (3 * tile, 3, 3));
        assert_eq!(list.body[0].kernel as usize, testing::KERNELS.len());
        assert_eq!((list.body[0].operands[1].offset, reads.arena_bytes), (128, 128 + 3 * 64));
        let reads = beside(1 << 40, 0, READS[0].name).expect("there is enough to read");
        assert_eq!(reads.reading.bytes, MOST_BYTES);
    }

    #[test]
    fn what_cannot_be_read_is_left_apart() {
        assert!(beside(0, 100, READS[0].name).is_none());
        assert!(beside(LEAST_BYTES - 1, 100, READS[0].name).is_none());
        assert!(beside(LEAST_BYTES, u64::MAX - 3, READS[0].name).is_none());
        assert!(beside(LEAST_BYTES, 100, "a way that there is not").is_none());
    }
}
