//! registers, process facts, mappings, memory ranges → bytes of a small ELF core file.
//!
//! gdb, lldb and `core` of this house read it. Notes stand in the kernel's order, the crashing thread first. Every
//! mapping appears: with contents where a range covers it, else as a segment without file bytes, so that readers know
//! the address space and take the rest from the files; what no file has is not said to be zero. Written as a stream: the ranges are the only big thing.
//! Sources: `fs/binfmt_elf.c`, `include/linux/elfcore.h`, core(5).

use crate::crash::core_notes;
use crate::crash::elf;
use crate::crash::machine::Machine;
use std::io::{self, Write};

/// Segments with contents begin at page boundaries in the file, as in the kernel's cores.
pub const PAGE: u64 = 4096;
const EHDR_SIZE: u64 = 64;
const PHDR_SIZE: u64 = 56;
const SHDR_SIZE: u64 = 64;
/// From here on the number of segments stands in section header 0.
const PN_XNUM: usize = 0xffff;

/// A thread as `PTRACE_GETREGSET` or the kernel's notes give it.
#[derive(Clone, Debug, Default)]
pub struct Thread {
    pub tid: u32,
    /// `pr_cursig`: the signal that this thread was about to receive.
    pub signal: u16,
    /// NT_PRSTATUS register set (`user_regs_struct`).
    pub registers: Vec<u8>,
    /// NT_FPREGSET (NT_PRFPREG) register set; may be empty.
    pub float_registers: Vec<u8>,
    /// Further register sets by note type: NT_X86_XSTATE 0x202, NT_ARM_TLS 0x401, NT_ARM_SVE 0x405,
    /// NT_ARM_PAC_MASK 0x406. On processors with SVE gdb needs the last two.
    pub extra: Vec<(u32, Vec<u8>)>,
    /// `comm`, which no standard note carries.
    pub name: Option<String>,
}

/// NT_PRPSINFO.
#[derive(Clone, Debug, Default)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    pub group: u32,
    pub session: u32,
    pub uid: u32,
    pub gid: u32,
    /// At most 15 bytes are kept.
    pub name: String,
    /// At most 79 bytes are kept.
    pub arguments: String,
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, Default)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    /// Bytes from the beginning of the file.
    pub offset: u64,
    pub read: bool,
    pub write: bool,
    pub execute: bool,
    /// A file's path (with the kernel's ` (deleted)` where it applies); `None` for anonymous memory and for names in
    /// brackets.
    pub path: Option<Vec<u8>>,
}

/// Everything that goes into a core file.
#[derive(Clone, Debug)]
pub struct SmallCore<'d> {
    pub machine: Machine,
    /// Crashing thread first.
    pub threads: Vec<Thread>,
    pub process: Process,
    /// The raw `siginfo_t`; may be empty.
    pub siginfo: Vec<u8>,
    /// The raw auxiliary vector.
    pub auxv: Vec<u8>,
    pub mappings: Vec<Mapping>,
    /// Contents: address and bytes. Any order; where two overlap the one that begins first wins.
    pub ranges: Vec<(u64, &'d [u8])>,
}

/// A part of a mapping that has contents throughout or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece<'d> {
    start: u64,
    end: u64,
    /// PT_LOAD or PT_OMITTED.
    kind: u32,
    flags: u32,
    bytes: &'d [u8],
}

