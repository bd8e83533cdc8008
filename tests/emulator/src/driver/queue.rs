//! Work that waits in streams, and when it is done.
//!
//! Nothing runs when it is handed over. At a synchronization, streams that may go on are picked by the seed, one
//! piece of work at a time, until what is waited for is done; what another stream has beyond that may stay
//! undone. Bytes copied to the host are kept aside and *land* when the host synchronizes with their stream.
//!
//! Streams know no order among each other but that of the default stream: its work waits for all earlier work of
//! blocking streams, and their later work waits for it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::context::Context;
use super::errors::{Answer, Refusal, Status};
use super::graph::{Node, runs_module};
use super::handles::Handle;
use super::launch::Launch;
use super::serve::Shared;

/// One piece of work.
pub(super) enum Task {
    ToDevice {
        from: Range<usize>,
        to: u64,
        /// Checksum of the bytes at the call, where they may not change until the copy is done.
        seen: Option<u64>,
    },
    ToHost {
        from: u64,
        to: Range<usize>,
        /// As above, of the bytes that will be overwritten: nobody else may write there meanwhile.
        seen: Option<u64>,
    },
    Fill {
        to: u64,
        value: u8,
        bytes: u64,
    },
    Kernel(Arc<Launch>),
    Graph(Arc<Vec<Node>>),
    Record(Handle),
}

impl Task {
    /// The host's bytes that are read or written, and whether they are written.
    fn host_memory(&self) -> Option<(&Range<usize>, bool)> {
        match self {
            Self::ToDevice { from, .. } => Some((from, false)),
            Self::ToHost { to, .. } => Some((to, true)),
            _ => None,
        }
    }
}

struct Work {
    /// Place in the order in which all work of the context was handed over.
    number: u64,
    task: Task,
}

/// Bytes that a copy read on the device and the host does not see yet.
struct Landing {
    number: u64,
    to: Range<usize>,
    bytes: Vec<u8>,
    seen: Option<u64>,
}

/// A stream and what waits in it.
pub(super) struct Stream {
    /// Whether the default stream and this one wait for each other.
    is_blocking: bool,
    waiting: VecDeque<Work>,
    landings: Vec<Landing>,
    last_issued: u64,
    /// The last work of the default stream that this stream's work comes after.
    after_default: u64,
}

impl Stream {
    pub(super) fn new(is_blocking: bool) -> Self {
        Self { is_blocking, waiting: VecDeque::new(), landings: Vec::new(), last_issued: 0, after_default: 0 }
    }

    /// How much work waits.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Forgets all work, after a fault.
    pub(super) fn abandon(&mut self) {
        self.waiting.clear();
        self.landings.clear();
    }

    fn front(&self) -> Option<u64> {
        self.waiting.front().map(|work| work.number)
    }

    /// All host memory that this stream will read or write.
    fn host_memory(&self) -> impl Iterator<Item = (&Range<usize>, bool)> {
        let waiting = self.waiting.iter().filter_map(|work| work.task.host_memory());
        waiting.chain(self.landings.iter().map(|landing| (&landing.to, true)))
    }

    /// Brings copies to the host.
    fn land(&mut self, shared: &mut Shared, which: impl Fn(&Landing) -> bool) -> Answer {
        let mut landed = Ok(());
        for landing in self.landings.extract_if(.., |landing| which(landing)) {
            if landing.seen.is_some_and(|seen| shared.pinned.checksum(&landing.to) != Some(seen)) {
                let what = format!(
                    "the program wrote to the {} bytes at {:#x} before the copy into them was synchronized",
                    landing.to.len(),
                    landing.to.start
                );
                let call = "cuMemcpyDtoHAsync_v2";
                landed = Err(shared.report.program_fault(Status::LAUNCH_FAILED, call, what));
            }
            // Freeing memory that a copy still needs was refused, so it is there.
            shared.pinned.write(landing.to.start, &landing.bytes);
        }
        landed
    }
}

