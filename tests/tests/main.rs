//! Every test of this crate, in one executable: it is linked once, and no core waits for a file's last test.

mod candidates;
mod command_line;
mod compare;
mod cuda;
mod cuda_agreement;
mod cuda_files;
mod cuda_mutations;
mod cuda_persistent;
mod cuda_races;
mod cuda_resources;
mod cuda_traffic;
mod damaged_programs;
mod examples;
mod faults;
mod interpreter;
mod matrix_unit;
mod memory;
mod parity;
mod plan;
mod program;
mod quantized;
mod reproducible;
mod rooms;
mod stages;
mod threads;
mod uneven_widths;
