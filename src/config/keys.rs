//! The key table: every key that may stand in a file, and what its value must be.
//!
//! One line here and one read in the checks is all a new key needs. Keys that CONTRACTS
//! section 2 promises and that this version does not do yet stand here too, as `Later`:
//! a file that asks for one is told so, and is not told that the key is unknown.

use super::file::{Table, Value};

#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub shape: Shape,
    pub stage: Stage,
}

/// What a value must be.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    Text,
    Flag,
    Integer,
    /// A text such as "10s".
    Duration,
    /// A number of bytes, or a text such as "8MiB".
    Size,
    /// A list of texts.
    Texts,
    TextOrTexts,
    /// A list of commands: each a text, or a list of texts.
    Commands,
    /// A name or a number.
    Identity,
    Identities,
    Fields(&'static [Key]),
    /// A table of free names; each value is checked by its reader.
    Names,
    /// A list of tables; each is checked by its reader.
    Tables,
}

#[derive(Clone, Copy, Debug)]
pub enum Stage {
    Built,
    /// Promised; refused unless the value asks for nothing.
    Later(Off),
}

/// The value of a `Later` key that asks for nothing, so that a file which spells out its
/// defaults is accepted.
#[derive(Clone, Copy, Debug)]
pub enum Off {
    /// `false`, `0`, `""`, `[]`, `{}`.
    Empty,
    /// Or this text.
    Text(&'static str),
}

const fn key(name: &'static str, shape: Shape) -> Key {
    Key {
        name,
        shape,
        stage: Stage::Built,
    }
}

const fn later(name: &'static str, shape: Shape) -> Key {
    off_by(name, shape, Off::Empty)
}

const fn off_by(name: &'static str, shape: Shape, off: Off) -> Key {
    Key {
        name,
        shape,
        stage: Stage::Later(off),
    }
}

use Shape::{
    Commands, Duration, Fields, Flag, Identities, Identity, Integer, Names, Size, Tables, Text,
    TextOrTexts, Texts,
};

/// The native form.
pub const NATIVE: &[Key] = &[
    key("agent", Fields(AGENT)),
    key("redis", Fields(REDIS)),
    key("spool", Fields(SPOOL)),
    key("crash", Fields(CRASH)),
    key("health", Fields(HEALTH)),
    key("service", Names),
];

/// The short form of one application.
pub const SHORT: &[Key] = &[
    key("app", Fields(APP)),
    key("redis", Fields(REDIS)),
    key("debug", Fields(DEBUG)),
    key("agent", Fields(AGENT)),
    key("spool", Fields(SPOOL)),
    key("crash", Fields(CRASH)),
    key("health", Fields(HEALTH)),
];

pub const AGENT: &[Key] = &[
    key("board", Text),
    key("state_dir", Text),
    key("runtime_dir", Text),
    key("shutdown_timeout", Duration),
    key("main", Text),
    key("tee", Flag),
    key("maintenance", Flag),
    key("group", Text),
    key("include", Text),
];

pub const REDIS: &[Key] = &[
    key("host", Text),
    key("port", Integer),
    key("url", Text),
    key("username", Text),
    key("password", Text),
    key("password_file", Text),
    key("secrets_dir", Text),
    key("log_db", Integer),
    key("value_db", Integer),
    key("key_prefix", Text),
    key("max_len", Integer),
    key("tls", Fields(TLS)),
    key("sentinel", Fields(SENTINEL)),
    later("cluster", Texts),
];

const TLS: &[Key] = &[
    key("ca_file", Text),
    key("cert_file", Text),
    key("key_file", Text),
    key("server_name", Text),
];

const SENTINEL: &[Key] = &[key("master", Text), key("nodes", Texts)];

pub const SPOOL: &[Key] = &[
    key("memory", Size),
    key("disk", Size),
    key("overflow", Text),
];

const CRASH: &[Key] = &[
    key("capture", Text),
    key("keep", Integer),
    key("max_size", Size),
    key("forks", Flag),
    key("debug_dirs", Texts),
];

pub const HEALTH: &[Key] = &[key("compute", Flag), key("expiry", Duration)];

pub const APP: &[Key] = &[
    key("executable", Text),
    key("args", Texts),
    key("user", Text),
    key("stream_name", Text),
];

const DEBUG: &[Key] = &[
    key("enabled", Flag),
    key("host", Text),
    key("port", Integer),
];

pub const SERVICE: &[Key] = &[
    key("executable", Text),
    key("args", Texts),
    key("stream_name", Text),
    key("user", Identity),
    key("group", Identity),
    key("supplementary_groups", Identities),
    key("working_directory", Text),
    key("environment", Names),
    key("environment_file", TextOrTexts),
    key("clear_environment", Flag),
    key("umask", Text),
    key("limits", Names),
    key("nice", Integer),
    key("cpu_affinity", Text),
    key("scheduling", Text),
    key("io_priority", Text),
    key("oom_score_adj", Integer),
    key("memory_max", Size),
    key("memory_high", Size),
    key("cpu_max", Text),
    key("cpu_weight", Integer),
    key("pids_max", Integer),
    key("no_new_privileges", Flag),
    key("capabilities", Texts),
    key("type", Text),
    key("after", Texts),
    key("requires", Texts),
    key("critical", Flag),
    key("ready", Fields(READY)),
    key("restart", Text),
    key("on_failed", Text),
    key("backoff", Fields(BACKOFF)),
    key("start_limit", Fields(START_LIMIT)),
    key("stop", Fields(STOP)),
    key("pre_start", Commands),
    key("post_stop", Commands),
    key("watchdog", Duration),
    key("max_line", Size),
    key("stream", Fields(STREAM)),
    key("pty", Flag),
    key("multi_line", Texts),
    key("crash", Text),
    key("check", Tables),
    key("health", Names),
    key("debug", Fields(DEBUG)),
];

pub const READY: &[Key] = &[
    key("tcp", Text),
    key("http", Text),
    key("exec", Texts),
    key("log", Text),
    key("notify", Flag),
    key("fd", Integer),
    key("redis", Text),
    key("timeout", Duration),
];

pub const BACKOFF: &[Key] = &[
    key("initial", Duration),
    key("max", Duration),
    key("reset_after", Duration),
];

pub const START_LIMIT: &[Key] = &[key("burst", Integer), key("interval", Duration)];

pub const STOP: &[Key] = &[key("signal", Text), key("timeout", Duration)];

pub const STREAM: &[Key] = &[
    key("max_len", Integer),
    key("max_age", Duration),
    key("exact", Flag),
];

/// One liveness check.
pub const CHECK: &[Key] = &[
    key("name", Text),
    key("exec", Texts),
    key("http", Text),
    key("tcp", Text),
    key("unix", Text),
    key("redis", Text),
    key("file", Text),
    key("status", Integer),
    key("body", Text),
    key("max_age", Duration),
    key("interval", Duration),
    key("timeout", Duration),
    key("start_period", Duration),
    key("failures", Integer),
    key("successes", Integer),
    key("action", Text),
];

/// One health pool.
pub const POOL: &[Key] = &[
    key("init", Integer),
    key("cap", Integer),
    key("depletion_rate", Integer),
    key("replenish_rate", Integer),
];

impl Shape {
    /// For "… must be a whole number".
    pub fn wants(self) -> &'static str {
        match self {
            Text => "a string",
            Flag => "`true` or `false`",
            Integer => "a whole number",
            Duration => "a duration such as \"10s\"",
            Size => "a size such as \"8MiB\" or 65536",
            Texts => "a list of strings",
            TextOrTexts => "a string or a list of strings",
            Identity => "a name or a number",
            Identities => "a list of names or numbers",
            Commands => "a list of commands",
            Fields(_) | Names => "a table",
            Tables => "a list of tables",
        }
    }

