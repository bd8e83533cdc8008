//! Kernels that the tests have compiled: they run one with several inputs and numbers of rows, and compiling it
//! takes longer than all of that.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::{AnyTarget, KernelSource};

/// What was made of kernels, by everything that their code depends on.
pub(super) struct Compiled<T> {
    kernels: Mutex<BTreeMap<String, T>>,
}

impl<T: Clone> Compiled<T> {
    pub(super) const fn new() -> Self {
        Self { kernels: Mutex::new(BTreeMap::new()) }
    }

    /// What `compile` made of the kernel when it was first asked for. Two threads that ask at the same time both
    /// compile it: neither has to wait for other kernels.
    pub(super) fn get_or_compile(
        &self,
        target: &AnyTarget,
        source: &KernelSource<'_>,
        compile: impl FnOnce(&AnyTarget, &KernelSource<'_>) -> T,
    ) -> T {
        let kernels = || self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let key = format!("{target:?} {source:?}");
        let found = kernels().get(&key).cloned();
        found.unwrap_or_else(|| {
            let made = compile(target, source);
            kernels().insert(key, made.clone());
            made
        })
    }
}
