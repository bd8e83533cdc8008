//! The functions of the driver for tests, as `cuda.h` has them.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::together::{blocks_at_once, launch_together};
use super::{Fake, FakeLaunch, INVALID, OPERANDS, Work, copy, with};
use crate::cuda::driver::functions::{
    self as cuda, DeviceAddress, Functions, Handle, KernelNode, SUCCESS, Status,
};
use crate::testing::ROWS_PER_BLOCK;

pub(super) fn put<T>(place: *mut T, value: T) {
    // SAFETY: callers of the driver give places for what it answers.
    unsafe { place.write(value) };
}

/// Notes a call and answers it, unless it is to fail.
pub(super) fn answer(name: &'static str, answer: impl FnOnce(&mut Fake) -> Status) -> Status {
    with(|fake| {
        fake.calls.push(name);
        match fake.failing {
            Some((failing, after, status)) if failing == name && fake.count(name) > after => {
                // What is lost does nothing any more.
                fake.stream.clear();
                status
            }
            _ => answer(fake),
        }
    })
}

fn make(name: &'static str, kind: &'static str, place: *mut Handle) -> Status {
    answer(name, |fake| {
        put(place, fake.make(kind) as Handle);
        SUCCESS
    })
}

fn destroy(name: &'static str, kind: &'static str, handle: Handle) -> Status {
    answer(name, |fake| fake.destroy(kind, handle as usize))
}

fn launch_of(function: Handle, down: c_uint, parameters: *mut *mut c_void) -> FakeLaunch {
    // SAFETY: callers give the addresses of three operands and of the rows.
    let (operands, rows) = unsafe {
        let operands = std::array::from_fn(|index| parameters.add(index).read().cast::<u64>().read());
        (operands, parameters.add(OPERANDS).read().cast::<u32>().read())
    };
    FakeLaunch { kernel: function as usize - 1, rows_of_blocks: down * ROWS_PER_BLOCK, operands, rows }
}

extern "C" fn initialize(_flags: c_uint) -> Status {
    answer("cuInit", |fake| if fake.devices.is_empty() { cuda::ERROR_NO_DEVICE } else { SUCCESS })
}

extern "C" fn driver_version(version: *mut c_int) -> Status {
    answer("cuDriverGetVersion", |fake| {
        put(version, fake.version);
        SUCCESS
    })
}

extern "C" fn device_count(count: *mut c_int) -> Status {
    answer("cuDeviceGetCount", |fake| {
        put(count, fake.devices.len() as c_int);
        SUCCESS
    })
}

extern "C" fn device(device: *mut c_int, number: c_int) -> Status {
    answer("cuDeviceGet", |_| {
        put(device, number);
        SUCCESS
    })
}

extern "C" fn device_name(name: *mut c_char, bytes: c_int, device: c_int) -> Status {
    answer("cuDeviceGetName", |fake| {
        let text = fake.devices[device as usize].name.to_bytes_with_nul();
        assert!(text.len() <= bytes as usize);
        copy(name as usize, text.as_ptr() as usize, text.len());
        SUCCESS
    })
}

extern "C" fn device_attribute(value: *mut c_int, attribute: c_int, device: c_int) -> Status {
    answer("cuDeviceGetAttribute", |fake| {
        let (major, minor) = fake.devices[device as usize].capability;
        let found = match attribute {
            cuda::ATTRIBUTE_CAPABILITY_MAJOR => major,
            cuda::ATTRIBUTE_CAPABILITY_MINOR => minor,
            cuda::ATTRIBUTE_SHARED_BYTES_OF_A_BLOCK => 166_912,
            cuda::ATTRIBUTE_MULTIPROCESSORS => 108,
            cuda::ATTRIBUTE_COOPERATIVE_LAUNCH => c_int::from(fake.together.1),
            cuda::ATTRIBUTE_CLOCK_KHZ => 1_410_000,
            cuda::ATTRIBUTE_MEMORY_CLOCK_KHZ => 1_215_000,
            cuda::ATTRIBUTE_MEMORY_BUS_BITS => 5120,
            _ => return INVALID,
        };
        put(value, found);
        SUCCESS
    })
}

extern "C" fn device_memory(bytes: *mut usize, device: c_int) -> Status {
    answer("cuDeviceTotalMem_v2", |fake| {
        put(bytes, 2 * fake.devices[device as usize].free_bytes);
        SUCCESS
    })
}

extern "C" fn context_retain(context: *mut Handle, _device: c_int) -> Status {
    answer("cuDevicePrimaryCtxRetain", |fake| {
        fake.alive.insert(("context", 1));
        put(context, 1 as Handle);
        SUCCESS
    })
}

extern "C" fn context_release(_device: c_int) -> Status {
    answer("cuDevicePrimaryCtxRelease_v2", |fake| fake.destroy("context", 1))
}

extern "C" fn context_set_current(_context: Handle) -> Status {
    answer("cuCtxSetCurrent", |_| SUCCESS)
}

