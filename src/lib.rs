//! The parts of the agent, as the binary, the benches and the tests use them.
//!
//! Three lines (logs, crash, health) end in one outbox of records for the sink; everything
//! that may change a service's fate goes into one inbox of events for the supervisor. The
//! nouns below are what the lines exchange; lines never import each other.

pub mod backoff;
pub mod checksum;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod crash;
pub mod crash_id;
pub mod daemon;
pub mod demo;
pub mod diag;
pub mod event;
pub mod handoff;
pub mod health;
pub mod logs;
pub mod names;
pub mod nearest;
pub mod query;
pub mod recent;
pub mod record;
pub mod request;
pub mod service;
pub mod signals;
pub mod sink;
mod slim;
pub mod supervise;
pub mod wrapp;
