//! From the LLVM dialect through LLVM to an object file with the kernels and their table.

use std::fmt;
use std::time::Instant;

use inkwell::OptimizationLevel;
use inkwell::attributes::AttributeLoc;
use inkwell::context::Context as LlvmContext;
use inkwell::module::{Linkage, Module};
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{
    CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple,
};
use qwen2c_request::{KernelRequest, WeightLayout};

use super::describe::CpuTarget;
use super::lower::{Lowering, TILES_SUFFIX};

/// What the emitted code runs on.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Symbols of the kernel table in the object.
const TABLE_SYMBOL: &str = "qwen2c_kernels";
const COUNT_SYMBOL: &str = "qwen2c_kernel_count";

/// A kernel to compile.
#[derive(Clone, Copy, Debug)]
pub struct KernelSource<'a> {
    /// Symbol of its body.
    pub name: &'a str,
    /// What it computes.
    pub request: &'a KernelRequest,
    /// Layout of each weight.
    pub layouts: &'a [WeightLayout],
}

/// Which texts to keep while compiling.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeepText {
    /// MLIR as built, verified.
    pub mlir: bool,
    /// LLVM IR, optimized.
    pub llvm: bool,
    /// Assembly.
    pub asm: bool,
}

/// Texts of one kernel.
#[derive(Clone, Debug, Default)]
pub struct KernelText {
    /// Symbol of its body.
    pub name: String,
    /// MLIR.
    pub mlir: Option<String>,
    /// LLVM IR.
    pub llvm: Option<String>,
    /// Assembly.
    pub asm: Option<String>,
}

/// All kernels of a program.
#[derive(Clone, Debug, Default)]
pub struct CompiledKernels {
    /// ELF object with the kernels, `qwen2c_kernels` and `qwen2c_kernel_count`.
    pub object: Vec<u8>,
    /// Texts of each kernel, in the order of the sources.
    pub texts: Vec<KernelText>,
    /// Time spent in MLIR.
    pub mlir_us: u64,
    /// Time spent in LLVM.
    pub llvm_us: u64,
}

/// A kernel that did not compile: a bug of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    /// The kernel, or empty for the object as a whole.
    pub kernel: String,
    /// What failed: `verify`, `lower`, `translate`, `optimize`, `emit`.
    pub step: &'static str,
    /// What MLIR or LLVM said.
    pub messages: Vec<String>,
}

impl fmt::Display for CompileError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "kernel `{}` failed to {}", self.kernel, self.step)?;
        self.messages.iter().try_for_each(|message| write!(formatter, "\n  {message}"))
    }
}

impl std::error::Error for CompileError {}

/// Compiles all kernels into one object.
///
/// # Errors
///
/// [`CompileError`] with the messages of MLIR or LLVM.
pub fn compile_kernels(
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
        let mut module = lowering.build(kernel.name, kernel.request, kernel.layouts, target.instructions());
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

fn elapsed_us(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn failure(kernel: &KernelSource<'_>, step: &'static str, messages: Vec<String>) -> CompileError {
    CompileError { kernel: kernel.name.to_owned(), step, messages }
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

/// The module in LLVM's own IR.
fn translate<'l>(llvm: &'l LlvmContext, module: &melior::ir::Module<'_>) -> Option<Module<'l>> {
    // SAFETY: the operation is a module in the LLVM dialect with its translations registered; the result is
    // a new module of `llvm`, owned by nobody else, or null.
    unsafe {
        let raw = mlir_sys::mlirTranslateModuleToLLVMIR(module.as_operation().to_raw(), llvm.raw().cast());
        (!raw.is_null()).then(|| Module::new(raw.cast()))
    }
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
