//! Event, now → machine → orders: what becomes of each service.
//!
//! # One service
//!
//! What the operator wants (`want`) and what is (`State`) are separate facts. A machine walks
//!
//! ```text
//!            Begin          Spawned              Ready
//! Waiting ──────────▶ Spawning ───▶ Starting ──────────▶ Up
//!    ▲                   │              │  Halt │          │ Halt
//!    │ until             │ SpawnFailed  │       ▼          ▼
//! BackingOff             │              │    Stopping ─kill_at─▶ Killing
//!    ▲                   ▼              ▼       ▼                  ▼
//!    └──── released ── Dying ◀──────────┴───────┴──── Exited ──────┘
//!                        └────────▶ Waiting, Failed, Done, Down
//! ```
//!
//! `Dying` is where the next start is held back: the process has ended, the rest of its tree
//! is being killed and its output drained. Only when both are through (or `release_by` has
//! passed) is the run over. So a service never has two live processes, and the lines of two
//! runs never mix. What comes next was decided at the exit: the delay counts from there.
//!
//! A restart that the operator asked for, and a stop because something required went away,
//! are ordered ends: they do not count as failures and wait for no backoff.
//!
//! # Many services
//!
//! `fleet` looks at all machines after each event and does what the facts demand, until
//! nothing changes: there are no transitions to forget.
//!
//! - A service may *begin* when everything it requires is ready or done, and nothing it is
//!   after is still on its way. What is after a service that fails or backs off starts all the same.
//! - A service must *go down* when it is not wanted, is to be restarted, or requires one that
//!   must go down or has failed for good. While a required one merely restarts after a crash,
//!   its dependents stay up.
//! - It is *halted* only when nothing that is after it or requires it still lives and must go
//!   down too: the reverse of the start order.
//! - What requires a failed service shows `failed` (`requires x, which failed`), and comes
//!   back when that one is started again. What requires a stopped one shows `waiting`.

pub mod accounts;
pub mod aside;
mod asked;
mod awaited;
mod cgroup;
mod chart;
mod child;
mod chronicle;
mod crashes;
mod debugger;
mod environment;
pub mod fleet;
mod held;
mod lane;
pub mod machine;
pub mod notice;
mod notified;
mod notify;
mod order;
mod plan;
pub mod policy;
mod prepare;
mod privileges;
mod probe;
mod quota;
pub mod reap;
mod rules;
pub mod run;
#[cfg(test)]
mod samples_for_tests;
mod share;
pub mod spawn;
mod standing;
mod state;
mod status;
mod steps;
pub mod tasks;
mod told;
mod tree;
mod watch;