impl SmallCore<'_> {
    /// Writes the file from its beginning; returns its length.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<u64> {
        let notes = core_notes::notes(self);
        let pieces = self.pieces();
        let segments = pieces.len() + 1;
        let extended = segments >= PN_XNUM;
        let headers =
            EHDR_SIZE + PHDR_SIZE * segments as u64 + if extended { SHDR_SIZE } else { 0 };
        let mut at = (headers + notes.len() as u64).next_multiple_of(PAGE);
        let padding = at - headers - notes.len() as u64;

        out.write_all(&self.file_header(segments, extended))?;
        out.write_all(&segment(elf::PT_NOTE, 0, headers, 0, notes.len() as u64, 0))?;
        for piece in &pieces {
            let size = piece.bytes.len() as u64;
            out.write_all(&segment(
                piece.kind,
                piece.flags,
                at,
                piece.start,
                size,
                piece.end - piece.start,
            ))?;
            at += size.next_multiple_of(PAGE);
        }
        if extended {
            out.write_all(&first_section(segments))?;
        }
        out.write_all(&notes)?;
        zeros(out, padding)?;
        for piece in &pieces {
            out.write_all(piece.bytes)?;
            zeros(
                out,
                (piece.bytes.len() as u64).next_multiple_of(PAGE) - piece.bytes.len() as u64,
            )?;
        }
        Ok(at)
    }

    fn file_header(&self, segments: usize, extended: bool) -> Vec<u8> {
        let mut header = b"\x7fELF\x02\x01\x01".to_vec();
        header.resize(16, 0);
        let section_table = EHDR_SIZE + PHDR_SIZE * segments as u64;
        for half in [elf::ET_CORE, self.machine.elf_number()] {
            header.extend(half.to_le_bytes());
        }
        header.extend(1u32.to_le_bytes());
        for word in [0, EHDR_SIZE, if extended { section_table } else { 0 }] {
            header.extend(word.to_le_bytes());
        }
        header.extend(0u32.to_le_bytes());
        let count = segments.min(PN_XNUM) as u16;
        for half in [
            EHDR_SIZE as u16,
            PHDR_SIZE as u16,
            count,
            SHDR_SIZE as u16,
            u16::from(extended),
            0,
        ] {
            header.extend(half.to_le_bytes());
        }
        header
    }

    /// The address space cut wherever a mapping or a range begins or ends; what is in neither is left out. Ranges
    /// outside every mapping become segments of their own.
    fn pieces(&self) -> Vec<Piece<'_>> {
        let ranges = disjoint(&self.ranges);
        let mut mappings: Vec<&Mapping> =
            self.mappings.iter().filter(|m| m.start < m.end).collect();
        mappings.sort_by_key(|m| m.start);
        let mut cuts: Vec<u64> = mappings.iter().flat_map(|m| [m.start, m.end]).collect();
        cuts.extend(
            ranges
                .iter()
                .flat_map(|(start, bytes)| [*start, start + bytes.len() as u64]),
        );
        cuts.sort_unstable();
        cuts.dedup();
        let mut mappings = mappings.into_iter().peekable();
        let mut ranges = ranges.into_iter().peekable();
        let mut pieces = Vec::new();
        for pair in cuts.windows(2) {
            let [start, end] = *pair else { continue };
            while mappings.next_if(|m| m.end <= start).is_some() {}
            while ranges
                .next_if(|(at, bytes)| at + bytes.len() as u64 <= start)
                .is_some()
            {}
            let mapping = mappings.peek().filter(|m| m.start <= start);
            let range = ranges.peek().filter(|(at, _)| *at <= start);
            if mapping.is_none() && range.is_none() {
                continue;
            }
            // What a file has not, or not as it was.
            let is_own = mapping.is_some_and(|m| m.write || m.path.is_none());
            pieces.push(Piece {
                start,
                end,
                kind: match range {
                    None if is_own => elf::PT_OMITTED,
                    None | Some(_) => elf::PT_LOAD,
                },
                flags: mapping.map_or(elf::PF_R, |m| flags(m)),
                bytes: range.map_or(&[], |(at, bytes)| cut(bytes, *at, start, end)),
            });
        }
        pieces
    }
}

fn flags(mapping: &Mapping) -> u32 {
    let bits = [
        (mapping.read, elf::PF_R),
        (mapping.write, elf::PF_W),
        (mapping.execute, elf::PF_X),
    ];
    bits.into_iter()
        .filter(|(set, _)| *set)
        .map(|(_, bit)| bit)
        .sum()
}

/// Sorted ranges without their overlaps; those that would pass the end of the address space are left out.
fn disjoint<'d>(ranges: &[(u64, &'d [u8])]) -> Vec<(u64, &'d [u8])> {
    let mut sorted: Vec<(u64, &[u8])> = ranges
        .iter()
        .copied()
        .filter(|(start, bytes)| start.checked_add(bytes.len() as u64).is_some())
        .collect();
    sorted.sort_by_key(|(start, _)| *start);
    let mut kept: Vec<(u64, &[u8])> = Vec::with_capacity(sorted.len());
    let mut done = 0;
    for (start, bytes) in sorted {
        let end = start + bytes.len() as u64;
        let from = start.max(done);
        if from < end {
            kept.push((from, cut(bytes, start, from, end)));
            done = end;
        }
    }
    kept
}

/// The part `from..to` of bytes that begin at `start`.
fn cut(bytes: &[u8], start: u64, from: u64, to: u64) -> &[u8] {
    bytes
        .get((from - start) as usize..(to - start) as usize)
        .unwrap_or_default()
}

fn segment(
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
) -> Vec<u8> {
    let mut header = Vec::with_capacity(PHDR_SIZE as usize);
    header.extend(kind.to_le_bytes());
    header.extend(flags.to_le_bytes());
    let align = if kind == elf::PT_LOAD { PAGE } else { 4 };
    for word in [offset, address, 0, file_size, memory_size, align] {
        header.extend(word.to_le_bytes());
    }
    header
}

