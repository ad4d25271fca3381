//! Everything Redis can be told; every stream name, key name and fixed message stands here
//! and nowhere else (CONTRACTS sections 5 and 6).
//!
//! Keys here are bare: the sink puts `[redis] key_prefix` before every one.

mod device;

pub use device::DeviceEvent;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::recent::Recent;
use crate::service::{Exit, Pid, Signal};

/// What travels through the outbox to the sink.
#[derive(Clone, Debug)]
pub enum Record {
    /// A chunk of a service's lines, for its `info` stream.
    Lines(Lines),
    /// One entry of one stream.
    Entry(Entry),
    /// A counter or value marker, for `value_db`.
    Count(Count),
    /// Latest values, for `value_db`: older ones of the same key are worth nothing.
    Gauges(Vec<Gauge>),
}

/// The four streams of one service.
#[derive(Debug)]
pub struct Streams {
    name: Arc<str>,
    pub trim: Trim,
    pub keep: Keep,
    pub tally: Arc<Tally>,
    pub recent: Arc<Recent>,
}

impl Streams {
    pub fn new(stream_name: &str, trim: Trim) -> Arc<Streams> {
        Streams::keeping(stream_name, trim, Keep::default())
    }

    pub fn keeping(stream_name: &str, trim: Trim, keep: Keep) -> Arc<Streams> {
        Arc::new(Streams {
            name: stream_name.into(),
            trim,
            keep,
            tally: Arc::default(),
            recent: Arc::default(),
        })
    }

    /// The same streams, which from now on keep other lengths and ages.
    pub fn trimmed_as(&self, trim: Trim, keep: Keep) -> Arc<Streams> {
        Arc::new(Streams {
            name: Arc::clone(&self.name),
            trim,
            keep,
            tally: Arc::clone(&self.tally),
            recent: Arc::clone(&self.recent),
        })
    }

    /// The `<stream>` of the key names.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// `logs:app:<stream>:info` and its siblings; `logs:device:<board>:events`.
    pub fn key(&self, kind: StreamKind) -> String {
        let place = match kind {
            StreamKind::Info | StreamKind::Status | StreamKind::Error | StreamKind::Crash => "app",
            StreamKind::Events => "device",
        };
        format!("logs:{place}:{}:{}", self.name, kind.as_str())
    }

    /// `wrapp:<stream>:<key>`, where markers count.
    pub fn value_key(&self, key: &str) -> String {
        format!("wrapp:{}:{key}", self.name)
    }
}

/// Running counts of one service: each field has one writer (lines and bytes: logs,
/// dropped: sink) and may be read by anyone.
#[derive(Debug, Default)]
pub struct Tally {
    pub lines: AtomicU64,
    pub bytes: AtomicU64,
    pub dropped: AtomicU64,
}

impl Tally {
    pub fn add_lines(&self, lines: u64, bytes: u64) {
        self.lines.fetch_add(lines, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn add_dropped(&self, count: u64) {
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }

    pub fn lines(&self) -> u64 {
        self.lines.load(Ordering::Relaxed)
    }

    /// Of the messages, without line ends.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    Info,
    Status,
    Error,
    Crash,
    /// Of a board.
    Events,
}

impl StreamKind {
    pub fn as_str(self) -> &'static str {
        match self {
            StreamKind::Info => "info",
            StreamKind::Status => "status",
            StreamKind::Error => "error",
            StreamKind::Crash => "crash",
            StreamKind::Events => "events",
        }
    }
}

/// How long a stream may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trim {
    /// Entries; 0 is unbounded.
    pub max_len: u64,
}

/// For how long a stream keeps what it has, and how strictly. Both are Redis' `XADD` options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Milliseconds (`MINID`); 0 is for ever.
    pub max_age_ms: u64,
    /// `=` instead of `~`: costs Redis time, and no entry too many stands once a line is told.
    pub exact: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Stdout,
    Stderr,
}

impl Source {
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Stdout => "stdout",
            Source::Stderr => "stderr",
        }
    }
}

/// Lines read at one moment from one pipe: slices of one shared chunk, in order.
#[derive(Clone, Debug)]
pub struct Lines {
    pub streams: Arc<Streams>,
    pub source: Source,
    /// Unix milliseconds at which the chunk was read.
    pub read_ms: u64,
    pub chunk: Bytes,
    pub spans: Vec<Span>,
}

/// One message: `chunk[start..end]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
    /// More of the same line follows in the next message of this source.
    pub partial: bool,
}

