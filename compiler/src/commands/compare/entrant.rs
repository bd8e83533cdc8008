//! Who takes part: emitted programs and peers, behind one face.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::llama_bench::LlamaBench;
use super::program::EmittedProgram;
use super::workload::{Phase, Workload};
use crate::failure::Failure;

/// One that is measured.
pub(super) enum Entrant {
    /// A program that `qwen2c build` wrote.
    Program(EmittedProgram),
    /// llama.cpp with a model.
    LlamaBench(LlamaBench),
}

/// What an entrant is.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Description {
    /// A name that no other entrant has.
    pub(super) name: String,
    /// The program, or the peer's model.
    pub(super) path: String,
    /// The model's name.
    pub(super) model: String,
    /// Target with its features.
    pub(super) target: String,
    /// Quantization, or the type of weights that are not quantized.
    pub(super) quant: String,
    /// Bytes of the weights; of the whole file for a peer.
    pub(super) weight_bytes: u64,
    /// Somebody else's program.
    pub(super) is_peer: bool,
}

/// All that one entrant measured in one turn.
#[derive(Debug)]
pub(super) struct Turn {
    /// Threads it ran with.
    pub(super) threads: u64,
    /// In the order of [`Workload::phases`].
    pub(super) phases: Vec<PhaseMeasurement>,
}

/// One phase of a turn.
#[derive(Debug)]
pub(super) struct PhaseMeasurement {
    /// Which one.
    pub(super) phase: Phase,
    /// Its speed.
    pub(super) tokens_per_s: f64,
    /// Its kernels; peers show none.
    pub(super) profile: Option<Profile>,
}

/// What a program prints for `profile --json`.
#[derive(Debug, Deserialize)]
pub(super) struct Profile {
    /// The machine's peak around the measurement.
    pub(super) peak: Peak,
    /// All calls of each kernel.
    pub(super) kernels: Vec<KernelTotals>,
    /// The tokens generated, each between two readings of weights; none for prompts and devices.
    pub(super) generation: Option<Generation>,
}

/// Medians over the tokens generated.
#[derive(Debug, Deserialize)]
pub(super) struct Generation {
    /// The time in which a token's bytes could have been read over the time of its steps.
    pub(super) share_of_read: f64,
}

/// The machine's peak, as a program measures it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Peak {
    /// Sequential reads from memory.
    pub(super) read_bytes_per_s: f64,
    /// Operations in `f32`.
    pub(super) operations_per_s: f64,
    /// Operations in `bf16`, where the processor has instructions for them.
    pub(super) bf16_operations_per_s: Option<f64>,
    /// Operations on 8-bit integers, where the processor has instructions for them.
    pub(super) int8_operations_per_s: Option<f64>,
}

impl Peak {
    /// The rate that kernels are held against.
    pub(super) fn matrix_operations_per_s(&self) -> f64 {
        self.bf16_operations_per_s.unwrap_or(self.operations_per_s)
    }
}

/// All calls of one kernel.
#[derive(Debug, Deserialize)]
pub(super) struct KernelTotals {
    /// Its symbol.
    pub(super) name: String,
    /// Calls.
    pub(super) calls: u64,
    /// Microseconds.
    pub(super) us: f64,
    /// Bytes that had to be moved.
    pub(super) bytes: u64,
    /// Operations that had to be done.
    pub(super) operations: u64,
    /// The time that the peak would have taken over the time it took.
    pub(super) share_of_peak: f64,
}

impl Entrant {
    /// Looks at all programs and peers, programs first.
    ///
    /// # Errors
    ///
    /// When one is missing or is not what it should be.
    pub(super) fn open_all(programs: &[PathBuf], peers: &[String]) -> Result<Vec<Self>, Failure> {
        let programs = programs.iter().map(|path| EmittedProgram::open(path).map(Self::Program));
        let peers = peers.iter().map(|argument| LlamaBench::open(argument).map(Self::LlamaBench));
        programs.chain(peers).collect()
    }

    /// A short name.
    pub(super) fn name(&self) -> String {
        let file = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match self {
            Self::Program(program) => file(&program.path),
            Self::LlamaBench(peer) => format!("llama.cpp {}", file(&peer.model)),
        }
    }

    /// What each entrant is. Where two files have the same name, their paths tell them apart.
    pub(super) fn describe_all(entrants: &[Self]) -> Vec<Description> {
        let names: Vec<String> = entrants.iter().map(Self::name).collect();
        let describe = |(entrant, name): (&Self, &String)| {
            let mut description = entrant.describe(name.clone());
            if names.iter().filter(|other| *other == name).count() > 1 {
                description.name = description.path.clone();
            }
            description
        };
        entrants.iter().zip(&names).map(describe).collect()
    }

    fn describe(&self, name: String) -> Description {
        match self {
            Self::Program(EmittedProgram { path, info, .. }) => Description {
                name,
                path: path.display().to_string(),
                model: info.model.clone(),
                target: info.target.clone(),
                quant: if info.quant == "none" { info.dtype.clone() } else { info.quant.clone() },
                weight_bytes: info.weight_bytes,
                is_peer: false,
            },
            Self::LlamaBench(peer) => Description {
                name,
                path: peer.model.display().to_string(),
                model: peer.model.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
                target: "llama-bench".to_owned(),
                quant: peer.quant.clone(),
                weight_bytes: peer.model_bytes,
                is_peer: true,
            },
        }
    }

    /// Positions it serves; none where it takes any number.
    pub(super) fn context(&self) -> Option<u64> {
        match self {
            Self::Program(program) => Some(program.info.context),
            Self::LlamaBench(_) => None,
        }
    }

    /// Measures everything once.
    ///
    /// # Errors
    ///
    /// When it fails or prints something unknown.
    pub(super) fn take_turn(&self, workload: &Workload, threads: Option<u64>) -> Result<Turn, Failure> {
        match self {
            Self::Program(program) => program.take_turn(workload, threads),
            Self::LlamaBench(peer) => peer.take_turn(workload, threads),
        }
    }
}
