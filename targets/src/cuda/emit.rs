//! From the LLVM dialect through LLVM to one PTX module for each architecture.

use std::time::Instant;

use inkwell::attributes::AttributeLoc;
use inkwell::context::Context as LlvmContext;
use inkwell::module::Module;
use inkwell::targets::{InitializationConfig, RelocMode, Target};

use super::describe::{Architecture, CudaTarget};
use super::lower::{self, LaunchSource};
use super::persistent::PersistentSource;
use crate::compile::{
    CompileError, CompiledKernels, DeviceImage, KeepText, KernelSource, Launch, PersistentKernel, elapsed_us,
};
use crate::compile_modules::{assembly, compile_modules, of_program, target_machine};
use crate::cpu::emit::object_without_kernels;

/// What the emitted code runs on.
const TRIPLE: &str = "nvptx64-nvidia-cuda";

/// LLVM's number of the calling convention of entry points.
const KERNEL_CALLING_CONVENTION: u32 = 71;

/// Compiles all kernels into one PTX module for each of the target's architectures. The texts are those of
/// the oldest.
///
/// # Errors
///
/// [`CompileError`] with the messages of MLIR or LLVM.
pub(crate) fn compile_kernels(
    target: &CudaTarget,
    kernels: &[KernelSource<'_>],
    keep: KeepText,
) -> Result<CompiledKernels, CompileError> {
    let mut compiled = CompiledKernels { object: object_without_kernels()?, ..CompiledKernels::default() };
    let launches: Vec<Vec<LaunchSource>> = kernels.iter().map(lower::launches).collect();
    let persistent = PersistentSource::new(kernels, &launches);
    let program = Program { kernels, launches: &launches, persistent: persistent.as_ref() };
    for (index, architecture) in target.architectures().iter().enumerate() {
        let keep = if index == 0 { keep } else { KeepText::default() };
        let ptx = compile_for(*architecture, program, keep, &mut compiled)?;
        compiled.images.push(DeviceImage { architecture: architecture.number, ptx });
    }
    compiled.launches = launches
        .iter()
        .map(|launches| {
            launches
                .iter()
                .map(|LaunchSource { symbol, shape }| Launch {
                    symbol: symbol.clone(),
                    blocks: shape.blocks as u32,
                    rows_per_block: shape.rows_per_block as u32,
                    threads: shape.threads as u32,
                    shared_bytes: shape.shared_bytes as u32,
                })
                .collect()
        })
        .collect();
    compiled.persistent = persistent.map(|PersistentSource { launch, row_words, .. }| PersistentKernel {
        symbol: launch.symbol,
        threads: launch.shape.threads as u32,
        shared_bytes: launch.shape.shared_bytes as u32,
        row_words: row_words as u32,
    });
    Ok(compiled)
}

/// All entry points of a program.
#[derive(Clone, Copy)]
struct Program<'a> {
    kernels: &'a [KernelSource<'a>],
    launches: &'a [Vec<LaunchSource>],
    persistent: Option<&'a PersistentSource>,
}

fn compile_for(
    architecture: Architecture,
    program: Program<'_>,
    keep: KeepText,
    compiled: &mut CompiledKernels,
) -> Result<String, CompileError> {
    Target::initialize_nvptx(&InitializationConfig::default());
    let llvm = LlvmContext::create();
    let machine = target_machine(TRIPLE, architecture.name, architecture.ptx, RelocMode::Default)?;
    let Program { kernels, launches, persistent } = program;
    let of_persistent = persistent.map(|persistent| persistent.launch.symbol.as_str());
    let names: Vec<&str> = kernels.iter().map(|kernel| kernel.name).chain(of_persistent).collect();
    let of_architecture = compile_modules(
        &llvm,
        &machine,
        &names,
        keep,
        |lowering, index| match (kernels.get(index), persistent) {
            (None, Some(persistent)) => persistent.build(lowering, kernels, launches),
            _ => lower::build(lowering, &kernels[index], &launches[index]),
        },
        |module, index| match (launches.get(index), persistent) {
            (None, Some(persistent)) => {
                mark_entry_points(&llvm, module, std::slice::from_ref(&persistent.launch));
            }
            _ => mark_entry_points(&llvm, module, &launches[index]),
        },
    )?;
    let start = Instant::now();
    let ptx = assembly(&machine, &of_architecture.program).map_err(of_program)?;
    compiled.mlir_us += of_architecture.mlir_us;
    compiled.llvm_us += of_architecture.llvm_us + elapsed_us(start);
    if compiled.images.is_empty() {
        compiled.texts = of_architecture.texts;
    }
    Ok(ptx)
}

/// Tells LLVM which functions a launch enters, and with how many threads.
fn mark_entry_points(llvm: &LlvmContext, module: &Module<'_>, launches: &[LaunchSource]) {
    for launch in launches {
        let Some(function) = module.get_function(&launch.symbol) else { continue };
        function.set_call_conventions(KERNEL_CALLING_CONVENTION);
        let threads = format!("{},1,1", launch.shape.threads);
        let blocks = launch.shape.blocks_at_once.map(|blocks| blocks.to_string());
        let attributes = [("nvvm.reqntid", threads.as_str()), ("no-builtins", ""), ("nounwind", "")];
        let blocks = blocks.as_deref().map(|blocks| ("nvvm.minctasm", blocks));
        for (name, value) in attributes.into_iter().chain(blocks) {
            function.add_attribute(AttributeLoc::Function, llvm.create_string_attribute(name, value));
        }
    }
}
