//! From a request to MLIR.

use melior::ir::attribute::{StringAttribute, TypeAttribute};
use melior::ir::operation::OperationBuilder;
use melior::ir::r#type::{FunctionType, IntegerType};
use melior::ir::{Attribute, Block, BlockLike, Identifier, Location, Module, Region, RegionLike, Type};

use super::kernels::{self, Kernel, Shape};
use crate::builder::{Buffer, KernelBuilder, Place, SHARED_SYMBOL, Scalar, Ty};
use crate::compile::KernelSource;
use crate::lowering::Lowering;
use crate::operands::Operands;

/// A launch of a kernel: its entry point and its shape.
pub(super) struct LaunchSource {
    /// Name of the entry point.
    pub(super) symbol: String,
    /// Threads and blocks.
    pub(super) shape: Shape,
}

/// The launches of a kernel, one after another.
pub(super) fn launches(source: &KernelSource<'_>) -> Vec<LaunchSource> {
    // PTX has no dots in names.
    let name = source.name.replace('.', "_");
    kernels::launches(source.request, source.layouts)
        .into_iter()
        .map(|(suffix, shape)| LaunchSource { symbol: format!("{name}{suffix}"), shape })
        .collect()
}

/// The kernel as MLIR: one function for each launch,
/// `@symbol(operands: pointers, rows: i32)`, which computes what one block does.
pub(super) fn build<'l>(
    lowering: &'l Lowering,
    source: &KernelSource<'_>,
    launches: &[LaunchSource],
) -> Module<'l> {
    let module = Module::new(Location::unknown(&lowering.context));
    add_shared_memory(lowering, &module);
    let pointer = melior::dialect::llvm::r#type::pointer(&lowering.context, 0);
    let mut arguments = vec![pointer; kernels::buffer_elements(source.request).len()];
    arguments.push(IntegerType::new(&lowering.context, 32).into());
    for (index, launch) in launches.iter().enumerate() {
        add_function(lowering, &module, &launch.symbol, &arguments, |builder| {
            emit_body(builder, source, launch.shape, index);
        });
    }
    module
}

/// Declares the shared memory whose size a launch gives.
pub(super) fn add_shared_memory(lowering: &Lowering, module: &Module<'_>) {
    let context = &lowering.context;
    let parse = |text: &str| Attribute::parse(context, text).expect("the attribute is well-formed");
    let attributes = [
        ("addr_space", parse("3 : i32")),
        ("alignment", parse("16 : i64")),
        ("global_type", parse("!llvm.array<0 x i8>")),
        ("linkage", parse("#llvm.linkage<external>")),
        ("sym_name", StringAttribute::new(context, SHARED_SYMBOL).into()),
    ]
    .map(|(name, value)| (Identifier::new(context, name), value));
    let operation = OperationBuilder::new("llvm.mlir.global", Location::unknown(context))
        .add_attributes(&attributes)
        .add_regions([Region::new()])
        .build()
        .expect("a declaration has no operands and no results");
    module.body().append_operation(operation);
}

/// Adds `@symbol(arguments)`, whose body `emit` appends.
pub(super) fn add_function(
    lowering: &Lowering,
    module: &Module<'_>,
    symbol: &str,
    arguments: &[Type<'_>],
    emit: impl for<'k> FnOnce(&'k KernelBuilder<'k>),
) {
    let context = &lowering.context;
    let location = Location::name(context, symbol, Location::unknown(context));
    let entry: Vec<(Type<'_>, Location<'_>)> = arguments.iter().map(|ty| (*ty, location)).collect();
    let region = Region::new();
    let block = region.append_block(Block::new(&entry));
    emit(&KernelBuilder::new(context, symbol, &block));
    let function = melior::dialect::func::func(
        context,
        StringAttribute::new(context, symbol),
        TypeAttribute::new(FunctionType::new(context, arguments, &[]).into()),
        region,
        &[],
        location,
    );
    module.body().append_operation(function);
}

/// Emits the body. A function of its own, so that values live as long as the builder.
fn emit_body<'k>(builder: &'k KernelBuilder<'k>, source: &KernelSource<'_>, shape: Shape, launch: usize) {
    let buffers: Vec<Buffer<'k>> = kernels::buffer_elements(source.request)
        .into_iter()
        .enumerate()
        .map(|(index, element)| Buffer {
            pointer: builder.argument(index, Ty::scalar(Scalar::Pointer)),
            element,
        })
        .collect();
    let rows = builder.argument(buffers.len(), Ty::scalar(Scalar::I32)).extend_unsigned(Scalar::I64);
    let (request, layouts) = (source.request, source.layouts);
    let operands = Operands { k: builder, request, layouts, buffers, rows };
    let place = [Place::Thread, Place::Block, Place::RowBlock].map(|place| builder.place(place));
    kernels::body(&Kernel { operands, shape, place }, launch);
    builder.finish(&[]);
}
