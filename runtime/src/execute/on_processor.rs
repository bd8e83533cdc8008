//! The loop over steps, walked by all workers together.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use qwen2c_format::{Diagnostic, StepLists};

use super::{Job, Observer};
use crate::kernel::{BoundStep, KernelEntry};
use crate::memory::Mapping;
use crate::processor::Placement;
use crate::workers::{Crew, Rendezvous};

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
    /// Whether steps of a phase run one after another all the same, so that each can be timed.
    meets_behind_each_step: AtomicBool,
    arena: Mapping,
    /// Held because the steps point into it.
    _weights: Arc<Mapping>,
}

impl Machinery {
    /// Walks the job's steps, as one worker of several.
    fn walk(&self, rendezvous: &Rendezvous, worker: usize, observer: &mut impl Observer) {
        let list = self.list.load(Ordering::Relaxed) as usize;
        let rows = self.rows.load(Ordering::Relaxed);
        let logit_rows = self.logit_rows.load(Ordering::Relaxed);
        let first = self.first_step.load(Ordering::Relaxed) as usize;
        let end = self.end_step.load(Ordering::Relaxed) as usize;
        let meets_behind_each_step = self.meets_behind_each_step.load(Ordering::Relaxed);
        let mut done = first;
        for phase in self.lists[list].steps[first..end]
            .chunk_by(|_, step| step.joins_previous() && !meets_behind_each_step)
        {
            let tiles = phase.iter().map(|step| step.tiles(step.rows(rows, logit_rows))).sum();
            for tile in rendezvous.claim(worker, tiles) {
                compute_tile_of_phase(phase, rows, logit_rows, tile);
            }
            rendezvous.barrier();
            done += phase.len();
            observer.after_step(list, done - 1, None);
        }
    }
}

/// Computes a tile of steps that run together: the tiles of the first come first, then those of the next.
fn compute_tile_of_phase(phase: &[BoundStep], rows: u32, logit_rows: u32, mut tile: i64) {
    if let [step] = phase {
        return step.compute(step.rows(rows, logit_rows), tile);
    }
    for step in phase {
        let rows = step.rows(rows, logit_rows);
        let tiles = step.tiles(rows);
        if tile < tiles {
            return step.compute(rows, tile);
        }
        tile -= tiles;
    }
}

/// Memory and workers of a program, ready to run steps.
pub(crate) struct ProcessorExecutor {
    crew: Crew,
    machinery: Arc<Machinery>,
}

