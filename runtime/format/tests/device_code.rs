//! Launches and device code: written, read, damaged, and refused where they cannot be right.

use proptest::prelude::*;
use qwen2c_format::{
    DeviceCode, DeviceImage, ImageKind, Launch, Manifest, PersistentKernel, ProgramError, StepLists,
    check_program,
};

#[allow(dead_code)]
mod sample;

use sample::{device_code, device_lists, device_manifest, launch, lists, manifest, read, sample_of, weights};

#[test]
fn what_was_written_is_read() {
    let sample = sample_of(&device_manifest(), &device_lists(), &device_code());
    let program = read(&sample.bytes).expect("the sample is whole");
    assert_eq!(program.manifest, device_manifest());
    assert_eq!(program.lists, device_lists());
    assert_eq!(program.device_code, device_code());
    assert_eq!(read(&sample::sample().bytes).expect("it is whole").device_code, DeviceCode::default());
    assert!(DeviceCode::default().encode().is_empty());
}

#[test]
fn altered_device_code_is_named() {
    let mut sample = sample_of(&device_manifest(), &device_lists(), &device_code());
    let last = sample.locator.header_offset as usize + sample.head_bytes - 1;
    sample.bytes[last] ^= 1;
    assert_eq!(read(&sample.bytes), Err(ProgramError::Altered { section: "device code" }));
}

