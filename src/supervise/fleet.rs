//! all services: input, now → what is to be done, service by service.
//!
//! The rules stand in `mod.rs`. After every input the fleet makes the moves that the facts
//! demand, one after the other, until there is none left. Once it has said `End`, it says
//! nothing more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::asked::Asked;
use super::chart::Times;
use super::machine::{self, Machine, State};
use super::order::start_order;
use crate::config::{Agent, OnFailed, Service};
use crate::handoff;
use crate::record::{StatusEvent, Streams};
use crate::request::{Reply, RequestId};
use crate::service::{Exit, Pid, ServiceId, ServiceName, Signal};

/// After the last SIGKILL at a shutdown: what does not die by then is left to the kernel.
pub const GIVE_UP: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub enum Input {
    /// About the run of one service.
    Of(ServiceId, machine::Input),
    Verdict {
        service: ServiceId,
        check: String,
        healthy: bool,
        restart: bool,
    },
    Ask {
        id: RequestId,
        what: Ask,
        services: Vec<String>,
        wait: bool,
    },
    /// From a signal or an operator; a second one hurries.
    Shutdown,
    /// A deadline may have passed.
    Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Start,
    Stop,
    Restart,
    Signal(Signal),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Out {
    Of(ServiceId, machine::Out),
    /// Where it stands has changed.
    Standing(ServiceId),
    Reply(RequestId, Reply),
    /// All is over; the agent's exit code. Nothing comes after it.
    End(i32),
}

/// One service of the fleet.
#[derive(Clone, Debug)]
pub struct Unit {
    pub machine: Machine,
    pub streams: Arc<Streams>,
    /// Checks that say it is unhealthy.
    pub unhealthy: BTreeSet<String>,
    /// An ordered restart is under way.
    pub(super) again: bool,
    pub presence: Presence,
    /// Of its last start.
    pub times: Times,
    /// What was last told of it.
    told: Option<Told>,
}

/// Whether the configuration still names the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Stays,
    /// A reload took it away: it goes once it is down.
    Leaves,
    /// It is down, that has been told, and nothing more will be.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    state: handoff::State,
    pid: Option<Pid>,
    restarts: u64,
    exit: Option<Exit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Everything goes down in order; by then it is killed.
    Leaving {
        kill_at: Instant,
    },
    /// Everything was killed; by then the agent goes all the same.
    Killing {
        give_up_at: Instant,
    },
    /// Even that did not end everything.
    GivenUp,
    Ended,
}

#[derive(Clone, Debug)]
pub struct Fleet {
    pub(super) units: BTreeMap<ServiceId, Unit>,
    pub(super) names: HashMap<ServiceName, ServiceId>,
    /// Every unit behind what it is after or requires.
    pub(super) order: Vec<ServiceId>,
    next_id: u32,
    main: Option<ServiceName>,
    shutdown_timeout: Duration,
    phase: Phase,
    /// The exit code that the end of a service has decided.
    code: Option<i32>,
    pub(super) asked: Vec<Asked>,
}

impl Fleet {
    /// Every service is wanted, unless in maintenance; nothing begins before the first step.
    pub fn new(agent: &Agent, services: &[Arc<Service>], now: Instant) -> Fleet {
        let mut fleet = Fleet {
            units: BTreeMap::new(),
            names: HashMap::new(),
            order: Vec::new(),
            next_id: 0,
            main: agent.main.clone(),
            shutdown_timeout: agent.shutdown_timeout,
            phase: Phase::Running,
            code: None,
            asked: Vec::new(),
        };
        for service in services {
            fleet.add(service);
        }
        fleet.sort();
        if !agent.maintenance {
            for unit in fleet.units.values_mut() {
                unit.machine
                    .step(now, machine::Input::Start, &mut Vec::new());
            }
        }
        fleet
    }

    pub(super) fn add(&mut self, service: &Arc<Service>) -> ServiceId {
        let id = ServiceId(self.next_id);
        self.next_id += 1;
        self.names.insert(service.name.clone(), id);
        let unit = Unit {
            machine: Machine::new(id, Arc::clone(service)),
            streams: Streams::keeping(&service.stream_name, service.trim, service.keep),
            unhealthy: BTreeSet::new(),
            again: false,
            presence: Presence::Stays,
            times: Times::default(),
            told: None,
        };
        self.units.insert(id, unit);
        id
    }

    pub(super) fn set_agent(&mut self, agent: &Agent) {
        self.main = agent.main.clone();
        self.shutdown_timeout = agent.shutdown_timeout;
    }

