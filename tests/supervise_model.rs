//! Random events against the fleet, with virtual time and no process.
//!
//! A small world plays the main thread, `logs` and the services: it answers orders late, in
//! any order, or (where the supervisor promises to cope) never. After every step the
//! promises of CONTRACTS section 3 are checked against what the world knows, not against
//! what the fleet says of itself. `MODEL_EVENTS` sets how many events are played.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jettison_agent::backoff::Backoff;
use jettison_agent::config::lifecycle::{Lifecycle, Readiness, ReadyBy};
use jettison_agent::config::{Agent, Kind, OnFailed, Process, Restart, Service, StartLimit, Stop};
use jettison_agent::event::SpawnFailure;
use jettison_agent::record::{StatusEvent, Trim};
use jettison_agent::request::RequestId;
use jettison_agent::service::{Exit, RunId, ServiceId, ServiceName, Signal};
use jettison_agent::supervise::fleet::{Ask, Fleet, GIVE_UP, Input, Out, Presence, Unit};
use jettison_agent::supervise::machine::{self, RELEASE, State};
use jettison_agent::supervise::notice::Notice;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        match items.len() {
            0 => None,
            n => items.get(self.roll(n as u64) as usize),
        }
    }
}

/// A run as the world sees it.
#[derive(Default)]
struct Run {
    ordered: bool,
    born: Option<Instant>,
    alive: bool,
    /// Asked to stop, and how politely.
    stop_sent: bool,
    kill_sent: bool,
    /// While it lived.
    killed: bool,
    ended_at: Option<Instant>,
    tree_gone: bool,
    drained: bool,
    feed_ended: bool,
    opened: u32,
    exit_said: u32,
    closed: u32,
}

struct World {
    dice: Dice,
    fleet: Fleet,
    agent: Agent,
    services: Vec<Arc<Service>>,
    now: Instant,
    runs: BTreeMap<RunId, Run>,
    /// Starts since somebody last ordered one, by service.
    starts: BTreeMap<ServiceId, Vec<Instant>>,
    asked: BTreeSet<u64>,
    next_ask: u64,
    leaving_since: Option<Instant>,
    hurried: bool,
    ended: Option<i32>,
    /// When an operator last said anything: that may cut a delay short.
    meddled: Option<Instant>,
    /// Nobody asks for anything in this play, and things happen quickly.
    alone: bool,
    /// At the end nothing dies, not even of SIGKILL.
    immortal: bool,
    trace: Vec<String>,
}

/// Longer than anything but a watchdog in good hands.
const PATIENT: Duration = Duration::from_secs(3600);

const SHUTDOWN: Duration = Duration::from_secs(20);

fn service(dice: &mut Dice, index: usize) -> Service {
    let name = |index: usize| ServiceName::new(&format!("s{index}")).expect("a name");
    let mut requires = Vec::new();
    let mut after = Vec::new();
    for other in 0..index {
        match dice.roll(6) {
            0 | 1 => requires.push(name(other)),
            2 => after.push(name(other)),
            _ => {}
        }
    }
    Service {
        name: name(index),
        executable: "/x".to_owned(),
        args: vec![dice.roll(2).to_string()],
        stream_name: format!("s{index}"),
        kind: if dice.one_in(4) {
            Kind::Oneshot
        } else {
            Kind::Simple
        },
        after,
        requires,
        critical: true,
        restart: match dice.roll(4) {
            0 => Restart::Never,
            1 => Restart::OnFailure,
            _ => Restart::Always,
        },
        on_failed: if dice.one_in(12) {
            OnFailed::Exit
        } else {
            OnFailed::Stay
        },
        backoff: Backoff {
            initial: Duration::from_millis(100),
            max: Duration::from_secs(5),
        },
        reset_after: Duration::from_secs(10),
        start_limit: StartLimit {
            burst: 4,
            interval: Duration::from_secs(60),
        },
        stop: Stop {
            signal: Signal::TERM,
            timeout: Duration::from_millis(500 + dice.roll(8_000)),
        },
        lifecycle: lifecycle(dice),
        process: Process::default(),
        max_line: 1024,
        multi_line: Default::default(),
        trim: Trim {
            max_len: 10 + dice.roll(2),
        },
        capture: Default::default(),
        keep: jettison_agent::record::Keep::default(),
        pools: Arc::new([]),
        debug: None,
        checks: Arc::new([]),
    }
}

