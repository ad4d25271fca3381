//! bytes of an ELF core file → threads, registers, memory, mapped files.
//!
//! Reads full kernel cores, the small cores of `core_write`, and those of qemu-user (which lack NT_FILE and
//! NT_SIGINFO); also cut off ones. Nothing is trusted: what does not fit is left out. The crashing thread comes
//! first, as the kernel writes it. Sources: core(5), `include/linux/elfcore.h`, gdb's `elf-common.h`.

use crate::crash::elf::{self, Elf, Note};
use crate::crash::le;
use crate::crash::machine::{Machine, Registers};
use crate::crash::memory::{Access, Memory, Region};

pub const NT_PRSTATUS: u32 = 1;
pub const NT_FPREGSET: u32 = 2;
pub const NT_PRPSINFO: u32 = 3;
pub const NT_AUXV: u32 = 6;
pub const NT_FILE: u32 = 0x4649_4c45;
pub const NT_SIGINFO: u32 = 0x5349_4749;
pub const NT_ARM_TLS: u32 = 0x401;
pub const NT_ARM_PAC_MASK: u32 = 0x406;
/// Owner of the note that carries what no standard note does: one `tid name` line for each thread.
pub const AGENT_NOTE_NAME: &[u8] = b"JETTISON";
pub const NT_AGENT_THREAD_NAMES: u32 = 1;

pub const AT_PHDR: u64 = 3;
pub const AT_PHNUM: u64 = 5;
pub const AT_BASE: u64 = 7;
pub const AT_ENTRY: u64 = 9;
pub const AT_EXECFN: u64 = 31;
pub const AT_SYSINFO_EHDR: u64 = 33;

/// Offsets in `elf_prstatus`, the same on both machines.
pub const PR_CURSIG: usize = 12;
pub const PR_PID: usize = 32;
pub const PR_REG: usize = 112;

#[derive(Clone, Debug)]
pub struct Thread {
    pub tid: u32,
    pub name: Option<String>,
    pub registers: Registers,
}

/// NT_PRPSINFO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub name: String,
    pub arguments: String,
}

/// What ended the process: NT_SIGINFO, or only a number from NT_PRSTATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    pub number: i32,
    pub code: Option<i32>,
    /// `si_addr`; meaningful for faults only.
    pub address: Option<u64>,
    /// `si_pid`; meaningful where `code` says that a process sent it.
    pub sender: Option<u32>,
}

/// One line of NT_FILE: `start..end` shows the file from `offset` (bytes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMapping {
    pub start: u64,
    pub end: u64,
    pub offset: u64,
    pub path: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Core<'a> {
    pub machine: Machine,
    /// Crashing thread first.
    pub threads: Vec<Thread>,
    pub process: Option<Process>,
    pub signal: Option<Signal>,
    pub auxv: Vec<(u64, u64)>,
    pub files: Vec<FileMapping>,
    pub memory: Memory<'a>,
    /// Bits of a code address that a signature may occupy (NT_ARM_PAC_MASK), or a guess from the mappings.
    pub pac_mask: u64,
    /// Bytes that the segment table promises and the file does not have.
    pub missing: u64,
}

/// Why bytes are not a core that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreError {
    NotElf,
    NotCore,
    Machine(u16),
    NoThreads,
}

impl std::fmt::Display for CoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CoreError::NotElf => write!(f, "not a 64-bit little-endian ELF file"),
            CoreError::NotCore => write!(f, "an ELF file, but not a core file"),
            CoreError::Machine(n) => write!(
                f,
                "a core of ELF machine {n}; x86-64 (62) and aarch64 (183) can be read"
            ),
            CoreError::NoThreads => write!(f, "a core file without registers of any thread"),
        }
    }
}

impl std::error::Error for CoreError {}

