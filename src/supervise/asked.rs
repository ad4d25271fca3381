//! requests that wait until it has happened → answers.
//!
//! `start`, `stop` and `restart` return when it has happened, or when it is clear that it
//! will not: the first failed start, a contrary request, the end of the agent.

use std::collections::BTreeSet;
use std::time::Instant;

use super::fleet::{Ask, Fleet, Out};
use super::machine::{self, Machine, Next, State};
use crate::request::{Reply, RequestId};
use crate::service::{RunId, ServiceId, ServiceName, Signal};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Ready or done, in a run after `past`.
    Up {
        past: u32,
    },
    Down,
}

#[derive(Clone, Debug)]
pub struct Asked {
    pub id: RequestId,
    pub goals: Vec<(ServiceId, Goal)>,
    /// What the answer carries when all went well.
    pub data: serde_json::Value,
}

/// How far one goal is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Reached,
    UnderWay,
    /// And why not.
    Missed(String),
}

impl Asked {
    /// The answer, once there is one. `progress` looks at one goal.
    pub fn answer(&self, progress: impl Fn(ServiceId, Goal) -> Progress) -> Option<Reply> {
        let mut open = false;
        for (service, goal) in &self.goals {
            match progress(*service, *goal) {
                Progress::Reached => {}
                Progress::UnderWay => open = true,
                Progress::Missed(why) => return Some(Reply::refused(why)),
            }
        }
        (!open).then(|| Reply::done(self.data.clone()))
    }
}

impl Fleet {
    pub(super) fn ask(
        &mut self,
        id: RequestId,
        what: Ask,
        services: &[String],
        wait: bool,
        now: Instant,
        out: &mut Vec<Out>,
    ) {
        let targets = match self.targets(services) {
            Ok(targets) => targets,
            Err(why) => return out.push(Out::Reply(id, Reply::refused(why))),
        };
        if self.is_leaving() && matches!(what, Ask::Start | Ask::Restart) {
            let reply = Reply::refused("the agent is shutting down");
            return out.push(Out::Reply(id, reply));
        }
        let goals = match what {
            Ask::Start => self.start(&targets, now, out),
            Ask::Restart => self.restart(&targets, now, out),
            Ask::Stop => self.stop(&targets, now, out),
            Ask::Signal(signal) => {
                let reply = self.signal(&targets, signal, out);
                return out.push(Out::Reply(id, reply));
            }
        };
        if wait {
            let data = serde_json::Value::Null;
            self.asked.push(Asked { id, goals, data });
        } else {
            out.push(Out::Reply(id, Reply::done(serde_json::Value::Null)));
        }
    }

    fn targets(&self, services: &[String]) -> Result<Vec<ServiceId>, String> {
        if services.is_empty() {
            return Err("which service?".to_owned());
        }
        services
            .iter()
            .map(|name| match self.named(name) {
                Some(unit) => Ok(unit.machine.run().service),
                None => Err(format!("no service {name:?}")),
            })
            .collect()
    }

    /// With everything they require, as far as that is not wanted or has failed.
    fn start(
        &mut self,
        targets: &[ServiceId],
        now: Instant,
        out: &mut Vec<Out>,
    ) -> Vec<(ServiceId, Goal)> {
        let all = self.with_required(targets);
        for &id in &all {
            let Some(unit) = self.units.get(&id) else {
                continue;
            };
            let machine = &unit.machine;
            if targets.contains(&id) || !machine.wanted() || machine.has_failed() {
                self.drive(id, now, machine::Input::Start, out);
            }
        }
        self.goals(&all, |machine| Goal::Up {
            past: past(machine),
        })
    }

    fn restart(
        &mut self,
        targets: &[ServiceId],
        now: Instant,
        out: &mut Vec<Out>,
    ) -> Vec<(ServiceId, Goal)> {
        self.start(targets, now, out);
        for id in targets {
            self.begin_anew(*id, now, out);
        }
        self.goals(targets, |machine| Goal::Up {
            past: machine.run().number,
        })
    }

    fn stop(
        &mut self,
        targets: &[ServiceId],
        now: Instant,
        out: &mut Vec<Out>,
    ) -> Vec<(ServiceId, Goal)> {
        for &id in targets {
            self.drive(id, now, machine::Input::Unwant, out);
        }
        self.goals(targets, |_| Goal::Down)
    }

    fn signal(&self, targets: &[ServiceId], signal: Signal, out: &mut Vec<Out>) -> Reply {
        let machines: Vec<&Machine> = targets
            .iter()
            .filter_map(|id| self.units.get(id))
            .map(|unit| &unit.machine)
            .collect();
        if let Some(machine) = machines.iter().find(|machine| machine.life().is_none()) {
            return Reply::refused(format!("{} is not running", machine.service().name));
        }
        for machine in machines {
            let run = machine.run();
            out.push(Out::Of(run.service, machine::Out::Signal(run, signal)));
        }
        Reply::done(serde_json::Value::Null)
    }

