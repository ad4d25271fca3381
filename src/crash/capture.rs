//! a thread's stop → the process copied into a small core file, then let go.
//!
//! Implements [`Tracer`] for the main thread by ptrace(2). A signal that would end the process (neither caught nor
//! ignored; a handler that raises again is seen then) makes it stand still while registers and chosen memory are
//! copied: below a millisecond, a few for hundreds of threads. Everything else goes on at once and unchanged. Whatever
//! fails makes the copy poorer; the process dies of its own signal in any case.

mod choose;
mod halt;
mod memory;
mod proc;
mod ptrace;

use std::collections::HashSet;

use crate::clock;
use crate::crash::core_write::{Process, SmallCore, Thread};
use crate::crash::machine::{Machine, Registers};
use crate::handoff::{Snapshot, Tracer};
use crate::service::{Pid, Signal};

use halt::{Halted, Resume};
use memory::Memory;
use proc::Area;

#[cfg(target_arch = "aarch64")]
const MACHINE: Machine = Machine::Aarch64;
#[cfg(not(target_arch = "aarch64"))]
const MACHINE: Machine = Machine::X86_64;

/// More than any register set needs (SVE of 2048 bits: 8.5 KiB).
const REGSET_BYTES: usize = 16 << 10;

/// The process' own tracer. Must be used by the thread that forks.
#[derive(Default)]
pub struct Ptrace {
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
            Resume::Go(signal) if status >> 16 == 0 && is_deadly(signal) => {
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
        let halted = halt::halt(pid, None, ended);
        if halted.threads.is_empty() {
            self.release(halted, ours);
            return Err(format!("process {pid} does not stop"));
        }
        let about = memory::read_text(&format!("/proc/{pid}/status"));
        let copy = copy(pid, pid, None, &about, &halted);
        self.release(halted, ours);
        Ok(Box::new(copy.finish(None)))
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

    fn forget(&mut self, pid: Pid) {
        self.traced.remove(&pid);
        self.leaving.remove(&pid);
    }
}

impl Ptrace {
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

/// Whose default is to end the process with a core file (signal(7)), and which nobody sends for another purpose.
fn is_deadly(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGSEGV
            | libc::SIGABRT
            | libc::SIGBUS
            | libc::SIGFPE
            | libc::SIGILL
            | libc::SIGTRAP
            | libc::SIGSYS
    )
}

/// Copies a process that is about to die of `signal`, and lets it.
fn last_moment(tid: Pid, signal: i32, about: &str, ended: &mut Vec<(Pid, i32)>) -> Snapshot {
    let pid = proc::number(about, "Tgid").map_or(tid, |pid| pid as Pid);
    let siginfo = ptrace::siginfo(tid);
    let halted = halt::halt(pid, Some((tid, Resume::Go(signal))), ended);
    let mut copy = copy(pid, tid, Some(signal), about, &halted);
    halted.let_go(Some(tid));
    copy.siginfo = siginfo.unwrap_or_default();
    copy.finish(Some(Signal(signal)))
}

/// What was copied while the process stood still; made into a file afterwards.
struct Copy {
    pid: Pid,
    threads: Vec<Thread>,
    process: Process,
    siginfo: Vec<u8>,
    auxv: Vec<u8>,
    areas: Vec<Area>,
    ranges: Vec<(u64, Vec<u8>)>,
    trouble: Vec<String>,
}

fn copy(pid: Pid, first: Pid, signal: Option<i32>, about: &str, halted: &Halted) -> Copy {
    let mut trouble = Vec::new();
    if !halted.moving.is_empty() {
        trouble.push(format!("{} threads did not stop", halted.moving.len()));
    }
    let memory = Memory::open(pid, first, about);
    let areas = proc::areas(&memory.maps);
    if areas.is_empty() {
        trouble.push("its mappings cannot be read".to_owned());
    }
    let mut tids: Vec<Pid> = halted.threads.keys().copied().collect();
    tids.sort_by_key(|tid| (*tid != first, *tid != pid, *tid));
    let mut threads = Vec::with_capacity(tids.len());
    let mut stacks = Vec::with_capacity(tids.len());
    for tid in tids {
        let Some((thread, stack)) = thread(pid, tid) else {
            continue;
        };
        threads.push(Thread {
            signal: if tid == first {
                signal.unwrap_or(0) as u16
            } else {
                0
            },
            ..thread
        });
        stacks.push(stack);
    }
    let auxv: Vec<(u64, u64)> = choose::pairs(&memory.auxv).collect();
    let chosen = choose::choose(&areas, &stacks, &auxv, &mut |address, length| {
        memory.read(address, length)
    });
    let ranges: Vec<(u64, Vec<u8>)> = chosen
        .into_iter()
        .map(|(start, end)| (start, memory.read(start, (end - start) as usize)))
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect();
    if ranges.is_empty() {
        trouble.push("its memory cannot be read".to_owned());
    }
    Copy {
        pid,
        threads,
        process: process(pid, about),
        siginfo: Vec::new(),
        auxv: memory.auxv,
        areas,
        ranges,
        trouble,
    }
}

/// `None` for a thread that was killed meanwhile.
fn thread(pid: Pid, tid: Pid) -> Option<(Thread, choose::Stack)> {
    let general = ptrace::regset(tid, ptrace::NT_PRSTATUS, REGSET_BYTES)?;
    let registers = Registers::from_user_regs(MACHINE, &general)?;
    let stack = choose::Stack {
        pc: registers.pc(),
        sp: registers.sp().unwrap_or(0),
        registers: registers
            .named()
            .into_iter()
            .map(|(_, value)| value)
            .collect(),
    };
    let extra = ptrace::EXTRA_REGSETS
        .iter()
        .filter_map(|kind| Some((*kind, ptrace::regset(tid, *kind, REGSET_BYTES)?)))
        .collect();
    let name = memory::read_text(&format!("/proc/{pid}/task/{tid}/comm"));
    let thread = Thread {
        tid: tid as u32,
        signal: 0,
        registers: general,
        float_registers: ptrace::regset(tid, ptrace::NT_PRFPREG, REGSET_BYTES).unwrap_or_default(),
        extra,
        name: Some(name.trim_end_matches('\n').to_owned()).filter(|name| !name.is_empty()),
    };
    Some((thread, stack))
}

fn process(pid: Pid, about: &str) -> Process {
    let read = |name: &str| memory::read_text(&format!("/proc/{pid}/{name}"));
    let (group, session) = proc::group_and_session(&read("stat")).unwrap_or((0, 0));
    let number = |name: &str| proc::number(about, name).unwrap_or(0);
    Process {
        pid: pid as u32,
        parent: number("PPid"),
        group,
        session,
        uid: number("Uid"),
        gid: number("Gid"),
        name: read("comm").trim_end_matches('\n').to_owned(),
        arguments: read("cmdline").trim_end_matches('\0').replace('\0', " "),
    }
}

impl Copy {
    fn finish(self, signal: Option<Signal>) -> Snapshot {
        let mut core = Vec::new();
        let pc = self
            .threads
            .first()
            .and_then(|thread| Registers::from_user_regs(MACHINE, &thread.registers))
            .map_or(0, |registers| registers.pc());
        let site = site(&self.areas, pc, signal);
        let small = SmallCore {
            machine: MACHINE,
            threads: self.threads,
            process: self.process,
            siginfo: self.siginfo,
            auxv: self.auxv,
            mappings: self.areas.iter().map(Area::mapping).collect(),
            ranges: self
                .ranges
                .iter()
                .map(|(start, bytes)| (*start, bytes.as_slice()))
                .collect(),
        };
        let mut trouble = self.trouble;
        if let Err(error) = small.write(&mut core) {
            trouble.push(error.to_string());
        }
        Snapshot {
            pid: self.pid,
            signal,
            at_ms: clock::now_ms(),
            site,
            core,
            trouble: (!trouble.is_empty()).then(|| trouble.join(", ")),
        }
    }
}

/// `SIGSEGV /usr/bin/x+0x1234`: does not move with the address space.
fn site(areas: &[Area], pc: u64, signal: Option<Signal>) -> String {
    let signal = signal.map_or(String::new(), |signal| signal.to_string());
    let area = areas.iter().find(|area| area.contains(pc));
    match area.and_then(|area| Some((area.file()?, pc - area.start + area.offset))) {
        Some((path, offset)) => {
            format!("{signal} {}+{offset:#x}", String::from_utf8_lossy(path))
        }
        None => format!("{signal} {pc:#x}"),
    }
}
