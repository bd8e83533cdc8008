//! A driver for tests: device memory is memory of this process, entry points are the kernels of
//! [`crate::testing`], and work in a stream is done as late as it may be.
//!
//! Every thread has a driver of its own, so that tests run beside one another.

mod functions;
mod together;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{CStr, c_int};

use qwen2c_format::Diagnostic;

use super::Driver;
use super::driver::functions::{DeviceAddress, SUCCESS, Status};
use crate::testing::KERNELS;

/// `CUDA_ERROR_INVALID_VALUE`.
const INVALID: Status = 1;
/// Operands of every kernel of the counting program.
const OPERANDS: usize = 3;
/// What device memory holds before it is written.
const UNWRITTEN: u8 = 0xcd;

/// A device that the driver finds.
#[derive(Clone)]
pub(in crate::cuda) struct FakeDevice {
    pub(in crate::cuda) name: &'static CStr,
    pub(in crate::cuda) capability: (c_int, c_int),
    pub(in crate::cuda) free_bytes: usize,
}

/// A launch that waits in a stream or belongs to a graph.
#[derive(Clone)]
struct FakeLaunch {
    kernel: usize,
    rows_of_blocks: u32,
    operands: [u64; OPERANDS],
    rows: u32,
}

enum Work {
    ToDevice(DeviceAddress, usize, usize),
    ToHost(usize, DeviceAddress, usize),
    Zero(DeviceAddress, usize),
    Launch(FakeLaunch),
    Mark(usize),
}

/// What the driver is and what it has been asked.
pub(in crate::cuda) struct Fake {
    pub(in crate::cuda) version: c_int,
    pub(in crate::cuda) devices: Vec<FakeDevice>,
    /// A function, how many calls of it go well, and what it returns from then on.
    pub(in crate::cuda) failing: Option<(&'static str, usize, Status)>,
    /// What the compiler says about an image that begins like this.
    pub(in crate::cuda) refused_image: Option<(&'static [u8], &'static CStr)>,
    /// Blocks of a kernel that a multiprocessor holds, and whether blocks may wait for one another.
    pub(in crate::cuda) together: (c_int, bool),
    /// Calls by name, in order.
    pub(in crate::cuda) calls: Vec<&'static str>,
    /// Bytes that copies have brought to the host.
    pub(in crate::cuda) bytes_to_host: usize,
    /// First bytes of the images that were loaded.
    pub(in crate::cuda) images: Vec<Vec<u8>>,
    /// Everything that was made and not given back.
    pub(in crate::cuda) alive: BTreeSet<(&'static str, usize)>,
    /// For each launch of the graph that was built last, the numbers of those that it waits for.
    pub(in crate::cuda) edges: Vec<Vec<usize>>,
    memory: BTreeMap<usize, Vec<u64>>,
    stream: VecDeque<Work>,
    graphs: BTreeMap<usize, Vec<FakeLaunch>>,
    last_handle: usize,
}

thread_local! {
    static FAKE: RefCell<Fake> = RefCell::new(Fake::new());
}

/// Changes or looks at this thread's driver.
pub(in crate::cuda) fn with<T>(look: impl FnOnce(&mut Fake) -> T) -> T {
    FAKE.with(|fake| look(&mut fake.borrow_mut()))
}

/// A driver like any other to whoever gets it.
pub(in crate::cuda) fn open() -> Result<Driver, Diagnostic> {
    Driver::new(functions::FUNCTIONS)
}

impl Fake {
    pub(in crate::cuda) fn new() -> Self {
        Self {
            version: 12040,
            devices: vec![FakeDevice { name: c"Fake A100", capability: (8, 0), free_bytes: 1 << 30 }],
            failing: None,
            refused_image: None,
            together: (2, true),
            calls: Vec::new(),
            bytes_to_host: 0,
            images: Vec::new(),
            alive: BTreeSet::new(),
            memory: BTreeMap::new(),
            stream: VecDeque::new(),
            edges: Vec::new(),
            graphs: BTreeMap::new(),
            last_handle: 0,
        }
    }

    /// How often a function was called.
    pub(in crate::cuda) fn count(&self, name: &str) -> usize {
        self.calls.iter().filter(|call| **call == name).count()
    }

    fn make(&mut self, kind: &'static str) -> usize {
        self.last_handle += 16;
        self.alive.insert((kind, self.last_handle));
        self.last_handle
    }

    fn destroy(&mut self, kind: &'static str, handle: usize) -> Status {
        if self.alive.remove(&(kind, handle)) { SUCCESS } else { INVALID }
    }

    fn allocate(&mut self, kind: &'static str, bytes: usize) -> usize {
        let words = vec![u64::from_ne_bytes([UNWRITTEN; 8]); bytes.div_ceil(8).max(1)];
        let address = words.as_ptr() as usize;
        self.memory.insert(address, words);
        self.alive.insert((kind, address));
        address
    }

    /// Does what waits in the stream, up to a mark where one is given.
    fn work(&mut self, until: Option<usize>) {
        while let Some(work) = self.stream.pop_front() {
            match work {
                Work::ToDevice(to, from, bytes) => copy(to as usize, from, bytes),
                Work::ToHost(to, from, bytes) => copy(to, from as usize, bytes),
                // SAFETY: whoever asked for it named memory that is alive.
                Work::Zero(at, bytes) => unsafe { (at as *mut u8).write_bytes(0, bytes) },
                Work::Launch(launch) => run(&launch),
                Work::Mark(event) if until == Some(event) => return,
                Work::Mark(_) => {}
            }
        }
    }
}

fn copy(to: usize, from: usize, bytes: usize) {
    // SAFETY: whoever asked for the copy named memory that is alive and does not overlap.
    unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
}

fn run(launch: &FakeLaunch) {
    let operands = launch.operands.map(|address| address as *mut u8);
    for row in 0..launch.rows.min(launch.rows_of_blocks) {
        // SAFETY: the operands are those that the steps of the counting program give the kernel.
        unsafe { (KERNELS[launch.kernel].body)(operands.as_ptr(), i64::from(launch.rows), i64::from(row)) };
    }
}
