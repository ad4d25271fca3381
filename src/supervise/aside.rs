//! orders about processes beside the services' lives → helpers run, processes copied or let go, stops answered.
//!
//! What tracing and the agent's own child processes add to the reaper. A stop never ends a run: only wait statuses of
//! ends do.

use std::time::{Duration, Instant};

use rustix::process::{Pid as Handle, Signal as Kill, kill_process};
use tokio::sync::mpsc::Sender;
use tracing::warn;

use super::reap::{Reaper, tell};
use super::spawn::Untraced;
use super::steps::Part;
use super::{spawn, tree};
use crate::clock;
use crate::config::{Capture, Service};
use crate::event::Event;
use crate::handoff::{CoreFile, Helper, HelperEvent, Leads, Snapshot};
use crate::request::RequestId;
use crate::service::{Exit, Pid, RunId, Signal};

/// A process of our own.
pub(super) struct Aside {
    helper: Helper,
    pub(super) until: Instant,
}

impl Aside {
    pub(super) fn ended(mut self, exit: Exit) {
        (self.helper.tell)(HelperEvent::Ended(exit));
    }
}

/// Once killed it ends at once; this is only not to kill in a loop.
const KILLED: std::time::Duration = std::time::Duration::from_secs(10);

impl Reaper {
    pub(super) fn help(&mut self, mut helper: Helper) {
        match spawn::start_helper(&self.inherited, &helper) {
            Ok((pid, pipes)) => {
                let until = Instant::now() + helper.limit;
                (helper.tell)(HelperEvent::Started(pipes));
                self.aside.insert(pid, Aside { helper, until });
            }
            Err(failure) => (helper.tell)(HelperEvent::Failed(failure)),
        }
    }

    pub(super) fn end_slow_helpers(&mut self) {
        let now = Instant::now();
        for (pid, aside) in &mut self.aside {
            if aside.until > now {
                continue;
            }
            aside.until = now + KILLED;
            // Not reaped, so the number is its own.
            if let Some(handle) = Handle::from_raw(*pid) {
                let _ = kill_process(handle, Kill::KILL);
            }
        }
    }

    pub(super) fn stopped(&mut self, tid: Pid, status: i32, inbox: &Sender<Event>) {
        let Some(tracer) = &mut self.tracer else {
            return;
        };
        let Some(snapshot) = tracer.stopped(tid, status, &mut self.ended) else {
            return;
        };
        self.captured.insert(snapshot.pid);
        match self.run_of(snapshot.pid) {
            Some(run) => tell(inbox, Event::Crashed { run, snapshot }),
            None => warn!("process {} crashed, and is nobody's", snapshot.pid),
        }
    }

    /// A main process crashed, and nobody has copied it: that much is told. `status` is what wait4(2) says.
    pub(super) fn tell_unseen(&mut self, run: RunId, pid: Pid, status: i32, inbox: &Sender<Event>) {
        let Some(entry) = self.runs.get(&run).filter(|entry| entry.pid == pid) else {
            return;
        };
        let service = &entry.course.service;
        let is_wanted = service.capture.how != Capture::Off && service.debug.is_none();
        let is_its_own = entry.course.part == Part::Main && !entry.is_being_ended();
        if !libc::WIFSIGNALED(status) || !is_wanted || !is_its_own {
            return;
        }
        let signal = Signal(libc::WTERMSIG(status));
        let mut is_handed_over = || {
            let tracer = self.tracer.as_mut();
            libc::WCOREDUMP(status) && tracer.is_some_and(|tracer| tracer.is_spared())
        };
        if !signal.is_crash() || is_handed_over() {
            return;
        }
        let trouble = match signal.0 {
            libc::SIGSYS => {
                "the kernel ended it without a stop, as a seccomp filter's SECCOMP_RET_KILL_PROCESS does"
            }
            _ => "it was not traced at its end, and the kernel did not hand it over",
        };
        let snapshot = Box::new(Snapshot {
            pid,
            signal: Some(signal),
            at_ms: clock::now_ms(),
            site: String::new(),
            core: CoreFile::Missing,
            leads: Leads::default(),
            held: Duration::ZERO,
            trouble: Some(trouble.to_owned()),
        });
        tell(inbox, Event::Crashed { run, snapshot });
    }

