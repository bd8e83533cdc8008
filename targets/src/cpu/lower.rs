//! From a request to verified MLIR, and from there to the LLVM dialect.

use melior::Context;
use melior::dialect::DialectRegistry;
use melior::ir::attribute::{StringAttribute, TypeAttribute};
use melior::ir::operation::OperationLike;
use melior::ir::r#type::{FunctionType, IntegerType};
use melior::ir::{Block, BlockLike, Location, Module, Region, RegionLike, Type};
use melior::pass::PassManager;
use melior::utility::{
    parse_pass_pipeline, register_all_dialects, register_all_llvm_translations, register_all_passes,
};
use qwen2c_request::{KernelRequest, WeightLayout};
use std::cell::RefCell;
use std::rc::Rc;

use super::instructions::Instructions;
use super::kernels::{self, Kernel};
use crate::builder::{Buffer, KernelBuilder, Scalar, Ty};

/// `convert-to-llvm` takes all dialects in one sweep; what `scf` leaves as `cf` goes with it.
const LOWERING: &str = "builtin.module(convert-scf-to-cf,convert-to-llvm,reconcile-unrealized-casts)";

/// Merges the constants and addresses that the builder repeats, so that the text can be read.
const TIDYING: &str = "builtin.module(canonicalize,cse)";

/// Suffix of the function that counts a kernel's tiles.
pub(super) const TILES_SUFFIX: &str = ".tiles";

/// An MLIR context with all dialects, and the messages it gave.
pub(super) struct Lowering {
    pub(super) context: Context,
    messages: Rc<RefCell<Vec<String>>>,
}

impl Lowering {
    /// A fresh context.
    pub(super) fn new() -> Self {
        let registry = DialectRegistry::new();
        register_all_dialects(&registry);
        register_all_passes();
        let context = Context::new();
        context.append_dialect_registry(&registry);
        context.load_all_available_dialects();
        register_all_llvm_translations(&context);
        let messages = Rc::new(RefCell::new(Vec::new()));
        let sink = Rc::clone(&messages);
        context.attach_diagnostic_handler(move |diagnostic| {
            sink.borrow_mut().push(format!("{}: {diagnostic}", diagnostic.location()));
            true
        });
        Self { context, messages }
    }

    /// What MLIR said since the last call.
    pub(super) fn take_messages(&self) -> Vec<String> {
        self.messages.take()
    }

    /// The kernel as MLIR: `@name`, which computes a tile, and `@name.tiles`, which counts them.
    pub(super) fn build(
        &self,
        name: &str,
        request: &KernelRequest,
        layouts: &[WeightLayout],
        instructions: Instructions,
    ) -> Module<'_> {
        let lanes = instructions.lanes;
        let module = Module::new(Location::unknown(&self.context));
        let tiles_name = format!("{name}{TILES_SUFFIX}");
        self.add_function(
            &module,
            &tiles_name,
            false,
            |builder, operands, rows| {
                let kernel = Kernel { k: builder, request, layouts, lanes, instructions, operands, rows };
                builder.finish(&[kernels::tiles(&kernel)]);
            },
            request,
        );
        self.add_function(
            &module,
            name,
            true,
            |builder, operands, rows| {
                let kernel = Kernel { k: builder, request, layouts, lanes, instructions, operands, rows };
                kernels::body(&kernel, builder.argument(2, Ty::scalar(Scalar::I64)));
                builder.finish(&[]);
            },
            request,
        );
        module
    }

    /// Adds `name(operands: pointer, rows: i64[, tile: i64])`; the body gets the loaded operands.
    fn add_function(
        &self,
        module: &Module<'_>,
        name: &str,
        takes_tile: bool,
        body: impl for<'k> FnOnce(&'k KernelBuilder<'k>, Vec<Buffer<'k>>, crate::builder::Val<'k>),
        request: &KernelRequest,
    ) {
        let context = &self.context;
        let location = Location::name(context, name, Location::unknown(context));
        let pointer = melior::dialect::llvm::r#type::pointer(context, 0);
        let integer: Type<'_> = IntegerType::new(context, 64).into();
        let mut arguments = vec![pointer, integer];
        let mut results = vec![integer];
        if takes_tile {
            arguments.push(integer);
            results.clear();
        }
        let region = Region::new();
        let entry: Vec<(Type<'_>, Location<'_>)> = arguments.iter().map(|ty| (*ty, location)).collect();
        let block = region.append_block(Block::new(&entry));
        {
            let builder = KernelBuilder::new(context, name, &block);
            emit_body(&builder, request, body);
        }
        let function = melior::dialect::func::func(
            context,
            StringAttribute::new(context, name),
            TypeAttribute::new(FunctionType::new(context, &arguments, &results).into()),
            region,
            &[],
            location,
        );
        module.body().append_operation(function);
    }

    /// Verifies `module` and removes what it says twice.
    pub(super) fn tidy(&self, module: &mut Module<'_>) -> Result<(), Vec<String>> {
        if !module.as_operation().verify() {
            return Err(self.take_messages());
        }
        self.run_passes(module, TIDYING)
    }

    /// Lowers `module` to the LLVM dialect.
    pub(super) fn lower(&self, module: &mut Module<'_>) -> Result<(), Vec<String>> {
        self.run_passes(module, LOWERING)
    }

    fn run_passes(&self, module: &mut Module<'_>, pipeline: &str) -> Result<(), Vec<String>> {
        let passes = PassManager::new(&self.context);
        if parse_pass_pipeline(passes.as_operation_pass_manager(), pipeline).is_err()
            || passes.run(module).is_err()
        {
            return Err(self.take_messages());
        }
        Ok(())
    }
}

/// Loads the operands and emits the body. A function of its own, so that values live as long as the builder.
fn emit_body<'k>(
    builder: &'k KernelBuilder<'k>,
    request: &KernelRequest,
    body: impl FnOnce(&'k KernelBuilder<'k>, Vec<Buffer<'k>>, crate::builder::Val<'k>),
) {
    let table = Buffer {
        pointer: builder.argument(0, Ty::scalar(Scalar::Pointer)),
        element: qwen2c_request::Element::I32,
    };
    let operands = kernels::operand_elements(request)
        .into_iter()
        .enumerate()
        .map(|(index, element)| Buffer {
            pointer: table.load_as(Scalar::Pointer, builder.int(index as i64), 1),
            element,
        })
        .collect();
    body(builder, operands, builder.argument(1, Ty::scalar(Scalar::I64)));
}