/// Some say when they are ready, some that they live, some clean up.
fn lifecycle(dice: &mut Dice) -> Lifecycle {
    Lifecycle {
        ready: dice.one_in(3).then(|| Readiness {
            by: ReadyBy::Notify,
            timeout: Duration::from_millis(500 + dice.roll(3_000)),
        }),
        watchdog: dice
            .one_in(4)
            .then(|| Duration::from_millis(300 + dice.roll(3_000))),
        pre_start: Vec::new(),
        post_stop: vec![vec!["/x".to_owned()]; (dice.roll(4) / 3) as usize],
    }
}

fn services(dice: &mut Dice) -> Vec<Arc<Service>> {
    let count = 1 + dice.roll(5) as usize;
    (0..count)
        .map(|index| Arc::new(service(dice, index)))
        .collect()
}

impl World {
    fn new(seed: u64, base: Instant) -> World {
        let mut dice = Dice(seed);
        let services = services(&mut dice);
        let agent = Agent {
            board: String::new(),
            state_dir: "/".into(),
            runtime_dir: "/".into(),
            shutdown_timeout: SHUTDOWN,
            main: dice
                .one_in(4)
                .then(|| services.last().expect("one").name.clone()),
            tee: false,
            maintenance: dice.one_in(10),
            group: None,
        };
        let (alone, immortal) = (dice.one_in(3), dice.one_in(4));
        World {
            alone,
            immortal,
            fleet: Fleet::new(&agent, &services, base),
            dice,
            agent,
            services,
            now: base,
            runs: BTreeMap::new(),
            starts: BTreeMap::new(),
            asked: BTreeSet::new(),
            next_ask: 0,
            leaving_since: None,
            hurried: false,
            ended: None,
            meddled: None,
            trace: Vec::new(),
        }
    }

    fn play(&mut self, events: u32) {
        self.step(Input::Time);
        for _ in 0..events {
            if self.ended.is_some() {
                break;
            }
            self.something();
        }
        self.calm_down();
        self.leave();
    }

    fn something(&mut self) {
        match self.dice.roll(40) {
            0..=7 => self.pass_time(),
            8..=13 => self.answer_spawn(),
            14..=16 => self.exit(|_| true),
            17..=20 => self.exit(|run| run.stop_sent || run.kill_sent),
            21..=25 => self.tree_gone(),
            26..=30 => self.drained(),
            31 => self.stale(),
            39 if self.dice.one_in(2) => self.notice(),
            32..=36 if self.alone => {}
            32..=35 => self.ask(),
            36 => self.reload(),
            37 => self.verdict(),
            38 => self.step(Input::Time),
            _ if self.dice.one_in(25) => self.shut_down(),
            _ => {}
        }
    }

    fn pass_time(&mut self) {
        let deadline = self.fleet.deadline();
        self.now += match (deadline, self.dice.roll(4)) {
            (Some(deadline), 0 | 1) => deadline.saturating_duration_since(self.now),
            (_, 3) if self.alone => Duration::from_millis(self.dice.roll(50)),
            (_, 2) => Duration::from_millis(self.dice.roll(300)),
            (_, _) => Duration::from_millis(self.dice.roll(12_000)),
        };
        if deadline.is_some_and(|deadline| deadline <= self.now) && !self.dice.one_in(5) {
            self.step(Input::Time);
        }
    }

