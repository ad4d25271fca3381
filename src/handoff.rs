//! What supervise hands on to the other lines.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::SpawnFailure;
use crate::record::Streams;
use crate::request::RequestId;
use crate::service::{Exit, Pid, RunId, ServiceId, ServiceName, Signal};

/// The read ends of a run's output, non-blocking and close-on-exec.
#[derive(Debug)]
pub struct Pipes {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// supervise → logs. For one service: `Open`, then `End`, then the next run's `Open`.
#[derive(Debug)]
pub enum Feed {
    /// A run began (at `at_ms`, Unix milliseconds): the start marker, then its lines.
    Open {
        run: RunId,
        streams: Arc<Streams>,
        pipes: Pipes,
        options: LineOptions,
        /// The first line that it matches says that the service is ready: the event `Ready`.
        awaited: Option<regex_lite::Regex>,
        at_ms: u64,
    },
    /// A reload changed how much the run's streams keep.
    Trim { run: RunId, streams: Arc<Streams> },
    /// Its main process ended: drain, then the end marker, then the event `Drained`.
    End { run: RunId, exit: Exit },
    /// A run that never had a process: both markers at once, then `Drained`.
    NeverRan {
        run: RunId,
        streams: Arc<Streams>,
        exit: Exit,
        at_ms: u64,
    },
}

/// How a service's lines are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineOptions {
    /// A longer line goes out in pieces of this many bytes.
    pub max_line: usize,
    pub multi_line: MultiLine,
    pub tee: Tee,
}

/// What makes one message of several lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiLine {
    /// `>>|` and `|<<`.
    pub markers: bool,
    /// The shapes of tracebacks.
    pub tracebacks: bool,
}

impl Default for MultiLine {
    fn default() -> MultiLine {
        MultiLine {
            markers: true,
            tracebacks: false,
        }
    }
}

/// Whether lines are also copied to the agent's own stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tee {
    Off,
    /// As they are: the only service.
    Plain,
    /// After the service's name.
    Labelled,
}

/// supervise → health: where a service stands, told on every change.
#[derive(Clone, Debug)]
pub struct Standing {
    pub id: ServiceId,
    pub service: ServiceName,
    pub streams: Arc<Streams>,
    pub state: State,
    pub pid: Option<Pid>,
    /// Starts after the first one.
    pub restarts: u64,
    /// The last exit code (`128 + signal`); `None` before the first exit.
    pub exit: Option<i32>,
    /// The latest crash.
    pub crash_id: Option<String>,
    /// Unix milliseconds at which `state` began.
    pub since_ms: u64,
    /// The configured pools of the service.
    pub pools: Arc<[PoolSettings]>,
    /// The configured checks of the service.
    pub checks: Arc<[CheckSettings]>,
    /// The service was removed by a reload: its keys are left to expire.
    pub removed: bool,
}

/// A health pool as configured; what is `None` takes the default of CONTRACTS section 6.1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolSettings {
    pub category: String,
    pub init: Option<i64>,
    pub cap: Option<i64>,
    pub depletion_rate: Option<i64>,
    pub replenish_rate: Option<i64>,
}

/// A liveness check as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckSettings {
    /// Names it in verdicts.
    pub name: String,
    /// Each success is one beat of the pool of its name.
    pub feeds: bool,
    pub what: CheckKind,
    pub interval: Duration,
    pub timeout: Duration,
    /// From the readiness of the process on, failures do not count until the first success.
    pub start_period: Duration,
    /// In a row, before it is unhealthy.
    pub failures: u32,
    /// In a row, before it is healthy again.
    pub successes: u32,
    pub action: CheckAction,
}

/// What a check looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// A program and its arguments: passes when it exits with 0.
    Exec(Vec<String>),
    Http {
        host: String,
        port: u16,
        /// With its query.
        path: String,
        /// `None`: any from 200 to 399.
        status: Option<u16>,
        /// What the body must contain.
        body: Option<String>,
    },
    /// Passes when somebody accepts.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
    /// Passes when the key is in `value_db`; says nothing while Redis is away.
    Redis(String),
    /// Passes while the file was written within `max_age`.
    File {
        path: PathBuf,
        max_age: Duration,
    },
}

/// What an unhealthy check asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckAction {
    Restart,
    None,
}

