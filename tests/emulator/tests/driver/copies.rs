//! Copies, fills, and what a program may expect of them before and after it synchronizes.

use qwen2c_emulator::driver::*;

use crate::calls::{Device, Pinned, done, get};
use crate::process::alone;

const OLD: [u32; 2] = [0xaaaa_0001, 0xaaaa_0002];
const NEW: [u32; 2] = [0xbbbb_0003, 0xbbbb_0004];

#[test]
fn bytes_reach_the_host_when_it_synchronizes() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let address = device.upload(&NEW);
        let other = get(|out| cuStreamCreate(out, 1)).unwrap();
        let (mut old, mut poisoned) = (0, 0);
        for _ in 0..32 {
            let staging = Pinned::of(&OLD);
            done(cuMemcpyDtoHAsync_v2(staging.pointer, address, 8, device.stream));
            // Neither another stream nor freeing memory of the device is the host's synchronization.
            done(cuStreamSynchronize(other));
            done(cuMemFree_v2(get(|out| cuMemAlloc_v2(out, 4)).unwrap()));
            let seen = staging.numbers();
            assert_ne!(seen, NEW);
            if seen == OLD {
                old += 1
            } else {
                poisoned += 1
            }
            device.synchronize();
            assert_eq!(staging.numbers(), NEW);
            staging.free();
        }
        assert!(old > 0 && poisoned > 0, "{old} old, {poisoned} poisoned");
        done(cuStreamDestroy_v2(other));
        done(cuMemFree_v2(address));
        device.close();
    });
    let Some(outcome) = outcome else { return };
    outcome.clean();
    assert_eq!(outcome.report["bytes_to_host"], 32 * 8);
    assert_eq!(outcome.report["bytes_to_device"], 8);
}

#[test]
fn a_staging_buffer_is_not_written_before_its_copy_is_done() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let address = get(|out| cuMemAlloc_v2(out, 8)).unwrap();
        let staging = Pinned::of(&OLD);
        done(cuMemcpyHtoDAsync_v2(address, staging.pointer, 8, device.stream));
        staging.write(&NEW[..1]);
        assert_eq!(cuStreamSynchronize(device.stream), Status::LAUNCH_FAILED);
        assert_eq!(cuStreamSynchronize(device.stream), Status::LAUNCH_FAILED, "the error sticks");
        assert_eq!(cuMemFree_v2(address), Status::LAUNCH_FAILED);
        done(cuDevicePrimaryCtxRelease_v2(0));
    });
    let Some(outcome) = outcome else { return };
    outcome.at_fault("cuMemcpyHtoDAsync_v2", "the program changed the 8 bytes");
}

#[test]
fn a_buffer_is_not_written_before_the_copy_into_it_is_done() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let address = device.upload(&NEW);
        let staging = Pinned::of(&OLD);
        done(cuMemcpyDtoHAsync_v2(staging.pointer, address, 8, device.stream));
        staging.write(&[5]);
        assert_eq!(cuStreamSynchronize(device.stream), Status::LAUNCH_FAILED);
    });
    let Some(outcome) = outcome else { return };
    outcome.at_fault("cuMemcpyDtoHAsync_v2", "the program wrote to the 8 bytes");
}

#[test]
fn a_buffer_that_a_copy_fills_may_be_copied_on() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let (from, to) = (device.upload(&NEW), device.upload(&OLD));
        let staging = Pinned::of(&OLD);
        done(cuMemcpyDtoHAsync_v2(staging.pointer, from, 8, device.stream));
        done(cuMemcpyHtoDAsync_v2(to, staging.pointer, 8, device.stream));
        device.synchronize();
        assert_eq!(device.download(to, 2), NEW);
        staging.free();
        done(cuMemFree_v2(from));
        done(cuMemFree_v2(to));
        device.close();
    });
    if let Some(outcome) = outcome {
        outcome.clean();
    }
}

#[test]
fn pageable_memory_is_a_fault() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let address = device.upload(&NEW);
        let mut pageable = OLD;
        let pointer = pageable.as_mut_ptr().cast();
        assert_eq!(cuMemcpyHtoDAsync_v2(address, pointer, 8, device.stream), Status::INVALID_VALUE);
        assert_eq!(device.download(address, 2), NEW);
        done(cuMemFree_v2(address));
        device.close();
    });
    let Some(outcome) = outcome else { return };
    outcome.at_fault("cuMemcpyHtoDAsync_v2", "are pageable");
}

#[test]
fn a_copy_beyond_pinned_memory_is_a_fault() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let address = device.upload(&NEW);
        let staging = Pinned::new(7);
        let status = cuMemcpyDtoHAsync_v2(staging.pointer, address, 8, device.stream);
        assert_eq!(status, Status::INVALID_VALUE);
    });
    let Some(outcome) = outcome else { return };
    outcome.at_fault("cuMemcpyDtoHAsync_v2", "are pageable");
}

