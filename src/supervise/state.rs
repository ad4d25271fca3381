//! what one service can be, be told, and ask for.
//!
//! A state carries exactly what means something in it: no process id outside a life, no
//! deadline outside a wait.

use std::time::{Duration, Instant};

use super::notice::Notice;
use crate::event::SpawnFailure;
use crate::record::StatusEvent;
use crate::service::{Exit, Pid, RunId, ServiceName, Signal};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Down,
    /// Wanted; begins when the fleet says so.
    Waiting,
    /// Ordered, not answered.
    Spawning,
    /// Not ready yet; a oneshot is until it ends.
    Starting {
        life: Life,
        /// When it counts as a failed start; `None` for a oneshot.
        ready_by: Option<Instant>,
    },
    Up {
        life: Life,
        /// Its watchdog: how often it must say that it lives, and by when the next time.
        beat: Option<Beat>,
    },
    Stopping {
        life: Life,
        kill_at: Instant,
        why: Why,
    },
    Killing {
        life: Life,
        again_at: Instant,
        why: Why,
    },
    /// The process has ended; its tree and its output have not, or are not known to have.
    Dying {
        exit: Exit,
        release_by: Instant,
        left: Left,
        next: Next,
        /// Commands run after it: its output ends when they have.
        cleaning: bool,
        /// It ended by itself, and what it started may still hold its last lines (a `tee`
        /// behind it, say): killed when the output is at its end.
        lingering: bool,
    },
    BackingOff {
        until: Instant,
    },
    Failed {
        reason: String,
    },
    /// Failed because `by` did.
    Blocked {
        by: ServiceName,
    },
    Done,
}

/// A live process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub pid: Pid,
    pub since: Instant,
    /// Since when it is ready; `None` for a oneshot, which never is.
    pub ready: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    pub every: Duration,
    pub by: Instant,
}

/// Why a process is being ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// In order: stop, restart, dependencies, shutdown.
    Asked,
    /// A failure, in words.
    Sick(String),
}

/// What of a run is still to be heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub tree: bool,
    pub output: bool,
}

/// What follows a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Down if unwanted, else wait to begin again.
    AsWanted,
    Restart {
        until: Instant,
        delay_ms: u64,
    },
    Fail {
        reason: String,
    },
    Done,
}

#[derive(Clone, Debug)]
pub enum Input {
    /// The operator wants it (again): failures are forgotten.
    Start,
    Unwant,
    /// From the fleet: what it depends on is there.
    Begin,
    /// From the fleet: end it, in order.
    Halt,
    /// From the fleet: it requires `by`, which failed; or does no longer.
    Block {
        by: ServiceName,
    },
    Unblock,
    /// No more patience.
    Kill,
    Spawned {
        run: RunId,
        pid: Pid,
    },
    SpawnFailed {
        run: RunId,
        failure: SpawnFailure,
    },
    Exited {
        run: RunId,
        exit: Exit,
    },
    TreeGone {
        run: RunId,
    },
    Drained {
        run: RunId,
    },
    Ready {
        run: RunId,
    },
    /// It says something about itself.
    Notice {
        run: RunId,
        notice: Notice,
    },
    /// The kernel killed its process for want of memory; its exit comes next.
    OutOfMemory {
        run: RunId,
    },
    /// A failed check asks for a restart.
    Sick {
        what: String,
    },
    /// A deadline may have passed.
    Time,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Out {
    Spawn(RunId),
    Signal(RunId, Signal),
    KillTree(RunId),
    /// It does not do what it should: what it does instead is to be kept. Its end comes next.
    Hung(RunId),
    /// The first word of a run.
    Opened,
    Say(StatusEvent),
    /// For the `error` stream.
    Trouble(String),
    /// What the run's streams keep is another amount from now on.
    Trimmed(RunId),
    /// The main process ended: its output is to be drained.
    Ended(RunId, Exit),
    /// There was no process: both markers, nothing to drain.
    NeverRan(RunId, Exit),
    /// The last word of a run.
    Closed(Exit),
    /// The tree or the output of a run did not come to an end in time.
    Overdue(Left),
}