extern "C" fn memory_info(free: *mut usize, total: *mut usize) -> Status {
    answer("cuMemGetInfo_v2", |fake| {
        let bytes = fake.devices[0].free_bytes;
        put(free, bytes);
        put(total, 2 * bytes);
        SUCCESS
    })
}

extern "C" fn memory_allocate(address: *mut DeviceAddress, bytes: usize) -> Status {
    answer("cuMemAlloc_v2", |fake| {
        put(address, fake.allocate("memory", bytes) as DeviceAddress);
        SUCCESS
    })
}

extern "C" fn memory_free(address: DeviceAddress) -> Status {
    answer("cuMemFree_v2", |fake| {
        fake.work(None);
        fake.memory.remove(&(address as usize));
        fake.destroy("memory", address as usize)
    })
}

extern "C" fn host_allocate(address: *mut *mut c_void, bytes: usize, _flags: c_uint) -> Status {
    answer("cuMemHostAlloc", |fake| {
        put(address, fake.allocate("pinned", bytes) as *mut c_void);
        SUCCESS
    })
}

extern "C" fn host_free(address: *mut c_void) -> Status {
    answer("cuMemFreeHost", |fake| {
        assert!(fake.stream.is_empty(), "memory is freed that copies may use");
        fake.memory.remove(&(address as usize));
        fake.destroy("pinned", address as usize)
    })
}

extern "C" fn copy_to_device(
    to: DeviceAddress,
    from: *const c_void,
    bytes: usize,
    _stream: Handle,
) -> Status {
    answer("cuMemcpyHtoDAsync_v2", |fake| {
        fake.stream.push_back(Work::ToDevice(to, from as usize, bytes));
        SUCCESS
    })
}

extern "C" fn copy_to_host(to: *mut c_void, from: DeviceAddress, bytes: usize, _stream: Handle) -> Status {
    answer("cuMemcpyDtoHAsync_v2", |fake| {
        fake.bytes_to_host += bytes;
        fake.stream.push_back(Work::ToHost(to as usize, from, bytes));
        SUCCESS
    })
}

extern "C" fn fill(address: DeviceAddress, value: u8, bytes: usize, _stream: Handle) -> Status {
    answer("cuMemsetD8Async", |fake| {
        assert_eq!(value, 0);
        fake.stream.push_back(Work::Zero(address, bytes));
        SUCCESS
    })
}

extern "C" fn stream_create(stream: *mut Handle, _flags: c_uint) -> Status {
    make("cuStreamCreate", "stream", stream)
}

extern "C" fn stream_synchronize(_stream: Handle) -> Status {
    answer("cuStreamSynchronize", |fake| {
        fake.work(None);
        SUCCESS
    })
}

extern "C" fn stream_destroy(stream: Handle) -> Status {
    destroy("cuStreamDestroy_v2", "stream", stream)
}

extern "C" fn module_load(
    module: *mut Handle,
    image: *const c_void,
    _options: c_uint,
    _names: *mut c_uint,
    values: *mut *mut c_void,
) -> Status {
    answer("cuModuleLoadDataEx", |fake| {
        // SAFETY: the images of the counting program end with a zero: PTX when it is loaded, its machine code
        // as it is.
        let bytes = unsafe { CStr::from_ptr(image.cast()) }.to_bytes().to_vec();
        if let Some((start, log)) = fake.refused_image
            && bytes.starts_with(start)
        {
            let text = log.to_bytes_with_nul();
            // SAFETY: the first value is the address of the log.
            copy(unsafe { values.read() } as usize, text.as_ptr() as usize, text.len());
            return 218;
        }
        fake.images.push(bytes);
        put(module, fake.make("module") as Handle);
        SUCCESS
    })
}

extern "C" fn module_unload(module: Handle) -> Status {
    destroy("cuModuleUnload", "module", module)
}

extern "C" fn module_function(function: *mut Handle, _module: Handle, name: *const c_char) -> Status {
    answer("cuModuleGetFunction", |_| {
        // SAFETY: callers give a C string.
        let name = unsafe { CStr::from_ptr(name) }.to_bytes();
        let names: [&[u8]; 6] =
            [b"write_cache", b"sum_cache", b"gather", b"logits", b"candidates", b"persistent_decode"];
        match names.iter().position(|known| *known == name) {
            Some(index) => {
                put(function, (index + 1) as Handle);
                SUCCESS
            }
            None => 500,
        }
    })
}

extern "C" fn function_set_attribute(_function: Handle, attribute: c_int, value: c_int) -> Status {
    answer("cuFuncSetAttribute", |_| {
        assert_eq!((attribute, value), (cuda::FUNCTION_DYNAMIC_SHARED_BYTES, 100_000));
        SUCCESS
    })
}

