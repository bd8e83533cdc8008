//! The devices that can be emulated: one per architecture, with the public figures of a usual card.

/// What a program can ask a device about itself.
#[derive(Debug)]
pub(super) struct Model {
    /// 80 for compute capability 8.0.
    pub(super) architecture: u32,
    pub(super) name: &'static str,
    pub(super) multiprocessors: u32,
    pub(super) clock_khz: u32,
    pub(super) memory_clock_khz: u32,
    pub(super) memory_bus_bits: u32,
    pub(super) second_level_cache_bytes: u32,
    pub(super) threads_per_multiprocessor: u32,
    pub(super) blocks_per_multiprocessor: u32,
    pub(super) shared_bytes_per_multiprocessor: u32,
    /// The most a block may have, static and dynamic together, once it was asked for.
    pub(super) shared_bytes_per_block_with_consent: u32,
}

/// Shared memory that every kernel may use without asking.
pub(super) const SHARED_BYTES_WITHOUT_CONSENT: u32 = 48 << 10;

const MODELS: [Model; 8] = [
    Model {
        architecture: 70,
        name: "Tesla V100-SXM2-16GB (emulated)",
        multiprocessors: 80,
        clock_khz: 1_530_000,
        memory_clock_khz: 877_000,
        memory_bus_bits: 4096,
        second_level_cache_bytes: 6 << 20,
        threads_per_multiprocessor: 2048,
        blocks_per_multiprocessor: 32,
        shared_bytes_per_multiprocessor: 98_304,
        shared_bytes_per_block_with_consent: 98_304,
    },
    Model {
        architecture: 75,
        name: "Tesla T4 (emulated)",
        multiprocessors: 40,
        clock_khz: 1_590_000,
        memory_clock_khz: 5_001_000,
        memory_bus_bits: 256,
        second_level_cache_bytes: 4 << 20,
        threads_per_multiprocessor: 1024,
        blocks_per_multiprocessor: 16,
        shared_bytes_per_multiprocessor: 65_536,
        shared_bytes_per_block_with_consent: 65_536,
    },
    Model {
        architecture: 80,
        name: "NVIDIA A100-SXM4-80GB (emulated)",
        multiprocessors: 108,
        clock_khz: 1_410_000,
        memory_clock_khz: 1_593_000,
        memory_bus_bits: 5120,
        second_level_cache_bytes: 40 << 20,
        threads_per_multiprocessor: 2048,
        blocks_per_multiprocessor: 32,
        shared_bytes_per_multiprocessor: 167_936,
        shared_bytes_per_block_with_consent: 166_912,
    },
    Model {
        architecture: 86,
        name: "NVIDIA A10 (emulated)",
        multiprocessors: 72,
        clock_khz: 1_695_000,
        memory_clock_khz: 6_251_000,
        memory_bus_bits: 384,
        second_level_cache_bytes: 6 << 20,
        threads_per_multiprocessor: 1536,
        blocks_per_multiprocessor: 16,
        shared_bytes_per_multiprocessor: 102_400,
        shared_bytes_per_block_with_consent: 101_376,
    },
    Model {
        architecture: 89,
        name: "NVIDIA GeForce RTX 4090 (emulated)",
        multiprocessors: 128,
        clock_khz: 2_520_000,
        memory_clock_khz: 10_501_000,
        memory_bus_bits: 384,
        second_level_cache_bytes: 72 << 20,
        threads_per_multiprocessor: 1536,
        blocks_per_multiprocessor: 24,
        shared_bytes_per_multiprocessor: 102_400,
        shared_bytes_per_block_with_consent: 101_376,
    },
    Model {
        architecture: 90,
        name: "NVIDIA H100 80GB HBM3 (emulated)",
        multiprocessors: 132,
        clock_khz: 1_980_000,
        memory_clock_khz: 2_619_000,
        memory_bus_bits: 5120,
        second_level_cache_bytes: 50 << 20,
        threads_per_multiprocessor: 2048,
        blocks_per_multiprocessor: 32,
        shared_bytes_per_multiprocessor: 233_472,
        shared_bytes_per_block_with_consent: 232_448,
    },
    Model {
        architecture: 100,
        name: "NVIDIA B200 (emulated)",
        multiprocessors: 148,
        clock_khz: 1_965_000,
        memory_clock_khz: 3_996_000,
        memory_bus_bits: 8192,
        second_level_cache_bytes: 126 << 20,
        threads_per_multiprocessor: 2048,
        blocks_per_multiprocessor: 32,
        shared_bytes_per_multiprocessor: 233_472,
        shared_bytes_per_block_with_consent: 232_448,
    },
    Model {
        architecture: 120,
        name: "NVIDIA GeForce RTX 5090 (emulated)",
        multiprocessors: 170,
        clock_khz: 2_407_000,
        memory_clock_khz: 14_001_000,
        memory_bus_bits: 512,
        second_level_cache_bytes: 96 << 20,
        threads_per_multiprocessor: 1536,
        blocks_per_multiprocessor: 24,
        shared_bytes_per_multiprocessor: 102_400,
        shared_bytes_per_block_with_consent: 101_376,
    },
];

/// The device of an architecture.
pub(super) fn model(architecture: u32) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.architecture == architecture)
}

impl Model {
    /// Bytes per second between the chip and its memory, from clock and bus: data moves on both edges.
    pub(super) fn memory_bytes_per_second(&self) -> f64 {
        f64::from(self.memory_clock_khz) * 2e3 * f64::from(self.memory_bus_bits) / 8.0
    }
}
