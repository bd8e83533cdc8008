//! Programs on an NVIDIA GPU.
//!
//! ```text
//! driver     libcuda.so.1: found, opened and called
//! device     which device, and whether it can run the program
//! image      machine code or PTX, and which of them
//! memory     weights and arena on the device, pinned memory of the host
//! exchange   ids and positions up, the largest logits down
//! execute    the steps: one graph, or launch by launch
//! persistent all steps of a token in one launch, where the program was built for it
//! peak       what the device can do at most
//! ```

mod device;
mod driver;
mod exchange;
mod execute;
#[cfg(test)]
pub(crate) mod fake_driver;
mod image;
mod memory;
mod peak;
mod persistent;
#[cfg(test)]
mod tests;

pub(crate) use driver::Driver;
pub(crate) use execute::DeviceExecutor;
pub(crate) use image::image_name;
pub(crate) use peak::peak;
