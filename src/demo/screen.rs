//! what became visible → lines for a person.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Prints an account: when, where it went, what it is.
#[derive(Clone, Copy)]
pub struct Screen {
    start: Instant,
    colour: bool,
}

/// Columns before a line of a report, and how many lines of one are shown.
const REPORT_INDENT: usize = 11;
const REPORT_LINES: usize = 60;
const REPORT_WIDTH: usize = 150;

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

    /// A crash report, as far as its crashed thread: the rest is in the stream.
    pub fn report(&self, key: &str, text: &str) {
        let (bold, red, dim, reset) = match self.colour {
            true => ("\x1b[1m", "\x1b[31m", "\x1b[2m", "\x1b[0m"),
            false => ("", "", "", ""),
        };
        let mut account = format!(
            "{dim}{:7.2} s{reset}  {key:<KEY_WIDTH$}  {red}{:<9}{reset}",
            self.seconds(),
            "report"
        );
        for line in without_libraries(crashed_part(text)) {
            let style = if line.starts_with('#') { bold } else { dim };
            let line: String = line.chars().take(REPORT_WIDTH).collect();
            account += &format!("\n{:REPORT_INDENT$}{style}{line}{reset}", "");
        }
        self.print(&account);
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
            (_, "stderr" | "exit" | "crash" | "failed" | "dropped") => "\x1b[31m",
            (_, "restart" | "stop") => "\x1b[33m",
            (_, "start" | "ready") => "\x1b[32m",
            (_, "health" | "value") => "\x1b[36m",
            _ => "\x1b[2m",
        }
    }
}

/// Heading and first thread, without the frames below `main`: those are the C library's.
fn crashed_part(text: &str) -> Vec<&str> {
    let is_other = |line: &&str| line.starts_with("Registers:") || line.starts_with("Modules:");
    let mut threads = 0;
    let mut lines = Vec::new();
    for line in text.lines().take_while(|line| !is_other(line)) {
        threads += usize::from(line.starts_with("Thread "));
        if threads > 1 || lines.len() >= REPORT_LINES {
            break;
        }
        if !line.is_empty() {
            lines.push(line);
        }
        if is_main(line) {
            // Its variables follow.
            let own = text.lines().skip_while(|other| *other != line).skip(1);
            lines.extend(own.take_while(|line| line.starts_with("        ")));
            break;
        }
    }
    lines
}

/// Frames of the C library and of Rust's own, with their variables, as a count.
fn without_libraries(lines: Vec<&str>) -> Vec<String> {
    let places = [" at /rustc/", " at nptl/", " at stdlib/", " at sysdeps/"];
    let is_library = |line: &str| places.iter().any(|place| line.contains(place));
    let mut shown: Vec<String> = Vec::new();
    let mut left_out = 0;
    for line in lines {
        if line.starts_with('#') && is_library(line) {
            left_out += 1;
        } else if line.starts_with('#') || left_out == 0 {
            if left_out > 0 {
                shown.push(format!("    … {left_out} frames of the libraries"));
                left_out = 0;
            }
            shown.push(line.to_owned());
        }
    }
    shown
}

/// `#3  0x… in main () at …`, also `mapper::main`.
fn is_main(line: &str) -> bool {
    let name = line.split(" (").next().unwrap_or_default();
    line.starts_with('#') && (name.ends_with(" main") || name.ends_with("::main"))
}

impl Default for Screen {
    fn default() -> Screen {
        Screen::new()
    }
}
