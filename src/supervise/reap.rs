//! orders, SIGCHLD → processes started and ended, and events about them.
//!
//! The main thread's whole work: it starts, signals, reaps and kills, and nothing else.
//! Every child is waited for here and only here. `Orders` never blocks who gives them; the
//! inbox may block this thread while the supervisor catches up, never the other way round.
//!
//! Why the main thread: the parent-death signal follows the thread that forked, tracing
//! requests must come from the thread that seized, and an `execve` of a new agent keeps its
//! children only from there.

mod orders;
mod trees;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::mpsc::Sender;
use tracing::{debug, warn};

use orders::Shared;
pub use orders::{Order, Orders};

use trees::{Ending, TREE_LIMIT, note_descendants};

use super::aside::Aside;
use super::cgroup::Cgroups;
use super::debugger::Debugger;
use super::prepare::Inherited;
use super::spawn::PipeSize;
use super::steps::{Course, Part};
use super::tasks::Tasks;
use super::tree::{self, Census, Identity};
use crate::event::Event;
use crate::handoff::Tracer;
use crate::service::{Exit, Pid, RunId, ServiceName, Signal};

/// The main thread's side.
pub struct Reaper {
    shared: Arc<Shared>,
    sigchld: UnixStream,
    pub(super) inherited: Inherited,
    own_pid: Pid,
    pub(super) runs: HashMap<RunId, Run>,
    pub(super) by_pid: HashMap<Pid, RunId>,
    /// Without one nothing is traced.
    pub(super) tracer: Option<Box<dyn Tracer>>,
    /// That tracing is not permitted has been told.
    pub(super) told_untraced: bool,
    /// That tracing would cost a service its privileges has been told.
    pub(super) told_privileged: HashSet<ServiceName>,
    /// Processes that were copied before their end.
    pub(super) captured: HashSet<Pid>,
    /// That the kernel hands nothing over has been told.
    pub(super) told_unhanded: bool,
    /// Ends that were noticed before their turn, as wait4(2) tells them.
    pub(super) ended: Vec<(Pid, i32)>,
    /// Processes of our own.
    pub(super) aside: HashMap<Pid, Aside>,
    /// gdbservers of services that are debugged.
    pub(super) debuggers: HashMap<Pid, Debugger>,
    pub(super) cgroups: Cgroups,
    /// Children that this process had before it was the agent: they belong to no service.
    heirlooms: HashSet<Identity>,
    /// Strays that belong to nobody we know: each is told once.
    told: HashSet<Identity>,
    /// Commands of checks.
    tasks: Tasks,
}

/// A run whose process lives, or whose tree is being ended.
pub(super) struct Run {
    pub(super) course: Course,
    /// Its present process, or the last one; 0 before the first.
    pub(super) pid: Pid,
    pub(super) reaped: bool,
    piped: usize,
    /// What was seen below it when it was last signalled, and what led its own session.
    seen: HashSet<Identity>,
    ending: Option<Ending>,
}

impl Run {
    pub(super) fn is_being_ended(&self) -> bool {
        self.ending.is_some()
    }

    pub(super) fn new(course: Course, piped: usize) -> Run {
        Run {
            course,
            pid: 0,
            reaped: true,
            piped,
            seen: HashSet::new(),
            ending: None,
        }
    }

    fn name(&self) -> &ServiceName {
        &self.course.service.name
    }

    /// It has a process again.
    pub(super) fn lives(&mut self, pid: Pid) {
        (self.pid, self.reaped) = (pid, false);
    }

    /// Its tree is to be looked at, and given a while to end.
    pub(super) fn look_again(&mut self, now: Instant) {
        self.ending = Some(Ending {
            again_at: now,
            until: now + TREE_LIMIT,
        });
    }
}

/// Processes on their way to their programs at one time.
const AT_ONCE: usize = 4;
/// Bytes of one run's pipe: four of the kernel's.
const PIPE_BYTES: usize = 256 * 1024;
/// Bytes of all enlarged pipes: half of what one user may have before new ones shrink
/// (pipe(7), pipe-user-pages-soft).
const PIPE_BUDGET: usize = 32 * 1024 * 1024;

