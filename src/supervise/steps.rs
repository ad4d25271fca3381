//! a run's orders and its deaths → its commands before, its process, its commands after.
//!
//! `pre_start` and `post_stop` run one after the other, as the service's user, in its
//! environment, into its streams; each is given `stop.timeout`. What a command left behind
//! belongs to the run's tree.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;
use tracing::warn;

use super::cgroup::Place;
use super::reap::{Reaper, Run, tell};
use super::spawn::{self, Handed, Launched, What, Writers};
use crate::config::Service;
use crate::event::{DEBUG_SESSION, Event, SpawnFailure};
use crate::handoff::Pipes;
use crate::service::{Exit, Pid, RunId};

/// What of a run its present process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A command of `pre_start`.
    Before(Step),
    /// The main process, stopped and not told of yet: its debugger is on its way.
    Held,
    Main,
    /// A command of `post_stop`.
    After(Step),
    /// Nothing more is started.
    Over,
}

/// A command by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    number: usize,
    limit: Limit,
}

/// When a command is killed, and killed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    until: Instant,
    late: bool,
}

/// Between two SIGKILLs to a command that does not die.
const KILL_AGAIN: Duration = Duration::from_secs(1);

impl Limit {
    fn of(patience: Duration) -> Limit {
        Limit {
            until: Instant::now() + patience,
            late: false,
        }
    }

    fn is_over(&mut self, now: Instant) -> bool {
        if self.until > now {
            return false;
        }
        *self = Limit {
            until: now + KILL_AGAIN,
            late: true,
        };
        true
    }
}

impl Part {
    fn limit(&mut self) -> Option<&mut Limit> {
        match self {
            Part::Before(step) | Part::After(step) => Some(&mut step.limit),
            Part::Held | Part::Main | Part::Over => None,
        }
    }
}

/// What is needed to start the rest of a run.
pub(super) struct Course {
    pub service: Arc<Service>,
    pub part: Part,
    pub handed: Handed,
    /// Kept while something else is to be started.
    pub writers: Option<Writers>,
    /// Its own control group, where there may be one.
    pub place: Option<Place>,
    /// Why its process is being ended before it was told of.
    pub trouble: Option<SpawnFailure>,
}

/// A run's main process on its way to its program.
pub(super) struct Launching {
    run: RunId,
    launched: Launched,
    traced: bool,
    pipes: Option<Pipes>,
}

impl Reaper {
    /// The first process of a run. Where that is its main one, its `exec` is still to be waited for.
    pub(super) fn begin(
        &mut self,
        run: RunId,
        service: Arc<Service>,
        handed: Handed,
        inbox: &Sender<Event>,
    ) -> Option<Launching> {
        let (size, piped) = self.pipe_size();
        let (pipes, writers) = match spawn::output(&service, size) {
            Ok(both) => both,
            Err(failure) => {
                tell(inbox, Event::SpawnFailed { run, failure });
                return None;
            }
        };
        let course = Course {
            part: Part::Main,
            handed,
            writers: Some(writers),
            place: self.cgroups.place(&service),
            trouble: None,
            service,
        };
        let entry = Run::new(course, piped);
        let commands = !entry.course.service.lifecycle.pre_start.is_empty();
        self.runs.insert(run, entry);
        if commands {
            tell(inbox, Event::Opened { run, pipes });
            self.before(run, 0, inbox);
            None
        } else {
            self.main(run, Some(pipes), inbox)
        }
    }

    fn before(&mut self, run: RunId, number: usize, inbox: &Sender<Event>) {
        let Some(entry) = self.runs.get_mut(&run) else {
            return;
        };
        let service = Arc::clone(&entry.course.service);
        let Some(argv) = service.lifecycle.pre_start.get(number) else {
            if let Some(launching) = self.main(run, None, inbox) {
                self.arrive(launching, inbox);
            }
            return;
        };
        let (writers, place) = (entry.course.writers.as_ref(), entry.course.place.as_ref());
        match spawn::launch(
            &self.inherited,
            &service,
            What::Command(argv),
            writers,
            place,
        ) {
            Ok(pid) => {
                let limit = Limit::of(patience(&service));
                entry.course.part = Part::Before(Step { number, limit });
                entry.lives(pid);
                self.by_pid.insert(pid, run);
            }
            Err(failure) => {
                let stage = format!("pre_start: {}", failure.stage);
                self.fail(run, SpawnFailure { stage, ..failure }, inbox);
            }
        }
    }

    fn main(
        &mut self,
        run: RunId,
        pipes: Option<Pipes>,
        inbox: &Sender<Event>,
    ) -> Option<Launching> {
        let service = Arc::clone(&self.runs.get(&run)?.course.service);
        if let Some(debug) = &service.debug {
            self.hold(run, debug, pipes, inbox);
            return None;
        }
        let traced = self.is_to_be_traced(&service);
        let course = &mut self.runs.get_mut(&run)?.course;
        course.part = Part::Main;
        let what = What::Main(&course.handed);
        let tracer = self.tracer.as_deref_mut().filter(|_| traced);
        match spawn::set_off(
            &self.inherited,
            &service,
            what,
            course.writers.as_ref(),
            course.place.as_ref(),
            tracer.map(|tracer| tracer as _),
        ) {
            Ok(launched) => {
                self.by_pid.insert(launched.pid, run);
                Some(Launching {
                    run,
                    launched,
                    traced,
                    pipes,
                })
            }
            Err(failure) => {
                self.fail(run, failure, inbox);
                None
            }
        }
    }

