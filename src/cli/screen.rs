//! status replies, one a second → the rows of a screen.
//!
//! Pure: told how large the screen is and what time it is. Lines a second are the difference of two replies. Every row
//! fits the screen; at the edge the health of further pools gives way first, then columns, then services, which scroll.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Instant;

use serde_json::Value;

use super::column::Column;
use super::row::Row;
use super::show::{self, Look, Tone, bytes, clean, cut, milliseconds, state_tone};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Name,
    State,
    Cpu,
    Memory,
    Lines,
    Health,
}

impl Sort {
    pub const ALL: [Sort; 6] = [
        Sort::Name,
        Sort::State,
        Sort::Cpu,
        Sort::Memory,
        Sort::Lines,
        Sort::Health,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Sort::Name => "name",
            Sort::State => "state",
            Sort::Cpu => "cpu",
            Sort::Memory => "memory",
            Sort::Lines => "lines",
            Sort::Health => "health",
        }
    }

    /// The key that sorts so.
    pub fn of_key(key: char) -> Option<Sort> {
        Sort::ALL
            .into_iter()
            .find(|sort| sort.as_str().starts_with(key))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub columns: usize,
    pub rows: usize,
}

/// Cells of a bar of health.
const BAR: usize = 8;
/// Cells of a bar of the machine's load and memory.
const WIDE_BAR: usize = 12;
/// Rows above the services.
const HEAD: usize = 5;
/// Rows below them.
const FOOT: usize = 2;

pub struct Screen {
    pub sort: Sort,
    /// Services above the screen.
    scroll: usize,
    data: Value,
    at: Option<Instant>,
    /// Service → lines so far, and a second.
    lines: HashMap<String, (u64, Option<f64>)>,
}

impl Screen {
    pub fn new(sort: Sort) -> Screen {
        Screen {
            sort,
            scroll: 0,
            data: Value::Null,
            at: None,
            lines: HashMap::new(),
        }
    }

    /// `data` of a status reply.
    pub fn take(&mut self, now: Instant, data: Value) {
        let seconds = self.at.map(|then| now.saturating_duration_since(then));
        let seconds = seconds.map(|passed| passed.as_secs_f64().max(0.001));
        let mut lines = HashMap::new();
        for service in data["services"].as_array().into_iter().flatten() {
            let name = show::word(&service["name"]);
            let count = service["lines"].as_u64().unwrap_or(0);
            let before = self.lines.get(&name).map(|(before, _)| *before);
            let rate = seconds
                .zip(before)
                // An agent that began anew counts from 0.
                .map(|(seconds, before)| count.saturating_sub(before) as f64 / seconds);
            lines.insert(name, (count, rate));
        }
        (self.lines, self.at, self.data) = (lines, Some(now), data);
    }

    /// Negative is up.
    pub fn scroll(&mut self, rows: isize) {
        let services = self.data["services"].as_array().map_or(0, Vec::len);
        let to = self.scroll.saturating_add_signed(rows);
        self.scroll = to.min(services.saturating_sub(1));
    }

    /// Exactly as many rows as the screen has, or all there are where it has no end.
    pub fn draw(
        &self,
        size: Option<Size>,
        look: Look,
        time: &str,
        trouble: Option<&str>,
    ) -> Vec<String> {
        let columns = size.map_or(160, |size| size.columns);
        let mut rows = vec![
            self.headline(columns, time, trouble),
            self.machine(),
            self.summary(),
            Row::default(),
        ];
        let (heading, services) = self.table(columns);
        rows.push(heading);
        let Some(size) = size else {
            rows.extend(services.into_iter().flatten());
            return rows.iter().map(|row| row.fit(columns, look)).collect();
        };
        let room = size.rows.saturating_sub(HEAD + FOOT);
        let below: usize = services.iter().skip(self.scroll).map(Vec::len).sum();
        let mut shown: Vec<Row> = services.into_iter().skip(self.scroll).flatten().collect();
        shown.truncate(room);
        shown.resize_with(room, Row::default);
        rows.extend(shown);
        rows.push(Row::default());
        rows.push(self.keys(below.saturating_sub(room)));
        // A very low screen shows its top.
        rows.truncate(size.rows);
        rows.iter().map(|row| row.fit(columns, look)).collect()
    }

