//! `agent events` → what happened, and what happens, one line each.
//!
//! The last events that the agent keeps; with `-f` it goes on until the agent ends. A reader that is slow, or gone
//! for a while, costs the agent nothing: it asks for what came after the last it saw, and is told how much it missed.

use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::show::{self, Look, Tone};
use crate::clock;
use crate::control::client::Trouble;
use crate::request::{EventsAnswer, Reply, Request};

/// More than the agent's own patience with a follower: one that is not answered by then hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub follow: bool,
    pub json: bool,
}

pub fn tell(
    wanted: Wanted,
    mut ask: impl FnMut(&Request) -> Result<Reply, Trouble>,
    out: &mut dyn Write,
    err: &mut dyn Write,
    look: Look,
) -> i32 {
    let mut page = Page::new(look);
    let (mut after, mut wait) = (0, false);
    loop {
        let answer = match ask(&Request::Events { after, wait }) {
            Ok(Reply { ok: true, data, .. }) => data,
            // It has answered before: so this is its end.
            Ok(_) | Err(Trouble::NoAgent(_)) if wait => return 0,
            Ok(Reply { error, .. }) => return complain(err, &error.unwrap_or_default()),
            Err(trouble) => return complain(err, &trouble.to_string()),
        };
        let answer: EventsAnswer = match serde_json::from_value(answer) {
            Ok(answer) => answer,
            Err(error) => {
                return complain(
                    err,
                    &format!("the agent's answer is not understood: {error}"),
                );
            }
        };
        let missed = (answer.missed > 0).then(|| {
            let message = format!("{} events were missed", answer.missed);
            json!({"event": "dropped", "message": message, "count": answer.missed})
        });
        let mut text = String::new();
        for event in missed.iter().chain(&answer.events) {
            match wanted.json {
                true => text.push_str(&format!("{event}\n")),
                false => text.push_str(&page.line(event)),
            }
        }
        let told = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        if let Err(error) = told {
            return match error.kind() {
                // Nobody reads any more.
                std::io::ErrorKind::BrokenPipe => 1,
                _ => complain(err, &format!("stdout: {error}")),
            };
        }
        if !wanted.follow {
            return 0;
        }
        (after, wait) = (answer.last, true);
    }
}

fn complain(err: &mut dyn Write, error: &str) -> i32 {
    // A closed stderr leaves the exit code.
    let _ = writeln!(err, "agent: {}", show::clean(error));
    1
}

/// What was shown so far, as far as the next line depends on it.
struct Page {
    look: Look,
    /// The longest name, for the columns after it.
    width: usize,
    /// Service → the state in its last line.
    shown: HashMap<String, String>,
}

impl Page {
    fn new(look: Look) -> Page {
        Page {
            look,
            width: 8,
            shown: HashMap::new(),
        }
    }

    /// `2026-11-22 10:30:00.123  lidar     ready     Ready.`; nothing where the last line of the service has said
    /// that state already.
    fn line(&mut self, event: &Value) -> String {
        let word = |name: &str| show::word(&event[name]);
        let (service, state) = match event["service"].is_string() {
            true => (word("service"), word("state")),
            false => ("agent".to_owned(), String::new()),
        };
        let before = self.shown.insert(service.clone(), state.clone());
        if word("event") == "state" && before.as_ref() == Some(&state) {
            return String::new();
        }
        let name = show::cut(&service, show::LONGEST_NAME);
        self.width = self.width.max(name.chars().count());
        let message = match word("event").as_str() {
            "state" => String::new(),
            _ => word("message"),
        };
        let time = event["time_ms"].as_u64().map_or_else(String::new, stamp);
        let tone = match word("event").as_str() {
            "crash" | "failed" | "error" | "dropped" => Tone::Bad,
            _ => Tone::Plain,
        };
        let padded = format!("{state:9}");
        let line = format!(
            "{}  {name:width$}  {}  {}",
            show::paint(&format!("{time:23}"), Tone::Dim, self.look),
            show::paint(&padded, show::state_tone(&state), self.look),
            show::paint(&message, tone, self.look),
            width = self.width,
        );
        line.trim_end().to_owned() + "\n"
    }
}

/// Local time: `2026-11-22 10:30:00.123`.
fn stamp(unix_ms: u64) -> String {
    let stamp = clock::local_stamp(unix_ms);
    let (day, time) = stamp.split_once('_').unwrap_or((&stamp, ""));
    format!("{day} {}.{:03}", time.replace('-', ":"), unix_ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event: &str, state: &str, message: &str) -> Value {
        json!({"time_ms": 1, "service": "lidar", "event": event, "state": state, "message": message})
    }

    fn answer(events: &[Value], last: u64, missed: u64) -> Reply {
        let answer = EventsAnswer {
            events: events.to_vec(),
            last,
            missed,
        };
        Reply::done(serde_json::to_value(answer).expect("plain data"))
    }

    fn told(wanted: Wanted, answers: Vec<Result<Reply, Trouble>>) -> (i32, String, Vec<u64>) {
        let (mut answers, mut asked) = (answers.into_iter(), Vec::new());
        let ask = |request: &Request| {
            if let Request::Events { after, .. } = request {
                asked.push(*after);
            }
            answers.next().expect("not asked again")
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = tell(wanted, ask, &mut out, &mut err, Look::default());
        out.extend(err);
        (code, String::from_utf8(out).expect("UTF-8"), asked)
    }

    #[test]
    fn following_goes_on_where_it_was_until_the_end() {
        let wanted = Wanted {
            follow: true,
            json: true,
        };
        let (first, second) = (
            event("start", "starting", "a"),
            event("ready", "ready", "b"),
        );
        let answers = vec![
            Ok(answer(std::slice::from_ref(&first), 1, 0)),
            Ok(answer(&[], 1, 0)),
            Ok(answer(std::slice::from_ref(&second), 9, 7)),
            Ok(Reply::refused("the agent is ending")),
        ];
        let (code, text, asked) = told(wanted, answers);
        let missed = r#"{"event":"dropped","message":"7 events were missed","count":7}"#;
        assert_eq!(text, format!("{first}\n{missed}\n{second}\n"));
        assert_eq!((code, asked), (0, vec![0, 1, 1, 9]));
        let refused = vec![Ok(Reply::refused("you may not"))];
        assert_eq!(told(wanted, refused).1, "agent: you may not\n");
    }

    #[test]
    fn a_state_that_was_shown_is_not_shown_again() {
        let wanted = Wanted {
            follow: false,
            json: false,
        };
        let events = [
            event("state", "waiting", "x"),
            event("start", "starting", "Started with\npid 7."),
            event("state", "starting", "x"),
            json!({"time_ms": 1, "event": "redis", "message": "Redis is connected"}),
        ];
        let (code, text, _) = told(wanted, vec![Ok(answer(&events, 4, 0))]);
        let rows: Vec<&str> = text.lines().map(|line| line[23..].trim()).collect();
        let started = "lidar     starting   Started with pid 7.";
        let redis = "agent                Redis is connected";
        assert_eq!(rows, ["lidar     waiting", started, redis]);
        assert_eq!(code, 0);
    }
}
