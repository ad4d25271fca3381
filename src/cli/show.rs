//! replies → text for people.
//!
//! Pure: told whether to use colour and how wide the terminal is. Whatever the agent does
//! not say is a dash; whatever it says is shown without control characters.

use serde_json::Value;

/// How to draw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    pub colour: Colour,
    /// Columns; `None`: no terminal, nothing is cut to fit.
    pub width: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Colour {
    #[default]
    Never,
    /// SGR codes of ECMA-48.
    Ansi,
}

/// A longer name tells nothing more, and pushes the rest off the screen.
pub(super) const LONGEST_NAME: usize = 32;

const HEADINGS: [&str; 10] = [
    "SERVICE", "STATE", "PID", "UPTIME", "RESTARTS", "EXIT", "CPU", "RSS", "LINES", "HEALTH",
];
/// Numbers stand right, words left.
const RIGHT: [bool; 10] = [
    false, false, true, true, true, true, true, true, true, false,
];
const NAME: usize = 0;
const STATE: usize = 1;
const MEMORY: usize = 7;
const HEALTH: usize = 9;
/// Said only where it was asked for.
const PSS: &str = "pss_bytes";

/// `data` of a status reply as a page.
pub fn status(data: &Value, look: Look) -> String {
    let mut page = headline(&data["agent"], look);
    let services = data["services"].as_array().map_or(&[][..], Vec::as_slice);
    if services.is_empty() {
        page.push_str("no services\n");
        return page;
    }
    let rows: Vec<[String; 10]> = services.iter().map(cells).collect();
    let mut headings = HEADINGS;
    if services.iter().any(|service| service.get(PSS).is_some()) {
        headings[MEMORY] = "PSS";
    }
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    fit(&mut widths, look);
    page.push('\n');
    let headings = headings.map(str::to_owned);
    page.push_str(&paint(
        &line(&headings, &widths, |_, cell| cell),
        Tone::Dim,
        look,
    ));
    page.push('\n');
    for row in &rows {
        let tone = state_tone(&row[STATE]);
        page.push_str(&line(row, &widths, |column, cell| match column {
            STATE => paint(&cell, tone, look),
            _ => cell,
        }));
        page.push('\n');
    }
    page
}

/// `agent 0.1.0 · pid 1 · up 2h 13m · redis connected`, and what waits for Redis.
pub(super) fn headline(agent: &Value, look: Look) -> String {
    let redis = &agent["redis"];
    let state = word(&redis["state"]);
    let tone = match state.as_str() {
        "connected" => Tone::Good,
        "-" | "none" => Tone::Plain,
        _ => Tone::Bad,
    };
    let mut parts = vec![
        paint(
            &format!("agent {}", word(&agent["version"])),
            Tone::Bold,
            look,
        ),
        format!("pid {}", word(&agent["pid"])),
        format!("up {}", milliseconds(&agent["uptime_ms"])),
        format!("redis {}", paint(&state, tone, look)),
    ];
    if let Some(lines) = redis["spooled_lines"].as_u64().filter(|lines| *lines > 0) {
        let size = bytes(redis["spooled_bytes"].as_u64().unwrap_or(0));
        parts.push(format!("{lines} lines ({size}) wait"));
    }
    if let Some(dropped) = redis["dropped"].as_u64().filter(|dropped| *dropped > 0) {
        parts.push(paint(&format!("{dropped} dropped"), Tone::Bad, look));
    }
    parts.join(" · ") + "\n"
}

fn pid_of(service: &Value) -> Option<i64> {
    service["pid"].as_i64().filter(|pid| *pid != 0)
}

fn cells(service: &Value) -> [String; 10] {
    let pid = pid_of(service).map_or("-".to_owned(), |pid| pid.to_string());
    let cpu = match service["cpu_percent"].as_f64() {
        Some(percent) => format!("{percent:.1}%"),
        None => "-".to_owned(),
    };
    let memory = service.get(PSS).unwrap_or(&service["rss_bytes"]);
    let memory = memory.as_u64().filter(|size| *size > 0);
    [
        cut(&word(&service["name"]), LONGEST_NAME),
        word(&service["state"]),
        pid,
        match pid_of(service) {
            Some(_) => milliseconds(&service["uptime_ms"]),
            None => "-".to_owned(),
        },
        word(&service["restarts"]),
        word(&service["exit"]),
        cpu,
        memory.map_or_else(|| "-".to_owned(), bytes),
        word(&service["lines"]),
        health(&service["health"]),
    ]
}