/// Both ends of the order queue. Call it on the main thread before any other thread is
/// started and before the agent changes its own limits: it takes note of what services
/// inherit, unblocks signals, and makes the process a child subreaper.
///
/// # Errors
/// `/dev/null`, a descriptor, or the SIGCHLD handler is not to be had.
pub fn channel() -> io::Result<(Orders, Reaper)> {
    let orders = orders::queue()?;
    let (sigchld, rung_by_handler) = UnixStream::pair()?;
    sigchld.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(libc::SIGCHLD, rung_by_handler)?;
    unblock_signals();
    let own = rustix::process::getpid();
    if !own.is_init()
        && let Err(errno) = rustix::process::set_child_subreaper(Some(own))
    {
        warn!("what services leave behind cannot be adopted (child subreaper: {errno})");
    }
    let reaper = Reaper {
        shared: Arc::clone(&orders.shared),
        sigchld,
        inherited: Inherited::take()?,
        own_pid: own.as_raw_nonzero().get(),
        runs: HashMap::new(),
        by_pid: HashMap::new(),
        tracer: None,
        told_untraced: false,
        told_privileged: HashSet::new(),
        captured: HashSet::new(),
        told_unhanded: false,
        ended: Vec::new(),
        aside: HashMap::new(),
        debuggers: HashMap::new(),
        cgroups: Cgroups::find(own.as_raw_nonzero().get()),
        heirlooms: Census::take()
            .descendants(own.as_raw_nonzero().get())
            .into_iter()
            .filter_map(tree::stat)
            .map(|stat| stat.id)
            .collect(),
        told: HashSet::new(),
        tasks: Tasks::default(),
    };
    Ok((orders, reaper))
}

