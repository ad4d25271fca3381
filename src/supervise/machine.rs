//! one service: input, now → next state, and what is to be done about it.
//!
//! The states and their order are told in `mod.rs`. A machine never has two processes, never
//! waits without a deadline for anything but an answer that is bound to come (from the main
//! thread) or for what it depends on, and ignores whatever comes from a run that is over.

mod over;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::notice::Notice;
use super::policy::{End, History};
pub use super::state::{Beat, Input, Left, Life, Next, Out, State, Why};
use crate::config::{Kind, Service};
use crate::event::SpawnFailure;
use crate::record::StatusEvent;
use crate::service::{Exit, Pid, RunId, ServiceId, ServiceName, Signal};

/// After an exit, the rest of the tree and of the output must be through by then: logs
/// drains for at most 500 ms, the reaper kills for as long.
pub const RELEASE: Duration = Duration::from_millis(700);
/// SIGKILL is repeated while a process does not die.
const KILL_AGAIN: Duration = Duration::from_secs(1);
/// What a service said that reloads, until it is ready again.
const RELOADING: &str = "reloading";

#[derive(Clone, Debug)]
pub struct Machine {
    id: ServiceId,
    service: Arc<Service>,
    pub(super) want: bool,
    pub(super) state: State,
    /// Starts so far: the number of the latest run.
    number: u32,
    pub(super) history: History,
    exit: Option<Exit>,
    /// The last end that counts as one, in words.
    last_end: String,
    /// What the kernel said about the end that comes next.
    out_of_memory: bool,
    /// What the present run says of itself.
    said: String,
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
            out_of_memory: false,
            said: String::new(),
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

    /// What the latest run said last about itself.
    pub fn said(&self) -> &str {
        &self.said
    }

