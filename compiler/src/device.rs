//! Machines that a program may be meant for, and what they are assumed to reach.
//!
//! The figures of devices are what their makers publish.

use qwen2c_format::Diagnostic;
use qwen2c_request::{Target, TargetDescription};
use qwen2c_targets::AnyTarget;
use serde::Serialize;

use crate::failure::Failure;
use crate::machine;
use crate::suggestion::nearest;

/// Share of the published bandwidth that kernels reading one stream of weights reach: what measurements of
/// copies on these devices show.
const SHARE_OF_BANDWIDTH: f64 = 0.85;

/// Time that one launch takes when launches follow one another in a graph, with nothing to compute.
const LAUNCH_US: f64 = 1.5;

/// Time in which all blocks of a grid wait for one another: what cooperative groups were measured to need on
/// a V100 with one block on each multiprocessor (Zhang et al. 2020).
const BARRIER_US: f64 = 1.4;

/// Share of the published rate of the matrix unit that products reach while all multiprocessors are busy: what
/// engines reach on prompts of 7B models on an A100 with the same instructions, the waves' ends taken out.
const SHARE_OF_MATRIX_RATE: f64 = 0.7;

/// Share of it that `mma.sync`, which the kernels use, can reach where newer instructions set the rate: measured
/// on an H100 (Luo et al. 2024).
const SHARE_OF_OLDER_INSTRUCTIONS: f64 = 0.63;

/// Share of the published rate of multiplications and additions in f32 that products of one row reach. Where
/// weights have 4 bits, one instruction of four multiplies and adds; the others extract a weight and bring it to
/// f32. A multiprocessor starts instructions for 128 threads in a cycle and multiplies for as many, but for 64 on
/// `sm_80`.
const SHARE_OF_VECTOR_RATE: f64 = 0.25;

/// What multiplies matrices on a device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct MatrixUnit {
    /// Multiprocessors, each of which runs blocks of its own.
    pub(crate) multiprocessors: u64,
    /// Operations of 16-bit elements with sums in f32, where all multiprocessors are busy.
    pub(crate) operations_per_s: f64,
}

/// A machine as predictions see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct AssumedMachine {
    /// `a100-80g`, or `this machine`.
    pub(crate) name: String,
    /// Memory that the program can have.
    pub(crate) memory_bytes: u64,
    /// Rate at which memory is read.
    pub(crate) bandwidth_bytes_per_s: f64,
    /// What a launch costs beside its work.
    pub(crate) launch_us: f64,
    /// What a barrier between all blocks costs where one launch serves a token.
    pub(crate) barrier_us: f64,
    /// Operations in f32 with which a token's products are computed; none where that is not known.
    pub(crate) operations_per_s: Option<f64>,
    /// What multiplies matrices; none where that is not known.
    pub(crate) matrix_unit: Option<MatrixUnit>,
}

/// A CUDA device as it is published.
struct Device {
    name: &'static str,
    architecture: &'static str,
    memory_gb: u64,
    bandwidth_gb_per_s: f64,
    multiprocessors: u64,
    /// In f32, outside of the matrix unit.
    tera_operations_per_s: f64,
    /// Dense, 16-bit elements, sums in f32.
    matrix_tera_operations_per_s: f64,
}

impl Device {
    fn operations_per_s(&self) -> f64 {
        let share = SHARE_OF_VECTOR_RATE * if self.architecture == "sm_80" { 2.0 } else { 1.0 };
        self.tera_operations_per_s * 1e12 * share
    }

    fn matrix_unit(&self) -> MatrixUnit {
        let is_older = !matches!(self.architecture, "sm_90" | "sm_100");
        let share = if is_older { 1.0 } else { SHARE_OF_OLDER_INSTRUCTIONS } * SHARE_OF_MATRIX_RATE;
        MatrixUnit {
            multiprocessors: self.multiprocessors,
            operations_per_s: self.matrix_tera_operations_per_s * 1e12 * share,
        }
    }
}

const fn device(
    name: &'static str,
    architecture: &'static str,
    (memory_gb, bandwidth_gb_per_s): (u64, f64),
    (multiprocessors, tera_operations_per_s, matrix_tera_operations_per_s): (u64, f64, f64),
) -> Device {
    Device {
        name,
        architecture,
        memory_gb,
        bandwidth_gb_per_s,
        multiprocessors,
        tera_operations_per_s,
        matrix_tera_operations_per_s,
    }
}

