//! one `[service.NAME]` as typed → one service as it may be run.
//!
//! Only what can be judged by the service alone; names of other services are noted as
//! references, for `check`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::handoff::{MultiLine, PoolSettings};
use crate::record::{Keep, Trim};
use crate::service::{ServiceName, Signal};

use super::checks;
use super::diagnose::Place;
use super::fields::{Fields, absolute, setting};
use super::file::{Entry, Value};
use super::found::Check;
use super::keys;
use super::kind::show;
use super::lifecycle::{self, Lifecycle};
use super::process;
use super::units::Wrong;
use super::{Debug, Form, Kind, OnFailed, Process, Restart, Service, StartLimit, Stop, Tracing};
use crate::nearest::nearest;

/// `after` or `requires`: this service names that one, here.
#[derive(Clone, Debug)]
pub struct Reference {
    pub from: ServiceName,
    pub to: ServiceName,
    pub place: Place,
}

/// A health value above this makes no sense, and leaves room for arithmetic in thousandths.
const MAX_POOL: i64 = 1_000_000_000_000;

/// A longer line is not a line; it must fit into memory several times.
const MAX_LINE: u64 = 64 << 20;

/// Names become folders (cgroups) and parts of keys.
const MAX_NAME: usize = 128;

/// A service with nothing said but its name and what it runs.
pub fn plain(name: ServiceName, executable: String, args: Vec<String>, max_len: u64) -> Service {
    Service {
        stream_name: name.as_str().to_owned(),
        name,
        executable,
        args,
        kind: Kind::Simple,
        after: Vec::new(),
        requires: Vec::new(),
        critical: true,
        restart: Restart::Always,
        on_failed: OnFailed::Stay,
        backoff: Backoff {
            initial: Duration::from_millis(100),
            max: Duration::from_secs(30),
        },
        reset_after: Duration::from_secs(10),
        start_limit: StartLimit {
            burst: 10,
            interval: Duration::from_secs(60),
        },
        stop: Stop {
            signal: Signal::TERM,
            timeout: Duration::from_secs(10),
        },
        lifecycle: Lifecycle::default(),
        process: Process::default(),
        max_line: 256 << 10,
        multi_line: MultiLine::default(),
        trim: Trim { max_len },
        capture: Tracing::default(),
        keep: Keep::default(),
        pools: Arc::from([]),
        checks: Arc::from([]),
        debug: None,
    }
}

/// A name that is free of everything that a path or a key could trip over.
pub fn name(cx: &mut Check, typed: &str, place: Place) -> Option<ServiceName> {
    let message = match ServiceName::new(typed) {
        Ok(_) if matches!(typed, "." | "..") => format!("`{typed}` is not a service name"),
        Ok(_) if typed.len() > MAX_NAME => {
            format!("a service name has at most {MAX_NAME} characters")
        }
        Ok(name) => return Some(name),
        Err(error) => error.to_string(),
    };
    cx.error(place, message, "rename it, such as `lidar-front`");
    None
}

/// `place` is where the table's own name stands.
pub fn read(
    cx: &mut Check,
    service: ServiceName,
    fields: &Fields<'_>,
    place: Place,
    max_len: u64,
    references: &mut Vec<Reference>,
) -> Service {
    let executable = executable(cx, fields, place).unwrap_or_default();
    let args = fields.texts("args").unwrap_or_default();
    let args = args.into_iter().map(|arg| arg.value.to_owned()).collect();
    let mut out = plain(service, executable, args, max_len);
    if let Some(name) = stream_name(cx, fields) {
        out.stream_name = name;
    }
    out.kind = type_of(cx, fields).unwrap_or(out.kind);
    out.lifecycle = lifecycle::read(cx, fields);
    out.after = others(cx, fields, "after", &out.name, references);
    out.requires = others(cx, fields, "requires", &out.name, references);
    out.critical = fields.flag("critical").unwrap_or(out.critical);
    policy(cx, fields, &mut out);
    out.process = process::read(cx, fields);
    if let Some(bytes) = fields.size(cx, "max_line", 1..=MAX_LINE) {
        out.max_line = bytes as usize;
    }
    out.multi_line = multi_line(cx, fields).unwrap_or(out.multi_line);
    let stream = fields.inner(cx, "stream");
    if let Some(entries) = stream.number(cx, "max_len", 0..=u64::MAX >> 1) {
        out.trim = Trim { max_len: entries };
    }
    // Spelled out as a default it is empty.
    if stream
        .text("max_age")
        .is_some_and(|age| !age.value.is_empty())
        && let Some(age) = stream.duration(cx, "max_age", Duration::from_secs(1))
    {
        out.keep.max_age_ms = age.as_millis() as u64;
    }
    out.keep.exact = stream.flag("exact").unwrap_or(false);
    out.pools = pools(cx, fields, out.name.as_str()).into();
    out.checks = checks::read(cx, fields, out.name.as_str()).into();
    out.debug = debug(cx, fields);
    out
}