/// What is told of a command of a check.
#[derive(Debug)]
pub enum CommandWord {
    Started(Pipes),
    /// There is no process; the stage that failed.
    NotStarted(String),
    /// It ended, and everything it had started was ended.
    Ended {
        exit: Exit,
        overdue: bool,
    },
}

/// Where it is told.
pub struct Teller(pub Box<dyn FnMut(CommandWord) + Send>);

impl std::fmt::Debug for Teller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Teller")
    }
}

/// One command to Redis, its arguments after its name.
pub type Words = Vec<String>;

/// What Redis says to one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Nothing,
    Text(Vec<u8>),
    Integer(i64),
    Refused(String),
    /// Of a form that none of our questions expects.
    Other,
}

/// Asks Redis beside the outbox: commands for `value_db` → one answer each, or in words why there is none.
pub type AskRedis = Arc<
    dyn Fn(Vec<Words>) -> Pin<Box<dyn Future<Output = Result<Vec<Answer>, String>> + Send>>
        + Send
        + Sync,
>;

/// The states of a service as operators see them (CONTRACTS section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Waiting,
    Starting,
    Ready,
    Stopping,
    Stopped,
    Backoff,
    Failed,
    Done,
}

impl State {
    pub const ALL: [State; 8] = [
        State::Waiting,
        State::Starting,
        State::Ready,
        State::Stopping,
        State::Stopped,
        State::Backoff,
        State::Failed,
        State::Done,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Starting => "starting",
            State::Ready => "ready",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
            State::Backoff => "backoff",
            State::Failed => "failed",
            State::Done => "done",
        }
    }

    /// What follows "it is" in a sentence.
    pub fn in_words(self) -> &'static str {
        match self {
            State::Backoff => "backing off",
            State::Waiting
            | State::Starting
            | State::Ready
            | State::Stopping
            | State::Stopped
            | State::Failed
            | State::Done => self.as_str(),
        }
    }
}

/// logs → health: what markers in a service's lines said about its pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    pub stream_name: Arc<str>,
    pub category: String,
    pub what: BeatKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeatKind {
    /// `{{__healthpool__<category>_beats}}`, this many times.
    Beats(u64),
    /// `{{__healthpool__<category>_beats:N}}`: the count is set, no beat.
    SetBeats(i64),
    /// `{{__healthpool__<category>_<property>:N}}`.
    Set(PoolProperty, i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolProperty {
    Cap,
    DepletionRate,
    Init,
    ReplenishRate,
}

/// A process as it stood at one moment.
#[derive(Debug)]
pub struct Snapshot {
    pub pid: Pid,
    /// What it is about to die of; `None` where its stacks were asked for.
    pub signal: Option<Signal>,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Where it happened, as far as that is known without an analysis: equal for the same place in the same program.
    pub site: String,
    pub core: CoreFile,
    pub leads: Leads,
    /// How long it stood still for this; zero where another held it.
    pub held: Duration,
    /// What could not be captured.
    pub trouble: Option<String>,
}

/// A small ELF core file.
#[derive(Debug)]
pub enum CoreFile {
    /// There is none: too many at once.
    Missing,
    Bytes(Vec<u8>),
    /// In memory of another process' making.
    Open(OwnedFd),
    /// In its record already.
    Kept,
}

impl CoreFile {
    /// Bytes of our own that it holds.
    pub fn weight(&self) -> usize {
        match self {
            CoreFile::Bytes(bytes) => bytes.len(),
            CoreFile::Missing | CoreFile::Open(_) | CoreFile::Kept => 0,
        }
    }
}

/// What still leads to the files of a process when its paths do not.
#[derive(Debug, Default)]
pub struct Leads {
    /// Its program, where the path leads to another file or to none.
    pub executable: Option<OwnedFd>,
    /// Its root folder, and the mount namespace that keeps it whole, where that is not ours.
    pub root: Option<(OwnedFd, OwnedFd)>,
}

/// supervise → crash: to be analysed, kept and reported.
#[derive(Debug)]
pub struct Dying {
    pub service: ServiceName,
    pub streams: Arc<Streams>,
    pub crash_id: String,
    pub snapshot: Box<Snapshot>,
    pub cause: Cause,
    /// The board's sensors at that moment.
    pub device: Arc<Board>,
    pub audience: Audience,
    /// An earlier agent wrote this down, and ended.
    pub unfinished: Option<Unfinished>,
}

/// What a report needs that is gone with the agent that saw the crash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// The service's last lines.
    pub log: Vec<String>,
    /// What its runtime said when it gave up.
    pub message: Option<String>,
}

/// Why a process was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Crash,
    /// It is about to be killed because it hangs.
    Hang,
    /// Its stacks were asked for: the answer goes there.
    Asked(RequestId),
}

