//! qwen2c.

fn main() {}