impl<'a> Core<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Core<'a>, CoreError> {
        let elf = Elf::parse(bytes).ok_or(CoreError::NotElf)?;
        if elf.kind != elf::ET_CORE {
            return Err(CoreError::NotCore);
        }
        let machine = Machine::from_elf(elf.machine).ok_or(CoreError::Machine(elf.machine))?;
        let (memory, missing) = read_memory(&elf);
        let mut core = Core {
            machine,
            threads: Vec::new(),
            process: None,
            signal: None,
            auxv: Vec::new(),
            files: Vec::new(),
            pac_mask: guess_pac_mask(machine, &memory),
            memory,
            missing,
        };
        for note in elf.notes() {
            core.take_note(&note);
        }
        if core.threads.is_empty() {
            return Err(CoreError::NoThreads);
        }
        Ok(core)
    }

    /// The notes of one thread follow its NT_PRSTATUS.
    fn take_note(&mut self, note: &Note<'a>) {
        if note.name == AGENT_NOTE_NAME {
            if note.kind == NT_AGENT_THREAD_NAMES {
                self.name_threads(note.data);
            }
            return;
        }
        if note.name != b"CORE" && note.name != b"LINUX" {
            return;
        }
        match note.kind {
            NT_PRSTATUS => self.take_prstatus(note.data),
            NT_FPREGSET => {
                if let Some(thread) = self.threads.last_mut() {
                    thread.registers.set_vectors(note.data);
                }
            }
            NT_ARM_TLS => {
                if let (Some(thread), Some(value)) =
                    (self.threads.last_mut(), le::u64_at(note.data, 0))
                {
                    thread.registers.set_thread_pointer(value);
                }
            }
            NT_ARM_PAC_MASK if self.machine == Machine::Aarch64 => {
                self.pac_mask = le::u64_at(note.data, 8).unwrap_or(self.pac_mask);
            }
            NT_PRPSINFO => self.process = read_prpsinfo(note.data),
            NT_SIGINFO => self.signal = read_siginfo(note.data).or(self.signal),
            NT_AUXV => self.auxv = read_auxv(note.data),
            NT_FILE => self.files = read_file_note(note.data),
            _ => {}
        }
    }

    fn take_prstatus(&mut self, data: &[u8]) {
        let registers = data
            .get(PR_REG..)
            .and_then(|b| Registers::from_user_regs(self.machine, b));
        let (Some(registers), Some(tid)) = (registers, le::u32_at(data, PR_PID)) else {
            return;
        };
        let number = i32::from(le::u16_at(data, PR_CURSIG).unwrap_or(0));
        if self.signal.is_none() && number != 0 {
            self.signal = Some(Signal {
                number,
                code: None,
                address: None,
                sender: None,
            });
        }
        self.threads.push(Thread {
            tid,
            name: None,
            registers,
        });
    }

    fn name_threads(&mut self, lines: &[u8]) {
        for line in String::from_utf8_lossy(lines).lines() {
            let Some((tid, name)) = line.split_once(' ') else {
                continue;
            };
            let thread = self.threads.iter_mut().find(|t| tid.parse() == Ok(t.tid));
            if let Some(thread) = thread {
                thread.name = Some(name.to_owned());
            }
        }
    }

    pub fn auxv(&self, kind: u64) -> Option<u64> {
        self.auxv.iter().find(|(k, _)| *k == kind).map(|(_, v)| *v)
    }

    /// A code address without a pointer authentication signature.
    pub fn strip(&self, address: u64) -> u64 {
        strip_signature(address, self.pac_mask)
    }
}

/// Bit 55 tells user addresses (0) from kernel ones (1), whose unused bits are set rather than cleared.
pub fn strip_signature(address: u64, mask: u64) -> u64 {
    if address & (1 << 55) == 0 {
        address & !mask
    } else {
        address | mask
    }
}

fn read_memory<'a>(elf: &Elf<'a>) -> (Memory<'a>, u64) {
    let mut missing = 0u64;
    let mut regions = Vec::new();
    let is_memory = |kind: u32| kind == elf::PT_LOAD || kind == elf::PT_OMITTED;
    for segment in elf.segments.iter().filter(|s| is_memory(s.kind)) {
        let Some(end) = segment.address.checked_add(segment.memory_size) else {
            continue;
        };
        let dumped = elf.segment_bytes(segment);
        missing = missing.saturating_add(segment.file_size - dumped.len() as u64);
        regions.push(Region {
            start: segment.address,
            end,
            access: Access {
                write: segment.flags & elf::PF_W != 0,
                execute: segment.flags & elf::PF_X != 0,
            },
            dumped,
            backing: &[],
        });
    }
    (Memory::new(regions), missing)
}

