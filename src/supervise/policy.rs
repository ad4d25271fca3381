//! exits and their times → whether and when there is another start.
//!
//! Failures in a row make the delay grow; a run that was up for `reset_after` begins the
//! count anew. Starts within `start_limit.interval` are counted whatever ended the runs.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::{Kind, Restart, Service};

/// A run that has lasted so long is no failed start any more, where earlier ones failed at once.
const SETTLED: Duration = Duration::from_secs(1);

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
        // Of runs of a millisecond one that takes three is no better: nobody has noticed its end yet.
        let better = (self.lasted * 2).max(SETTLED).min(service.reset_after);
        self.failures >= 2 && up.is_none_or(|up| up < better)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::samples_for_tests::service;

    const SECOND: Duration = Duration::from_secs(1);

    fn end(good: bool, up: Duration) -> End {
        End {
            good,
            up,
            words: "exited".to_owned(),
        }
    }

    fn delay(verdict: Verdict, now: Instant) -> Duration {
        match verdict {
            Verdict::Again { until } => until - now,
            Verdict::Done | Verdict::Failed { .. } => panic!("no other start: {verdict:?}"),
        }
    }

    #[test]
    fn what_follows_an_end() {
        let now = Instant::now();
        // Kind, policy, good → does it start again, is it done, or has it failed?
        for (kind, restart, good, expected) in [
            (Kind::Simple, Restart::Always, true, "again"),
            (Kind::Simple, Restart::Always, false, "again"),
            (Kind::Simple, Restart::OnFailure, true, "done"),
            (Kind::Simple, Restart::OnFailure, false, "again"),
            (Kind::Simple, Restart::Never, true, "done"),
            (Kind::Simple, Restart::Never, false, "failed"),
            (Kind::Oneshot, Restart::Always, true, "done"),
            (Kind::Oneshot, Restart::Always, false, "again"),
            (Kind::Oneshot, Restart::Never, false, "failed"),
        ] {
            let mut service = service("x");
            (service.kind, service.restart) = (kind, restart);
            let verdict = History::default().ended(&service, &end(good, SECOND), now);
            let verdict = match verdict {
                Verdict::Again { .. } => "again",
                Verdict::Done => "done",
                Verdict::Failed { .. } => "failed",
            };
            assert_eq!(verdict, expected, "{kind:?} {restart:?} {good}");
        }
    }

    #[test]
    fn delays_grow_until_a_run_is_long_enough() {
        let (service, now) = (service("x"), Instant::now());
        let mut history = History::default();
        let mut next = |up| delay(history.ended(&service, &end(false, up), now), now).as_millis();
        assert_eq!(next(SECOND), 100);
        assert!((180..=200).contains(&next(SECOND)));
        assert!((360..=400).contains(&next(SECOND)));
        assert_eq!(next(10 * SECOND), 100);
    }

    #[test]
    fn a_loop_is_told_from_a_recovery() {
        let (service, now) = (service("x"), Instant::now());
        let mut history = History::default();
        history.ended(&service, &end(false, SECOND), now);
        assert!(
            !history.is_looping(&service, None),
            "one failure is no loop"
        );
        history.ended(&service, &end(false, SECOND), now);
        assert!(history.is_looping(&service, None));
        assert!(
            history.is_looping(&service, Some(SECOND)),
            "as long as before"
        );
        assert!(
            !history.is_looping(&service, Some(3 * SECOND)),
            "clearly longer"
        );
        history.ended(&service, &end(false, SECOND / 1000), now);
        assert!(
            history.is_looping(&service, Some(SECOND / 100)),
            "a slow end"
        );
        assert!(!history.is_looping(&service, Some(SECOND)));
    }

    #[test]
    fn the_limit_counts_starts_within_the_interval() {
        let (mut service, start) = (service("x"), Instant::now());
        service.start_limit.burst = 3;
        let mut history = History::default();
        for second in [0, 10, 20] {
            history.started(&service, start + second * SECOND);
        }
        let soon = history
            .clone()
            .ended(&service, &end(false, SECOND), start + 30 * SECOND);
        assert_eq!(
            soon,
            Verdict::Failed {
                reason: "started 3 times within 60s; last: exited".to_owned()
            }
        );
        let late = history.ended(&service, &end(false, SECOND), start + 61 * SECOND);
        assert!(matches!(late, Verdict::Again { .. }));
    }
}
