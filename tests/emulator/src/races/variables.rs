//! Variables through which threads release and acquire.

use std::collections::HashMap;
use std::rc::Rc;

use super::Knowledge;

/// Who may see a release: everybody, or the threads of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reach {
    Device,
    Block(u32),
}

/// What a thread tells: what it knew, and its own clock.
#[derive(Clone, Debug)]
pub(crate) struct Release {
    pub(crate) knowledge: Rc<Knowledge>,
    pub(crate) block: u32,
    pub(crate) threads: usize,
    pub(crate) thread: usize,
    pub(crate) clock: u32,
    pub(crate) reach: Reach,
}

impl Release {
    /// Adds it to what somebody knows.
    pub(crate) fn teach(&self, into: &mut Knowledge) {
        into.join(&self.knowledge);
        into.learn(self.block, self.threads, self.thread, self.clock);
    }
}

/// What is released through every address.
#[derive(Debug, Default)]
pub(crate) struct Variables {
    told: HashMap<(u64, Reach), Rc<Knowledge>>,
}

impl Variables {
    /// A write to `address` that carries `release`; one that also reads lets older releases stand.
    pub(crate) fn write(&mut self, address: u64, release: Option<&Release>, block: u32, also_reads: bool) {
        if !also_reads {
            self.told.remove(&(address, Reach::Device));
            self.told.remove(&(address, Reach::Block(block)));
        }
        let Some(release) = release else { return };
        release.teach(Rc::make_mut(self.told.entry((address, Reach::Block(block))).or_default()));
        if release.reach == Reach::Device {
            release.teach(Rc::make_mut(self.told.entry((address, Reach::Device)).or_default()));
        }
    }

    /// What a read of `address` with a reach may learn: from its block, and from everybody.
    pub(crate) fn read(&self, address: u64, block: u32, reach: Reach) -> [Option<&Rc<Knowledge>>; 2] {
        let of_block = self.told.get(&(address, Reach::Block(block)));
        let of_device = if reach == Reach::Device { self.told.get(&(address, Reach::Device)) } else { None };
        [of_block, of_device]
    }
}
