//! The parts of the agent, as the binary, the benches and the tests use them.

pub mod crash;
pub mod service;