    fn choose(&mut self, wanted: impl Fn(&Run) -> bool) -> Option<RunId> {
        let fitting: Vec<RunId> = self
            .runs
            .iter()
            .filter(|(_, run)| wanted(run))
            .map(|(id, _)| *id)
            .collect();
        self.dice.pick(&fitting).copied()
    }

    fn answer_spawn(&mut self) {
        let Some(id) = self.choose(|run| run.ordered) else {
            return;
        };
        let fails = self.dice.one_in(6);
        let run = self.runs.get_mut(&id).expect("chosen");
        run.ordered = false;
        if fails {
            run.ended_at = Some(self.now);
            run.tree_gone = true;
            let failure = SpawnFailure {
                stage: "executing /x".to_owned(),
                errno: 2,
            };
            self.about(id, machine::Input::SpawnFailed { run: id, failure });
        } else {
            run.alive = true;
            self.about(id, machine::Input::Spawned { run: id, pid: 7 });
        }
    }

    fn exit(&mut self, which: impl Fn(&Run) -> bool) {
        let Some(id) = self.choose(|run| run.alive && which(run)) else {
            return;
        };
        let exit = match self.dice.roll(4) {
            0 | 1 => Exit::Code(0),
            2 => Exit::Code(3),
            _ => Exit::Signal(Signal(11)),
        };
        let run = self.runs.get_mut(&id).expect("chosen");
        run.alive = false;
        run.ended_at = Some(self.now);
        self.about(id, machine::Input::Exited { run: id, exit });
    }

    fn tree_gone(&mut self) {
        if let Some(id) = self.choose(|run| run.kill_sent && !run.alive && !run.tree_gone) {
            self.runs.get_mut(&id).expect("chosen").tree_gone = true;
            self.about(id, machine::Input::TreeGone { run: id });
        }
    }

    fn drained(&mut self) {
        if let Some(id) = self.choose(|run| run.feed_ended && !run.drained) {
            self.runs.get_mut(&id).expect("chosen").drained = true;
            self.about(id, machine::Input::Drained { run: id });
        }
    }

    /// A service says something about itself.
    fn notice(&mut self) {
        let Some(id) = self.choose(|run| run.alive) else {
            return;
        };
        let time = Duration::from_millis(self.dice.roll(5_000) + 1);
        let notice = match self.dice.roll(10) {
            0..=3 => Notice::Ready,
            4..=6 => Notice::Beat,
            7 => Notice::Extend(time),
            8 => Notice::BeatEvery(time),
            _ => Notice::Hung,
        };
        self.about(id, machine::Input::Notice { run: id, notice });
    }

    /// Words about runs that are long over.
    fn stale(&mut self) {
        if let Some(id) = self.choose(|run| run.closed > 0) {
            let input = match self.dice.roll(4) {
                0 => machine::Input::TreeGone { run: id },
                1 => machine::Input::Drained { run: id },
                2 => machine::Input::Ready { run: id },
                _ => machine::Input::Exited {
                    run: id,
                    exit: Exit::Code(1),
                },
            };
            self.about(id, input);
        }
    }

    fn ask(&mut self) {
        let names: Vec<String> = self.services.iter().map(|s| s.name.to_string()).collect();
        let mut chosen: Vec<String> = Vec::new();
        for name in names {
            if self.dice.one_in(3) {
                chosen.push(name);
            }
        }
        let what = match self.dice.roll(7) {
            0 | 1 => Ask::Start,
            2 | 3 => Ask::Stop,
            4 | 5 => Ask::Restart,
            _ => Ask::Signal(Signal::HUP),
        };
        if self.dice.one_in(10) {
            chosen.push("nobody".to_owned());
        }
        let number = self.next_ask;
        self.next_ask += 1;
        self.asked.insert(number);
        self.meddle();
        let wait = !self.dice.one_in(4);
        self.step(Input::Ask {
            id: RequestId(number),
            what,
            services: chosen,
            wait,
        });
    }

    fn meddle(&mut self) {
        self.meddled = Some(self.now);
        self.starts.clear();
    }

