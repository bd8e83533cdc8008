//! Launches of kernels: what hardware refuses is refused at the call, the rest runs when its stream comes to it.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use crate::{Counts, Entry, Fault, LaunchShape, Module, Schedule};

use super::context::Context;
use super::device::{BLOCK_EXTENTS, GRID_EXTENTS, THREADS_PER_BLOCK};
use super::errors::{Answer, Refusal, Status};
use super::foreign::values_behind;
use super::handles::Handle;
use super::models::SHARED_BYTES_WITHOUT_CONSENT;
use super::queue::Task;
use super::serve::{self, Shared};

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED_SIZE_BYTES: u32 = 8;
/// `CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT`, a hint.
const PREFERRED_SHARED_MEMORY_CARVEOUT: u32 = 9;

/// What a launch costs before its first block runs.
const LAUNCH_NS: f64 = 1_500.0;

/// A kernel that is ready to run, with parameters of its own.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) module: Handle,
    image: Arc<Module>,
    kernel: String,
    shape: LaunchShape,
    parameters: Vec<u8>,
}

/// The arguments of a launch as they come.
pub(super) struct Wanted {
    pub(super) function: Handle,
    pub(super) shape: LaunchShape,
    pub(super) parameters: *const *const c_void,
    pub(super) extra: *const *const c_void,
}

/// Refuses shapes that no device takes, or not this kernel.
fn must_fit(entry: &Entry, shape: &LaunchShape, most_dynamic_shared_bytes: u32) -> Answer {
    let kernel = entry.name();
    let within = |extents: [u32; 3], most: [u32; 3]| {
        extents.iter().zip(most).all(|(extent, most)| (1..=most).contains(extent))
    };
    if !within(shape.grid, GRID_EXTENTS) {
        let why = format!("`{kernel}`: the grid is {:?}, but must lie within {GRID_EXTENTS:?}", shape.grid);
        return Err(Refusal::invalid_value(why));
    }
    let threads = shape.block.iter().fold(1u32, |product, extent| product.saturating_mul(*extent));
    if !within(shape.block, BLOCK_EXTENTS) || threads > THREADS_PER_BLOCK {
        let why = format!(
            "`{kernel}`: the block is {:?}, but must lie within {BLOCK_EXTENTS:?} and {THREADS_PER_BLOCK} threads",
            shape.block
        );
        return Err(Refusal::invalid_value(why));
    }
    if let Some(most) = entry.maximum_threads().filter(|most| threads > *most) {
        let why = format!("`{kernel}`: {threads} threads are launched, but .maxntid allows {most}");
        return Err(Refusal::invalid_value(why));
    }
    if let Some(required) = entry.required_threads().filter(|required| threads != *required) {
        let why = format!("`{kernel}`: {threads} threads are launched, but .reqntid demands {required}");
        return Err(Refusal::invalid_value(why));
    }
    if shape.shared_bytes > most_dynamic_shared_bytes {
        let why = format!(
            "`{kernel}`: {} bytes of dynamic shared memory are launched, but {most_dynamic_shared_bytes} are \
             allowed beside {} static ones; cuFuncSetAttribute allows more",
            shape.shared_bytes,
            entry.static_shared_bytes()
        );
        return Err(Refusal::invalid_value(why));
    }
    Ok(())
}

/// Checks a launch and copies its parameters.
///
/// # Safety
///
/// `wanted.parameters` is null or an array of pointers, one for each parameter of the kernel, each null or to as
/// many bytes as the kernel declares.
pub(super) unsafe fn prepare(context: &Context, wanted: &Wanted) -> Result<Launch, Refusal> {
    let function = context.functions.get(wanted.function)?;
    let entry = function.entry();
    must_fit(entry, &wanted.shape, function.most_dynamic_shared_bytes)?;
    if !wanted.extra.is_null() {
        let why = "parameters in a buffer (`extra`) are not emulated, only `kernelParams`";
        return Err(Refusal::new(Status::NOT_SUPPORTED, why));
    }
    let sizes: Vec<usize> =
        entry.parameters().iter().map(|parameter| parameter.size_bytes as usize).collect();
    // SAFETY: the caller vouches for it.
    let values = unsafe { values_behind(wanted.parameters, &sizes, "kernelParams") }?;
    let mut parameters = vec![0; entry.parameter_bytes() as usize];
    for (parameter, value) in entry.parameters().iter().zip(values) {
        let offset = parameter.offset_bytes as usize;
        parameters[offset..offset + value.len()].copy_from_slice(&value);
    }
    Ok(Launch {
        module: function.module,
        image: Arc::clone(&function.image),
        kernel: function.name.clone(),
        shape: wanted.shape,
        parameters,
    })
}

