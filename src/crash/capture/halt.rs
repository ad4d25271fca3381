//! a traced process → all its threads stopped, and later let go.
//!
//! Bounded by a deadline: a thread in vfork or deep in a driver does not stop, and is then read as it is; who only waits
//! for a processor is given longer. What a thread
//! was about to be told while it was being stopped (a signal, a group-stop) it is told when it goes on.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::memory;
use super::ptrace::{self, Waited};
use crate::service::Pid;

/// Stopping takes about 10 µs a thread; who needs more than this hangs in the kernel, or waits for a processor.
const LIMIT: Duration = Duration::from_millis(150);
/// And more than this where all processors are busy.
const BUSY_LIMIT: Duration = Duration::from_millis(1500);
const NAP: Duration = Duration::from_micros(50);
const LONG_NAP: Duration = Duration::from_millis(1);

/// How a stopped thread is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// With this signal; 0 is none.
    Go(i32),
    /// It was in a group-stop.
    Listen,
}

/// A process whose threads stand still.
pub struct Halted {
    pub threads: HashMap<Pid, Resume>,
    /// Read while they came to a stand.
    pub names: HashMap<Pid, String>,
    /// Threads that did not stop in time.
    pub moving: Vec<Pid>,
}

/// What a wait status means for a thread that is stopped.
pub fn resume_of(status: i32) -> Resume {
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 => Resume::Go(signal),
        ptrace::EVENT_STOP if is_group_stop(signal) => Resume::Listen,
        _ => Resume::Go(0),
    }
}

/// Signals that stop a process (signal(7)); with EVENT_STOP they are a group-stop, and SIGTRAP is any other stop.
pub fn is_group_stop(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU
    )
}

/// Threads of a process, by `/proc/PID/task`.
pub fn tasks(pid: Pid) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// Stops every thread of `pid`; `stopped` already is, with this to be told later. Statuses of what ended meanwhile are
/// handed out in `ended`: nobody else will hear of them.
pub fn halt(pid: Pid, stopped: Option<(Pid, Resume)>, ended: &mut Vec<(Pid, i32)>) -> Halted {
    let since = Instant::now();
    let mut threads: HashMap<Pid, Resume> = stopped.into_iter().collect();
    let mut pending: Vec<Pid> = Vec::new();
    let mut gone: Vec<Pid> = Vec::new();
    let mut names: HashMap<Pid, String> = HashMap::new();
    let name = |tid: Pid| Some((tid, memory::thread_name(pid, tid)?));
    names.extend(stopped.and_then(|(tid, _)| name(tid)));
    loop {
        // Threads that were started before their creator was stopped.
        let new: Vec<Pid> = tasks(pid)
            .into_iter()
            .filter(|tid| {
                !threads.contains_key(tid) && !pending.contains(tid) && !gone.contains(tid)
            })
            .collect();
        for tid in &new {
            match ptrace::interrupt(*tid) {
                Ok(()) => pending.push(*tid),
                Err(_) => gone.push(*tid),
            }
        }
        // On the other processors they are stopping now: time that would be slept through.
        names.extend(new.iter().copied().filter_map(name));
        let before = pending.len();
        pending.retain(|tid| match ptrace::wait(*tid) {
            Waited::Nothing => true,
            Waited::Stopped(status) => {
                threads.insert(*tid, resume_of(status));
                false
            }
            Waited::Ended(status) => {
                ended.push((*tid, status));
                gone.push(*tid);
                false
            }
            Waited::Gone => {
                gone.push(*tid);
                false
            }
        });
        if pending.is_empty() && new.is_empty() {
            break;
        }
        if since.elapsed() >= LIMIT {
            let hangs = |tid: &Pid| matches!(state(pid, *tid), None | Some('D'));
            if since.elapsed() >= BUSY_LIMIT || pending.iter().all(hangs) {
                break;
            }
            std::thread::sleep(LONG_NAP);
        }
        if pending.len() == before && before > 0 {
            pending.retain(|tid| !has_ended(pid, *tid, &mut gone));
            std::thread::sleep(NAP);
        }
    }
    Halted {
        threads,
        names,
        moving: pending,
    }
}

/// A first thread that has ended waits for the others, and stops for nobody.
fn has_ended(pid: Pid, tid: Pid, gone: &mut Vec<Pid>) -> bool {
    let ended = matches!(state(pid, tid), None | Some('Z' | 'X'));
    if ended {
        gone.push(tid);
    }
    ended
}

/// As proc(5) has it: `R` runs or waits for a processor, `D` waits in the kernel for what does not heed signals.
fn state(pid: Pid, tid: Pid) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.trim_start().chars().next()
}

impl Halted {
    /// Everyone goes on, `first` before the others. Who was killed meanwhile does not mind.
    pub fn let_go(self, first: Option<Pid>) {
        if let Some(resume) = first.and_then(|tid| self.threads.get(&tid).copied())
            && let Some(tid) = first
        {
            go(tid, resume);
        }
        for (tid, resume) in self.threads {
            if Some(tid) != first {
                go(tid, resume);
            }
        }
    }
}

pub fn go(tid: Pid, resume: Resume) {
    // ESRCH: it was killed.
    let _ = match resume {
        Resume::Go(signal) => ptrace::go_on(tid, signal),
        Resume::Listen => ptrace::listen(tid),
    };
}
