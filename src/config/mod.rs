//! What may be used: the validated configuration.
//!
//! `file` holds what was typed; `check` turns it into these types or into diagnostics.
//! Everything here is complete, in range, and consistent. Defaults: CONTRACTS section 2.

pub mod begin;
pub mod check;
mod checks;
mod crash;
pub mod diagnose;
pub mod diff;
mod endpoint;
mod fields;
pub mod file;
mod found;
mod json;
mod kernel;
pub mod keys;
mod kind;
pub mod lifecycle;
pub mod load;
pub mod order;
mod process;
mod redis;
mod service;
mod shown;
mod single;
mod survey;
mod syntax;
pub mod units;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::handoff::{CheckSettings, MultiLine, PoolSettings};
use crate::record::{Keep, Trim};
use crate::service::{ServiceName, Signal};

/// What the process environment says about the configuration, as read at the edge: each
/// variable where it is set and not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `REDIS_ADDR`: `host:port`.
    pub redis_addr: Option<OsString>,
    /// `REDIS_PASSWORD`.
    pub redis_password: Option<OsString>,
    /// `AGENT_STATE_DIR`.
    pub state_dir: Option<OsString>,
    /// `AGENT_RUNTIME_DIR`.
    pub runtime_dir: Option<OsString>,
    /// `AGENT_CONFIG`.
    pub config: Option<OsString>,
    /// `AGENT_MAINTENANCE`.
    pub maintenance: Option<OsString>,
}

/// How a file was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Native,
    /// One application: `[app]` and `[redis]`.
    Short,
}

/// A configuration that may be used, and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub form: Form,
    pub warnings: Vec<diagnose::Diagnostic>,
    /// Every file that was read; empty for a command.
    pub files: Vec<PathBuf>,
    /// Where each setting stands, for what is found out later (`survey`).
    pub layout: diagnose::Layout,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The file that was read, absolute; none for a command.
    pub file: Option<PathBuf>,
    pub agent: Agent,
    pub redis: Redis,
    pub spool: Spool,
    pub crash: Crash,
    pub health: Health,
    /// In the order of the files.
    pub services: Vec<Arc<Service>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    /// This machine's name in shared keys; empty: the host name.
    pub board: String,
    pub state_dir: PathBuf,
    pub runtime_dir: PathBuf,
    pub shutdown_timeout: Duration,
    /// The service whose end ends the agent.
    pub main: Option<ServiceName>,
    pub tee: bool,
    pub maintenance: bool,
    /// Group of the control socket.
    pub group: Option<String>,
}

#[derive(Clone, PartialEq)]
pub struct Redis {
    pub endpoint: Endpoint,
    /// Empty: the default user.
    pub username: String,
    pub password: Option<Secret>,
    pub log_db: u32,
    pub value_db: u32,
    /// Before every key.
    pub key_prefix: String,
    /// `[health] expiry`: how long latest values outlive the agent.
    pub value_expiry: Duration,
    /// Entries per stream where the service does not say otherwise; 0 is unbounded.
    pub max_len: u64,
    /// `None`: no TLS.
    pub tls: Option<Tls>,
    pub sentinel: Option<Sentinel>,
}

/// Files are read again at every connection: certificates rotate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// `None`: the system's bundle.
    pub ca_file: Option<PathBuf>,
    /// Our certificate and its key, for mutual TLS.
    pub own: Option<(PathBuf, PathBuf)>,
    /// The name in the server's certificate; `None`: the host.
    pub server_name: Option<String>,
}

/// Who knows which server is the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentinel {
    pub master: String,
    /// Asked in this order.
    pub nodes: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
    /// There is no Redis, and none is waited for: the journal is where lines stay.
    None,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp { host, port } => write!(f, "{host}:{port}"),
            Endpoint::Unix(path) => write!(f, "unix://{}", path.display()),
            Endpoint::None => write!(f, "none"),
        }
    }
}

impl Redis {
    /// As `--redis` takes it, without a secret; empty where there is no Redis.
    pub fn shown_url(&self) -> String {
        match (&self.endpoint, &self.tls) {
            (Endpoint::None, _) => String::new(),
            (Endpoint::Unix(_), _) => self.endpoint.to_string(),
            (Endpoint::Tcp { .. }, None) => format!("redis://{}", self.endpoint),
            (Endpoint::Tcp { .. }, Some(_)) => format!("rediss://{}", self.endpoint),
        }
    }
}

/// Where the password comes from. A file is read again at every connection: it may rotate.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    Inline(String),
    File(PathBuf),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Secret::Inline(_) => f.write_str("Inline(…)"),
            Secret::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis")
            .field("endpoint", &self.endpoint)
            .field("username", &self.username)
            .field("password", &self.password)
            .field("log_db", &self.log_db)
            .field("value_db", &self.value_db)
            .field("key_prefix", &self.key_prefix)
            .field("value_expiry", &self.value_expiry)
            .field("max_len", &self.max_len)
            .field("tls", &self.tls)
            .field("sentinel", &self.sentinel)
            .finish()
    }
}

