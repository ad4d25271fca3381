//! a service → the cells between its name and its health.

use serde_json::Value;

use super::screen::Sort;
use super::show::{self, Tone, bytes, cut, milliseconds, state_tone};

/// One column between the name and health.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Column {
    State,
    Pid,
    Up,
    Cpu,
    Memory,
    Threads,
    Lines,
    Restarts,
}

impl Column {
    pub const ALL: [Column; 8] = [
        Column::State,
        Column::Pid,
        Column::Up,
        Column::Cpu,
        Column::Memory,
        Column::Threads,
        Column::Lines,
        Column::Restarts,
    ];
    /// What a narrow screen can do without, first to go first.
    pub const DISPENSABLE: [Column; 6] = [
        Column::Threads,
        Column::Pid,
        Column::Restarts,
        Column::Up,
        Column::Lines,
        Column::Memory,
    ];

    pub fn heading(self) -> &'static str {
        match self {
            Column::State => "STATE",
            Column::Pid => "PID",
            Column::Up => "UP",
            Column::Cpu => "CPU",
            Column::Memory => "MEMORY",
            Column::Threads => "THR",
            Column::Lines => "LINES/S",
            Column::Restarts => "RESTARTS",
        }
    }

    pub fn width(self) -> usize {
        match self {
            Column::State => 8,
            Column::Pid | Column::Up | Column::Lines => 7,
            Column::Cpu => 6,
            Column::Memory | Column::Restarts => 8,
            Column::Threads => 3,
        }
    }

    pub fn sort(self) -> Option<Sort> {
        match self {
            Column::State => Some(Sort::State),
            Column::Cpu => Some(Sort::Cpu),
            Column::Memory => Some(Sort::Memory),
            Column::Lines => Some(Sort::Lines),
            Column::Pid | Column::Up | Column::Threads | Column::Restarts => None,
        }
    }

    pub fn place(self, text: &str) -> String {
        let (text, width) = (cut(text, self.width()), self.width());
        match self {
            Column::State => format!("  {text:width$}"),
            Column::Pid
            | Column::Up
            | Column::Cpu
            | Column::Memory
            | Column::Threads
            | Column::Lines
            | Column::Restarts => format!("  {text:>width$}"),
        }
    }

    pub fn cell(self, service: &Value, rate: Option<f64>) -> (String, Tone) {
        let alive = service["pid"].as_i64().is_some_and(|pid| pid > 0);
        let if_alive = |text: String| match alive {
            true => (text, Tone::Plain),
            false => ("-".to_owned(), Tone::Dim),
        };
        match self {
            Column::State => {
                let state = show::word(&service["state"]);
                let tone = state_tone(&state);
                (state, tone)
            }
            Column::Pid => if_alive(show::word(&service["pid"])),
            Column::Up => if_alive(milliseconds(&service["uptime_ms"])),
            Column::Cpu => {
                let percent = service["cpu_percent"].as_f64().unwrap_or(0.0);
                if_alive(format!("{percent:.1}%"))
            }
            Column::Memory => if_alive(bytes(service["rss_bytes"].as_u64().unwrap_or(0))),
            Column::Threads => if_alive(show::word(&service["threads"])),
            Column::Lines => match rate {
                None => ("-".to_owned(), Tone::Dim),
                Some(0.0) => ("0".to_owned(), Tone::Dim),
                Some(rate) if rate < 10.0 => (format!("{rate:.1}"), Tone::Plain),
                Some(rate) => (format!("{rate:.0}"), Tone::Plain),
            },
            Column::Restarts => match service["restarts"].as_u64() {
                None | Some(0) => ("0".to_owned(), Tone::Dim),
                Some(count) => (count.to_string(), Tone::Busy),
            },
        }
    }
}
