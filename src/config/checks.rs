//! the `[[service.NAME.check]]` tables as typed → checks as they may be run.
//!
//! Every check says exactly one thing to look at. One without a name is named by it and feeds
//! no pool.

use std::collections::HashSet;
use std::time::Duration;

use super::Endpoint;
use super::diagnose::Place;
use super::endpoint::host_and_port;
use super::fields::{At, Fields, absolute, one_of, setting};
use super::file::Value;
use super::found::Check;
use super::keys;
use super::kind::show;
use super::units::Wrong;
use crate::handoff::{CheckAction, CheckKind, CheckSettings};
use crate::service::ServiceName;

/// The keys of which one must stand.
const KINDS: [&str; 6] = ["exec", "http", "tcp", "unix", "redis", "file"];

const INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(1);
const FAILURES: u32 = 3;
/// More often is no check but a load.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);
const LEAST_TIMEOUT: Duration = Duration::from_millis(1);

pub fn read(cx: &mut Check, fields: &Fields<'_>, service: &str) -> Vec<CheckSettings> {
    let mut out: Vec<CheckSettings> = Vec::new();
    let mut seen = HashSet::new();
    let Some(Value::List(items)) = fields.node("check").map(|node| &node.value) else {
        return out;
    };
    for (index, item) in items.iter().enumerate() {
        let Value::Table(table) = &item.value else {
            continue;
        };
        let path = setting(&setting("service", service), &format!("check[{index}]"));
        let check = Fields::open(cx, table, keys::CHECK, &path);
        let name = name(cx, &check);
        if let Some(name) = &name
            && !seen.insert(name.value)
        {
            let message = format!("the check `{}` stands twice", name.value);
            cx.error(name.place, message, "rename one of them");
        }
        let Some((kind, what)) = what(cx, &check, item.place) else {
            continue;
        };
        for (key, of) in [("status", "http"), ("body", "http"), ("max_age", "file")] {
            if kind != of
                && let Some(place) = check.key_place(key)
            {
                let message = format!("`{key}` says nothing of a check by `{kind}`");
                cx.error(place, message, format!("it belongs to `{of}`"));
            }
        }
        let feeds = name.is_some();
        let name = match name {
            Some(name) => name.value.to_owned(),
            None => free_name(kind, &out),
        };
        out.push(settings(cx, &check, name, feeds, what));
    }
    out
}

fn settings(
    cx: &mut Check,
    check: &Fields<'_>,
    name: String,
    feeds: bool,
    what: CheckKind,
) -> CheckSettings {
    let actions = [
        ("restart", CheckAction::Restart),
        ("none", CheckAction::None),
    ];
    let interval = check.duration(cx, "interval", LEAST_INTERVAL);
    let timeout = check.duration(cx, "timeout", LEAST_TIMEOUT);
    let start_period = check.duration(cx, "start_period", Duration::ZERO);
    CheckSettings {
        name,
        feeds,
        what,
        interval: interval.unwrap_or(INTERVAL),
        timeout: timeout.unwrap_or(TIMEOUT),
        start_period: start_period.unwrap_or(Duration::ZERO),
        failures: check.number(cx, "failures", 1..=1000).unwrap_or(FAILURES),
        successes: check.number(cx, "successes", 1..=1000).unwrap_or(1),
        action: check
            .choice(cx, "action", &actions)
            .unwrap_or(CheckAction::Restart),
    }
}

/// A category of a pool, and of its keys.
fn name<'t>(cx: &mut Check, check: &Fields<'t>) -> Option<At<&'t str>> {
    let name = check.text("name")?;
    if ServiceName::new(name.value).is_err() {
        let message = format!("`{}` cannot be the name of a check", show(name.value));
        let remedy = "letters, digits, `_`, `.` and `-` are allowed";
        cx.error(name.place, message, remedy);
        return None;
    }
    if name.value == "process" {
        let message = "the pool `process` is the agent's own";
        cx.error(name.place, message, "give the check another name");
        return None;
    }
    Some(name)
}

/// `tcp`, `tcp-2`: beside those that were named so far.
fn free_name(kind: &str, others: &[CheckSettings]) -> String {
    let taken = |name: &str| others.iter().any(|other| other.name == name);
    let mut name = kind.to_owned();
    let mut number = 1_usize;
    while taken(&name) {
        number += 1;
        name = format!("{kind}-{number}");
    }
    name
}