    /// How the last run ended that nobody had ordered to end, in words.
    pub fn last_end(&self) -> &str {
        &self.last_end
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
                self.tree_gone(now, out);
            }
            Input::Drained { run } if run == self.run() => {
                if let State::Dying { left, .. } = &mut self.state {
                    left.output = false;
                    self.end_lingering(out);
                    self.release(now, out);
                }
            }
            Input::Ready { run } if run == self.run() => self.ready(now, out),
            Input::Notice { run, notice } if run == self.run() => self.notice(now, notice, out),
            Input::OutOfMemory { run } if run == self.run() => self.out_of_memory = true,
            // A run that is over.
            Input::Spawned { .. }
            | Input::SpawnFailed { .. }
            | Input::Exited { .. }
            | Input::TreeGone { .. }
            | Input::Drained { .. }
            | Input::Notice { .. }
            | Input::OutOfMemory { .. }
            | Input::Ready { .. } => {}
            Input::Sick { what } => {
                // Who is to end anyway ends in its turn; who stands still in a debugger is not sick.
                if self.want
                    && self.service.debug.is_none()
                    && matches!(self.state, State::Starting { .. } | State::Up { .. })
                {
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
        self.said.clear();
        self.out_of_memory = false;
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
        let life = Life {
            pid,
            since: now,
            ready: None,
        };
        let readiness = self.service.lifecycle.ready.as_ref();
        // A oneshot is done, never ready.
        let readiness = readiness.filter(|_| self.service.kind == Kind::Simple);
        let ready_by = readiness.map(|ready| now + ready.timeout);
        self.state = State::Starting {
            life,
            // Whoever steps through it takes their time.
            ready_by: ready_by.filter(|_| self.service.debug.is_none()),
        };
        if ready_by.is_none() {
            self.ready(now, out);
        }
    }

    fn spawn_failed(&mut self, now: Instant, failure: &SpawnFailure, out: &mut Vec<Out>) {
        if self.state != State::Spawning {
            return;
        }
        let exit = failure.exit();
        out.push(Out::Opened);
        out.push(Out::Trouble(failure.sentence()));
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

    fn ready(&mut self, now: Instant, out: &mut Vec<Out>) {
        if let State::Starting { life, .. } = self.state
            && self.service.kind != Kind::Oneshot
        {
            let ready = Some(now);
            let watchdog = self.service.lifecycle.watchdog;
            let watchdog = watchdog.filter(|_| self.service.debug.is_none());
            let beat = watchdog.map(|every| Beat {
                every,
                by: now + every,
            });
            let life = Life { ready, ..life };
            self.state = State::Up { life, beat };
            out.push(Out::Say(StatusEvent::Ready));
        }
    }

    fn notice(&mut self, now: Instant, notice: Notice, out: &mut Vec<Out>) {
        match (notice, &mut self.state) {
            (Notice::Ready, _) => {
                self.ready(now, out);
                if self.said == RELOADING {
                    self.said.clear();
                }
            }
            (
                Notice::Beat,
                State::Up {
                    beat: Some(beat), ..
                },
            ) => beat.by = now + beat.every,
            (Notice::BeatEvery(every), State::Up { beat, .. }) => {
                *beat = Some(Beat {
                    every,
                    by: now + every,
                });
            }
            (Notice::Hung, State::Up { .. } | State::Starting { .. }) => {
                self.hung("called for its watchdog".to_owned(), now, out);
            }
            (
                Notice::Extend(by),
                State::Starting {
                    ready_by: Some(at), ..
                },
            )
            | (Notice::Extend(by), State::Stopping { kill_at: at, .. }) => {
                *at = (*at).max(now + by)
            }
            (Notice::Status(text), _) => self.said = text,
            (Notice::Reloading, _) => self.said = RELOADING.to_owned(),
            (Notice::Stopping, _) => self.said = "stopping".to_owned(),
            (Notice::MainPid(new), state) => match state {
                State::Starting { life, .. }
                | State::Up { life, .. }
                | State::Stopping { life, .. }
                | State::Killing { life, .. } => life.pid = new,
                State::Down
                | State::Waiting
                | State::Spawning
                | State::Dying { .. }
                | State::BackingOff { .. }
                | State::Failed { .. }
                | State::Blocked { .. }
                | State::Done => {}
            },
            // Too late, too early, or not asked for.
            (Notice::Beat | Notice::BeatEvery(_) | Notice::Hung | Notice::Extend(_), _) => {}
        }
    }

    /// Killed at once: what does not answer its watchdog does not answer a signal either.
    fn hung(&mut self, what: String, now: Instant, out: &mut Vec<Out>) {
        let (State::Starting { life, .. } | State::Up { life, .. }) = self.state else {
            return;
        };
        out.push(Out::Trouble(format!("The process {what} and is killed.")));
        out.push(Out::Say(StatusEvent::Stop {
            signal: Signal::KILL,
        }));
        out.push(Out::Hung(self.run()));
        out.push(Out::KillTree(self.run()));
        self.state = State::Killing {
            life,
            again_at: now + KILL_AGAIN,
            why: match self.want {
                true => Why::Sick(what),
                false => Why::Asked,
            },
        };
    }

    fn halt(&mut self, now: Instant, why: Why, out: &mut Vec<Out>) {
        match self.state {
            State::Starting { life, .. } | State::Up { life, .. } => {
                let stop = self.service.stop;
                let run = self.run();
                match why {
                    Why::Sick(_) => out.push(Out::Hung(run)),
                    Why::Asked => {}
                }
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
            State::Starting { life, .. } | State::Up { life, .. } => (*life, Why::Asked),
            State::Stopping { life, why, .. } => (*life, why.clone()),
            State::Dying { .. } => return self.end_lingering(out),
            State::Down
            | State::Waiting
            | State::Spawning
            | State::Killing { .. }
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
            // Who is to end anyway ends in its turn; should it be wanted again, it has the
            // whole time again.
            State::Starting { life, .. } if !self.want => {
                let timeout = self.service.lifecycle.ready.as_ref().map(|r| r.timeout);
                self.state = State::Starting {
                    life: *life,
                    ready_by: timeout.map(|timeout| now + timeout),
                };
            }
            State::Starting { .. } => {
                let timeout = self.service.lifecycle.ready.as_ref().map(|r| r.timeout);
                let what = format!("not ready within {:?}", timeout.unwrap_or_default());
                out.push(Out::Trouble(format!("The process is {what}.")));
                self.halt(now, Why::Sick(what), out);
            }
            State::Up { beat, .. } => {
                let every = beat.map(|beat| beat.every).unwrap_or_default();
                self.hung(format!("missed its watchdog of {every:?}"), now, out);
            }
            State::Down
            | State::Waiting
            | State::Spawning
            | State::Failed { .. }
            | State::Blocked { .. }
            | State::Done => {}
        }
    }
}
