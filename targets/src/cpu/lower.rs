//! From a request to MLIR.

use melior::ir::attribute::{StringAttribute, TypeAttribute};
use melior::ir::r#type::{FunctionType, IntegerType};
use melior::ir::{Block, BlockLike, Location, Module, Region, RegionLike, Type};
use qwen2c_request::KernelRequest;

use super::instructions::Instructions;
use super::kernels::{self, Kernel};
use crate::builder::{Buffer, KernelBuilder, Scalar, Ty, Val};
use crate::compile::KernelSource;
use crate::lowering::Lowering;
use crate::operands::{Operands, operand_elements};

/// Suffix of the function that counts a kernel's tiles.
pub(super) const TILES_SUFFIX: &str = ".tiles";

/// The kernel as MLIR: `@name`, which computes a tile, and `@name.tiles`, which counts them.
pub(super) fn build<'l>(
    lowering: &'l Lowering,
    source: &KernelSource<'_>,
    instructions: Instructions,
) -> Module<'l> {
    let KernelSource { name, request, layouts, .. } = *source;
    let lanes = instructions.lanes;
    let module = Module::new(Location::unknown(&lowering.context));
    let tiles_name = format!("{name}{TILES_SUFFIX}");
    add_function(
        lowering,
        &module,
        &tiles_name,
        false,
        |builder, buffers, rows| {
            let operands = Operands { k: builder, request, layouts, buffers, rows };
            let kernel = Kernel { operands, lanes, instructions };
            builder.finish(&[kernels::tiles(&kernel)]);
        },
        request,
    );
    add_function(
        lowering,
        &module,
        name,
        true,
        |builder, buffers, rows| {
            let operands = Operands { k: builder, request, layouts, buffers, rows };
            let kernel = Kernel { operands, lanes, instructions };
            kernels::body(&kernel, builder.argument(2, Ty::scalar(Scalar::I64)));
            builder.finish(&[]);
        },
        request,
    );
    module
}

/// Adds `name(operands: pointer, rows: i64[, tile: i64])`; the body gets the loaded operands.
fn add_function(
    lowering: &Lowering,
    module: &Module<'_>,
    name: &str,
    takes_tile: bool,
    body: impl for<'k> FnOnce(&'k KernelBuilder<'k>, Vec<Buffer<'k>>, Val<'k>),
    request: &KernelRequest,
) {
    let context = &lowering.context;
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

/// Loads the operands and emits the body. A function of its own, so that values live as long as the builder.
fn emit_body<'k>(
    builder: &'k KernelBuilder<'k>,
    request: &KernelRequest,
    body: impl FnOnce(&'k KernelBuilder<'k>, Vec<Buffer<'k>>, Val<'k>),
) {
    let table = Buffer {
        pointer: builder.argument(0, Ty::scalar(Scalar::Pointer)),
        element: qwen2c_request::Element::I32,
    };
    let operands = operand_elements(request)
        .into_iter()
        .enumerate()
        .map(|(index, element)| Buffer {
            pointer: table.load_as(Scalar::Pointer, builder.int(index as i64), 1),
            element,
        })
        .collect();
    body(builder, operands, builder.argument(1, Ty::scalar(Scalar::I64)));
}
