//! The steps on a device: the decode list as one graph or one launch, all others launch by launch.

use std::ops::Range;
use std::rc::Rc;

use qwen2c_format::{Diagnostic, Operand, PersistentKernel, ProgramFile, Region, RowAxis, Step, StepLists};

use super::device::{self, DeviceFacts};
use super::driver::{Context, Driver, Event, Function, Graph, GraphBuilder, Grid, Module};
use super::exchange::Exchange;
use super::image;
use super::memory::{DeviceMemory, upload};
use super::persistent::{self, PersistentDecode, Row};
use crate::execute::{Job, Observer};
use crate::memory::Mapping;

/// CUDA's own name for "one after another, and tell where it failed".
const STEP_BY_STEP_VARIABLE: &str = "CUDA_LAUNCH_BLOCKING";

/// An entry point and its grid, whose second dimension depends on the rows.
struct BoundLaunch {
    symbol: String,
    function: Function,
    blocks: u32,
    rows_per_block: u32,
    threads: u32,
    shared_bytes: u32,
}

impl BoundLaunch {
    fn grid(&self, rows: u32) -> Grid {
        let blocks = [self.blocks, rows.div_ceil(self.rows_per_block)];
        Grid { blocks, threads: self.threads, shared_bytes: self.shared_bytes }
    }
}

/// A kernel with its launches.
struct BoundKernel {
    name: String,
    launches: Vec<BoundLaunch>,
}

/// A step with its addresses.
struct BoundStep {
    kernel: usize,
    layer: Option<u32>,
    row_axis: RowAxis,
    joins_previous: bool,
    operands: Box<[u64]>,
}

impl BoundStep {
    fn rows(&self, job: &Job) -> u32 {
        match self.row_axis {
            RowAxis::Rows => job.rows,
            RowAxis::LogitRows => job.logit_rows,
        }
    }
}

/// The steps of one list.
struct BoundList {
    name: String,
    steps: Vec<BoundStep>,
    body_steps: usize,
    max_rows: u32,
    max_logit_rows: u32,
}

/// What runs the decode list at once.
enum WholeDecode {
    /// Its launches as one graph.
    Graph(Graph),
    /// One launch, for a program that was built so.
    Persistent(PersistentDecode),
}

/// A device with a program's code, weights and arena, ready to run steps.
///
/// Fields are dropped in this order: what uses something comes before it.
pub(crate) struct DeviceExecutor {
    /// The whole decode list, where it always has one row.
    decode: Option<WholeDecode>,
    exchange: Exchange,
    events: Vec<Event>,
    kernels: Vec<BoundKernel>,
    lists: Vec<BoundList>,
    arena: DeviceMemory,
    _weights: DeviceMemory,
    module: Module,
    context: Rc<Context>,
    facts: DeviceFacts,
    image: String,
    is_step_by_step: bool,
    /// The list that ran last, whose logits are those on the device.
    last_list: usize,
}

