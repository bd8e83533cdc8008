//! What a launch moved and computed, counted while it ran.

use std::ops::AddAssign;

/// Counts of one launch, or of several added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes that lanes asked of global memory; a byte asked for by two lanes counts twice.
    pub global_read_bytes: u64,
    /// Bytes that lanes wrote to global memory.
    pub global_written_bytes: u64,
    /// Bytes of global memory whose first access in the launch is a read: what must come from memory at least.
    pub global_distinct_read_bytes: u64,
    /// Bytes of global memory that are written in the launch, each once.
    pub global_distinct_written_bytes: u64,
    /// Sectors of 32 bytes that the loads of warps touched, each once per warp instruction.
    pub global_load_transactions: u64,
    /// Sectors of 32 bytes that the stores of warps touched, each once per warp instruction.
    pub global_store_transactions: u64,
    /// Loads of lanes from global memory, asynchronous copies included.
    pub global_loads: u64,
    /// Those of `global_loads` that were 16 bytes wide or wider.
    pub global_loads_of_16_bytes: u64,
    /// Passes over shared memory beyond those that accesses without conflicts would take.
    pub shared_bank_conflicts: u64,
    /// Instructions of warps that accessed shared memory.
    pub shared_accesses: u64,
    /// `mma` instructions of warps.
    pub matrix_operations: u64,
    /// Multiplications and additions inside those instructions, counted separately.
    pub matrix_scalar_operations: u64,
    /// Floating-point operations of lanes outside `mma`; a fused multiply-add is two, one on a pair twice that.
    pub scalar_operations: u64,
    /// Atomic operations of lanes.
    pub atomic_operations: u64,
    /// Arrivals of warps at barriers of their block.
    pub barriers: u64,
    /// Instructions of warps.
    pub instructions: u64,
    /// Instructions of lanes.
    pub lane_instructions: u64,
    /// Launches that were added up.
    pub launches: u64,
}

impl Counts {
    /// Every count with its name, in the order of declaration.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 18] {
        [
            ("global_read_bytes", self.global_read_bytes),
            ("global_written_bytes", self.global_written_bytes),
            ("global_distinct_read_bytes", self.global_distinct_read_bytes),
            ("global_distinct_written_bytes", self.global_distinct_written_bytes),
            ("global_load_transactions", self.global_load_transactions),
            ("global_store_transactions", self.global_store_transactions),
            ("global_loads", self.global_loads),
            ("global_loads_of_16_bytes", self.global_loads_of_16_bytes),
            ("shared_bank_conflicts", self.shared_bank_conflicts),
            ("shared_accesses", self.shared_accesses),
            ("matrix_operations", self.matrix_operations),
            ("matrix_scalar_operations", self.matrix_scalar_operations),
            ("scalar_operations", self.scalar_operations),
            ("atomic_operations", self.atomic_operations),
            ("barriers", self.barriers),
            ("instructions", self.instructions),
            ("lane_instructions", self.lane_instructions),
            ("launches", self.launches),
        ]
    }
}

impl AddAssign<&Counts> for Counts {
    fn add_assign(&mut self, other: &Counts) {
        self.global_read_bytes += other.global_read_bytes;
        self.global_written_bytes += other.global_written_bytes;
        self.global_distinct_read_bytes += other.global_distinct_read_bytes;
        self.global_distinct_written_bytes += other.global_distinct_written_bytes;
        self.global_load_transactions += other.global_load_transactions;
        self.global_store_transactions += other.global_store_transactions;
        self.global_loads += other.global_loads;
        self.global_loads_of_16_bytes += other.global_loads_of_16_bytes;
        self.shared_bank_conflicts += other.shared_bank_conflicts;
        self.shared_accesses += other.shared_accesses;
        self.matrix_operations += other.matrix_operations;
        self.matrix_scalar_operations += other.matrix_scalar_operations;
        self.scalar_operations += other.scalar_operations;
        self.atomic_operations += other.atomic_operations;
        self.barriers += other.barriers;
        self.instructions += other.instructions;
        self.lane_instructions += other.lane_instructions;
        self.launches += other.launches;
    }
}
