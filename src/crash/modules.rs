//! core → the files that the process had mapped: where, from which path, of which build.
//!
//! From NT_FILE; in cores without it (qemu-user) from the dynamic linker's list of loaded objects. Addresses of the
//! image are told from the program headers in memory, else from those of the file once it is found.

use crate::crash::core::{AT_BASE, AT_ENTRY, AT_EXECFN, AT_PHDR, AT_PHNUM, AT_SYSINFO_EHDR, Core};
use crate::crash::elf::{self, Elf, Segment};
use crate::crash::memory::Memory;

/// More than any process has mapped; bounds the work for hostile cores.
const MAX_MODULES: usize = 20_000;
/// No image read from memory is bigger than this.
const MAX_MEMORY_IMAGE: u64 = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub end: u64,
    /// Offset of `start` in the file.
    pub offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Executable,
    Library,
    /// The kernel's own, only in memory.
    Vdso,
}

/// One ELF file of the process.
#[derive(Clone, Debug)]
pub struct Mapped {
    /// Without the kernel's ` (deleted)`.
    pub path: String,
    pub kind: Kind,
    pub deleted: bool,
    /// Empty where only the load address is known.
    pub ranges: Vec<Range>,
    /// Run-time minus link-time address, where memory tells it.
    pub bias: Option<u64>,
    /// From the image in memory.
    pub build_id: Option<Vec<u8>>,
}

impl Mapped {
    pub fn start(&self) -> u64 {
        self.ranges
            .first()
            .map_or(self.bias.unwrap_or(0), |r| r.start)
    }

    pub fn contains(&self, address: u64) -> bool {
        self.ranges
            .iter()
            .any(|r| (r.start..r.end).contains(&address))
    }

    /// The bias that a file's program headers give for these mappings.
    pub fn bias_by(&self, segments: &[Segment]) -> Option<u64> {
        bias(&self.ranges, segments)
    }
}

/// Every ELF file that was mapped, sorted by address, and the vDSO.
/// `executable` helps where the core has neither NT_FILE nor the program's headers.
pub fn discover(core: &Core<'_>, executable: Option<&Elf<'_>>) -> Vec<Mapped> {
    let mut modules = from_file_note(core);
    if modules.is_empty() {
        modules = from_link_map(core, executable);
    }
    if let Some(vdso) = vdso(core) {
        modules.push(vdso);
    }
    let entry = core.auxv(AT_ENTRY).or(core.auxv(AT_PHDR));
    let executable = modules
        .iter()
        .position(|m| entry.is_some_and(|e| m.contains(e)))
        .or_else(|| modules.iter().position(|m| m.kind == Kind::Executable));
    for (index, module) in modules.iter_mut().enumerate() {
        if Some(index) == executable {
            module.kind = Kind::Executable;
        } else if module.kind == Kind::Executable {
            module.kind = Kind::Library;
        }
    }
    modules.sort_by_key(Mapped::start);
    modules
}

fn from_file_note(core: &Core<'_>) -> Vec<Mapped> {
    let mut modules: Vec<Mapped> = Vec::new();
    for file in core.files.iter().take(MAX_MODULES) {
        let range = Range {
            start: file.start,
            end: file.end,
            offset: file.offset,
        };
        let path = String::from_utf8_lossy(&file.path);
        let (path, deleted) = match path.strip_suffix(" (deleted)") {
            Some(path) => (path, true),
            None => (&*path, false),
        };
        let begins = file.offset == 0 && is_elf_at(&core.memory, file.start);
        // A linker may map a file's first page twice; a second copy of the object begins elsewhere.
        let continues = modules.last().is_some_and(|last| {
            let apart = last
                .ranges
                .last()
                .map_or(u64::MAX, |r| file.start.saturating_sub(r.end));
            last.path == path && !(begins && apart > 0)
        });
        match modules.last_mut() {
            Some(last) if continues => last.ranges.push(range),
            _ => modules.push(Mapped {
                path: path.to_owned(),
                kind: Kind::Library,
                deleted,
                ranges: vec![range],
                bias: None,
                build_id: None,
            }),
        }
    }
    modules.retain_mut(|module| {
        let executable = module
            .ranges
            .iter()
            .any(|r| core.memory.is_executable(r.start));
        identify(module, core) || executable
    });
    modules
}

