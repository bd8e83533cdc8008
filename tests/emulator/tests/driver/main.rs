//! The driver's C functions, called as a program calls them.
//!
//! The driver is one per process and reads its settings from the environment, so every test runs in a process of
//! its own: see [`process`].

mod calls;
mod copies;
mod devices;
mod events;
mod from_c;
mod graphs;
mod kernels;
mod launches;
mod memory;
mod modules;
mod process;
