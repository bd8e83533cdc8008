//! Handles: opaque numbers that say what they are, so that a wrong one is recognized and named.
//!
//! No handle is an address: a program that looks behind one dies. No number is given out twice, so a
//! handle that was released stays known as such.

use std::collections::BTreeMap;

use super::errors::{Refusal, Status};

/// A handle as C holds it, in place of a pointer; zero is null.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Handle(pub u64);

impl Handle {
    /// The null handle: the default stream, or nothing.
    pub const NULL: Self = Self(0);

    fn kind(self) -> Option<Kind> {
        let marked = self.0 >> 48 == MARK;
        KINDS.into_iter().find(|kind| marked && u64::from(*kind as u8) == self.0 >> 40 & 0xff)
    }

    fn device(self) -> u32 {
        (self.0 >> 32 & 0xff) as u32
    }
}

/// The upper bits of every handle: no address of a process begins like this.
const MARK: u64 = 0x7e57;

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Context = 1,
    Stream,
    Event,
    Module,
    Function,
    Graph,
    Node,
    Executable,
}

const KINDS: [Kind; 8] = [
    Kind::Context,
    Kind::Stream,
    Kind::Event,
    Kind::Module,
    Kind::Function,
    Kind::Graph,
    Kind::Node,
    Kind::Executable,
];

impl Kind {
    /// What it is called, with its article.
    fn name(self) -> &'static str {
        match self {
            Self::Context => "a context",
            Self::Stream => "a stream",
            Self::Event => "an event",
            Self::Module => "a module",
            Self::Function => "a function",
            Self::Graph => "a graph",
            Self::Node => "a graph node",
            Self::Executable => "an executable graph",
        }
    }

    /// What the driver answers to a bad handle of this kind.
    fn refusal(self) -> Status {
        match self {
            Self::Context => Status::INVALID_CONTEXT,
            Self::Graph | Self::Node | Self::Executable => Status::INVALID_VALUE,
            _ => Status::INVALID_HANDLE,
        }
    }

    /// The handle with number `serial` on a device.
    pub(super) fn handle(self, device: u32, serial: u32) -> Handle {
        Handle(MARK << 48 | (self as u64) << 40 | u64::from(device & 0xff) << 32 | u64::from(serial))
    }
}

/// All objects of one kind in one context.
#[derive(Debug)]
pub(super) struct Table<T> {
    kind: Kind,
    device: u32,
    next: u32,
    live: BTreeMap<Handle, T>,
}

impl<T> Table<T> {
    pub(super) fn new(kind: Kind, device: u32) -> Self {
        Self { kind, device, next: 1, live: BTreeMap::new() }
    }

    pub(super) fn insert(&mut self, object: T) -> Handle {
        let handle = self.kind.handle(self.device, self.next);
        self.next += 1;
        self.live.insert(handle, object);
        handle
    }

    pub(super) fn get(&self, handle: Handle) -> Result<&T, Refusal> {
        self.live.get(&handle).ok_or_else(|| self.refusal(handle))
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Result<&mut T, Refusal> {
        let refusal = self.refusal(handle);
        self.live.get_mut(&handle).ok_or(refusal)
    }

    pub(super) fn remove(&mut self, handle: Handle) -> Result<T, Refusal> {
        let refusal = self.refusal(handle);
        self.live.remove(&handle).ok_or(refusal)
    }

    pub(super) fn len(&self) -> usize {
        self.live.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Handle, &T)> {
        self.live.iter().map(|(handle, object)| (*handle, object))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (Handle, &mut T)> {
        self.live.iter_mut().map(|(handle, object)| (*handle, object))
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.live.retain(|_, object| keep(object));
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.live.values_mut()
    }

    /// Why a handle that is not in the table is none of its.
    fn refusal(&self, handle: Handle) -> Refusal {
        let wanted = self.kind.name();
        let why = match handle.kind() {
            _ if handle == Handle::NULL => format!("{wanted} is wanted, but the handle is null"),
            None => format!("{:#x} is not {wanted}: this driver gave out no such handle", handle.0),
            Some(kind) if kind != self.kind => {
                format!("{:#x} is {}, not {wanted}", handle.0, kind.name())
            }
            Some(_) if handle.device() != self.device => format!(
                "{:#x} is {wanted} of device {}, but the current context is that of device {}",
                handle.0,
                handle.device(),
                self.device
            ),
            Some(_) => format!("{:#x} is {wanted} that was released, or whose context was", handle.0),
        };
        Refusal::new(self.kind.refusal(), why)
    }
}