fn overlap(one: &Range<usize>, other: &Range<usize>) -> bool {
    one.start < other.end && other.start < one.end
}

impl Context {
    /// A stream; null is the default stream.
    pub(super) fn stream(&self, handle: Handle) -> Result<&Stream, Refusal> {
        if handle == Handle::NULL { Ok(&self.default_stream) } else { self.streams.get(handle) }
    }

    fn stream_mut(&mut self, handle: Handle) -> Result<&mut Stream, Refusal> {
        if handle == Handle::NULL { Ok(&mut self.default_stream) } else { self.streams.get_mut(handle) }
    }

    /// All streams, the default stream first.
    fn all_streams(&self) -> impl Iterator<Item = (Handle, &Stream)> {
        std::iter::once((Handle::NULL, &self.default_stream)).chain(self.streams.iter())
    }

    /// Hands work to a stream.
    pub(super) fn issue(&mut self, stream: Handle, task: Task) -> Answer {
        self.works_issued += 1;
        let number = self.works_issued;
        if let Task::Record(event) = task {
            self.events.get_mut(event)?.await_record(stream, number);
        }
        let after_default = self.default_stream.last_issued;
        let stream = self.stream_mut(stream)?;
        stream.waiting.push_back(Work { number, task });
        stream.last_issued = number;
        if stream.is_blocking {
            stream.after_default = after_default;
        }
        Ok(())
    }

    /// Whether any work will touch a range of host memory.
    pub(super) fn uses_host_memory(&self, range: &Range<usize>) -> bool {
        self.all_streams().flat_map(|(_, stream)| stream.host_memory()).any(|(used, _)| overlap(used, range))
    }

    /// Whether a kernel of a module waits in any stream.
    pub(super) fn awaits_module(&self, module: Handle) -> bool {
        self.all_streams().flat_map(|(_, stream)| &stream.waiting).any(|work| match &work.task {
            Task::Kernel(launch) => launch.module == module,
            Task::Graph(nodes) => runs_module(nodes, module),
            _ => false,
        })
    }

    /// Whether any work will write to a range of host memory.
    pub(super) fn writes_host_memory(&self, range: &Range<usize>) -> bool {
        let mut used = self.all_streams().flat_map(|(_, stream)| stream.host_memory());
        used.any(|(used, writes)| writes && overlap(used, range))
    }

    /// A stream whose work touches the same host memory in no order with `stream`, where one of them writes.
    pub(super) fn rival(&self, stream: Handle, range: &Range<usize>, writes: bool) -> Option<Handle> {
        let is_default = |handle: Handle| handle == Handle::NULL;
        let blocking = self.stream(stream).is_ok_and(|stream| stream.is_blocking);
        let unordered = self.all_streams().filter(|(other, found)| {
            let ordered_by_default =
                (is_default(stream) || is_default(*other)) && blocking && found.is_blocking;
            *other != stream && !ordered_by_default
        });
        let mut rivals = unordered.filter(|(_, found)| {
            found.host_memory().any(|(used, wrote)| (wrote || writes) && overlap(used, range))
        });
        rivals.next().map(|(other, _)| other)
    }

    /// Does everything in a stream, and lets the host see it.
    pub(super) fn synchronize(&mut self, shared: &mut Shared, stream: Handle) -> Answer {
        self.drain(shared, stream)?;
        let seen = self.reveal(shared, stream, u64::MAX);
        self.fail_with(seen)
    }

    /// Does the work of a stream up to number `up_to`, and lets the host see it.
    pub(super) fn synchronize_up_to(&mut self, shared: &mut Shared, stream: Handle, up_to: u64) -> Answer {
        while self.stream(stream)?.front().is_some_and(|front| front <= up_to) {
            self.step(shared)?;
        }
        let seen = self.reveal(shared, stream, up_to);
        self.fail_with(seen)
    }

