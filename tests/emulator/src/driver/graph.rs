//! Graphs of kernels.
//!
//! A graph's nodes run in an order that its edges allow and the seed chooses, so that a missing edge shows.

use std::ffi::c_void;
use std::sync::Arc;

use crate::LaunchShape;

use super::context::Context;
use super::errors::{Answer, Refusal, Status};
use super::foreign::{Out, array, required};
use super::handles::{Handle, Kind};
use super::launch::{Launch, Wanted, prepare};
use super::queue::Task;
use super::serve::{self, Shared};

/// What a graph launch costs beside its kernels.
const GRAPH_LAUNCH_NS: f64 = 2_500.0;

/// A kernel in a graph.
#[derive(Clone)]
pub(super) struct Node {
    handle: Handle,
    launch: Arc<Launch>,
    /// Places of the nodes that must have run before.
    after: Vec<usize>,
}

/// A graph that is being built.
#[derive(Default)]
pub(super) struct Graph {
    nodes: Vec<Node>,
}

/// A graph as it was when it was instantiated.
pub(super) struct Executable {
    nodes: Arc<Vec<Node>>,
}

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KernelNodeParameters {
    /// The kernel (`func`).
    pub function: Handle,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// Pointers to the kernel's parameters.
    pub parameters: *const *const c_void,
    /// Another way to give parameters, which is refused here.
    pub extra: *const *const c_void,
    /// A kernel of the library interface (`kern`), which is refused here.
    pub kernel: Handle,
    /// The context (`ctx`), or null for the current one.
    pub context: Handle,
}

/// Whether a kernel of a module waits in a graph launch.
pub(super) fn runs_module(nodes: &[Node], module: Handle) -> bool {
    nodes.iter().any(|node| node.launch.module == module)
}

impl Context {
    /// Runs all nodes of a graph.
    pub(super) fn run_graph(&mut self, shared: &mut Shared, nodes: &[Node]) -> Answer {
        self.clock_ns += GRAPH_LAUNCH_NS;
        let mut has_run = vec![false; nodes.len()];
        for _ in nodes {
            let may_run =
                |index: &usize| !has_run[*index] && nodes[*index].after.iter().all(|before| has_run[*before]);
            let ready: Vec<usize> = (0..nodes.len()).filter(may_run).collect();
            let next = ready[shared.choose(ready.len())];
            self.run_kernel(shared, &nodes[next].launch)?;
            shared.report.graph_kernels += 1;
            has_run[next] = true;
        }
        Ok(())
    }
}

/// `cuGraphCreate`: an empty graph.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphCreate(graph: Out<'_, Handle>, flags: u32) -> Status {
    serve::in_context("cuGraphCreate", |context, _| {
        let place = required(graph, "phGraph")?;
        if flags != 0 {
            return Err(Refusal::invalid_value(format!("flags are {flags:#x}, but must be 0")));
        }
        place.write(context.graphs.insert(Graph::default()));
        Ok(())
    })
}

/// The places of nodes in a graph, each named once.
fn places(graph: &Graph, dependencies: &[Handle]) -> Result<Vec<usize>, Refusal> {
    let mut found = Vec::with_capacity(dependencies.len());
    for dependency in dependencies {
        let place = graph.nodes.iter().position(|node| node.handle == *dependency);
        let place = place.ok_or_else(|| {
            Refusal::invalid_value(format!("dependency {:#x} is no node of this graph", dependency.0))
        })?;
        if found.contains(&place) {
            let why = format!("dependency {:#x} is named twice", dependency.0);
            return Err(Refusal::invalid_value(why));
        }
        found.push(place);
    }
    Ok(found)
}

/// `cuGraphAddKernelNode_v2`: adds a kernel, with its parameters as they are now, behind other nodes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphAddKernelNode_v2(
    node: Out<'_, Handle>,
    graph: Handle,
    dependencies: *const Handle,
    dependency_count: usize,
    parameters: *const KernelNodeParameters,
) -> Status {
    serve::in_context("cuGraphAddKernelNode_v2", |context, _| {
        let place = required(node, "phGraphNode")?;
        let found = context.graphs.get(graph)?;
        // SAFETY: cuda.h asks the program for an array of that many handles, and for one structure.
        let (dependencies, parameters) = unsafe {
            (array(dependencies, dependency_count, "dependencies")?, array(parameters, 1, "nodeParams")?[0])
        };
        let after = places(found, dependencies)?;
        if parameters.kernel != Handle::NULL {
            return Err(Refusal::new(Status::NOT_SUPPORTED, "`kern` is not emulated, only `func`"));
        }
        if ![Handle::NULL, context.handle()].contains(&parameters.context) {
            return Err(Refusal::invalid_value("`ctx` is neither null nor the current context"));
        }
        let wanted = Wanted {
            function: parameters.function,
            shape: LaunchShape {
                grid: parameters.grid,
                block: parameters.block,
                shared_bytes: parameters.shared_bytes,
            },
            parameters: parameters.parameters,
            extra: parameters.extra,
        };
        // SAFETY: cuda.h asks the program for what `prepare` needs.
        let launch = Arc::new(unsafe { prepare(context, &wanted) }?);
        context.nodes_made += 1;
        let handle = Kind::Node.handle(context.device(), context.nodes_made);
        context.graphs.get_mut(graph)?.nodes.push(Node { handle, launch, after });
        place.write(handle);
        Ok(())
    })
}

/// `cuGraphInstantiateWithFlags`: an executable copy of a graph.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphInstantiateWithFlags(
    executable: Out<'_, Handle>,
    graph: Handle,
    flags: u64,
) -> Status {
    serve::in_context("cuGraphInstantiateWithFlags", |context, _| {
        let place = required(executable, "phGraphExec")?;
        if flags != 0 {
            return Err(Refusal::invalid_value(format!("flags {flags:#x} are not emulated")));
        }
        let nodes = Arc::new(context.graphs.get(graph)?.nodes.clone());
        place.write(context.executables.insert(Executable { nodes }));
        Ok(())
    })
}

/// `cuGraphLaunch`: hands a whole graph to a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(executable: Handle, stream: Handle) -> Status {
    serve::in_context("cuGraphLaunch", |context, shared| {
        context.stream(stream)?;
        let nodes = Arc::clone(&context.executables.get(executable)?.nodes);
        for node in nodes.iter() {
            // A module must outlive the graphs that run its kernels.
            context.modules.get(node.launch.module)?;
        }
        context.issue(stream, Task::Graph(nodes))?;
        shared.report.graph_launches += 1;
        Ok(())
    })
}

/// `cuGraphExecDestroy`: destroys an executable graph; a launch of it that waits is still done.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(executable: Handle) -> Status {
    serve::in_context("cuGraphExecDestroy", |context, _| context.executables.remove(executable).map(drop))
}

/// `cuGraphDestroy`: destroys a graph; what was instantiated from it stays.
#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(graph: Handle) -> Status {
    serve::in_context("cuGraphDestroy", |context, _| context.graphs.remove(graph).map(drop))
}
