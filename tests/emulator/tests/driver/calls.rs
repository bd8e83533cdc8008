//! The C functions with results as values, and a device that is ready to work.

use std::ffi::{CString, c_void};
use std::mem::MaybeUninit;

use qwen2c_emulator::driver::*;

/// Calls a function that stores a result.
pub(crate) fn get<T>(call: impl FnOnce(Out<'_, T>) -> Status) -> Result<T, Status> {
    let mut place = MaybeUninit::uninit();
    match call(Some(&mut place)) {
        // SAFETY: a function that succeeds has stored its result.
        Status::SUCCESS => Ok(unsafe { place.assume_init() }),
        status => Err(status),
    }
}

/// Fails unless a call succeeded.
#[track_caller]
pub(crate) fn done(status: Status) {
    assert_eq!(status, Status::SUCCESS);
}

/// The first device with its context current on this thread, and a stream.
pub(crate) struct Device {
    pub(crate) context: Handle,
    pub(crate) stream: Handle,
}

impl Device {
    pub(crate) fn open() -> Self {
        done(cuInit(0));
        let device = get(|out| cuDeviceGet(out, 0)).expect("a device");
        let context = get(|out| cuDevicePrimaryCtxRetain(out, device)).expect("a context");
        done(cuCtxSetCurrent(context));
        Self { context, stream: get(|out| cuStreamCreate(out, 1)).expect("a stream") }
    }

    /// Gives back what `open` took, which must succeed.
    pub(crate) fn close(self) {
        done(cuStreamDestroy_v2(self.stream));
        done(cuDevicePrimaryCtxRelease_v2(0));
    }

    #[track_caller]
    pub(crate) fn synchronize(&self) {
        done(cuStreamSynchronize(self.stream));
    }

    /// New device memory that holds these numbers.
    pub(crate) fn upload(&self, numbers: &[u32]) -> u64 {
        let staging = Pinned::of(numbers);
        let address = get(|out| cuMemAlloc_v2(out, numbers.len() * 4)).expect("device memory");
        done(cuMemcpyHtoDAsync_v2(address, staging.pointer, staging.bytes, self.stream));
        self.synchronize();
        staging.free();
        address
    }

    /// What device memory holds.
    #[track_caller]
    pub(crate) fn download(&self, address: u64, count: usize) -> Vec<u32> {
        let staging = Pinned::new(count * 4);
        done(cuMemcpyDtoHAsync_v2(staging.pointer, address, staging.bytes, self.stream));
        self.synchronize();
        let numbers = staging.numbers();
        staging.free();
        numbers
    }
}

/// Pinned memory of the host.
pub(crate) struct Pinned {
    pub(crate) pointer: *mut c_void,
    pub(crate) bytes: usize,
}

impl Pinned {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { pointer: get(|out| cuMemHostAlloc(out, bytes, 0)).expect("pinned memory"), bytes }
    }

    pub(crate) fn of(numbers: &[u32]) -> Self {
        let pinned = Self::new(numbers.len() * 4);
        pinned.write(numbers);
        pinned
    }

    pub(crate) fn write(&self, numbers: &[u32]) {
        assert!(numbers.len() * 4 <= self.bytes);
        // SAFETY: the memory is as large, aligned to pages, and the driver reads it only inside of calls.
        unsafe { self.pointer.cast::<u32>().copy_from_nonoverlapping(numbers.as_ptr(), numbers.len()) };
    }

    pub(crate) fn numbers(&self) -> Vec<u32> {
        // SAFETY: the memory is initialized by the driver, aligned, and written only inside of calls.
        unsafe { std::slice::from_raw_parts(self.pointer.cast(), self.bytes / 4) }.to_vec()
    }

    #[track_caller]
    pub(crate) fn free(self) {
        done(cuMemFreeHost(self.pointer));
    }
}

/// Loads a module without options.
pub(crate) fn load(ptx: &str) -> Result<Handle, Status> {
    load_with(ptx, &[], &mut [])
}

/// Loads a module with options; values of log options must be buffers of the sizes they say.
pub(crate) fn load_with(ptx: &str, options: &[u32], values: &mut [*mut c_void]) -> Result<Handle, Status> {
    assert_eq!(options.len(), values.len());
    let image = CString::new(ptx).expect("text without NUL");
    // SAFETY: the image ends with NUL, and both arrays are as long as is said.
    get(|out| unsafe {
        cuModuleLoadDataEx(
            out,
            image.as_ptr().cast(),
            options.len() as u32,
            options.as_ptr(),
            values.as_mut_ptr(),
        )
    })
}

/// A function of a module.
pub(crate) fn function(module: Handle, name: &str) -> Result<Handle, Status> {
    let name = CString::new(name).expect("text without NUL");
    // SAFETY: the name ends with NUL.
    get(|out| unsafe { cuModuleGetFunction(out, module, name.as_ptr()) })
}

/// A launch to be made: which kernel, in which shape, with which parameters.
#[derive(Clone)]
pub(crate) struct Kernel {
    pub(crate) function: Handle,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    /// Each in the lowest bytes, as parameters of up to eight bytes lie on this machine.
    pub(crate) parameters: Vec<u64>,
}

impl Kernel {
    pub(crate) fn new(function: Handle, threads: u32, parameters: &[u64]) -> Self {
        let parameters = parameters.to_vec();
        Self { function, grid: [1; 3], block: [threads, 1, 1], shared_bytes: 0, parameters }
    }

    pub(crate) fn launch(&self, stream: Handle) -> Status {
        let pointers: Vec<*const c_void> =
            self.parameters.iter().map(|it| std::ptr::from_ref(it).cast()).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (self.grid, self.block);
        let parameters = pointers.as_ptr();
        let none = std::ptr::null();
        // SAFETY: every parameter has eight bytes, and the kernels of these tests declare no larger ones.
        unsafe {
            cuLaunchKernel(self.function, gx, gy, gz, bx, by, bz, self.shared_bytes, stream, parameters, none)
        }
    }

    /// Adds the kernel to a graph behind other nodes.
    pub(crate) fn add_to(&self, graph: Handle, after: &[Handle]) -> Result<Handle, Status> {
        let pointers: Vec<*const c_void> =
            self.parameters.iter().map(|it| std::ptr::from_ref(it).cast()).collect();
        let node = KernelNodeParameters {
            function: self.function,
            grid: self.grid,
            block: self.block,
            shared_bytes: self.shared_bytes,
            parameters: pointers.as_ptr(),
            extra: std::ptr::null(),
            kernel: Handle::NULL,
            context: Handle::NULL,
        };
        // SAFETY: as in `launch`; the array of dependencies is as long as is said.
        get(|out| unsafe { cuGraphAddKernelNode_v2(out, graph, after.as_ptr(), after.len(), &node) })
    }
}
