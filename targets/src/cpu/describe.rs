//! The CPU targets by name: level, features, vector width.

use qwen2c_request::{
    CacheType, KernelChoice, KernelRequest, Target, TargetDescription, Unservable, WeightLayout, WeightType,
};

use super::instructions::Instructions;
use super::{choose, layout};
use crate::any_target::TargetError;
use crate::pack::weight_bytes;

/// One level of the architecture.
struct Level {
    /// Name on the command line.
    name: &'static str,
    /// One line for `qwen2c targets`.
    summary: &'static str,
    /// `f32` lanes of a vector register.
    vector_lanes: u32,
    /// LLVM's processor name.
    processor: &'static str,
    /// LLVM features beyond the processor's.
    features: &'static str,
    /// What the machine must have, in the names of `/proc/cpuinfo`.
    required: &'static [&'static str],
}

/// A chunk of a prompt: enough rows to reuse a weight from cache, so few that the activations stay there.
const PROMPT_ROWS: &[u64] = &[256];

const V3: &[&str] = &["avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"];
const V4: &[&str] = &[
    "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl",
];
const AMX: &[&str] = &[
    "avx2",
    "fma",
    "f16c",
    "bmi1",
    "bmi2",
    "movbe",
    "avx512f",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
];

const LEVELS: &[Level] = &[
    Level {
        name: "x86-64-v3",
        summary: "AVX2 and FMA, 8 lanes: servers and desktops since 2013",
        vector_lanes: 8,
        processor: "x86-64-v3",
        features: "",
        required: V3,
    },
    Level {
        name: "x86-64-v4",
        summary: "AVX-512, 16 lanes; VNNI and BF16 by `+avx512vnni`, `+avx512bf16`",
        vector_lanes: 16,
        processor: "x86-64-v4",
        features: "-prefer-256-bit",
        required: V4,
    },
    Level {
        name: "x86-64-amx",
        summary: "AVX-512 with VNNI, BF16 and matrix tiles: Sapphire Rapids and later",
        vector_lanes: 16,
        processor: "x86-64-v4",
        features: "-prefer-256-bit,+avx512vnni,+avx512bf16,+amx-tile,+amx-bf16,+amx-int8",
        required: AMX,
    },
];

/// A feature that can be added to `x86-64-v4` with `+`.
struct Feature {
    /// Name on the command line and in LLVM.
    name: &'static str,
    /// Name in `/proc/cpuinfo`.
    cpuinfo: &'static str,
}

const FEATURES: &[Feature] = &[
    Feature { name: "avx512vnni", cpuinfo: "avx512_vnni" },
    Feature { name: "avx512bf16", cpuinfo: "avx512_bf16" },
];

/// A CPU target, finished and immutable.
#[derive(Clone, Debug)]
pub struct CpuTarget {
    description: TargetDescription,
    processor: &'static str,
    features: String,
}

impl CpuTarget {
    /// LLVM's processor name.
    pub fn processor(&self) -> &str {
        self.processor
    }

    /// LLVM's feature string.
    pub fn features(&self) -> &str {
        &self.features
    }

    /// Instructions for products of small numbers.
    pub(super) fn instructions(&self) -> Instructions {
        let has = |feature| self.features.contains(feature);
        Instructions::of(self.lanes(), has("avx512vnni"), has("avx512bf16"), has("amx-tile"))
    }

    /// `f32` lanes of a vector register.
    pub fn lanes(&self) -> u32 {
        self.description.vector_lanes
    }
}

impl Target for CpuTarget {
    fn description(&self) -> &TargetDescription {
        &self.description
    }

    fn choose(&self, request: &KernelRequest) -> Result<KernelChoice, Unservable> {
        choose::choose(self.instructions(), request)
    }

    fn kernel_rows(&self, request: &KernelRequest) -> u64 {
        request.max_rows
    }

    fn weight_bytes(&self, weight: &WeightType, layout: WeightLayout) -> u64 {
        weight_bytes(weight, layout)
    }

    fn cache_bytes(&self, cache: &CacheType) -> u64 {
        layout::cache_bytes(self.lanes(), cache)
    }
}

/// Names and one-line summaries of the levels, `native` first.
pub(crate) fn known_levels() -> impl Iterator<Item = (&'static str, &'static str)> {
    let native = ("native", "the best level this machine has, spelled out in the manifest");
    std::iter::once(native).chain(LEVELS.iter().map(|level| (level.name, level.summary)))
}

/// The target with this name: `native`, a level, or a level with features (`x86-64-v4+avx512vnni`); None
/// where no level has it.
///
/// # Errors
///
/// [`TargetError`] where the features or this machine do not fit.
pub(crate) fn resolve_level(text: &str) -> Option<Result<CpuTarget, TargetError>> {
    if text == "native" {
        return Some(native_target());
    }
    let mut parts = text.split('+');
    let name = parts.next().unwrap_or_default();
    let level = LEVELS.iter().find(|level| level.name == name)?;
    Some(with_features(level, parts))
}