    /// Its program runs, or does not.
    pub(super) fn arrive(&mut self, launching: Launching, inbox: &Sender<Event>) {
        let Launching {
            run,
            launched,
            traced,
            pipes,
        } = launching;
        let Some(entry) = self.runs.get_mut(&run) else {
            return;
        };
        let service = Arc::clone(&entry.course.service);
        let (pid, untraced) = (launched.pid, launched.untraced);
        let tracer = self.tracer.as_deref_mut().filter(|_| traced);
        match launched.arrive(&service, tracer.map(|tracer| tracer as _)) {
            Ok(pid) => {
                Self::keep_only_what_follows(&mut entry.course);
                entry.lives(pid);
                if let Some(why) = untraced {
                    self.tell_untraced(&service, why);
                }
                tell(inbox, Event::Spawned { run, pid, pipes });
            }
            Err(failure) => {
                self.fail(run, failure, inbox);
                // An orphan like any other.
                self.by_pid.remove(&pid);
            }
        }
    }

    /// The run's main process is under way, and what only its start needed goes.
    pub(super) fn keep_only_what_follows(course: &mut Course) {
        if course.service.lifecycle.post_stop.is_empty() {
            course.writers = None;
        }
        course.handed = Handed::default();
    }

    /// There will be no main process; what commands left behind goes too.
    pub(super) fn fail(&mut self, run: RunId, failure: SpawnFailure, inbox: &Sender<Event>) {
        self.sweep(run);
        self.runs.remove(&run);
        tell(inbox, Event::SpawnFailed { run, failure });
    }

    /// The present process of a run has ended, and is not its main one.
    pub(super) fn step_ended(&mut self, run: RunId, exit: Exit, inbox: &Sender<Event>) {
        let Some(entry) = self.runs.get_mut(&run) else {
            return;
        };
        let service = Arc::clone(&entry.course.service);
        match entry.course.part {
            Part::Before(step) if exit.is_success() => self.before(run, step.number + 1, inbox),
            Part::Before(Step { number, limit }) => {
                let name = program(&service.lifecycle.pre_start, number);
                let how = how(exit, limit.late, patience(&service));
                let failure = SpawnFailure {
                    stage: format!("pre_start: {name} {how}"),
                    errno: 0,
                };
                self.fail(run, failure, inbox);
            }
            Part::After(Step { number, limit }) => {
                if !exit.is_success() {
                    let name = program(&service.lifecycle.post_stop, number);
                    let how = how(exit, limit.late, patience(&service));
                    warn!(service = %service.name, "post_stop: {name} {how}");
                }
                self.after(run, number + 1);
            }
            Part::Held => {
                let failure = entry.course.trouble.take().unwrap_or_else(|| SpawnFailure {
                    stage: format!(
                        "{DEBUG_SESSION}the process {}",
                        how(exit, false, Duration::ZERO)
                    ),
                    errno: 0,
                });
                self.fail(run, failure, inbox);
            }
            Part::Main | Part::Over => {}
        }
    }

    /// The command of `post_stop` with that number; without one, the run's tree is looked at
    /// for a last time.
    pub(super) fn after(&mut self, run: RunId, number: usize) {
        let Some(entry) = self.runs.get_mut(&run) else {
            return;
        };
        let course = &mut entry.course;
        let service = Arc::clone(&course.service);
        for (number, argv) in service.lifecycle.post_stop.iter().enumerate().skip(number) {
            let what = What::Command(argv);
            match spawn::launch(
                &self.inherited,
                &service,
                what,
                course.writers.as_ref(),
                course.place.as_ref(),
            ) {
                Ok(pid) => {
                    let limit = Limit::of(patience(&service));
                    course.part = Part::After(Step { number, limit });
                    entry.lives(pid);
                    self.by_pid.insert(pid, run);
                    return;
                }
                Err(failure) => warn!(service = %service.name, "post_stop: {failure}"),
            }
        }
        course.part = Part::Over;
        course.writers = None;
        entry.look_again(Instant::now());
    }

    /// When a command has taken too long.
    pub(super) fn next_patience(&mut self) -> Option<Instant> {
        self.limits().map(|(_, limit)| limit.until).min()
    }

    /// SIGKILL to every command that has taken too long, and to its process group: each
    /// leads one. Until it is reaped the number is its own.
    pub(super) fn lose_patience(&mut self) {
        let now = Instant::now();
        for (pid, limit) in self.limits() {
            if limit.is_over(now) {
                // SAFETY: kill(2) touches no memory.
                unsafe { libc::kill(-pid, libc::SIGKILL) };
            }
        }
    }

    fn limits(&mut self) -> impl Iterator<Item = (Pid, &mut Limit)> {
        let steps = self.runs.values_mut().filter(|run| !run.reaped);
        steps.filter_map(|run| Some((run.pid, run.course.part.limit()?)))
    }
}

fn patience(service: &Service) -> Duration {
    service.stop.timeout
}

fn program(commands: &[Vec<String>], number: usize) -> &str {
    let argv = commands.get(number).and_then(|argv| argv.first());
    argv.map_or("", String::as_str)
}

fn how(exit: Exit, late: bool, patience: Duration) -> String {
    match (late, exit.signal()) {
        (true, _) => format!("took longer than {patience:?}"),
        (false, Some(signal)) => format!("was ended by {signal}"),
        (false, None) => format!("exited with code {}", exit.code()),
    }
}
