//! argv → one call per mode → exit code.

fn main() {}
