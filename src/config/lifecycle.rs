//! a service's keys as typed → what goes on around its process: how it is known to be ready
//! and alive, and what runs before and after it.

use std::time::Duration;

use super::fields::{At, Fields};
use super::file::{Node, Value};
use super::found::Check;
use super::units::Wrong;

/// What goes on around a service's process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lifecycle {
    /// `None`: ready once `exec` has succeeded.
    pub ready: Option<Readiness>,
    /// It must say `WATCHDOG=1` at least that often once it is ready.
    pub watchdog: Option<Duration>,
    /// Commands, one after the other, as argv.
    pub pre_start: Vec<Vec<String>>,
    pub post_stop: Vec<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    pub by: ReadyBy,
    /// From `exec` on; a service that is not ready by then has failed to start.
    pub timeout: Duration,
}

/// What tells that a service is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadyBy {
    /// `READY=1` on `$NOTIFY_SOCKET` (sd_notify(3)).
    Notify,
    /// `host:port` accepts a connection.
    Tcp(Address),
    /// A GET is answered with 200 to 399.
    Http { at: Address, path: String },
    /// A command that succeeds, as argv.
    Exec(Vec<String>),
    /// A line that this regular expression matches.
    Log(String),
    /// A line end on this descriptor.
    Fd(i32),
    /// A key in `value_db` that is there and is neither 0 nor empty.
    Redis(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address, without brackets.
    pub host: String,
    pub port: u16,
}

/// As a `Host` header has it.
impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

const READY_TIMEOUT: Duration = Duration::from_secs(30);

impl Lifecycle {
    /// Whether the service gets a `NOTIFY_SOCKET`.
    pub fn notifies(&self) -> bool {
        let by_notice = self.ready.as_ref().is_some_and(|r| r.by == ReadyBy::Notify);
        by_notice || self.watchdog.is_some()
    }
}

pub fn read(cx: &mut Check, fields: &Fields<'_>) -> Lifecycle {
    let least = Duration::from_millis(10);
    let lifecycle = Lifecycle {
        ready: readiness(cx, fields),
        watchdog: fields.duration(cx, "watchdog", least),
        pre_start: commands(cx, fields, "pre_start"),
        post_stop: commands(cx, fields, "post_stop"),
    };
    let kind = fields.text("type").map_or("", |text| text.value);
    if let (Some(place), "oneshot") = (fields.key_place("ready"), kind)
        && lifecycle.ready.is_some()
    {
        let message = "a oneshot is done, never ready";
        cx.error(
            place,
            message,
            "what comes after it waits for its end anyway",
        );
    }
    lifecycle
}

fn readiness(cx: &mut Check, fields: &Fields<'_>) -> Option<Readiness> {
    let ready = fields.inner(cx, "ready");
    let timeout = ready.duration(cx, "timeout", Duration::from_millis(1));
    let mut ways: Vec<(&str, ReadyBy)> = Vec::new();
    if ready.flag("notify") == Some(true) {
        ways.push(("notify", ReadyBy::Notify));
    }
    if let Some(at) = ready.parsed(cx, "tcp", address) {
        ways.push(("tcp", ReadyBy::Tcp(at)));
    }
    if let Some((at, path)) = ready.parsed(cx, "http", url) {
        ways.push(("http", ReadyBy::Http { at, path }));
    }
    if let Some(argv) = ready.texts("exec").filter(|argv| !argv.is_empty()) {
        let argv = argv.into_iter().map(|text| text.value.to_owned());
        ways.push(("exec", ReadyBy::Exec(argv.collect())));
    }
    if let Some(pattern) = ready.parsed(cx, "log", pattern) {
        ways.push(("log", ReadyBy::Log(pattern)));
    }
    if let Some(fd) = ready.number(cx, "fd", 3..=1023) {
        ways.push(("fd", ReadyBy::Fd(fd)));
    }
    if let Some(key) = ready.owned("redis") {
        ways.push(("redis", ReadyBy::Redis(key)));
    }
    if fields
        .text("type")
        .is_some_and(|text| text.value == "notify")
        && !ways.iter().any(|(_, by)| *by == ReadyBy::Notify)
    {
        ways.insert(0, ("type = \"notify\"", ReadyBy::Notify));
    }
    if let [(first, _), (second, _), ..] = ways.as_slice()
        && let Some(place) = fields.key_place("ready")
    {
        let message = format!("`{first}` and `{second}` both say when it is ready");
        cx.error(place, message, "keep one of them");
    }
    if ways.is_empty()
        && let Some(place) = fields.key_place("ready")
    {
        cx.warning(
            place,
            "`ready` says nothing: the service counts as ready once it runs",
            "tell by what it is: notify, tcp, http, exec, log, fd or redis",
        );
    }
    let (_, by) = ways.into_iter().next()?;
    Some(Readiness {
        by,
        timeout: timeout.unwrap_or(READY_TIMEOUT),
    })
}