    fn goals(&self, ids: &[ServiceId], goal: impl Fn(&Machine) -> Goal) -> Vec<(ServiceId, Goal)> {
        ids.iter()
            .filter_map(|id| Some((*id, goal(&self.units.get(id)?.machine))))
            .collect()
    }

    /// The targets and what they require, directly or not, in the start order.
    fn with_required(&self, targets: &[ServiceId]) -> Vec<ServiceId> {
        let mut all: BTreeSet<ServiceId> = targets.iter().copied().collect();
        for id in self.order.iter().rev() {
            if let Some(unit) = self.units.get(id).filter(|_| all.contains(id)) {
                let required = &unit.machine.service().requires;
                all.extend(required.iter().filter_map(|name| self.names.get(name)));
            }
        }
        self.order
            .iter()
            .copied()
            .filter(|id| all.contains(id))
            .collect()
    }

    /// Every request whose wait is over.
    pub(super) fn answer(&mut self, now: Instant, out: &mut Vec<Out>) {
        let asked = std::mem::take(&mut self.asked);
        for request in asked {
            let reply = request.answer(|id, goal| match self.units.get(&id) {
                Some(unit) => self.progress(&unit.machine, goal, now),
                None if goal == Goal::Down => Progress::Reached,
                None => Progress::Missed("the service was removed".to_owned()),
            });
            match reply {
                Some(reply) => out.push(Out::Reply(request.id, reply)),
                None => self.asked.push(request),
            }
        }
    }

    fn progress(&self, machine: &Machine, goal: Goal, now: Instant) -> Progress {
        match (goal, machine.state()) {
            (Goal::Up { .. }, State::Waiting) => match self.stopped_requirement(machine) {
                Some(by) => {
                    let name = &machine.service().name;
                    Progress::Missed(format!("{name} requires {by}, which is stopped"))
                }
                None => progress(machine, goal, now),
            },
            (_, _) => progress(machine, goal, now),
        }
    }

    /// What somebody must start first.
    fn stopped_requirement(&self, machine: &Machine) -> Option<ServiceName> {
        self.others(&machine.service().requires)
            .map(|unit| &unit.machine)
            .find_map(|other| {
                if other.wanted() {
                    self.stopped_requirement(other)
                } else {
                    Some(other.service().name.clone())
                }
            })
    }
}

/// The runs that count for "up": a present one that is not being ended, or else the next.
pub fn past(machine: &Machine) -> u32 {
    let RunId { number, .. } = machine.run();
    match machine.state() {
        State::Spawning
        | State::Starting { .. }
        | State::Up { .. }
        | State::Dying {
            next: Next::Done, ..
        }
        | State::Done => number.saturating_sub(1),
        State::Down
        | State::Waiting
        | State::Stopping { .. }
        | State::Killing { .. }
        | State::Dying { .. }
        | State::BackingOff { .. }
        | State::Failed { .. }
        | State::Blocked { .. } => number,
    }
}

pub fn progress(machine: &Machine, goal: Goal, now: Instant) -> Progress {
    let name = &machine.service().name;
    match goal {
        Goal::Down if machine.wanted() => {
            Progress::Missed(format!("{name} was told to start again"))
        }
        Goal::Down if machine.is_active() => Progress::UnderWay,
        Goal::Down => Progress::Reached,
        Goal::Up { .. } if !machine.wanted() => {
            Progress::Missed(format!("{name} was told to stop"))
        }
        Goal::Up { past } => up(machine, machine.run().number > past, now),
    }
}

fn up(machine: &Machine, own_run: bool, now: Instant) -> Progress {
    let name = &machine.service().name;
    let retried = |until: Instant| {
        let delay = until.saturating_duration_since(now).as_millis();
        let how = machine.last_end();
        Progress::Missed(format!("{name}: {how}; the next try is in {delay} ms"))
    };
    match machine.state() {
        State::Up { .. } | State::Done if own_run => Progress::Reached,
        State::Failed { .. } | State::Blocked { .. } => {
            let why = machine.reason().unwrap_or_default();
            Progress::Missed(format!("{name}: {why}"))
        }
        State::BackingOff { until }
        | State::Dying {
            next: Next::Restart { until, .. },
            ..
        } if own_run => retried(*until),
        State::Down
        | State::Waiting
        | State::Spawning
        | State::Starting { .. }
        | State::Up { .. }
        | State::Stopping { .. }
        | State::Killing { .. }
        | State::Dying { .. }
        | State::BackingOff { .. }
        | State::Done => Progress::UnderWay,
    }
}
