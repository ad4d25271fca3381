//! argv → a command; replies → what an operator reads.
//!
//! `verbs` is the one table of what may be typed; `args` reads argv by it and `help` prints
//! it, so that they cannot disagree; `gather`
//! sorts what stood after a verb. `run` asks the agent and `show` draws its answers; `events` and `top` ask again
//! and again, `screen` draws what `top` shows, on a `terminal`.

pub mod args;
mod chart;
mod column;
pub mod events;
pub mod gather;
pub mod help;
pub mod logs;
mod row;
pub mod run;
mod screen;
pub mod show;
pub mod terminal;
pub mod top;
pub mod verbs;
