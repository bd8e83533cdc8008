//! What kernels of a CUDA device have beyond arithmetic and loops: numbers of threads and blocks, shared
//! memory, barriers, exchange within a warp, copies in the background, and the matrix unit. Each is an
//! operation of MLIR's `nvvm` dialect.

use melior::ir::Attribute;
use melior::ir::attribute::{
    DenseI32ArrayAttribute, DenseI64ArrayAttribute, FlatSymbolRefAttribute, StringAttribute,
};
use qwen2c_request::{Element, f32_to_bf16, f32_to_f16};

use super::{Buffer, KernelBuilder, Reduction, Scalar, Ty, Val};

/// Threads of a warp.
pub(crate) const WARP_THREADS: u32 = 32;

/// Shared memory whose size the launch gives.
pub(crate) const SHARED_SYMBOL: &str = "qwen2c_shared";

/// A number that a thread finds in a special register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Of the thread in its block.
    Thread,
    /// Of the block among those of a group of rows.
    Block,
    /// Of the group of rows.
    RowBlock,
    /// How many blocks there are among those of a group of rows.
    Blocks,
}

impl<'c> KernelBuilder<'c> {
    /// The calling thread's number, as a 64-bit integer.
    #[track_caller]
    pub(crate) fn place<'k>(&'k self, place: Place) -> Val<'k> {
        let name = match place {
            Place::Thread => "nvvm.read.ptx.sreg.tid.x",
            Place::Block => "nvvm.read.ptx.sreg.ctaid.x",
            Place::RowBlock => "nvvm.read.ptx.sreg.ctaid.y",
            Place::Blocks => "nvvm.read.ptx.sreg.nctaid.x",
        };
        self.emit(name, &[], Ty::scalar(Scalar::I32), &[]).extend_unsigned(Scalar::I64)
    }

    /// All threads of the block wait for one another, and see what they wrote before.
    #[track_caller]
    pub(crate) fn barrier(&self) {
        self.append("nvvm.barrier0", &[], &[], &[], Vec::new());
    }

    /// All threads of the warp wait for one another, and see what they wrote before.
    #[track_caller]
    pub(crate) fn warp_barrier(&self) {
        let everybody = self.int_of(Scalar::I32, -1);
        self.append("nvvm.bar.warp.sync", &[everybody], &[], &[], Vec::new());
    }

    /// The block's shared memory from byte `offset_bytes` on.
    #[track_caller]
    pub(crate) fn shared_memory<'k>(&'k self, element: Element, offset_bytes: u64) -> Buffer<'k> {
        let shared = self.shared_address(self.int(offset_bytes));
        let pointer = self.emit("llvm.addrspacecast", &[shared], Ty::scalar(Scalar::Pointer), &[]);
        Buffer { pointer, element }
    }

    /// The address, in the space of shared memory, of byte `offset_bytes`.
    #[track_caller]
    pub(crate) fn shared_address<'k>(&'k self, offset_bytes: Val<'k>) -> Val<'k> {
        let symbol = FlatSymbolRefAttribute::new(self.context, SHARED_SYMBOL);
        let ty = Ty::scalar(Scalar::SharedPointer);
        let start = self.emit("llvm.mlir.addressof", &[], ty, &[("global_name", symbol.into())]);
        start.offset_by(Scalar::I8, offset_bytes)
    }

    fn parsed(&self, attribute: &str) -> Attribute<'c> {
        Attribute::parse(self.context, attribute).expect("the attribute is well-formed")
    }

    /// Copies 16 bytes from global to shared memory in the background; both addresses are multiples of
    /// 16. With `source_bytes`, a 32-bit integer, only as many are read and the others become zero.
    #[track_caller]
    pub(crate) fn copy_16_bytes_in_background<'k>(
        &'k self,
        to_shared: Val<'k>,
        from: Buffer<'k>,
        source_bytes: Option<Val<'k>>,
    ) {
        let global = self.emit("llvm.addrspacecast", &[from.pointer], Ty::scalar(Scalar::GlobalPointer), &[]);
        let attributes = [
            ("modifier", self.parsed("#nvvm<load_cache_modifier cg>")),
            ("size", self.integer_attribute(Scalar::I32, 16)),
        ];
        let operands: Vec<Val<'k>> = [to_shared, global].into_iter().chain(source_bytes).collect();
        self.append("nvvm.cp.async.shared.global", &operands, &[], &attributes, Vec::new());
    }

    /// Asks for the byte at `from` and its neighbours to be brought to the cache that all blocks share.
    #[track_caller]
    pub(crate) fn prefetch_to_shared_cache(&self, from: Buffer<'_>) {
        let global = self.emit("llvm.addrspacecast", &[from.pointer], Ty::scalar(Scalar::GlobalPointer), &[]);
        // LLVM has the instruction, but gives it to sm_90 and later ones alone.
        let attributes = [
            ("asm_string", StringAttribute::new(self.context, "prefetch.global.L2 [$0];").into()),
            ("constraints", StringAttribute::new(self.context, "l").into()),
            ("has_side_effects", Attribute::unit(self.context)),
        ];
        self.append("llvm.inline_asm", &[global], &[], &attributes, Vec::new());
    }

    /// Closes the group of background copies that the thread began since the last group.
    #[track_caller]
    pub(crate) fn close_copy_group(&self) {
        self.append("nvvm.cp.async.commit.group", &[], &[], &[], Vec::new());
    }

    /// Waits until all but the thread's last `pending` groups of copies have arrived.
    #[track_caller]
    pub(crate) fn wait_for_copy_groups(&self, pending: u32) {
        let attributes = [("n", self.integer_attribute(Scalar::I32, pending.into()))];
        self.append("nvvm.cp.async.wait.group", &[], &[], &attributes, Vec::new());
    }

    /// Four 8×8 tiles of 16-bit elements from shared memory, as fragments: thread `t` gives the address of
    /// row `t % 8` of tile `t / 8`, and gets two consecutive elements of each tile in a dword. With
    /// `transposed` the tiles are turned.
    #[track_caller]
    pub(crate) fn load_matrix_tiles<'k>(&'k self, shared: Val<'k>, transposed: bool) -> [Val<'k>; 4] {
        let layout = if transposed { "col" } else { "row" };
        let attributes = [
            ("eltType", self.parsed("#nvvm.ld_st_matrix_elt_type<b16>")),
            ("layout", self.parsed(&format!("#nvvm.mma_layout<{layout}>"))),
            ("num", self.integer_attribute(Scalar::I32, 4)),
            ("shape", self.parsed("#nvvm.ld_st_matrix_shape<m = 8, n = 8>")),
        ];
        self.emit_members("nvvm.ldmatrix", &[shared], Scalar::I32, &attributes)
    }

    /// `d[16, 8] = a[16, 16] · b[16, 8] + c` on the matrix unit, sums in `f32`. `left` holds four dwords,
    /// `right` two, in the order of the PTX manual's fragments for `m16n8k16`.
    #[track_caller]
    pub(crate) fn multiply_tiles<'k>(
        &'k self,
        element: Element,
        left: [Val<'k>; 4],
        right: [Val<'k>; 2],
        sums: [Val<'k>; 4],
    ) -> [Val<'k>; 4] {
        let half = element == Element::F16;
        // Half precision comes as pairs of its own type, bf16 as bits.
        let pair = Ty::vector(Scalar::F16, 2);
        let fragment =
            |value: Val<'k>| if half { self.emit("llvm.bitcast", &[value], pair, &[]) } else { value };
        let mut operands: Vec<Val<'k>> = left.into_iter().chain(right).map(fragment).collect();
        operands.extend(sums);
        let segments = DenseI32ArrayAttribute::new(self.context, &[4, 2, 4]);
        let mut attributes = vec![
            ("layoutA", self.parsed("#nvvm.mma_layout<row>")),
            ("layoutB", self.parsed("#nvvm.mma_layout<col>")),
            ("operandSegmentSizes", segments.into()),
            ("shape", self.parsed("#nvvm.shape<m = 16, n = 8, k = 16>")),
        ];
        let ty = self.parsed(if half { "#nvvm.mma_type<f16>" } else { "#nvvm.mma_type<bf16>" });
        attributes.extend([("multiplicandAPtxType", ty), ("multiplicandBPtxType", ty)]);
        self.emit_members("nvvm.mma.sync", &operands, Scalar::F32, &attributes)
    }

    /// An operation whose result is a structure of four members of one type.
    #[track_caller]
    fn emit_members<'k>(
        &'k self,
        name: &str,
        operands: &[Val<'k>],
        member: Scalar,
        attributes: &[(&str, Attribute<'c>)],
    ) -> [Val<'k>; 4] {
        let types = [self.mlir_scalar(member); 4];
        let structure = melior::dialect::llvm::r#type::r#struct(self.context, &types, false);
        let operation = self.append_typed(name, operands, &[structure], attributes, Vec::new());
        // The type on the Rust side is that of a member: the structure goes nowhere but into `extractvalue`.
        let members = self.result(&operation, 0, Ty::scalar(member));
        std::array::from_fn(|index| {
            let position = DenseI64ArrayAttribute::new(self.context, &[index as i64]);
            let attributes = [("position", position.into())];
            self.emit("llvm.extractvalue", &[members], Ty::scalar(member), &attributes)
        })
    }
}

impl<'k> Val<'k> {
    /// The value of the thread whose number in the warp differs in the bits of `distance`. All threads of
    /// the warp take part.
    #[track_caller]
    pub(crate) fn of_lane_across(self, distance: u32) -> Self {
        let k = self.builder;
        let constant = |value: i64| k.int_of(Scalar::I32, value);
        let operands = [constant(-1), self, constant(distance.into()), constant(31)];
        k.emit("nvvm.shfl.sync", &operands, self.ty, &[("kind", k.parsed("#nvvm<shfl_kind bfly>"))])
    }

    /// Folds over groups of `width` threads of a warp, a power of two; every thread gets the result. Pairs
    /// are folded first across the largest distance.
    #[track_caller]
    pub(crate) fn reduce_lanes(self, reduction: Reduction, width: u32) -> Self {
        let mut value = self;
        let mut distance = width / 2;
        while distance > 0 {
            value = reduction.combine(value, value.of_lane_across(distance));
            distance /= 2;
        }
        value
    }

    /// `2^x`, in the device's approximation (relative error below 2⁻²²), results below the smallest
    /// normal number as zero.
    #[track_caller]
    pub(crate) fn exp2_approximate(self) -> Self {
        self.instruction("llvm.nvvm.ex2.approx.ftz.f32", &[], self.ty)
    }

    /// Four of the eight bytes of a dword and another: digit `n` of `order`, in base 16, says which one
    /// becomes byte `n`; the other dword's bytes are 4 to 7.
    #[track_caller]
    pub(crate) fn permute_bytes(self, other: Self, order: i64) -> Self {
        let order = self.builder.int_of(Scalar::I32, order);
        self.instruction("llvm.nvvm.prmt", &[other, order], self.ty)
    }

    /// `value` added to both 16-bit floats of a dword.
    #[track_caller]
    pub(crate) fn add_to_pairs(self, element: Element, value: f32) -> Self {
        let k = self.builder;
        let (scalar, bits): (Scalar, fn(f32) -> u16) = match element {
            Element::F16 => (Scalar::F16, f32_to_f16),
            _ => (Scalar::Bf16, f32_to_bf16),
        };
        let pair = Ty::vector(scalar, 2);
        let both = |value: f32| {
            let bits = u32::from(bits(value));
            let bits = k.int_of(Scalar::I32, i64::from((bits << 16 | bits).cast_signed()));
            k.emit("llvm.bitcast", &[bits], pair, &[])
        };
        let floats = k.emit("llvm.bitcast", &[self], pair, &[]);
        // The oldest devices multiply and add bf16, and cannot add alone.
        let sum = floats.multiply_add(both(1.0), both(value));
        k.emit("llvm.bitcast", &[sum], self.ty, &[])
    }

    /// This number and another, rounded to 16-bit floats, as the lower and upper half of a dword.
    #[track_caller]
    pub(crate) fn pair_with(self, element: Element, upper: Self) -> Self {
        let (name, scalar) = match element {
            Element::F16 => ("llvm.nvvm.ff2f16x2.rn", Scalar::F16),
            _ => ("llvm.nvvm.ff2bf16x2.rn", Scalar::Bf16),
        };
        let pair = upper.instruction(name, &[self], Ty::vector(scalar, 2));
        self.builder.emit("llvm.bitcast", &[pair], Ty::scalar(Scalar::I32), &[])
    }

    /// The larger of two floats that are numbers, in one instruction.
    #[track_caller]
    pub(crate) fn larger(self, other: Self) -> Self {
        self.builder.emit("arith.maxnumf", &[self, other], self.ty, &[])
    }
}
