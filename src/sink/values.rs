//! counters and latest values → commands for `value_db`.
//!
//! Two kinds of values meet here. *Gauges* are a table of latest values: a new one replaces
//! an unsent old one, each is sent when it changed, renewed before it expires, and sent
//! again after a reconnect. *Counts* come from markers and are a queue: every increment
//! matters, and `SET` and `INCR` of one key keep their order; while they wait, increments
//! of one key are summed, so that an outage of days costs memory per key, not per marker.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::refusal::{Refusal, classify};
use super::resp::{Reply, array_header, bulk_string, command};
use crate::record::{Count, CountKind, EXPIRY_SECONDS, Gauge, RENEWAL_SECONDS};

/// Commands in one round trip.
const BATCH: usize = 4096;
/// Distinct counts that may wait; beyond it the oldest is dropped, and counted.
const COUNTS: usize = 16_384;

#[derive(Debug)]
pub struct Values {
    key_prefix: String,
    gauges: HashMap<String, Slot>,
    counts: VecDeque<Count>,
    in_flight: VecDeque<Sent>,
    forbidden: Forbidden,
    dropped: u64,
    /// Integers are written without expiry from now on.
    staying: bool,
}

#[derive(Debug)]
struct Slot {
    gauge: Gauge,
    /// When it was last sent on this connection.
    sent_at: Option<Instant>,
    dirty: bool,
}

#[derive(Debug)]
enum Sent {
    Gauge,
    /// `remaining` single increments of the same count follow in the same batch.
    Count {
        count: Count,
        times: u64,
    },
}

/// What this user may not do, found out by trying; each is said once a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Forbidden {
    gauges: bool,
    increment_by: bool,
}

/// What came of a reply that the operator or the service should hear.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// We may not publish health and state.
    GaugesForbidden { error: String },
    /// A counter was refused; the text Redis gave.
    Count { count: Count, error: String },
    /// The connection is of no more use.
    Hangup { error: String },
}

impl Values {
    pub fn new(key_prefix: &str) -> Values {
        Values {
            key_prefix: key_prefix.to_owned(),
            gauges: HashMap::new(),
            counts: VecDeque::new(),
            in_flight: VecDeque::new(),
            forbidden: Forbidden::default(),
            dropped: 0,
            staying: false,
        }
    }

    /// What the pools hold now is to stand after we are gone: written once more, to stay.
    pub fn stay(&mut self) {
        self.staying = true;
        for slot in self.gauges.values_mut() {
            match slot.gauge {
                Gauge::Integer { .. } => slot.dirty = true,
                Gauge::Hash { .. } | Gauge::Forget { .. } => {}
            }
        }
    }

    pub fn put(&mut self, gauge: Gauge) {
        if let Gauge::Forget { key } = &gauge {
            self.gauges.remove(key);
            return;
        }
        match self.gauges.get_mut(gauge.key()) {
            Some(slot) if slot.gauge == gauge => {}
            Some(slot) => {
                slot.gauge = gauge;
                slot.dirty = true;
            }
            None => {
                let slot = Slot {
                    sent_at: None,
                    dirty: true,
                    gauge,
                };
                self.gauges.insert(slot.gauge.key().to_owned(), slot);
            }
        }
    }

    pub fn count(&mut self, count: Count) {
        // Only the newest count of the same key may be summed into: order is kept.
        let newest = self.counts.iter_mut().rev().take(64).find(|waiting| {
            waiting.key == count.key && Arc::ptr_eq(&waiting.streams, &count.streams)
        });
        match (newest, &count.what) {
            (Some(waiting), CountKind::Set(_)) => *waiting = count,
            (
                Some(Count {
                    what: CountKind::Increment(sum),
                    ..
                }),
                CountKind::Increment(more),
            ) => *sum += more,
            _ => self.counts.push_back(count),
        }
        if self.counts.len() > COUNTS
            && let Some(oldest) = self.counts.pop_front()
        {
            self.dropped += 1;
            oldest.streams.tally.add_dropped(1);
        }
    }

    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Nothing waits for an answer.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Every count was answered and every gauge sent.
    pub fn is_settled(&self) -> bool {
        self.in_flight.is_empty()
            && self.counts.is_empty()
            && (self.forbidden.gauges || self.gauges.values().all(|slot| !slot.dirty))
    }

    pub fn connected(&mut self) {
        self.forbidden = Forbidden::default();
        for slot in self.gauges.values_mut() {
            slot.dirty = true;
        }
    }

    /// What was sent and not answered is sent again: a count may then count twice.
    pub fn disconnected(&mut self) {
        for sent in std::mem::take(&mut self.in_flight).into_iter().rev() {
            if let Sent::Count { count, times: _ } = sent {
                self.counts.push_front(count);
            }
        }
    }

    /// When the next renewal is due.
    pub fn deadline(&self) -> Option<Instant> {
        if self.forbidden.gauges {
            return None;
        }
        let renewal = Duration::from_secs(RENEWAL_SECONDS);
        self.gauges
            .values()
            .filter_map(|slot| slot.sent_at.map(|at| at + renewal))
            .min()
    }