impl ProcessorExecutor {
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
            meets_behind_each_step: AtomicBool::new(false),
            arena,
            _weights: weights,
        });
        let shared = Arc::clone(&machinery);
        let crew = Crew::start(placement, move |rendezvous, worker| shared.walk(rendezvous, worker, &mut ()))
            .map_err(|error| {
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
        machinery.meets_behind_each_step.store(observer.is_interested(), Ordering::Relaxed);
        self.crew.run(|rendezvous| machinery.walk(rendezvous, 0, observer));
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use qwen2c_format::{KernelInfo, Operand, Region, RowAxis, Step, StepCost, StepList};

    use super::*;

    const CELLS: usize = 8;

    /// The steps behind which an observer was called.
    struct Seen(Vec<usize>);

    impl Observer for Seen {
        fn after_step(&mut self, _list: usize, step: usize, _seconds: Option<f64>) {
            self.0.push(step);
        }
    }

    unsafe extern "C" fn one_tile_a_cell(_operands: *const *mut u8, _rows: i64) -> i64 {
        CELLS as i64
    }

    unsafe extern "C" fn no_tiles(_operands: *const *mut u8, _rows: i64) -> i64 {
        0
    }

    /// Each cell of the second operand becomes a mixture of all cells of the first: a cell read before it
    /// was written changes everything after it.
    unsafe extern "C" fn mix(operands: *const *mut u8, _rows: i64, tile: i64) {
        // SAFETY: both operands have `CELLS` numbers, and only this tile writes to its cell.
        unsafe {
            let from = std::slice::from_raw_parts((*operands).cast::<u32>(), CELLS);
            let mixed = from.iter().fold(tile as u32, |sum, &cell| sum.wrapping_mul(31).wrapping_add(cell));
            (*operands.add(1)).cast::<u32>().add(tile as usize).write(mixed);
        }
    }

    /// A step that mixes one row of cells into another.
    fn step(kernel: u32, from: usize, to: usize, joins_previous: bool) -> Step {
        let row = |index: usize| Operand { region: Region::Arena, offset: 64 * index as u64, bytes: 32 };
        Step {
            kernel,
            layer: None,
            row_axis: RowAxis::Rows,
            operands: vec![row(from), row(to)],
            joins_previous,
            cost: StepCost::default(),
        }
    }

    /// A list whose steps write to and fro between two rows of cells. Every fifth has no tiles.
    fn executor(placement: &Placement, steps: usize) -> ProcessorExecutor {
        let steps =
            (0..steps).map(|index| step(u32::from(index % 5 == 4), index % 2, (index + 1) % 2, false));
        executor_of(placement, steps.collect())
    }

    fn executor_of(placement: &Placement, steps: Vec<Step>) -> ProcessorExecutor {
        let lists = StepLists {
            kernels: ["mix", "none"]
                .map(|name| KernelInfo { name: name.to_owned(), launches: Vec::new() })
                .to_vec(),
            lists: vec![StepList {
                name: "decode".to_owned(),
                max_rows: 1,
                max_logit_rows: 1,
                body: steps,
                head: Vec::new(),
            }],
            persistent: None,
        };
        let kernels =
            [KernelEntry { tiles: one_tile_a_cell, body: mix }, KernelEntry { tiles: no_tiles, body: mix }];
        let weights = Arc::new(Mapping::zeroed(0).expect("a page can be mapped"));
        ProcessorExecutor::start(&lists, &kernels, weights, 256, placement).expect("threads can be started")
    }

    fn cells_after(placement: &Placement, jobs: usize, pause: Duration) -> Vec<u32> {
        let mut executor = executor(placement, 100);
        executor.write_integers(0, 1..CELLS as u32 + 1);
        for _ in 0..jobs {
            executor.run(&Job { list: 0, steps: 0..100, rows: 1, logit_rows: 1 }, &mut ());
            std::thread::sleep(pause);
        }
        executor.floats(0, 2 * CELLS).iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn any_number_of_workers_computes_the_same() {
        let expected = cells_after(&Placement::unpinned(1), 50, Duration::ZERO);
        assert!(expected[0] != 1 && expected[1] != 2);
        for threads in [2, 3, 8] {
            let found = cells_after(&Placement::unpinned(threads), 50, Duration::ZERO);
            assert_eq!(found, expected, "{threads} threads");
        }
        assert_eq!(cells_after(&Placement::choose(Some(2)), 50, Duration::ZERO), expected);
    }

    #[test]
    fn steps_of_a_phase_compute_what_they_do_one_by_one() {
        // Three of the four rows take from the fourth, each once; then the next one is the fourth.
        let phases = (0..90).map(|index| {
            let (from, to) = (index / 3 % 4, (index / 3 + 1 + index % 3) % 4);
            step(u32::from(index % 7 == 6), from, to, index % 3 > 0)
        });
        let phases: Vec<Step> = phases.collect();
        let cells = |placement: &Placement, joined: bool, run: &mut dyn FnMut(&mut ProcessorExecutor)| {
            let of_step =
                |step: &Step| Step { joins_previous: joined && step.joins_previous, ..step.clone() };
            let mut executor = executor_of(placement, phases.iter().map(of_step).collect());
            executor.write_integers(0, 1..CELLS as u32 + 1);
            run(&mut executor);
            executor.floats(0, 56).iter().map(|value| value.to_bits()).collect::<Vec<_>>()
        };
        let job = Job { list: 0, steps: 0..90, rows: 1, logit_rows: 1 };
        let expected = cells(&Placement::unpinned(1), false, &mut |executor| executor.run(&job, &mut ()));
        for threads in [1, 2, 3] {
            let placement = Placement::unpinned(threads);
            let found = cells(&placement, true, &mut |executor| executor.run(&job, &mut ()));
            assert_eq!(found, expected, "{threads} threads");
            let mut seen = Seen(Vec::new());
            let found = cells(&placement, true, &mut |executor| executor.run(&job, &mut seen));
            assert_eq!(found, expected, "{threads} threads, observed");
            assert_eq!(seen.0, (0..90).collect::<Vec<_>>());
        }
    }

    #[test]
    fn workers_that_share_one_core_compute_the_same() {
        let core = Placement::choose(Some(1)).cores;
        let shared = Placement { threads: 4, cores: core.repeat(4), shares_cores: true, usable: 1 };
        let expected = cells_after(&Placement::unpinned(1), 50, Duration::ZERO);
        // On a thread of its own, because the first worker is pinned too.
        let found = std::thread::spawn(move || cells_after(&shared, 50, Duration::ZERO));
        assert_eq!(found.join().expect("the workers end"), expected);
    }

    #[test]
    fn workers_that_fell_asleep_wake_up() {
        // Long enough for every worker to give up spinning and yielding.
        let pause = Duration::from_millis(60);
        let expected = cells_after(&Placement::unpinned(1), 5, Duration::ZERO);
        assert_eq!(cells_after(&Placement::unpinned(3), 5, pause), expected);
    }

    #[test]
    fn an_observer_sees_every_step_once_and_in_order() {
        let mut seen = Seen(Vec::new());
        let mut executor = executor(&Placement::unpinned(2), 100);
        executor.run(&Job { list: 0, steps: 3..9, rows: 1, logit_rows: 1 }, &mut seen);
        executor.run(&Job { list: 0, steps: 5..5, rows: 1, logit_rows: 1 }, &mut seen);
        assert_eq!(seen.0, [3, 4, 5, 6, 7, 8]);
    }

    #[test]
    #[should_panic(expected = "exceeds its list")]
    fn more_rows_than_planned_are_a_bug() {
        let mut executor = executor(&Placement::unpinned(1), 1);
        executor.run(&Job { list: 0, steps: 0..1, rows: 2, logit_rows: 1 }, &mut ());
    }
}