    fn headline(&self, columns: usize, time: &str, trouble: Option<&str>) -> Row {
        let agent = &self.data["agent"];
        let mut row = Row::default();
        row.add(" agent ", Tone::Bold);
        row.add(&show::word(&agent["version"]), Tone::Bold);
        match trouble {
            Some(trouble) => {
                row.add("  ", Tone::Plain);
                row.add(&clean(trouble), Tone::Bad);
            }
            None => {
                row.add(
                    &format!(" · up {}", milliseconds(&agent["uptime_ms"])),
                    Tone::Plain,
                );
                let redis = &agent["redis"];
                let state = show::word(&redis["state"]);
                let tone = match state.as_str() {
                    "connected" => Tone::Good,
                    _ => Tone::Bad,
                };
                row.add(" · redis ", Tone::Plain);
                row.add(&state, tone);
                let some = |name: &str| redis[name].as_u64().filter(|count| *count > 0);
                if let Some(lines) = some("spooled_lines") {
                    let size = bytes(redis["spooled_bytes"].as_u64().unwrap_or(0));
                    row.add(&format!(" · {lines} lines ({size}) wait"), Tone::Busy);
                }
                if let Some(dropped) = some("dropped") {
                    row.add(&format!(" · {dropped} dropped"), Tone::Bad);
                }
            }
        }
        let used = row.width() + time.chars().count() + 1;
        if used < columns {
            row.add(&" ".repeat(columns - used), Tone::Plain);
            row.add(time, Tone::Dim);
        }
        row
    }

    /// What the board's sensors say, as far as there are some.
    fn machine(&self) -> Row {
        let device = &self.data["device"];
        let number = |name: &str| device[name].as_f64();
        let mut row = Row::default();
        let mut part = |label: &str, share: Option<f64>, text: String, tone: Tone| {
            row.add(if row.is_empty() { " " } else { "   " }, Tone::Plain);
            row.add(label, Tone::Dim);
            row.add(" ", Tone::Plain);
            if let Some(share) = share {
                row.bar(
                    share,
                    WIDE_BAR,
                    if share < 0.8 { Tone::Good } else { Tone::Bad },
                );
                row.add(" ", Tone::Plain);
            }
            row.add(&text, tone);
        };
        if let Some(cpu) = number("cpu_percent") {
            part("cpu", Some(cpu / 100.0), format!("{cpu:.0}%"), Tone::Plain);
        }
        let memory = number("memory_total_bytes").zip(number("memory_available_bytes"));
        if let Some((total, free)) = memory.filter(|(total, _)| *total > 0.0) {
            let used = (total - free).max(0.0);
            let text = format!("{} of {}", bytes(used as u64), bytes(total as u64));
            part("memory", Some(used / total), text, Tone::Plain);
        }
        if let Some(gpu) = number("gpu_load_percent") {
            part("gpu", Some(gpu / 100.0), format!("{gpu:.0}%"), Tone::Plain);
        }
        let fields = || device.as_object().into_iter().flatten();
        let temperatures = fields().filter_map(|(name, value)| {
            let place = name.strip_prefix("temp_")?.strip_suffix("_c")?;
            Some((place, value.as_f64()?))
        });
        if let Some((place, hottest)) = temperatures.max_by(|a, b| a.1.total_cmp(&b.1)) {
            let tone = if hottest < 85.0 {
                Tone::Plain
            } else {
                Tone::Bad
            };
            part(&clean(place), None, format!("{hottest:.1} °C"), tone);
        }
        if let Some(power) = number("power_total_mw") {
            part(
                "power",
                None,
                format!("{:.1} W", power / 1000.0),
                Tone::Plain,
            );
        }
        if let Some(mode) = device["power_mode"]
            .as_str()
            .filter(|mode| *mode != "absent")
        {
            part("mode", None, clean(mode), Tone::Plain);
        }
        let throttling = fields().any(|(name, value)| {
            name.starts_with("cooling_") && value.as_i64().is_some_and(|state| state > 0)
        });
        if throttling {
            part("", None, "throttling".to_owned(), Tone::Bad);
        }
        row
    }

