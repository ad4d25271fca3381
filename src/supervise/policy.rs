//! exits and their times → whether and when there is another start.
//!
//! Failures in a row make the delay grow; a run that was up for `reset_after` begins the
//! count anew. Starts within `start_limit.interval` are counted whatever ended the runs.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::{Kind, Restart, Service};

/// What follows an exit that nobody ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Another start, not before that moment.
    Again { until: Instant },
    /// It did what it was there for.
    Done,
    /// No more starts; the reason completes "failed: ".
    Failed { reason: String },
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct End {
    /// With code 0, and nobody had called it unhealthy.
    pub good: bool,
    /// How long its process had lived.
    pub up: Duration,
    /// The end in words.
    pub words: String,
}

/// What past starts and failures leave behind.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Within the last interval, at most `burst` of them.
    starts: VecDeque<Instant>,
    /// In a row.
    failures: u32,
    /// How long the last failed run lasted.
    lasted: Duration,
}

impl History {
    /// The operator begins anew.
    pub fn forget(&mut self) {
        *self = History::default();
    }

    pub fn started(&mut self, service: &Service, now: Instant) {
        self.starts.push_back(now);
        while self.starts.len() > service.start_limit.burst as usize {
            self.starts.pop_front();
        }
    }

    /// A run ended that nobody had ordered to end.
    pub fn ended(&mut self, service: &Service, end: &End, now: Instant) -> Verdict {
        if end.up >= service.reset_after {
            self.failures = 0;
        }
        match (service.kind, service.restart, end.good) {
            (Kind::Oneshot, _, true) | (_, Restart::Never | Restart::OnFailure, true) => {
                return Verdict::Done;
            }
            (_, Restart::Never, false) => {
                return Verdict::Failed {
                    reason: end.words.clone(),
                };
            }
            (_, Restart::Always, _) | (_, Restart::OnFailure, false) => {}
        }
        self.failures = self.failures.saturating_add(1);
        self.lasted = end.up;
        let seed = service
            .name
            .as_str()
            .bytes()
            .fold(0u64, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
        let until = now + service.backoff.delay(self.failures, seed);
        match self.over_limit(service, until) {
            Some(limit) => Verdict::Failed {
                reason: format!("{limit}; last: {}", end.words),
            },
            None => Verdict::Again { until },
        }
    }

    fn over_limit(&self, service: &Service, next: Instant) -> Option<String> {
        let limit = service.start_limit;
        if limit.burst == 0 {
            return None;
        }
        let recent = self
            .starts
            .iter()
            .filter(|start| next.saturating_duration_since(**start) < limit.interval)
            .count();
        (recent >= limit.burst as usize)
            .then(|| format!("started {recent} times within {:?}", limit.interval))
    }

    /// Whether it fails again and again: at least two failures in a row, and no run (`up`:
    /// how long the present one has lasted) that is clearly better than the last failed one.
    pub fn is_looping(&self, service: &Service, up: Option<Duration>) -> bool {
        let better = (self.lasted * 2).min(service.reset_after);
        self.failures >= 2 && up.is_none_or(|up| up < better)
    }
}
