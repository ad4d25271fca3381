//! commands of checks and of readiness → processes that end in time, with everything they started.
//!
//! A command runs as its service would: same user, groups, limits and environment, plus
//! `AGENT_TASK`, by which what it leaves behind is known to be its own and not the service's.
//! It has ended for its asker when nothing of it is left.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use super::spawn::{self, Handed, Inherited, PipeSize, What};
use super::tree::{self, Census, Identity};
use crate::config::Service;
use crate::handoff::{CommandWord, Teller};
use crate::service::{Exit, Pid};

/// How long what a command left behind may take to die.
const LEFT_LIMIT: Duration = Duration::from_millis(500);
/// Between two looks at it.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two SIGKILLs of a process that hangs in the kernel.
const STUCK_PAUSE: Duration = Duration::from_millis(500);

/// The variable that marks a command's processes.
const MARK: &str = "AGENT_TASK";

/// One command to be run.
#[derive(Debug)]
pub struct Command {
    pub service: Arc<Service>,
    /// The program, then its arguments.
    pub words: Vec<String>,
    pub output: Output,
    pub limit: Duration,
    pub tell: Teller,
}

/// Whether anybody wants to know what a command says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Its pipes are told with its start, and read until both are closed.
    Heard,
    Unheard,
}

#[derive(Default)]
pub struct Tasks {
    started: u64,
    live: Vec<Task>,
}

struct Task {
    pid: Pid,
    mark: String,
    tell: Teller,
    /// How it ended, once it was reaped, and when what is left is given up.
    ended: Option<(Exit, Instant)>,
    overdue: bool,
    /// When it wants a look: its limit at first.
    look_at: Instant,
    /// What was seen below it when it was killed.
    seen: HashSet<Identity>,
}

impl Tasks {
    pub fn start(&mut self, inherited: &Inherited, command: Command) {
        let Command {
            service,
            words,
            output,
            limit,
            mut tell,
        } = command;
        self.started += 1;
        let mark = self.started.to_string();
        let mut words = words.into_iter();
        let mut service = Service::clone(&service);
        service.executable = words.next().unwrap_or_default();
        service.args = words.collect();
        // A command is not what is to be debugged.
        service.debug = None;
        let nothing = Handed::default();
        let environment = &mut service.process.environment;
        environment.insert(MARK.to_owned(), mark.clone());
        let what = What::Main(&nothing);
        let started = match output {
            Output::Heard => spawn::start(inherited, &service, PipeSize::Kernel)
                .map(|(pid, pipes)| (pid, Some(pipes))),
            Output::Unheard => {
                spawn::launch(inherited, &service, what, None, None).map(|pid| (pid, None))
            }
        };
        match started {
            Ok((pid, pipes)) => {
                if let Some(pipes) = pipes {
                    tell.0(CommandWord::Started(pipes));
                }
                self.live.push(Task {
                    pid,
                    mark,
                    tell,
                    ended: None,
                    overdue: false,
                    look_at: Instant::now() + limit,
                    seen: HashSet::new(),
                });
            }
            Err(failure) => tell.0(CommandWord::NotStarted(failure.to_string())),
        }
    }

    /// Whether a reaped process was a command.
    pub fn reaped(&mut self, pid: Pid, exit: Exit) -> bool {
        let own = |task: &&mut Task| task.pid == pid && task.ended.is_none();
        let Some(task) = self.live.iter_mut().find(own) else {
            return false;
        };
        let now = Instant::now();
        task.ended = Some((exit, now + LEFT_LIMIT));
        task.look_at = now;
        true
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.live.iter().map(|task| task.look_at).min()
    }

    /// Another look at every command whose time has come.
    pub fn look(&mut self, own_pid: Pid) {
        let now = Instant::now();
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let census = Census::take();
        self.live
            .retain_mut(|task| task.look_at > now || !task.is_over(&census, own_pid, now));
    }
}

impl Task {
    /// Kills what is left; true when nothing is.
    fn is_over(&mut self, census: &Census, own_pid: Pid, now: Instant) -> bool {
        let Some((exit, until)) = self.ended else {
            self.overdue = true;
            let below = census.descendants(self.pid);
            let below = below.into_iter().filter_map(tree::stat);
            self.seen.extend(below.map(|stat| stat.id));
            // SAFETY: kill(2) touches no memory. Not reaped, so the number is its own.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            self.kill_left(census, own_pid);
            self.look_at = now + STUCK_PAUSE;
            return false;
        };
        let left = self.kill_left(census, own_pid);
        if left > 0 && now < until {
            self.look_at = now + PAUSE;
            return false;
        }
        if left > 0 {
            warn!("{left} processes of a check are still there after SIGKILL");
        }
        let overdue = self.overdue;
        self.tell.0(CommandWord::Ended { exit, overdue });
        true
    }

    /// What it started: seen below it, or below an adopted process that bears its mark.
    fn kill_left(&mut self, census: &Census, own_pid: Pid) -> usize {
        for child in census.children(own_pid) {
            let own = child != self.pid
                && tree::variable_of(child, MARK).as_deref() == Some(self.mark.as_str());
            if own {
                let below = census.descendants(child);
                let all = std::iter::once(child).chain(below).filter_map(tree::stat);
                self.seen.extend(all.map(|stat| stat.id));
            }
        }
        self.seen
            .retain(|id| tree::stat(id.pid).is_some_and(|now| now.id == *id && !now.dead));
        for id in &self.seen {
            tree::kill(*id);
        }
        self.seen.len()
    }
}