/// One stream entry.
#[derive(Clone, Debug)]
pub struct Entry {
    pub streams: Arc<Streams>,
    pub kind: StreamKind,
    /// Unix milliseconds at which it happened.
    pub at_ms: u64,
    /// The field `message`, always first.
    pub message: Bytes,
    /// The fields after it.
    pub fields: Vec<(&'static str, Bytes)>,
}

/// A marker's effect on `wrapp:<stream>:<key>`.
#[derive(Clone, Debug)]
pub struct Count {
    pub streams: Arc<Streams>,
    pub key: String,
    pub what: CountKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CountKind {
    /// `{{key}}` so many times.
    Increment(u64),
    /// `{{key:0042}}`: the digits as they stood.
    Set(String),
}

/// A latest value. It expires a while after it was last renewed (`[health] expiry`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gauge {
    Integer {
        key: String,
        value: i64,
    },
    Hash {
        key: String,
        fields: Vec<(Cow<'static, str>, String)>,
    },
    /// No longer renewed: it is left to expire.
    Forget {
        key: String,
    },
}

impl Gauge {
    pub fn key(&self) -> &str {
        match self {
            Gauge::Integer { key, .. } | Gauge::Hash { key, .. } | Gauge::Forget { key } => key,
        }
    }
}

/// The eight properties of a pool, in the order in which consumers list them.
pub const POOL_PROPERTIES: [&str; 8] = [
    "beats",
    "cap",
    "depletion_rate",
    "init",
    "replenish_rate",
    "running",
    "exit",
    "health",
];

/// `<service>:__healthpool__<category>_<property>`; service is the `stream_name`.
pub fn pool_key(service: &str, category: &str, property: &str) -> String {
    format!("{service}:__healthpool__{category}_{property}")
}

/// `agent:service:<service>`, the state hash.
pub fn service_key(service: &str) -> String {
    format!("agent:service:{service}")
}

/// `agent:fence:<id>`: the number of the last batch of counts that this agent wrote, put there
/// in the same transaction. It expires a month after the agent's last count.
pub fn fence_key(id: &str) -> String {
    format!("agent:fence:{id}")
}

/// `agent:device:<board>`, the board's hash.
pub fn device_key(board: &str) -> String {
    format!("agent:device:{board}")
}

/// `{{__NEW_RUN_2026-11-22_10-30-00}}`; `stamp` is local time, `%Y-%m-%d_%H-%M-%S`.
pub fn new_run_marker(stamp: &str) -> Bytes {
    Bytes::from(format!("{{{{__NEW_RUN_{stamp}}}}}"))
}

/// `{{__END_RUN_2026-11-22_10-31-00_exit_139}}`.
pub fn end_run_marker(stamp: &str, code: i32) -> Bytes {
    Bytes::from(format!("{{{{__END_RUN_{stamp}_exit_{code}}}}}"))
}

/// What the `error` stream of a wrapped application says about a bad end, in the words that
/// its readers know (`Error waiting for command to finish: exit status 3`).
pub fn bad_end(exit: Exit) -> Option<String> {
    let how = match exit {
        Exit::Code(0) | Exit::NotStarted { .. } | Exit::NotDebugged => return None,
        Exit::Code(code) => format!("exit status {code}"),
        Exit::Signal(signal) => match signal_words(signal) {
            Some(words) => format!("signal: {words}"),
            None => format!("signal: signal {}", signal.0),
        },
    };
    Some(format!("Error waiting for command to finish: {how}"))
}

/// The names that those readers know signals by.
fn signal_words(signal: Signal) -> Option<&'static str> {
    Some(match signal.0 {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        _ => return None,
    })
}

impl Entry {
    /// An entry with no field but its message.
    pub fn plain(
        streams: &Arc<Streams>,
        kind: StreamKind,
        at_ms: u64,
        message: impl Into<Bytes>,
    ) -> Entry {
        Entry {
            streams: Arc::clone(streams),
            kind,
            at_ms,
            message: message.into(),
            fields: Vec::new(),
        }
    }

    /// One life-cycle event, for `status`.
    pub fn status(streams: &Arc<Streams>, at_ms: u64, what: &StatusEvent) -> Entry {
        let (message, fields) = what.words();
        Entry {
            streams: Arc::clone(streams),
            kind: StreamKind::Status,
            at_ms,
            message: message.into(),
            fields,
        }
    }
}

/// The life-cycle events of the `status` stream; each is a sentence and its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusEvent {
    Start {
        pid: Pid,
    },
    Ready,
    Exit {
        exit: Exit,
        /// The kernel ended it for want of memory.
        out_of_memory: bool,
    },
    Crash {
        signal: Signal,
        crash_id: String,
    },
    Restart {
        delay_ms: u64,
    },
    Stop {
        signal: Signal,
    },
    Failed {
        reason: String,
    },
    Health {
        check: String,
        healthy: bool,
    },
    Dropped {
        count: u64,
        from_ms: u64,
        to_ms: u64,
    },
    Reload {
        what: String,
    },
}