#[test]
fn copies_lie_within_allocations() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let address = device.upload(&NEW);
        let staging = Pinned::of(&[0; 4]);
        let (host, stream) = (staging.pointer, device.stream);
        assert_eq!(cuMemcpyHtoDAsync_v2(address + 4, host, 8, stream), Status::INVALID_VALUE);
        assert_eq!(cuMemcpyDtoHAsync_v2(host, address, 12, stream), Status::INVALID_VALUE);
        assert_eq!(cuMemcpyDtoHAsync_v2(host, 0x1000, 4, stream), Status::INVALID_VALUE);
        assert_eq!(cuMemsetD8Async(address, 0, 9, stream), Status::INVALID_VALUE);
        done(cuMemsetD8Async(address + 8, 0, 0, stream));
        staging.free();
        done(cuMemFree_v2(address));
        device.close();
    });
    let Some(outcome) = outcome else { return };
    let why = "do not lie in one allocation";
    outcome.refused("cuMemcpyHtoDAsync_v2", "CUDA_ERROR_INVALID_VALUE", why);
    outcome.refused("cuMemsetD8Async", "CUDA_ERROR_INVALID_VALUE", why);
}

#[test]
fn bytes_that_nobody_wrote_are_not_copied_to_the_host() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let address = get(|out| cuMemAlloc_v2(out, 64)).unwrap();
        let staging = Pinned::new(64);
        done(cuMemsetD8Async(address, 3, 63, device.stream));
        done(cuMemcpyDtoHAsync_v2(staging.pointer, address, 63, device.stream));
        device.synchronize();
        done(cuMemcpyDtoHAsync_v2(staging.pointer, address, 64, device.stream));
        assert_eq!(cuStreamSynchronize(device.stream), Status::LAUNCH_FAILED);
    });
    let Some(outcome) = outcome else { return };
    outcome.at_fault("cuMemcpyDtoHAsync_v2", "never written");
    assert_eq!(outcome.report["bytes_filled"], 63);
}

#[test]
fn streams_without_order_do_not_share_host_memory() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let other = get(|out| cuStreamCreate(out, 0)).unwrap();
        let address = device.upload(&NEW);
        let staging = Pinned::of(&OLD);
        let host = staging.pointer;
        // Two that only read are no rivals, and neither are two that the host orders.
        done(cuMemcpyHtoDAsync_v2(address, host, 8, device.stream));
        done(cuMemcpyHtoDAsync_v2(address, host, 8, other));
        device.synchronize();
        done(cuStreamSynchronize(other));
        done(cuMemcpyDtoHAsync_v2(host, address, 8, device.stream));
        assert_eq!(cuMemcpyHtoDAsync_v2(address, host, 8, other), Status::INVALID_VALUE);
    });
    let Some(outcome) = outcome else { return };
    outcome.at_fault("cuMemcpyHtoDAsync_v2", "which nothing orders before stream");
}

#[test]
fn the_default_stream_orders_blocking_streams() {
    for seed in ["0", "1", "2", "3"] {
        let outcome = alone(&[("QWEN2C_EMULATOR_SEED", seed)], || {
            let device = Device::open();
            let address = device.upload(&OLD);
            let streams = [0, 0].map(|flags| get(|out| cuStreamCreate(out, flags)).unwrap());
            let staging = Pinned::new(8);
            done(cuMemsetD8Async(address, 1, 8, streams[0]));
            done(cuMemsetD8Async(address, 2, 4, Handle::NULL));
            done(cuMemcpyDtoHAsync_v2(staging.pointer, address, 8, streams[1]));
            done(cuStreamSynchronize(streams[1]));
            assert_eq!(staging.numbers(), [0x0202_0202, 0x0101_0101]);
            done(cuMemsetD8Async(address, 3, 8, streams[1]));
            done(cuMemcpyDtoHAsync_v2(staging.pointer, address, 8, Handle::NULL));
            done(cuStreamSynchronize(Handle::NULL));
            assert_eq!(staging.numbers(), [0x0303_0303; 2]);
            staging.free();
            done(cuMemFree_v2(address));
            for stream in streams {
                done(cuStreamDestroy_v2(stream));
            }
            device.close();
        });
        match outcome {
            Some(outcome) => outcome.clean(),
            None => return,
        }
    }
}

#[test]
fn streams_without_order_run_in_orders_of_the_seed() {
    let mut orders = std::collections::BTreeSet::new();
    for seed in ["0", "1", "2", "3", "4", "5", "6", "7"] {
        let outcome = alone(&[("QWEN2C_EMULATOR_SEED", seed)], || {
            let device = Device::open();
            let address = device.upload(&OLD);
            let streams = [1, 1].map(|flags| get(|out| cuStreamCreate(out, flags)).unwrap());
            done(cuMemsetD8Async(address, 1, 8, streams[0]));
            done(cuMemsetD8Async(address, 2, 8, streams[1]));
            done(cuStreamSynchronize(streams[0]));
            done(cuStreamSynchronize(streams[1]));
            eprintln!("order {}", device.download(address, 1)[0] & 0xff);
        });
        let Some(outcome) = outcome else { return };
        let line = outcome.said.lines().find(|line| line.starts_with("order ")).unwrap().to_owned();
        orders.insert(line);
    }
    assert_eq!(orders.len(), 2, "{orders:?}");
}
