//! the services as they are, the new configuration → what a reload changes, and the change.
//!
//! Only services whose configuration changed are touched, and of those only the ones whose
//! process or streams would be others are restarted (`config::diff` knows which): policy (restart,
//! backoff, limits of starts, stop, dependencies, pools, trimming) applies at once.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::asked::{Asked, Goal};
use super::fleet::{Fleet, Out, Presence};
use super::machine;
use crate::config::{Agent, Service, diff};
use crate::record::StatusEvent;
use crate::request::{Reply, RequestId};
use crate::service::{ServiceId, ServiceName};

/// Each service of the old or the new configuration that differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub added: Vec<ServiceName>,
    pub removed: Vec<ServiceName>,
    /// Changed such that it takes another process.
    pub restarted: Vec<ServiceName>,
    /// Changed, and the process stays.
    pub updated: Vec<ServiceName>,
}

impl Fleet {
    pub fn plan(&self, services: &[Arc<Service>]) -> Plan {
        let mut plan = Plan::default();
        for new in services {
            let name = new.name.clone();
            let old = self
                .named(name.as_str())
                .filter(|unit| unit.presence == Presence::Stays)
                .map(|unit| unit.machine.service());
            match old {
                None => plan.added.push(name),
                Some(old) if old == new => {}
                Some(old) if diff::needs_restart(old, new) => plan.restarted.push(name),
                Some(_) => plan.updated.push(name),
            }
        }
        for unit in self.units() {
            let name = &unit.machine.service().name;
            let kept = services.iter().any(|new| new.name == *name);
            if unit.presence == Presence::Stays && !kept {
                plan.removed.push(name.clone());
            }
        }
        plan
    }

    /// Carries the plan out. What is stopped stays stopped; what is added is started,
    /// unless in maintenance. `asked` is answered when it has happened.
    pub fn reload(
        &mut self,
        agent: &Agent,
        services: &[Arc<Service>],
        asked: Option<(RequestId, serde_json::Value)>,
        now: Instant,
        out: &mut Vec<Out>,
    ) {
        if self.is_leaving() {
            if let Some((id, _)) = asked {
                out.push(Out::Reply(id, Reply::refused("the agent is shutting down")));
            }
            return;
        }
        self.sweep();
        let plan = self.plan(services);
        let mut goals = Vec::new();
        for name in &plan.removed {
            if let Some(id) = self.leave_fleet(name, now, out) {
                goals.push((id, Goal::Down));
            }
        }
        for new in services {
            let id = if plan.added.contains(&new.name) {
                let wanted = !agent.maintenance;
                Some(self.join_fleet(new, wanted, now, out)).filter(|_| wanted)
            } else if plan.restarted.contains(&new.name) {
                self.replace(new, now, out)
            } else {
                if plan.updated.contains(&new.name) {
                    self.adopt(new, "its process stays", out);
                }
                None
            };
            if let Some(unit) = id.and_then(|id| self.unit(id)) {
                let run = unit.machine.run();
                goals.push((run.service, Goal::Up { past: run.number }));
            }
        }
        self.set_agent(agent);
        self.sort();
        if let Some((id, data)) = asked {
            self.asked.push(Asked { id, goals, data });
        }
        self.after(now, out);
    }

    fn leave_fleet(
        &mut self,
        name: &ServiceName,
        now: Instant,
        out: &mut Vec<Out>,
    ) -> Option<ServiceId> {
        let id = *self.names.get(name)?;
        self.units.get_mut(&id)?.presence = Presence::Leaves;
        self.drive(id, now, machine::Input::Unwant, out);
        Some(id)
    }

    /// A name that is still leaving comes back as the same unit: its old process ends first.
    fn join_fleet(
        &mut self,
        new: &Arc<Service>,
        wanted: bool,
        now: Instant,
        out: &mut Vec<Out>,
    ) -> ServiceId {
        let id = match self.names.get(&new.name) {
            Some(id) => *id,
            None => self.add(new),
        };
        if let Some(unit) = self.units.get_mut(&id) {
            unit.presence = Presence::Stays;
            unit.machine.reconfigure(Arc::clone(new));
        }
        if wanted {
            self.begin_anew(id, now, out);
        }
        id
    }

    /// `None` where it is stopped, and stays so.
    fn replace(
        &mut self,
        new: &Arc<Service>,
        now: Instant,
        out: &mut Vec<Out>,
    ) -> Option<ServiceId> {
        self.adopt(new, "it is restarted", out);
        let id = *self.names.get(&new.name)?;
        let unit = self.units.get_mut(&id)?;
        // Also where it is on its way down: should it be wanted again before it is there,
        // the old process must still not stay.
        unit.again = unit.machine.is_active();
        unit.machine.wanted().then(|| {
            self.begin_anew(id, now, out);
            id
        })
    }

    pub(super) fn begin_anew(&mut self, id: ServiceId, now: Instant, out: &mut Vec<Out>) {
        self.drive(id, now, machine::Input::Start, out);
        if let Some(unit) = self.units.get_mut(&id) {
            unit.again = unit.machine.is_active();
        }
    }

    fn adopt(&mut self, new: &Arc<Service>, what: &str, out: &mut Vec<Out>) {
        let Some(id) = self.names.get(&new.name).copied() else {
            return;
        };
        if let Some(unit) = self.units.get_mut(&id) {
            let old = unit.machine.service().clone();
            // A check that is another now has not said anything yet.
            unit.unhealthy.retain(|name| {
                let mut both = new.checks.iter().filter(|check| old.checks.contains(check));
                both.any(|check| check.name == *name)
            });
            unit.machine.reconfigure(Arc::clone(new));
            let streams = &unit.streams;
            let same = (streams.trim, streams.keep) == (new.trim, new.keep);
            if **streams.name() == *new.stream_name && !same {
                unit.streams = streams.trimmed_as(new.trim, new.keep);
                let run = unit.machine.run();
                out.push(Out::Of(id, machine::Out::Trimmed(run)));
            }
            let what = what.to_owned();
            let said = machine::Out::Say(StatusEvent::Reload { what });
            out.push(Out::Of(id, said));
            // Pools may have changed without any change of state.
            out.push(Out::Standing(id));
        }
    }
}
