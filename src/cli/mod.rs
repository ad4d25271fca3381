//! argv → a command; replies → what an operator reads.
//!
//! `verbs` is the one table of what may be typed; `args` reads argv by it and `help` prints
//! it, so that they cannot disagree; `gather`
//! sorts what stood after a verb. `run` asks the agent and `show` draws its answers.

pub mod args;
pub mod gather;
pub mod help;
pub mod logs;
pub mod run;
pub mod show;
pub mod verbs;