fn with_features<'a>(level: &Level, names: impl Iterator<Item = &'a str>) -> Result<CpuTarget, TargetError> {
    let mut features = Vec::new();
    for feature in names {
        let known = if level.name == "x86-64-v4" { FEATURES } else { &[] };
        let Some(found) = known.iter().find(|candidate| candidate.name == feature) else {
            return Err(TargetError::UnknownFeature {
                target: level.name.to_owned(),
                feature: feature.to_owned(),
                known: known.iter().map(|feature| feature.name).collect(),
            });
        };
        features.push(found);
    }
    Ok(build_target(level, &features))
}

fn build_target(level: &Level, features: &[&Feature]) -> CpuTarget {
    // Sorted by the table, so that the order on the command line does not show in the program.
    let chosen: Vec<&Feature> =
        FEATURES.iter().filter(|known| features.iter().any(|feature| feature.name == known.name)).collect();
    let mut name = level.name.to_owned();
    let mut llvm_features: Vec<String> =
        level.features.split(',').filter(|f| !f.is_empty()).map(str::to_owned).collect();
    let mut required_features = level.required.to_vec();
    for feature in chosen {
        name.push('+');
        name.push_str(feature.name);
        llvm_features.push(format!("+{}", feature.name));
        required_features.push(feature.cpuinfo);
    }
    let features = llvm_features.join(",");
    CpuTarget {
        description: TargetDescription {
            name,
            family: "cpu",
            required_features,
            vector_lanes: level.vector_lanes,
            multiplies_integers: true,
            multiplies_bf16_pairs: features.contains("avx512bf16"),
            splits_attention: true,
            has_own_memory: false,
            prefers_few_launches: false,
            joins_steps_of_prompts: true,
            prompt_rows: PROMPT_ROWS,
            longest_fused_norm: 0,
        },
        processor: level.processor,
        features,
    }
}

/// The best target of the machine that runs the compiler.
fn native_target() -> Result<CpuTarget, TargetError> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    native_target_from(&cpuinfo)
}

/// The best target for the features in a text of `/proc/cpuinfo`.
fn native_target_from(cpuinfo: &str) -> Result<CpuTarget, TargetError> {
    let flags: Vec<&str> = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .and_then(|line| line.split(':').nth(1))
        .map(|flags| flags.split_whitespace().collect())
        .unwrap_or_default();
    let has_all = |required: &[&str]| required.iter().all(|feature| flags.contains(feature));
    let Some(level) = LEVELS.iter().rev().find(|level| has_all(level.required)) else {
        return Err(TargetError::MachineTooOld {
            missing: V3.iter().copied().filter(|feature| !flags.contains(feature)).collect(),
        });
    };
    let features: Vec<&Feature> = if level.name == "x86-64-v4" {
        FEATURES.iter().filter(|feature| flags.contains(&feature.cpuinfo)).collect()
    } else {
        Vec::new()
    };
    Ok(build_target(level, &features))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<CpuTarget, TargetError> {
        resolve_level(text).expect("a level has this name")
    }

    fn name_of(text: &str) -> Result<String, String> {
        resolve(text).map(|target| target.description().name.clone()).map_err(|error| error.to_string())
    }

    #[test]
    fn features_are_sorted() {
        assert_eq!(name_of("x86-64-v3"), Ok("x86-64-v3".to_owned()));
        assert_eq!(
            name_of("x86-64-v4+avx512bf16+avx512vnni"),
            Ok("x86-64-v4+avx512vnni+avx512bf16".to_owned())
        );
    }

    #[test]
    fn features_belong_to_v4() {
        assert!(matches!(resolve("x86-64-v3+avx512vnni"), Err(TargetError::UnknownFeature { .. })));
        assert!(matches!(resolve("x86-64-v4+sse9"), Err(TargetError::UnknownFeature { .. })));
    }

    #[test]
    fn native_takes_the_highest_level_that_is_complete() {
        let flags = |list: &[&str]| format!("processor: 0\nflags\t\t: fpu {}\n", list.join(" "));
        let name = |text: &str| native_target_from(text).map(|target| target.description.name);
        assert_eq!(name(&flags(V3)), Ok("x86-64-v3".to_owned()));
        assert_eq!(name(&flags(V4)), Ok("x86-64-v4".to_owned()));
        let with_vnni = [V4, &["avx512_vnni"]].concat();
        assert_eq!(name(&flags(&with_vnni)), Ok("x86-64-v4+avx512vnni".to_owned()));
        assert_eq!(name(&flags(AMX)), Ok("x86-64-amx".to_owned()));
        assert_eq!(name(&flags(&V4[..V4.len() - 1])), Ok("x86-64-v3".to_owned()));
        assert_eq!(name("flags : fpu\n"), Err(TargetError::MachineTooOld { missing: V3.to_vec() }));
    }
}
