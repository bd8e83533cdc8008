//! From the LLVM dialect through LLVM to an object file with the kernels and their table.

use std::time::Instant;

use super::describe::{CpuTarget, resolve_level};
use super::lower::{self, TILES_SUFFIX};
use crate::compile::{
    CompileError, CompiledKernels, KeepText, KernelSource, KernelText, elapsed_us, failure,
};
use crate::lowering::{Lowering, translate};
use inkwell::OptimizationLevel;
use inkwell::attributes::AttributeLoc;
use inkwell::context::Context as LlvmContext;
use inkwell::module::{Linkage, Module};
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{
    CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple,
};

/// What the emitted code runs on.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// A level that every machine has that a CUDA program runs on.
const OLDEST_LEVEL: &str = "x86-64-v3";

/// Symbols of the kernel table in the object.
const TABLE_SYMBOL: &str = "qwen2c_kernels";
const COUNT_SYMBOL: &str = "qwen2c_kernel_count";

/// Compiles all kernels into one object.
///
/// # Errors
///
/// [`CompileError`] with the messages of MLIR or LLVM.
pub(crate) fn compile_kernels(
    target: &CpuTarget,
    kernels: &[KernelSource<'_>],
    keep: KeepText,
) -> Result<CompiledKernels, CompileError> {
    let lowering = Lowering::new();
    let llvm = LlvmContext::create();
    let machine = target_machine(target)?;
    let program = llvm.create_module("kernels");
    program.set_triple(&machine.get_triple());
    program.set_data_layout(&machine.get_target_data().get_data_layout());
    let mut compiled = CompiledKernels::default();
    for kernel in kernels {
        let start = Instant::now();
        let mut module = lower::build(&lowering, kernel, target.instructions());
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
        optimize(&llvm, &module, &machine, target)
            .map_err(|message| failure(kernel, "optimize", vec![message]))?;
        if keep.llvm {
            text.llvm = Some(module.print_to_string().to_string());
        }
        if keep.asm {
            let asm = machine.write_to_memory_buffer(&module, FileType::Assembly);
            let asm = asm.map_err(|message| failure(kernel, "emit", vec![message.to_string()]))?;
            text.asm = Some(String::from_utf8_lossy(asm.as_slice()).trim_end_matches('\0').to_owned());
        }
        program
            .link_in_module(module)
            .map_err(|message| failure(kernel, "emit", vec![message.to_string()]))?;
        compiled.llvm_us += elapsed_us(start);
        compiled.texts.push(text);
    }
    let start = Instant::now();
    add_table(&llvm, &program, kernels);
    let object = machine.write_to_memory_buffer(&program, FileType::Object).map_err(|message| {
        CompileError { kernel: String::new(), step: "emit", messages: vec![message.to_string()] }
    })?;
    compiled.object = object.as_slice().to_vec();
    compiled.llvm_us += elapsed_us(start);
    Ok(compiled)
}

fn target_machine(target: &CpuTarget) -> Result<TargetMachine, CompileError> {
    Target::initialize_x86(&InitializationConfig::default());
    let triple = TargetTriple::create(TRIPLE);
    let missing =
        |message: String| CompileError { kernel: String::new(), step: "emit", messages: vec![message] };
    let llvm_target = Target::from_triple(&triple).map_err(|message| missing(message.to_string()))?;
    llvm_target
        .create_target_machine(
            &triple,
            target.processor(),
            target.features(),
            OptimizationLevel::Aggressive,
            RelocMode::PIC,
            CodeModel::Default,
        )
        .ok_or_else(|| {
            missing(format!("LLVM has no machine `{}` with `{}`", target.processor(), target.features()))
        })
}

/// Marks the functions and runs LLVM's optimizer.
fn optimize(
    llvm: &LlvmContext,
    module: &Module<'_>,
    machine: &TargetMachine,
    target: &CpuTarget,
) -> Result<(), String> {
    module.strip_debug_info();
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    for function in module.get_functions() {
        let attributes = [
            ("target-cpu", target.processor()),
            ("target-features", target.features()),
            // Loops must not become calls of `memset` or `memcpy`.
            ("no-builtins", ""),
            ("nounwind", ""),
        ];
        for (name, value) in attributes {
            function.add_attribute(AttributeLoc::Function, llvm.create_string_attribute(name, value));
        }
    }
    let options = PassBuilderOptions::create();
    module.run_passes("default<O3>", machine, options).map_err(|message| message.to_string())
}

/// An object with an empty kernel table, for programs whose kernels run elsewhere.
///
/// # Errors
///
/// [`CompileError`] with the messages of LLVM.
pub(crate) fn object_without_kernels() -> Result<Vec<u8>, CompileError> {
    let target = resolve_level(OLDEST_LEVEL)
        .expect("the level exists")
        .expect("it has no features that could be unknown");
    Ok(compile_kernels(&target, &[], KeepText::default())?.object)
}

/// Adds `{ tiles, body }` of every kernel and their number.
fn add_table<'l>(llvm: &'l LlvmContext, program: &Module<'l>, kernels: &[KernelSource<'_>]) {
    let pointer = llvm.ptr_type(inkwell::AddressSpace::default());
    let entry_type = llvm.struct_type(&[pointer.into(), pointer.into()], false);
    let address = |name: &str| {
        let function = program.get_function(name).expect("the kernel was linked in");
        function.as_global_value().as_pointer_value()
    };
    let entries: Vec<_> = kernels
        .iter()
        .map(|kernel| {
            let tiles = address(&format!("{}{TILES_SUFFIX}", kernel.name));
            entry_type.const_named_struct(&[tiles.into(), address(kernel.name).into()])
        })
        .collect();
    let table = program.add_global(entry_type.array_type(entries.len() as u32), None, TABLE_SYMBOL);
    table.set_initializer(&entry_type.const_array(&entries));
    table.set_constant(true);
    table.set_linkage(Linkage::External);
    let count = program.add_global(llvm.i64_type(), None, COUNT_SYMBOL);
    count.set_initializer(&llvm.i64_type().const_int(entries.len() as u64, false));
    count.set_constant(true);
}