    /// Does everything in a stream; the default stream implies all that it waits for.
    pub(super) fn drain(&mut self, shared: &mut Shared, stream: Handle) -> Answer {
        if stream == Handle::NULL {
            let waits = |stream: &Stream| stream.is_blocking && stream.front().is_some();
            while self.all_streams().any(|(_, stream)| waits(stream)) {
                self.step(shared)?;
            }
            return Ok(());
        }
        while self.stream(stream)?.front().is_some() {
            self.step(shared)?;
        }
        Ok(())
    }

    /// Does everything in all streams.
    pub(super) fn run_all(&mut self, shared: &mut Shared) -> Answer {
        while self.all_streams().any(|(_, stream)| stream.front().is_some()) {
            self.step(shared)?;
        }
        Ok(())
    }

    /// Lets the host see what a stream did up to number `up_to`, with what came before it by order.
    fn reveal(&mut self, shared: &mut Shared, stream: Handle, up_to: u64) -> Answer {
        let found = self.stream(stream)?;
        let before = if stream == Handle::NULL { u64::MAX } else { found.after_default };
        for (handle, other) in
            std::iter::once((Handle::NULL, &mut self.default_stream)).chain(self.streams.iter_mut())
        {
            let until = match handle {
                _ if handle == stream => up_to,
                _ if other.is_blocking => before.min(up_to),
                _ => continue,
            };
            other.land(shared, |landing| landing.number <= until)?;
            for event in self.events.values_mut() {
                event.reveal(handle, until);
            }
        }
        Ok(())
    }

    /// Does one piece of work of a stream that may go on, as the seed picks it.
    fn step(&mut self, shared: &mut Shared) -> Answer {
        let default_front = self.default_stream.front().unwrap_or(u64::MAX);
        let blocking = self.streams.iter().filter(|(_, stream)| stream.is_blocking);
        let blocking_front = blocking.filter_map(|(_, stream)| stream.front()).min().unwrap_or(u64::MAX);
        let ready: Vec<Handle> = self
            .all_streams()
            .filter(|(handle, stream)| {
                stream.front().is_some_and(|front| match *handle {
                    Handle::NULL => front < blocking_front,
                    _ => !stream.is_blocking || front < default_front,
                })
            })
            .map(|(handle, _)| handle)
            .collect();
        let stream = ready[shared.choose(ready.len())];
        let Some(work) = self.stream_mut(stream)?.waiting.pop_front() else { return Ok(()) };
        let done = self.perform(shared, stream, work);
        self.fail_with(done)
    }

    /// Passes an outcome on; a fault breaks the context.
    fn fail_with(&mut self, outcome: Answer) -> Answer {
        if let Err(refusal) = &outcome {
            self.fail(refusal.status);
        }
        outcome
    }

    fn perform(&mut self, shared: &mut Shared, stream: Handle, work: Work) -> Answer {
        match work.task {
            Task::ToDevice { from, to, seen } => self.copy_to_device(shared, &from, to, seen),
            Task::ToHost { from, to, seen } => {
                let bytes = self.copy_from_device(shared, from, to.len())?;
                self.stream_mut(stream)?.landings.push(Landing { number: work.number, to, bytes, seen });
                Ok(())
            }
            Task::Fill { to, value, bytes } => self.fill(shared, to, value, bytes),
            Task::Kernel(launch) => self.run_kernel(shared, &launch),
            Task::Graph(nodes) => self.run_graph(shared, &nodes),
            Task::Record(event) => {
                // An event may be destroyed, or recorded anew, before its stream comes to it.
                if let Ok(event) = self.events.get_mut(event) {
                    event.happen(work.number, self.clock_ns);
                }
                Ok(())
            }
        }
    }

    /// Brings copies to the host whose bytes a later copy, ordered behind them, reads.
    pub(super) fn land_for_reading(&mut self, shared: &mut Shared, range: &Range<usize>) -> Answer {
        for stream in std::iter::once(&mut self.default_stream).chain(self.streams.values_mut()) {
            stream.land(shared, |landing| overlap(&landing.to, range))?;
        }
        Ok(())
    }
}
