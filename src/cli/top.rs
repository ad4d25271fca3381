//! `agent top`: status, once a second → a live screen, until somebody leaves it.
//!
//! An agent that does not answer, or is gone, leaves the last screen standing with that said above it; it is asked on,
//! for a restarted one comes back. Where stdout is no terminal, one view is printed.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::screen::{Screen, Size, Sort};
use super::show::{self, Look};
use super::terminal::{Input, Terminal};
use crate::clock;
use crate::control::client::Trouble;
use crate::request::{Reply, Request};

/// An agent that hangs must not hang the screen for long.
pub const PATIENCE: Duration = Duration::from_millis(1500);

const EVERY: Duration = Duration::from_secs(1);

pub fn show(
    sort: Sort,
    ask: impl Fn(&Request) -> Result<Reply, Trouble>,
    err: &mut dyn Write,
    look: Look,
) -> i32 {
    let sample = || sample(&ask);
    let mut screen = Screen::new(sort);
    match sample() {
        Ok(data) => screen.take(Instant::now(), data),
        Err(why) => return complain(err, &why),
    }
    let live = io::stdout().is_terminal()
        && std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
    let outcome = match live {
        true => watch(&mut screen, &sample, look),
        false => once(&mut screen, &sample, look),
    };
    match outcome {
        Ok(()) => 0,
        Err(why) => complain(err, &why),
    }
}

fn sample(ask: impl Fn(&Request) -> Result<Reply, Trouble>) -> Result<Value, String> {
    let request = Request::Status {
        services: Vec::new(),
        pss: false,
    };
    match ask(&request) {
        Ok(Reply { ok: true, data, .. }) => Ok(data),
        Ok(Reply { error, .. }) => Err(error.unwrap_or_default()),
        Err(trouble) => Err(trouble.to_string()),
    }
}

/// Rates need two looks.
fn once(
    screen: &mut Screen,
    sample: &dyn Fn() -> Result<Value, String>,
    look: Look,
) -> Result<(), String> {
    std::thread::sleep(EVERY);
    screen.take(Instant::now(), sample()?);
    let mut text = screen.draw(None, look, &time(), None).join("\n");
    text.push('\n');
    let told = io::stdout().write_all(text.as_bytes());
    told.map_err(|error| error.to_string())
}

fn watch(
    screen: &mut Screen,
    sample: &dyn Fn() -> Result<Value, String>,
    look: Look,
) -> Result<(), String> {
    let words = |error: io::Error| format!("the terminal: {error}");
    let mut terminal = Terminal::open().map_err(words)?;
    let mut trouble: Option<String> = None;
    let mut next = Instant::now() + EVERY;
    loop {
        let Size { columns, rows } = terminal.size();
        let size = Some(Size { columns, rows });
        let drawn = screen.draw(size, look, &time(), trouble.as_deref());
        terminal.draw(&drawn).map_err(words)?;
        let page = isize::try_from(rows / 2).unwrap_or(10);
        match terminal.wait(next) {
            Input::Leave => return Ok(()),
            Input::Pause => terminal.pause().map_err(words)?,
            Input::Key(key) => {
                if let Some(sort) = Sort::of_key(key) {
                    screen.sort = sort;
                }
            }
            Input::Up => screen.scroll(-1),
            Input::Down => screen.scroll(1),
            Input::PageUp => screen.scroll(-page),
            Input::PageDown => screen.scroll(page),
            Input::Nothing => {}
        }
        if Instant::now() >= next {
            match sample() {
                Ok(data) => {
                    screen.take(Instant::now(), data);
                    trouble = None;
                }
                Err(why) => trouble = Some(why),
            }
            next = Instant::now() + EVERY;
        }
    }
}

/// Local time of day.
fn time() -> String {
    let stamp = clock::local_stamp(clock::now_ms());
    let time = stamp.split_once('_').map_or("", |(_, time)| time);
    time.replace('-', ":")
}

fn complain(err: &mut dyn Write, error: &str) -> i32 {
    // A closed stderr leaves the exit code.
    let _ = writeln!(err, "agent: {}", show::clean(error));
    1
}
