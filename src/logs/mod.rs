//! Descriptors → records: a service's output becomes messages, counters and beats.
//!
//! `pipe` reads, `split` finds line ends, `marker` cuts markers out, `join` assembles blocks,
//! `traceback` what `shapes` knows,
//! `entry` puts it all into one shared chunk per read, `pace` says when to read again.

pub mod entry;
pub mod join;
pub mod marker;
pub mod pace;
pub mod pipe;
pub mod run;
pub mod shapes;
pub mod split;
pub mod tee;
pub mod traceback;