/// `api 856, process 100`.
fn health(pools: &Value) -> String {
    match pools.as_object() {
        Some(pools) if !pools.is_empty() => {
            let one = |(name, value): (&String, &Value)| format!("{} {}", clean(name), word(value));
            pools.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        Some(_) | None => "-".to_owned(),
    }
}

/// At the terminal's edge names give way first, then health; numbers never do.
fn fit(widths: &mut [usize; 10], look: Look) {
    let Some(width) = look.width else { return };
    for (column, least) in [(NAME, 16), (HEALTH, HEADINGS[HEALTH].len())] {
        let whole = widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
        let spare = widths[column].saturating_sub(least);
        widths[column] -= spare.min(whole.saturating_sub(width));
    }
}

fn line(
    cells: &[String; 10],
    widths: &[usize; 10],
    decorate: impl Fn(usize, String) -> String,
) -> String {
    let mut line = String::new();
    for (column, cell) in cells.iter().enumerate() {
        let width = widths[column];
        let cell = cut(cell, width);
        let blanks = " ".repeat(width - cell.chars().count());
        if RIGHT[column] {
            line.push_str(&blanks);
        }
        line.push_str(&decorate(column, cell));
        if !RIGHT[column] && column + 1 < cells.len() {
            line.push_str(&blanks);
        }
        if column + 1 < cells.len() {
            line.push_str("  ");
        }
    }
    line
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Bold,
    Dim,
    Good,
    Busy,
    Bad,
}

pub(super) fn state_tone(state: &str) -> Tone {
    match state {
        "ready" | "done" => Tone::Good,
        "starting" | "waiting" | "stopping" | "backoff" => Tone::Busy,
        "failed" => Tone::Bad,
        "stopped" => Tone::Dim,
        _ => Tone::Plain,
    }
}

pub(super) fn paint(text: &str, tone: Tone, look: Look) -> String {
    let code = match tone {
        Tone::Plain => return text.to_owned(),
        Tone::Bold => "1",
        Tone::Dim => "2",
        Tone::Good => "32",
        Tone::Busy => "33",
        Tone::Bad => "31",
    };
    match look.colour {
        Colour::Never => text.to_owned(),
        Colour::Ansi => format!("\x1b[{code}m{text}\x1b[0m"),
    }
}

/// `2h 13m`: the two largest units that matter.
pub(super) fn milliseconds(value: &Value) -> String {
    let Some(milliseconds) = value.as_u64() else {
        return "-".to_owned();
    };
    let seconds = milliseconds / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) if seconds == 0 => format!("{milliseconds}ms"),
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        (_, _, _) => format!("{days}d {}h", hours % 24),
    }
}

/// `12.3 MiB`: three digits at most before the unit changes.
pub(super) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1000.0 {
            return match unit {
                "B" => format!("{count} B"),
                _ if value < 10.0 => format!("{value:.1} {unit}"),
                _ => format!("{value:.0} {unit}"),
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A scalar as it stands; a dash for what is not said.
pub(super) fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => clean(text),
        other => other.to_string(),
    }
}

/// Nothing that a terminal would obey.
pub fn clean(text: &str) -> String {
    let harmless = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(harmless).collect()
}

pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    if width == 0 {
        return String::new();
    }
    let mut short: String = text.chars().take(width - 1).collect();
    short.push('…');
    short
}

/// What a verb that changes something says when it is done: the agent's own words, one a
/// line. Nothing where the agent has nothing to say, and no list that holds nothing.
pub fn outcome(data: &Value) -> String {
    match data {
        Value::Null => String::new(),
        Value::String(text) => text.lines().map(|line| clean(line) + "\n").collect(),
        Value::Array(items) => items.iter().map(outcome).collect(),
        Value::Object(fields) if fields.is_empty() => String::new(),
        Value::Object(fields) if fields.values().all(is_empty) => "no changes\n".to_owned(),
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !is_empty(value))
            .map(|(name, value)| format!("{}: {}\n", clean(name), inline(value)))
            .collect(),
        Value::Bool(_) | Value::Number(_) => format!("{data}\n"),
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

fn inline(value: &Value) -> String {
    match value {
        Value::Array(items) => items.iter().map(inline).collect::<Vec<_>>().join(", "),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            word(value)
        }
    }
}