/// Who may see a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// It is told in the `crash` stream.
    Stream,
    /// Only whoever may read the records on disk.
    Disk,
}

/// Field → value, as in the board's hash.
pub type Board = std::collections::BTreeMap<std::borrow::Cow<'static, str>, String>;

/// What the main thread needs of the crash line, to hold and copy processes. Every call comes from the thread that
/// forks and waits.
pub trait Tracer: Send {
    /// Attaches to a child that waits at its gate; `forks`: also to what it will fork. The error is an errno.
    fn seize(&mut self, pid: Pid, forks: bool) -> Result<(), i32>;

    /// A thread has stopped, as the status of wait4(2) tells: it is let go, and copied first where it is about to
    /// die. Ends of threads that were noticed meanwhile are added to `ended`, as wait4(2) told them.
    fn stopped(
        &mut self,
        tid: Pid,
        status: i32,
        ended: &mut Vec<(Pid, i32)>,
    ) -> Option<Box<Snapshot>>;

    /// The stacks of a process that goes on. The error is a sentence.
    fn snapshot(&mut self, pid: Pid, ended: &mut Vec<(Pid, i32)>) -> Result<Box<Snapshot>, String>;

    /// Attaches to every thread of a process that runs. The error is a sentence.
    fn adopt(&mut self, pid: Pid, forks: bool) -> Result<(), String>;

    /// Whether the kernel hands this agent what dies, so that nothing need be traced for it.
    fn is_spared(&mut self) -> bool;

    /// Leaves a process alone from now on, so that another tracer may attach.
    fn detach(&mut self, pid: Pid, ended: &mut Vec<(Pid, i32)>) -> Result<(), String>;

    /// The process has ended.
    fn forget(&mut self, pid: Pid);
}

/// A process of the agent's own beside the services, started and reaped by the main thread.
pub struct Helper {
    /// Absolute.
    pub executable: String,
    pub args: Vec<String>,
    pub nice: i32,
    /// It is killed when it takes longer.
    pub limit: Duration,
    /// Called on the main thread: it must not block.
    pub tell: Box<dyn FnMut(HelperEvent) + Send>,
}

#[derive(Debug)]
pub enum HelperEvent {
    Started(Pipes),
    Failed(SpawnFailure),
    Ended(Exit),
}

impl std::fmt::Debug for Helper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Helper({} {:?})", self.executable, self.args)
    }
}

/// Starts one: handed to the line that needs it.
pub type StartHelper = Box<dyn Fn(Helper) + Send + Sync>;

/// sink → supervise (for status): how delivery stands. Published as a latest value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkGauge {
    pub connected: bool,
    /// `connected`, `connecting`, `none` where there shall be none, or what keeps it away:
    /// `refused`, `wrong password`, …
    pub state: String,
    pub spooled_lines: u64,
    pub spooled_bytes: u64,
    pub dropped: u64,
}

impl SinkGauge {
    /// The state where no Redis is configured.
    pub const NO_REDIS: &str = "none";

    /// Delivery is as the configuration wants it.
    pub fn is_well(&self) -> bool {
        self.connected || self.state == SinkGauge::NO_REDIS
    }
}

/// health → supervise (for status): the latest sample of each service, by name.
#[derive(Clone, Debug, Default)]
pub struct HealthGauge {
    pub services: std::collections::HashMap<ServiceName, ServiceGauge>,
    /// What the sensors said last.
    pub device: Arc<Board>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceGauge {
    /// Of one CPU, over the last second; 0 before the second sample.
    pub cpu_percent: f64,
    pub rss_bytes: u64,
    pub threads: u64,
    pub fds: u64,
    /// Category → health, sorted by category.
    pub health: std::collections::BTreeMap<String, i64>,
    /// Category → the health of a full pool.
    pub caps: std::collections::BTreeMap<String, i64>,
}

/// health → supervise: pools of a service that ran empty, or did and rose again, while its process lived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolEdge {
    pub category: String,
    pub health: i64,
}