/// Lines that Redis has not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spool {
    /// Bytes.
    pub memory: u64,
    /// Bytes below `state_dir`; 0 is memory only.
    pub disk: u64,
    pub overflow: Overflow,
}

/// What happens when memory and disk are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The oldest lines go, and are counted.
    DropOldest,
    /// The pipes are not read: the child waits.
    Block,
}

/// How crashes are noticed, analysed and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// Of services that do not say otherwise.
    pub tracing: Tracing,
    /// Records kept on disk.
    pub keep: usize,
    /// Bytes of all of them together.
    pub max_size: u64,
    /// Folders with separate debug files.
    pub debug_dirs: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tracing {
    pub how: Capture,
    /// Also what the service forks.
    pub forks: bool,
}

/// How a service's crashes are captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Capture {
    /// By the kernel where it hands crashes to this agent, else by tracing where that is permitted.
    #[default]
    Auto,
    Ptrace,
    /// By the kernel alone.
    Core,
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// False: an external heartbeat server owns the `health` keys.
    pub compute: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub name: ServiceName,
    /// Looked up on PATH when it has no slash.
    pub executable: String,
    pub args: Vec<String>,
    pub stream_name: String,
    pub kind: Kind,
    pub after: Vec<ServiceName>,
    pub requires: Vec<ServiceName>,
    pub critical: bool,
    pub restart: Restart,
    pub on_failed: OnFailed,
    pub backoff: Backoff,
    /// A run at least this long makes the next failure the first again.
    pub reset_after: Duration,
    pub start_limit: StartLimit,
    pub stop: Stop,
    pub lifecycle: lifecycle::Lifecycle,
    pub process: Process,
    /// Bytes.
    pub max_line: usize,
    pub multi_line: MultiLine,
    pub trim: Trim,
    pub capture: Tracing,
    pub keep: Keep,
    pub pools: Arc<[PoolSettings]>,
    pub checks: Arc<[CheckSettings]>,
    /// Started for step debugging.
    pub debug: Option<Debug>,
}

/// Where a debugger finds a service that is stopped at its first instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debug {
    pub host: String,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Simple,
    Oneshot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    Always,
    OnFailure,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailed {
    Stay,
    /// The agent ends too, with the service's code.
    Exit,
}

/// More than `burst` starts within `interval`, and the service is `failed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartLimit {
    /// 0 is unlimited.
    pub burst: u32,
    pub interval: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    pub signal: Signal,
    pub timeout: Duration,
}

/// What the process starts with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Process {
    pub user: Option<Identity>,
    pub group: Option<Identity>,
    /// `None`: those of the user in the group file.
    pub supplementary_groups: Option<Vec<Identity>>,
    /// `None`: the agent's.
    pub working_directory: Option<PathBuf>,
    pub environment: BTreeMap<String, String>,
    pub environment_files: Vec<PathBuf>,
    pub clear_environment: bool,
    pub umask: Option<u32>,
    pub limits: Vec<Limit>,
    pub nice: Option<i32>,
    /// CPU numbers.
    pub cpu_affinity: Option<Vec<usize>>,
    pub scheduling: Option<Scheduling>,
    pub io_priority: Option<IoPriority>,
    pub oom_score_adj: Option<i32>,
    pub no_new_privileges: bool,
    /// Capability numbers of capabilities(7); when given, all others are dropped.
    pub capabilities: Option<Vec<u32>>,
    /// Stdout through a pseudo-terminal.
    pub pty: bool,
    pub resources: Resources,
}

/// What the service's control group may take as a whole; `None` is unlimited, or the kernel's
/// default. Needs delegated controllers (cgroups(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Bytes; beyond it the kernel's OOM killer ends a process of the group.
    pub memory_max: Option<u64>,
    /// Bytes; beyond it the group is slowed down and its memory reclaimed.
    pub memory_high: Option<u64>,
    /// Percent of one CPU.
    pub cpu_max: Option<u32>,
    /// Share where CPUs are short: 1 to 10000, others have 100.
    pub cpu_weight: Option<u32>,
    /// Processes and threads.
    pub pids_max: Option<u64>,
}

impl Resources {
    pub fn is_unlimited(&self) -> bool {
        *self == Resources::default()
    }
}

/// A user or a group, by name or by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    Name(String),
    Id(u32),
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Identity::Name(name) => f.write_str(name),
            Identity::Id(id) => write!(f, "{id}"),
        }
    }
}

/// One resource limit of setrlimit(2), soft and hard alike. `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// `RLIMIT_*` number.
    pub resource: u32,
    pub name: &'static str,
    pub value: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduling {
    Other,
    Batch,
    Idle,
    /// Priority 1 to 99.
    Fifo(u32),
    /// Priority 1 to 99.
    RoundRobin(u32),
}

/// ioprio_set(2); levels 0 (first served) to 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoPriority {
    RealTime(u8),
    BestEffort(u8),
    Idle,
}
