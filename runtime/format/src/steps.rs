//! Step lists and the weight table.

/// Where an operand lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Region {
    /// The arena: inputs, activations, caches, workspaces.
    Arena,
    /// The weight region of the file.
    Weights,
}

/// One pointer that a kernel gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Region.
    pub region: Region,
    /// Byte offset in the region.
    pub offset: u64,
    /// Bytes that the kernel may touch from there, checked against the region when a program is loaded.
    pub bytes: u64,
}

/// Which count of rows a step's kernel gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowAxis {
    /// The rows of the step.
    Rows,
    /// The rows that go through the head.
    LogitRows,
}

/// Bytes and operations of a step: `fixed + per_row · rows + per_row_and_position · Σ (position + 1)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepCost {
    /// Bytes whatever the rows.
    pub fixed_bytes: u64,
    /// Bytes of each row.
    pub bytes_per_row: u64,
    /// Bytes of each row and cached position.
    pub bytes_per_row_and_position: u64,
    /// Operations of each row.
    pub operations_per_row: u64,
    /// Operations of each row and cached position.
    pub operations_per_row_and_position: u64,
}

/// A call of a kernel. (Copies, sampling on a device and collectives will be further kinds of step.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Index into the program's kernel table.
    pub kernel: u32,
    /// Block the step belongs to; none for embedding and head.
    pub layer: Option<u32>,
    /// Which row count the kernel gets.
    pub row_axis: RowAxis,
    /// Pointers in the order of the request: inputs, weights, caches, outputs, workspace.
    pub operands: Vec<Operand>,
    /// The step does not wait for the one before it: workers need not meet between them. What runs steps one
    /// after another computes the same.
    pub joins_previous: bool,
    /// What the step moves and computes.
    pub cost: StepCost,
}

/// The steps that serve up to `max_rows` rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepList {
    /// `decode`, `prefill`, `prefill_1024`, `self_test`.
    pub name: String,
    /// Most rows of one run of `body`.
    pub max_rows: u32,
    /// Most rows of one run of `head`.
    pub max_logit_rows: u32,
    /// From the embedding to the last block.
    pub body: Vec<Step>,
    /// From the gather of `logit_rows` to the logits; may run several times after one run of `body`, or
    /// not at all.
    pub head: Vec<Step>,
}

/// A kernel. On the processor it has the same index in the linked table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    /// Symbol of the body in the ELF image; on a device, the name in reports.
    pub name: String,
    /// What a device runs for one call, one after another on the same operands; none on the processor.
    pub launches: Vec<Launch>,
}

/// A grid on a device: `blocks` by `ceil(rows / rows_per_block)` blocks.
///
/// The entry point gets the step's operands as device pointers (64 bits each) and the number of rows
/// (32 bits).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Entry point in the program's device code.
    pub symbol: String,
    /// Blocks side by side.
    pub blocks: u32,
    /// Rows that one block serves.
    pub rows_per_block: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// One kernel for a whole token: the bodies of all launches of the first list, with barriers between them.
///
/// The entry point gets a table of 64-bit words, a zeroed 32-bit word for its barriers, and the number of
/// rows of the table (32 bits). A row is a launch: its number, counted over the launches of all kernels in
/// their order, then its operands as device pointers. All blocks must be on the device at the same time;
/// their number is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersistentKernel {
    /// Entry point in the program's device code.
    pub symbol: String,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Words of a row of the table.
    pub row_words: u32,
}

/// Everything the runtime executes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepLists {
    /// Kernels, on the processor in the order of the linked table.
    pub kernels: Vec<KernelInfo>,
    /// `decode` first, then `prefill` and what serves more rows of a prompt at once, then `self_test` where
    /// there is one.
    pub lists: Vec<StepList>,
    /// What can run the first list in one launch, where it was asked for.
    pub persistent: Option<PersistentKernel>,
}

/// Whether prompts go through a list of this name.
pub fn serves_prompts(name: &str) -> bool {
    name == "prefill" || name.starts_with("prefill_")
}

impl StepLists {
    /// The list with this name.
    pub fn list(&self, name: &str) -> Option<&StepList> {
        self.lists.iter().find(|list| list.name == name)
    }

    /// Indexes of the lists that prompts go through, ascending by their rows.
    pub fn prompts(&self) -> Vec<usize> {
        let mut found: Vec<usize> =
            (0..self.lists.len()).filter(|index| serves_prompts(&self.lists[*index].name)).collect();
        found.sort_by_key(|index| self.lists[*index].max_rows);
        found
    }
}

/// One weight of the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightEntry {
    /// `layers.0.qkv.weight`.
    pub name: String,
    /// Type in text: `bf16[output=1152, input=896]`.
    pub ty: String,
    /// Layout in text: `panels(16, 2)`.
    pub layout: String,
    /// Byte offset in the region, a multiple of 64.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 of the bytes.
    pub sha256: [u8; 32],
}

/// All weights in ascending offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightTable {
    /// Entries.
    pub entries: Vec<WeightEntry>,
}
