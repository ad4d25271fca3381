//! Outcomes of one check, now → when it runs, its beats, and its verdict.
//!
//! A check begins when its process is ready, and starts healthy. It runs every `interval`,
//! never twice at a time: one that takes longer delays the next. `failures` in a row make it
//! unhealthy, `successes` in a row healthy again. Until the first success, failures within
//! `start_period` do not count. What cannot be said (Redis is away) counts as neither.
//!
//! Every run has a number: the outcome of one that began before the last stop says nothing.

use std::time::Instant;

use crate::handoff::CheckSettings;

/// What came of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    /// And what was seen instead.
    Failed(String),
    /// It could not look.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A process is ready.
    Start,
    /// There is none any more.
    Stop,
    Outcome {
        number: u64,
        outcome: Outcome,
    },
    /// The deadline may have passed.
    Time,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    /// Look now; the answer carries the number.
    Run {
        number: u64,
    },
    /// It passed.
    Beat,
    /// The first failure of a streak: what was seen.
    Failing(String),
    Verdict {
        healthy: bool,
    },
}

#[derive(Clone, Debug)]
pub struct Probe {
    settings: CheckSettings,
    healthy: bool,
    /// Of runs, ever.
    number: u64,
    life: Life,
}

#[derive(Clone, Copy, Debug)]
enum Life {
    Off,
    On {
        since: Instant,
        ever_passed: bool,
        /// Passes in a row while unhealthy, failures in a row while healthy.
        streak: u32,
        work: Work,
    },
}

#[derive(Clone, Copy, Debug)]
enum Work {
    Waiting { until: Instant },
    Running { begun: Instant },
}

impl Probe {
    pub fn new(settings: CheckSettings) -> Probe {
        Probe {
            settings,
            healthy: true,
            number: 0,
            life: Life::Off,
        }
    }

    pub fn settings(&self) -> &CheckSettings {
        &self.settings
    }

