//! a service to be debugged → its process, stopped at its first instruction, and gdbserver attached to it.
//!
//! The run counts as started once gdbserver listens; where it cannot, the process is killed and the start has failed.
//! gdbserver comes from the service's PATH and runs as its user, so that no privilege is needed to trace it. While it
//! traces, the agent does not: a crash is the debugger's to see. When it leaves, the process is traced as any other.
//!
//! A process that ends under a tracer is told to its parent only after the tracer has heard of it, and gdbserver that
//! waits for a client hears nothing: it is looked after, and ended when there is nothing left to debug.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;
use tracing::{debug, info, warn};

use super::held::{self, Held};
use super::reap::{Reaper, tell};
use super::spawn::{self, What};
use super::steps::Part;
use super::tree;
use crate::config::Debug;
use crate::event::{DEBUG_SESSION, Event, SpawnFailure};
use crate::handoff::Pipes;
use crate::service::{Exit, Pid, RunId};

/// What the `status` stream says of a run that is to be debugged.
pub const PAUSED: &str = "DEBUG MODE: Starting process paused for step debugging";

/// How somebody gets at it.
pub fn banner(debug: &Debug, executable: &str) -> String {
    let Debug { host, port } = debug;
    let bar = "═".repeat(66);
    format!(
        "╔{bar}\n\
         ║ DEBUG MODE: the process is stopped at its first instruction\n\
         ╠{bar}\n\
         ║ gdbserver listens on {host}:{port}\n\
         ║\n\
         ║ gdb {executable}\n\
         ║   (gdb) target remote {host}:{port}\n\
         ║   (gdb) break main\n\
         ║   (gdb) continue\n\
         ║\n\
         ║ CLion: Remote GDB Server, target remote {host}:{port}, symbols {executable}\n\
         ╚{bar}"
    )
}

/// From the end of its process on, before it is killed.
const FAREWELL: Duration = Duration::from_secs(2);

/// gdbserver says so when a client can connect.
const LISTENS: &[u8] = b"Listening on port";
/// How long it may take to get there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether there is still something to debug.
const LOOK: Duration = Duration::from_millis(200);
/// Of what it says, this much is kept for its last words.
const SAID: usize = 4096;

/// One gdbserver.
pub(super) struct Debugger {
    run: RunId,
    output: OwnedFd,
    said: Vec<u8>,
    stage: Stage,
    /// Its process has ended: it is about to tell that to whoever debugs, and to end too.
    gone: Option<Instant>,
    /// Why it has been killed; it is only to be reaped.
    over: Option<Over>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// There is nothing left to debug.
    Gone,
    /// It did not get to listen.
    Late,
    /// The process is to be stopped.
    Stopped,
}

enum Stage {
    /// The run is not told of yet.
    Attaching {
        pipes: Option<Pipes>,
        held: Option<Held>,
        until: Instant,
    },
    Listening,
}

impl Reaper {
    /// The run's main process, stopped, and its debugger on the way.
    pub(super) fn hold(
        &mut self,
        run: RunId,
        debug: &Debug,
        pipes: Option<Pipes>,
        inbox: &Sender<Event>,
    ) {
        let Some(entry) = self.runs.get_mut(&run) else {
            return;
        };
        let course = &mut entry.course;
        let service = std::sync::Arc::clone(&course.service);
        let place = course.place.as_ref();
        let launched = spawn::launch(
            &self.inherited,
            &service,
            What::Main(&course.handed),
            course.writers.as_ref(),
            place,
        );
        let pid = match launched {
            Ok(pid) => pid,
            Err(failure) => return self.fail(run, failure, inbox),
        };
        course.part = Part::Held;
        Self::keep_only_what_follows(course);
        entry.lives(pid);
        self.by_pid.insert(pid, run);
        let held = match held::hold(pid) {
            Ok(Some(held)) => held,
            // It has died already.
            Ok(None) => return,
            Err(failure) => return self.give_up(run, failure),
        };
        let Some(entry) = self.runs.get(&run) else {
            return;
        };
        let argv = [
            "gdbserver".to_owned(),
            "--attach".to_owned(),
            format!("{}:{}", debug.host, debug.port),
            pid.to_string(),
        ];
        let place = entry.course.place.as_ref();
        let tool = spawn::launch_tool(&self.inherited, &service, &argv, place);
        match tool {
            Ok((tool, output)) => {
                let debugger = Debugger {
                    run,
                    output,
                    said: Vec::new(),
                    stage: Stage::Attaching {
                        pipes,
                        held: Some(held),
                        until: Instant::now() + PATIENCE,
                    },
                    gone: None,
                    over: None,
                };
                self.debuggers.insert(tool, debugger);
            }
            Err(failure) => self.give_up(run, of_session(failure.to_string())),
        }
    }

    /// The process goes; what it was started for is told when it has.
    fn give_up(&mut self, run: RunId, failure: SpawnFailure) {
        let Some(entry) = self.runs.get_mut(&run) else {
            return;
        };
        entry.course.trouble = Some(failure);
        kill(entry.pid);
    }

