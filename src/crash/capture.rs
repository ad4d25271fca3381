//! a thread's stop → the process copied into a small core file, then let go.
//!
//! Implements [`Tracer`] for the main thread by ptrace(2). A signal that would end the process (neither caught nor
//! ignored; a handler that raises again is seen then) makes it stand still while registers and chosen memory are
//! copied: below a millisecond, a few for hundreds of threads. Everything else goes on at once and unchanged. Whatever
//! fails makes the copy poorer; the process dies of its own signal in any case.

mod choose;
pub(super) mod copy;
mod halt;
pub(super) mod leads;
pub(super) mod memory;
pub(super) mod notes;
pub(super) mod proc;
mod ptrace;

use std::collections::HashSet;
use std::time::Instant;

use crate::crash::core_write::Thread;
use crate::crash::kernel::Ownership;
use crate::handoff::{Snapshot, Tracer};
use crate::service::{Pid, Signal};

use copy::{Copy, copy};
use halt::{Halted, Resume};
use leads::leads;
use memory::Memory;

/// More than any register set needs (SVE of 2048 bits: 8.5 KiB).
const REGSET_BYTES: usize = 16 << 10;

/// The process' own tracer. Must be used by the thread that forks.
#[derive(Default)]
pub struct Ptrace {
    kernel: Ownership,
    traced: HashSet<Pid>,
    /// Threads that did not stop in time to be detached: at their next stop.
    leaving: HashSet<Pid>,
}

impl Tracer for Ptrace {
    fn seize(&mut self, pid: Pid, forks: bool) -> Result<(), i32> {
        ptrace::seize(pid, options(forks))?;
        self.traced.insert(pid);
        Ok(())
    }

    fn stopped(
        &mut self,
        tid: Pid,
        status: i32,
        ended: &mut Vec<(Pid, i32)>,
    ) -> Option<Box<Snapshot>> {
        let resume = halt::resume_of(status);
        if self.leaving.remove(&tid) {
            detach(tid, resume);
            return None;
        }
        match resume {
            Resume::Go(signal) if status >> 16 == 0 && Signal(signal).is_crash() => {
                let about = memory::read_text(&format!("/proc/{tid}/status"));
                if proc::is_fatal(&about, signal) {
                    return Some(Box::new(last_moment(tid, signal, &about, ended)));
                }
                halt::go(tid, resume);
            }
            Resume::Go(_) | Resume::Listen => halt::go(tid, resume),
        }
        None
    }

    fn snapshot(&mut self, pid: Pid, ended: &mut Vec<(Pid, i32)>) -> Result<Box<Snapshot>, String> {
        let ours = self.traced.contains(&pid);
        if !ours {
            seize_threads(pid, ptrace::O_TRACECLONE)?;
        }
        let since = Instant::now();
        let halted = halt::halt(pid, None, ended);
        if halted.threads.is_empty() {
            self.release(halted, ours);
            return Err(format!("process {pid} does not stop"));
        }
        let about = memory::read_text(&format!("/proc/{pid}/status"));
        let (copy, leads) = (halted_copy(pid, pid, None, &about, &halted), leads(pid));
        self.release(halted, ours);
        let held = since.elapsed();
        Ok(Box::new(Snapshot {
            held,
            ..copy.finish(None, leads)
        }))
    }

    fn adopt(&mut self, pid: Pid, forks: bool) -> Result<(), String> {
        seize_threads(pid, options(forks))?;
        self.traced.insert(pid);
        Ok(())
    }

    fn detach(&mut self, pid: Pid, ended: &mut Vec<(Pid, i32)>) -> Result<(), String> {
        if !self.traced.remove(&pid) {
            return Err("it is not traced".to_owned());
        }
        let halted = halt::halt(pid, None, ended);
        self.release(halted, false);
        Ok(())
    }

    fn is_spared(&mut self) -> bool {
        self.kernel.is_ours()
    }

    fn forget(&mut self, pid: Pid) {
        self.traced.remove(&pid);
        self.leaving.remove(&pid);
    }
}

