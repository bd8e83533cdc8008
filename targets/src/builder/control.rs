//! Loops and conditions, written with closures.

use melior::ir::{Block, BlockLike, Region, RegionLike, ValueLike};

use super::{KernelBuilder, Reduction, Scalar, Ty, Val};

impl<'c> KernelBuilder<'c> {
    /// `for index in (from..to).step_by(step)` with carried values; returns their final values.
    #[track_caller]
    pub(crate) fn for_each<'k>(
        &'k self,
        from: Val<'k>,
        to: Val<'k>,
        step: i64,
        carried: &[Val<'k>],
        body: impl FnOnce(Val<'k>, &[Val<'k>]) -> Vec<Val<'k>>,
    ) -> Vec<Val<'k>> {
        self.for_each_by(from, to, self.int(step), carried, body)
    }

    /// As [`KernelBuilder::for_each`], with a step that the kernel computes.
    #[track_caller]
    fn for_each_by<'k>(
        &'k self,
        from: Val<'k>,
        to: Val<'k>,
        step: Val<'k>,
        carried: &[Val<'k>],
        body: impl FnOnce(Val<'k>, &[Val<'k>]) -> Vec<Val<'k>>,
    ) -> Vec<Val<'k>> {
        let location = self.location();
        let types: Vec<Ty> = carried.iter().map(|value| value.ty).collect();
        let mut arguments = vec![(self.mlir_scalar(Scalar::I64), location)];
        arguments.extend(types.iter().map(|ty| (self.mlir_type(*ty), location)));
        let region = Region::new();
        let block = region.append_block(Block::new(&arguments));
        let argument = |index: usize, ty: Ty| Val {
            raw: block.argument(index).expect("the block was made with this argument").to_raw(),
            ty,
            builder: self.shortened(),
        };
        let index = argument(0, Ty::scalar(Scalar::I64));
        let inner: Vec<Val<'k>> =
            types.iter().enumerate().map(|(number, ty)| argument(number + 1, *ty)).collect();
        let outer = self.block.replace(block.to_raw());
        let yielded = body(index, &inner);
        self.append("scf.yield", &yielded, &[], &[], Vec::new());
        self.block.set(outer);
        let mut operands = vec![from, to, step];
        operands.extend_from_slice(carried);
        let operation = self.append("scf.for", &operands, &types, &[], vec![region]);
        types.iter().enumerate().map(|(number, ty)| self.result(&operation, number, *ty)).collect()
    }

    /// A loop without carried values.
    #[track_caller]
    pub(crate) fn repeat<'k>(&'k self, from: Val<'k>, to: Val<'k>, step: i64, body: impl FnOnce(Val<'k>)) {
        self.for_each(from, to, step, &[], |index, _| {
            body(index);
            Vec::new()
        });
    }

    /// A loop without carried values, whose step the kernel computes.
    #[track_caller]
    pub(crate) fn repeat_by<'k>(
        &'k self,
        from: Val<'k>,
        to: Val<'k>,
        step: Val<'k>,
        body: impl FnOnce(Val<'k>),
    ) {
        self.for_each_by(from, to, step, &[], |index, _| {
            body(index);
            Vec::new()
        });
    }

    /// `for offset in 0..length`, as many lanes at a time as `lanes`, then one by one: the body is
    /// emitted twice, with the offset and the number of lanes.
    #[track_caller]
    pub(crate) fn for_each_chunk<'k>(&'k self, length: Val<'k>, lanes: u32, body: impl Fn(Val<'k>, u32)) {
        let whole = self.whole_chunks(length, lanes);
        self.repeat(self.int(0), whole, i64::from(lanes), |offset| body(offset, lanes));
        self.repeat(whole, length, 1, |offset| body(offset, 1));
    }

    /// `length` rounded down to a multiple of `lanes`.
    #[track_caller]
    pub(crate) fn whole_chunks<'k>(&'k self, length: Val<'k>, lanes: u32) -> Val<'k> {
        length - length % self.int(lanes)
    }

    /// Folds `term(offset, lanes)` over `0..length` with `combine`, first in vector lanes, then across
    /// the lanes from low to high, then over the tail: always the same order.
    #[track_caller]
    pub(crate) fn fold_chunks<'k>(
        &'k self,
        length: Val<'k>,
        lanes: u32,
        start: f32,
        reduction: Reduction,
        term: impl Fn(Val<'k>, u32) -> Val<'k>,
    ) -> Val<'k> {
        let whole = self.whole_chunks(length, lanes);
        let vector = self.for_each(
            self.int(0),
            whole,
            i64::from(lanes),
            &[self.float(start, lanes)],
            |offset, sum| vec![reduction.combine(sum[0], term(offset, lanes))],
        )[0];
        let scalar = vector.reduce(reduction);
        self.for_each(whole, length, 1, &[scalar], |offset, sum| {
            vec![reduction.combine(sum[0], term(offset, 1))]
        })[0]
    }

    /// Runs `body` where `condition` holds and `otherwise` where not.
    #[track_caller]
    pub(crate) fn when_else<'k>(&'k self, condition: Val<'k>, body: impl FnOnce(), otherwise: impl FnOnce()) {
        let first = self.branch(body);
        let second = self.branch(otherwise);
        self.append("scf.if", &[condition], &[], &[], vec![first, second]);
    }

    /// Runs `body` where `condition` holds.
    #[track_caller]
    pub(crate) fn when<'k>(&'k self, condition: Val<'k>, body: impl FnOnce()) {
        self.when_else(condition, body, || {});
    }

    /// The values of `body` where `condition` holds, else `otherwise`.
    #[track_caller]
    pub(crate) fn values_when<'k>(
        &'k self,
        condition: Val<'k>,
        otherwise: &[Val<'k>],
        body: impl FnOnce() -> Vec<Val<'k>>,
    ) -> Vec<Val<'k>> {
        let types: Vec<Ty> = otherwise.iter().map(|value| value.ty).collect();
        let first = self.branch_with(body);
        let second = self.branch_with(|| otherwise.to_vec());
        let operation = self.append("scf.if", &[condition], &types, &[], vec![first, second]);
        types.iter().enumerate().map(|(number, ty)| self.result(&operation, number, *ty)).collect()
    }

    #[track_caller]
    fn branch_with<'k>(&'k self, body: impl FnOnce() -> Vec<Val<'k>>) -> Region<'c> {
        let region = Region::new();
        let block = region.append_block(Block::new(&[]));
        let outer = self.block.replace(block.to_raw());
        let values = body();
        self.append("scf.yield", &values, &[], &[], Vec::new());
        self.block.set(outer);
        region
    }

    #[track_caller]
    fn branch(&self, body: impl FnOnce()) -> Region<'c> {
        self.branch_with(|| {
            body();
            Vec::new()
        })
    }
}
