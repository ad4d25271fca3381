//! states as they are told → answers to those who wait for one.
//!
//! Each service of a request has to be in the state once, not all at the same moment. A service that is there
//! already counts, so there is no moment between a look and the wait in which it could slip through.

use std::time::{Duration, Instant};

use crate::handoff::State;
use crate::request::{Reply, RequestId};
use crate::service::ServiceId;

/// Requests that may wait; beyond it the oldest is refused.
const MOST: usize = 256;

#[derive(Debug, Default)]
pub struct Awaited {
    asked: Vec<Asked>,
    refused: Vec<(RequestId, Reply)>,
}

#[derive(Debug)]
struct Asked {
    id: RequestId,
    state: State,
    /// Those that were not there yet, with where they stand now.
    open: Vec<Open>,
    until: Option<Instant>,
}

/// A service that is waited for.
#[derive(Clone, Debug)]
pub struct Open {
    pub service: ServiceId,
    pub name: String,
    pub stands: State,
}

impl Awaited {
    /// The answer comes from [`Awaited::answers`].
    pub fn ask(
        &mut self,
        id: RequestId,
        state: State,
        services: Vec<Open>,
        limit: Option<Duration>,
        now: Instant,
    ) {
        if self.asked.len() >= MOST {
            let oldest = self.asked.remove(0);
            let reply = Reply::refused("too many wait already");
            self.refused.push((oldest.id, reply));
        }
        let mut asked = Asked {
            id,
            state,
            open: services,
            // What is beyond the clock is never.
            until: limit.and_then(|limit| now.checked_add(limit)),
        };
        asked.open.retain(|open| open.stands != state);
        self.asked.push(asked);
    }

    pub fn stands(&mut self, service: ServiceId, state: State) {
        for asked in &mut self.asked {
            let wanted = asked.state;
            asked.open.retain_mut(|open| {
                if open.service == service {
                    open.stands = state;
                }
                open.service != service || state != wanted
            });
        }
    }

    /// A reload took it away.
    pub fn gone(&mut self, service: ServiceId) {
        let refused = &mut self.refused;
        self.asked.retain(|asked| {
            let gone = asked.open.iter().find(|open| open.service == service);
            if let Some(open) = gone {
                let why = format!("{} was removed", open.name);
                refused.push((asked.id, Reply::refused(why)));
            }
            gone.is_none()
        });
    }

    pub fn answers(&mut self, now: Instant) -> Vec<(RequestId, Reply)> {
        let mut answers = std::mem::take(&mut self.refused);
        self.asked.retain(|asked| {
            let over = asked.until.is_some_and(|until| until <= now);
            let reply = match (asked.open.is_empty(), over) {
                (true, _) => Reply::done(serde_json::Value::Null),
                (false, true) => Reply::refused(asked.missing()),
                (false, false) => return true,
            };
            answers.push((asked.id, reply));
            false
        });
        answers
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.asked.iter().filter_map(|asked| asked.until).min()
    }
}

impl Asked {
    /// `not ready in time: camera is backoff, lidar is failed`.
    fn missing(&self) -> String {
        let open = |open: &Open| format!("{} is {}", open.name, open.stands.in_words());
        let open: Vec<String> = self.open.iter().map(open).collect();
        format!("not {} in time: {}", self.state.as_str(), open.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(number: u32, stands: State) -> Open {
        Open {
            service: ServiceId(number),
            name: format!("s{number}"),
            stands,
        }
    }

    #[test]
    fn each_has_to_be_there_once() {
        let (mut awaited, now) = (Awaited::default(), Instant::now());
        let limit = Duration::from_secs(3);
        let both = || vec![open(1, State::Ready), open(2, State::Starting)];
        awaited.ask(RequestId(1), State::Ready, both(), Some(limit), now);
        awaited.ask(RequestId(2), State::Failed, both(), Some(limit), now);
        awaited.ask(
            RequestId(3),
            State::Ready,
            vec![open(1, State::Ready)],
            None,
            now,
        );
        let done = Reply::done(serde_json::Value::Null);
        assert_eq!(awaited.answers(now), [(RequestId(3), done.clone())]);
        awaited.stands(ServiceId(1), State::Stopping);
        awaited.stands(ServiceId(2), State::Ready);
        assert_eq!(awaited.answers(now), [(RequestId(1), done)]);
        assert_eq!(awaited.deadline(), Some(now + limit));
        let why = "not failed in time: s1 is stopping, s2 is ready";
        let missed = (RequestId(2), Reply::refused(why));
        assert_eq!(awaited.answers(now + limit), [missed]);
        assert_eq!(awaited.deadline(), None);
    }

    #[test]
    fn what_is_removed_never_gets_there() {
        let (mut awaited, now) = (Awaited::default(), Instant::now());
        let failed = |number| vec![open(number, State::Stopped)];
        awaited.ask(
            RequestId(1),
            State::Ready,
            failed(1),
            Some(Duration::MAX),
            now,
        );
        assert_eq!(awaited.deadline(), None);
        awaited.gone(ServiceId(1));
        let removed = (RequestId(1), Reply::refused("s1 was removed"));
        assert_eq!(awaited.answers(now), [removed]);
        for id in 0..=MOST as u64 {
            awaited.ask(RequestId(id), State::Ready, failed(2), None, now);
        }
        assert_eq!(awaited.answers(now).len(), 1);
    }
}