    /// Forgets what is gone.
    pub(super) fn sweep(&mut self) {
        if self
            .units
            .values()
            .any(|unit| unit.presence == Presence::Gone)
        {
            self.units.retain(|_, unit| unit.presence != Presence::Gone);
            let units = &self.units;
            self.names.retain(|_, id| units.contains_key(id));
            self.sort();
        }
    }

    pub(super) fn sort(&mut self) {
        let ids: Vec<ServiceId> = self.units.keys().copied().collect();
        let services: Vec<&Service> = self
            .units
            .values()
            .map(|unit| unit.machine.service().as_ref())
            .collect();
        self.order = start_order(&services)
            .into_iter()
            .map(|index| ids[index])
            .collect();
    }

    pub fn unit(&self, id: ServiceId) -> Option<&Unit> {
        self.units.get(&id)
    }

    /// In the order of the files.
    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        self.units
            .values()
            .filter(|unit| unit.presence != Presence::Gone)
    }

    /// Each behind what it is after or requires.
    pub fn in_order(&self) -> impl Iterator<Item = &Unit> {
        let units = self.order.iter().filter_map(|id| self.units.get(id));
        units.filter(|unit| unit.presence != Presence::Gone)
    }

    pub fn named(&self, name: &str) -> Option<&Unit> {
        let name = ServiceName::new(name).ok()?;
        self.units
            .get(self.names.get(&name)?)
            .filter(|unit| unit.presence != Presence::Gone)
    }

    /// How long an ordered end may take, for all services together.
    pub fn shutdown_timeout(&self) -> Duration {
        self.shutdown_timeout
    }

    pub fn is_leaving(&self) -> bool {
        self.phase != Phase::Running
    }

    /// Patience has ended: what lives is killed.
    pub fn is_hurried(&self) -> bool {
        matches!(self.phase, Phase::Killing { .. })
    }

    pub fn deadline(&self) -> Option<Instant> {
        let own = match self.phase {
            Phase::Running => None,
            Phase::Leaving { kill_at } => Some(kill_at),
            Phase::Killing { give_up_at } => Some(give_up_at),
            Phase::GivenUp | Phase::Ended => return None,
        };
        self.units
            .values()
            .filter_map(|unit| unit.machine.deadline())
            .chain(own)
            .min()
    }

    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Out>) {
        if self.phase == Phase::Ended {
            return;
        }
        self.sweep();
        match input {
            Input::Of(id, input) => self.drive(id, now, input, out),
            Input::Verdict {
                service,
                check,
                healthy,
                restart,
            } => self.verdict(service, now, check, healthy, restart, out),
            Input::Ask {
                id,
                what,
                services,
                wait,
            } => self.ask(id, what, &services, wait, now, out),
            Input::Shutdown => self.shut_down(now),
            Input::Time => self.time(now, out),
        }
        self.after(now, out);
    }

    /// What follows from any change.
    pub(super) fn after(&mut self, now: Instant, out: &mut Vec<Out>) {
        self.settle(now, out);
        self.tell(now, out);
        self.answer(now, out);
        self.end(out);
    }

    /// One machine's step, and what it means for its unit.
    pub(super) fn drive(
        &mut self,
        id: ServiceId,
        now: Instant,
        input: machine::Input,
        out: &mut Vec<Out>,
    ) {
        let Some(unit) = self.units.get_mut(&id) else {
            return;
        };
        let mut own = Vec::new();
        unit.machine.step(now, input, &mut own);
        if own
            .iter()
            .any(|action| matches!(action, machine::Out::Spawn(_)))
        {
            unit.unhealthy.clear();
            let service = unit.machine.service();
            let streams = &unit.streams;
            if **streams.name() != *service.stream_name {
                unit.streams = Streams::keeping(&service.stream_name, service.trim, service.keep);
            } else if (streams.trim, streams.keep) != (service.trim, service.keep) {
                unit.streams = streams.trimmed_as(service.trim, service.keep);
            }
        }
        if unit.again && !unit.machine.is_active() {
            unit.again = false;
            // It may have ended by itself before its turn to be halted had come.
            if unit.machine.wanted() {
                unit.machine.step(now, machine::Input::Start, &mut own);
            }
        }
        out.extend(own.into_iter().map(|action| Out::Of(id, action)));
    }

    /// Moves until there is none left.
    fn settle(&mut self, now: Instant, out: &mut Vec<Out>) {
        // Every move brings its unit a step nearer to rest; the bound only turns a mistake
        // in that reasoning into a late move instead of an endless loop.
        for _ in 0..=8 * self.units.len() {
            self.notice_ends(now);
            let Some((id, input)) = self.next_move() else {
                return;
            };
            self.drive(id, now, input, out);
        }
    }

    fn verdict(
        &mut self,
        id: ServiceId,
        now: Instant,
        check: String,
        healthy: bool,
        restart: bool,
        out: &mut Vec<Out>,
    ) {
        let Some(unit) = self.units.get_mut(&id) else {
            return;
        };
        if healthy {
            unit.unhealthy.remove(&check);
        } else {
            unit.unhealthy.insert(check.clone());
        }
        let what = format!("check {check} is unhealthy");
        let said = StatusEvent::Health { check, healthy };
        out.push(Out::Of(id, machine::Out::Say(said)));
        if restart && !healthy {
            self.drive(id, now, machine::Input::Sick { what }, out);
        }
    }

    /// The end of a service for good may be the end of the agent.
    fn notice_ends(&mut self, now: Instant) {
        if self.phase != Phase::Running {
            return;
        }
        let code = self.units.values().find_map(|unit| {
            let machine = &unit.machine;
            let is_main = self.main.as_ref() == Some(&machine.service().name);
            let exits = machine.service().on_failed == OnFailed::Exit;
            let ended = machine.has_failed() && (is_main || exits)
                || *machine.state() == State::Done && is_main;
            ended.then(|| self.code_of(machine))
        });
        if let Some(code) = code {
            self.code = Some(code);
            self.leave(now);
        }
    }

    /// Of its last end; where it never ran because of another, of that one's.
    fn code_of(&self, machine: &Machine) -> i32 {
        let own = machine.exit();
        let cause = self
            .failed_requirement(machine)
            .and_then(|name| self.units.get(self.names.get(&name)?));
        match (machine.state(), own, cause) {
            (State::Blocked { .. }, _, Some(cause)) => self.code_of(&cause.machine),
            (_, Some(exit), _) => exit.code(),
            (_, None, _) => 1,
        }
    }

    fn leave(&mut self, now: Instant) {
        self.phase = Phase::Leaving {
            kill_at: now + self.shutdown_timeout,
        };
        for unit in self.units.values_mut() {
            // Wishes say nothing and order nothing.
            let unused = &mut Vec::new();
            unit.machine.step(now, machine::Input::Unwant, unused);
        }
    }

    fn shut_down(&mut self, now: Instant) {
        match self.phase {
            Phase::Running => self.leave(now),
            Phase::Leaving { .. } => self.hurry(now),
            Phase::Killing { .. } | Phase::GivenUp | Phase::Ended => {}
        }
    }

    fn hurry(&mut self, now: Instant) {
        self.phase = Phase::Killing {
            give_up_at: now + GIVE_UP,
        };
    }

    fn time(&mut self, now: Instant, out: &mut Vec<Out>) {
        match self.phase {
            Phase::Leaving { kill_at } if kill_at <= now => self.hurry(now),
            Phase::Killing { give_up_at } if give_up_at <= now => self.phase = Phase::GivenUp,
            Phase::Running
            | Phase::Leaving { .. }
            | Phase::Killing { .. }
            | Phase::GivenUp
            | Phase::Ended => {}
        }
        for id in self.order.clone() {
            self.drive(id, now, machine::Input::Time, out);
        }
    }

    /// Every unit that stands elsewhere than was last told.
    fn tell(&mut self, now: Instant, out: &mut Vec<Out>) {
        for (id, unit) in &mut self.units {
            let machine = &unit.machine;
            let before = unit.told.as_ref().map(|told| told.state);
            unit.times.moved(before, machine.shown(), now);
            let now = Told {
                state: machine.shown(),
                pid: machine.life().map(|life| life.pid),
                restarts: machine.restarts(),
                exit: machine.exit(),
            };
            if unit.presence == Presence::Leaves && !machine.is_active() {
                unit.presence = Presence::Gone;
                out.push(Out::Standing(*id));
            } else if unit.told.as_ref() != Some(&now) {
                unit.told = Some(now);
                out.push(Out::Standing(*id));
            }
        }
    }

    fn end(&mut self, out: &mut Vec<Out>) {
        let over = match self.phase {
            Phase::Running | Phase::Ended => false,
            Phase::Leaving { .. } | Phase::Killing { .. } => {
                self.units.values().all(|unit| !unit.machine.is_active())
            }
            Phase::GivenUp => true,
        };
        if !over {
            return;
        }
        self.phase = Phase::Ended;
        for asked in self.asked.drain(..) {
            let reply = Reply::refused("the agent has shut down");
            out.push(Out::Reply(asked.id, reply));
        }
        let main = self
            .main
            .as_ref()
            .and_then(|name| self.named(name.as_str()));
        let main_code = main.and_then(|unit| unit.machine.exit()).map(Exit::code);
        out.push(Out::End(self.code.or(main_code).unwrap_or(0)));
    }
}