/// Checks a program whose hashes are right and whose content is not.
fn check(change: impl FnOnce(&mut Manifest, &mut StepLists, &mut DeviceCode), expected: &str) {
    let (mut manifest, mut lists, mut code) = (device_manifest(), device_lists(), device_code());
    change(&mut manifest, &mut lists, &mut code);
    let error = check_program(&manifest, &lists, &weights(), &code).expect_err(expected).to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn launches_that_no_device_takes_are_refused() {
    let with = |change: fn(&mut Launch), expected: &str| {
        check(|_, lists, _| change(&mut lists.kernels[1].launches[1]), expected);
    };
    with(|launch| launch.threads = 0, "kernel `matmul`: `matmul$merge_2` wants 0 threads");
    with(|launch| launch.threads = 33, "wants 33 threads");
    with(|launch| launch.threads = 1056, "wants 1056 threads");
    with(|launch| launch.blocks = 0, "wants 0 blocks of 2 rows");
    with(|launch| launch.blocks = 1 << 31, "blocks");
    with(|launch| launch.rows_per_block = 0, "wants 7 blocks of 0 rows");
    with(|launch| launch.shared_bytes = 232_449, "232449 bytes of shared memory");
    with(|launch| launch.symbol.clear(), "`` is not the name");
    with(|launch| launch.symbol = "a.b".to_owned(), "`a.b` is not the name");
    let rows = |manifest: &mut Manifest, lists: &mut StepLists| {
        manifest.arena_bytes = 1 << 30;
        lists.lists[1].max_rows = 131_071;
    };
    check(|manifest, lists, _| rows(manifest, lists), "`embed` cannot serve 131071 rows in blocks of 2");
    check(|_, lists, _| lists.kernels[0].launches.clear(), "kernel `embed` has 0 launches");
    check(|_, lists, _| lists.kernels[0].launches = vec![launch("a"); 17], "has 17 launches");
    let mut mixed = lists();
    mixed.kernels[1].launches = vec![launch("matmul")];
    let error = check_program(&manifest(), &mixed, &weights(), &DeviceCode::default());
    let error = error.expect_err("a launch on the processor").to_string();
    assert!(error.contains("1 launches in a program of the family `cpu`"), "{error}");
}

#[test]
fn persistent_kernels_that_cannot_serve_their_list_are_refused() {
    let with = |change: fn(&mut PersistentKernel), expected: &str| {
        check(|_, lists, _| change(lists.persistent.as_mut().expect("the sample has one")), expected);
    };
    with(|kernel| kernel.threads = 100, "`persistent_decode` wants 100 threads");
    with(|kernel| kernel.shared_bytes = 232_449, "232449 bytes of shared memory");
    with(|kernel| kernel.symbol.clear(), "`` is not the name");
    with(|kernel| kernel.row_words = 2, "has 2 words for 2 operands");
    with(|kernel| kernel.row_words = 65, "has 65 words for 2 operands");
    check(|_, lists, _| lists.lists[0].max_rows = 2, "no list of one row on a device");
    let mut mixed = lists();
    mixed.persistent = device_lists().persistent;
    let error = check_program(&manifest(), &mixed, &weights(), &DeviceCode::default());
    let error = error.expect_err("a persistent kernel on the processor").to_string();
    assert!(error.contains("no list of one row on a device"), "{error}");
}

#[test]
fn images_that_no_driver_takes_are_refused() {
    check(|_, _, code| code.images.clear(), "0 images without PTX");
    check(|_, _, code| code.images.retain(|image| image.kind == ImageKind::Cubin), "1 images without PTX");
    check(|_, _, code| code.images[1].bytes.clear(), "image 1, cubin of 0 bytes for sm_80");
    check(|_, _, code| code.images[2].bytes[3] = 0, "image 2, PTX of");
    check(|_, _, code| code.images[2].architecture = 80, "image 2, PTX of");
    check(|_, _, code| code.images[0].architecture = 8, "for sm_8");
    check(|manifest, _, _| manifest.family = "opencl".to_owned(), "`opencl` is not a family");
    let error = check_program(&manifest(), &lists(), &weights(), &device_code());
    assert!(error.expect_err("code nobody runs").to_string().contains("3 images with PTX"));
}

#[test]
fn counts_and_tags_that_lie_are_refused() {
    let refused = |change: fn(&mut Vec<u8>), expected: &str| {
        let mut bytes = device_code().encode();
        change(&mut bytes);
        let error = DeviceCode::decode(&bytes).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(|bytes| bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes()), "do not fit");
    refused(|bytes| bytes[8] = 7, "unknown kind of image 7");
    refused(|bytes| bytes[9..13].copy_from_slice(&u32::MAX.to_le_bytes()), "bytes are needed");
    refused(|bytes| bytes.push(0), "1 bytes follow");
    refused(|bytes| *bytes = vec![0; 4], "no images");
}

proptest! {
    #[test]
    fn any_code_is_read_as_it_was_written(
        images in prop::collection::vec(
            (any::<u32>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)),
            0..4,
        ),
    ) {
        let images = images.into_iter().map(|(architecture, is_ptx, bytes)| DeviceImage {
            architecture,
            kind: if is_ptx { ImageKind::Ptx } else { ImageKind::Cubin },
            bytes,
        });
        let code = DeviceCode { images: images.collect() };
        prop_assert_eq!(DeviceCode::decode(&code.encode()), Ok(code));
    }

    #[test]
    fn any_launch_is_read_as_it_was_written(numbers: [u32; 4], symbol in ".{0,20}") {
        let [blocks, rows_per_block, threads, shared_bytes] = numbers;
        let mut lists = device_lists();
        let launch = Launch { symbol, blocks, rows_per_block, threads, shared_bytes };
        lists.kernels[1].launches.push(launch);
        prop_assert_eq!(StepLists::decode(&lists.encode()), Ok(lists));
    }

    #[test]
    fn mutated_sections_never_panic(
        offset in any::<prop::sample::Index>(),
        value: u8,
        cut in any::<prop::sample::Index>(),
    ) {
        let encoded = [device_code().encode(), device_lists().encode()];
        let mutated = encoded.map(|encoded| {
            let mut bytes = encoded.clone();
            bytes[offset.index(encoded.len())] = value;
            bytes.truncate(cut.index(encoded.len() + 1));
            bytes
        });
        if let Ok(code) = DeviceCode::decode(&mutated[0]) {
            prop_assert_eq!(code.encode(), mutated[0].clone());
            let _ = check_program(&device_manifest(), &device_lists(), &weights(), &code);
        }
        if let Ok(lists) = StepLists::decode(&mutated[1]) {
            prop_assert_eq!(lists.encode(), mutated[1].clone());
            let _ = check_program(&device_manifest(), &lists, &weights(), &device_code());
        }
    }
}