/// Section header 0, whose `sh_info` is the number of segments.
fn first_section(segments: usize) -> Vec<u8> {
    let mut header = vec![0; SHDR_SIZE as usize];
    if let Some(info) = header.get_mut(44..48) {
        info.copy_from_slice(&(segments as u32).to_le_bytes());
    }
    header
}

fn zeros(out: &mut impl Write, mut count: u64) -> io::Result<()> {
    const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
    while count > 0 {
        let now = count.min(PAGE);
        out.write_all(ZEROS.get(..now as usize).unwrap_or(&ZEROS))?;
        count -= now;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash::core::Core;

    fn thread(tid: u32, pc: u64) -> Thread {
        let mut registers = vec![0; 27 * 8];
        registers[16 * 8..17 * 8].copy_from_slice(&pc.to_le_bytes());
        Thread {
            tid,
            signal: 11,
            registers,
            name: Some(format!("t{tid}")),
            ..Thread::default()
        }
    }

    fn mapping(start: u64, end: u64, path: Option<&str>) -> Mapping {
        Mapping {
            start,
            end,
            read: true,
            execute: path.is_some(),
            path: path.map(|p| p.into()),
            ..Mapping::default()
        }
    }

    fn small<'d>(mappings: Vec<Mapping>, ranges: Vec<(u64, &'d [u8])>) -> SmallCore<'d> {
        SmallCore {
            machine: Machine::X86_64,
            threads: vec![thread(7, 0x1234), thread(8, 0x5678)],
            process: Process {
                pid: 7,
                name: "a name longer than sixteen".into(),
                arguments: "a b".into(),
                ..Process::default()
            },
            siginfo: Vec::new(),
            auxv: [3u64, 0x40, 0, 0]
                .iter()
                .flat_map(|w| w.to_le_bytes())
                .collect(),
            mappings,
            ranges,
        }
    }

    fn bytes(core: &SmallCore<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        let len = core.write(&mut out).unwrap();
        assert_eq!(len, out.len() as u64);
        out
    }

    #[test]
    fn what_is_written_is_read_back() {
        let page = [7u8; 4096];
        let core = small(
            vec![
                mapping(0x1000, 0x4000, Some("/bin/x")),
                mapping(0x8000, 0x9000, None),
            ],
            vec![(0x2000, &page), (0x8000, &page[..16])],
        );
        let file = bytes(&core);
        let read = Core::parse(&file).unwrap();
        assert_eq!(
            read.threads
                .iter()
                .map(|t| (t.tid, t.registers.pc()))
                .collect::<Vec<_>>(),
            [(7, 0x1234), (8, 0x5678)]
        );
        assert_eq!(read.threads[1].name.as_deref(), Some("t8"));
        assert_eq!(
            read.process
                .as_ref()
                .map(|p| (p.pid, p.name.as_str(), p.arguments.as_str())),
            Some((7, "a name longer t", "a b"))
        );
        assert_eq!(
            (read.files[0].path.as_slice(), read.files[0].end),
            (&b"/bin/x"[..], 0x4000)
        );
        assert_eq!(read.memory.array::<2>(0x2ffe), Some([7, 7]));
        assert_eq!(read.memory.array::<1>(0x1fff), None);
        assert!(read.memory.is_executable(0x3800) && !read.memory.is_executable(0x8000));
        assert_eq!(read.signal.map(|s| s.number), Some(11));
        assert_eq!(read.auxv, [(3, 0x40)]);
    }

    #[test]
    fn ranges_and_mappings_may_overlap_in_any_way() {
        let data: Vec<u8> = (0..=255).collect();
        // A range over two mappings and the gap between them, one outside all, one inside another.
        let core = small(
            vec![
                mapping(0x10, 0x20, None),
                mapping(0x30, 0x40, None),
                mapping(0x38, 0x50, None),
            ],
            vec![
                (0x08, &data[..0x40]),
                (0x18, &data[..4]),
                (0x100, &data[..8]),
            ],
        );
        let pieces = core.pieces();
        for pair in pieces.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pieces:x?}");
        }
        let file = bytes(&core);
        let read = Core::parse(&file).unwrap();
        for address in (0x10u64..0x20).chain(0x30..0x48) {
            assert_eq!(
                read.memory.array::<1>(address),
                Some([(address - 8) as u8]),
                "{address:x}"
            );
        }
        assert_eq!(
            read.memory.array::<8>(0x100),
            data[..8].first_chunk().copied()
        );
        assert_eq!(read.memory.array::<1>(0x49), None);
    }

    #[test]
    fn more_segments_than_the_header_can_count() {
        let mappings = (0..70_000u64)
            .map(|i| mapping(i * 0x2000, i * 0x2000 + 0x1000, None))
            .collect();
        let file = bytes(&small(mappings, Vec::new()));
        assert_eq!(Core::parse(&file).unwrap().memory.regions().len(), 70_000);
    }
}
