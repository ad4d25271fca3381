//! what the supervisor does and says → events for those who follow, and answers to those who wait for a state.
//!
//! One event is one JSON object: `time_ms` (Unix milliseconds), `service` (none where it is the agent's own),
//! `event`, `state` (of the service, after it), `message`, and what belongs to the event. Its names are those of
//! the `status` stream; beside them `state` (every change, `was` before it), `error`, `pool`, `removed`, and the
//! agent's own `redis` and `shutdown`, and the board's edge events under the names of their stream.

use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::awaited::Open;
use super::run::Shell;
use crate::clock;
use crate::event::Event;
use crate::handoff::{PoolEdge, State};
use crate::record::Entry;
use crate::request::{Reply, Request, RequestId};
use crate::service::ServiceId;

/// Characters of a message that are kept: a reason may hold what a stranger's program said.
const MESSAGE: usize = 500;
/// Pools that are told by name in one second, of one service.
const POOLS: usize = 16;
/// The end waits so long for those who follow.
const LAST: Duration = Duration::from_millis(300);

impl Shell {
    /// A word of the `status` or `error` stream.
    pub(super) fn happened(&mut self, id: ServiceId, event: &str, entry: &Entry) {
        self.heard(Some(id), event, entry);
    }

    /// An edge event of the board.
    pub(super) fn of_board(&mut self, entry: &Entry) {
        self.heard(None, "board", entry);
    }

    fn heard(&mut self, id: Option<ServiceId>, event: &str, entry: &Entry) {
        let mut fields = Map::new();
        for (name, value) in &entry.fields {
            let text = String::from_utf8_lossy(value).into_owned();
            if *name != "event" {
                fields.insert((*name).to_owned(), number_or_text(name, text));
            }
        }
        let named = entry.fields.iter().find(|(name, _)| *name == "event");
        let event = match named {
            Some((_, name)) => String::from_utf8_lossy(name).into_owned(),
            None => event.to_owned(),
        };
        let message = String::from_utf8_lossy(&entry.message).into_owned();
        self.note(id, entry.at_ms, &event, &message, fields);
    }

    /// It stands somewhere else now.
    pub(super) fn changed(&mut self, id: ServiceId, was: Option<State>, state: State) {
        let mut fields = Map::new();
        if let Some(was) = was {
            fields.insert("was".to_owned(), was.as_str().into());
        }
        let message = match was {
            Some(was) => format!("Now {}, after {}.", state.as_str(), was.as_str()),
            None => format!("Now {}.", state.as_str()),
        };
        self.note(Some(id), clock::now_ms(), "state", &message, fields);
        self.awaited.stands(id, state);
    }

    pub(super) fn removed(&mut self, id: ServiceId) {
        let message = "Removed by a reload.";
        self.note(Some(id), clock::now_ms(), "removed", message, Map::new());
        self.awaited.gone(id);
    }

    pub(super) fn pools(&mut self, id: ServiceId, edges: &[PoolEdge]) {
        for edge in edges.iter().take(POOLS) {
            let PoolEdge { category, health } = edge;
            let message = match health {
                0 => format!("Pool {category} ran empty."),
                health => format!("Pool {category} rose to {health}."),
            };
            let mut fields = Map::new();
            fields.insert("pool".to_owned(), category.as_str().into());
            fields.insert("health".to_owned(), (*health).into());
            self.note(Some(id), clock::now_ms(), "pool", &message, fields);
        }
        let rest = edges.len().saturating_sub(POOLS);
        if rest > 0 {
            let message = format!("Another {rest} pools ran empty or rose.");
            let fields = Map::from_iter([("count".to_owned(), Value::from(rest))]);
            self.note(Some(id), clock::now_ms(), "pool", &message, fields);
        }
    }

    pub(super) fn redis(&mut self, connected: bool) {
        let word = match connected {
            true => "connected",
            false => "away",
        };
        let fields = Map::from_iter([("connected".to_owned(), connected.into())]);
        let message = format!("Redis is {word}.");
        self.note(None, clock::now_ms(), "redis", &message, fields);
    }

    pub(super) fn leaving(&mut self) {
        let message = "The agent shuts down.";
        self.note(None, clock::now_ms(), "shutdown", message, Map::new());
    }

    pub(super) fn wait(
        &mut self,
        id: RequestId,
        services: &[String],
        state: State,
        timeout_ms: Option<u64>,
    ) {
        if services.is_empty() {
            let reply = Reply::refused("which service?");
            return self.replies.send((id, reply));
        }
        let mut open = Vec::new();
        for name in services {
            match self.fleet.named(name) {
                Some(unit) => open.push(Open {
                    service: unit.machine.run().service,
                    name: name.clone(),
                    stands: unit.machine.shown(),
                }),
                None => {
                    let reply = Reply::refused(format!("no service {name:?}"));
                    return self.replies.send((id, reply));
                }
            }
        }
        let limit = timeout_ms.map(Duration::from_millis);
        self.awaited.ask(id, state, open, limit, Instant::now());
    }

    /// Whoever waits for what is there now.
    pub(super) fn tell_waiting(&mut self) {
        let now = Instant::now();
        let answers = self.chronicle.answers(now);
        for answer in answers.into_iter().chain(self.awaited.answers(now)) {
            self.replies.send(answer);
        }
    }

    /// A follower that was answered a moment ago asks once more, and hears of the end too.
    pub(super) async fn tell_the_end(&mut self, inbox: &mut mpsc::Receiver<Event>) {
        let until = tokio::time::Instant::now() + LAST;
        while self.chronicle.is_followed(Instant::now()) {
            match tokio::time::timeout_at(until, inbox.recv()).await {
                Ok(Some(Event::Request {
                    id,
                    request: Request::Events { after, .. },
                })) => {
                    let reply = self.chronicle.after(after);
                    self.replies.send((id, reply));
                    self.chronicle.followed();
                    self.replies.finish().await;
                }
                // All services are down: what comes now changes nothing.
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn note(
        &mut self,
        id: Option<ServiceId>,
        at_ms: u64,
        event: &str,
        message: &str,
        fields: Map<String, Value>,
    ) {
        let mut object = Map::new();
        object.insert("time_ms".to_owned(), at_ms.into());
        let unit = id.and_then(|id| self.fleet.unit(id));
        if let Some(unit) = unit {
            let name = unit.machine.service().name.as_str();
            object.insert("service".to_owned(), name.into());
        }
        object.insert("event".to_owned(), event.into());
        if let Some(unit) = unit {
            let state = unit.machine.shown().as_str();
            object.insert("state".to_owned(), state.into());
        }
        let message: String = message.chars().take(MESSAGE).collect();
        object.insert("message".to_owned(), message.into());
        object.extend(fields);
        self.chronicle.note(Value::Object(object));
    }
}

/// The stream's fields are text; those that count are numbers here.
fn number_or_text(name: &str, text: String) -> Value {
    let counts = ["pid", "code", "delay_ms", "count", "from_ms", "to_ms"];
    match text.parse::<i64>() {
        Ok(number) if counts.contains(&name) => number.into(),
        Ok(_) | Err(_) => text.chars().take(MESSAGE).collect::<String>().into(),
    }
}
