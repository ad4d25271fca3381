//! one service: input, now → next state, and what is to be done about it.
//!
//! The states and their order are told in `mod.rs`. A machine never has two processes, never
//! waits without a deadline for anything but an answer that is bound to come (from the main
//! thread) or for what it depends on, and ignores whatever comes from a run that is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::policy::{End, History, Verdict};
pub use super::state::{Input, Left, Life, Next, Out, State, Why};
use crate::config::{Kind, Service};
use crate::event::SpawnFailure;
use crate::handoff;
use crate::record::StatusEvent;
use crate::service::{Exit, Pid, RunId, ServiceId, ServiceName, Signal};

/// After an exit, the rest of the tree and of the output must be through by then: logs
/// drains for at most 500 ms, the reaper kills for as long.
pub const RELEASE: Duration = Duration::from_millis(700);
/// SIGKILL is repeated while a process does not die.
const KILL_AGAIN: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct Machine {
    id: ServiceId,
    service: Arc<Service>,
    want: bool,
    state: State,
    /// Starts so far: the number of the latest run.
    number: u32,
    history: History,
    exit: Option<Exit>,
    /// The last end that counts as one, in words.
    last_end: String,
}

impl Machine {
    pub fn new(id: ServiceId, service: Arc<Service>) -> Machine {
        Machine {
            id,
            service,
            want: false,
            state: State::Down,
            number: 0,
            history: History::default(),
            exit: None,
            last_end: String::new(),
        }
    }

    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// From now on; a live process keeps what it was started with.
    pub fn reconfigure(&mut self, service: Arc<Service>) {
        self.service = service;
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn wanted(&self) -> bool {
        self.want
    }

    /// The latest run; number 0 before the first.
    pub fn run(&self) -> RunId {
        RunId {
            service: self.id,
            number: self.number,
        }
    }

    /// Starts after the first one.
    pub fn restarts(&self) -> u64 {
        u64::from(self.number.saturating_sub(1))
    }

    /// How the last run ended; `None` before the first end.
    pub fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// How the last run ended that nobody had ordered to end, in words.
    pub fn last_end(&self) -> &str {
        &self.last_end
    }

    pub fn life(&self) -> Option<Life> {
        match &self.state {
            State::Starting { life }
            | State::Up { life }
            | State::Stopping { life, .. }
            | State::Killing { life, .. } => Some(*life),
            State::Down
            | State::Waiting
            | State::Spawning
            | State::Dying { .. }
            | State::BackingOff { .. }
            | State::Failed { .. }
            | State::Blocked { .. }
            | State::Done => None,
        }
    }

    /// From the order to start until nothing of the run is left.
    pub fn is_active(&self) -> bool {
        self.life().is_some() || matches!(self.state, State::Spawning | State::Dying { .. })
    }

    /// Wanted, and on its way to being ready without having failed on it.
    pub fn is_coming(&self) -> bool {
        self.want
            && match &self.state {
                State::Waiting | State::Spawning | State::Starting { .. } => true,
                State::Stopping { why, .. } | State::Killing { why, .. } => *why == Why::Asked,
                State::Dying { next, .. } => *next == Next::AsWanted,
                State::Down
                | State::Up { .. }
                | State::BackingOff { .. }
                | State::Failed { .. }
                | State::Blocked { .. }
                | State::Done => false,
            }
    }

    pub fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed { .. } | State::Blocked { .. })
    }

    /// As operators see it.
    pub fn shown(&self) -> handoff::State {
        match &self.state {
            State::Down => handoff::State::Stopped,
            State::Waiting => handoff::State::Waiting,
            State::Spawning | State::Starting { .. } => handoff::State::Starting,
            State::Up { .. } => handoff::State::Ready,
            State::Stopping { .. } | State::Killing { .. } | State::Dying { .. } => {
                handoff::State::Stopping
            }
            State::BackingOff { .. } => handoff::State::Backoff,
            State::Failed { .. } | State::Blocked { .. } => handoff::State::Failed,
            State::Done => handoff::State::Done,
        }
    }

    /// Why it shows `failed`.
    pub fn reason(&self) -> Option<String> {
        match &self.state {
            State::Failed { reason } => Some(reason.clone()),
            State::Blocked { by } => Some(format!("requires {by}, which failed")),
            State::Down
            | State::Waiting
            | State::Spawning
            | State::Starting { .. }
            | State::Up { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Dying { .. }
            | State::BackingOff { .. }
            | State::Done => None,
        }
    }

    /// In its second failed start in a row, or a later one.
    pub fn is_looping(&self, now: Instant) -> bool {
        let up = self
            .life()
            .map(|life| now.saturating_duration_since(life.since));
        self.history.is_looping(&self.service, up)
    }

    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Stopping { kill_at, .. } => Some(*kill_at),
            State::Killing { again_at, .. } => Some(*again_at),
            State::Dying { release_by, .. } => Some(*release_by),
            State::BackingOff { until } => Some(*until),
            State::Down
            | State::Waiting
            | State::Spawning
            | State::Starting { .. }
            | State::Up { .. }
            | State::Failed { .. }
            | State::Blocked { .. }
            | State::Done => None,
        }
    }

    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Out>) {
        match input {
            Input::Start => self.start(),
            Input::Unwant => self.unwant(),
            Input::Begin => self.begin(now, out),
            Input::Halt => self.halt(now, Why::Asked, out),
            Input::Block { by } => self.block(by, out),
            Input::Unblock => {
                if matches!(self.state, State::Blocked { .. }) {
                    self.state = State::Waiting;
                }
            }
            Input::Kill => self.kill(now, out),
            Input::Spawned { run, pid } if run == self.run() => self.spawned(now, pid, out),
            Input::SpawnFailed { run, failure } if run == self.run() => {
                self.spawn_failed(now, &failure, out);
            }
            Input::Exited { run, exit } if run == self.run() => self.exited(now, exit, out),
            Input::TreeGone { run } if run == self.run() => {
                if let State::Dying { left, .. } = &mut self.state {
                    left.tree = false;
                    self.release(now, out);
                }
            }
            Input::Drained { run } if run == self.run() => {
                if let State::Dying { left, .. } = &mut self.state {
                    left.output = false;
                    self.release(now, out);
                }
            }
            Input::Ready { run } if run == self.run() => self.ready(out),
            // A run that is over.
            Input::Spawned { .. }
            | Input::SpawnFailed { .. }
            | Input::Exited { .. }
            | Input::TreeGone { .. }
            | Input::Drained { .. }
            | Input::Ready { .. } => {}
            Input::Sick { what } => {
                // Who is to end anyway ends in its turn.
                if self.want && matches!(self.state, State::Starting { .. } | State::Up { .. }) {
                    self.halt(now, Why::Sick(what), out);
                }
            }
            Input::Time => self.time(now, out),
        }
    }

    fn start(&mut self) {
        self.want = true;
        self.history.forget();
        match &mut self.state {
            State::Down
            | State::BackingOff { .. }
            | State::Failed { .. }
            | State::Blocked { .. }
            | State::Done => self.state = State::Waiting,
            State::Dying { next, .. } => *next = Next::AsWanted,
            State::Stopping { why, .. } | State::Killing { why, .. } => *why = Why::Asked,
            State::Waiting | State::Spawning | State::Starting { .. } | State::Up { .. } => {}
        }
    }

    fn unwant(&mut self) {
        self.want = false;
        match &self.state {
            State::Waiting
            | State::BackingOff { .. }
            | State::Failed { .. }
            | State::Blocked { .. }
            | State::Done => self.state = State::Down,
            // What lives is halted when its turn has come.
            State::Down
            | State::Spawning
            | State::Starting { .. }
            | State::Up { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Dying { .. } => {}
        }
    }

    fn begin(&mut self, now: Instant, out: &mut Vec<Out>) {
        if self.state != State::Waiting {
            return;
        }
        self.number = self.number.saturating_add(1);
        self.history.started(&self.service, now);
        self.state = State::Spawning;
        out.push(Out::Spawn(self.run()));
    }

    fn block(&mut self, by: ServiceName, out: &mut Vec<Out>) {
        if self.state == State::Waiting {
            self.state = State::Blocked { by };
            self.say_failed(out);
        }
    }

    fn say_failed(&self, out: &mut Vec<Out>) {
        if let Some(reason) = self.reason() {
            out.push(Out::Say(StatusEvent::Failed { reason }));
        }
    }

    fn spawned(&mut self, now: Instant, pid: Pid, out: &mut Vec<Out>) {
        if self.state != State::Spawning {
            return;
        }
        out.push(Out::Opened);
        out.push(Out::Say(StatusEvent::Start { pid }));
        let life = Life { pid, since: now };
        match self.service.kind {
            Kind::Simple => {
                self.state = State::Up { life };
                out.push(Out::Say(StatusEvent::Ready));
            }
            Kind::Oneshot => {
                self.state = State::Starting { life };
            }
        }
    }

    fn spawn_failed(&mut self, now: Instant, failure: &SpawnFailure, out: &mut Vec<Out>) {
        if self.state != State::Spawning {
            return;
        }
        let exit = failure.exit();
        out.push(Out::Opened);
        out.push(Out::Trouble(format!("Error starting command: {failure}")));
        out.push(Out::NeverRan(self.run(), exit));
        let left = Left {
            tree: false,
            output: true,
        };
        let end = End {
            good: false,
            up: Duration::ZERO,
            words: failure.to_string(),
        };
        self.ended(now, exit, self.want.then_some(end), left, out);
    }

    fn ready(&mut self, out: &mut Vec<Out>) {
        if let State::Starting { life } = self.state
            && self.service.kind != Kind::Oneshot
        {
            self.state = State::Up { life };
            out.push(Out::Say(StatusEvent::Ready));
        }
    }

    fn halt(&mut self, now: Instant, why: Why, out: &mut Vec<Out>) {
        match self.state {
            State::Starting { life } | State::Up { life } => {
                let stop = self.service.stop;
                let run = self.run();
                out.push(Out::Say(StatusEvent::Stop {
                    signal: stop.signal,
                }));
                out.push(Out::Signal(run, stop.signal));
                // A stopped process hears nothing but this.
                out.push(Out::Signal(run, Signal::CONT));
                self.state = State::Stopping {
                    life,
                    kill_at: now + stop.timeout,
                    why,
                };
            }
            State::BackingOff { .. } => self.state = State::Waiting,
            State::Down
            | State::Waiting
            | State::Spawning
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Dying { .. }
            | State::Failed { .. }
            | State::Blocked { .. }
            | State::Done => {}
        }
    }

    fn kill(&mut self, now: Instant, out: &mut Vec<Out>) {
        let (life, why) = match &self.state {
            State::Starting { life } | State::Up { life } => (*life, Why::Asked),
            State::Stopping { life, why, .. } => (*life, why.clone()),
            State::Down
            | State::Waiting
            | State::Spawning
            | State::Killing { .. }
            | State::Dying { .. }
            | State::BackingOff { .. }
            | State::Failed { .. }
            | State::Blocked { .. }
            | State::Done => return,
        };
        out.push(Out::Say(StatusEvent::Stop {
            signal: Signal::KILL,
        }));
        out.push(Out::KillTree(self.run()));
        self.state = State::Killing {
            life,
            again_at: now + KILL_AGAIN,
            why,
        };
    }

    fn exited(&mut self, now: Instant, exit: Exit, out: &mut Vec<Out>) {
        let Some(life) = self.life() else {
            return;
        };
        let up = now.saturating_duration_since(life.since);
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
        out.push(Out::KillTree(run));
        out.push(Out::Ended(run, exit));
        let left = Left {
            tree: true,
            output: true,
        };
        self.ended(now, exit, end.filter(|_| self.want), left, out);
    }

    /// Decides what follows, and waits for the rest of the run. `end` is `None`
    /// where the end was ordered: then nothing is held against the service.
    fn ended(
        &mut self,
        now: Instant,
        exit: Exit,
        end: Option<End>,
        left: Left,
        out: &mut Vec<Out>,
    ) {
        self.exit = Some(exit);
        out.push(Out::Say(StatusEvent::Exit { exit }));
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
        };
    }

    /// The run is over when nothing of it is left, or its time is up.
    fn release(&mut self, now: Instant, out: &mut Vec<Out>) {
        let State::Dying {
            exit,
            release_by,
            left,
            next,
        } = &self.state
        else {
            return;
        };
        if left.tree || left.output {
            if now < *release_by {
                return;
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

    fn time(&mut self, now: Instant, out: &mut Vec<Out>) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        match &self.state {
            State::Stopping { .. } => self.kill(now, out),
            State::Killing { life, why, .. } => {
                self.state = State::Killing {
                    life: *life,
                    again_at: now + KILL_AGAIN,
                    why: why.clone(),
                };
                out.push(Out::KillTree(self.run()));
            }
            State::Dying { .. } => self.release(now, out),
            State::BackingOff { .. } => self.state = State::Waiting,
            State::Down
            | State::Waiting
            | State::Spawning
            | State::Starting { .. }
            | State::Up { .. }
            | State::Failed { .. }
            | State::Blocked { .. }
            | State::Done => {}
        }
    }
}
