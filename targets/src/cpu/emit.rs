//! From the LLVM dialect through LLVM to an object file with the kernels and their table.

use std::time::Instant;

use inkwell::attributes::AttributeLoc;
use inkwell::context::Context as LlvmContext;
use inkwell::module::{Linkage, Module};
use inkwell::targets::{FileType, InitializationConfig, RelocMode, Target};

use super::describe::{CpuTarget, resolve_level};
use super::lower::{self, TILES_SUFFIX};
use crate::compile::{CompileError, CompiledKernels, KeepText, KernelSource, elapsed_us};
use crate::compile_modules::{compile_modules, of_program, target_machine};

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
    Target::initialize_x86(&InitializationConfig::default());
    let llvm = LlvmContext::create();
    let machine = target_machine(TRIPLE, target.processor(), target.features(), RelocMode::PIC)?;
    let names: Vec<&str> = kernels.iter().map(|kernel| kernel.name).collect();
    let compiled = compile_modules(
        &llvm,
        &machine,
        &names,
        keep,
        |lowering, index| lower::build(lowering, &kernels[index], target.instructions()),
        |module, _| mark(&llvm, module, target),
    )?;
    let start = Instant::now();
    add_table(&llvm, &compiled.program, kernels);
    let object = machine
        .write_to_memory_buffer(&compiled.program, FileType::Object)
        .map_err(|message| of_program(message.to_string()))?;
    Ok(CompiledKernels {
        object: object.as_slice().to_vec(),
        texts: compiled.texts,
        mlir_us: compiled.mlir_us,
        llvm_us: compiled.llvm_us + elapsed_us(start),
        ..CompiledKernels::default()
    })
}

/// Tells LLVM what the functions run on.
fn mark(llvm: &LlvmContext, module: &Module<'_>, target: &CpuTarget) {
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
