//! How all blocks of a grid wait for one another, when all of them are on the device at the same time.

use melior::ir::attribute::StringAttribute;
use melior::ir::{Block, Region, RegionLike};
use qwen2c_request::Element;

use super::{Buffer, Compare, KernelBuilder, Place, Scalar, Ty, Val};

/// LLVM's name for all threads of a device.
const DEVICE_SCOPE: &str = "device";
/// MLIR's number of an atomic addition.
const ATOMIC_ADD: i64 = 1;
/// MLIR's numbers of orderings.
const RELAXED: i64 = 2;
const ACQUIRE: i64 = 4;
const ACQUIRE_RELEASE: i64 = 6;
/// The bit of a barrier's word that changes when everybody has come.
const TURN: i64 = 1 << 31;

impl<'c> KernelBuilder<'c> {
    /// Memory of the device at an address that was read from a table.
    #[track_caller]
    pub(crate) fn memory_at<'k>(&'k self, address: Val<'k>, element: Element) -> Buffer<'k> {
        let global = self.emit("llvm.inttoptr", &[address], Ty::scalar(Scalar::GlobalPointer), &[]);
        let pointer = self.emit("llvm.addrspacecast", &[global], Ty::scalar(Scalar::Pointer), &[]);
        Buffer { pointer, element }
    }

    /// All threads of all blocks wait for one another, and see what they wrote before.
    ///
    /// `word` is 32 bits, zero before the first barrier of all launches. Every block adds one, but the
    /// first, which adds what makes the sum 2³¹: the highest bit turns when the last block has come, and
    /// the others are zero again. (NVIDIA's cooperative groups do the same.)
    ///
    /// A block's barrier orders its threads' writes before the first thread's fence, and its acquire
    /// before what they read, so that one thread does for all.
    #[track_caller]
    pub(crate) fn grid_barrier<'k>(&'k self, word: Buffer<'k>) {
        self.barrier();
        self.when(self.is_zero(self.place(Place::Thread)), || {
            let others = (self.place(Place::Blocks) - self.int(1)).truncate(Scalar::I32);
            let is_first = self.is_zero(self.place(Place::Block));
            let mine = is_first.select(self.int_of(Scalar::I32, TURN) - others, self.int_of(Scalar::I32, 1));
            self.fence();
            let before = self.add_atomically(word, mine);
            self.wait_until(|| {
                let changed = before.exclusive_or(self.load_in_order(word));
                changed.compare(Compare::Less, self.int_of(Scalar::I32, 0))
            });
        });
        self.barrier();
    }

    /// What the thread knows of memory is known to whoever reads what it writes next. (LLVM leaves the order
    /// out of additions.)
    #[track_caller]
    fn fence(&self) {
        let attributes = [
            ("ordering", self.integer_attribute(Scalar::I64, ACQUIRE_RELEASE)),
            ("syncscope", StringAttribute::new(self.context, DEVICE_SCOPE).into()),
        ];
        self.append("llvm.fence", &[], &[], &attributes, Vec::new());
    }

    /// Adds to a word that all blocks share; gives what it was.
    #[track_caller]
    fn add_atomically<'k>(&'k self, word: Buffer<'k>, addend: Val<'k>) -> Val<'k> {
        let attributes = [
            ("alignment", self.integer_attribute(Scalar::I64, 4)),
            ("bin_op", self.integer_attribute(Scalar::I64, ATOMIC_ADD)),
            ("ordering", self.integer_attribute(Scalar::I64, RELAXED)),
            ("syncscope", StringAttribute::new(self.context, DEVICE_SCOPE).into()),
        ];
        self.emit("llvm.atomicrmw", &[word.pointer, addend], addend.ty, &attributes)
    }

    /// A word that all blocks share, read before what comes after.
    #[track_caller]
    fn load_in_order<'k>(&'k self, word: Buffer<'k>) -> Val<'k> {
        let attributes = [
            ("alignment", self.integer_attribute(Scalar::I64, 4)),
            ("ordering", self.integer_attribute(Scalar::I64, ACQUIRE)),
            ("syncscope", StringAttribute::new(self.context, DEVICE_SCOPE).into()),
        ];
        self.emit("llvm.load", &[word.pointer], Ty::scalar(Scalar::I32), &attributes)
    }

    /// Asks for `condition` until it holds.
    #[track_caller]
    fn wait_until<'k>(&'k self, condition: impl FnOnce() -> Val<'k>) {
        let asking = Region::new();
        let block = asking.append_block(Block::new(&[]));
        let outer = self.block.replace(block.to_raw());
        let holds = condition();
        let waits = holds.compare(Compare::Equal, self.int_of(Scalar::I1, 0));
        self.append("scf.condition", &[waits], &[], &[], Vec::new());
        let waiting = Region::new();
        let block = waiting.append_block(Block::new(&[]));
        self.block.set(block.to_raw());
        self.append("scf.yield", &[], &[], &[], Vec::new());
        self.block.set(outer);
        self.append("scf.while", &[], &[], &[], vec![asking, waiting]);
    }
}
