//! Events: marks in streams, with the time at which the device came by.
//!
//! Times are those of a modelled device (bandwidth of its memory and bus, a fixed cost of each launch), so they
//! are plausible, never run backwards, and are the same in every run.

use super::errors::{Refusal, Status};
use super::foreign::{Out, required};
use super::handles::Handle;
use super::queue::Task;
use super::serve;

/// `CU_EVENT_BLOCKING_SYNC`, which changes nothing here, and `CU_EVENT_DISABLE_TIMING`.
const BLOCKING_SYNC: u32 = 1;
const DISABLE_TIMING: u32 = 2;

/// An event.
pub(super) struct Event {
    has_time: bool,
    record: Option<Record>,
}

/// The last record of an event.
#[derive(Clone, Copy)]
struct Record {
    stream: Handle,
    number: u64,
    /// When the device came to it.
    time_ns: Option<f64>,
    /// Whether the host synchronized with it: only then it may count on it.
    is_known: bool,
}

impl Event {
    /// Notes that the event was put into a stream, as work `number`.
    pub(super) fn await_record(&mut self, stream: Handle, number: u64) {
        self.record = Some(Record { stream, number, time_ns: None, is_known: false });
    }

    /// Notes that the device came to work `number`.
    pub(super) fn happen(&mut self, number: u64, time_ns: f64) {
        if let Some(record) = &mut self.record
            && record.number == number
        {
            record.time_ns = Some(time_ns);
        }
    }

    /// Lets the host know of the event, if it lies in `stream` and is no later than work `up_to`.
    pub(super) fn reveal(&mut self, stream: Handle, up_to: u64) {
        if let Some(record) = &mut self.record
            && record.stream == stream
            && record.number <= up_to
        {
            record.is_known = record.time_ns.is_some();
        }
    }

    /// The time of the event, as far as the host may know it.
    fn time_ns(&self, name: &str) -> Result<f64, Refusal> {
        if !self.has_time {
            let why = format!("{name} was created without timing");
            return Err(Refusal::new(Status::INVALID_HANDLE, why));
        }
        let Some(record) = self.record else {
            let why = format!("{name} was never recorded");
            return Err(Refusal::new(Status::INVALID_HANDLE, why));
        };
        record.time_ns.filter(|_| record.is_known).ok_or_else(|| {
            Refusal::new(Status::NOT_READY, format!("{name} was not synchronized with since it was recorded"))
        })
    }
}

/// `cuEventCreate`: an event.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventCreate(event: Out<'_, Handle>, flags: u32) -> Status {
    serve::in_context("cuEventCreate", |context, _| {
        let place = required(event, "phEvent")?;
        if flags & !(BLOCKING_SYNC | DISABLE_TIMING) != 0 {
            return Err(Refusal::invalid_value(format!("flags {flags:#x} are not emulated")));
        }
        let event = Event { has_time: flags & DISABLE_TIMING == 0, record: None };
        place.write(context.events.insert(event));
        Ok(())
    })
}

/// `cuEventRecord`: puts an event into a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> Status {
    serve::in_context("cuEventRecord", |context, _| {
        context.events.get(event)?;
        context.stream(stream)?;
        context.issue(stream, Task::Record(event))
    })
}

/// `cuEventSynchronize`: does the work before an event; one that was never recorded is no wait.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: Handle) -> Status {
    serve::in_context("cuEventSynchronize", |context, shared| {
        let record = context.events.get(event)?.record;
        shared.report.synchronizations += 1;
        match record {
            Some(record) if context.stream(record.stream).is_ok() => {
                context.synchronize_up_to(shared, record.stream, record.number)
            }
            // The stream was destroyed, and did its work before.
            Some(record) => {
                context.events.get_mut(event)?.reveal(record.stream, record.number);
                Ok(())
            }
            None => Ok(()),
        }
    })
}

/// `cuEventElapsedTime`: milliseconds from one event to another.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventElapsedTime(milliseconds: Out<'_, f32>, start: Handle, end: Handle) -> Status {
    serve::in_context("cuEventElapsedTime", |context, _| {
        let place = required(milliseconds, "pMilliseconds")?;
        let start_ns = context.events.get(start)?.time_ns("the first event")?;
        let end_ns = context.events.get(end)?.time_ns("the second event")?;
        place.write(((end_ns - start_ns) / 1e6) as f32);
        Ok(())
    })
}

/// `cuEventDestroy_v2`: destroys an event; a record of it that still waits in a stream does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: Handle) -> Status {
    serve::in_context("cuEventDestroy_v2", |context, _| context.events.remove(event).map(drop))
}
