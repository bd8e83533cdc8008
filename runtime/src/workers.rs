//! Worker threads, made once, that walk the same steps together.
//!
//! Every worker runs the same function for every job. A step's tiles are cut into one share for each
//! worker, so that each reads a contiguous part of the weights; who has finished its share takes tiles of
//! the others', so that nobody waits for a worker that lost its core. A barrier ends each step. Results do
//! not depend on who claimed what, because a tile's result depends on its number alone.
//!
//! A worker that waits spins first, because the next step is microseconds away; then it yields, because
//! the machine may have fewer cores than threads; between jobs it finally sleeps.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use crate::processor::{self, Placement};

/// Waits of this many spins are shorter than a thread switch.
const SPINS: u32 = 4096;
/// Where threads share cores, whoever spins keeps another from working.
const SPINS_ON_SHARED_CORES: u32 = 16;
/// Yields before an idle worker sleeps: about a millisecond.
const IDLE_YIELDS: u32 = 2000;

/// Keeps counters that different workers write on cache lines of their own (two lines: processors
/// fetch them in pairs).
#[repr(align(128))]
struct Line<T>(T);

/// Where workers meet: the tile counters, the barrier and the doorbell for the next job.
pub(crate) struct Rendezvous {
    workers: usize,
    spins: u32,
    /// Tiles taken from each worker's share.
    taken: Box<[Line<AtomicI64>]>,
    arrived: Line<AtomicUsize>,
    generation: Line<AtomicUsize>,
    jobs: Line<AtomicU64>,
    asleep: Box<[Line<AtomicBool>]>,
    stopping: AtomicBool,
}

impl Rendezvous {
    fn new(placement: &Placement) -> Self {
        Self {
            workers: placement.threads,
            spins: if placement.shares_cores { SPINS_ON_SHARED_CORES } else { SPINS },
            taken: (0..placement.threads).map(|_| Line(AtomicI64::new(0))).collect(),
            arrived: Line(AtomicUsize::new(0)),
            generation: Line(AtomicUsize::new(0)),
            jobs: Line(AtomicU64::new(0)),
            asleep: (0..placement.threads).map(|_| Line(AtomicBool::new(false))).collect(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Numbers of tiles that nobody else has, until all `tiles` are taken: first those of the worker's
    /// own share in order, then those of the others.
    pub(crate) fn claim(&self, worker: usize, tiles: i64) -> impl Iterator<Item = i64> {
        let workers = self.workers as i64;
        let mut owner = worker;
        let mut left = self.workers;
        std::iter::from_fn(move || {
            while left > 0 {
                let first = tiles * owner as i64 / workers;
                let share = tiles * (owner as i64 + 1) / workers - first;
                let tile = self.taken[owner].0.fetch_add(1, Ordering::Relaxed);
                if tile < share {
                    return Some(first + tile);
                }
                owner = if owner + 1 == self.workers { 0 } else { owner + 1 };
                left -= 1;
            }
            None
        })
    }

    /// Waits until every worker has come here; afterwards all see what all have written, and tiles
    /// are counted from 0 again.
    pub(crate) fn barrier(&self) {
        let generation = self.generation.0.load(Ordering::Relaxed);
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.workers {
            for taken in &self.taken {
                taken.0.store(0, Ordering::Relaxed);
            }
            self.arrived.0.store(0, Ordering::Relaxed);
            self.generation.0.store(generation.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut spins = 0;
        while self.generation.0.load(Ordering::Acquire) == generation {
            if spins < self.spins {
                spins += 1;
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }

    /// Waits for a job after the `seen`th.
    fn wait_for_job(&self, worker: usize, seen: u64) {
        let mut waits = 0;
        loop {
            // Sequentially consistent together with `ring`: either this load sees the new job, or
            // `ring` sees that this worker sleeps.
            if self.jobs.0.load(Ordering::SeqCst) != seen {
                return;
            }
            waits += 1;
            if waits < self.spins {
                std::hint::spin_loop();
            } else if waits < self.spins + IDLE_YIELDS {
                thread::yield_now();
            } else if self.asleep[worker].0.swap(true, Ordering::SeqCst) {
                thread::park();
            }
        }
    }

    /// Hands out a job and wakes who sleeps.
    fn ring(&self, threads: &[JoinHandle<()>]) {
        self.jobs.0.fetch_add(1, Ordering::SeqCst);
        for (asleep, thread) in self.asleep[1..].iter().zip(threads) {
            if asleep.0.swap(false, Ordering::SeqCst) {
                thread.thread().unpark();
            }
        }
    }
}

/// The threads. The one that made them is worker 0.
pub(crate) struct Crew {
    rendezvous: Arc<Rendezvous>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    /// Starts the workers, pins them and sets their floating-point mode. Each runs `work` with its number
    /// once for every job.
    ///
    /// # Errors
    ///
    /// The system's, where it refuses a thread.
    pub(crate) fn start(
        placement: &Placement,
        work: impl Fn(&Rendezvous, usize) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let rendezvous = Arc::new(Rendezvous::new(placement));
        let mut crew = Self { rendezvous: Arc::clone(&rendezvous), threads: Vec::new() };
        for worker in 1..placement.threads {
            let (rendezvous, work) = (Arc::clone(&rendezvous), work.clone());
            let core = placement.core_of(worker);
            let body = move || {
                processor::prepare_thread(core);
                let mut seen = 0;
                loop {
                    rendezvous.wait_for_job(worker, seen);
                    seen += 1;
                    if rendezvous.stopping.load(Ordering::Relaxed) {
                        return;
                    }
                    work(&rendezvous, worker);
                }
            };
            crew.threads.push(thread::Builder::new().name(format!("worker {worker}")).spawn(body)?);
        }
        processor::prepare_thread(placement.core_of(0));
        Ok(crew)
    }

    /// Workers, the calling thread included.
    pub(crate) fn workers(&self) -> usize {
        self.rendezvous.workers
    }

    /// Lets the workers do a job, the caller's part of which is `own`. `own` ends with the same
    /// barrier as theirs.
    pub(crate) fn run(&mut self, own: impl FnOnce(&Rendezvous)) {
        self.rendezvous.ring(&self.threads);
        own(&self.rendezvous);
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.rendezvous.stopping.store(true, Ordering::Relaxed);
        self.rendezvous.ring(&self.threads);
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so already.
            let _ = thread.join();
        }
    }
}
