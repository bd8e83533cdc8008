//! Work that is put together once and started with one call: launches, step by step and phase by phase.

use std::rc::Rc;

use qwen2c_format::Diagnostic;

use super::functions::{Handle, KernelNode};
use super::module::Parameters;
use super::{Context, Function, Grid};

/// Launches being put together. Those of a step follow each other; steps of a phase do not wait for one another,
/// and wait for all of the phase before.
pub(crate) struct GraphBuilder {
    context: Rc<Context>,
    graph: Handle,
    /// The last launches of the steps of the phase before.
    before: Vec<Handle>,
    /// The last launches of the steps of this phase, but for the step at hand.
    ends: Vec<Handle>,
    /// The last launch of the step at hand.
    last: Option<Handle>,
}

/// Launches, ready to be started any number of times.
pub(crate) struct Graph {
    context: Rc<Context>,
    execution: Handle,
}

impl GraphBuilder {
    /// No launch yet.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn new(context: &Rc<Context>) -> Result<Self, Diagnostic> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: the driver writes one handle; no flags are defined.
        let status = unsafe { (context.functions().graph_create)(&mut graph, 0) };
        context.check(status, || "make a graph".to_owned())?;
        Ok(Self { context: Rc::clone(context), graph, before: Vec::new(), ends: Vec::new(), last: None })
    }

    /// Begins a step, in the phase of the step before or in one of its own.
    pub(crate) fn begin_step(&mut self, joins_previous: bool) {
        self.ends.extend(self.last.take());
        // Whoever waits for a phase without launches waits for the one before.
        if !joins_previous && !self.ends.is_empty() {
            self.before = std::mem::take(&mut self.ends);
        }
    }

    /// Adds a launch of the step at hand.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn add(
        &mut self,
        function: Function,
        grid: &Grid,
        operands: &[u64],
        rows: u32,
        name: impl FnOnce() -> String,
    ) -> Result<(), Diagnostic> {
        let mut parameters = Parameters::new(operands, &rows);
        let node = KernelNode {
            function: function.handle(),
            grid: [grid.blocks[0], grid.blocks[1], 1],
            block: [grid.threads, 1, 1],
            shared_bytes: grid.shared_bytes,
            parameters: parameters.as_mut_ptr(),
            extra: std::ptr::null_mut(),
            kernel: std::ptr::null_mut(),
            context: self.context.handle(),
        };
        let mut added = std::ptr::null_mut();
        let before = if self.last.is_some() { self.last.as_slice() } else { &self.before };
        // SAFETY: the graph is being built, the nodes before are of it, and the function belongs to a
        // loaded module; the driver copies node and parameters before it returns.
        let status = unsafe {
            let add = self.context.functions().graph_add_kernel;
            add(&mut added, self.graph, before.as_ptr(), before.len(), &node)
        };
        self.context.check(status, || format!("add {} to a graph", name()))?;
        self.last = Some(added);
        Ok(())
    }

    /// Makes the launches ready.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn finish(self) -> Result<Graph, Diagnostic> {
        let mut execution = std::ptr::null_mut();
        // SAFETY: the driver writes one handle; the graph is whole.
        let status = unsafe { (self.context.functions().graph_instantiate)(&mut execution, self.graph, 0) };
        self.context.check(status, || "prepare a graph".to_owned())?;
        Ok(Graph { context: Rc::clone(&self.context), execution })
    }
}

impl Drop for GraphBuilder {
    fn drop(&mut self) {
        // SAFETY: the graph is this one's own; what was made from it does not need it.
        unsafe { (self.context.functions().graph_destroy)(self.graph) };
    }
}

impl Graph {
    /// Puts all launches into the stream.
    ///
    /// # Errors
    ///
    /// What the driver says; it may be the failure of earlier work.
    pub(crate) fn launch(&self) -> Result<(), Diagnostic> {
        let context = &self.context;
        // SAFETY: both handles are alive.
        let status = unsafe { (context.functions().graph_launch)(self.execution, context.stream()) };
        context.check(status, || "start a graph".to_owned())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the graph is this one's own and is not started any more.
        unsafe { (self.context.functions().graph_execution_destroy)(self.execution) };
    }
}
