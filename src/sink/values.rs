//! counters and latest values → commands for `value_db`.
//!
//! Two kinds of values share one connection. Counts (counts.rs) are a queue: each matters.
//! *Gauges* are a table of latest values: a new one replaces an unsent old one, each is sent
//! when it changed, renewed before it expires, and sent again after a reconnect.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::counts::{Counts, Trouble};
use super::refusal::{Refusal, classify};
use super::resp::{Reply, array_header, bulk_string, command};
use crate::record::Gauge;

/// Gauge commands in one round trip: both values that change each second of eight thousand pools.
const BATCH: usize = 16_384;

#[derive(Debug)]
pub struct Values {
    pub counts: Counts,
    key_prefix: String,
    /// Seconds after which values that are not renewed vanish.
    expiry: u64,
    gauges: HashMap<String, Slot>,
    /// Of them, those that wait to be sent. Thousands need not be looked through to find that there are none.
    dirty: usize,
    /// When the one was sent that was sent longest ago; as of the last look through them.
    oldest: Option<Instant>,
    /// Replies to gauges that are owed; they come after those that counts are owed.
    owed: usize,
    /// Found out by trying, said once a connection.
    forbidden: bool,
    /// The operator knows.
    told_forbidden: bool,
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

impl Slot {
    /// To be sent; `dirty` counts those.
    fn soil(&mut self, dirty: &mut usize) {
        if !std::mem::replace(&mut self.dirty, true) {
            *dirty += 1;
        }
    }
}

impl Values {
    /// Values are renewed three times within `expiry`.
    pub fn new(key_prefix: &str, id: &str, expiry: Duration) -> Values {
        Values {
            counts: Counts::new(key_prefix, id),
            key_prefix: key_prefix.to_owned(),
            expiry: expiry.as_secs().max(1),
            gauges: HashMap::new(),
            dirty: 0,
            oldest: None,
            owed: 0,
            forbidden: false,
            told_forbidden: false,
            staying: false,
        }
    }

    /// What the pools hold now is to stand after we are gone: written once more, to stay.
    pub fn stay(&mut self) {
        self.staying = true;
        for slot in self.gauges.values_mut() {
            match slot.gauge {
                Gauge::Integer { .. } => slot.soil(&mut self.dirty),
                Gauge::Hash { .. } | Gauge::Forget { .. } => {}
            }
        }
    }

    pub fn put(&mut self, gauge: Gauge) {
        if let Gauge::Forget { key } = &gauge {
            if self.gauges.remove(key).is_some_and(|slot| slot.dirty) {
                self.dirty -= 1;
            }
            return;
        }
        match self.gauges.get_mut(gauge.key()) {
            Some(slot) if slot.gauge == gauge => {}
            Some(slot) => {
                slot.gauge = gauge;
                slot.soil(&mut self.dirty);
            }
            None => {
                self.dirty += 1;
                let slot = Slot {
                    sent_at: None,
                    dirty: true,
                    gauge,
                };
                self.gauges.insert(slot.gauge.key().to_owned(), slot);
            }
        }
    }

    /// Nothing waits for an answer.
    pub fn is_idle(&self) -> bool {
        self.owed == 0 && !self.counts.is_waiting()
    }

    /// Every count was answered and every gauge sent.
    pub fn is_settled(&self) -> bool {
        self.is_idle() && self.counts.is_settled() && (self.forbidden || self.dirty == 0)
    }

    pub fn connected(&mut self) {
        self.counts.connected();
        self.forbidden = false;
        for slot in self.gauges.values_mut() {
            slot.soil(&mut self.dirty);
        }
    }

    pub fn disconnected(&mut self) {
        self.counts.disconnected();
        self.owed = 0;
    }

    fn renewal(&self) -> Duration {
        Duration::from_secs(self.expiry) / 3
    }

    /// When there is something to send although nothing happened.
    pub fn deadline(&self) -> Option<Instant> {
        let oldest = self.oldest.filter(|_| !self.forbidden);
        let renewals = oldest.map(|at| at + self.renewal());
        [renewals, self.counts.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Appends what is due as one round trip; only when the last one is answered.
    pub fn fill(&mut self, now: Instant, out: &mut Vec<u8>) {
        if !self.is_idle() {
            return;
        }
        self.counts.fill(now, out);
        if self.forbidden {
            return;
        }
        let passed = |at: Instant| now.saturating_duration_since(at);
        let due = |at: Instant| passed(at) >= self.renewal();
        if self.dirty == 0 && !self.oldest.is_some_and(due) {
            return;
        }
        // What is due within the next second goes along, so that renewals keep together.
        let renewal = self.renewal().mul_f64(0.8);
        self.oldest = None;
        for slot in self.gauges.values_mut() {
            let due = slot.sent_at.is_none_or(|at| passed(at) >= renewal);
            if (slot.dirty || due) && self.owed < BATCH {
                if std::mem::take(&mut slot.dirty) {
                    self.dirty -= 1;
                }
                slot.sent_at = Some(now);
                self.owed += encode_gauge(
                    &self.key_prefix,
                    &slot.gauge,
                    self.expiry,
                    self.staying,
                    out,
                );
            }
            self.oldest = [self.oldest, slot.sent_at].into_iter().flatten().min();
        }
    }

    /// Takes the next reply of the connection.
    pub fn reply(&mut self, reply: &Reply<'_>, now: Instant) -> Vec<Trouble> {
        if self.counts.is_waiting() {
            return self.counts.reply(reply, now);
        }
        if self.owed == 0 {
            return vec![Trouble::Hangup {
                error: format!("a reply to nothing: {reply:?}"),
            }];
        }
        self.owed -= 1;
        let Reply::Error(error) = reply else {
            return Vec::new();
        };
        let class = classify(error);
        let error = String::from_utf8_lossy(error).into_owned();
        match class {
            Refusal::Connection | Refusal::Credentials => vec![Trouble::Hangup { error }],
            Refusal::Forbidden if !self.forbidden => {
                self.forbidden = true;
                match std::mem::replace(&mut self.told_forbidden, true) {
                    true => Vec::new(),
                    false => vec![Trouble::GaugesForbidden { error }],
                }
            }
            // Sent again at the next renewal at the latest.
            Refusal::Forbidden
            | Refusal::Later
            | Refusal::WrongType
            | Refusal::IdTooSmall
            | Refusal::NoSuchKey
            | Refusal::NotAnInteger
            | Refusal::Never => Vec::new(),
        }
    }
}

/// Appends the commands of one gauge; returns how many.
fn encode_gauge(
    prefix: &str,
    gauge: &Gauge,
    expiry: u64,
    staying: bool,
    out: &mut Vec<u8>,
) -> usize {
    let key = format!("{prefix}{}", gauge.key());
    let key = key.as_bytes();
    let expiry = expiry.to_string();
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