    fn summary(&self) -> Row {
        let services = self.services();
        let mut row = Row::default();
        row.add(" ", Tone::Plain);
        row.add(
            &match services.len() {
                1 => "1 service".to_owned(),
                count => format!("{count} services"),
            },
            Tone::Plain,
        );
        for state in [
            "ready", "done", "starting", "waiting", "stopping", "backoff", "stopped", "failed",
        ] {
            let count = services
                .iter()
                .filter(|service| service["state"] == state)
                .count();
            if count > 0 {
                row.add(" · ", Tone::Dim);
                row.add(&format!("{count} {state}"), state_tone(state));
            }
        }
        row
    }

    fn keys(&self, below: usize) -> Row {
        let mut row = Row::default();
        row.add(" q", Tone::Bold);
        row.add(" quit   sort by", Tone::Dim);
        for sort in Sort::ALL {
            let (key, rest) = sort.as_str().split_at(1);
            row.add(" ", Tone::Plain);
            row.add(key, Tone::Bold);
            row.add(
                rest,
                if sort == self.sort {
                    Tone::Good
                } else {
                    Tone::Dim
                },
            );
        }
        if below > 0 || self.scroll > 0 {
            row.add(
                &format!("   ↑↓ {} above, {below} rows below", self.scroll),
                Tone::Dim,
            );
        }
        row
    }

    fn services(&self) -> Vec<&Value> {
        let services = self.data["services"].as_array();
        let mut services: Vec<&Value> = services.into_iter().flatten().collect();
        let number = |service: &Value, name: &str| service[name].as_f64().unwrap_or(0.0);
        let by = |value: &dyn Fn(&Value) -> f64, services: &mut Vec<&Value>| {
            services.sort_by(|a, b| value(b).total_cmp(&value(a)));
        };
        // Equal ones stand by their names.
        services.sort_by_key(|service| show::word(&service["name"]));
        match self.sort {
            Sort::Name => {}
            Sort::State => services.sort_by_key(|service| Reverse(urgency(&service["state"]))),
            Sort::Cpu => by(&|service| number(service, "cpu_percent"), &mut services),
            Sort::Memory => by(&|service| number(service, "rss_bytes"), &mut services),
            Sort::Lines => by(&|service| self.rate(service).unwrap_or(0.0), &mut services),
            // The worst first.
            Sort::Health => by(&|service| -worst(service), &mut services),
        }
        services
    }

    fn rate(&self, service: &Value) -> Option<f64> {
        self.lines.get(&show::word(&service["name"]))?.1
    }

    /// The headings, and the rows of each service.
    fn table(&self, columns: usize) -> (Row, Vec<Vec<Row>>) {
        let services = self.services();
        let name = |service: &&Value| show::word(&service["name"]).chars().count();
        let longest = services.iter().map(name).max().unwrap_or(0);
        let name_width = longest.clamp(7, show::LONGEST_NAME).min(columns / 3).max(7);
        let mut shown: Vec<Column> = Column::ALL.to_vec();
        let fixed = |shown: &[Column]| {
            1 + name_width + shown.iter().map(|column| column.width() + 2).sum::<usize>()
        };
        for column in Column::DISPENSABLE {
            if fixed(&shown) + 2 + BAR + 12 > columns {
                shown.retain(|kept| *kept != column);
            }
        }
        let mut heading = Row::default();
        let mark = |sort: Option<Sort>| match sort == Some(self.sort) {
            true => Tone::Bold,
            false => Tone::Dim,
        };
        heading.add(
            &format!(" {:name_width$}", "SERVICE"),
            mark(Some(Sort::Name)),
        );
        for column in &shown {
            heading.add(&column.place(column.heading()), mark(column.sort()));
        }
        heading.add("  HEALTH", mark(Some(Sort::Health)));
        let room = columns.saturating_sub(fixed(&shown) + 2);
        let row = |service: &&Value| {
            let mut row = Row::default();
            let name = cut(&show::word(&service["name"]), name_width);
            row.add(&format!(" {name:name_width$}"), Tone::Plain);
            for column in &shown {
                let (text, tone) = column.cell(service, self.rate(service));
                row.add(&column.place(&text), tone);
            }
            row.add("  ", Tone::Plain);
            pools(service, room, &mut row);
            let mut rows = vec![row];
            if let Some(reason) = service["reason"].as_str() {
                let mut why = Row::default();
                why.add(&format!("   └ {}", clean(reason)), Tone::Dim);
                rows.push(why);
            }
            rows
        };
        (heading, services.iter().map(row).collect())
    }
}

