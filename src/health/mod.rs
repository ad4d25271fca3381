//! Standings, beats, samples → pools and states as latest values.
//!
//! `pool` is one pool's arithmetic, `book` all services with what was published of them,
//! `probe` one check's streaks and verdict, `check` one look, `checks` all of them,
//! `stat` and `sample` what their processes use, `sensors`, `board` and `edges`
//! what the board says, `nvme` how worn its disks are, `device` its hash and events, `kept` and `keeper` the beats that outlive the agent, `run` the second's tick.

pub mod board;
pub mod book;
pub mod check;
pub mod checks;
pub mod device;
pub mod edges;
pub mod keeper;
pub mod kept;
mod nvme;
pub mod pool;
pub mod probe;
pub mod run;
pub mod sample;
pub mod sensors;
pub mod stat;
