//! Everything the supervisor can be told: the one inbox.
//!
//! An event is here only if it may change a service's fate or must be answered. Everything
//! else (lines, values) flows towards Redis as a [`crate::record::Record`].

use std::time::Duration;

use crate::handoff::{Pipes, PoolEdge, Snapshot, Teller};
use crate::record::Entry;
use crate::request::{KernelCopy, Request, RequestId};
use crate::service::{Exit, Pid, RunId, ServiceId, Signal};

#[derive(Debug)]
pub enum Event {
    /// What comes before the run's main process has begun, and may already speak.
    Opened { run: RunId, pipes: Pipes },
    /// The run's main process lives: `exec` succeeded. No pipes where `Opened` had them.
    Spawned {
        run: RunId,
        pid: Pid,
        pipes: Option<Pipes>,
    },
    /// There is no process: a stage before or at `exec` failed.
    SpawnFailed { run: RunId, failure: SpawnFailure },
    /// The kernel's OOM killer has ended the run's main process; `Exited` comes next.
    OutOfMemory { run: RunId },
    /// The run's main process ended and was reaped.
    Exited { run: RunId, exit: Exit },
    /// A process of the run is dying of a signal, and has been copied.
    Crashed { run: RunId, snapshot: Box<Snapshot> },
    /// A run that hangs has been copied, and is about to be ended.
    Hung { run: RunId, snapshot: Box<Snapshot> },
    /// The kernel's handler copied this while no agent ran.
    Left(Box<KernelCopy>),
    /// The stacks that were asked for, or a sentence.
    Stacks {
        id: RequestId,
        run: RunId,
        result: Result<Box<Snapshot>, String>,
    },
    /// It is not traced any more, or a sentence.
    Detached {
        id: RequestId,
        result: Result<(), String>,
    },
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
    /// A check's command is to be run as the service would be, for `limit` at most.
    Command {
        service: ServiceId,
        /// The program, then its arguments.
        words: Vec<String>,
        limit: Duration,
        tell: Teller,
    },
    /// Pools ran empty or rose again: nobody's fate, but those who follow events are told.
    Pools {
        service: ServiceId,
        edges: Vec<PoolEdge>,
    },
    /// An edge event of the board, for those who follow.
    Board(Entry),
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
    /// It is the wrapped application's (section 4).
    Forward(Signal),
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

/// How the stages begin that only a service to be debugged has.
pub const DEBUG_SESSION: &str = "setting up the debug session: ";

impl SpawnFailure {
    /// A sentence for the `error` stream, in the words that its readers know.
    pub fn sentence(&self) -> String {
        let text = self.to_string();
        match text.strip_prefix(DEBUG_SESSION) {
            Some(what) => format!("Failed to setup debug session: {what}"),
            None => format!("Error starting command: {text}"),
        }
    }

    /// The end of a run that never had a process: 127 where the program was not found,
    /// 126 where anything else kept it from starting, 1 where it was its debugger.
    pub fn exit(&self) -> Exit {
        if self.stage.starts_with(DEBUG_SESSION) {
            return Exit::NotDebugged;
        }
        const ENOENT: i32 = 2;
        let missing = self.errno == ENOENT
            && (self.stage.starts_with("executing ") || self.stage.ends_with(" on PATH"));
        Exit::NotStarted { found: !missing }
    }
}

/// `changing to directory /srv/x: No such file or directory (ENOENT)`.
impl std::fmt::Display for SpawnFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.stage)?;
        if self.errno == 0 {
            return Ok(());
        }
        // std knows the texts of errno(3) and appends the number, which says less than the name.
        let text = std::io::Error::from_raw_os_error(self.errno).to_string();
        let text = text.split(" (os error").next().unwrap_or(&text);
        match ERRNO_NAMES.iter().find(|(n, _)| *n == self.errno) {
            Some((_, name)) => write!(f, ": {text} ({name})"),
            None => write!(f, ": {text} (errno {})", self.errno),
        }
    }
}

/// What fork, the calls before `exec`, and `exec` itself may answer (errno(3); the numbers
/// are those of x86-64 and aarch64 alike).
const ERRNO_NAMES: &[(i32, &str)] = &[
    (1, "EPERM"),
    (2, "ENOENT"),
    (3, "ESRCH"),
    (4, "EINTR"),
    (5, "EIO"),
    (7, "E2BIG"),
    (8, "ENOEXEC"),
    (9, "EBADF"),
    (11, "EAGAIN"),
    (12, "ENOMEM"),
    (13, "EACCES"),
    (14, "EFAULT"),
    (16, "EBUSY"),
    (20, "ENOTDIR"),
    (21, "EISDIR"),
    (22, "EINVAL"),
    (23, "ENFILE"),
    (24, "EMFILE"),
    (26, "ETXTBSY"),
    (30, "EROFS"),
    (36, "ENAMETOOLONG"),
    (38, "ENOSYS"),
    (40, "ELOOP"),
    (80, "ELIBBAD"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_its_stage_and_its_errno() {
        let mut failure = SpawnFailure {
            stage: "setting cpu affinity".to_owned(),
            errno: 22,
        };
        assert_eq!(
            failure.to_string(),
            "setting cpu affinity: Invalid argument (EINVAL)"
        );
        failure.errno = 0;
        assert_eq!(failure.to_string(), "setting cpu affinity");
    }

    #[test]
    fn only_a_missing_program_is_127() {
        let code = |stage: &str, errno| {
            SpawnFailure {
                stage: stage.to_owned(),
                errno,
            }
            .exit()
            .code()
        };
        assert_eq!(code("executing /bin/x", 2), 127);
        assert_eq!(code("finding x on PATH", 2), 127);
        assert_eq!(code("executing /bin/x", 13), 126);
        assert_eq!(code("changing to directory /srv", 2), 126);
        assert_eq!(
            code(&format!("{DEBUG_SESSION}finding gdbserver on PATH"), 2),
            1
        );
    }
}