extern "C" fn launch(
    function: Handle,
    across: c_uint,
    down: c_uint,
    deep: c_uint,
    threads: c_uint,
    _: c_uint,
    _: c_uint,
    _shared_bytes: c_uint,
    _stream: Handle,
    parameters: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> Status {
    answer("cuLaunchKernel", |fake| {
        assert_eq!((across, deep, threads), (1, 1, 32));
        fake.stream.push_back(Work::Launch(launch_of(function, down, parameters)));
        SUCCESS
    })
}

extern "C" fn graph_create(graph: *mut Handle, _flags: c_uint) -> Status {
    make("cuGraphCreate", "graph", graph)
}

extern "C" fn graph_add_kernel(
    added: *mut Handle,
    graph: Handle,
    before: *const Handle,
    count: usize,
    node: *const KernelNode,
) -> Status {
    answer("cuGraphAddKernelNode_v2", |fake| {
        let launches = fake.graphs.entry(graph as usize).or_default();
        if launches.is_empty() {
            fake.edges.clear();
        }
        // SAFETY: there are so many handles.
        let waits_for = (0..count).map(|index| unsafe { before.add(index).read() } as usize - 1);
        let waits_for: Vec<usize> = waits_for.collect();
        assert!(waits_for.iter().all(|number| *number < launches.len()));
        fake.edges.push(waits_for);
        // SAFETY: callers give a node.
        let node = unsafe { &*node };
        launches.push(launch_of(node.function, node.grid[1], node.parameters));
        put(added, launches.len() as Handle);
        SUCCESS
    })
}

extern "C" fn graph_instantiate(execution: *mut Handle, graph: Handle, _flags: u64) -> Status {
    answer("cuGraphInstantiateWithFlags", |fake| {
        let launches = fake.graphs.remove(&(graph as usize)).unwrap_or_default();
        let made = fake.make("graph execution");
        fake.graphs.insert(made, launches);
        put(execution, made as Handle);
        SUCCESS
    })
}

extern "C" fn graph_launch(execution: Handle, _stream: Handle) -> Status {
    answer("cuGraphLaunch", |fake| {
        let launches = fake.graphs[&(execution as usize)].clone();
        fake.stream.extend(launches.into_iter().map(Work::Launch));
        SUCCESS
    })
}

extern "C" fn graph_execution_destroy(execution: Handle) -> Status {
    destroy("cuGraphExecDestroy", "graph execution", execution)
}

extern "C" fn graph_destroy(graph: Handle) -> Status {
    destroy("cuGraphDestroy", "graph", graph)
}

extern "C" fn event_create(event: *mut Handle, _flags: c_uint) -> Status {
    make("cuEventCreate", "event", event)
}

extern "C" fn event_record(event: Handle, _stream: Handle) -> Status {
    answer("cuEventRecord", |fake| {
        fake.stream.push_back(Work::Mark(event as usize));
        SUCCESS
    })
}

extern "C" fn event_synchronize(event: Handle) -> Status {
    answer("cuEventSynchronize", |fake| {
        fake.work(Some(event as usize));
        SUCCESS
    })
}

extern "C" fn event_elapsed(milliseconds: *mut f32, _start: Handle, _end: Handle) -> Status {
    answer("cuEventElapsedTime", |fake| {
        assert!(fake.stream.is_empty(), "times are known when the events have passed");
        put(milliseconds, 0.25);
        SUCCESS
    })
}

extern "C" fn event_destroy(event: Handle) -> Status {
    destroy("cuEventDestroy_v2", "event", event)
}

extern "C" fn error_name(status: Status, name: *mut *const c_char) -> Status {
    let known = match status {
        1 => c"CUDA_ERROR_INVALID_VALUE",
        2 => c"CUDA_ERROR_OUT_OF_MEMORY",
        46 => c"CUDA_ERROR_DEVICE_UNAVAILABLE",
        218 => c"CUDA_ERROR_INVALID_PTX",
        500 => c"CUDA_ERROR_NOT_FOUND",
        700 => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        _ => return INVALID,
    };
    put(name, known.as_ptr());
    SUCCESS
}

extern "C" fn error_text(_status: Status, _text: *mut *const c_char) -> Status {
    INVALID
}

pub(super) const FUNCTIONS: Functions = Functions {
    initialize,
    driver_version,
    device_count,
    device,
    device_name,
    device_attribute,
    device_memory,
    context_retain,
    context_release,
    context_set_current,
    memory_info,
    memory_allocate,
    memory_free,
    host_allocate,
    host_free,
    copy_to_device,
    copy_to_host,
    fill,
    stream_create,
    stream_synchronize,
    stream_destroy,
    module_load,
    module_unload,
    module_function,
    function_set_attribute,
    launch,
    launch_together,
    blocks_at_once,
    graph_create,
    graph_add_kernel,
    graph_instantiate,
    graph_launch,
    graph_execution_destroy,
    graph_destroy,
    event_create,
    event_record,
    event_synchronize,
    event_elapsed,
    event_destroy,
    error_name,
    error_text,
};