fn wrong<T>(message: impl Into<String>, remedy: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong {
        message: message.into(),
        remedy: remedy.into(),
    })
}

fn is_v6(c: char) -> bool {
    c.is_ascii_hexdigit() || matches!(c, ':' | '.')
}

/// `127.0.0.1:80`, `localhost:80`, `[::1]:80`, `:80`.
fn address(text: &str) -> Result<Address, Wrong> {
    let remedy = "write host:port, such as \"127.0.0.1:80\"";
    let Some((host, port)) = text.rsplit_once(':') else {
        return wrong(format!("`{text}` has no port"), remedy);
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let host = match bare {
        Some(v6) if v6.contains(':') && v6.chars().all(is_v6) => v6,
        None if host.is_empty() => "localhost",
        None if host.chars().all(plain) => host,
        Some(_) | None => return wrong(format!("`{host}` is not a host"), remedy),
    };
    match port.parse() {
        Ok(port) if port > 0 => Ok(Address {
            host: host.to_owned(),
            port,
        }),
        Ok(_) | Err(_) => wrong(format!("`{port}` is not a port"), remedy),
    }
}

/// `http://host[:port][/path]`.
fn url(text: &str) -> Result<(Address, String), Wrong> {
    let remedy = "write http://host:port/path";
    let Some(rest) = text.strip_prefix("http://") else {
        return wrong("only http:// URLs can be asked", remedy);
    };
    if rest.chars().any(|c| c.is_control() || c == ' ') {
        return wrong("a URL holds no blanks", remedy);
    }
    let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let path = path.split('#').next().unwrap_or_default();
    let path = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/{path}"),
    };
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.ends_with(']'));
    let at = match has_port {
        true => address(authority)?,
        false => address(&format!("{authority}:80"))?,
    };
    Ok((at, path))
}

fn pattern(text: &str) -> Result<String, Wrong> {
    match regex_lite::Regex::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => wrong(
            format!("this is not a regular expression: {error}"),
            "a plain text such as \"listening on\" is one; escape . * + ? ( ) [ ] with \\\\",
        ),
    }
}

/// A list of commands: each a text that is cut at its blanks, or a list of arguments.
fn commands(cx: &mut Check, fields: &Fields<'_>, key: &str) -> Vec<Vec<String>> {
    let items: &[Node] = match fields.node(key).map(|node| &node.value) {
        Some(Value::List(items)) => items,
        Some(_) | None => &[],
    };
    items.iter().filter_map(|item| command(cx, item)).collect()
}

fn command(cx: &mut Check, node: &Node) -> Option<Vec<String>> {
    let argv = match &node.value {
        Value::Text(text) => words(
            cx,
            At {
                value: text,
                place: node.place,
            },
        )?,
        Value::List(items) => items
            .iter()
            .filter_map(|item| match &item.value {
                Value::Text(text) => Some(text.clone()),
                _ => None,
            })
            .collect(),
        _ => return None,
    };
    if argv.first().is_none_or(String::is_empty) {
        cx.error(
            node.place,
            "this command is empty",
            "name a program, and its arguments",
        );
        return None;
    }
    Some(argv)
}

/// No shell reads it, so what only a shell understands is refused rather than handed on.
fn words(cx: &mut Check, text: At<&str>) -> Option<Vec<String>> {
    const SHELL: &[char] = &['"', '\'', '\\', '$', '`', '|', '&', ';', '<', '>', '*', '~'];
    if let Some(c) = text.value.chars().find(|c| SHELL.contains(c)) {
        let message = format!("no shell reads this command, and it holds `{c}`");
        let remedy = "write a list: [\"/bin/sh\", \"-c\", \"…\"], or [\"program\", \"argument\"]";
        cx.error(text.place, message, remedy);
        return None;
    }
    Some(text.value.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_urls() {
        let at = |text: &str| address(text).map(|at| at.to_string()).ok();
        assert_eq!(at("127.0.0.1:80").as_deref(), Some("127.0.0.1:80"));
        assert_eq!(at("[::1]:80").as_deref(), Some("[::1]:80"));
        assert_eq!(at(":80").as_deref(), Some("localhost:80"));
        for bad in [
            "127.0.0.1",
            "x:0",
            "x:65536",
            "a b:1",
            "[::x]:1",
            "[1]:1",
            "::1:80",
        ] {
            assert_eq!(at(bad), None, "{bad}");
        }
        let get = |text: &str| url(text).map(|(at, path)| format!("{at} {path}")).ok();
        for (text, expected) in [
            (
                "http://localhost:8080/health?x=1#y",
                "localhost:8080 /health?x=1",
            ),
            ("http://10.0.0.1", "10.0.0.1:80 /"),
            ("http://[::1]/a", "[::1]:80 /a"),
            ("http://h?x", "h:80 /?x"),
        ] {
            assert_eq!(get(text).as_deref(), Some(expected));
        }
        assert_eq!(get("https://x/"), None);
    }
}
