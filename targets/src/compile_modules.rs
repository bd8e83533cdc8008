//! The way that every family's kernels take: MLIR, LLVM's IR, its optimizer, and into one module for the
//! program.

use std::time::Instant;

use inkwell::OptimizationLevel;
use inkwell::context::Context as LlvmContext;
use inkwell::module::Module;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{CodeModel, FileType, RelocMode, Target, TargetMachine, TargetTriple};

use crate::compile::{CompileError, KeepText, KernelText, elapsed_us};
use crate::lowering::{Lowering, translate};

/// Kernels in one module.
pub(crate) struct CompiledModule<'l> {
    /// All kernels, optimized.
    pub(crate) program: Module<'l>,
    /// Texts of each kernel, in their order.
    pub(crate) texts: Vec<KernelText>,
    /// Time spent in MLIR.
    pub(crate) mlir_us: u64,
    /// Time spent in LLVM.
    pub(crate) llvm_us: u64,
}

/// LLVM's machine for a processor or device with features.
///
/// # Errors
///
/// [`CompileError`] where LLVM has no such machine.
pub(crate) fn target_machine(
    triple: &str,
    processor: &str,
    features: &str,
    relocation: RelocMode,
) -> Result<TargetMachine, CompileError> {
    let triple = TargetTriple::create(triple);
    let target = Target::from_triple(&triple).map_err(|message| of_program(message.to_string()))?;
    let level = OptimizationLevel::Aggressive;
    target
        .create_target_machine(&triple, processor, features, level, relocation, CodeModel::Default)
        .ok_or_else(|| of_program(format!("LLVM has no machine `{processor}` with `{features}`")))
}

/// Compiles kernels number by number: `build` gives a kernel's MLIR, `mark` tells LLVM about its functions.
///
/// # Errors
///
/// [`CompileError`] with the messages of MLIR or LLVM.
pub(crate) fn compile_modules<'l>(
    llvm: &'l LlvmContext,
    machine: &TargetMachine,
    kernels: &[&str],
    keep: KeepText,
    build: impl for<'m> Fn(&'m Lowering, usize) -> melior::ir::Module<'m>,
    mark: impl Fn(&Module<'l>, usize),
) -> Result<CompiledModule<'l>, CompileError> {
    let lowering = Lowering::new();
    let program = llvm.create_module("kernels");
    set_machine(&program, machine);
    let mut compiled = CompiledModule { program, texts: Vec::new(), mlir_us: 0, llvm_us: 0 };
    for (index, kernel) in kernels.iter().copied().enumerate() {
        let failure = |step, messages| CompileError { kernel: kernel.to_owned(), step, messages };
        let start = Instant::now();
        let mut module = build(&lowering, index);
        let mut text = KernelText { name: kernel.to_owned(), ..KernelText::default() };
        lowering.tidy(&mut module).map_err(|messages| failure("verify", messages))?;
        if keep.mlir {
            text.mlir = Some(module.as_operation().to_string());
        }
        lowering.lower(&mut module).map_err(|messages| failure("lower", messages))?;
        compiled.mlir_us += elapsed_us(start);

        let start = Instant::now();
        let module =
            translate(llvm, &module).ok_or_else(|| failure("translate", lowering.take_messages()))?;
        module.strip_debug_info();
        set_machine(&module, machine);
        mark(&module, index);
        module
            .run_passes("default<O3>", machine, PassBuilderOptions::create())
            .map_err(|message| failure("optimize", vec![message.to_string()]))?;
        if keep.llvm {
            text.llvm = Some(module.print_to_string().to_string());
        }
        if keep.asm {
            text.asm = Some(assembly(machine, &module).map_err(|message| failure("emit", vec![message]))?);
        }
        let linked = compiled.program.link_in_module(module);
        linked.map_err(|message| failure("emit", vec![message.to_string()]))?;
        compiled.llvm_us += elapsed_us(start);
        compiled.texts.push(text);
    }
    Ok(compiled)
}

/// The text of a module as its machine's assembly.
pub(crate) fn assembly(machine: &TargetMachine, module: &Module<'_>) -> Result<String, String> {
    let text = machine.write_to_memory_buffer(module, FileType::Assembly);
    let text = text.map_err(|message| message.to_string())?;
    Ok(String::from_utf8_lossy(text.as_slice()).trim_end_matches('\0').to_owned())
}

/// The error of the program as a whole.
pub(crate) fn of_program(message: String) -> CompileError {
    CompileError { kernel: String::new(), step: "emit", messages: vec![message] }
}

fn set_machine(module: &Module<'_>, machine: &TargetMachine) {
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
}