/// Wanted where it is enabled. An empty host and port 0 are as absent: files of old hold them.
pub fn debug(cx: &mut Check, fields: &Fields<'_>) -> Option<Debug> {
    let fields = fields.inner(cx, "debug");
    let host = fields
        .parsed(cx, "host", debug_host)
        .filter(|host| !host.is_empty());
    let port = fields
        .number(cx, "port", 0..=u16::MAX)
        .filter(|port| *port != 0);
    let debug = Debug {
        host: host.unwrap_or_else(|| "127.0.0.1".to_owned()),
        port: port.unwrap_or(2345),
    };
    fields.flag("enabled").unwrap_or(false).then_some(debug)
}

/// As gdbserver takes it before its colon.
fn debug_host(text: &str) -> Result<String, Wrong> {
    match text.chars().find(|c| c.is_whitespace() || c.is_control()) {
        None => Ok(text.to_owned()),
        Some(c) => Err(Wrong {
            message: format!("a host may not contain {c:?}"),
            remedy: "write an address of this machine, such as \"127.0.0.1\"".to_owned(),
        }),
    }
}

fn executable(cx: &mut Check, fields: &Fields<'_>, place: Place) -> Option<String> {
    let Some(text) = fields.text("executable") else {
        if fields.rejected("executable") {
            return None;
        }
        let place = fields.key_place("executable").unwrap_or(place);
        let remedy = "write executable = \"/usr/local/bin/…\"";
        let remedy = match cx.form {
            Form::Native => remedy,
            Form::Short => "`executable` names the program to run",
        };
        cx.error(place, "there is no executable", remedy);
        return None;
    };
    // Which folder it would be relative to depends on where the agent was started.
    if cx.form == Form::Native && text.value.contains('/') {
        absolute(cx, "executable", text)?;
    }
    Some(text.value.to_owned())
}

/// Part of Redis keys, and of paths of the wrapping form.
fn stream_name(cx: &mut Check, fields: &Fields<'_>) -> Option<String> {
    let text = fields.text("stream_name")?;
    let bad = text.value.chars().find(|c| c.is_control() || *c == '/');
    let message = match (bad, text.value) {
        (Some(c), _) => format!("a stream name may not contain {c:?}"),
        (None, "." | "..") => format!("`{}` is not a stream name", text.value),
        (None, name) => return Some(name.to_owned()),
    };
    cx.error(
        text.place,
        message,
        "letters, digits, `_`, `.` and `-` are safe",
    );
    None
}

fn multi_line(cx: &mut Check, fields: &Fields<'_>) -> Option<MultiLine> {
    let mut out = MultiLine {
        markers: false,
        tracebacks: false,
    };
    for text in fields.texts("multi_line")? {
        match text.value {
            "markers" => out.markers = true,
            "tracebacks" => out.tracebacks = true,
            other => {
                let message = format!("`{other}` is not a value of `multi_line`");
                let remedy = match nearest(other, ["markers", "tracebacks"]) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "write `markers`, `tracebacks` or both".to_owned(),
                };
                cx.error(text.place, message, remedy);
            }
        }
    }
    Some(out)
}

fn type_of(cx: &mut Check, fields: &Fields<'_>) -> Option<Kind> {
    let known = [
        ("simple", Kind::Simple),
        ("oneshot", Kind::Oneshot),
        // Simple, and ready when it says so: see `lifecycle`.
        ("notify", Kind::Simple),
    ];
    fields.choice(cx, "type", &known)
}

fn others(
    cx: &mut Check,
    fields: &Fields<'_>,
    key: &str,
    from: &ServiceName,
    references: &mut Vec<Reference>,
) -> Vec<ServiceName> {
    let mut names = Vec::new();
    let mut seen = HashSet::new();
    for text in fields.texts(key).unwrap_or_default() {
        let Some(to) = name(cx, text.value, text.place) else {
            continue;
        };
        references.push(Reference {
            from: from.clone(),
            to: to.clone(),
            place: text.place,
        });
        if seen.insert(to.clone()) {
            names.push(to);
        }
    }
    names
}

