//! From the LLVM dialect through LLVM to one PTX module for each architecture.

use std::time::Instant;

use inkwell::OptimizationLevel;
use inkwell::attributes::AttributeLoc;
use inkwell::context::Context as LlvmContext;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{
    CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple,
};

use super::describe::{Architecture, CudaTarget};
use super::lower::{self, LaunchSource};
use crate::compile::{
    CompileError, CompiledKernels, DeviceImage, KeepText, KernelSource, KernelText, Launch, elapsed_us,
    failure,
};
use crate::cpu::emit::object_without_kernels;
use crate::lowering::{Lowering, translate};

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
    for (index, architecture) in target.architectures().iter().enumerate() {
        let keep = if index == 0 { keep } else { KeepText::default() };
        let ptx = compile_for(*architecture, kernels, &launches, keep, &mut compiled)?;
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
    Ok(compiled)
}

fn compile_for(
    architecture: Architecture,
    kernels: &[KernelSource<'_>],
    launches: &[Vec<LaunchSource>],
    keep: KeepText,
    compiled: &mut CompiledKernels,
) -> Result<String, CompileError> {
    let lowering = Lowering::new();
    let llvm = LlvmContext::create();
    let machine = target_machine(architecture)?;
    let program = llvm.create_module("kernels");
    program.set_triple(&machine.get_triple());
    program.set_data_layout(&machine.get_target_data().get_data_layout());
    let is_first = compiled.images.is_empty();
    for (kernel, launches) in kernels.iter().zip(launches) {
        let start = Instant::now();
        let mut module = lower::build(&lowering, kernel, launches);
        let mut text = KernelText { name: kernel.name.to_owned(), ..KernelText::default() };
        lowering.tidy(&mut module).map_err(|messages| failure(kernel, "verify", messages))?;
        if keep.mlir {
            text.mlir = Some(module.as_operation().to_string());
        }
        lowering.lower(&mut module).map_err(|messages| failure(kernel, "lower", messages))?;
        compiled.mlir_us += elapsed_us(start);

        let start = Instant::now();
        let module = translate(&llvm, &module)
            .ok_or_else(|| failure(kernel, "translate", lowering.take_messages()))?;
        mark_entry_points(&llvm, &module, launches);
        optimize(&module, &machine).map_err(|message| failure(kernel, "optimize", vec![message]))?;
        if keep.llvm {
            text.llvm = Some(module.print_to_string().to_string());
        }
        if keep.asm {
            text.asm =
                Some(ptx(&machine, &module).map_err(|message| failure(kernel, "emit", vec![message]))?);
        }
        program
            .link_in_module(module)
            .map_err(|message| failure(kernel, "emit", vec![message.to_string()]))?;
        compiled.llvm_us += elapsed_us(start);
        if is_first {
            compiled.texts.push(text);
        }
    }
    let start = Instant::now();
    let text = ptx(&machine, &program).map_err(|message| CompileError {
        kernel: String::new(),
        step: "emit",
        messages: vec![message],
    })?;
    compiled.llvm_us += elapsed_us(start);
    Ok(text)
}

fn ptx(machine: &TargetMachine, module: &Module<'_>) -> Result<String, String> {
    let text = machine.write_to_memory_buffer(module, FileType::Assembly);
    let text = text.map_err(|message| message.to_string())?;
    Ok(String::from_utf8_lossy(text.as_slice()).trim_end_matches('\0').to_owned())
}

fn target_machine(architecture: Architecture) -> Result<TargetMachine, CompileError> {
    Target::initialize_nvptx(&InitializationConfig::default());
    let triple = TargetTriple::create(TRIPLE);
    let missing =
        |message: String| CompileError { kernel: String::new(), step: "emit", messages: vec![message] };
    let target = Target::from_triple(&triple).map_err(|message| missing(message.to_string()))?;
    target
        .create_target_machine(
            &triple,
            architecture.name,
            architecture.ptx,
            OptimizationLevel::Aggressive,
            RelocMode::Default,
            CodeModel::Default,
        )
        .ok_or_else(|| missing(format!("LLVM has no machine `{}`", architecture.name)))
}

/// Tells LLVM which functions a launch enters, and with how many threads.
fn mark_entry_points(llvm: &LlvmContext, module: &Module<'_>, launches: &[LaunchSource]) {
    module.strip_debug_info();
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

fn optimize(module: &Module<'_>, machine: &TargetMachine) -> Result<(), String> {
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    let options = PassBuilderOptions::create();
    module.run_passes("default<O3>", machine, options).map_err(|message| message.to_string())
}
