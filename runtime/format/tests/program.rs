//! Program files: written, found, told apart when damaged, and hostile.

use std::fs::File;
use std::io::Write;

use proptest::prelude::*;
use qwen2c_format::{
    CandidateOffsets, DeviceCode, FORMAT_VERSION, Locator, Manifest, ProgramError, ProgramFile, RowAxis,
    SelfTestRecord, StepLists, WeightTable, check_program, encode_program_head, patch_locator,
};

#[allow(dead_code)]
mod sample;

use sample::{Sample, WEIGHT_BYTES, elf_image, lists, manifest, read, sample, weights};

#[test]
fn what_was_written_is_read() {
    let sample = sample();
    let program = read(&sample.bytes).expect("the sample is whole");
    assert_eq!(program.locator, sample.locator);
    assert_eq!(program.manifest, manifest());
    assert_eq!(program.lists, lists());
    assert_eq!(program.weights, weights());
    assert_eq!(program.tokenizer.as_deref(), Some(&b"tokenizer tables"[..]));
    assert_eq!(sample.locator.header_offset % 4096, 0);
    assert_eq!(sample.locator.weights_offset % (2 << 20), 0);
}

#[test]
fn the_same_program_gives_the_same_bytes() {
    assert!(sample().bytes == sample().bytes);
}

#[test]
fn stripped_and_truncated_are_told_apart() {
    let Sample { bytes, locator, .. } = sample();
    let found = |length: usize| read(&bytes[..length]).expect_err("the file is short");
    let file_bytes = locator.file_bytes;
    assert_eq!(found(0x400), ProgramError::Stripped { file_bytes, found_bytes: 0x400 });
    for length in [0x401, locator.header_offset as usize, bytes.len() - 1] {
        assert_eq!(found(length), ProgramError::Truncated { file_bytes, found_bytes: length as u64 });
    }
    // Cut within the image, whose section table then lies behind the end.
    assert_eq!(found(0x390), ProgramError::Truncated { file_bytes: 0x400, found_bytes: 0x390 });
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(read(&longer), Err(ProgramError::Invalid { section: "length", .. })));
}

#[test]
fn foreign_files_are_not_programs() {
    assert!(matches!(read(b"{}"), Err(ProgramError::NotAProgram { .. })));
    assert!(matches!(read(&[0; 4096]), Err(ProgramError::NotAProgram { .. })));
    let mut without_locator = elf_image();
    without_locator[0x1e8] = 0;
    assert!(matches!(read(&without_locator), Err(ProgramError::NotAProgram { .. })));
    assert_eq!(read(&elf_image()), Err(ProgramError::Unpatched));
    let own = File::open(std::env::current_exe().expect("a test has a file")).expect("it can be read");
    // This test itself holds the magic as a constant, but no program was ever attached to it.
    assert!(ProgramFile::read(&own).is_err());
}

#[test]
fn locators_are_patched_once() {
    let locator = Locator::place(1, 2, 3);
    let mut image = elf_image();
    assert!(patch_locator(&mut image, &locator).is_ok());
    assert!(patch_locator(&mut image, &locator).is_err());
    assert!(patch_locator(&mut [0; 100], &locator).is_err());
    let mut twice = elf_image();
    twice.extend(elf_image());
    assert!(patch_locator(&mut twice, &locator).is_err());
    let mut short = elf_image()[..0x1e8 + 20].to_vec();
    assert!(patch_locator(&mut short, &locator).is_err());
}

#[test]
fn altered_parts_are_named() {
    let Sample { bytes, locator, head_bytes } = sample();
    let altered = |offset: usize| {
        let mut bytes = bytes.clone();
        bytes[locator.header_offset as usize + offset] ^= 0x20;
        read(&bytes).expect_err("a byte was altered")
    };
    assert_eq!(altered(0), ProgramError::Altered { section: "header" });
    assert_eq!(altered(8), ProgramError::Version { found: FORMAT_VERSION ^ 0x20 });
    assert_eq!(altered(20), ProgramError::Altered { section: "header" });
    assert_eq!(altered(320 + 10), ProgramError::Altered { section: "manifest" });
    // Behind the tokenizer comes the place of the device code, which is empty.
    assert_eq!(altered(head_bytes - 64), ProgramError::Altered { section: "tokenizer" });
}