/// The one thing it looks at, and the key that said so.
fn what(cx: &mut Check, check: &Fields<'_>, place: Place) -> Option<(&'static str, CheckKind)> {
    let said: Vec<&'static str> = KINDS
        .into_iter()
        .filter(|kind| check.says(kind) || check.rejected(kind))
        .collect();
    let kind = match said.as_slice() {
        [kind] => *kind,
        [] => {
            let remedy = format!("write one of {}", one_of(KINDS.into_iter()));
            cx.error(place, "this check looks at nothing", remedy);
            return None;
        }
        [_, second, ..] => {
            let place = check.key_place(second).unwrap_or(place);
            let message = "this check looks at more than one thing";
            cx.error(place, message, "write a check for each");
            return None;
        }
    };
    let what = match kind {
        "exec" => exec(cx, check, place)?,
        "http" => http(cx, check)?,
        "tcp" => {
            let (host, port) = check.parsed(cx, kind, |text| address(text, None))?;
            CheckKind::Tcp { host, port }
        }
        "unix" => CheckKind::Unix(check.absolute(cx, kind)?),
        "redis" => CheckKind::Redis(check.owned(kind)?),
        _ => file(cx, check, place)?,
    };
    Some((kind, what))
}

fn exec(cx: &mut Check, check: &Fields<'_>, place: Place) -> Option<CheckKind> {
    let words = check.texts("exec")?;
    let Some(program) = words.first().filter(|word| !word.value.is_empty()) else {
        let remedy = "write exec = [\"/path/to/program\", \"argument\"]";
        cx.error(place, "`exec` names no program", remedy);
        return None;
    };
    if program.value.contains('/') {
        absolute(cx, "exec", *program)?;
    }
    let words = words.iter().map(|word| word.value.to_owned()).collect();
    Some(CheckKind::Exec(words))
}

fn file(cx: &mut Check, check: &Fields<'_>, place: Place) -> Option<CheckKind> {
    let path = check.absolute(cx, "file")?;
    let max_age = check.duration(cx, "max_age", LEAST_TIMEOUT);
    if max_age.is_none() && !check.rejected("max_age") && check.text("max_age").is_none() {
        let message = "a check by `file` needs `max_age`";
        cx.error(place, message, "write max_age = \"10s\"");
    }
    let max_age = max_age?;
    Some(CheckKind::File { path, max_age })
}

fn http(cx: &mut Check, check: &Fields<'_>) -> Option<CheckKind> {
    let (host, port, path) = check.parsed(cx, "http", url)?;
    Some(CheckKind::Http {
        host,
        port,
        path,
        status: check.number(cx, "status", 100..=599),
        body: check.owned("body"),
    })
}

/// `http://host[:port][/path]` → host, port, path (RFC 9110 section 4.2.1).
fn url(text: &str) -> Result<(String, u16, String), Wrong> {
    let wrong = |message: &str, remedy: &str| Wrong {
        message: message.to_owned(),
        remedy: remedy.to_owned(),
    };
    const FORM: &str = "write http://host[:port]/path";
    let Some(rest) = text.strip_prefix("http://") else {
        return Err(match text.starts_with("https://") {
            true => wrong(
                "a check speaks plain HTTP, not TLS",
                "use http://, or a program with `exec`",
            ),
            false => wrong("this is not a URL of a check", FORM),
        });
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || path.starts_with('#') {
        return Err(wrong("this is not a URL of a check", FORM));
    }
    if let Some(c) = path.chars().find(|c| !c.is_ascii_graphic()) {
        let message = format!("the path of a URL may not contain {c:?}");
        return Err(wrong(&message, "write it as %20 and the like"));
    }
    let (host, port) = address(authority, Some(80))?;
    let path = path.split('#').next().unwrap_or_default();
    let path = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("/{path}"),
    };
    Ok((host, port, path))
}

/// `host:port`; without a port only where there is a default.
fn address(text: &str, default: Option<u16>) -> Result<(String, u16), Wrong> {
    let bare = match text.rsplit_once(']') {
        Some((_, after)) => !after.starts_with(':'),
        None => !text.contains(':'),
    };
    let endpoint = host_and_port(text)?;
    match (endpoint, bare, default) {
        (Endpoint::Tcp { host, .. }, true, Some(port)) => Ok((host, port)),
        (Endpoint::Tcp { host, port }, false, _) => Ok((host, port)),
        (Endpoint::Tcp { .. } | Endpoint::Unix(_) | Endpoint::None, _, _) => Err(Wrong {
            message: "there is no port".to_owned(),
            remedy: format!("write {text}:8080"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let ok = |text| url(text).map_err(|wrong| wrong.message);
        let parts = |host: &str, port, path: &str| Ok((host.to_owned(), port, path.to_owned()));
        assert_eq!(ok("http://localhost"), parts("localhost", 80, "/"));
        assert_eq!(ok("http://[::1]:81/a?b#c"), parts("::1", 81, "/a?b"));
        assert_eq!(ok("http://h?x=1"), parts("h", 80, "/?x=1"));
        assert!(ok("https://h/").is_err() && ok("h:80/").is_err() && ok("http:///x").is_err());
        assert!(ok("http://h/a b").is_err());
    }

    #[test]
    fn a_port_is_never_guessed() {
        assert!(address("localhost", None).is_err());
        assert!(address("[::1]", None).is_err());
        assert_eq!(address(":9000", None), Ok(("localhost".to_owned(), 9000)));
    }
}
