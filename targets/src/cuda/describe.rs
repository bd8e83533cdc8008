//! The CUDA targets by name: architectures and the PTX they need.

use qwen2c_request::{
    CacheType, KernelChoice, KernelRequest, Target, TargetDescription, Unservable, WeightLayout, WeightType,
};

use super::kernels::LONGEST_NORM;
use super::{choose, layout};
use crate::pack::weight_bytes;

/// One architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Architecture {
    /// 80 for `sm_80`.
    pub(super) number: u32,
    /// Name on the command line and in LLVM.
    pub(super) name: &'static str,
    /// One line for `qwen2c targets`.
    summary: &'static str,
    /// LLVM's name of the oldest PTX version that knows the architecture: drivers refuse newer ones than
    /// their own.
    pub(super) ptx: &'static str,
}

/// All architectures, oldest first.
const ARCHITECTURES: &[Architecture] = &[
    Architecture { number: 80, name: "sm_80", summary: "Ampere, data centre: A100, A30", ptx: "+ptx70" },
    Architecture { number: 86, name: "sm_86", summary: "Ampere: A10, A40, RTX 30", ptx: "+ptx71" },
    Architecture { number: 89, name: "sm_89", summary: "Ada Lovelace: L4, L40, RTX 40", ptx: "+ptx78" },
    Architecture { number: 90, name: "sm_90", summary: "Hopper: H100, H200", ptx: "+ptx78" },
    Architecture { number: 100, name: "sm_100", summary: "Blackwell, data centre: B200", ptx: "+ptx86" },
    Architecture { number: 120, name: "sm_120", summary: "Blackwell: RTX 50", ptx: "+ptx87" },
];

/// Chunks of prompts. The longer, the fewer times weights are read, and the better do a product's blocks fill a
/// device: those of Qwen2-7B leave 29 % of 108 multiprocessors' time unused with 256 rows, 14 % with 1024 and 8 %
/// with 2048. Kernels for so many rows have blocks that few rows would leave idle, hence the shorter lists.
const PROMPT_ROWS: &[u64] = &[256, 1024, 2048];

/// Names and one-line summaries.
pub(crate) fn known_architectures() -> impl Iterator<Item = (&'static str, &'static str)> {
    ARCHITECTURES.iter().map(|architecture| (architecture.name, architecture.summary))
}

/// One CUDA architecture, or several in one program: they share kernels, weights and plan.
#[derive(Clone, Debug)]
pub struct CudaTarget {
    description: TargetDescription,
    architectures: Vec<Architecture>,
}

impl CudaTarget {
    /// The target with these names; None where one of them is no CUDA architecture. Names given twice
    /// count once.
    pub(crate) fn named(names: &[&str]) -> Option<Self> {
        let mut architectures = names
            .iter()
            .map(|name| ARCHITECTURES.iter().find(|known| known.name == *name).copied())
            .collect::<Option<Vec<_>>>()?;
        // The order on the command line does not show in the program.
        architectures.sort_by_key(|architecture| architecture.number);
        architectures.dedup();
        let names: Vec<&str> = architectures.iter().map(|architecture| architecture.name).collect();
        let description = TargetDescription {
            name: names.join(","),
            family: "cuda",
            required_features: Vec::new(),
            // What padding pays for: rows of activations that 16-byte loads fit.
            vector_lanes: 8,
            multiplies_integers: false,
            multiplies_bf16_pairs: false,
            splits_attention: false,
            has_own_memory: true,
            prefers_few_launches: true,
            joins_steps_of_prompts: false,
            prompt_rows: PROMPT_ROWS,
            longest_fused_norm: LONGEST_NORM,
        };
        Some(Self { description, architectures })
    }

    /// Oldest first.
    pub(super) fn architectures(&self) -> &[Architecture] {
        &self.architectures
    }
}

impl Target for CudaTarget {
    fn description(&self) -> &TargetDescription {
        &self.description
    }

    fn choose(&self, request: &KernelRequest) -> Result<KernelChoice, Unservable> {
        choose::choose(request)
    }

    fn kernel_rows(&self, request: &KernelRequest) -> u64 {
        let fewer = PROMPT_ROWS.iter().copied().filter(|rows| *rows < request.max_rows);
        let answer = choose::choose(request);
        // What a kernel is cut into decides all of it, and stands in the answer.
        let serves =
            |rows: &u64| choose::choose(&KernelRequest { max_rows: *rows, ..request.clone() }) == answer;
        fewer.into_iter().find(serves).unwrap_or(request.max_rows)
    }

    fn weight_bytes(&self, weight: &WeightType, layout: WeightLayout) -> u64 {
        weight_bytes(weight, layout)
    }

    fn cache_bytes(&self, cache: &CacheType) -> u64 {
        layout::cache_bytes(cache)
    }
}