    fn reload(&mut self) {
        if self.leaving_since.is_some() {
            return;
        }
        let mut new = self.services.clone();
        match self.dice.roll(3) {
            0 => new = services(&mut self.dice),
            1 => {
                let index = new.len() - 1;
                new[index] = Arc::new(service(&mut self.dice, index));
            }
            _ => {
                if new.len() > 1 {
                    new.pop();
                }
            }
        }
        let main = self.agent.main.clone();
        self.agent.main = main.filter(|main| new.iter().any(|service| service.name == *main));
        let number = self.next_ask;
        self.next_ask += 1;
        self.asked.insert(number);
        self.meddle();
        self.services = new;
        self.trace.push(format!("{:?} reload", self.now));
        let mut out = Vec::new();
        self.fleet.reload(
            &self.agent,
            &self.services,
            Some((RequestId(number), serde_json::Value::Null)),
            self.now,
            &mut out,
        );
        self.take(out);
        self.check();
    }

    fn verdict(&mut self) {
        if let Some(id) = self.choose(|run| run.alive) {
            let (healthy, restart) = (self.dice.one_in(2), self.dice.one_in(2));
            self.step(Input::Verdict {
                service: id.service,
                check: "port".to_owned(),
                healthy,
                restart,
            });
        }
    }

    fn shut_down(&mut self) {
        self.hurried |= self.leaving_since.is_some();
        self.leaving_since.get_or_insert(self.now);
        self.step(Input::Shutdown);
    }

    fn about(&mut self, run: RunId, input: machine::Input) {
        self.step(Input::Of(run.service, input));
    }

    fn step(&mut self, input: Input) {
        self.trace.push(format!("{:?} {input:?}", self.now));
        let mut out = Vec::new();
        self.fleet.step(self.now, input, &mut out);
        self.take(out);
        self.check();
    }
}

/// What the fleet ordered, and whether it was allowed to.
impl World {
    fn take(&mut self, out: Vec<Out>) {
        for action in out {
            self.trace.push(format!("    → {action:?}"));
            assert!(self.ended.is_none(), "an action after the end");
            match action {
                Out::Of(id, action) => self.act(id, action),
                Out::Standing(_) => {}
                Out::Reply(RequestId(number), _) => {
                    assert!(
                        self.asked.remove(&number),
                        "request {number} answered twice"
                    );
                }
                Out::End(code) => self.ended = Some(code),
            }
        }
    }

    fn act(&mut self, id: ServiceId, action: machine::Out) {
        match action {
            machine::Out::Spawn(run) => self.spawn(run),
            machine::Out::Signal(run, signal) => {
                assert!(self.runs[&run].alive, "{signal} to a run that is over");
                if signal == Signal::TERM {
                    self.stop(run);
                }
            }
            machine::Out::Hung(run) => assert!(self.runs[&run].alive, "nothing to look at"),
            machine::Out::KillTree(run) => {
                let run = self.runs.get_mut(&run).expect("of a known run");
                run.kill_sent = true;
                run.killed |= run.alive;
            }
            machine::Out::Opened => self.latest(id).opened += 1,
            machine::Out::Say(StatusEvent::Exit { .. }) => {
                let run = self.latest(id);
                assert_eq!((run.opened, run.closed), (1, 0), "exit out of place");
                run.exit_said += 1;
            }
            machine::Out::Closed(_) => {
                let run = self.latest(id);
                run.closed += 1;
                let said = (run.opened, run.exit_said, run.closed);
                assert_eq!(said, (1, 1, 1), "opened, exit, closed");
            }
            machine::Out::Ended(run, _) | machine::Out::NeverRan(run, _) => {
                let run = self.runs.get_mut(&run).expect("of a known run");
                assert!(!run.feed_ended, "ended twice");
                run.feed_ended = true;
            }
            machine::Out::Overdue(_) => {
                let late = self.latest(id).ended_at.expect("it ended");
                assert!(self.now >= late + RELEASE, "given up too early");
            }
            machine::Out::Say(_) | machine::Out::Trouble(_) | machine::Out::Trimmed(_) => {}
        }
    }