    /// The run that a process belongs to: its own, or one that it was forked by, or that its environment names.
    fn run_of(&self, pid: Pid) -> Option<RunId> {
        const GENERATIONS: usize = 64;
        let mut ancestor = pid;
        for _ in 0..GENERATIONS {
            if let Some(run) = self.by_pid.get(&ancestor) {
                return Some(*run);
            }
            match tree::stat(ancestor) {
                Some(stat) if stat.parent > 1 => ancestor = stat.parent,
                Some(_) | None => break,
            }
        }
        let name = tree::service_of(pid)?;
        let named =
            |(_, run): &(&RunId, &super::reap::Run)| run.course.service.name.as_str() == name;
        self.runs
            .iter()
            .filter(named)
            .map(|(id, _)| *id)
            .max_by_key(|id| id.number)
    }

    /// A process that has not been reaped.
    fn living(&self, run: RunId) -> Result<Pid, String> {
        match self.runs.get(&run) {
            Some(entry) if !entry.reaped && entry.course.part == Part::Main => Ok(entry.pid),
            Some(_) | None => Err("it is not running".to_owned()),
        }
    }

    pub(super) fn copy(&mut self, id: RequestId, run: RunId, inbox: &Sender<Event>) {
        let result = match (self.living(run), &mut self.tracer) {
            (Ok(pid), Some(tracer)) => tracer.snapshot(pid, &mut self.ended),
            (Ok(_), None) => Err("processes cannot be looked into".to_owned()),
            (Err(why), _) => Err(why),
        };
        tell(inbox, Event::Stacks { id, run, result });
    }

    /// Evidence first, and not for long: its end is the next order.
    pub(super) fn hung(&mut self, run: RunId, inbox: &Sender<Event>) {
        let wanted =
            self.runs
                .get(&run)
                .is_some_and(|entry| match entry.course.service.capture.how {
                    Capture::Auto | Capture::Ptrace | Capture::Core => true,
                    Capture::Off => false,
                });
        let (true, Ok(pid), Some(tracer)) = (wanted, self.living(run), &mut self.tracer) else {
            return;
        };
        match tracer.snapshot(pid, &mut self.ended) {
            Ok(snapshot) => tell(inbox, Event::Hung { run, snapshot }),
            Err(why) => warn!("what it did while it hung is not known: {why}"),
        }
    }

    pub(super) fn detach(&mut self, id: RequestId, run: RunId, inbox: &Sender<Event>) {
        let result = match (self.living(run), &mut self.tracer) {
            (Ok(pid), Some(tracer)) => tracer.detach(pid, &mut self.ended),
            (Ok(_), None) => Err("it is not traced".to_owned()),
            (Err(why), _) => Err(why),
        };
        tell(inbox, Event::Detached { id, result });
    }

    /// Once where it is only a default: it is the same for every service.
    pub(super) fn tell_untraced(&mut self, service: &Service, why: Untraced) {
        let errno = match why {
            Untraced::Refused(errno) => errno,
            Untraced::Privileged => {
                if !self.told_privileged.insert(service.name.clone()) {
                    return;
                }
                warn!(
                    service = %service.name,
                    "it is not traced, and a crash ends it unexplained: without CAP_SYS_PTRACE of the agent's \
                     that would take the privileges of its file away (set-user-ID, capabilities)"
                );
                return;
            }
        };
        let why = std::io::Error::from_raw_os_error(errno);
        match service.capture.how {
            Capture::Auto if self.told_untraced => {}
            Capture::Auto => {
                self.told_untraced = true;
                warn!("tracing is not permitted here ({why}): crashes end services unexplained");
            }
            Capture::Ptrace => {
                warn!(service = %service.name, "it cannot be traced ({why}): a crash ends it unexplained");
            }
            Capture::Core | Capture::Off => {}
        }
    }

    /// Whether a service is to be traced now.
    pub(super) fn is_to_be_traced(&mut self, service: &Service) -> bool {
        let Some(tracer) = &mut self.tracer else {
            return false;
        };
        match service.capture.how {
            Capture::Auto => !tracer.is_spared(),
            Capture::Ptrace => true,
            Capture::Core if self.told_unhanded || tracer.is_spared() => false,
            Capture::Core => {
                self.told_unhanded = true;
                warn!(
                    "the kernel does not hand crashes to this agent (kernel.core_pattern, \
                     kernel.core_pipe_limit): with capture = \"core\" they end services unexplained"
                );
                false
            }
            Capture::Off => false,
        }
    }
}
