//! What runs steps: the processor's workers or a device, with one face.

mod on_processor;

use std::ops::Range;

use qwen2c_format::Diagnostic;

use crate::cuda::DeviceExecutor;
pub(crate) use on_processor::ProcessorExecutor;

/// A run of consecutive steps of one list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    /// Index of the list.
    pub(crate) list: usize,
    /// Steps of the list: body first, then head.
    pub(crate) steps: Range<usize>,
    /// Rows of the step, 1 to the list's `max_rows`.
    pub(crate) rows: u32,
    /// Rows that go through the head, 1 to the list's `max_logit_rows`.
    pub(crate) logit_rows: u32,
}

/// Is told when a step is done; `()` is not interested, and costs nothing.
pub(crate) trait Observer {
    /// Whether it wants to be told: steps that could run together then run one after another.
    fn is_interested(&self) -> bool {
        true
    }

    /// Called behind each step, by worker 0 behind the barrier that ends it; where steps of a phase run
    /// together, because nobody is interested, behind the last of them. A device measures itself how
    /// many `seconds` a step took, and tells when all steps of the job are done.
    fn after_step(&mut self, list: usize, step: usize, seconds: Option<f64>);
}

impl Observer for () {
    fn is_interested(&self) -> bool {
        false
    }

    fn after_step(&mut self, _list: usize, _step: usize, _seconds: Option<f64>) {}
}

/// Memory of a program and what computes in it, ready to run steps.
pub(crate) enum Executor {
    /// Workers of the processor.
    Processor(ProcessorExecutor),
    /// A GPU.
    Device(Box<DeviceExecutor>),
}

impl Executor {
    /// The steps of a list's body and head: `0..body` and `body..all`.
    pub(crate) fn parts(&self, list: usize) -> (Range<usize>, Range<usize>) {
        match self {
            Self::Processor(executor) => executor.parts(list),
            Self::Device(executor) => executor.parts(list),
        }
    }

    /// Threads of the host that work, the calling thread included.
    pub(crate) fn threads(&self) -> usize {
        match self {
            Self::Processor(executor) => executor.threads(),
            Self::Device(_) => 1,
        }
    }

    /// Runs steps and returns when they are done.
    ///
    /// # Errors
    ///
    /// What a device's driver says.
    pub(crate) fn run(&mut self, job: &Job, observer: &mut impl Observer) -> Result<(), Diagnostic> {
        match self {
            Self::Processor(executor) => {
                executor.run(job, observer);
                Ok(())
            }
            Self::Device(executor) => executor.run(job, observer),
        }
    }

    /// Logits of so many rows of `columns` each, between runs.
    ///
    /// # Errors
    ///
    /// What a device's driver says.
    pub(crate) fn logits(&mut self, offset: u64, rows: usize, columns: usize) -> Result<&[f32], Diagnostic> {
        match self {
            Self::Processor(executor) => Ok(executor.floats(offset, rows * columns)),
            Self::Device(executor) => executor.logits(offset, rows, rows * columns),
        }
    }

    /// The largest logits of the last row and their ids, where a device has left them.
    pub(crate) fn candidates(&self) -> Option<(&[f32], &[u32])> {
        match self {
            Self::Processor(_) => None,
            Self::Device(executor) => executor.candidates(),
        }
    }

    /// Writes inputs, between runs.
    pub(crate) fn write_integers(&mut self, offset: u64, values: impl ExactSizeIterator<Item = u32>) {
        match self {
            Self::Processor(executor) => executor.write_integers(offset, values),
            Self::Device(executor) => executor.write_integers(offset, values),
        }
    }
}
