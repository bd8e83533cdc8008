//! Up to which clock the work of other threads lies before one's own.

use std::rc::Rc;

use super::Epoch;

/// Clocks of the threads of every block that is known of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Knowledge {
    /// By number of the block.
    blocks: Vec<(u32, Rc<Vec<u32>>)>,
}

impl Knowledge {
    /// Whether an access lies before whatever its owner does next.
    #[inline]
    pub(crate) fn covers(&self, epoch: Epoch) -> bool {
        let clocks = match &self.blocks[..] {
            [(block, clocks)] if *block == epoch.block() => Some(clocks),
            blocks => {
                blocks.binary_search_by_key(&epoch.block(), |(block, _)| *block).ok().map(|at| &blocks[at].1)
            }
        };
        clocks.is_some_and(|clocks| clocks.get(epoch.thread()).is_some_and(|clock| *clock >= epoch.clock()))
    }

    /// Adds what another one knows.
    pub(crate) fn join(&mut self, other: &Knowledge) {
        for (block, clocks) in &other.blocks {
            match self.blocks.binary_search_by_key(block, |(block, _)| *block) {
                Err(at) => self.blocks.insert(at, (*block, Rc::clone(clocks))),
                Ok(at) => {
                    let own = &mut self.blocks[at].1;
                    if Rc::ptr_eq(own, clocks) || own.iter().zip(&**clocks).all(|(own, other)| own >= other) {
                        continue;
                    }
                    let own = Rc::make_mut(own);
                    own.iter_mut().zip(&**clocks).for_each(|(own, other)| *own = (*own).max(*other));
                }
            }
        }
    }

    /// Adds that the work of a thread of a block with `threads` threads is known up to `clock`.
    pub(crate) fn learn(&mut self, block: u32, threads: usize, thread: usize, clock: u32) {
        let at = match self.blocks.binary_search_by_key(&block, |(block, _)| *block) {
            Ok(at) => at,
            Err(at) => {
                self.blocks.insert(at, (block, Rc::new(vec![0; threads])));
                at
            }
        };
        if self.blocks[at].1[thread] < clock {
            Rc::make_mut(&mut self.blocks[at].1)[thread] = clock;
        }
    }
}
