//! Events and their times.

use qwen2c_emulator::driver::*;

use crate::calls::{Device, Kernel, Pinned, done, function, get, load};
use crate::kernels::KERNELS;
use crate::process::alone;

#[test]
fn times_grow_with_the_work_between() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let module = load(KERNELS).unwrap();
        let memory = get(|out| cuMemAlloc_v2(out, 1 << 20)).unwrap();
        let events = [(); 3].map(|()| get(|out| cuEventCreate(out, 0)).unwrap());
        let elapsed = |from: usize, to: usize| get(|out| cuEventElapsedTime(out, events[from], events[to]));
        done(cuMemsetD8Async(memory, 1, 1 << 20, device.stream));
        done(cuEventRecord(events[0], device.stream));
        let add = Kernel::new(function(module, "add").unwrap(), 32, &[memory, memory, 5]);
        done(add.launch(device.stream));
        done(cuEventRecord(events[1], device.stream));
        for _ in 0..9 {
            done(add.launch(device.stream));
        }
        done(cuEventRecord(events[2], device.stream));
        assert_eq!(elapsed(0, 1), Err(Status::NOT_READY));
        device.synchronize();
        let (one, nine) = (elapsed(0, 1).unwrap(), elapsed(1, 2).unwrap());
        assert!((0.0015..0.003).contains(&one), "{one} ms");
        assert!((nine - 9.0 * one).abs() < 1e-4, "{one} and {nine} ms");
        assert!((elapsed(0, 2).unwrap() - one - nine).abs() < 1e-4);
        assert_eq!(elapsed(1, 0).unwrap(), -one);
        for event in events {
            done(cuEventDestroy_v2(event));
        }
        done(cuMemFree_v2(memory));
        done(cuModuleUnload(module));
        device.close();
    });
    let Some(outcome) = outcome else { return };
    outcome.refused("cuEventElapsedTime", "CUDA_ERROR_NOT_READY", "not synchronized with");
}

#[test]
fn an_event_lets_the_host_see_what_came_before_it() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let (first, second) = (device.upload(&[1]), device.upload(&[2]));
        let (one, two) = (Pinned::of(&[0]), Pinned::of(&[0]));
        let event = get(|out| cuEventCreate(out, 2)).unwrap();
        done(cuEventSynchronize(event));
        done(cuMemcpyDtoHAsync_v2(one.pointer, first, 4, device.stream));
        done(cuEventRecord(event, device.stream));
        done(cuMemcpyDtoHAsync_v2(two.pointer, second, 4, device.stream));
        done(cuEventSynchronize(event));
        assert_eq!(one.numbers(), [1]);
        assert_ne!(two.numbers(), [2]);
        device.synchronize();
        assert_eq!(two.numbers(), [2]);
        one.free();
        two.free();
        // It has no time, and one that was never recorded has none either.
        let timed = get(|out| cuEventCreate(out, 1)).unwrap();
        assert_eq!(get(|out| cuEventElapsedTime(out, event, timed)), Err(Status::INVALID_HANDLE));
        assert_eq!(get(|out| cuEventElapsedTime(out, timed, timed)), Err(Status::INVALID_HANDLE));
        assert_eq!(get(|out| cuEventCreate(out, 4)), Err(Status::INVALID_VALUE));
        assert_eq!(cuEventRecord(event, timed), Status::INVALID_HANDLE);
        done(cuEventDestroy_v2(event));
        assert_eq!(cuEventSynchronize(event), Status::INVALID_HANDLE);
        done(cuEventDestroy_v2(timed));
        done(cuMemFree_v2(first));
        done(cuMemFree_v2(second));
        device.close();
    });
    let Some(outcome) = outcome else { return };
    outcome.refused("cuEventElapsedTime", "CUDA_ERROR_INVALID_HANDLE", "created without timing");
    outcome.refused("cuEventElapsedTime", "CUDA_ERROR_INVALID_HANDLE", "never recorded");
    assert!(outcome.report["leaks"].as_object().unwrap().values().all(|count| *count == 0));
}

#[test]
fn what_the_host_did_not_wait_for_it_does_not_know() {
    let outcome = alone(&[], || {
        let device = Device::open();
        let events = [(); 2].map(|()| get(|out| cuEventCreate(out, 0)).unwrap());
        let elapsed = || get(|out| cuEventElapsedTime(out, events[0], events[1]));
        for event in events {
            done(cuEventRecord(event, device.stream));
        }
        // Freeing memory does all work, but is no promise about events.
        done(cuMemFree_v2(get(|out| cuMemAlloc_v2(out, 4)).unwrap()));
        assert_eq!(elapsed(), Err(Status::NOT_READY));
        done(cuEventSynchronize(events[0]));
        assert_eq!(elapsed(), Err(Status::NOT_READY), "the second is behind the first");
        done(cuEventSynchronize(events[1]));
        assert_eq!(elapsed(), Ok(0.0));
        // Recorded anew, an event is again not known.
        done(cuEventRecord(events[0], device.stream));
        assert_eq!(elapsed(), Err(Status::NOT_READY));
    });
    let Some(outcome) = outcome else { return };
    assert_eq!(outcome.report["refusals"].as_array().unwrap().len(), 3);
}
