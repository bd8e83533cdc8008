//! Primary contexts: everything that exists on one device while somebody retains it.

use std::ffi::c_int;

use crate::Memory;

use super::device::checked_device;
use super::errors::{Answer, Refusal, Status};
use super::event::Event;
use super::foreign::{Out, required};
use super::graph::{Executable, Graph};
use super::handles::{Handle, Kind, Table};
use super::module::{Function, LoadedModule};
use super::pinned::PinnedMemory;
use super::queue::Stream;
use super::report::Report;
use super::serve::{self, Shared};

/// What one device holds.
pub(super) struct Context {
    device: u32,
    /// How many times this device's context was made, so that an old handle is not taken for the new one.
    generation: u32,
    /// Calls of retain without a release.
    retained: u32,
    /// The error of a fault, which every further call repeats.
    pub(super) broken: Option<Status>,
    pub(super) memory: Memory,
    /// The stream whose handle is null: it waits for blocking streams, and they for it.
    pub(super) default_stream: Stream,
    pub(super) streams: Table<Stream>,
    pub(super) events: Table<Event>,
    pub(super) modules: Table<LoadedModule>,
    pub(super) functions: Table<Function>,
    pub(super) graphs: Table<Graph>,
    pub(super) executables: Table<Executable>,
    /// Graph nodes that were made; their handles are numbered through all graphs.
    pub(super) nodes_made: u32,
    /// Work that was handed to streams, which numbers it.
    pub(super) works_issued: u64,
    /// The device's clock: it advances by what work would have taken.
    pub(super) clock_ns: f64,
}

impl Context {
    fn new(device: u32, generation: u32, memory_bytes: u64) -> Self {
        Self {
            device,
            generation,
            retained: 0,
            broken: None,
            memory: Memory::new(memory_bytes),
            default_stream: Stream::new(true),
            streams: Table::new(Kind::Stream, device),
            events: Table::new(Kind::Event, device),
            modules: Table::new(Kind::Module, device),
            functions: Table::new(Kind::Function, device),
            graphs: Table::new(Kind::Graph, device),
            executables: Table::new(Kind::Executable, device),
            nodes_made: 0,
            works_issued: 0,
            clock_ns: 0.0,
        }
    }

    pub(super) fn handle(&self) -> Handle {
        Kind::Context.handle(self.device, self.generation)
    }

    pub(super) fn device(&self) -> u32 {
        self.device
    }

    /// Whether a range of device memory lies in one allocation.
    pub(super) fn must_hold(&self, address: u64, bytes: u64, what: &str) -> Answer {
        if bytes == 0 || self.memory.holds(address, bytes) {
            return Ok(());
        }
        Err(Refusal::invalid_value(format!(
            "{what}: {bytes} bytes at {address:#x} do not lie in one allocation of the device"
        )))
    }

    /// After a fault nothing runs any more, and every call says so.
    pub(super) fn fail(&mut self, status: Status) {
        self.broken = Some(status);
        self.default_stream.abandon();
        self.streams.values_mut().for_each(Stream::abandon);
    }

    /// Adds what still exists here to the report: whoever leaves now leaves it behind. Nothing does after a
    /// fault, or when the device is lost: then no call could give anything back.
    pub(super) fn count_leaks(&self, report: &mut Report, pinned: &PinnedMemory) {
        if self.broken.is_some() {
            return;
        }
        let leaks = &mut report.leaks;
        leaks.device_allocations += self.memory.allocation_count() as u64;
        leaks.device_bytes += self.memory.used_bytes();
        leaks.streams += self.streams.len() as u64;
        leaks.events += self.events.len() as u64;
        leaks.modules += self.modules.len() as u64;
        leaks.graphs += self.graphs.len() as u64;
        leaks.executable_graphs += self.executables.len() as u64;
        let (allocations, bytes) = pinned.left_by(self.device);
        leaks.pinned_allocations += allocations;
        leaks.pinned_bytes += bytes;
        let waiting: usize = self.streams.iter().map(|(_, stream)| stream.waiting()).sum();
        leaks.unfinished_works += (waiting + self.default_stream.waiting()) as u64;
    }
}

/// `cuDevicePrimaryCtxRetain`: makes the context of a device, or counts one more user of it.
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRetain(context: Out<'_, Handle>, device: c_int) -> Status {
    serve::initialized("cuDevicePrimaryCtxRetain", |driver| {
        let place = required(context, "pctx")?;
        let index = checked_device(driver, device)?;
        let generation = driver.shared.next_generation();
        let memory_bytes = driver.shared.settings.memory_bytes;
        let context = driver.contexts[index]
            .get_or_insert_with(|| Context::new(index as u32, generation, memory_bytes));
        context.retained += 1;
        place.write(context.handle());
        Ok(())
    })
}

/// `cuDevicePrimaryCtxRelease_v2`: one user less; the last one destroys everything in the context. This works
/// on a context that a fault broke, but what the program left in it counts as leaked.
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Status {
    serve::anytime("cuDevicePrimaryCtxRelease_v2", |driver| {
        if !driver.is_initialized {
            return Err(Refusal::new(Status::NOT_INITIALIZED, "cuInit was not called"));
        }
        let index = checked_device(driver, device)?;
        let slot = &mut driver.contexts[index];
        let Some(context) = slot else {
            let why = format!("nobody retains the context of device {device}");
            return Err(Refusal::new(Status::INVALID_CONTEXT, why));
        };
        context.retained -= 1;
        if context.retained == 0 {
            let shared = &mut driver.shared;
            context.count_leaks(&mut shared.report, &shared.pinned);
            shared.pinned.release_all_of(index as u32);
            *slot = None;
            shared.report.write(&shared.settings);
        }
        Ok(())
    })
}

/// `cuCtxSetCurrent`: the context that further calls of this thread mean; null for none.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: Handle) -> Status {
    serve::initialized("cuCtxSetCurrent", |driver| {
        let exists = driver.contexts.iter().flatten().any(|known| known.handle() == context);
        if context != Handle::NULL && !exists {
            let why = format!("{:#x} is no context, or one that was released", context.0);
            return Err(Refusal::new(Status::INVALID_CONTEXT, why));
        }
        serve::set_current(context);
        Ok(())
    })
}

impl Shared {
    /// A number for a context that was never given to another.
    fn next_generation(&mut self) -> u32 {
        self.contexts_made += 1;
        self.contexts_made
    }
}
