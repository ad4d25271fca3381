//! threads that stand still, a way to read → a copy of their process, and the small core file made of it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::clock;
use crate::crash::core::NT_ARM_TLS;
use crate::crash::core_write::{Process, SmallCore, Thread};
use crate::crash::le;
use crate::crash::machine::{Machine, Registers};
use crate::handoff::{CoreFile, Leads, Snapshot};
use crate::service::{Pid, Signal};

use super::choose;
use super::memory::{self, Memory};
use super::proc::{self, Area};

#[cfg(target_arch = "aarch64")]
pub const MACHINE: Machine = Machine::Aarch64;
#[cfg(not(target_arch = "aarch64"))]
pub const MACHINE: Machine = Machine::X86_64;

/// What was copied while the process stood still; made into a file afterwards.
pub struct Copy {
    pub pid: Pid,
    pub threads: Vec<Thread>,
    pub process: Process,
    pub siginfo: Vec<u8>,
    pub auxv: Vec<u8>,
    pub areas: Vec<Area>,
    pub ranges: Vec<(u64, Vec<u8>)>,
    pub trouble: Vec<String>,
}

/// `threads` has the crashed one first; `about` is the process' `/proc/PID/status`.
pub fn copy(pid: Pid, about: &str, threads: Vec<Thread>, memory: Memory) -> Copy {
    let mut trouble = Vec::new();
    let areas = proc::areas(&memory.maps);
    if areas.is_empty() {
        trouble.push("its mappings cannot be read".to_owned());
    }
    let stacks: Vec<choose::Stack> = threads.iter().filter_map(stack).collect();
    let auxv: Vec<(u64, u64)> = choose::pairs(&memory.auxv).collect();
    let mut chosen = choose::choose(&areas, &stacks, &auxv, &mut |address, length| {
        memory.read(address, length)
    });
    // Where memory can only be read word by word there is an end to it: stacks come first, the crashed one before all.
    chosen.sort_by_key(|(start, end)| {
        let holds = |stack: &choose::Stack| (*start..*end).contains(&stack.sp);
        stacks.iter().position(holds).unwrap_or(usize::MAX)
    });
    let ranges: Vec<(u64, Vec<u8>)> = chosen
        .into_iter()
        .map(|(start, end)| (start, memory.read(start, (end - start) as usize)))
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect();
    if ranges.is_empty() {
        let why = "its memory cannot be read (after a change of user that takes CAP_SYS_PTRACE)";
        trouble.push(why.to_owned());
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

fn stack(thread: &Thread) -> Option<choose::Stack> {
    let registers = Registers::from_user_regs(MACHINE, &thread.registers)?;
    // On aarch64 it has a note of its own.
    let noted = thread.extra.iter().find(|(kind, _)| *kind == NT_ARM_TLS);
    let noted = noted.and_then(|(_, value)| le::u64_at(value, 0));
    Some(choose::Stack {
        thread_pointer: registers.thread_pointer().or(noted),
        pc: registers.pc(),
        sp: registers.sp().unwrap_or(0),
        registers: registers
            .named()
            .into_iter()
            .map(|(_, value)| value)
            .collect(),
    })
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
    pub fn finish(self, signal: Option<Signal>, leads: Leads) -> Snapshot {
        let mut core = Vec::new();
        let first = self.threads.first().and_then(stack);
        let site = first.map_or(String::new(), |first| self.site(&first, signal));
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
            core: CoreFile::Bytes(core),
            leads,
            held: Duration::ZERO,
            trouble: (!trouble.is_empty()).then(|| trouble.join(", ")),
        }
    }

    /// `SEGV /usr/bin/x+0x1234 9f3c…`: does not move with the address space. What aborts always does so at one place of
    /// the C library, so that the way there counts too: the last number stands for the code that the top of the stack
    /// points to.
    fn site(&self, first: &choose::Stack, signal: Option<Signal>) -> String {
        let place = |address: u64| {
            let area = self.areas.iter().find(|area| area.contains(address))?;
            let offset = address - area.start + area.offset;
            Some((area.file().filter(|_| area.execute)?, offset))
        };
        let signal = signal.map_or(String::new(), |signal| signal.to_string());
        let pc = match place(first.pc) {
            Some((path, offset)) => format!("{}+{offset:#x}", String::from_utf8_lossy(path)),
            None => format!("{:#x}", first.pc),
        };
        let mut way = DefaultHasher::new();
        for (path, offset) in self.top(first.sp).filter_map(place).take(WAY) {
            (path, offset).hash(&mut way);
        }
        format!("{signal} {pc} {:016x}", way.finish())
    }

    /// The words at the top of the stack.
    fn top(&self, sp: u64) -> impl Iterator<Item = u64> {
        let range = self
            .ranges
            .iter()
            .find(|(start, bytes)| (*start..*start + bytes.len() as u64).contains(&sp));
        let bytes = range.and_then(|(start, bytes)| bytes.get((sp - start) as usize..));
        let words = bytes.unwrap_or_default().as_chunks::<8>().0;
        words.iter().take(TOP).map(|word| u64::from_le_bytes(*word))
    }
}

/// Words of the stack that are looked at.
const TOP: usize = 512;
/// Pointers to code among them that count.
const WAY: usize = 12;