/// Known devices; the first of an architecture is assumed where none is named.
const DEVICES: &[Device] = &[
    device("a100-80g", "sm_80", (80, 2039.0), (108, 19.5, 312.0)),
    device("a100-40g", "sm_80", (40, 1555.0), (108, 19.5, 312.0)),
    device("a30", "sm_80", (24, 933.0), (56, 10.3, 165.0)),
    device("a10", "sm_86", (24, 600.0), (72, 31.2, 125.0)),
    device("a40", "sm_86", (48, 696.0), (84, 37.4, 149.7)),
    device("rtx-3090", "sm_86", (24, 936.0), (82, 35.6, 71.0)),
    device("l40s", "sm_89", (48, 864.0), (142, 91.6, 362.0)),
    device("l4", "sm_89", (24, 300.0), (58, 30.3, 121.0)),
    device("rtx-4090", "sm_89", (24, 1008.0), (128, 82.6, 165.2)),
    device("h100-sxm", "sm_90", (80, 3350.0), (132, 67.0, 989.0)),
    device("h100-pcie", "sm_90", (80, 2000.0), (114, 51.0, 756.0)),
    device("h200", "sm_90", (141, 4800.0), (132, 67.0, 989.0)),
    device("b200", "sm_100", (180, 8000.0), (148, 75.0, 2250.0)),
    device("rtx-5090", "sm_120", (32, 1792.0), (170, 104.8, 209.5)),
];

impl AssumedMachine {
    /// The machine for a target: the named device, the first that fits a CUDA target, or this machine.
    ///
    /// # Errors
    ///
    /// When no device has this name, or the target was not made for it.
    pub(crate) fn choose(target: &AnyTarget, device: Option<&str>) -> Result<Self, Failure> {
        let description = target.description();
        let found = match device {
            Some(name) => Some(named(name)?),
            None => DEVICES.iter().find(|device| has_architecture(description, device.architecture)),
        };
        match (found, target) {
            (Some(device), AnyTarget::Cuda(_)) if is_served(description, device.architecture) => Ok(Self {
                name: device.name.to_owned(),
                memory_bytes: device.memory_gb * 1_000_000_000,
                bandwidth_bytes_per_s: device.bandwidth_gb_per_s * 1e9 * SHARE_OF_BANDWIDTH,
                launch_us: LAUNCH_US,
                barrier_us: BARRIER_US,
                operations_per_s: Some(device.operations_per_s()),
                matrix_unit: Some(device.matrix_unit()),
            }),
            (Some(device), _) => Err(Diagnostic::new(format!(
                "a program for `{}` does not run on `{}`",
                description.name, device.name
            ))
            .at("`--device`")
            .needed(format!("`--target {}`", device.architecture))
            .into()),
            (None, _) => Ok(Self {
                name: "this machine".to_owned(),
                memory_bytes: machine::memory_bytes(),
                bandwidth_bytes_per_s: machine::read_bandwidth_bytes_per_s(),
                launch_us: 0.0,
                barrier_us: 0.0,
                operations_per_s: None,
                matrix_unit: None,
            }),
        }
    }
}

/// The number in `sm_80`.
fn number(architecture: &str) -> u32 {
    architecture.trim_start_matches("sm_").parse().unwrap_or(0)
}

fn has_architecture(target: &TargetDescription, architecture: &str) -> bool {
    target.name.split(',').any(|name| name == architecture)
}

/// Whether a device of `architecture` runs a program: the driver compiles PTX for later architectures.
fn is_served(target: &TargetDescription, architecture: &str) -> bool {
    target.name.split(',').any(|name| number(name) <= number(architecture))
}

fn named(name: &str) -> Result<&'static Device, Failure> {
    let lower_case = name.to_ascii_lowercase();
    if let Some(device) = DEVICES.iter().find(|device| device.name == lower_case) {
        return Ok(device);
    }
    let names = || DEVICES.iter().map(|device| device.name);
    let mut diagnostic = Diagnostic::new(format!("device `{name}` is not known"))
        .at("`--device`")
        .needed(format!("one of {}", names().collect::<Vec<_>>().join(", ")));
    diagnostic = match nearest(&lower_case, names()) {
        Some(meant) => diagnostic.help(format!("did you mean `{meant}`?")),
        None => diagnostic.help("leave it out, and name a rate with `--bandwidth GB/S`"),
    };
    Err(Failure::Usage(diagnostic))
}

#[cfg(test)]
mod tests {
    use qwen2c_targets::resolve_target;

    use super::AssumedMachine;

    fn choose(target: &str, device: Option<&str>) -> Result<AssumedMachine, String> {
        let target = resolve_target(&target.split(',').collect::<Vec<_>>()).unwrap();
        AssumedMachine::choose(&target, device).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_cuda_target_is_planned_for_the_first_device_of_its_architecture() {
        assert_eq!(choose("sm_80", None).unwrap().name, "a100-80g");
        assert_eq!(choose("sm_89,sm_90", None).unwrap().name, "l40s");
        assert_eq!(choose("sm_80", Some("H100-SXM")).unwrap().memory_bytes, 80_000_000_000);
    }

    #[test]
    fn a_device_that_cannot_run_the_program_is_refused_with_what_it_needs() {
        let refused = choose("sm_90", Some("a10")).unwrap_err();
        assert!(refused.contains("`--target sm_86`"), "{refused}");
        assert!(choose("x86-64-v3", Some("a10")).is_err());
        let unknown = choose("sm_80", Some("a100")).unwrap_err();
        assert!(unknown.contains("not known"), "{unknown}");
    }
}