/// Takes bias and build-id from the image in memory; `false` where there is no ELF header.
fn identify(module: &mut Mapped, core: &Core<'_>) -> bool {
    let Some(first) = module.ranges.iter().find(|r| r.offset == 0).copied() else {
        return false;
    };
    if !is_elf_at(&core.memory, first.start) {
        return false;
    }
    let Some(elf) = Elf::parse(core.memory.known(first.start)) else {
        return false;
    };
    module.bias = bias(&module.ranges, &elf.segments);
    module.build_id = module
        .bias
        .and_then(|bias| build_id_in_memory(&core.memory, &elf.segments, bias));
    true
}

/// The build-id note, read through its run-time address: it need not be in the first page.
pub fn build_id_in_memory(memory: &Memory<'_>, segments: &[Segment], bias: u64) -> Option<Vec<u8>> {
    let notes = segments.iter().filter(|s| s.kind == elf::PT_NOTE);
    notes
        .filter_map(|s| {
            memory.bytes(
                s.address.wrapping_add(bias),
                s.memory_size.min(4096) as usize,
            )
        })
        .find_map(|bytes| {
            elf::Notes(&bytes)
                .find(|n| n.kind == elf::NT_GNU_BUILD_ID && n.name == b"GNU" && !n.data.is_empty())
                .map(|n| n.data.to_vec())
        })
}

fn is_elf_at(memory: &Memory<'_>, address: u64) -> bool {
    memory.array::<4>(address) == Some(*b"\x7fELF")
}

/// A mapping and the segment that it shows agree in file offset; the bias is the distance of their addresses.
fn bias(ranges: &[Range], segments: &[Segment]) -> Option<u64> {
    const SMALLEST_PAGE: u64 = 4096;
    ranges.iter().find_map(|range| {
        let segment = segments
            .iter()
            .filter(|s| s.kind == elf::PT_LOAD && s.file_size > 0)
            .find(|s| {
                let begins = s.offset & !(SMALLEST_PAGE - 1);
                (begins..s.offset.saturating_add(s.file_size)).contains(&range.offset)
            })?;
        let address_of_range = segment
            .address
            .wrapping_sub(segment.offset)
            .wrapping_add(range.offset);
        Some(range.start.wrapping_sub(address_of_range))
    })
}

fn vdso(core: &Core<'_>) -> Option<Mapped> {
    let start = core.auxv(AT_SYSINFO_EHDR)?;
    let region = core.memory.region(start).filter(|r| r.start == start)?;
    let elf = Elf::parse(core.memory.known(start))?;
    let ranges = vec![Range {
        start,
        end: region.end,
        offset: 0,
    }];
    Some(Mapped {
        path: "[vdso]".to_owned(),
        kind: Kind::Vdso,
        deleted: false,
        bias: bias(&ranges, &elf.segments),
        build_id: elf.build_id().map(<[u8]>::to_vec),
        ranges,
    })
}

/// The executable through AT_PHDR, and through its `DT_DEBUG` the list of loaded objects (`struct link_map`).
fn from_link_map(core: &Core<'_>, executable: Option<&Elf<'_>>) -> Vec<Mapped> {
    let memory = &core.memory;
    let in_memory = program_headers(core);
    let (segments, bias) = match (executable, core.auxv(AT_ENTRY)) {
        (Some(elf), Some(entry)) if in_memory.is_empty() => {
            (elf.segments.clone(), entry.wrapping_sub(elf.entry))
        }
        _ => {
            let bias = executable_bias(core, &in_memory);
            (in_memory, bias)
        }
    };
    let path = executable_path(core).unwrap_or_default();
    let mut modules = vec![loaded(path, bias, &segments)];
    if let Some(first) = modules.first_mut() {
        first.kind = Kind::Executable;
        first.build_id = build_id_in_memory(memory, &segments, bias);
    }
    let mut link = debug_list(memory, &segments, bias).unwrap_or(0);
    while link != 0 && modules.len() < MAX_MODULES {
        let (Some(bias), Some(name), next) = (
            memory.u64(link),
            memory.u64(link + 8),
            memory.u64(link + 24),
        ) else {
            break;
        };
        let name = memory
            .c_string(name, 4096)
            .map(|(n, _)| n)
            .unwrap_or_default();
        // The vDSO has a name without a folder.
        if name.contains(&b'/') {
            modules.push(loaded(
                String::from_utf8_lossy(&name).into_owned(),
                bias,
                &[],
            ));
        }
        let Some(next) = next.filter(|n| *n < u64::MAX - 64) else {
            break;
        };
        link = next;
    }
    if let Some(linker) = core.auxv(AT_BASE).filter(|b| *b != 0)
        && !modules.iter().any(|m| m.bias == Some(linker))
    {
        let path = executable
            .and_then(interpreter)
            .unwrap_or_else(|| "ld.so".to_owned());
        modules.push(loaded(path, linker, &[]));
    }
    modules
}