    /// Appends what is due as one round trip; only when the last one is answered.
    pub fn fill(&mut self, now: Instant, out: &mut Vec<u8>) {
        if !self.in_flight.is_empty() {
            return;
        }
        while self.in_flight.len() < BATCH
            && let Some(count) = self.counts.pop_front()
        {
            self.send_count(count, out);
        }
        if self.forbidden.gauges {
            return;
        }
        // What is due within the next second goes along, so that renewals keep together.
        let renewal = Duration::from_secs(RENEWAL_SECONDS - 1);
        for slot in self.gauges.values_mut() {
            if self.in_flight.len() >= BATCH {
                break;
            }
            let due = slot
                .sent_at
                .is_none_or(|at| now.saturating_duration_since(at) >= renewal);
            if slot.dirty || due {
                slot.dirty = false;
                slot.sent_at = Some(now);
                let commands = encode_gauge(&self.key_prefix, &slot.gauge, self.staying, out);
                for _ in 0..commands {
                    self.in_flight.push_back(Sent::Gauge);
                }
            }
        }
    }

    fn send_count(&mut self, count: Count, out: &mut Vec<u8>) {
        let key = format!("{}{}", self.key_prefix, count.streams.value_key(&count.key));
        let key = key.as_bytes();
        match &count.what {
            CountKind::Set(digits) => command(out, &[b"SET", key, digits.as_bytes()]),
            CountKind::Increment(1) => command(out, &[b"INCR", key]),
            CountKind::Increment(by) if !self.forbidden.increment_by => {
                command(out, &[b"INCRBY", key, by.to_string().as_bytes()]);
            }
            CountKind::Increment(by) => {
                // The small ACL knows only INCR: one at a time, the rest waits its turn.
                command(out, &[b"INCR", key]);
                let mut rest = count.clone();
                rest.what = CountKind::Increment(by - 1);
                self.counts.push_front(rest);
                let mut one = count;
                one.what = CountKind::Increment(1);
                self.in_flight.push_back(Sent::Count {
                    count: one,
                    times: 1,
                });
                return;
            }
        }
        let times = match &count.what {
            CountKind::Increment(by) => *by,
            CountKind::Set(_) => 1,
        };
        self.in_flight.push_back(Sent::Count { count, times });
    }

    /// Takes the next reply of the connection.
    pub fn reply(&mut self, reply: &Reply<'_>) -> Option<Trouble> {
        let Some(sent) = self.in_flight.pop_front() else {
            return Some(Trouble::Hangup {
                error: format!("a reply to nothing: {reply:?}"),
            });
        };
        let Reply::Error(error) = reply else {
            return None;
        };
        let class = classify(error);
        let error = String::from_utf8_lossy(error).into_owned();
        match (sent, class) {
            (Sent::Count { count, .. }, Refusal::Connection | Refusal::Credentials) => {
                self.counts.push_front(count);
                Some(Trouble::Hangup { error })
            }
            (Sent::Count { count, .. }, Refusal::Later) => {
                self.counts.push_back(count);
                None
            }
            (Sent::Count { count, times }, Refusal::Forbidden)
                if times > 1 && !self.forbidden.increment_by =>
            {
                self.forbidden.increment_by = true;
                self.counts.push_front(count);
                None
            }
            (Sent::Count { count, times }, Refusal::Forbidden) if times > 1 => {
                self.counts.push_front(count);
                None
            }
            (Sent::Count { count, .. }, _) => Some(Trouble::Count { count, error }),
            (Sent::Gauge, Refusal::Connection | Refusal::Credentials) => {
                Some(Trouble::Hangup { error })
            }
            (Sent::Gauge, Refusal::Forbidden) => {
                let first = !std::mem::replace(&mut self.forbidden.gauges, true);
                first.then_some(Trouble::GaugesForbidden { error })
            }
            // Sent again at the next renewal at the latest.
            (Sent::Gauge, _) => None,
        }
    }
}

/// Appends the commands of one gauge; returns how many.
fn encode_gauge(prefix: &str, gauge: &Gauge, staying: bool, out: &mut Vec<u8>) -> usize {
    let key = format!("{prefix}{}", gauge.key());
    let key = key.as_bytes();
    let expiry = EXPIRY_SECONDS.to_string();
    match gauge {
        Gauge::Integer { value, .. } => {
            let value = value.to_string();
            let whole = [b"SET", key, value.as_bytes(), b"EX", expiry.as_bytes()];
            // Without EX a SET also takes away the expiry that was there (SET, Redis).
            let parts = if staying { &whole[..3] } else { &whole[..] };
            command(out, parts);
            1
        }
        Gauge::Hash { fields, .. } => {
            array_header(out, 2 + 2 * fields.len());
            bulk_string(out, b"HSET");
            bulk_string(out, key);
            for (name, value) in fields {
                bulk_string(out, name.as_bytes());
                bulk_string(out, value.as_bytes());
            }
            command(out, &[b"EXPIRE", key, expiry.as_bytes()]);
            2
        }
        Gauge::Forget { .. } => 0,
    }
}