/// Whoever started the agent may have left signals blocked.
fn unblock_signals() {
    // SAFETY: an initialised set, no old one wanted.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

enum Flow {
    Go,
    Quit,
}

impl Reaper {
    /// From now on services are traced by it, as far as they ask for it and it is permitted.
    pub fn trace_with(&mut self, tracer: Box<dyn Tracer>) {
        self.tracer = Some(tracer);
    }

    /// Runs until the order `Quit`.
    pub fn run(mut self, inbox: Sender<Event>) {
        loop {
            self.wait();
            self.reap(&inbox);
            if let Flow::Quit = self.obey(&inbox) {
                break;
            }
            self.lose_patience();
            self.hear_debuggers(&inbox);
            self.end_trees(&inbox);
            self.tasks.look(self.own_pid);
            self.end_slow_helpers();
            self.shared.show();
        }
        self.kill_everything();
    }

    /// Until a child ended, an order came, or a tree wants another look.
    fn wait(&mut self) {
        let soon = (!self.ended.is_empty()).then(Instant::now);
        let patience = self.next_patience();
        let next = self
            .runs
            .values()
            .filter_map(|run| run.ending.as_ref())
            .map(|ending| ending.again_at)
            .chain(self.aside.values().map(|aside| aside.until))
            .chain(soon)
            .chain(patience)
            .chain(self.tasks.deadline())
            .chain(self.next_look_at_debuggers())
            .min();
        let timeout = next.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            rustix::event::Timespec {
                tv_sec: left.as_secs() as _,
                tv_nsec: left.subsec_nanos() as _,
            }
        });
        let mut fds = [
            PollFd::new(&self.sigchld, PollFlags::IN),
            PollFd::new(&self.shared.bell, PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => warn!("poll: {errno}"),
        }
        let mut rung = [0u8; 64];
        while matches!(rustix::io::read(&self.sigchld, &mut rung), Ok(n) if n == rung.len()) {}
        let _ = rustix::io::read(&self.shared.bell, &mut rung[..8]);
    }

    /// Everyone who has ended: main processes of runs, and orphans that were adopted. Who has only stopped goes on.
    fn reap(&mut self, inbox: &Sender<Event>) {
        loop {
            let Some((pid, status)) = self.ended.pop().or_else(next_status) else {
                return;
            };
            if libc::WIFSTOPPED(status) {
                self.stopped(pid, status, inbox);
                continue;
            }
            let exit = if libc::WIFSIGNALED(status) {
                Exit::Signal(Signal(libc::WTERMSIG(status)))
            } else if libc::WIFEXITED(status) {
                Exit::Code(libc::WEXITSTATUS(status))
            } else {
                continue;
            };
            if let Some(tracer) = &mut self.tracer {
                tracer.forget(pid);
            }
            if let Some(aside) = self.aside.remove(&pid) {
                aside.ended(exit);
                continue;
            }
            let is_captured = self.captured.remove(&pid);
            let Some(run) = self.by_pid.remove(&pid) else {
                if !self.debugger_ended(pid, exit) && !self.tasks.reaped(pid, exit) {
                    debug!("reaped orphan {pid}");
                    self.hurry_trees();
                }
                continue;
            };
            if !is_captured {
                self.tell_unseen(run, pid, status, inbox);
            }
            self.ended(run, pid, exit, inbox);
        }
    }

    /// A process that was started for a run has ended.
    fn ended(&mut self, run: RunId, pid: Pid, exit: Exit, inbox: &Sender<Event>) {
        let Some(entry) = self.runs.get_mut(&run) else {
            return;
        };
        // Another one is the main process since.
        if entry.pid != pid {
            return;
        }
        entry.reaped = true;
        if entry.course.part != Part::Main {
            return self.step_ended(run, exit, inbox);
        }
        if entry.ending.is_some() {
            entry.look_again(Instant::now());
        } else if exit.signal() == Some(Signal::KILL)
            && self.cgroups.oom_killed(entry.course.place.as_ref())
        {
            tell(inbox, Event::OutOfMemory { run });
        }
        tell(inbox, Event::Exited { run, exit });
    }

    fn obey(&mut self, inbox: &Sender<Event>) -> Flow {
        // Starts that follow each other overlap: while one becomes its program, the next is forked.
        let mut launching = VecDeque::new();
        loop {
            // Taken one by one: an order may be given while an earlier one is carried out.
            let order = self.shared.next();
            let at_once = match order {
                Some(Order::Spawn { .. }) => AT_ONCE - 1,
                Some(_) | None => 0,
            };
            while launching.len() > at_once
                && let Some(first) = launching.pop_front()
            {
                self.arrive(first, inbox);
            }
            match order {
                None => return Flow::Go,
                Some(Order::Quit) => return Flow::Quit,
                Some(Order::Spawn {
                    run,
                    service,
                    handed,
                }) => launching.extend(self.begin(run, service, handed, inbox)),
                Some(Order::MainPid { run, pid }) => self.main_pid(run, pid),
                Some(Order::Hung { run }) => self.hung(run, inbox),
                Some(Order::Signal { run, signal }) => self.signal(run, signal),
                Some(Order::KillTree { run }) => self.kill_tree(run, inbox),
                Some(Order::Command(command)) => self.tasks.start(&self.inherited, command),
                Some(Order::Help(helper)) => self.help(helper),
                Some(Order::Copy { id, run }) => self.copy(id, run, inbox),
                Some(Order::Detach { id, run }) => self.detach(id, run, inbox),
                Some(Order::Pause) => self.pause(),
            }
        }
    }

    /// For a new run's pipes: how large they may be, and what that takes of the budget.
    pub(super) fn pipe_size(&self) -> (PipeSize, usize) {
        let piped: usize = self.runs.values().map(|run| run.piped).sum();
        if piped + 2 * PIPE_BYTES <= PIPE_BUDGET {
            (PipeSize::Bytes(PIPE_BYTES), 2 * PIPE_BYTES)
        } else {
            (PipeSize::Kernel, 0)
        }
    }

    /// The old one becomes one of the run's other processes.
    fn main_pid(&mut self, run: RunId, pid: Pid) {
        let Some(entry) = self.runs.get_mut(&run) else {
            return;
        };
        if entry.reaped || entry.course.part != Part::Main {
            return;
        }
        entry.seen.extend(tree::stat(entry.pid).map(|stat| stat.id));
        entry.pid = pid;
        self.by_pid.insert(pid, run);
    }

    fn signal(&mut self, run: RunId, signal: Signal) {
        let Some(entry) = self.runs.get_mut(&run) else {
            return;
        };
        if entry.reaped {
            return;
        }
        note_descendants(&Census::take(), entry);
        let (pid, last) = (entry.pid, entry.course.service.stop.signal == signal);
        if last {
            self.end_idle_debugger(run, pid);
        }
        let Some(entry) = self.runs.get_mut(&run) else {
            return;
        };
        // Not reaped, so the number is still its own.
        // SAFETY: kill(2) touches no memory.
        if unsafe { libc::kill(entry.pid, signal.0) } != 0 {
            let error = io::Error::last_os_error();
            warn!(service = %entry.name(), "sending {signal} to {}: {error}", entry.pid);
        }
    }

    fn pause(&mut self) {
        let runs: Vec<RunId> = self.runs.keys().copied().collect();
        for run in runs {
            // Not TSTP: alone in its session, a process is not stopped by that (setpgid(2),
            // orphaned groups).
            self.signal(run, Signal::STOP);
        }
        // PID 1 of a container cannot be stopped from inside: only the application is then.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
    }
}

/// The next child that ended or stopped, as wait4(2) tells it.
fn next_status() -> Option<(Pid, i32)> {
    let mut status = 0;
    // SAFETY: writes the status; no resource usage wanted.
    let pid = unsafe {
        libc::wait4(
            -1,
            &mut status,
            libc::__WALL | libc::WNOHANG,
            std::ptr::null_mut(),
        )
    };
    (pid > 0).then_some((pid, status))
}

/// Waits where the inbox is full: the supervisor catches up, or has ended.
pub(super) fn tell(inbox: &Sender<Event>, event: Event) {
    if inbox.blocking_send(event).is_err() {
        debug!("nobody listens any more");
    }
}
