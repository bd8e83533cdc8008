//! The C functions of the CUDA driver in front of the emulator.
