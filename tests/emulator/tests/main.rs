//! Kernels run by the interpreter, in one executable, because each takes seconds to link.

mod compiled;
mod copies;
mod device;
mod exchanges;
mod faults;
mod instructions;
mod matrices;
mod mutations;
mod numbers;
mod races;
mod refusals;