impl DeviceExecutor {
    /// Chooses and checks the device, loads code and weights, and prepares the graph.
    ///
    /// # Errors
    ///
    /// Where the device cannot run the program, with both sides; what the driver says.
    pub(crate) fn start(
        driver: Driver,
        number: u32,
        program: &ProgramFile,
        weights: &Mapping,
    ) -> Result<Self, Diagnostic> {
        let ProgramFile { manifest, lists, device_code, .. } = program;
        let facts = DeviceFacts::read(&driver, number)?;
        let prefers_ptx = std::env::var_os(image::USE_PTX_VARIABLE).is_some_and(|value| value == "1");
        let images = device::check_architecture(&facts, device_code, prefers_ptx)?;
        device::check_shared_memory(&facts, lists)?;
        let handle = driver.device(number)?;
        let context = Context::new(driver, handle).map_err(|error| error.within("start: the device"))?;
        device::check_memory(&facts, &context, manifest, persistent::table_bytes(lists))?;
        let in_code = |error: Diagnostic| error.within("start: the program's code");
        let (module, image) = image::load(&context, &images).map_err(in_code)?;
        let kernels = bind_kernels(&module, lists).map_err(in_code)?;
        let arena = DeviceMemory::zeroed(&context, manifest.arena_bytes, "activations and cache")
            .map_err(|error| error.within("start: memory for activations and cache"))?;
        let weights = upload(&context, weights, manifest.weight_bytes)?;
        let lists = bind_lists(program, &arena, &weights)?;
        let is_step_by_step =
            std::env::var_os(STEP_BY_STEP_VARIABLE).is_some_and(|value| !value.is_empty() && value != "0");
        let mut executor = Self {
            decode: None,
            exchange: Exchange::new(&context, manifest, &program.lists)
                .map_err(|error| error.within("start: memory for inputs and logits"))?,
            events: Vec::new(),
            kernels,
            lists,
            arena,
            _weights: weights,
            module,
            context,
            facts,
            image,
            is_step_by_step,
            last_list: 0,
        };
        if executor.lists[0].max_rows == 1 && !is_step_by_step {
            let decode = executor.whole_decode(program.lists.persistent.as_ref());
            let name = &executor.lists[0].name;
            executor.decode =
                Some(decode.map_err(|error| error.within(format!("start: the steps of `{name}`")))?);
        }
        Ok(executor)
    }

    /// The first list at once: as one launch where the program and the device can, else as one graph.
    fn whole_decode(&self, kernel: Option<&PersistentKernel>) -> Result<WholeDecode, Diagnostic> {
        let persistent = match kernel {
            Some(kernel) => self.persistent_decode(kernel)?,
            None => None,
        };
        Ok(match persistent {
            Some(persistent) => WholeDecode::Persistent(persistent),
            None => WholeDecode::Graph(self.decode_graph()?),
        })
    }

    /// The device that was chosen.
    pub(crate) fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    /// Device and image: `NVIDIA A100-SXM4-80GB (sm_80), cubin for sm_80`.
    pub(crate) fn description(&self) -> String {
        let decode = match &self.decode {
            Some(WholeDecode::Persistent(decode)) => format!(", a token in {} blocks", decode.blocks()),
            _ => String::new(),
        };
        format!("{}, {}{decode}", self.facts.text(), self.image)
    }

    /// The steps of a list's body and head: `0..body` and `body..all`.
    pub(crate) fn parts(&self, list: usize) -> (Range<usize>, Range<usize>) {
        let bound = &self.lists[list];
        (0..bound.body_steps, bound.body_steps..bound.steps.len())
    }

    /// Runs steps and returns when they are done and, where they end with the head, candidates or logits are
    /// there.
    ///
    /// # Errors
    ///
    /// What the driver says, with the step.
    pub(crate) fn run(&mut self, job: &Job, observer: &mut impl Observer) -> Result<(), Diagnostic> {
        let list = &self.lists[job.list];
        let in_range = (1..=list.max_rows).contains(&job.rows)
            && (1..=list.max_logit_rows).contains(&job.logit_rows)
            && job.steps.end <= list.steps.len();
        assert!(in_range, "{job:?} exceeds its list");
        if job.steps.is_empty() {
            return Ok(());
        }
        let has_logits = job.steps.end == list.steps.len();
        self.last_list = job.list;
        let is_whole = job.list == 0 && job.steps.start == 0 && has_logits;
        self.exchange.send(&self.arena).map_err(|error| self.at_job(job, error))?;
        if observer.is_interested() {
            self.start_with_events(job).map_err(|error| self.at_job(job, error))?;
        } else if let Some(decode) = self.decode.as_ref().filter(|_| is_whole) {
            let launched = match decode {
                WholeDecode::Graph(graph) => graph.launch(),
                WholeDecode::Persistent(decode) => decode.launch(&self.context),
            };
            launched.map_err(|error| self.at_job(job, error))?;
        } else {
            self.start_steps(job)?;
        }
        if has_logits {
            self.fetch(job).map_err(|error| self.at_job(job, error))?;
        }
        self.exchange.wait().map_err(|error| self.at_job(job, error))?;
        if observer.is_interested() { self.report(job, observer) } else { Ok(()) }
    }

