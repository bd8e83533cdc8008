//! The loop over steps.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use qwen2c_format::{Diagnostic, StepLists};

use crate::kernel::{BoundStep, KernelEntry};
use crate::memory::Mapping;
use crate::processor::Placement;
use crate::workers::{Crew, Rendezvous};

/// A run of consecutive steps of one list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    /// Index of the list.
    pub(crate) list: usize,
    /// Steps of the list: body first, then head.
    pub(crate) steps: Range<usize>,
    /// Rows of the step, 1 to the list's `max_rows`.
    pub(crate) rows: u32,
    /// Rows that go through the head, 1 to the list's `max_logit_rows`.
    pub(crate) logit_rows: u32,
}

/// Is told when a step is done; `()` is not interested, and costs nothing.
pub(crate) trait Observer {
    /// Called by worker 0 behind the barrier that ends a step.
    fn after_step(&mut self, list: usize, step: usize);
}

impl Observer for () {
    fn after_step(&mut self, _list: usize, _step: usize) {}
}

/// The steps of one list with their pointers.
struct BoundList {
    steps: Vec<BoundStep>,
    body_steps: usize,
    max_rows: u32,
    max_logit_rows: u32,
}

/// What all workers see: the steps, the memory they point into, and the job at hand.
struct Machinery {
    lists: Vec<BoundList>,
    list: AtomicU32,
    first_step: AtomicU32,
    end_step: AtomicU32,
    rows: AtomicU32,
    logit_rows: AtomicU32,
    arena: Mapping,
    /// Held because the steps point into it.
    _weights: Arc<Mapping>,
}

impl Machinery {
    /// Walks the job's steps, as one worker of several.
    fn walk(&self, rendezvous: &Rendezvous, observer: &mut impl Observer) {
        let list = self.list.load(Ordering::Relaxed) as usize;
        let rows = self.rows.load(Ordering::Relaxed);
        let logit_rows = self.logit_rows.load(Ordering::Relaxed);
        let first = self.first_step.load(Ordering::Relaxed) as usize;
        let end = self.end_step.load(Ordering::Relaxed) as usize;
        for (step, index) in self.lists[list].steps[first..end].iter().zip(first..) {
            let rows = step.rows(rows, logit_rows);
            let tiles = step.tiles(rows);
            while let Some(tile) = rendezvous.claim(tiles) {
                step.compute(rows, tile);
            }
            rendezvous.barrier();
            observer.after_step(list, index);
        }
    }
}

/// Memory and workers of a program, ready to run steps.
pub(crate) struct Executor {
    crew: Crew,
    machinery: Arc<Machinery>,
}

impl Executor {
    /// Reserves the arena, looks up kernels and pointers, and starts the workers.
    ///
    /// # Errors
    ///
    /// Where the system refuses memory or threads, or a step names a kernel that is not linked.
    pub(crate) fn start(
        lists: &StepLists,
        kernels: &[KernelEntry],
        weights: Arc<Mapping>,
        arena_bytes: u64,
        placement: &Placement,
    ) -> Result<Self, Diagnostic> {
        let arena = Mapping::zeroed(arena_bytes).map_err(|error| {
            Diagnostic::new("the system does not give the memory that the program needs")
                .needed(format!("{arena_bytes} bytes for activations and cache"))
                .cause(error.to_string())
                .help("build the program with a smaller `--context`, or raise the limit on address space")
        })?;
        let bind = |step| BoundStep::bind(step, kernels, &arena, &weights);
        let lists = lists.lists.iter().map(|list| {
            Some(BoundList {
                steps: list.body.iter().chain(&list.head).map(bind).collect::<Option<_>>()?,
                body_steps: list.body.len(),
                max_rows: list.max_rows,
                max_logit_rows: list.max_logit_rows,
            })
        });
        let lists = lists.collect::<Option<_>>().ok_or_else(|| {
            Diagnostic::new("the program's steps and its kernels do not belong together")
                .found(format!("{} linked kernels", kernels.len()))
                .help("report this as a bug of `qwen2c`")
        })?;
        let machinery = Arc::new(Machinery {
            lists,
            list: AtomicU32::new(0),
            first_step: AtomicU32::new(0),
            end_step: AtomicU32::new(0),
            rows: AtomicU32::new(0),
            logit_rows: AtomicU32::new(0),
            arena,
            _weights: weights,
        });
        let shared = Arc::clone(&machinery);
        let crew =
            Crew::start(placement, move |rendezvous| shared.walk(rendezvous, &mut ())).map_err(|error| {
                Diagnostic::new("the system does not give the threads that were asked for")
                    .needed(format!("{} threads", placement.threads))
                    .cause(error.to_string())
                    .help("name fewer with `--threads`")
            })?;
        Ok(Self { crew, machinery })
    }

    /// The steps of a list's body and head: `0..body` and `body..all`.
    pub(crate) fn parts(&self, list: usize) -> (Range<usize>, Range<usize>) {
        let bound = &self.machinery.lists[list];
        (0..bound.body_steps, bound.body_steps..bound.steps.len())
    }

    /// Workers, the calling thread included.
    pub(crate) fn threads(&self) -> usize {
        self.crew.workers()
    }

    /// Runs steps with all workers and returns when they are done.
    pub(crate) fn run(&mut self, job: &Job, observer: &mut impl Observer) {
        let list = &self.machinery.lists[job.list];
        let in_range = (1..=list.max_rows).contains(&job.rows)
            && (1..=list.max_logit_rows).contains(&job.logit_rows)
            && job.steps.end <= list.steps.len();
        // The kernels' memory safety hangs on this.
        assert!(in_range, "{job:?} exceeds its list");
        if job.steps.is_empty() {
            return;
        }
        let machinery = &self.machinery;
        machinery.list.store(job.list as u32, Ordering::Relaxed);
        machinery.first_step.store(job.steps.start as u32, Ordering::Relaxed);
        machinery.end_step.store(job.steps.end as u32, Ordering::Relaxed);
        machinery.rows.store(job.rows, Ordering::Relaxed);
        machinery.logit_rows.store(job.logit_rows, Ordering::Relaxed);
        self.crew.run(|rendezvous| machinery.walk(rendezvous, observer));
    }

    /// `count` values of the arena, between runs.
    pub(crate) fn floats(&self, offset: u64, count: usize) -> &[f32] {
        self.machinery.arena.floats(offset, count).expect("the plan's offsets were checked at load")
    }

    /// Writes integers into the arena, between runs.
    pub(crate) fn write_integers(&mut self, offset: u64, values: impl ExactSizeIterator<Item = u32>) {
        self.machinery.arena.write_integers(offset, values).expect("the plan's offsets were checked at load");
    }
}