impl Ptrace {
    /// `kernel` tells whether the kernel hands over what dies.
    pub fn beside(kernel: Ownership) -> Ptrace {
        Ptrace {
            kernel,
            ..Ptrace::default()
        }
    }

    fn release(&mut self, halted: Halted, keep: bool) {
        if keep {
            halted.let_go(None);
            return;
        }
        self.leaving.extend(halted.moving);
        for (tid, resume) in halted.threads {
            detach(tid, resume);
        }
    }
}

/// With `forks`, also what it will fork.
fn options(forks: bool) -> libc::c_long {
    let options = ptrace::O_TRACECLONE | ptrace::O_TRACEEXEC | ptrace::O_EXITKILL;
    match forks {
        true => options | ptrace::O_TRACEFORK | ptrace::O_TRACEVFORK,
        false => options,
    }
}

/// Every thread, also those that are started meanwhile.
fn seize_threads(pid: Pid, options: libc::c_long) -> Result<(), String> {
    let mut seized = HashSet::new();
    loop {
        let mut found = false;
        for tid in halt::tasks(pid) {
            if seized.contains(&tid) {
                continue;
            }
            match ptrace::seize(tid, options) {
                Ok(()) => {
                    seized.insert(tid);
                    found = true;
                }
                Err(libc::ESRCH) => {}
                // A thread that was attached as it was created by an attached one.
                Err(_) if !seized.is_empty() => {}
                Err(errno) => {
                    let error = std::io::Error::from_raw_os_error(errno);
                    return Err(format!("process {pid} cannot be traced: {error}"));
                }
            }
        }
        if !found {
            return Ok(());
        }
    }
}

fn detach(tid: Pid, resume: Resume) {
    let signal = match resume {
        Resume::Go(signal) => signal,
        Resume::Listen => 0,
    };
    // ESRCH: it was killed.
    let _ = ptrace::detach(tid, signal);
}

/// Copies a process that is about to die of `signal`, and lets it.
fn last_moment(tid: Pid, signal: i32, about: &str, ended: &mut Vec<(Pid, i32)>) -> Snapshot {
    let since = Instant::now();
    let pid = proc::number(about, "Tgid").map_or(tid, |pid| pid as Pid);
    let siginfo = ptrace::siginfo(tid);
    let halted = halt::halt(pid, Some((tid, Resume::Go(signal))), ended);
    let mut copy = halted_copy(pid, tid, Some(signal), about, &halted);
    let leads = leads(pid);
    halted.let_go(Some(tid));
    let held = since.elapsed();
    copy.siginfo = siginfo.unwrap_or_default();
    Snapshot {
        held,
        ..copy.finish(Some(Signal(signal)), leads)
    }
}

fn halted_copy(pid: Pid, first: Pid, signal: Option<i32>, about: &str, halted: &Halted) -> Copy {
    let mut tids: Vec<Pid> = halted.threads.keys().copied().collect();
    tids.sort_by_key(|tid| (*tid != first, *tid != pid, *tid));
    let mut room = [0; REGSET_BYTES];
    let threads = tids
        .into_iter()
        .filter_map(|tid| {
            let signal = signal.filter(|_| tid == first).unwrap_or(0) as u16;
            Some(Thread {
                signal,
                name: halted.names.get(&tid).cloned(),
                ..thread(tid, &mut room)?
            })
        })
        .collect();
    let mut copy = copy(pid, about, threads, Memory::open(pid, first, about));
    if !halted.moving.is_empty() {
        let moving = format!("{} threads did not stop", halted.moving.len());
        copy.trouble.push(moving);
    }
    copy
}

/// `None` for a thread that was killed meanwhile.
fn thread(tid: Pid, room: &mut [u8]) -> Option<Thread> {
    let mut regset = |kind: u32| ptrace::regset(tid, kind, room);
    Some(Thread {
        tid: tid as u32,
        signal: 0,
        registers: regset(ptrace::NT_PRSTATUS)?,
        float_registers: regset(ptrace::NT_PRFPREG).unwrap_or_default(),
        extra: ptrace::EXTRA_REGSETS
            .iter()
            .filter_map(|kind| Some((*kind, regset(*kind)?)))
            .collect(),
        name: None,
    })
}
