//! the facts about all services → the next move of one of them.
//!
//! Nothing here remembers anything: a move is found by looking, so that none can be
//! forgotten, and the rules of `mod.rs` stand here as they are said there.

use std::collections::HashSet;

use super::fleet::{Fleet, Unit};
use super::machine::{self, Machine, State};
use super::order::before;
use crate::service::{ServiceId, ServiceName};

impl Fleet {
    /// The first thing that the facts demand.
    pub(super) fn next_move(&self) -> Option<(ServiceId, machine::Input)> {
        let doomed = self.doomed();
        let stuck = self.stuck();
        self.order.iter().find_map(|&id| {
            let input = self.move_of(id, &doomed, &stuck)?;
            Some((id, input))
        })
    }

    fn move_of(
        &self,
        id: ServiceId,
        doomed: &HashSet<ServiceId>,
        stuck: &HashSet<ServiceId>,
    ) -> Option<machine::Input> {
        let machine = &self.units.get(&id)?.machine;
        match machine.state() {
            State::Starting { .. } | State::Up { .. } | State::Stopping { .. }
                if self.is_hurried() =>
            {
                Some(machine::Input::Kill)
            }
            State::Starting { .. } | State::Up { .. } if doomed.contains(&id) => {
                let followed = self
                    .followers(id)
                    .any(|(other, unit)| unit.machine.is_active() && doomed.contains(&other));
                (!followed).then_some(machine::Input::Halt)
            }
            State::BackingOff { .. } if doomed.contains(&id) => Some(machine::Input::Halt),
            State::Waiting => match self.failed_requirement(machine) {
                Some(by) => Some(machine::Input::Block { by }),
                None if doomed.contains(&id) => None,
                None => self
                    .may_begin(machine, stuck)
                    .then_some(machine::Input::Begin),
            },
            State::Blocked { .. } if self.failed_requirement(machine).is_none() => {
                Some(machine::Input::Unblock)
            }
            State::Down
            | State::Spawning
            | State::Starting { .. }
            | State::Up { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Dying { .. }
            | State::BackingOff { .. }
            | State::Failed { .. }
            | State::Blocked { .. }
            | State::Done => None,
        }
    }

    fn others<'a>(&'a self, names: &'a [ServiceName]) -> impl Iterator<Item = &'a Unit> {
        names
            .iter()
            .filter_map(|name| self.units.get(self.names.get(name)?))
    }

    /// What is after `id` or requires it.
    pub(super) fn followers(&self, id: ServiceId) -> impl Iterator<Item = (ServiceId, &Unit)> {
        self.units.iter().filter_map(move |(other, unit)| {
            before(unit.machine.service())
                .any(|name| self.names.get(name) == Some(&id))
                .then_some((*other, unit))
        })
    }

    pub(super) fn failed_requirement(&self, machine: &Machine) -> Option<ServiceName> {
        self.others(&machine.service().requires)
            .find(|unit| unit.machine.has_failed())
            .map(|unit| unit.machine.service().name.clone())
    }

    /// What must go down: see `mod.rs`.
    fn doomed(&self) -> HashSet<ServiceId> {
        let mut doomed = HashSet::new();
        for id in &self.order {
            let Some(unit) = self.units.get(id) else {
                continue;
            };
            let machine = &unit.machine;
            let pulled = machine.service().requires.iter().any(|name| {
                let other = self.names.get(name);
                other.is_some_and(|other| doomed.contains(other))
            });
            if !machine.wanted()
                || unit.again
                || pulled
                || self.failed_requirement(machine).is_some()
            {
                doomed.insert(*id);
            }
        }
        doomed
    }

    /// What waits for something required that is not about to come: nobody who is merely
    /// after it waits with it.
    fn stuck(&self) -> HashSet<ServiceId> {
        let mut stuck = HashSet::new();
        for id in &self.order {
            let Some(unit) = self.units.get(id) else {
                continue;
            };
            let held = unit.machine.service().requires.iter().any(|name| {
                let Some(other) = self.names.get(name) else {
                    return false;
                };
                let rests = self
                    .units
                    .get(other)
                    .is_some_and(|unit| !unit.machine.is_coming());
                rests && !self.is_there(*other) || stuck.contains(other)
            });
            if *unit.machine.state() == State::Waiting && held {
                stuck.insert(*id);
            }
        }
        stuck
    }

    fn is_there(&self, id: ServiceId) -> bool {
        self.units
            .get(&id)
            .is_some_and(|unit| matches!(unit.machine.state(), State::Up { .. } | State::Done))
    }

    fn may_begin(&self, machine: &Machine, stuck: &HashSet<ServiceId>) -> bool {
        let ids = |names: &[ServiceName]| -> Vec<ServiceId> {
            names
                .iter()
                .filter_map(|name| self.names.get(name).copied())
                .collect()
        };
        let service = machine.service();
        ids(&service.requires).iter().all(|id| self.is_there(*id))
            && ids(&service.after).iter().all(|id| {
                let coming = self
                    .units
                    .get(id)
                    .is_some_and(|unit| unit.machine.is_coming());
                !coming || stuck.contains(id)
            })
    }
}
