//! tracing events → stderr: what the agent says about itself.
//!
//! `AGENT_LOG` filters (`info`, `warn,jettison_agent::sink=debug`, …). Under systemd the
//! journal stamps lines itself and reads the priority from a `<N>` prefix (sd-daemon(3));
//! elsewhere lines carry UTC time. Colour only on a terminal.

use std::fmt;
use std::io::IsTerminal;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::clock;

/// Begins to listen to the agent's own messages that pass `default`, or `AGENT_LOG` where
/// that is set. A filter that cannot be read is said and replaced: a typo there must not
/// silence a board.
pub fn start(default: &str) {
    let wanted = std::env::var("AGENT_LOG").unwrap_or_default();
    let filter = match wanted.parse::<Targets>() {
        Ok(filter) if !wanted.is_empty() => filter,
        _ => default
            .parse()
            .unwrap_or_else(|_| Targets::new().with_default(Level::INFO)),
    };
    let stderr = std::io::stderr();
    let lines = Lines {
        journal: std::env::var_os("JOURNAL_STREAM").is_some() && !stderr.is_terminal(),
        colour: stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .event_format(lines);
    // Fails only where a test has installed one already.
    let _ = tracing_subscriber::registry()
        .with(layer)
        .with(filter)
        .try_init();
    if !wanted.is_empty() && wanted.parse::<Targets>().is_err() {
        tracing::warn!("AGENT_LOG={wanted} is no filter (try info, debug); using {default}");
    }
}

/// One event, one line.
struct Lines {
    journal: bool,
    colour: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        if self.journal {
            write!(out, "<{}>", priority(level))?;
        } else {
            write!(out, "{} ", clock::utc(clock::now_ms()))?;
            let (before, after) = if self.colour {
                (colour(level), "\x1b[0m")
            } else {
                ("", "")
            };
            write!(out, "{before}{:<5}{after} ", level.as_str().to_lowercase())?;
        }
        let mut words = Words::default();
        event.record(&mut words);
        if let Some(service) = &words.service {
            write!(out, "[{service}] ")?;
        }
        writeln!(out, "{}{}", plain(&words.message), plain(&words.others))
    }
}

/// The text without the ` (os error 13)` that std appends to the system's words: a reader
/// has the words already.
pub fn plain(text: &str) -> String {
    const TAG: &str = " (os error ";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(TAG) {
        out.push_str(before);
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        rest = match after
            .get(digits..)
            .and_then(|after| after.strip_prefix(')'))
        {
            Some(after) => after,
            None => {
                out.push_str(TAG);
                after
            }
        };
    }
    out.push_str(rest);
    out
}

/// The severity of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG | Level::TRACE => "\x1b[2m",
    }
}

#[derive(Default)]
struct Words {
    message: String,
    service: Option<String>,
    others: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            "service" => self.service = Some(format!("{value:?}").trim_matches('"').to_owned()),
            name => self.others.push_str(&format!(" {name}={value:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn numbers_of_errors_go_and_nothing_else() {
        let error = std::io::Error::from_raw_os_error(13);
        assert_eq!(plain(&format!("a: {error}; b")), "a: Permission denied; b");
        for text in ["", "no tag", "x (os error y)", "x (os error 13"] {
            assert_eq!(plain(text), text);
        }
    }
}
