//! Launches whose blocks wait for one another, and how many blocks a device holds at the same time.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use crate::{Entry, LaunchShape};

use super::device::THREADS_PER_BLOCK;
use super::errors::{Refusal, Status};
use super::foreign::{Out, required};
use super::handles::Handle;
use super::launch::{Wanted, prepare};
use super::models::Model;
use super::queue::Task;
use super::serve;

/// Threads that are scheduled together.
const WARP_THREADS: u32 = 32;
/// Registers of a multiprocessor, and those that a thread is taken to have: PTX does not say.
const REGISTERS: u32 = 65536;
const REGISTERS_OF_THREAD: u32 = 128;
/// Shared memory that the driver keeps for itself in every block.
const SYSTEM_SHARED_BYTES_OF_BLOCK: u32 = 1024;

/// Blocks of a kernel that one multiprocessor holds at the same time.
fn blocks_at_once(model: &Model, entry: &Entry, threads: u32, dynamic_shared_bytes: u32) -> u32 {
    let threads = threads.next_multiple_of(WARP_THREADS).max(WARP_THREADS);
    let shared_bytes = entry.static_shared_bytes() + dynamic_shared_bytes + SYSTEM_SHARED_BYTES_OF_BLOCK;
    (model.threads_per_multiprocessor / threads)
        .min(REGISTERS / (threads * REGISTERS_OF_THREAD))
        .min(model.shared_bytes_per_multiprocessor / shared_bytes)
        .min(model.blocks_per_multiprocessor)
}

/// `cuLaunchCooperativeKernel`: hands a kernel to a stream whose blocks may wait for one another, unless they are
/// more than the device holds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchCooperativeKernel(
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
) -> Status {
    serve::in_context("cuLaunchCooperativeKernel", |context, shared| {
        context.stream(stream)?;
        let shape =
            LaunchShape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared_bytes };
        let wanted = Wanted { function, shape, parameters, extra: std::ptr::null() };
        // SAFETY: cuda.h asks the program for what `prepare` needs.
        let launch = unsafe { prepare(context, &wanted) }?;
        let entry = context.functions.get(function)?.entry();
        let model = shared.settings.model;
        let threads = block_x * block_y * block_z;
        let most = blocks_at_once(model, entry, threads, shared_bytes) * model.multiprocessors;
        let blocks = [grid_x, grid_y, grid_z].map(u64::from).iter().product::<u64>();
        if blocks > u64::from(most) {
            let why = format!("`{}`: {blocks} blocks, but the device holds {most}", entry.name());
            return Err(Refusal::new(Status::COOPERATIVE_LAUNCH_TOO_LARGE, why));
        }
        context.issue(stream, Task::Kernel(Arc::new(launch)))?;
        shared.report.launches += 1;
        Ok(())
    })
}

/// `cuOccupancyMaxActiveBlocksPerMultiprocessor`: blocks of a kernel that a multiprocessor holds.
#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: Out<'_, c_int>,
    function: Handle,
    threads: c_int,
    dynamic_shared_bytes: usize,
) -> Status {
    serve::in_context("cuOccupancyMaxActiveBlocksPerMultiprocessor", |context, shared| {
        let place = required(blocks, "numBlocks")?;
        let entry = context.functions.get(function)?.entry();
        let threads = u32::try_from(threads).ok().filter(|threads| (1..=THREADS_PER_BLOCK).contains(threads));
        let Some(threads) = threads else {
            return Err(Refusal::invalid_value(format!("`{}`: a block has 1 to 1024 threads", entry.name())));
        };
        let shared_bytes = u32::try_from(dynamic_shared_bytes).unwrap_or(u32::MAX / 2);
        place.write(blocks_at_once(shared.settings.model, entry, threads, shared_bytes) as c_int);
        Ok(())
    })
}
