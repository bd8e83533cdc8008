//! The part of CUDA's driver interface that programs use: types, constants and signatures as `cuda.h` has
//! them, and the table of functions that are looked up by name.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// `CUresult`; 0 is success.
pub(crate) type Status = c_int;
/// `CUdevice`.
pub(crate) type DeviceHandle = c_int;
/// `CUdeviceptr`.
pub(crate) type DeviceAddress = u64;
/// `CUcontext`, `CUmodule`, `CUstream` and the like: pointers to what only the driver knows.
pub(crate) type Handle = *mut c_void;

pub(crate) const SUCCESS: Status = 0;
pub(crate) const ERROR_OUT_OF_MEMORY: Status = 2;
pub(crate) const ERROR_NO_DEVICE: Status = 100;

/// `CU_DEVICE_ATTRIBUTE_CLOCK_RATE`, kHz.
pub(crate) const ATTRIBUTE_CLOCK_KHZ: c_int = 13;
/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
pub(crate) const ATTRIBUTE_MULTIPROCESSORS: c_int = 16;
/// `CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE`, kHz.
pub(crate) const ATTRIBUTE_MEMORY_CLOCK_KHZ: c_int = 36;
/// `CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH`, bits.
pub(crate) const ATTRIBUTE_MEMORY_BUS_BITS: c_int = 37;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`.
pub(crate) const ATTRIBUTE_CAPABILITY_MAJOR: c_int = 75;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR`.
pub(crate) const ATTRIBUTE_CAPABILITY_MINOR: c_int = 76;
/// `CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH`.
pub(crate) const ATTRIBUTE_COOPERATIVE_LAUNCH: c_int = 95;
/// `CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN`, bytes.
pub(crate) const ATTRIBUTE_SHARED_BYTES_OF_A_BLOCK: c_int = 97;

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
pub(crate) const FUNCTION_DYNAMIC_SHARED_BYTES: c_int = 8;

/// `CU_JIT_ERROR_LOG_BUFFER`.
pub(crate) const JIT_ERROR_LOG: c_uint = 5;
/// `CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES`.
pub(crate) const JIT_ERROR_LOG_BYTES: c_uint = 6;

/// `CU_STREAM_NON_BLOCKING`.
pub(crate) const STREAM_NON_BLOCKING: c_uint = 1;

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[repr(C)]
pub(crate) struct KernelNode {
    pub(crate) function: Handle,
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared_bytes: c_uint,
    pub(crate) parameters: *mut *mut c_void,
    pub(crate) extra: *mut *mut c_void,
    pub(crate) kernel: Handle,
    pub(crate) context: Handle,
}

/// Declares the table, and how it is filled: one line for each function.
macro_rules! functions {
    ($($field:ident = $name:literal ($($argument:ty),*);)*) => {
        /// Functions of the driver. Tests fill it with their own.
        #[derive(Clone, Copy)]
        pub(crate) struct Functions {
            $(pub(crate) $field: unsafe extern "C" fn($($argument),*) -> Status,)*
        }

        impl Functions {
            /// Looks every function up by name; where one is missing, its name is the error.
            ///
            /// # Safety
            ///
            /// An address that `find` gives for a name is that of CUDA's function of this name.
            pub(crate) unsafe fn find(
                find: impl Fn(&CStr) -> Option<*mut c_void>,
            ) -> Result<Self, &'static CStr> {
                Ok(Self {
                    $($field: {
                        let address = find($name).ok_or($name)?;
                        // SAFETY: the signature is the one that `cuda.h` gives the function, which the
                        // address belongs to by this function's contract; it is not null.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> Status>(
                                address,
                            )
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    initialize = c"cuInit" (c_uint);
    driver_version = c"cuDriverGetVersion" (*mut c_int);
    device_count = c"cuDeviceGetCount" (*mut c_int);
    device = c"cuDeviceGet" (*mut DeviceHandle, c_int);
    device_name = c"cuDeviceGetName" (*mut c_char, c_int, DeviceHandle);
    device_attribute = c"cuDeviceGetAttribute" (*mut c_int, c_int, DeviceHandle);
    device_memory = c"cuDeviceTotalMem_v2" (*mut usize, DeviceHandle);
    context_retain = c"cuDevicePrimaryCtxRetain" (*mut Handle, DeviceHandle);
    context_release = c"cuDevicePrimaryCtxRelease_v2" (DeviceHandle);
    context_set_current = c"cuCtxSetCurrent" (Handle);
    memory_info = c"cuMemGetInfo_v2" (*mut usize, *mut usize);
    memory_allocate = c"cuMemAlloc_v2" (*mut DeviceAddress, usize);
    memory_free = c"cuMemFree_v2" (DeviceAddress);
    host_allocate = c"cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
    host_free = c"cuMemFreeHost" (*mut c_void);
    copy_to_device = c"cuMemcpyHtoDAsync_v2" (DeviceAddress, *const c_void, usize, Handle);
    copy_to_host = c"cuMemcpyDtoHAsync_v2" (*mut c_void, DeviceAddress, usize, Handle);
    fill = c"cuMemsetD8Async" (DeviceAddress, u8, usize, Handle);
    stream_create = c"cuStreamCreate" (*mut Handle, c_uint);
    stream_synchronize = c"cuStreamSynchronize" (Handle);
    stream_destroy = c"cuStreamDestroy_v2" (Handle);
    module_load = c"cuModuleLoadDataEx" (*mut Handle, *const c_void, c_uint, *mut c_uint, *mut *mut c_void);
    module_unload = c"cuModuleUnload" (Handle);
    module_function = c"cuModuleGetFunction" (*mut Handle, Handle, *const c_char);
    function_set_attribute = c"cuFuncSetAttribute" (Handle, c_int, c_int);
    launch = c"cuLaunchKernel" (
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle,
        *mut *mut c_void, *mut *mut c_void
    );
    launch_together = c"cuLaunchCooperativeKernel" (
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void
    );
    blocks_at_once = c"cuOccupancyMaxActiveBlocksPerMultiprocessor" (*mut c_int, Handle, c_int, usize);
    graph_create = c"cuGraphCreate" (*mut Handle, c_uint);
    graph_add_kernel = c"cuGraphAddKernelNode_v2" (*mut Handle, Handle, *const Handle, usize, *const KernelNode);
    graph_instantiate = c"cuGraphInstantiateWithFlags" (*mut Handle, Handle, u64);
    graph_launch = c"cuGraphLaunch" (Handle, Handle);
    graph_execution_destroy = c"cuGraphExecDestroy" (Handle);
    graph_destroy = c"cuGraphDestroy" (Handle);
    event_create = c"cuEventCreate" (*mut Handle, c_uint);
    event_record = c"cuEventRecord" (Handle, Handle);
    event_synchronize = c"cuEventSynchronize" (Handle);
    event_elapsed = c"cuEventElapsedTime" (*mut f32, Handle, Handle);
    event_destroy = c"cuEventDestroy_v2" (Handle);
    error_name = c"cuGetErrorName" (Status, *mut *const c_char);
    error_text = c"cuGetErrorString" (Status, *mut *const c_char);
}