    pub fn accepts(self, value: &Value) -> bool {
        match self {
            Text | Duration => matches!(value, Value::Text(_)),
            Flag => matches!(value, Value::Flag(_)),
            Integer => matches!(value, Value::Integer(_)),
            Size | Identity => matches!(value, Value::Text(_) | Value::Integer(_)),
            Texts | Identities | Commands | Tables => matches!(value, Value::List(_)),
            TextOrTexts => matches!(value, Value::Text(_) | Value::List(_)),
            Fields(_) | Names => matches!(value, Value::Table(_)),
        }
    }

    /// What the items of a list must be.
    pub fn item(self) -> Option<Shape> {
        match self {
            Texts | TextOrTexts => Some(Text),
            Identities => Some(Identity),
            Commands => Some(TextOrTexts),
            Tables => Some(Names),
            Text | Flag | Integer | Duration | Size | Identity | Fields(_) | Names => None,
        }
    }
}

impl Off {
    /// Whether this value asks for nothing.
    pub fn is(self, value: &Value) -> bool {
        match (self, value) {
            (Off::Text(off), Value::Text(text)) => text.is_empty() || text == off,
            (Off::Empty | Off::Text(_), value) => is_empty(value),
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Text(text) => text.is_empty(),
        Value::Integer(number) => *number == 0,
        Value::Flag(flag) => !flag,
        Value::Null => true,
        Value::List(items) => items.is_empty(),
        Value::Table(Table { entries }) => entries.is_empty(),
        Value::Float | Value::Date => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(keys: &'static [Key], seen: &mut Vec<&'static str>) {
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].iter().any(|other| other.name == key.name));
            seen.push(key.name);
            if let Fields(inner) = key.shape {
                walk(inner, seen);
            }
        }
    }

    #[test]
    fn no_key_stands_twice_in_a_table() {
        let mut seen = Vec::new();
        for keys in [NATIVE, SHORT, SERVICE, CHECK, POOL] {
            walk(keys, &mut seen);
        }
        assert!(seen.len() > 80);
    }
}
