//! A small program that is whole, to be written, altered and read by the tests.

use std::io::Write;

use qwen2c_format::{
    DeviceCode, DeviceImage, GenerationDefaults, ImageKind, InputOffsets, KernelInfo, LOCATOR_MAGIC, Launch,
    Locator, Manifest, ModelSummary, Operand, PersistentKernel, ProgramError, ProgramFile, Region, RowAxis,
    SelfTestRecord, Step, StepCost, StepList, StepLists, WeightEntry, WeightTable, encode_program_head,
    patch_locator,
};

pub(crate) const WEIGHT_BYTES: u64 = 192;

pub(crate) fn manifest() -> Manifest {
    Manifest {
        build: "qwen2c 0.1.0".to_owned(),
        model: ModelSummary {
            name: "tiny".to_owned(),
            architecture: "qwen2".to_owned(),
            parameters: 96,
            hidden: 8,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            vocabulary: 5,
            experts: 0,
            experts_per_token: 0,
        },
        target: "x86-64-v3".to_owned(),
        family: "cpu".to_owned(),
        required_features: vec!["avx2".to_owned()],
        quant: "none".to_owned(),
        dtype: "f32".to_owned(),
        context: 16,
        slots: 1,
        weight_bytes: WEIGHT_BYTES,
        kv_cache_bytes: 128,
        arena_bytes: 1024,
        inputs: InputOffsets {
            token: 0,
            position: 64,
            slot: 128,
            logit_rows: 192,
            logits: 256,
            candidates: None,
        },
        generation: GenerationDefaults {
            stop_ids: vec![2],
            bos_id: None,
            temperature: 0.7,
            top_k: 20,
            top_p: 0.8,
            repetition_penalty: 1.05,
        },
        chat_template: None,
        template_tokens: Vec::new(),
        passes: Vec::new(),
        self_test: Some(SelfTestRecord {
            tokens: vec![1, 2],
            columns: vec![0, 4],
            logits: vec![0.5, -1.0, 2.0, 0.25],
            tolerance: 1e-3,
        }),
    }
}

pub(crate) fn lists() -> StepLists {
    let operand = |region, offset, bytes| Operand { region, offset, bytes };
    let step = |kernel, row_axis| Step {
        kernel,
        layer: Some(0),
        row_axis,
        operands: vec![operand(Region::Arena, 512, 64), operand(Region::Weights, 64, 128)],
        joins_previous: kernel == 1 && row_axis == RowAxis::Rows,
        cost: StepCost { fixed_bytes: 128, bytes_per_row: 32, operations_per_row: 64, ..StepCost::default() },
    };
    let list = |name: &str, max_rows, max_logit_rows| StepList {
        name: name.to_owned(),
        max_rows,
        max_logit_rows,
        body: vec![step(0, RowAxis::Rows), step(1, RowAxis::Rows)],
        head: vec![step(1, RowAxis::LogitRows)],
    };
    StepLists {
        kernels: ["embed", "matmul"]
            .map(|name| KernelInfo { name: name.to_owned(), launches: Vec::new() })
            .to_vec(),
        lists: vec![list("decode", 1, 1), list("prefill", 8, 4), list("self_test", 8, 8)],
        persistent: None,
    }
}

pub(crate) fn weights() -> WeightTable {
    let entry = |name: &str, offset, bytes| WeightEntry {
        name: name.to_owned(),
        ty: "f32[n=16]".to_owned(),
        layout: "row_major".to_owned(),
        offset,
        bytes,
        sha256: [7; 32],
    };
    WeightTable { entries: vec![entry("norm", 0, 64), entry("up", 64, 128)] }
}

/// An ELF image with one loaded segment that holds a locator, and a section table at its end.
pub(crate) fn elf_image() -> Vec<u8> {
    let mut image = vec![0; 0x400];
    image[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(32, &64_u64.to_le_bytes());
    put(40, &0x380_u64.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &1_u16.to_le_bytes());
    put(58, &64_u16.to_le_bytes());
    put(60, &2_u16.to_le_bytes());
    put(64, &1_u32.to_le_bytes());
    put(64 + 8, &0x100_u64.to_le_bytes());
    put(64 + 32, &0x200_u64.to_le_bytes());
    put(0x1e8, &LOCATOR_MAGIC);
    image
}

pub(crate) struct Sample {
    pub(crate) bytes: Vec<u8>,
    pub(crate) locator: Locator,
    pub(crate) head_bytes: usize,
}

/// A program for the processor.
pub(crate) fn sample() -> Sample {
    sample_of(&manifest(), &lists(), &DeviceCode::default())
}

/// The same for a device.
pub(crate) fn device_manifest() -> Manifest {
    Manifest {
        family: "cuda".to_owned(),
        target: "sm_80".to_owned(),
        required_features: Vec::new(),
        ..manifest()
    }
}

pub(crate) fn launch(symbol: &str) -> Launch {
    Launch { symbol: symbol.to_owned(), blocks: 7, rows_per_block: 2, threads: 128, shared_bytes: 1024 }
}

/// One launch for the first kernel, two for the second, and one for a whole token.
pub(crate) fn device_lists() -> StepLists {
    let mut lists = lists();
    lists.kernels[0].launches = vec![launch("embed")];
    lists.kernels[1].launches = vec![launch("matmul"), launch("matmul$merge_2")];
    lists.persistent = Some(PersistentKernel {
        symbol: "persistent_decode".to_owned(),
        threads: 128,
        shared_bytes: 1024,
        row_words: 3,
    });
    lists
}

pub(crate) fn device_code() -> DeviceCode {
    let image = |architecture, kind, bytes: &[u8]| DeviceImage { architecture, kind, bytes: bytes.to_vec() };
    DeviceCode {
        images: vec![
            image(80, ImageKind::Ptx, b".version 8.0\n"),
            image(80, ImageKind::Cubin, b"\x7fELF\0"),
            image(90, ImageKind::Ptx, b".version 8.0\n.target sm_90\n"),
        ],
    }
}

pub(crate) fn sample_of(manifest: &Manifest, lists: &StepLists, device_code: &DeviceCode) -> Sample {
    let head = encode_program_head(manifest, lists, &weights(), Some(b"tokenizer tables"), device_code);
    let mut bytes = elf_image();
    let locator = Locator::place(bytes.len() as u64, head.len() as u64, WEIGHT_BYTES);
    patch_locator(&mut bytes, &locator).expect("the image holds one unpatched locator");
    bytes.resize(locator.header_offset as usize, 0);
    bytes.extend_from_slice(&head);
    bytes.resize(locator.weights_offset as usize, 0);
    bytes.resize(locator.file_bytes as usize, 1);
    Sample { bytes, locator, head_bytes: head.len() }
}

pub(crate) fn read(bytes: &[u8]) -> Result<ProgramFile, ProgramError> {
    let mut file = tempfile::tempfile().expect("a file can be made");
    file.write_all(bytes).expect("it can be written");
    ProgramFile::read(&file)
}