    /// What they say, and whether there is still something for them to do.
    pub(super) fn hear_debuggers(&mut self, inbox: &Sender<Event>) {
        let mut listening = Vec::new();
        for (tool, debugger) in &mut self.debuggers {
            debugger.read();
            let listens = debugger.listens();
            let gone = match self.runs.get(&debugger.run) {
                Some(run) => run.reaped || tree::stat(run.pid).is_none_or(|stat| stat.dead),
                None => true,
            };
            if gone && debugger.gone.is_none() {
                debugger.gone = Some(Instant::now());
            }
            let over = match &mut debugger.stage {
                Stage::Attaching { .. } if gone => Some(Over::Gone),
                Stage::Listening if debugger.gone.is_some_and(|at| at.elapsed() >= FAREWELL) => {
                    Some(Over::Gone)
                }
                Stage::Attaching { pipes, held, .. } if listens => {
                    let held = held.take().map_or(Ok(()), Held::release);
                    listening.push((debugger.run, pipes.take(), held));
                    debugger.stage = Stage::Listening;
                    None
                }
                Stage::Attaching { until, .. } => (*until <= Instant::now()).then_some(Over::Late),
                Stage::Listening => None,
            };
            if over.is_some() && debugger.over.is_none() {
                debugger.over = over;
                kill(*tool);
            }
        }
        for (run, pipes, released) in listening {
            match (self.runs.get_mut(&run), released) {
                (Some(entry), Ok(())) => {
                    entry.course.part = Part::Main;
                    let pid = entry.pid;
                    info!(
                        service = %entry.course.service.name,
                        "gdbserver has it: until it detaches a crash is the debugger's to see and is not recorded"
                    );
                    tell(inbox, Event::Spawned { run, pid, pipes });
                }
                (_, Err(error)) => {
                    let why = format!("putting its first instruction back: {error}");
                    self.give_up(run, of_session(why));
                }
                (None, Ok(())) => {}
            }
        }
    }

    pub(super) fn next_look_at_debuggers(&self) -> Option<Instant> {
        const EAGER: Duration = Duration::from_millis(5);
        let attaching = |debugger: &Debugger| matches!(debugger.stage, Stage::Attaching { .. });
        let pause = match self.debuggers.values().any(attaching) {
            true => EAGER,
            false => LOOK,
        };
        (!self.debuggers.is_empty()).then(|| Instant::now() + pause)
    }

    /// A process that stands still in a debugger hears no signal: before the last one the debugger goes, and with it
    /// what held the process.
    pub(super) fn end_idle_debugger(&mut self, run: RunId, pid: Pid) {
        if !tree::stat(pid).is_some_and(|stat| stat.halted) {
            return;
        }
        let of_run = self.debuggers.iter_mut().find(|(_, one)| one.run == run);
        if let Some((tool, debugger)) = of_run {
            debugger.over = Some(Over::Stopped);
            kill(*tool);
        }
    }

    /// Whether a reaped process was a debugger.
    pub(super) fn debugger_ended(&mut self, tool: Pid, exit: Exit) -> bool {
        let Some(mut debugger) = self.debuggers.remove(&tool) else {
            return false;
        };
        debugger.read();
        let run = debugger.run;
        match debugger.stage {
            Stage::Attaching { .. } => {
                let why = match (debugger.over, debugger.last_words()) {
                    (Some(Over::Late), _) => {
                        format!("gdbserver did not attach within {PATIENCE:?}")
                    }
                    (Some(Over::Gone | Over::Stopped), _) => "the process has ended".to_owned(),
                    (None, Some(words)) => format!("gdbserver: {words}"),
                    (None, None) => format!("gdbserver exited with code {}", exit.code()),
                };
                self.give_up(run, of_session(why));
            }
            Stage::Listening if debugger.over.is_none() => self.trace_again(run),
            Stage::Listening => {}
        }
        true
    }

    /// The debugger has left a process that lives on.
    fn trace_again(&mut self, run: RunId) {
        let Some(entry) = self.runs.get(&run) else {
            return;
        };
        let dead = tree::stat(entry.pid).is_none_or(|stat| stat.dead);
        if entry.reaped || dead || entry.course.part != Part::Main {
            return;
        }
        let service = std::sync::Arc::clone(&entry.course.service);
        let pid = entry.pid;
        let traced = self.is_to_be_traced(&service);
        let Some(tracer) = self.tracer.as_deref_mut().filter(|_| traced) else {
            return info!(service = %service.name, "the debugger has left");
        };
        match tracer.adopt(pid, service.capture.forks) {
            Ok(()) => info!(service = %service.name, "the debugger has left: it is traced again"),
            Err(why) => warn!(
                service = %service.name,
                "the debugger has left, and a crash would go unexplained: {why}"
            ),
        }
    }
}

impl Debugger {
    fn read(&mut self) {
        let mut bytes = [0u8; 1024];
        while let Ok(count @ 1..) = rustix::io::read(&self.output, &mut bytes) {
            for line in String::from_utf8_lossy(&bytes[..count]).lines() {
                debug!("gdbserver: {line}");
            }
            self.said.extend_from_slice(&bytes[..count]);
            let surplus = self.said.len().saturating_sub(SAID);
            self.said.drain(..surplus);
        }
    }

    fn listens(&self) -> bool {
        self.said
            .windows(LISTENS.len())
            .any(|window| window == LISTENS)
    }

    /// Its complaint rather than its farewell.
    fn last_words(&self) -> Option<String> {
        let said = String::from_utf8_lossy(&self.said);
        let lines = said.lines().map(|line| line.trim().trim_end_matches('.'));
        let mut words = lines.filter(|line| !line.is_empty() && *line != "Exiting");
        words.next_back().map(str::to_owned)
    }
}

fn of_session(why: String) -> SpawnFailure {
    SpawnFailure {
        stage: format!("{DEBUG_SESSION}{why}"),
        errno: 0,
    }
}

/// Of a child that has not been reaped.
fn kill(pid: Pid) {
    // SAFETY: kill(2) touches no memory.
    if pid > 0 && unsafe { libc::kill(pid, libc::SIGKILL) } != 0 {
        debug!("killing {pid}: {}", io::Error::last_os_error());
    }
}
