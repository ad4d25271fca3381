//! what became visible → lines for a person.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Prints an account: when, where it went, what it is.
#[derive(Clone, Copy)]
pub struct Screen {
    start: Instant,
    colour: bool,
}

/// Of the longest key that the demonstration shows.
const KEY_WIDTH: usize = 40;

impl Screen {
    pub fn new() -> Screen {
        Screen {
            start: Instant::now(),
            colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// One thing that is in Redis now: its key, what kind of thing it is, its content.
    pub fn row(&self, key: &str, what: &str, content: &str) {
        let colour = self.colour_of(key, what);
        let indent = " ".repeat(KEY_WIDTH + 24);
        let content = content.replace('\n', &format!("\n{indent}"));
        let (dim, reset) = if self.colour {
            ("\x1b[2m", "\x1b[0m")
        } else {
            ("", "")
        };
        self.print(&format!(
            "{dim}{:7.2} s{reset}  {key:<KEY_WIDTH$}  {colour}{what:<9}{reset}  {content}",
            self.seconds()
        ));
    }

    pub fn has_colour(&self) -> bool {
        self.colour
    }

    pub fn heading(&self, text: &str) {
        let bold = if self.colour { "\x1b[1m" } else { "" };
        let reset = if self.colour { "\x1b[0m" } else { "" };
        self.print(&format!("\n{bold}{text}{reset}"));
    }

    pub fn print(&self, line: &str) {
        let _ = writeln!(std::io::stdout(), "{line}");
    }

    fn colour_of(&self, key: &str, what: &str) -> &'static str {
        if !self.colour {
            return "";
        }
        match (key, what) {
            (_, "stderr" | "exit" | "failed" | "dropped") => "\x1b[31m",
            (_, "restart" | "stop") => "\x1b[33m",
            (_, "start" | "ready") => "\x1b[32m",
            (_, "health" | "value") => "\x1b[36m",
            _ => "\x1b[2m",
        }
    }
}

impl Default for Screen {
    fn default() -> Screen {
        Screen::new()
    }
}