#[test]
fn every_byte_of_the_head_counts() {
    let Sample { bytes, locator, head_bytes } = sample();
    let whole = read(&bytes).expect("the sample is whole");
    let head = locator.header_offset as usize;
    let mut file = tempfile::tempfile().expect("a file can be made");
    file.write_all(&bytes).expect("it can be written");
    use std::os::unix::fs::FileExt;
    for offset in head..head + head_bytes {
        file.write_all_at(&[bytes[offset] ^ 1], offset as u64).expect("it can be written");
        match ProgramFile::read(&file) {
            // Gaps between sections belong to nothing.
            Ok(program) => assert_eq!(program, whole),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        file.write_all_at(&bytes[offset..=offset], offset as u64).expect("it can be written");
    }
    // The same for the locator, whose offsets are checked against one another.
    for offset in 0x1e8..0x1e8 + 48 {
        file.write_all_at(&[bytes[offset] ^ 1], offset as u64).expect("it can be written");
        assert!(ProgramFile::read(&file).is_err(), "byte {offset} of the locator");
        file.write_all_at(&bytes[offset..=offset], offset as u64).expect("it can be written");
    }
}

/// Checks a program whose hashes are right and whose content is not.
fn check(change: impl FnOnce(&mut Manifest, &mut StepLists, &mut WeightTable), expected: &str) {
    let (mut manifest, mut lists, mut weights) = (manifest(), lists(), weights());
    change(&mut manifest, &mut lists, &mut weights);
    let error =
        check_program(&manifest, &lists, &weights, &DeviceCode::default()).expect_err(expected).to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn steps_outside_their_regions_are_refused() {
    check(|_, lists, _| lists.lists[0].body[0].kernel = 2, "kernel 2 of 2");
    check(|_, lists, _| lists.lists[1].body[1].operands[0].bytes = 1 << 40, "list `prefill`: body step 1");
    check(|_, lists, _| lists.lists[0].head[0].operands[1].offset = 128, "of the weights, which have 192");
    check(|_, lists, _| lists.lists[0].body[0].operands[0].offset = u64::MAX - 63, "operand 0 claims");
    check(
        |_, lists, _| lists.lists[0].body[0].operands[0].offset = 8,
        "operand 0 claims 64 bytes at offset 8",
    );
    check(|_, lists, _| lists.lists[0].body[0].row_axis = RowAxis::LogitRows, "works on logit rows");
    check(|_, lists, _| lists.lists[1].max_rows = 0, "0 rows");
    check(|_, lists, _| lists.lists[1].max_logit_rows = 9, "9 logit rows");
    check(|_, lists, _| lists.lists.clear(), "not `decode`");
    let many = |lists: &mut StepLists| {
        let operand = lists.lists[0].body[0].operands[0];
        lists.lists[0].body[0].operands = vec![operand; 65];
    };
    check(|_, lists, _| many(lists), "65 operands");
}

#[test]
fn inputs_and_sizes_are_checked() {
    check(|manifest, _, _| manifest.inputs.logits = 1024 - 64, "`logits` at offset 960");
    check(|manifest, _, _| manifest.inputs.token = 1020, "`token`");
    let candidates = |count, values, ids| {
        move |manifest: &mut Manifest, _: &mut _, _: &mut _| {
            manifest.inputs.candidates = Some(CandidateOffsets { count, values, ids });
        }
    };
    check(candidates(0, 256, 320), "0 candidates of 5");
    check(candidates(6, 256, 320), "6 candidates of 5");
    check(candidates(5, 1024, 320), "`values` of candidates at offset 1024");
    check(candidates(5, 256, u64::MAX), "`ids` of candidates");
    check(candidates(5, 256, 260), "`ids` of candidates at offset 260");
    check(|manifest, _, _| manifest.model.vocabulary = 1 << 31, "`vocabulary`");
    check(|manifest, _, _| manifest.context = 0, "`context`");
    check(|manifest, _, _| manifest.arena_bytes = u64::MAX, "`arena_bytes`");
    check(|manifest, _, _| manifest.kv_cache_bytes = 2048, "larger than the arena");
    check(|manifest, _, _| manifest.generation.top_p = f32::NAN, "sampling defaults");
    check(|manifest, _, _| manifest.generation.stop_ids = vec![5], "id 5");
    check(|_, _, weights| weights.entries[1].offset = 0, "weight `up`");
    check(|_, _, weights| weights.entries[1].bytes = u64::MAX, "weight `up`");
    check(|_, _, weights| weights.entries[1].offset = 65, "weight `up`");
    let record = |manifest: &mut Manifest| manifest.self_test.clone().expect("the sample has one");
    check(
        |manifest, _, _| manifest.self_test = Some(SelfTestRecord { logits: vec![1.0], ..record(manifest) }),
        "1 logits",
    );
    check(
        |manifest, _, _| {
            manifest.self_test = Some(SelfTestRecord { columns: vec![5, 0], ..record(manifest) })
        },
        "the self-test's 2 tokens",
    );
    check(|_, lists, _| drop(lists.lists.pop()), "without a step list");
}

#[test]
fn a_weight_region_of_another_size_is_refused() {
    let mut manifest = manifest();
    manifest.weight_bytes += 64;
    let head = encode_program_head(&manifest, &lists(), &weights(), None, &DeviceCode::default());
    let mut bytes = elf_image();
    let locator = Locator::place(bytes.len() as u64, head.len() as u64, WEIGHT_BYTES);
    patch_locator(&mut bytes, &locator).expect("the image holds one unpatched locator");
    bytes.resize(locator.header_offset as usize, 0);
    bytes.extend_from_slice(&head);
    bytes.resize(locator.file_bytes as usize, 0);
    assert!(matches!(read(&bytes), Err(ProgramError::Invalid { section: "manifest", .. })));
}

#[test]
fn counts_that_lie_allocate_nothing() {
    let mut bytes = lists().encode();
    bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(StepLists::decode(&bytes).expect_err("too many kernels").to_string().contains("do not fit"));
    let mut bytes = weights().encode();
    bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(WeightTable::decode(&bytes).is_err());
    let mut longer = weights().encode();
    longer.push(0);
    assert!(
        WeightTable::decode(&longer).expect_err("a byte too many").to_string().contains("1 bytes follow")
    );
}

proptest! {
    #[test]
    fn mutated_tables_never_panic(offset in any::<prop::sample::Index>(), value: u8, cut in any::<prop::sample::Index>()) {
        for encoded in [lists().encode(), weights().encode()] {
            let mut bytes = encoded.clone();
            bytes[offset.index(encoded.len())] = value;
            bytes.truncate(cut.index(encoded.len() + 1));
            if let Ok(lists) = StepLists::decode(&bytes) {
                prop_assert_eq!(lists.encode(), bytes.clone());
                let _ = check_program(&manifest(), &lists, &weights(), &DeviceCode::default());
            }
            if let Ok(weights) = WeightTable::decode(&bytes) {
                prop_assert_eq!(weights.encode(), bytes.clone());
                let _ = check_program(&manifest(), &lists(), &weights, &DeviceCode::default());
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = StepLists::decode(&bytes);
        let _ = WeightTable::decode(&bytes);
    }

    #[test]
    fn damaged_images_never_panic(offset in 0_usize..0x400, value: u8) {
        let mut bytes = elf_image();
        bytes[offset] = value;
        prop_assert!(read(&bytes).is_err());
    }
}