impl StatusEvent {
    /// The message and the fields after it, the field `event` first.
    fn words(&self) -> (String, Vec<(&'static str, Bytes)>) {
        let text = |value: String| Bytes::from(value);
        let event = |name: &'static str| ("event", Bytes::from_static(name.as_bytes()));
        match self {
            StatusEvent::Start { pid } => (
                format!("Started with pid {pid}."),
                vec![event("start"), ("pid", text(pid.to_string()))],
            ),
            StatusEvent::Ready => ("Ready.".to_owned(), vec![event("ready")]),
            StatusEvent::Exit {
                exit,
                out_of_memory,
            } => {
                let code = exit.code();
                let mut fields = vec![event("exit"), ("code", text(code.to_string()))];
                if let Some(signal) = exit.signal() {
                    fields.push(("signal", text(signal.to_string())));
                }
                if *out_of_memory {
                    fields.push(("reason", text("out of memory".to_owned())));
                }
                (format!("Executable exited with code {code}."), fields)
            }
            StatusEvent::Crash { signal, crash_id } => (
                format!("Crashed with {signal} ({crash_id})."),
                vec![
                    event("crash"),
                    ("signal", text(signal.to_string())),
                    ("crash_id", text(crash_id.clone())),
                ],
            ),
            StatusEvent::Restart { delay_ms } => (
                format!("Restarting in {delay_ms} ms."),
                vec![event("restart"), ("delay_ms", text(delay_ms.to_string()))],
            ),
            StatusEvent::Stop { signal } => (
                format!("Stopping with {signal}."),
                vec![event("stop"), ("signal", text(signal.to_string()))],
            ),
            StatusEvent::Failed { reason } => (
                format!("Failed: {reason}."),
                vec![event("failed"), ("reason", text(reason.clone()))],
            ),
            StatusEvent::Health { check, healthy } => {
                let verdict = if *healthy { "healthy" } else { "unhealthy" };
                (
                    format!("Check {check} is {verdict}."),
                    vec![
                        event("health"),
                        ("check", text(check.clone())),
                        ("verdict", Bytes::from_static(verdict.as_bytes())),
                    ],
                )
            }
            StatusEvent::Dropped {
                count,
                from_ms,
                to_ms,
            } => (
                match count {
                    1 => "Dropped 1 entry.".to_owned(),
                    count => format!("Dropped {count} entries."),
                },
                vec![
                    event("dropped"),
                    ("count", text(count.to_string())),
                    ("from_ms", text(from_ms.to_string())),
                    ("to_ms", text(to_ms.to_string())),
                ],
            ),
            StatusEvent::Reload { what } => (
                format!("Configuration reloaded: {what}."),
                vec![event("reload")],
            ),
        }
    }
}

/// Every field name that an [`Entry`] may carry, for what is read back from the journal.
const FIELD_NAMES: [&str; 16] = [
    "event", "pid", "code", "signal", "crash_id", "report", "delay_ms", "reason", "check",
    "verdict", "count", "from_ms", "to_ms", "source", "partial", "value",
];

/// A field name as entries carry it. One that only another version of the agent knows is
/// kept for ever, once.
pub fn field_name(name: &str) -> &'static str {
    static OTHERS: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
    if let Some(known) = FIELD_NAMES.iter().find(|known| **known == name) {
        return known;
    }
    let mut others = OTHERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = others.iter().find(|known| **known == name) {
        return known;
    }
    let name: &'static str = String::leak(name.to_owned());
    others.push(name);
    name
}

/// What an entry says about its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunMark {
    Begins,
    Ends,
}

impl Entry {
    /// Whether this is a run marker (and not a line that looks like one).
    pub fn run_mark(&self) -> Option<RunMark> {
        let marks =
            self.fields.is_empty() && matches!(self.kind, StreamKind::Info | StreamKind::Status);
        match &self.message {
            message if marks && message.starts_with(b"{{__NEW_RUN_") => Some(RunMark::Begins),
            message if marks && message.starts_with(b"{{__END_RUN_") => Some(RunMark::Ends),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_contracts() {
        let streams = Streams::new("lidar", Trim { max_len: 1000 });
        assert_eq!(streams.key(StreamKind::Info), "logs:app:lidar:info");
        assert_eq!(streams.value_key("frames"), "wrapp:lidar:frames");
        let board = Streams::new("orin-7", Trim { max_len: 1000 });
        assert_eq!(board.key(StreamKind::Events), "logs:device:orin-7:events");
        assert_eq!(
            pool_key("myapp", "api", "health"),
            "myapp:__healthpool__api_health"
        );
        assert_eq!(
            &new_run_marker("2026-11-22_10-30-00")[..],
            b"{{__NEW_RUN_2026-11-22_10-30-00}}"
        );
        assert_eq!(
            &end_run_marker("2026-11-22_10-31-00", 139)[..],
            b"{{__END_RUN_2026-11-22_10-31-00_exit_139}}"
        );
    }

    #[test]
    fn an_exit_says_its_code_twice_and_its_signal() {
        let streams = Streams::new("x", Trim { max_len: 0 });
        let exit = Exit::Signal(Signal(11));
        let entry = Entry::status(
            &streams,
            5,
            &StatusEvent::Exit {
                exit,
                out_of_memory: false,
            },
        );
        assert_eq!(&entry.message[..], b"Executable exited with code 139.");
        let fields: Vec<_> = entry.fields.iter().map(|(k, v)| (*k, &v[..])).collect();
        assert_eq!(
            fields,
            [
                ("event", &b"exit"[..]),
                ("code", b"139"),
                ("signal", b"SIGSEGV")
            ]
        );
    }
}
