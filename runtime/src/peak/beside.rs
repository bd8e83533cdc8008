//! The read rate beside a program's own steps: its workers read its weights the best way, between two tokens.
//!
//! On a machine that others use as well, the rate of a second ago says little about a token: it was seen to
//! double and to halve within a minute. So each token stands between two readings.

use qwen2c_format::{Operand, Region, RowAxis, Step, StepCost, StepList, StepLists};

use super::Peak;
use super::read::{self, READS};
use crate::execute::Job;
use crate::kernel::KernelEntry;

/// A reading takes at most this much of the weights, far more than caches hold.
const MOST_BYTES: u64 = 256 << 20;

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
        let tiles = weights_bytes.min(MOST_BYTES) / read::TILE_BYTES as u64;
        let way = READS.iter().find(|read| read.name == peak.best_read)?;
        if tiles == 0 {
            return None;
        }
        let bytes = tiles * read::TILE_BYTES as u64;
        let results_at = arena_bytes.next_multiple_of(64);
        let results = Operand { region: Region::Arena, offset: results_at, bytes: 64 * tiles };
        let step = Step {
            kernel: kernels.len() as u32,
            layer: None,
            row_axis: RowAxis::Rows,
            operands: vec![Operand { region: Region::Weights, offset: 0, bytes }, results],
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
        let arena_bytes = results_at + results.bytes;
        Some(Self { lists, kernels, arena_bytes, reading: Reading { job, bytes } })
    }
}