    /// Puts the copy of what the head leaves into the stream: the candidates where there are any, which
    /// nearly always suffice, else the logits.
    fn fetch(&mut self, job: &Job) -> Result<(), Diagnostic> {
        if job.list == 0 && self.exchange.fetch_candidates(&self.arena)? {
            return Ok(());
        }
        self.exchange.fetch_logits(&self.arena, job.logit_rows as usize)
    }

    /// The largest logits of the last run and their ids; none where the list leaves none.
    pub(crate) fn candidates(&self) -> Option<(&[f32], &[u32])> {
        self.exchange.candidates()
    }

    /// So many rows of logits of the last run, from the first row on, fetched where they are not there yet.
    ///
    /// # Errors
    ///
    /// What the driver says, with the step that left them.
    pub(crate) fn logits(&mut self, offset: u64, rows: usize, count: usize) -> Result<&[f32], Diagnostic> {
        if self.exchange.logit_rows() < rows {
            let fetched = self.exchange.fetch_logits(&self.arena, rows).and_then(|()| self.exchange.wait());
            let last = self.lists[self.last_list].steps.len() - 1;
            fetched.map_err(|error| {
                error.within(format!("logits behind {}", self.step_name(self.last_list, last)))
            })?;
        }
        Ok(self.exchange.logits(offset, count))
    }

    /// Writes inputs of the next run.
    pub(crate) fn write_integers(&mut self, offset: u64, values: impl ExactSizeIterator<Item = u32>) {
        self.exchange.write_integers(offset, values);
    }

    /// Puts the launches of the job's steps into the stream.
    fn start_steps(&self, job: &Job) -> Result<(), Diagnostic> {
        for step in job.steps.clone() {
            self.start_step(job, step)?;
        }
        Ok(())
    }

    fn start_step(&self, job: &Job, index: usize) -> Result<(), Diagnostic> {
        let step = &self.lists[job.list].steps[index];
        let rows = step.rows(job);
        for launch in &self.kernels[step.kernel].launches {
            let name = || format!("kernel `{}`", launch.symbol);
            self.context
                .launch(launch.function, &launch.grid(rows), &step.operands, rows, name)
                .and_then(|()| if self.is_step_by_step { self.context.synchronize() } else { Ok(()) })
                .map_err(|error| error.at(self.step_name(job.list, index)))?;
        }
        Ok(())
    }

    /// As [`DeviceExecutor::start_steps`], with an event before the first step and one behind each.
    fn start_with_events(&mut self, job: &Job) -> Result<(), Diagnostic> {
        while self.events.len() <= job.steps.len() {
            self.events.push(Event::new(&self.context)?);
        }
        self.events[0].record()?;
        for (step, event) in job.steps.clone().zip(&self.events[1..]) {
            self.start_step(job, step)?;
            event.record().map_err(|error| error.at(self.step_name(job.list, step)))?;
        }
        Ok(())
    }

    /// Tells the observer what the events have measured.
    fn report(&self, job: &Job, observer: &mut impl Observer) -> Result<(), Diagnostic> {
        for (step, events) in job.steps.clone().zip(self.events.windows(2)) {
            let seconds = events[1].seconds_since(&events[0]);
            let seconds = seconds.map_err(|error| error.at(self.step_name(job.list, step)))?;
            observer.after_step(job.list, step, Some(seconds));
        }
        Ok(())
    }

    /// Body and head of the first list, for one row, as a graph.
    fn decode_graph(&self) -> Result<Graph, Diagnostic> {
        let mut builder = GraphBuilder::new(&self.context)?;
        for (index, step) in self.lists[0].steps.iter().enumerate() {
            builder.begin_step(step.joins_previous);
            for launch in &self.kernels[step.kernel].launches {
                let name = || format!("kernel `{}`", launch.symbol);
                builder
                    .add(launch.function, &launch.grid(1), &step.operands, 1, name)
                    .map_err(|error| error.at(self.step_name(0, index)))?;
            }
        }
        builder.finish()
    }

