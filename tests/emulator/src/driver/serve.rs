//! The one lock around all state, and the door every call comes through.
//!
//! A call finds out here whether it may be served at all: the driver initialized, a context current on the
//! calling thread, the device neither lost nor broken by an earlier fault.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use super::context::Context;
use super::errors::{Answer, Refusal, Status};
use super::handles::Handle;
use super::pinned::PinnedMemory;
use super::report::Report;
use super::settings::Settings;

/// What all devices share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) report: Report,
    pub(super) pinned: PinnedMemory,
    /// Kernels that ran, on all devices.
    pub(super) kernels_run: u64,
    /// Whether the device is gone for good.
    pub(super) is_lost: bool,
    /// Contexts that were made, which numbers them.
    pub(super) contexts_made: u32,
    /// Decisions that were left to the seed so far.
    decisions: u64,
}

impl Shared {
    /// A number that depends on the seed and on how many were drawn before.
    pub(super) fn draw(&mut self) -> u64 {
        self.decisions += 1;
        // The finalizer of splitmix64: neighbouring inputs give unrelated outputs.
        let mut mixed = self.settings.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(self.decisions);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// One of `count` possibilities, of which there is at least one.
    pub(super) fn choose(&mut self, count: usize) -> usize {
        (self.draw() % count.max(1) as u64) as usize
    }
}

/// The whole driver.
pub(super) struct Driver {
    pub(super) shared: Shared,
    pub(super) is_initialized: bool,
    /// The primary context of each device while somebody retains it.
    pub(super) contexts: Vec<Option<Context>>,
    /// What is wrong with the environment's settings; said when the program initializes.
    pub(super) wrong_settings: Option<String>,
}

impl Driver {
    fn new() -> Self {
        let (settings, wrong_settings) = match Settings::read(|name| std::env::var(name).ok()) {
            Ok(settings) => (settings, None),
            Err(wrong) => (Settings::default(), Some(wrong)),
        };
        let contexts = (0..settings.devices).map(|_| None).collect();
        let shared = Shared {
            settings,
            report: Report::default(),
            pinned: PinnedMemory::default(),
            kernels_run: 0,
            is_lost: false,
            contexts_made: 0,
            decisions: 0,
        };
        Self { shared, is_initialized: false, contexts, wrong_settings }
    }

    /// Refuses what comes before `cuInit`, or after the device was lost.
    fn must_be_ready(&self) -> Answer {
        if !self.is_initialized {
            return Err(Refusal::new(Status::NOT_INITIALIZED, "cuInit was not called, or did not succeed"));
        }
        if self.shared.is_lost {
            return Err(Refusal::silent(Status::DEVICE_UNAVAILABLE));
        }
        Ok(())
    }

    /// The number of the device whose context is current on this thread.
    fn current_device(&self) -> Result<usize, Refusal> {
        let handle = current();
        if handle == Handle::NULL {
            return Err(Refusal::new(Status::INVALID_CONTEXT, "no context is current on this thread"));
        }
        let holds = |context: &Option<Context>| context.as_ref().is_some_and(|it| it.handle() == handle);
        self.contexts.iter().position(holds).ok_or_else(|| {
            Refusal::new(Status::CONTEXT_IS_DESTROYED, "the context that is current here was released")
        })
    }
}

static DRIVER: LazyLock<Mutex<Driver>> = LazyLock::new(|| Mutex::new(Driver::new()));

thread_local! {
    static CURRENT: Cell<Handle> = const { Cell::new(Handle::NULL) };
}

/// The context that is current on this thread.
pub(super) fn current() -> Handle {
    CURRENT.get()
}

pub(super) fn set_current(context: Handle) {
    CURRENT.set(context);
}

fn lock() -> MutexGuard<'static, Driver> {
    // A panic is caught below and reported; the state it left is still what the program made.
    DRIVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves a call at any time, even before `cuInit` and on a lost device.
pub(super) fn anytime(call: &'static str, work: impl FnOnce(&mut Driver) -> Answer) -> Status {
    let mut driver = lock();
    let driver = &mut *driver;
    let answer = catch_unwind(AssertUnwindSafe(|| work(driver))).unwrap_or_else(|_| {
        Err(Refusal::new(Status::UNKNOWN, "the emulator panicked, which is a bug of its own"))
    });
    match answer {
        Ok(()) => Status::SUCCESS,
        Err(refusal) => {
            if let Some(why) = refusal.why {
                driver.shared.report.refuse(call, refusal.status, why);
            }
            refusal.status
        }
    }
}

/// Serves a call that needs the driver but no context.
pub(super) fn initialized(call: &'static str, work: impl FnOnce(&mut Driver) -> Answer) -> Status {
    anytime(call, |driver| {
        driver.must_be_ready()?;
        work(driver)
    })
}

/// Serves a call in the context that is current on the calling thread.
pub(super) fn in_context(
    call: &'static str,
    work: impl FnOnce(&mut Context, &mut Shared) -> Answer,
) -> Status {
    initialized(call, |driver| {
        let device = driver.current_device()?;
        let Some(Some(context)) = driver.contexts.get_mut(device) else {
            return Err(Refusal::new(Status::INVALID_CONTEXT, "the current context has gone"));
        };
        // A fault is said once; after it, the context only repeats the error.
        if let Some(status) = context.broken {
            return Err(Refusal::silent(status));
        }
        work(context, &mut driver.shared)
    })
}

/// What the process leaves behind is counted, and the report written, when it exits.
pub(super) fn at_exit() {
    // A process that exits inside a call of another thread keeps the lock; it gets no report.
    if let Ok(mut driver) = DRIVER.try_lock() {
        let driver = &mut *driver;
        for context in driver.contexts.iter().flatten() {
            driver.shared.report.leaks.contexts += 1;
            context.count_leaks(&mut driver.shared.report, &driver.shared.pinned);
        }
        driver.shared.report.write(&driver.shared.settings);
    }
}