/// What the driver makes of a fault.
fn status_of(fault: &Fault) -> Status {
    // Accesses outside of all allocations and misaligned ones have errors of their own on hardware; what
    // hardware does not notice at all (races, uninitialised bytes) becomes the general one.
    let what = fault.what.to_lowercase();
    if what.contains("misaligned") || what.contains("not aligned") {
        Status::MISALIGNED_ADDRESS
    } else if what.contains("allocation") || what.contains("outside") {
        Status::ILLEGAL_ADDRESS
    } else {
        Status::LAUNCH_FAILED
    }
}

impl Context {
    /// Runs a kernel to its end.
    pub(super) fn run_kernel(&mut self, shared: &mut Shared, launch: &Launch) -> Answer {
        if shared.settings.lose_device_after.is_some_and(|most| shared.kernels_run >= most) {
            shared.is_lost = true;
            let why =
                format!("the device is lost after {} kernels, as the environment asks", shared.kernels_run);
            return Err(Refusal::new(Status::DEVICE_UNAVAILABLE, why));
        }
        shared.kernels_run += 1;
        let entry =
            launch.image.entry(&launch.kernel).expect("the entry was found when the function was made");
        let schedule = Schedule { seed: shared.draw() };
        match crate::launch(entry, &launch.shape, &launch.parameters, &mut self.memory, schedule) {
            Ok(counts) => {
                shared.report.count(&launch.kernel, &counts);
                self.clock_ns += kernel_takes_ns(&counts, shared.settings.model.memory_bytes_per_second());
                Ok(())
            }
            Err(fault) => {
                shared.report.kernel_fault(&fault);
                Err(Refusal::silent(status_of(&fault)))
            }
        }
    }
}

/// Nanoseconds of a kernel that does nothing but move its bytes, in sectors of 32.
fn kernel_takes_ns(counts: &Counts, bytes_per_second: f64) -> f64 {
    let sectors = counts.global_load_transactions + counts.global_store_transactions;
    LAUNCH_NS + sectors as f64 * 32.0 / bytes_per_second * 1e9
}

/// `cuFuncSetAttribute`: consent to more dynamic shared memory than every kernel gets.
#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(function: Handle, attribute: u32, value: c_int) -> Status {
    serve::in_context("cuFuncSetAttribute", |context, shared| {
        let most_bytes = shared.settings.model.shared_bytes_per_block_with_consent;
        let function = context.functions.get_mut(function)?;
        let static_bytes = function.entry().static_shared_bytes();
        match (attribute, u32::try_from(value)) {
            (MAX_DYNAMIC_SHARED_SIZE_BYTES, Ok(bytes))
                if bytes.saturating_add(static_bytes) <= most_bytes =>
            {
                function.most_dynamic_shared_bytes = bytes;
                Ok(())
            }
            (MAX_DYNAMIC_SHARED_SIZE_BYTES, _) => Err(Refusal::invalid_value(format!(
                "`{}`: {value} bytes of dynamic and {static_bytes} of static shared memory are wanted; the most \
                 together is {most_bytes}",
                function.name
            ))),
            (PREFERRED_SHARED_MEMORY_CARVEOUT, _) if (-1..=100).contains(&value) => Ok(()),
            _ => {
                Err(Refusal::invalid_value(format!("function attribute {attribute} = {value} cannot be set")))
            }
        }
    })
}

/// Dynamic shared memory that a kernel with so much of its own may use without asking.
pub(super) fn dynamic_shared_bytes_without_consent(static_bytes: u32) -> u32 {
    SHARED_BYTES_WITHOUT_CONSENT.saturating_sub(static_bytes)
}

/// `cuLaunchKernel`: hands a kernel to a stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared_bytes: u32,
    stream: Handle,
    parameters: *const *const c_void,
    extra: *const *const c_void,
) -> Status {
    serve::in_context("cuLaunchKernel", |context, shared| {
        context.stream(stream)?;
        let shape =
            LaunchShape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared_bytes };
        // SAFETY: cuda.h asks the program for what `prepare` needs.
        let launch = unsafe { prepare(context, &Wanted { function, shape, parameters, extra }) }?;
        context.issue(stream, Task::Kernel(Arc::new(launch)))?;
        shared.report.launches += 1;
        Ok(())
    })
}
