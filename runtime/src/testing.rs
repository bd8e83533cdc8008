//! A small program with kernels written in Rust, for tests of everything around the kernels.
//!
//! It has a cache and a vocabulary like a language model. The likeliest token is always the next one
//! (`97` is followed by `98`), and the logit of id 0 tells what all tokens so far add up to, so that a
//! wrong position, a lost token or a missing barrier shows.

use qwen2c_format::tokenizer::{
    AddedToken, CharacterClasses, Normalization, SplitRule, TokenEntry, TokenizerTables,
};
use qwen2c_format::{
    CandidateOffsets, DeviceCode, DeviceImage, GenerationDefaults, ImageKind, InputOffsets, KernelInfo,
    Launch, Locator, Manifest, ModelSummary, Operand, ProgramFile, Region, RowAxis, SelfTestRecord, Step,
    StepCost, StepList, StepLists, WeightEntry, WeightTable,
};
use qwen2c_runtime::KernelEntry;
use sha2::{Digest, Sha256};

/// Ids 0 to 255 are bytes, 256 ends an answer, the others are padding of the embedding.
pub(crate) const VOCABULARY: usize = 260;
/// Id of `<end>`.
pub(crate) const STOP_ID: u32 = 256;
/// Positions.
pub(crate) const CONTEXT: usize = 40;
/// Bytes of the weight region: the logit of the next token, what each token adds, and some to be read.
pub(crate) const WEIGHT_BYTES: usize = 1024;
const PROMPT_ROWS: u32 = 8;
const LOGIT_ROWS: u32 = 3;
const ARENA_BYTES: u64 = 16384;
const CACHE: Operand = Operand { region: Region::Arena, offset: 1280, bytes: 4 * CONTEXT as u64 };
const SUMS: Operand = Operand { region: Region::Arena, offset: 1536, bytes: 8 * PROMPT_ROWS as u64 };
const GATHERED: Operand = Operand { region: Region::Arena, offset: 1664, bytes: 8 * PROMPT_ROWS as u64 };
const LOGITS: Operand = Operand { region: Region::Arena, offset: 2048, bytes: (4 * 8 * VOCABULARY) as u64 };
/// Largest logits that a device leaves of a generated token: fewer than its vocabulary has equal ones.
pub(crate) const CANDIDATES: usize = 16;
const CANDIDATE_VALUES: Operand =
    Operand { region: Region::Arena, offset: 10_368, bytes: 4 * CANDIDATES as u64 };
const CANDIDATE_IDS: Operand =
    Operand { region: Region::Arena, offset: 10_432, bytes: 4 * CANDIDATES as u64 };
const INPUTS: InputOffsets = InputOffsets {
    token: 0,
    position: 64,
    slot: 128,
    logit_rows: 192,
    logits: LOGITS.offset,
    candidates: None,
};

/// The kernels in the order of [`lists`].
pub(crate) const KERNELS: [KernelEntry; 5] = [
    KernelEntry { tiles: one_tile_a_row, body: write_cache },
    KernelEntry { tiles: one_tile_a_row, body: sum_cache },
    KernelEntry { tiles: one_tile_a_row, body: gather },
    KernelEntry { tiles: one_tile_a_row, body: logits },
    KernelEntry { tiles: one_tile_a_row, body: candidates },
];

unsafe extern "C" fn one_tile_a_row(_operands: *const *mut u8, rows: i64) -> i64 {
    rows
}

/// Operand `index` as an array.
///
/// # Safety
///
/// The operands are those that [`lists`] gives.
unsafe fn array<T>(operands: *const *mut u8, index: usize) -> *mut T {
    // SAFETY: every kernel below asks for operands it has.
    unsafe { (*operands.add(index)).cast() }
}

/// `(token, position, cache)`: `cache[position[row]] = token[row]`.
unsafe extern "C" fn write_cache(operands: *const *mut u8, _rows: i64, tile: i64) {
    let row = tile as usize;
    // SAFETY: rows and positions lie inside the operands.
    unsafe {
        let position = array::<i32>(operands, 1).add(row).read() as usize;
        array::<i32>(operands, 2).add(position).write(array::<i32>(operands, 0).add(row).read());
    }
}

/// `(position, cache, sums)`: token and sum of all tokens up to each row's position.
unsafe extern "C" fn sum_cache(operands: *const *mut u8, _rows: i64, tile: i64) {
    let row = tile as usize;
    // SAFETY: rows and positions lie inside the operands.
    unsafe {
        let position = array::<i32>(operands, 0).add(row).read() as usize;
        let cache = array::<i32>(operands, 1);
        let sum: i32 = (0..=position).map(|position| cache.add(position).read()).sum();
        array::<[i32; 2]>(operands, 2).add(row).write([cache.add(position).read(), sum]);
    }
}

