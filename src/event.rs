//! Everything the supervisor can be told: the one inbox.
//!
//! An event is here only if it may change a service's fate or must be answered. Everything
//! else (lines, values) flows towards Redis as a [`crate::record::Record`].

use crate::handoff::Pipes;
use crate::request::{Request, RequestId};
use crate::service::{Exit, Pid, RunId, ServiceId};

#[derive(Debug)]
pub enum Event {
    /// The run's main process lives: `exec` succeeded.
    Spawned { run: RunId, pid: Pid, pipes: Pipes },
    /// There is no process: a stage before or at `exec` failed.
    SpawnFailed { run: RunId, failure: SpawnFailure },
    /// The run's main process ended and was reaped.
    Exited { run: RunId, exit: Exit },
    /// Nothing that the run started lives any more (or what is left cannot be found).
    TreeGone { run: RunId },
    /// The run's output is complete in the outbox, its end marker included.
    Drained { run: RunId },
    /// The service itself says that it is ready (or its readiness probe succeeded).
    Ready { run: RunId },
    /// A liveness check changed its verdict.
    Verdict {
        service: ServiceId,
        check: String,
        healthy: bool,
        /// The check's `action` asks for a restart.
        restart: bool,
    },
    /// Redis can be reached and accepts us, or not any more.
    Redis { connected: bool },
    /// An operator asks; the answer goes back by `id`.
    Request { id: RequestId, request: Request },
    /// A signal to the agent itself.
    Signal(AgentSignal),
}

/// What the signals to the agent mean (CONTRACTS section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentSignal {
    /// TERM or INT; a second one hurries.
    Shutdown,
    /// HUP.
    Reload,
}

/// Why a process could not be started: the stage that failed and its errno.
///
/// Reads as `setting cpu affinity: Invalid argument (EINVAL)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpawnFailure {
    /// What was being done, as a phrase: `changing to directory /srv/x`.
    pub stage: String,
    /// The errno of errno(3); 0 where there was none.
    pub errno: i32,
}