    fn latest(&mut self, id: ServiceId) -> &mut Run {
        let last = |(run, _): &(&RunId, &mut Run)| run.service == id;
        let found = self.runs.iter_mut().filter(last).last();
        found.expect("words of a service that never ran").1
    }

    fn spawn(&mut self, id: RunId) {
        assert!(self.leaving_since.is_none(), "a start during the shutdown");
        for (other, run) in self.runs.range(..) {
            if other.service != id.service {
                continue;
            }
            assert!(other.number < id.number, "run numbers only grow");
            assert!(!run.ordered && !run.alive, "two processes of one service");
            assert_eq!(run.closed, 1, "the run before is not over");
            let ended = run.ended_at.expect("over");
            let through = run.tree_gone && run.drained;
            assert!(
                through || self.now >= ended + RELEASE,
                "the rest of the run before was not waited for"
            );
            let soonest = ended + Duration::from_millis(100);
            let ordered_end = run.stop_sent || run.killed;
            let meddled = self.meddled.is_some_and(|at| Some(at) >= run.born);
            assert!(ordered_end || meddled || self.now >= soonest, "no backoff");
        }
        self.order_holds(id);
        let starts = self.starts.entry(id.service).or_default();
        starts.push(self.now);
        let now = self.now;
        starts.retain(|start| now.saturating_duration_since(*start) < Duration::from_secs(60));
        assert!(starts.len() <= 4, "more starts than the limit allows");
        self.runs.insert(
            id,
            Run {
                ordered: true,
                born: Some(now),
                ..Run::default()
            },
        );
    }

    fn running(&self, name: &ServiceName) -> Option<(RunId, &Run)> {
        let unit = self.fleet.named(name.as_str())?;
        let id = unit.machine.run();
        let run = self.runs.get(&id)?;
        (run.alive || run.ordered).then_some((id, run))
    }

    fn order_holds(&self, id: RunId) {
        let unit = self.fleet.unit(id.service).expect("known");
        let service = unit.machine.service();
        for name in &service.requires {
            let other = self.fleet.named(name.as_str()).expect("known");
            let simple = other.machine.service().kind == Kind::Simple;
            let up = self.running(name).is_some_and(|(_, run)| run.alive);
            // The shutdown may have begun in the same step, just after this start.
            let done = *other.machine.state() == State::Done || self.fleet.is_leaving();
            assert!(up && simple || done, "{} without {name}", service.name);
        }
        for name in &service.after {
            let wanted = |id: RunId| {
                let unit = self.fleet.unit(id.service);
                unit.is_some_and(|unit| unit.machine.wanted())
            };
            let starting = self
                .running(name)
                .is_some_and(|(id, run)| run.ordered && wanted(id));
            assert!(!starting, "{} before {name}", service.name);
        }
    }

    /// In the shutdown nobody is stopped before those that depend on it.
    fn stop(&mut self, id: RunId) {
        let name = self
            .fleet
            .unit(id.service)
            .map(|u| u.machine.service().name.clone());
        let name = name.expect("known");
        if self.leaving_since.is_some() {
            for unit in self.fleet.units() {
                let service = unit.machine.service();
                let follows = service
                    .requires
                    .iter()
                    .chain(&service.after)
                    .any(|n| *n == name);
                let lives = self.running(&service.name).is_some();
                assert!(!(follows && lives), "{name} before {}", service.name);
            }
        }
        self.runs.get_mut(&id).expect("known").stop_sent = true;
    }