/// When it is started again, and how it is ended.
fn policy(cx: &mut Check, fields: &Fields<'_>, out: &mut Service) {
    let restart = [
        ("always", Restart::Always),
        ("on-failure", Restart::OnFailure),
        ("never", Restart::Never),
    ];
    let on_failed = [("stay", OnFailed::Stay), ("exit", OnFailed::Exit)];
    out.restart = fields
        .choice(cx, "restart", &restart)
        .unwrap_or(out.restart);
    out.on_failed = fields
        .choice(cx, "on_failed", &on_failed)
        .unwrap_or(out.on_failed);
    let delays = fields.inner(cx, "backoff");
    backoff(cx, &delays, out);

    let limit = fields.inner(cx, "start_limit");
    let burst = limit.number(cx, "burst", 0..=1_000_000);
    let interval = limit.duration(cx, "interval", Duration::from_millis(1));
    out.start_limit.burst = burst.unwrap_or(out.start_limit.burst);
    out.start_limit.interval = interval.unwrap_or(out.start_limit.interval);

    let stop = fields.inner(cx, "stop");
    out.stop.signal = stop.parsed(cx, "signal", signal).unwrap_or(out.stop.signal);
    let timeout = stop.duration(cx, "timeout", Duration::ZERO);
    out.stop.timeout = timeout.unwrap_or(out.stop.timeout);
}

/// One of the two given alone moves the other's default out of its way.
fn backoff(cx: &mut Check, fields: &Fields<'_>, out: &mut Service) {
    let initial = fields.duration(cx, "initial", Duration::from_millis(1));
    let max = fields.duration(cx, "max", Duration::from_millis(1));
    let default = out.backoff;
    out.backoff = match (initial, max) {
        (Some(initial), Some(max)) => Backoff { initial, max },
        (Some(initial), None) => Backoff {
            initial,
            max: default.max.max(initial),
        },
        (None, Some(max)) => Backoff {
            initial: default.initial.min(max),
            max,
        },
        (None, None) => default,
    };
    if let (true, Some(text)) = (out.backoff.max < out.backoff.initial, fields.text("max")) {
        let message = "`max` is shorter than `initial`";
        cx.error(
            text.place,
            message,
            "the delay grows from `initial` to `max`",
        );
    }
    let reset_after = fields.duration(cx, "reset_after", Duration::ZERO);
    out.reset_after = reset_after.unwrap_or(out.reset_after);
}

fn signal(text: &str) -> Result<Signal, Wrong> {
    Signal::parse(text).ok_or_else(|| {
        let upper = text.to_ascii_uppercase();
        let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
        Wrong {
            message: format!("`{text}` is not a signal"),
            remedy: match nearest(bare, Signal::names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "write a name such as \"TERM\", or a number from 1 to 64".to_owned(),
            },
        }
    })
}

fn pools(cx: &mut Check, fields: &Fields<'_>, service: &str) -> Vec<PoolSettings> {
    let mut out: Vec<PoolSettings> = Vec::new();
    let mut seen = HashSet::new();
    for Entry { key, place, node } in fields.names("health") {
        if ServiceName::new(key).is_err() {
            let message = format!("`{}` cannot be a health category", show(key));
            cx.error(
                *place,
                message,
                "letters, digits, `_`, `.` and `-` are allowed",
            );
            continue;
        }
        if !seen.insert(key) {
            cx.error(
                *place,
                format!("the pool `{key}` stands twice"),
                "keep one of them",
            );
        }
        let path = setting(&setting("service", service), &format!("health.{key}"));
        let Value::Table(table) = &node.value else {
            let message = format!("`{key}` must be a table, not {}", node.value.what());
            let remedy = format!("write [{path}] and its keys below");
            cx.error(node.place, message, remedy);
            continue;
        };
        let pool = Fields::open(cx, table, keys::POOL, &path);
        let mut number = |name| pool.number(cx, name, 0..=MAX_POOL);
        out.push(PoolSettings {
            category: key.clone(),
            init: number("init"),
            cap: number("cap"),
            depletion_rate: number("depletion_rate"),
            replenish_rate: number("replenish_rate"),
        });
    }
    out
}