    /// As of the last verdict.
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.life {
            Life::On {
                work: Work::Waiting { until },
                ..
            } => Some(until),
            Life::Off
            | Life::On {
                work: Work::Running { .. },
                ..
            } => None,
        }
    }

    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Out>) {
        match input {
            Input::Start => {
                self.healthy = true;
                self.life = Life::On {
                    since: now,
                    ever_passed: false,
                    streak: 0,
                    // A program that has just begun is given a moment.
                    work: Work::Waiting {
                        until: now + self.settings.interval,
                    },
                };
            }
            Input::Stop => {
                self.healthy = true;
                self.life = Life::Off;
            }
            Input::Outcome { number, outcome } if number == self.number => {
                self.judge(now, outcome, out);
            }
            Input::Outcome { .. } => {}
            Input::Time => self.time(now, out),
        }
    }

    fn time(&mut self, now: Instant, out: &mut Vec<Out>) {
        if let Life::On { work, .. } = &mut self.life
            && let Work::Waiting { until } = *work
            && until <= now
        {
            self.number += 1;
            // Counted from when it was due: an interval does not drift by a busy machine,
            // and what was missed is not made up for.
            let late = now.saturating_duration_since(until);
            let begun = if late < self.settings.interval {
                until
            } else {
                now
            };
            *work = Work::Running { begun };
            out.push(Out::Run {
                number: self.number,
            });
        }
    }

    fn judge(&mut self, now: Instant, outcome: Outcome, out: &mut Vec<Out>) {
        let settings = &self.settings;
        let Life::On {
            since,
            ever_passed,
            streak,
            work,
        } = &mut self.life
        else {
            return;
        };
        let Work::Running { begun } = *work else {
            return;
        };
        *work = Work::Waiting {
            until: now.max(begun + settings.interval),
        };
        let grace = !*ever_passed && now < *since + settings.start_period;
        match outcome {
            Outcome::Passed => {
                *ever_passed = true;
                out.push(Out::Beat);
                *streak = if self.healthy { 0 } else { *streak + 1 };
                if !self.healthy && *streak >= settings.successes {
                    (self.healthy, *streak) = (true, 0);
                    out.push(Out::Verdict { healthy: true });
                }
            }
            Outcome::Failed(_) if grace => {}
            Outcome::Failed(why) if self.healthy => {
                *streak += 1;
                if *streak == 1 {
                    out.push(Out::Failing(why));
                }
                if *streak >= settings.failures {
                    (self.healthy, *streak) = (false, 0);
                    out.push(Out::Verdict { healthy: false });
                }
            }
            Outcome::Failed(_) => *streak = 0,
            Outcome::Unknown => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::handoff::{CheckAction, CheckKind};

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn settings() -> CheckSettings {
        CheckSettings {
            name: "port".to_owned(),
            feeds: true,
            what: CheckKind::Redis("x".to_owned()),
            interval: ms(1000),
            timeout: ms(500),
            start_period: ms(0),
            failures: 3,
            successes: 2,
            action: CheckAction::Restart,
        }
    }

    /// Runs it at its deadline and lets it come out like this.
    fn turn(probe: &mut Probe, outcome: Outcome) -> Vec<Out> {
        let due = probe.deadline().expect("due");
        let mut out = Vec::new();
        probe.step(due, Input::Time, &mut out);
        let [Out::Run { number }] = out[..] else {
            panic!("{out:?}");
        };
        assert_eq!(probe.deadline(), None, "never twice at a time");
        out.clear();
        probe.step(due + ms(10), Input::Outcome { number, outcome }, &mut out);
        out
    }

    fn failed() -> Outcome {
        Outcome::Failed("refused".to_owned())
    }

    #[test]
    fn streaks_make_verdicts() {
        let start = Instant::now();
        let mut probe = Probe::new(settings());
        assert_eq!(probe.deadline(), None);
        probe.step(start, Input::Start, &mut Vec::new());
        assert_eq!(probe.deadline(), Some(start + ms(1000)));
        assert_eq!(turn(&mut probe, Outcome::Passed), [Out::Beat]);
        assert_eq!(probe.deadline(), Some(start + ms(2000)), "no drift");
        let failing = [Out::Failing("refused".to_owned())];
        assert_eq!(turn(&mut probe, failed()), failing);
        assert_eq!(turn(&mut probe, failed()), []);
        assert_eq!(turn(&mut probe, Outcome::Unknown), [], "neither");
        assert_eq!(turn(&mut probe, Outcome::Passed), [Out::Beat], "from anew");
        assert_eq!(turn(&mut probe, failed()), failing);
        assert_eq!(turn(&mut probe, failed()), []);
        assert_eq!(
            turn(&mut probe, failed()),
            [Out::Verdict { healthy: false }]
        );
        assert!(!probe.is_healthy());
        assert_eq!(turn(&mut probe, failed()), [], "told once");
        assert_eq!(turn(&mut probe, Outcome::Passed), [Out::Beat]);
        assert_eq!(turn(&mut probe, failed()), []);
        assert_eq!(turn(&mut probe, Outcome::Passed), [Out::Beat]);
        let well = [Out::Beat, Out::Verdict { healthy: true }];
        assert_eq!(turn(&mut probe, Outcome::Passed), well);
    }

    #[test]
    fn failures_of_the_start_do_not_count_until_the_first_success() {
        let settings = CheckSettings {
            start_period: ms(3500),
            failures: 1,
            ..settings()
        };
        let mut probe = Probe::new(settings);
        probe.step(Instant::now(), Input::Start, &mut Vec::new());
        for _ in 0..2 {
            assert_eq!(turn(&mut probe, failed()), []);
        }
        assert_eq!(turn(&mut probe, Outcome::Passed), [Out::Beat]);
        let out = turn(&mut probe, failed());
        assert_eq!(out.last(), Some(&Out::Verdict { healthy: false }));
    }

    #[test]
    fn what_began_before_a_restart_says_nothing() {
        let start = Instant::now();
        let settings = CheckSettings {
            failures: 1,
            ..settings()
        };
        let mut probe = Probe::new(settings);
        probe.step(start, Input::Start, &mut Vec::new());
        let mut out = Vec::new();
        probe.step(start + ms(1000), Input::Time, &mut out);
        assert_eq!(out, [Out::Run { number: 1 }]);
        probe.step(start + ms(1100), Input::Stop, &mut out);
        probe.step(start + ms(1200), Input::Start, &mut out);
        let outcome = failed();
        probe.step(
            start + ms(1300),
            Input::Outcome { number: 1, outcome },
            &mut out,
        );
        assert_eq!(out.len(), 1, "{out:?}");
        probe.step(start + ms(2200), Input::Time, &mut out);
        assert_eq!(out[1..], [Out::Run { number: 2 }]);
    }

    #[test]
    fn one_that_takes_longer_than_its_interval_delays_the_next() {
        let start = Instant::now();
        let mut probe = Probe::new(settings());
        let mut out = Vec::new();
        probe.step(start, Input::Start, &mut out);
        probe.step(start + ms(1000), Input::Time, &mut out);
        probe.step(start + ms(5000), Input::Time, &mut out);
        assert_eq!(out.len(), 1);
        let outcome = Outcome::Passed;
        probe.step(
            start + ms(5000),
            Input::Outcome { number: 1, outcome },
            &mut out,
        );
        assert_eq!(probe.deadline(), Some(start + ms(5000)));
    }
}