/// `(sums, logit_rows, gathered)`.
unsafe extern "C" fn gather(operands: *const *mut u8, _rows: i64, tile: i64) {
    let row = tile as usize;
    // SAFETY: rows lie inside the operands.
    unsafe {
        let from = array::<i32>(operands, 1).add(row).read() as usize;
        array::<[i32; 2]>(operands, 2).add(row).write(array::<[i32; 2]>(operands, 0).add(from).read());
    }
}

/// `(gathered, weights, logits)`.
unsafe extern "C" fn logits(operands: *const *mut u8, _rows: i64, tile: i64) {
    let row = tile as usize;
    // SAFETY: rows and columns lie inside the operands.
    unsafe {
        let [token, sum] = array::<[i32; 2]>(operands, 0).add(row).read();
        let [next_logit, per_token] = array::<[f32; 2]>(operands, 1).read();
        let logits = array::<f32>(operands, 2).add(row * VOCABULARY);
        for column in 0..VOCABULARY {
            logits.add(column).write(-(column as f32) * 1e-3);
        }
        logits.write(sum as f32 * per_token);
        logits.add((token as usize + 1) % VOCABULARY).write(next_logit);
    }
}

/// `(logits, values, ids)`: the largest of a single row.
unsafe extern "C" fn candidates(operands: *const *mut u8, _rows: i64, _tile: i64) {
    // SAFETY: the operands are as large as the constants say.
    unsafe {
        let logits = std::slice::from_raw_parts(array::<f32>(operands, 0), VOCABULARY);
        let mut order: Vec<usize> = (0..VOCABULARY).collect();
        // A stable sort: the lower id first where equal.
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        for (place, id) in order.into_iter().take(CANDIDATES).enumerate() {
            array::<f32>(operands, 1).add(place).write(logits[id]);
            array::<i32>(operands, 2).add(place).write(id as i32);
        }
    }
}

/// The logits that the program must give behind the last of these tokens.
pub(crate) fn expected_logits(tokens: &[u32]) -> Vec<f32> {
    let mut logits: Vec<f32> = (0..VOCABULARY).map(|column| -(column as f32) * 1e-3).collect();
    logits[0] = tokens.iter().sum::<u32>() as f32 * 1e-5;
    let last = tokens.last().copied().unwrap_or_default() as usize;
    logits[(last + 1) % VOCABULARY] = 5.0;
    logits
}

/// The weight region.
pub(crate) fn weights() -> Vec<u8> {
    let mut bytes = [5.0_f32, 1e-5].map(f32::to_le_bytes).concat();
    bytes.resize(WEIGHT_BYTES, 0);
    bytes
}

/// Step lists: decode, prompts of many and of some rows, self-test.
pub(crate) fn lists() -> StepLists {
    let input = |offset| Operand { region: Region::Arena, offset, bytes: 4 * u64::from(PROMPT_ROWS) };
    let (token, position, rows) = (input(INPUTS.token), input(INPUTS.position), input(INPUTS.logit_rows));
    let weights = Operand { region: Region::Weights, offset: 0, bytes: 8 };
    let cost = StepCost {
        fixed_bytes: 100,
        bytes_per_row: 10,
        bytes_per_row_and_position: 1,
        operations_per_row: 20,
        operations_per_row_and_position: 2,
    };
    let step = |kernel, row_axis, operands: &[Operand]| Step {
        kernel,
        layer: None,
        row_axis,
        operands: operands.to_vec(),
        joins_previous: false,
        cost,
    };
    let list = |name: &str, max_rows, max_logit_rows| StepList {
        name: name.to_owned(),
        max_rows,
        max_logit_rows,
        body: vec![
            step(0, RowAxis::Rows, &[token, position, CACHE]),
            step(1, RowAxis::Rows, &[position, CACHE, SUMS]),
        ],
        head: vec![
            step(2, RowAxis::LogitRows, &[SUMS, rows, GATHERED]),
            step(3, RowAxis::LogitRows, &[GATHERED, weights, LOGITS]),
        ],
    };
    StepLists {
        kernels: ["write_cache", "sum_cache", "gather", "logits", "candidates"]
            .map(|name| KernelInfo { name: name.to_owned(), launches: Vec::new() })
            .to_vec(),
        lists: vec![
            list("decode", 1, 1),
            list("prefill", PROMPT_ROWS, LOGIT_ROWS),
            list("prefill_3", 3, 3),
            list("self_test", PROMPT_ROWS, PROMPT_ROWS),
        ],
        persistent: None,
    }
}

/// Rows that a block of each launch serves.
pub(crate) const ROWS_PER_BLOCK: u32 = 2;