/// Every bit above the highest mapping of user space, but bit 55, which is never part of a signature.
fn guess_pac_mask(machine: Machine, memory: &Memory<'_>) -> u64 {
    if machine != Machine::Aarch64 {
        return 0;
    }
    let highest = memory
        .regions()
        .iter()
        .map(|r| r.end)
        .filter(|end| end >> 55 == 0)
        .max()
        .unwrap_or(0);
    let bits = (64 - highest.leading_zeros()).clamp(36, 55);
    !((1u64 << bits) - 1) & !(1 << 55)
}

fn read_prpsinfo(data: &[u8]) -> Option<Process> {
    let text = |from, len| {
        let field = le::slice_up_to(data, from, len);
        let text = le::c_string(field, 0).unwrap_or_default();
        String::from_utf8_lossy(text).trim_end().to_owned()
    };
    Some(Process {
        pid: le::u32_at(data, 24)?,
        name: text(40, 16),
        arguments: text(56, 80),
    })
}

fn read_siginfo(data: &[u8]) -> Option<Signal> {
    let number = le::u32_at(data, 0)? as i32;
    Some(Signal {
        number,
        code: le::u32_at(data, 8).map(|c| c as i32),
        address: le::u64_at(data, 16),
        sender: le::u32_at(data, 16),
    })
}

fn read_auxv(data: &[u8]) -> Vec<(u64, u64)> {
    let pairs = data.as_chunks::<16>().0.iter();
    pairs
        .filter_map(|p| Some((le::u64_at(p, 0)?, le::u64_at(p, 8)?)))
        .take_while(|(kind, _)| *kind != 0)
        .collect()
}

fn read_file_note(data: &[u8]) -> Vec<FileMapping> {
    let count = le::u64_at(data, 0).unwrap_or(0).min(data.len() as u64 / 24) as usize;
    let page = le::u64_at(data, 8).unwrap_or(1);
    let mut name_at = 16 + count * 24;
    let mut files = Vec::with_capacity(count);
    for index in 0..count {
        let at = 16 + index * 24;
        let (Some(start), Some(end), Some(pages), Some(path)) = (
            le::u64_at(data, at),
            le::u64_at(data, at + 8),
            le::u64_at(data, at + 16),
            le::c_string(data, name_at),
        ) else {
            break;
        };
        name_at += path.len() + 1;
        if start >= end {
            continue;
        }
        files.push(FileMapping {
            start,
            end,
            offset: pages.saturating_mul(page),
            path: path.to_vec(),
        });
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_core_is_refused_by_reason() {
        assert_eq!(Core::parse(b"hello").err(), Some(CoreError::NotElf));
        let mut header = vec![0u8; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        assert_eq!(Core::parse(&header).err(), Some(CoreError::NotCore));
        header[16] = 4;
        header[18] = 40;
        assert_eq!(Core::parse(&header).err(), Some(CoreError::Machine(40)));
        header[18] = 62;
        assert_eq!(Core::parse(&header).err(), Some(CoreError::NoThreads));
    }

    #[test]
    fn the_file_note_is_cut_where_it_ends() {
        let mut note = Vec::new();
        for word in [2u64, 4096, 0x1000, 0x2000, 3, 0x5000, 0x6000, 0] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"/a\0/b\0");
        let files = read_file_note(&note);
        assert_eq!(files.len(), 2);
        assert_eq!(
            (files[0].offset, files[1].path.as_slice()),
            (3 * 4096, &b"/b"[..])
        );
        note[0] = 0xff;
        assert!(read_file_note(&note).len() <= 3);
        assert!(read_file_note(&note[..20]).is_empty());
    }

    #[test]
    fn signatures_are_stripped_from_user_and_kernel_addresses() {
        let mask = 0xff7f_0000_0000_0000;
        assert_eq!(
            strip_signature(0x0034_aaaa_bbbb_cccc, mask),
            0x0000_aaaa_bbbb_cccc
        );
        assert_eq!(
            strip_signature(0xff80_0000_0000_0001, mask),
            0xffff_0000_0000_0001
        );
    }
}
