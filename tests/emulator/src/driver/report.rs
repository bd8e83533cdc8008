//! What a process did with the device, for tests to judge: written as JSON to `QWEN2C_EMULATOR_REPORT`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{Counts, Fault};

use super::errors::{Refusal, Status};
use super::settings::Settings;

/// Faults and refusals beyond this many are counted by their absence: one usually breeds many.
const MOST_LISTED: usize = 200;

/// What was not given back when its context was released or the process ended.
#[derive(Debug, Default)]
pub(super) struct Leaks {
    pub(super) contexts: u64,
    pub(super) device_allocations: u64,
    pub(super) device_bytes: u64,
    pub(super) pinned_allocations: u64,
    pub(super) pinned_bytes: u64,
    pub(super) streams: u64,
    pub(super) events: u64,
    pub(super) modules: u64,
    pub(super) graphs: u64,
    pub(super) executable_graphs: u64,
    /// Work that nobody waited for.
    pub(super) unfinished_works: u64,
}

/// Everything that is told at the end.
#[derive(Debug, Default)]
pub(super) struct Report {
    kernels: BTreeMap<String, Counts>,
    /// Modules that were compiled, in the order of their loads.
    modules: Vec<Value>,
    /// Calls of `cuLaunchKernel` that were accepted.
    pub(super) launches: u64,
    /// Calls of `cuGraphLaunch` that were accepted.
    pub(super) graph_launches: u64,
    /// Kernels that ran as nodes of graphs.
    pub(super) graph_kernels: u64,
    /// Calls that waited for a stream or an event.
    pub(super) synchronizations: u64,
    pub(super) bytes_to_device: u64,
    pub(super) bytes_to_host: u64,
    pub(super) bytes_filled: u64,
    /// Most device memory that was allocated at one time.
    pub(super) peak_device_bytes: u64,
    faults: Vec<Value>,
    refusals: Vec<Value>,
    pub(super) leaks: Leaks,
}

impl Report {
    /// Adds what a kernel did.
    pub(super) fn count(&mut self, kernel: &str, counts: &Counts) {
        match self.kernels.get_mut(kernel) {
            Some(sum) => *sum += counts,
            None => {
                self.kernels.insert(kernel.to_owned(), *counts);
            }
        }
    }

    /// Notes that a module of PTX was compiled.
    pub(super) fn load(&mut self, ptx: &[u8]) {
        self.modules.push(json!({ "kind": "PTX", "bytes": ptx.len() }));
    }

    /// Notes and says that a call was refused.
    pub(super) fn refuse(&mut self, call: &str, status: Status, why: String) {
        eprintln!("emulator: {call}: {}: {why}", status.name());
        if self.refusals.len() < MOST_LISTED {
            self.refusals.push(json!({ "call": call, "error": status.name(), "why": why }));
        }
    }

    /// Notes and says what a kernel did wrong.
    pub(super) fn kernel_fault(&mut self, fault: &Fault) {
        eprintln!("emulator: {fault}");
        self.add_fault(json!({
            "kernel": fault.kernel,
            "line": fault.line,
            "instruction": fault.instruction,
            "block": fault.block,
            "thread": fault.thread,
            "what": fault.what,
        }));
    }

    /// Notes and says what the program around the kernels did wrong, and refuses with `status`.
    pub(super) fn program_fault(&mut self, status: Status, call: &str, what: String) -> Refusal {
        eprintln!("emulator: fault of the program in {call}: {}: {what}", status.name());
        self.add_fault(json!({ "call": call, "error": status.name(), "what": what }));
        Refusal::silent(status)
    }

    fn add_fault(&mut self, fault: Value) {
        if self.faults.len() < MOST_LISTED {
            self.faults.push(fault);
        }
    }

    fn json(&self, settings: &Settings) -> Value {
        let kernels: Map<String, Value> = self
            .kernels
            .iter()
            .map(|(kernel, counts)| {
                let counted: Map<String, Value> = counts
                    .named()
                    .into_iter()
                    .filter(|(name, _)| *name != "launches")
                    .map(|(name, count)| (name.to_owned(), count.into()))
                    .collect();
                (kernel.clone(), json!({ "calls": counts.launches, "counts": counted }))
            })
            .collect();
        let leaks = &self.leaks;
        json!({
            "device": {
                "name": settings.model.name,
                "architecture": settings.model.architecture,
                "memory_bytes": settings.memory_bytes,
                "driver_version": settings.driver_version,
            },
            "seed": settings.seed,
            "kernels": kernels,
            "modules": self.modules,
            "launches": self.launches,
            "graph_launches": self.graph_launches,
            "graph_kernels": self.graph_kernels,
            "synchronizations": self.synchronizations,
            "bytes_to_device": self.bytes_to_device,
            "bytes_to_host": self.bytes_to_host,
            "bytes_filled": self.bytes_filled,
            "peak_device_bytes": self.peak_device_bytes,
            "faults": self.faults,
            "refusals": self.refusals,
            "leaks": {
                "contexts": leaks.contexts,
                "device_allocations": leaks.device_allocations,
                "device_bytes": leaks.device_bytes,
                "pinned_allocations": leaks.pinned_allocations,
                "pinned_bytes": leaks.pinned_bytes,
                "streams": leaks.streams,
                "events": leaks.events,
                "modules": leaks.modules,
                "graphs": leaks.graphs,
                "executable_graphs": leaks.executable_graphs,
                "unfinished_works": leaks.unfinished_works,
            },
        })
    }

    /// Writes the report as it stands, if somebody asked for it.
    pub(super) fn write(&self, settings: &Settings) {
        let Some(path) = &settings.report else { return };
        let text = format!("{:#}\n", self.json(settings));
        if let Err(error) = std::fs::write(path, text) {
            eprintln!("emulator: the report cannot be written to {}: {error}", path.display());
        }
    }
}