/// States that somebody should look at come first.
fn urgency(state: &Value) -> usize {
    let order = [
        "done", "stopped", "ready", "stopping", "waiting", "starting", "backoff", "failed",
    ];
    order
        .iter()
        .position(|known| *state == **known)
        .unwrap_or(0)
}

/// Of a service's pools, the emptiest: 0 to 1; 1 where it has none.
fn worst(service: &Value) -> f64 {
    let pools = service["health"].as_object().into_iter().flatten();
    pools
        .map(|(name, health)| share(health, &service["caps"][name]))
        .fold(1.0, f64::min)
}

fn share(health: &Value, cap: &Value) -> f64 {
    let (health, cap) = (
        health.as_f64().unwrap_or(0.0),
        cap.as_f64().unwrap_or(100.0),
    );
    // A pool without room is as full as it can be.
    if cap > 0.0 {
        (health / cap).clamp(0.0, 1.0)
    } else {
        1.0
    }
}

/// `api ██████▍  856  process ████████ 100  +2`: as many as fit, the emptiest first where some do not.
fn pools(service: &Value, room: usize, row: &mut Row) {
    let Some(health) = service["health"].as_object() else {
        return;
    };
    let mut all: Vec<(String, f64, String)> = health
        .iter()
        .map(|(name, value)| {
            let share = share(value, &service["caps"][name]);
            (cut(&clean(name), 16), share, show::word(value))
        })
        .collect();
    let width = |(name, _, value): &(String, f64, String)| {
        name.chars().count() + BAR + 2 + value.chars().count()
    };
    if all.iter().map(|pool| width(pool) + 2).sum::<usize>() > room + 2 {
        all.sort_by(|a, b| a.1.total_cmp(&b.1));
    }
    let alive = service["pid"].as_i64().is_some_and(|pid| pid > 0);
    let (mut used, count) = (0, all.len());
    for (index, pool) in all.iter().enumerate() {
        let gap = if index == 0 { 0 } else { 2 };
        let more = if index + 1 < count { 6 } else { 0 };
        if used + gap + width(pool) + more > room && used > 0 {
            row.add(&format!("  +{}", count - index), Tone::Dim);
            return;
        }
        used += gap + width(pool);
        let (name, share, value) = pool;
        let tone = match alive {
            false => Tone::Dim,
            true if *share >= 0.5 => Tone::Good,
            true if *share >= 0.2 => Tone::Busy,
            true => Tone::Bad,
        };
        row.add(&" ".repeat(gap), Tone::Plain);
        row.add(&format!("{name} "), Tone::Plain);
        row.bar(*share, BAR, tone);
        row.add(&format!(" {value}"), tone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::show::Colour;
    use serde_json::json;
    use std::time::Duration;

    fn data(lines: u64) -> Value {
        json!({
            "agent": {"version": "0.1.0", "pid": 1, "uptime_ms": 7_980_000,
                      "redis": {"state": "connected", "spooled_lines": 0, "spooled_bytes": 0, "dropped": 0}},
            "device": {"cpu_percent": 25.0, "memory_total_bytes": 8_000_000_000_u64,
                       "memory_available_bytes": 4_000_000_000_u64, "temp_cpu_thermal_c": 48.3, "temp_x_c": "absent"},
            "services": [
                {"name": "lidar", "state": "ready", "pid": 4242, "restarts": 0, "uptime_ms": 61_000, "cpu_percent": 3.1,
                 "rss_bytes": 12_900_000, "threads": 9, "lines": lines, "health": {"api": 250, "process": 100},
                 "caps": {"api": 1000, "process": 100}},
                {"name": "camera", "state": "failed", "pid": null, "restarts": 12, "uptime_ms": 0, "cpu_percent": 0.0,
                 "rss_bytes": 0, "threads": 0, "lines": 7, "health": {"process": 0}, "caps": {"process": 100},
                 "reason": "exited with code 3\u{1b}[2J"}
            ]
        })
    }

    fn screen(sort: Sort) -> Screen {
        let mut screen = Screen::new(sort);
        let now = Instant::now();
        screen.take(now, data(100));
        screen.take(now + Duration::from_secs(2), data(340));
        screen
    }

    #[test]
    fn a_screen_to_read() {
        let size = Size {
            columns: 120,
            rows: 11,
        };
        let rows = screen(Sort::Name).draw(Some(size), Look::default(), "10:30:00", None);
        let expected = [
            " agent 0.1.0 · up 2h 13m · redis connected                                                                     10:30:00",
            " cpu ███░░░░░░░░░ 25%   memory ██████░░░░░░ 3.7 GiB of 7.5 GiB   cpu_thermal 48.3 °C",
            " 2 services · 1 ready · 1 failed",
            "",
            " SERVICE  STATE         PID       UP     CPU    MEMORY  THR  LINES/S  RESTARTS  HEALTH",
            " camera   failed          -        -       -         -    -        0        12  process ░░░░░░░░ 0",
            "   └ exited with code 3 [2J",
            " lidar    ready        4242    1m 1s    3.1%    12 MiB    9      120         0  api ██░░░░░░ 250  process ████████ 100",
            "",
            "",
            " q quit   sort by name state cpu memory lines health",
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn sorted_by_every_key() {
        for (sort, first) in [
            (Sort::Name, "camera"),
            (Sort::State, "camera"),
            (Sort::Cpu, "lidar"),
            (Sort::Memory, "lidar"),
            (Sort::Lines, "lidar"),
            (Sort::Health, "camera"),
        ] {
            let rows = screen(sort).draw(None, Look::default(), "", None);
            assert!(
                rows[HEAD].starts_with(&format!(" {first}")),
                "{sort:?}: {rows:#?}"
            );
            assert_eq!(
                Sort::of_key(sort.as_str().chars().next().unwrap_or(' ')),
                Some(sort)
            );
        }
    }

    #[test]
    fn it_fits_every_screen_and_takes_every_answer() {
        let colour = Look {
            colour: Colour::Ansi,
            width: None,
        };
        for answer in [
            json!(null),
            json!({"services": [{}, 1, {"health": 3}]}),
            data(5),
        ] {
            let mut screen = Screen::new(Sort::Health);
            screen.take(Instant::now(), answer);
            for columns in [1, 7, 40, 80, 200] {
                for rows in [1, 3, 8, 50] {
                    for (look, trouble) in [(colour, None), (Look::default(), Some("it is gone"))] {
                        let size = Some(Size { columns, rows });
                        let drawn = screen.draw(size, look, "10:30:00", trouble);
                        assert_eq!(drawn.len(), rows);
                        for row in drawn {
                            assert!(visible(&row) <= columns, "{columns}: {row}");
                        }
                    }
                }
            }
            screen.scroll(100);
            screen.scroll(-1);
            screen.draw(None, colour, "", None);
        }
    }

    /// Without what colours it.
    fn visible(row: &str) -> usize {
        let mut pieces = row.split("\x1b[");
        let first = pieces.next().map_or(0, |piece| piece.chars().count());
        let rest = pieces.map(|piece| {
            piece
                .split_once('m')
                .map_or(0, |(_, text)| text.chars().count())
        });
        first + rest.sum::<usize>()
    }
}