    fn check(&mut self) {
        if self.ended.is_some() {
            let mut out = Vec::new();
            self.fleet.step(self.now, Input::Time, &mut out);
            self.fleet.step(self.now, Input::Shutdown, &mut out);
            assert_eq!(out, [], "an action after the end");
            return;
        }
        if self.fleet.is_leaving() {
            self.leaving_since.get_or_insert(self.now);
        }
        self.nothing_is_left_to_do();
        self.nothing_is_spared();
        for unit in self.fleet.units() {
            let machine = &unit.machine;
            let name = &machine.service().name;
            let waits = match machine.state() {
                State::Stopping { .. }
                | State::Killing { .. }
                | State::Dying { .. }
                | State::BackingOff { .. } => true,
                // A run keeps what it began with.
                State::Starting { ready_by, .. } => ready_by.is_some(),
                State::Up { beat, .. } => beat.is_some(),
                _ => false,
            };
            assert_eq!(
                waits,
                machine.deadline().is_some(),
                "{name}: wait and deadline"
            );
            let lives = self.running(name).is_some_and(|(_, run)| run.alive);
            assert_eq!(lives, machine.life().is_some(), "{name}: process and state");
            let calm = matches!(machine.state(), State::Starting { .. } | State::Up { .. });
            if !machine.wanted() && calm {
                let followed = self.fleet.units().any(|other| {
                    let service = other.machine.service();
                    other.machine.is_active()
                        && service
                            .requires
                            .iter()
                            .chain(&service.after)
                            .any(|n| n == name)
                });
                assert!(followed, "{name} is unwanted, alive and left alone");
            }
        }
    }

    /// A step makes every move there is: another at the same moment finds none, unless a
    /// deadline has passed unnoticed.
    fn nothing_is_left_to_do(&mut self) {
        let mut copy = self.fleet.clone();
        let mut out = Vec::new();
        copy.step(self.now, Input::Time, &mut out);
        let deadline = copy.deadline();
        assert!(
            deadline.is_none_or(|deadline| deadline > self.now),
            "a deadline that comes again at once"
        );
        if self.fleet.deadline() == deadline {
            assert_eq!(out, [], "moves were left");
        }
    }

    /// Patience has ended: nothing lives that was not sent SIGKILL.
    fn nothing_is_spared(&self) {
        for (id, run) in &self.runs {
            let spared = run.alive && !run.kill_sent;
            assert!(!(self.fleet.is_hurried() && spared), "{id:?} was spared");
        }
    }
}

/// The two ends of every play.
impl World {
    /// Everybody answers, nothing fails: then all that can be up is.
    fn calm_down(&mut self) {
        for _ in 0..400 {
            if self.ended.is_some() || self.leaving_since.is_some() {
                return;
            }
            let before = self.trace.len();
            self.cooperate();
            if self.trace.len() == before {
                match self.fleet.deadline() {
                    Some(deadline) if deadline < self.now + PATIENT => {
                        self.now = self.now.max(deadline);
                        self.step(Input::Time);
                    }
                    Some(_) | None => break,
                }
            }
        }
        let stays = |unit: &&Unit| unit.presence == Presence::Stays;
        for unit in self.fleet.units().filter(stays) {
            let machine = &unit.machine;
            let held = self.is_held(machine.service());
            let settled = match machine.state() {
                State::Up { .. } | State::Done | State::Failed { .. } | State::Blocked { .. } => {
                    machine.wanted()
                }
                State::Down => !machine.wanted(),
                State::Waiting => held,
                State::Spawning
                | State::Starting { .. }
                | State::Stopping { .. }
                | State::Killing { .. }
                | State::Dying { .. }
                | State::BackingOff { .. } => false,
            };
            let state = machine.state();
            assert!(
                settled,
                "{} never comes to rest: {state:?}",
                machine.service().name
            );
        }
        assert!(self.asked.is_empty(), "unanswered: {:?}", self.asked);
    }

    /// Requires, directly or not, what was stopped.
    fn is_held(&self, service: &Service) -> bool {
        service.requires.iter().any(|name| {
            let machine = &self.fleet.named(name.as_str()).expect("known").machine;
            !machine.wanted() || self.is_held(machine.service())
        })
    }