    /// Body and head of the first list, for one row, as one launch; None where the device cannot.
    fn persistent_decode(&self, kernel: &PersistentKernel) -> Result<Option<PersistentDecode>, Diagnostic> {
        let numbers: Vec<u64> = self
            .kernels
            .iter()
            .scan(0, |next, kernel| {
                let first = *next;
                *next += kernel.launches.len() as u64;
                Some(first)
            })
            .collect();
        let launches = |step: &'_ BoundStep| {
            let first = numbers[step.kernel];
            self.kernels[step.kernel]
                .launches
                .iter()
                .zip(first..)
                .map(|(launch, number)| (number, launch.blocks))
        };
        let rows: Vec<Row<'_>> = self.lists[0]
            .steps
            .iter()
            .flat_map(|step| {
                launches(step).map(|(number, blocks)| Row { number, blocks, operands: &step.operands })
            })
            .collect();
        PersistentDecode::new(&self.context, &self.module, &self.facts, kernel, &rows)
    }

    /// ``step 12 of `decode`, kernel `attend` of layer 3``.
    fn step_name(&self, list: usize, index: usize) -> String {
        let BoundList { name, steps, .. } = &self.lists[list];
        let step = &steps[index];
        let layer = step.layer.map(|layer| format!(" of layer {layer}")).unwrap_or_default();
        format!("step {index} of `{name}`, kernel `{}`{layer}", self.kernels[step.kernel].name)
    }

    /// A failure that no step is known for, because it is noticed only behind all of a job's steps.
    fn at_job(&self, job: &Job, error: Diagnostic) -> Diagnostic {
        let last = job.steps.end - 1;
        let (from, to) = (self.step_name(job.list, job.steps.start), self.step_name(job.list, last));
        error.within(if job.steps.len() == 1 { from } else { format!("{from}, to {to}") })
    }
}

fn bind_kernels(module: &Module, lists: &StepLists) -> Result<Vec<BoundKernel>, Diagnostic> {
    let bind = |launch: &qwen2c_format::Launch| {
        Ok(BoundLaunch {
            symbol: launch.symbol.clone(),
            function: module.function(&launch.symbol, launch.shared_bytes)?,
            blocks: launch.blocks,
            rows_per_block: launch.rows_per_block,
            threads: launch.threads,
            shared_bytes: launch.shared_bytes,
        })
    };
    let kernels = lists.kernels.iter().map(|kernel| {
        let launches = kernel.launches.iter().map(bind).collect::<Result<_, Diagnostic>>()?;
        Ok(BoundKernel { name: kernel.name.clone(), launches })
    });
    kernels.collect()
}

fn bind_lists(
    program: &ProgramFile,
    arena: &DeviceMemory,
    weights: &DeviceMemory,
) -> Result<Vec<BoundList>, Diagnostic> {
    let address = |operand: &Operand| {
        let memory = match operand.region {
            Region::Arena => arena,
            Region::Weights => weights,
        };
        memory.address(operand.offset, operand.bytes)
    };
    let bind = |step: &Step| {
        Some(BoundStep {
            kernel: step.kernel as usize,
            layer: step.layer,
            row_axis: step.row_axis,
            joins_previous: step.joins_previous,
            operands: step.operands.iter().map(address).collect::<Option<_>>()?,
        })
    };
    let lists = program.lists.lists.iter().map(|list| {
        Some(BoundList {
            name: list.name.clone(),
            steps: list.body.iter().chain(&list.head).map(bind).collect::<Option<_>>()?,
            body_steps: list.body.len(),
            max_rows: list.max_rows,
            max_logit_rows: list.max_logit_rows,
        })
    });
    lists.collect::<Option<_>>().ok_or_else(|| {
        Diagnostic::new("the program's steps name memory that is not there")
            .help("report this as a bug of `qwen2c`")
    })
}
