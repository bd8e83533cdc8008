//! All targets by name, and the choice of the family that serves one.

use std::fmt;

use qwen2c_request::{
    CacheType, KernelChoice, KernelRequest, Target, TargetDescription, Unservable, WeightLayout, WeightType,
};

use crate::compile::{CompileError, CompiledKernels, KeepText, KernelSource};
use crate::cpu::describe::{CpuTarget, known_levels, resolve_level};
use crate::cuda::describe::{CudaTarget, known_architectures};
use crate::{cpu, cuda};

/// A target of any family.
#[derive(Clone, Debug)]
pub enum AnyTarget {
    /// A level of x86-64.
    Cpu(CpuTarget),
    /// One or more of NVIDIA's architectures.
    Cuda(CudaTarget),
}

impl AnyTarget {
    fn target(&self) -> &dyn Target {
        match self {
            Self::Cpu(target) => target,
            Self::Cuda(target) => target,
        }
    }
}

impl Target for AnyTarget {
    fn description(&self) -> &TargetDescription {
        self.target().description()
    }

    fn choose(&self, request: &KernelRequest) -> Result<KernelChoice, Unservable> {
        self.target().choose(request)
    }

    fn kernel_rows(&self, request: &KernelRequest) -> u64 {
        self.target().kernel_rows(request)
    }

    fn weight_bytes(&self, weight: &WeightType, layout: WeightLayout) -> u64 {
        self.target().weight_bytes(weight, layout)
    }

    fn cache_bytes(&self, cache: &CacheType) -> u64 {
        self.target().cache_bytes(cache)
    }
}

/// Compiles all kernels: to one object for a processor, to PTX for CUDA devices.
///
/// # Errors
///
/// [`CompileError`] with the messages of MLIR or LLVM.
pub fn compile_kernels(
    target: &AnyTarget,
    kernels: &[KernelSource<'_>],
    keep: KeepText,
) -> Result<CompiledKernels, CompileError> {
    match target {
        AnyTarget::Cpu(target) => cpu::emit::compile_kernels(target, kernels, keep),
        AnyTarget::Cuda(target) => cuda::emit::compile_kernels(target, kernels, keep),
    }
}

/// Why a target's name leads to no target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// No such target.
    Unknown {
        /// As given.
        name: String,
        /// The nearest name.
        suggestion: Option<String>,
    },
    /// Several targets in one program that cannot share weights and kernels.
    Mixed {
        /// As given.
        names: Vec<String>,
    },
    /// The feature cannot be added to this target.
    UnknownFeature {
        /// The target before the `+`.
        target: String,
        /// As given.
        feature: String,
        /// What can be added.
        known: Vec<&'static str>,
    },
    /// `native` on a machine below every level.
    MachineTooOld {
        /// Features of the lowest level that the machine lacks, in the names of `/proc/cpuinfo`.
        missing: Vec<&'static str>,
    },
}

impl fmt::Display for TargetError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name, suggestion } => {
                write!(formatter, "unknown target `{name}`")?;
                if let Some(suggestion) = suggestion {
                    write!(formatter, "; did you mean `{suggestion}`?")?;
                }
                Ok(())
            }
            Self::Mixed { names } => {
                write!(
                    formatter,
                    "`{}` cannot share a program: only CUDA architectures can",
                    names.join("`, `")
                )
            }
            Self::UnknownFeature { target, feature, known } if known.is_empty() => {
                write!(formatter, "feature `{feature}` cannot be added to `{target}`")
            }
            Self::UnknownFeature { target, feature, known } => {
                write!(
                    formatter,
                    "feature `{feature}` cannot be added to `{target}`; known: {}",
                    known.join(", ")
                )
            }
            Self::MachineTooOld { missing } => {
                write!(formatter, "this machine is below `x86-64-v3`: it lacks {}", missing.join(", "))
            }
        }
    }
}

impl std::error::Error for TargetError {}

/// Names and one-line summaries of all targets, `native` first.
pub fn known_targets() -> Vec<(&'static str, &'static str)> {
    known_levels().chain(known_architectures()).collect()
}

/// The target with these names, in any case: `native`, a level, a level with features
/// (`x86-64-v4+avx512vnni`), or one or more CUDA architectures.
///
/// # Errors
///
/// [`TargetError`] names what is wrong and the nearest known name.
pub fn resolve_target<S: AsRef<str>>(names: &[S]) -> Result<AnyTarget, TargetError> {
    let names: Vec<String> = names.iter().map(|name| name.as_ref().to_ascii_lowercase()).collect();
    let borrowed: Vec<&str> = names.iter().map(String::as_str).collect();
    if let Some(target) = CudaTarget::named(&borrowed) {
        return Ok(AnyTarget::Cuda(target));
    }
    let mut resolved = Vec::with_capacity(names.len());
    for name in &borrowed {
        match resolve_level(name) {
            Some(target) => resolved.push(AnyTarget::Cpu(target?)),
            None if CudaTarget::named(&[name]).is_some() => {}
            None => {
                let stem = name.split('+').next().unwrap_or_default();
                let suggestion = nearest_name(stem);
                return Err(TargetError::Unknown { name: (*name).to_owned(), suggestion });
            }
        }
    }
    match (resolved.pop(), names.len()) {
        (Some(target), 1) => Ok(target),
        _ => Err(TargetError::Mixed { names }),
    }
}

/// The known name that needs the fewest edits, if that is few.
fn nearest_name(name: &str) -> Option<String> {
    known_targets()
        .into_iter()
        .map(|(candidate, _)| (edit_distance(name, candidate), candidate))
        .min()
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, candidate)| candidate.to_owned())
}

/// Insertions, deletions and substitutions between two names.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, from) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, to) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(names: &[&str]) -> Result<String, String> {
        resolve_target(names)
            .map(|target| target.description().name.clone())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_case_insensitive() {
        assert_eq!(name_of(&["X86-64-V3"]), Ok("x86-64-v3".to_owned()));
        assert_eq!(name_of(&["SM_80"]), Ok("sm_80".to_owned()));
    }

    #[test]
    fn architectures_share_a_program_in_one_order() {
        assert_eq!(name_of(&["sm_90", "sm_80", "sm_90"]), Ok("sm_80,sm_90".to_owned()));
        let mixed = "`sm_80`, `x86-64-v3` cannot share a program: only CUDA architectures can";
        assert_eq!(name_of(&["sm_80", "x86-64-v3"]), Err(mixed.to_owned()));
        assert!(matches!(resolve_target(&["x86-64-v3", "x86-64-v4"]), Err(TargetError::Mixed { .. })));
    }

    #[test]
    fn near_misses_are_suggested() {
        assert_eq!(name_of(&["sm80"]), Err("unknown target `sm80`; did you mean `sm_80`?".to_owned()));
        assert_eq!(
            name_of(&["x86-64-v5"]),
            Err("unknown target `x86-64-v5`; did you mean `x86-64-v3`?".to_owned())
        );
        assert_eq!(name_of(&["riscv"]), Err("unknown target `riscv`".to_owned()));
        assert_eq!(
            name_of(&["sm_80", "sm_91"]).unwrap_err(),
            "unknown target `sm_91`; did you mean `sm_90`?"
        );
    }
}