/// A probe's one line.
pub fn probe(healthy: bool, reason: &str) -> String {
    let verdict = if healthy { "healthy" } else { "unhealthy" };
    let reason = clean(reason);
    match reason.trim() {
        "" => format!("{verdict}\n"),
        reason => format!("{verdict}: {reason}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Value {
        json!({
            "agent": {"version": "0.1.0", "pid": 1, "uptime_ms": 7_980_000,
                      "redis": {"state": "connected", "spooled_lines": 0, "spooled_bytes": 0, "dropped": 0}},
            "services": [
                {"name": "lidar", "state": "ready", "pid": 4242, "restarts": 0, "exit": 0, "uptime_ms": 7_979_000,
                 "cpu_percent": 3.125, "rss_bytes": 12_900_000, "lines": 12345, "health": {"api": 856, "process": 100}},
                {"name": "camera_front_left_with_a_name_that_never_ends", "state": "backoff", "pid": null, "restarts": 12,
                 "exit": 139, "uptime_ms": null, "cpu_percent": 0.0, "rss_bytes": 0, "lines": 7, "health": {"process": 0}}
            ]
        })
    }

    #[test]
    fn a_page_to_read() {
        let expected = "\
agent 0.1.0 · pid 1 · up 2h 13m · redis connected

SERVICE                           STATE     PID  UPTIME  RESTARTS  EXIT   CPU     RSS  LINES  HEALTH
lidar                             ready    4242  2h 12m         0     0  3.1%  12 MiB  12345  api 856, process 100
camera_front_left_with_a_name_t…  backoff     -       -        12   139  0.0%       -      7  process 0
";
        assert_eq!(status(&sample(), Look::default()), expected);
    }

    #[test]
    fn it_fits_the_terminal_and_colour_adds_no_width() {
        let narrow = Look {
            colour: Colour::Ansi,
            width: Some(88),
        };
        let page = status(&sample(), narrow);
        assert!(page.contains("\x1b[32mready\x1b[0m"));
        assert!(page.contains("\x1b[33mbackoff\x1b[0m"));
        let mut plain = String::new();
        let mut rest = page.as_str();
        while let Some(at) = rest.find("\x1b[") {
            plain.push_str(&rest[..at]);
            let code = &rest[at..];
            rest = &code[code.find('m').expect("a whole code") + 1..];
        }
        plain.push_str(rest);
        assert!(plain.contains("api 856, …"), "{plain}");
        for line in plain.lines() {
            assert!(line.chars().count() <= 88, "{line}");
        }
    }

    #[test]
    fn whatever_the_agent_says_something_is_shown() {
        for data in [
            json!(null),
            json!([]),
            json!({"services": [{}, 1, null, {"name": "a\x1b[2Jb", "pid": "x", "health": 3}]}),
            json!({"agent": 7, "services": "none"}),
        ] {
            let page = status(
                &data,
                Look {
                    colour: Colour::Never,
                    width: Some(3),
                },
            );
            assert!(!page.contains('\x1b'));
            assert!(page.ends_with('\n'));
        }
    }

    #[test]
    fn times_and_sizes_for_people() {
        let time = |milliseconds: u64| super::milliseconds(&json!(milliseconds));
        assert_eq!(time(999), "999ms");
        assert_eq!(time(59_999), "59s");
        assert_eq!(time(61_000), "1m 1s");
        assert_eq!(time(3_600_000), "1h 0m");
        assert_eq!(time(90_000_000), "1d 1h");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1.0 KiB");
        assert_eq!(bytes(1024 * 1024 * 5 / 2), "2.5 MiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }

    #[test]
    fn a_probe_is_one_line() {
        assert_eq!(probe(true, ""), "healthy\n");
        assert_eq!(
            probe(false, "lidar is\nfailed"),
            "unhealthy: lidar is failed\n"
        );
    }

    #[test]
    fn outcomes_in_the_agents_words() {
        assert_eq!(outcome(&json!(null)), "");
        assert_eq!(outcome(&json!({})), "");
        assert_eq!(outcome(&json!(["a", "b"])), "a\nb\n");
        assert_eq!(
            outcome(&json!({"changed": ["lidar", "camera"], "removed": []})),
            "changed: lidar, camera\n"
        );
        assert_eq!(
            outcome(&json!({"added": [], "removed": []})),
            "no changes\n"
        );
    }
}
