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

    pub(super) fn others<'a>(&'a self, names: &'a [ServiceName]) -> impl Iterator<Item = &'a Unit> {
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

    /// The failed service that this one cannot be without. What is done and over does not
    /// fail any more, but hands on the failure of what it needed.
    pub(super) fn failed_requirement(&self, machine: &Machine) -> Option<ServiceName> {
        self.others(&machine.service().requires)
            .map(|unit| &unit.machine)
            .find_map(|other| match other.state() {
                State::Failed { .. } | State::Blocked { .. } => Some(other.service().name.clone()),
                State::Done => self.failed_requirement(other),
                State::Down
                | State::Waiting
                | State::Spawning
                | State::Starting { .. }
                | State::Up { .. }
                | State::Stopping { .. }
                | State::Killing { .. }
                | State::Dying { .. }
                | State::BackingOff { .. } => None,
            })
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

    /// What is neither there nor about to come, and what requires such: nobody who is
    /// merely after it waits for it.
    fn stuck(&self) -> HashSet<ServiceId> {
        let mut stuck = HashSet::new();
        for id in &self.order {
            let Some(unit) = self.units.get(id) else {
                continue;
            };
            let machine = &unit.machine;
            let held = machine.service().requires.iter().any(|name| {
                let other = self.names.get(name);
                other.is_some_and(|other| stuck.contains(other))
            });
            if held || !machine.is_coming() && !self.is_there(*id) {
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
                let machine = self.units.get(id).map(|unit| &unit.machine);
                machine.is_none_or(|machine| {
                    let hopeless = *machine.state() == State::Waiting && stuck.contains(id);
                    hopeless || !machine.is_coming()
                })
            })
    }
}