/// As it was started (AT_EXECFN).
pub fn executable_path(core: &Core<'_>) -> Option<String> {
    let (path, _) = core.memory.c_string(core.auxv(AT_EXECFN)?, 4096)?;
    Some(String::from_utf8_lossy(&path).into_owned())
}

/// The dynamic linker's path, from PT_INTERP.
fn interpreter(executable: &Elf<'_>) -> Option<String> {
    let segment = executable.segments_of(elf::PT_INTERP).next()?;
    let bytes = executable.segment_bytes(segment);
    let path = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    Some(String::from_utf8_lossy(path).into_owned())
}

fn loaded(path: String, bias: u64, segments: &[Segment]) -> Mapped {
    let ranges = ranges_at(bias, segments);
    Mapped {
        path,
        kind: Kind::Library,
        deleted: false,
        ranges,
        bias: Some(bias),
        build_id: None,
    }
}

/// Where a file's segments lie when loaded at a bias.
pub fn ranges_at(bias: u64, segments: &[Segment]) -> Vec<Range> {
    let loads = segments
        .iter()
        .filter(|s| s.kind == elf::PT_LOAD && s.memory_size > 0);
    loads
        .map(|s| {
            let start = s.address.wrapping_add(bias);
            Range {
                start,
                end: start.saturating_add(s.memory_size),
                offset: s.offset,
            }
        })
        .collect()
}

fn program_headers(core: &Core<'_>) -> Vec<Segment> {
    let (Some(at), Some(count)) = (core.auxv(AT_PHDR), core.auxv(AT_PHNUM)) else {
        return Vec::new();
    };
    let Some(bytes) = core.memory.bytes(at, (count.min(1024) * 56) as usize) else {
        return Vec::new();
    };
    bytes
        .chunks_exact(56)
        .filter_map(elf::read_segment)
        .collect()
}

fn executable_bias(core: &Core<'_>, segments: &[Segment]) -> u64 {
    let at = core.auxv(AT_PHDR).unwrap_or(0);
    if let Some(own) = segments.iter().find(|s| s.kind == elf::PT_PHDR) {
        return at.wrapping_sub(own.address);
    }
    // Static programs need not describe their own table: it follows the header at the start of the first segment.
    let first = segments
        .iter()
        .find(|s| s.kind == elf::PT_LOAD && s.offset == 0);
    first.map_or(0, |s| (at & !0xfff).wrapping_sub(s.address))
}

/// `r_debug.r_map`, through the dynamic section.
fn debug_list(memory: &Memory<'_>, segments: &[Segment], bias: u64) -> Option<u64> {
    const DT_DEBUG: u64 = 21;
    let dynamic = segments.iter().find(|s| s.kind == elf::PT_DYNAMIC)?;
    let start = dynamic.address.wrapping_add(bias);
    for index in 0..(dynamic.memory_size / 16).min(1024) {
        let entry = start.checked_add(index * 16)?;
        if memory.u64(entry)? == DT_DEBUG {
            return memory.u64(memory.u64(entry.checked_add(8)?)?.checked_add(8)?);
        }
    }
    None
}

/// The file of a module as far as memory holds it, at the places that the file has: for deleted and replaced files.
pub fn image_from_memory(core: &Core<'_>, module: &Mapped) -> Option<Vec<u8>> {
    let first = module.ranges.iter().find(|r| r.offset == 0)?;
    let header = Elf::parse(core.memory.known(first.start))?;
    let bias = module.bias?;
    let mut image = Vec::new();
    for segment in header.segments_of(elf::PT_LOAD) {
        let end = segment.offset.checked_add(segment.file_size)?;
        if end > MAX_MEMORY_IMAGE {
            return None;
        }
        let (start, end) = (segment.offset as usize, end as usize);
        if image.len() < end {
            image.resize(end, 0);
        }
        copy_known(
            &core.memory,
            segment.address.wrapping_add(bias),
            image.get_mut(start..end)?,
        );
    }
    Some(image)
}

fn copy_known(memory: &Memory<'_>, start: u64, out: &mut [u8]) {
    const PAGE: usize = 4096;
    for (index, page) in out.chunks_mut(PAGE).enumerate() {
        let Some(address) = start.checked_add((index * PAGE) as u64) else {
            return;
        };
        if !memory.read(address, page) {
            page.fill(0);
        }
    }
}