    /// What a service in good health says next: that it is ready, that it will be heard of.
    fn expected_word(&self) -> Option<(RunId, Notice)> {
        self.fleet.units().find_map(|unit| {
            let run = unit.machine.run();
            let notice = match unit.machine.state() {
                State::Starting { .. } if unit.machine.service().kind == Kind::Simple => {
                    Notice::Ready
                }
                State::Up { beat, .. } => {
                    let beat = beat.filter(|beat| beat.by < self.now + PATIENT)?;
                    assert!(beat.every < PATIENT);
                    Notice::BeatEvery(2 * PATIENT)
                }
                _ => return None,
            };
            Some((run, notice))
        })
    }

    /// Answers one thing that is waited for.
    fn cooperate(&mut self) {
        if let Some(id) = self.choose(|run| run.ordered) {
            let run = self.runs.get_mut(&id).expect("chosen");
            (run.ordered, run.alive) = (false, true);
            return self.about(id, machine::Input::Spawned { run: id, pid: 7 });
        }
        if let Some((id, notice)) = self.expected_word() {
            return self.about(id, machine::Input::Notice { run: id, notice });
        }
        let oneshots: Vec<RunId> = self
            .runs
            .iter()
            .filter(|(id, run)| {
                let unit = self.fleet.unit(id.service);
                let oneshot =
                    unit.is_some_and(|unit| matches!(unit.machine.state(), State::Starting { .. }));
                run.alive && (oneshot || run.stop_sent || run.kill_sent)
            })
            .map(|(id, _)| *id)
            .collect();
        if let Some(&id) = oneshots.first() {
            let run = self.runs.get_mut(&id).expect("chosen");
            run.alive = false;
            run.ended_at = Some(self.now);
            let exit = Exit::Code(0);
            return self.about(id, machine::Input::Exited { run: id, exit });
        }
        self.tree_gone();
        self.drained();
    }

    /// The end comes in bounded time, whatever the services do.
    fn leave(&mut self) {
        if self.ended.is_none() {
            self.shut_down();
        }
        let since = self.leaving_since.unwrap_or(self.now);
        let overdue = self.now.max(since + SHUTDOWN);
        let limit = overdue + GIVE_UP + Duration::from_secs(1);
        while self.ended.is_none() {
            match self.dice.roll(6) {
                0 => self.answer_spawn(),
                1 if !self.immortal => self.exit(|run| run.kill_sent),
                2 => self.tree_gone(),
                3 => self.drained(),
                _ => {
                    let deadline = self.fleet.deadline().expect("a shutdown has a deadline");
                    self.now = self.now.max(deadline);
                    self.step(Input::Time);
                }
            }
            assert!(self.now <= limit, "the shutdown has no end");
        }
        assert!(self.asked.is_empty(), "unanswered: {:?}", self.asked);
        if !self.hurried && self.agent.main.is_none() && !self.any_exits_the_agent() {
            assert_eq!(self.ended, Some(0));
        }
    }

    fn any_exits_the_agent(&self) -> bool {
        self.fleet
            .units()
            .any(|unit| unit.machine.service().on_failed == OnFailed::Exit)
    }
}

#[test]
fn whatever_happens_the_promises_hold() {
    const PER_PLAY: u32 = 400;
    let events = std::env::var("MODEL_EVENTS")
        .ok()
        .and_then(|events| events.parse::<u64>().ok())
        .unwrap_or(200_000);
    let first = std::env::var("MODEL_SEED")
        .ok()
        .and_then(|seed| seed.parse::<u64>().ok())
        .unwrap_or(0);
    let base = Instant::now();
    for seed in first..first + events / u64::from(PER_PLAY) {
        let mut world = World::new(seed, base);
        let play = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.play(PER_PLAY)));
        if play.is_err() {
            let tail = world.trace.len().saturating_sub(400);
            panic!("MODEL_SEED={seed}\n{}", world.trace[tail..].join("\n"));
        }
    }
}
