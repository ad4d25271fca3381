//! a process that ended, the rest of its run → what comes next.
//!
//! What follows is decided at the exit; it begins when nothing of the run is left, or its time is up.

use std::time::Instant;

use super::{Left, Machine, Next, Out, RELEASE, State, Why};
use crate::record::StatusEvent;
use crate::service::Exit;
use crate::supervise::policy::{End, Verdict};

impl Machine {
    pub(super) fn exited(&mut self, now: Instant, exit: Exit, out: &mut Vec<Out>) {
        let Some(life) = self.life() else {
            return;
        };
        let up = self.lasted(life, now).unwrap_or_default();
        let out_of_memory = self.out_of_memory;
        if out_of_memory {
            let what = "The kernel ended the process with SIGKILL: it was out of memory.";
            out.push(Out::Trouble(what.to_owned()));
        }
        let end = match &self.state {
            State::Stopping { why, .. } | State::Killing { why, .. } => match why {
                Why::Asked => None,
                Why::Sick(what) => Some(End {
                    good: false,
                    up,
                    words: what.clone(),
                }),
            },
            State::Starting { .. } | State::Up { .. } => Some(End {
                good: exit.is_success(),
                up,
                words: match exit.signal() {
                    Some(signal) if out_of_memory => {
                        format!("ended by {signal}: the kernel was out of memory")
                    }
                    Some(signal) => format!("ended by {signal}"),
                    None => format!("exited with code {}", exit.code()),
                },
            }),
            State::Down
            | State::Waiting
            | State::Spawning
            | State::Dying { .. }
            | State::BackingOff { .. }
            | State::Failed { .. }
            | State::Blocked { .. }
            | State::Done => return,
        };
        let run = self.run();
        // What is to be run after it still speaks.
        let after = self.service.lifecycle.post_stop.len() as u32;
        let by_itself = matches!(self.state, State::Starting { .. } | State::Up { .. });
        let lingers = by_itself && after == 0;
        if !lingers {
            out.push(Out::KillTree(run));
        }
        if after == 0 {
            out.push(Out::Ended(run, exit));
        }
        let left = Left {
            tree: true,
            output: true,
        };
        self.ended(now, exit, end.filter(|_| self.want), left, out);
        if let State::Dying {
            release_by,
            cleaning,
            lingering,
            ..
        } = &mut self.state
        {
            *cleaning = after > 0;
            *lingering = lingers;
            *release_by += self.service.stop.timeout * after;
        }
    }

    /// Decides what follows, and waits for the rest of the run. `end` is `None`
    /// where the end was ordered: then nothing is held against the service.
    pub(super) fn ended(
        &mut self,
        now: Instant,
        exit: Exit,
        end: Option<End>,
        left: Left,
        out: &mut Vec<Out>,
    ) {
        self.exit = Some(exit);
        let out_of_memory = std::mem::take(&mut self.out_of_memory);
        out.push(Out::Say(StatusEvent::Exit {
            exit,
            out_of_memory,
        }));
        let verdict = end.map(|end| {
            let verdict = self.history.ended(&self.service, &end, now);
            self.last_end = end.words;
            verdict
        });
        let next = match verdict {
            None => Next::AsWanted,
            Some(Verdict::Done) => Next::Done,
            Some(Verdict::Again { until }) => {
                let delay_ms = until.saturating_duration_since(now).as_millis() as u64;
                Next::Restart { until, delay_ms }
            }
            Some(Verdict::Failed { reason }) => Next::Fail { reason },
        };
        self.state = State::Dying {
            exit,
            release_by: now + RELEASE,
            left,
            next,
            cleaning: false,
            lingering: false,
        };
    }

    pub(super) fn end_lingering(&mut self, out: &mut Vec<Out>) {
        let run = self.run();
        if let State::Dying { lingering, .. } = &mut self.state
            && std::mem::take(lingering)
        {
            out.push(Out::KillTree(run));
        }
    }

    pub(super) fn tree_gone(&mut self, now: Instant, out: &mut Vec<Out>) {
        let run = self.run();
        let State::Dying {
            left,
            cleaning,
            exit,
            release_by,
            ..
        } = &mut self.state
        else {
            return;
        };
        left.tree = false;
        if std::mem::take(cleaning) {
            out.push(Out::Ended(run, *exit));
            *release_by = now + RELEASE;
        }
        self.release(now, out);
    }

    /// The run is over when nothing of it is left, or its time is up.
    pub(super) fn release(&mut self, now: Instant, out: &mut Vec<Out>) {
        let run = self.run();
        let State::Dying {
            exit,
            release_by,
            left,
            next,
            cleaning,
            lingering,
        } = &mut self.state
        else {
            return;
        };
        if left.tree || left.output {
            if now < *release_by {
                return;
            }
            if std::mem::take(lingering) {
                // The output could not come to its end; what holds it goes first.
                *release_by = now + RELEASE;
                out.push(Out::KillTree(run));
                return;
            }
            if *cleaning {
                out.push(Out::Ended(run, *exit));
            }
            out.push(Out::Overdue(*left));
        }
        // The run's last word; what follows is no part of it.
        out.push(Out::Closed(*exit));
        self.state = match (next, self.want) {
            (_, false) => State::Down,
            (Next::AsWanted, true) => State::Waiting,
            (Next::Restart { until, delay_ms }, true) => {
                let delay_ms = *delay_ms;
                out.push(Out::Say(StatusEvent::Restart { delay_ms }));
                if *until <= now {
                    State::Waiting
                } else {
                    State::BackingOff { until: *until }
                }
            }
            (Next::Fail { reason }, true) => {
                let reason = reason.clone();
                out.push(Out::Say(StatusEvent::Failed {
                    reason: reason.clone(),
                }));
                State::Failed { reason }
            }
            (Next::Done, true) => State::Done,
        };
    }
}