/// The program without its weights, for a device: each kernel is one launch, but for the logits', whose second
/// launch does the same again. A generated token leaves its largest logits.
pub(crate) fn device_program_file() -> ProgramFile {
    let mut file = program_file();
    "cuda".clone_into(&mut file.manifest.family);
    "sm_80".clone_into(&mut file.manifest.target);
    for (kernel, shared_bytes) in file.lists.kernels.iter_mut().zip([0, 1024, 100_000, 0, 0]) {
        kernel.launches = vec![Launch {
            symbol: kernel.name.clone(),
            blocks: 1,
            rows_per_block: ROWS_PER_BLOCK,
            threads: 32,
            shared_bytes,
        }];
    }
    let launches = &mut file.lists.kernels[3].launches;
    launches.push(launches[0].clone());
    let decode = &mut file.lists.lists[0];
    let logits = decode.head[1].clone();
    let operands = vec![LOGITS, CANDIDATE_VALUES, CANDIDATE_IDS];
    decode.head.push(Step { kernel: 4, operands, ..logits });
    file.manifest.inputs.candidates = Some(CandidateOffsets {
        count: CANDIDATES as u64,
        values: CANDIDATE_VALUES.offset,
        ids: CANDIDATE_IDS.offset,
    });
    let image = |kind, bytes: &[u8]| DeviceImage { architecture: 80, kind, bytes: bytes.to_vec() };
    file.device_code.images = vec![
        image(ImageKind::Ptx, b"// counting\n.version 8.1\n.target sm_80\n"),
        image(ImageKind::Cubin, b"\x7fELF, counting\0"),
    ];
    file
}

/// A tokenizer of bytes and `<end>`.
pub(crate) fn tokenizer() -> Vec<u8> {
    let mut tokens: Vec<TokenEntry> =
        (0..=255).map(|byte| TokenEntry { bytes: vec![byte], is_word: true }).collect();
    tokens.push(TokenEntry { bytes: b"<end>".to_vec(), is_word: false });
    let tables = TokenizerTables {
        split_rule: SplitRule::Gpt2,
        normalization: Normalization::None,
        add_bos: false,
        ignore_merges: false,
        tokens,
        byte_ids: std::array::from_fn(|byte| Some(byte as u32)),
        merges: Vec::new(),
        added: vec![AddedToken { id: STOP_ID, special: true, normalized: false }],
        classes: CharacterClasses::new(|_| 0),
    };
    tables.encode().expect("the tables are small and whole")
}

/// The program without its weights.
pub(crate) fn program_file() -> ProgramFile {
    let weights = weights();
    let self_test: Vec<u32> = (1..=8).collect();
    let rows = (1..=self_test.len()).map(|rows| expected_logits(&self_test[..rows]));
    let manifest = Manifest {
        build: "qwen2c test".to_owned(),
        model: ModelSummary {
            name: "counting".to_owned(),
            architecture: "test".to_owned(),
            parameters: 2,
            hidden: 2,
            layers: 0,
            heads: 1,
            kv_heads: 1,
            head_dim: 1,
            vocabulary: VOCABULARY as u64,
            experts: 0,
            experts_per_token: 0,
        },
        target: "test".to_owned(),
        family: "cpu".to_owned(),
        required_features: Vec::new(),
        quant: "none".to_owned(),
        dtype: "f32".to_owned(),
        context: CONTEXT as u64,
        slots: 1,
        weight_bytes: WEIGHT_BYTES as u64,
        kv_cache_bytes: CACHE.bytes,
        arena_bytes: ARENA_BYTES,
        inputs: INPUTS,
        generation: GenerationDefaults {
            stop_ids: vec![STOP_ID],
            bos_id: None,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
        },
        chat_template: Some(
            "{% for message in messages %}{{ message.role[0] }}:{{ message.content }};{% endfor %}a:"
                .to_owned(),
        ),
        template_tokens: Vec::new(),
        passes: Vec::new(),
        self_test: Some(SelfTestRecord {
            columns: vec![0, 5, 9],
            logits: rows.flat_map(|row| [row[0], row[5], row[9]]).collect(),
            tokens: self_test,
            tolerance: 1e-5,
        }),
    };
    let entry = |name: &str, offset: usize| WeightEntry {
        name: name.to_owned(),
        ty: "f32[n=2]".to_owned(),
        layout: "row_major".to_owned(),
        offset: offset as u64,
        bytes: 8,
        sha256: Sha256::digest(&weights[offset..offset + 8]).into(),
    };
    ProgramFile {
        locator: Locator::place(8192, 4096, WEIGHT_BYTES as u64),
        manifest,
        lists: lists(),
        weights: WeightTable { entries: vec![entry("first", 0), entry("second", 64)] },
        tokenizer: Some(tokenizer()),
        device_code: DeviceCode::default(),
    }
}
