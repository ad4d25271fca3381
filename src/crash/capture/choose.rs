//! mappings, registers, a way to read → which memory a small core must hold.
//!
//! Stacks, what registers point to, the globals, the dynamic linker's list, the vDSO, and the whole image of files
//! that are gone. Everything is bounded: one kind by its own limit, all together by [`MOST`]. What comes first is
//! kept when the limit is reached, so the crashed thread comes first.

use std::collections::HashSet;

use crate::crash::core::AT_PHDR;
use crate::crash::le;

use super::proc::{Area, Backing};

/// Bytes of all ranges together.
const MOST: u64 = 96 << 20;
const PAGE: u64 = 4096;
/// Below the stack pointer, where leaf functions keep their locals (System V ABI, red zone).
const RED_ZONE: u64 = 256;
const CRASHED_STACK: u64 = 16 << 20;
/// Of each other thread, and more where few threads share [`OTHER_STACKS`].
const OTHER_STACK: u64 = 256 << 10;
const OTHER_STACKS: u64 = 16 << 20;
/// On each side of what a register holds.
const AROUND: u64 = 4096;
/// More than `struct pthread` of glibc has (2304 bytes), less than a page.
const THREAD_BLOCK: u64 = 2560;
/// With at most so many threads the registers of all are followed.
const FEW_THREADS: usize = 16;
/// Of one writable mapping of a file.
const GLOBALS: u64 = 8 << 20;
/// Of read-only memory before it, whose end was relocated.
const RELOCATED: u64 = 2 << 20;
/// Images of files that are gone, together.
const GONE: u64 = 64 << 20;
/// Objects in the dynamic linker's list.
const MAX_OBJECTS: usize = 1024;
/// Of the top of the stack, searched for pointers: those of the top frames' variables.
const TOP_FRAMES: usize = 4 << 10;
/// The same, for the way back to the stack that a handler interrupted.
const HANDLER_FRAMES: usize = 16 << 10;
/// Of an alternate stack, searched for what the kernel saved there.
const ALTERNATE_STACK: usize = 256 << 10;
/// Handlers that interrupted each other.
const MAX_SIGNAL_FRAMES: usize = 8;
/// Pages behind pointers of the top frames.
const MAX_POINTED: usize = 256;
/// Pages behind pointers of what registers and those pointers lead to: texts of objects on the heap.
const MAX_FURTHER: usize = 128;
/// Of an object, searched for pointers.
const OBJECT: usize = 1 << 10;

/// Of `uc_stack` in a `ucontext_t`: its start, flags, its size.
const UC_STACK: usize = 16;
/// Stack pointer and program counter in a `ucontext_t` (asm/ucontext.h, asm/sigcontext.h).
const UC_SP: usize = if cfg!(target_arch = "aarch64") {
    432
} else {
    160
};
const UC_PC: usize = UC_SP + 8;
/// As far as it is looked at.
const UCONTEXT_SIZE: usize = UC_PC + 8;
/// Their sizes: none is smaller (MINSIGSTKSZ), and nobody makes bigger ones.
const ALTERNATE_STACKS: std::ops::RangeInclusive<u64> = 2048..=16 << 20;

/// A thread as far as this matters.
#[derive(Clone, Debug)]
pub struct Stack {
    pub pc: u64,
    pub sp: u64,
    pub registers: Vec<u64>,
    /// x86-64 `fs` base, aarch64 `tpidr_el0`.
    pub thread_pointer: Option<u64>,
}

/// Reads at most so many bytes; fewer where memory ends.
pub type Read<'r> = &'r mut dyn FnMut(u64, usize) -> Vec<u8>;

/// Page-aligned, sorted, disjoint ranges. `stacks` has the crashed thread first.
pub fn choose(
    areas: &[Area],
    stacks: &[Stack],
    auxv: &[(u64, u64)],
    read: Read<'_>,
) -> Vec<(u64, u64)> {
    let mut chosen = Chosen {
        areas,
        ranges: Vec::new(),
        bytes: 0,
    };
    let share = (OTHER_STACKS / stacks.len().max(1) as u64).max(OTHER_STACK);
    for (index, stack) in stacks.iter().enumerate() {
        let limit = match index {
            0 => CRASHED_STACK,
            // Of memory that only holds a stack among other things, it ends somewhere.
            _ if !chosen.is_stack_alone(stack.sp) => OTHER_STACK,
            _ => share,
        };
        chosen.stack(stack.sp, limit);
        chosen.page(stack.pc);
        if index == 0 {
            chosen.signal_frames(stack.sp, read);
            chosen.interrupted_stacks(stack.sp, read);
        }
        // The C library's own block of the thread stands before or behind it; debuggers know the thread by that.
        if let Some(own) = stack.thread_pointer {
            chosen.add(
                own.saturating_sub(THREAD_BLOCK),
                own.saturating_add(THREAD_BLOCK),
            );
        }
        if index == 0 || stacks.len() <= FEW_THREADS {
            for value in &stack.registers {
                chosen.add(value.saturating_sub(AROUND), value.saturating_add(AROUND));
            }
        }
    }
    if let Some(crashed) = stacks.first() {
        chosen.pointed(crashed, read);
    }
    chosen.images();
    chosen.objects(auxv, read);
    chosen.merged()
}

struct Chosen<'a> {
    areas: &'a [Area],
    ranges: Vec<(u64, u64)>,
    /// Of all ranges, overlaps counted twice.
    bytes: u64,
}

impl Chosen<'_> {
    fn area_of(&self, address: u64) -> Option<usize> {
        let index = self.areas.partition_point(|area| area.end <= address);
        let area = self.areas.get(index)?;
        area.contains(address).then_some(index)
    }

    fn at(&self, address: u64) -> Option<&Area> {
        self.areas.get(self.area_of(address)?)
    }

    /// The mapped parts of a range. Devices' memory is left alone: reading may have effects.
    fn add(&mut self, from: u64, to: u64) {
        let (from, to) = (
            from & !(PAGE - 1),
            to.checked_next_multiple_of(PAGE).unwrap_or(to),
        );
        let first = self.areas.partition_point(|area| area.end <= from);
        for area in self.areas.iter().skip(first) {
            if area.start >= to {
                break;
            }
            let (start, end) = (from.max(area.start), to.min(area.end));
            if !readable(area) || start >= end || self.bytes + (end - start) > MOST {
                continue;
            }
            self.bytes += end - start;
            self.ranges.push((start, end));
        }
    }

    fn page(&mut self, address: u64) {
        self.add(address, address.saturating_add(1));
    }

    /// From the stack pointer to the end of its mapping; from a guard page, the mapping behind it.
    fn stack(&mut self, sp: u64, limit: u64) {
        let Some(index) = self.area_of(sp).or_else(|| {
            // Below the lowest address that the stack has grown to.
            let next = self.areas.partition_point(|area| area.end <= sp);
            let area = self.areas.get(next)?;
            (area.start - sp <= 64 << 10).then_some(next)
        }) else {
            return;
        };
        let guard = self.areas.get(index).is_some_and(|area| !area.read);
        let index = if guard { index + 1 } else { index };
        let Some(area) = self.areas.get(index) else {
            return;
        };
        let from = sp.saturating_sub(RED_ZONE).max(area.start);
        let end = area.end.min(from.saturating_add(limit));
        self.add(from, end);
    }

    /// A handler on an alternate stack: the kernel saved there what it interrupted (`ucontext_t`, sigaction(2)), and
    /// beside it which stack that is (`uc_stack`, sigaltstack(2)). This one is known by naming the very memory that it
    /// lies in.
    fn signal_frames(&mut self, sp: u64, read: Read<'_>) {
        let mut found = 0;
        let saved = read(sp & !7, ALTERNATE_STACK);
        for (index, context) in saved.windows(UCONTEXT_SIZE).step_by(8).enumerate() {
            let word = |offset: usize| le::u64_at(context, offset).unwrap_or(0);
            let address = (sp & !7) + 8 * index as u64;
            let (start, size) = (word(UC_STACK), word(UC_STACK + 16));
            let within = |address: u64| address.wrapping_sub(start) < size;
            let interrupted = word(UC_SP);
            let is_it = ALTERNATE_STACKS.contains(&size) && within(sp) && within(address);
            if !is_it || within(interrupted) {
                continue;
            }
            self.stack(interrupted, CRASHED_STACK);
            self.page(word(UC_PC));
            found += 1;
            if found == MAX_SIGNAL_FRAMES {
                return;
            }
        }
    }

    /// A handler on an alternate stack was entered from another one, to which its frame has pointers: into `[stack]`,
    /// or into memory behind a guard page.
    fn interrupted_stacks(&mut self, sp: u64, read: Read<'_>) {
        let own = self.area_of(sp);
        if own.is_some_and(|index| self.areas.get(index).is_some_and(|a| a.is("[stack]"))) {
            return;
        }
        let mut seen: HashSet<usize> = HashSet::new();
        for value in words(&read(sp, HANDLER_FRAMES)) {
            let below = self.areas.partition_point(|area| area.end <= value);
            let Some(area) = self.areas.get(below) else {
                continue;
            };
            let near = area.start.saturating_sub(value) <= 64 << 10;
            let is_stack = area.is("[stack]") && near;
            let guarded = area.contains(value) && self.is_guarded(below);
            let overflowed = area.contains(value) && !area.read && self.is_guarded(below + 1);
            let target = if overflowed { below + 1 } else { below };
            if Some(target) == own || !(is_stack || guarded || overflowed) {
                continue;
            }
            if seen.len() >= 4 && !seen.contains(&target) {
                continue;
            }
            if seen.insert(target) {
                self.stack(value, CRASHED_STACK);
            }
        }
    }

    /// All from here to the end of its mapping is in use.
    fn is_stack_alone(&self, sp: u64) -> bool {
        let Some(index) = self.area_of(sp) else {
            return false;
        };
        self.is_guarded(index) || self.areas.get(index).is_some_and(|a| a.is("[stack]"))
    }

    /// Anonymous memory right behind a page that nobody may touch, as thread stacks are.
    fn is_guarded(&self, index: usize) -> bool {
        let Some((before, area)) = index
            .checked_sub(1)
            .and_then(|before| Some((self.areas.get(before)?, self.areas.get(index)?)))
        else {
            return false;
        };
        area.write
            && area.file().is_none()
            && before.end == area.start
            && !before.read
            && !before.write
    }

    /// What variables of the top frames point to, texts and structures on the heap, and what those point to.
    fn pointed(&mut self, crashed: &Stack, read: Read<'_>) {
        let mut seen = HashSet::new();
        let mut objects: Vec<u64> = Vec::new();
        for value in words(&read(crashed.sp, TOP_FRAMES)) {
            if seen.len() < MAX_POINTED && self.is_object(value) && seen.insert(value & !(PAGE - 1))
            {
                self.add(value, value.saturating_add(512));
                objects.push(value);
            }
        }
        let known = crashed.registers.iter().copied();
        let known: Vec<u64> = known.filter(|value| self.is_object(*value)).collect();
        let most = seen.len() + MAX_FURTHER;
        for object in known.into_iter().chain(objects) {
            for value in words(&read(object & !7, OBJECT)) {
                if seen.len() < most && self.is_object(value) && seen.insert(value & !(PAGE - 1)) {
                    self.add(value, value.saturating_add(512));
                }
            }
        }
    }

    /// Data, and code that was made at run time, in which callers are known by their calls.
    fn is_object(&self, address: u64) -> bool {
        self.at(address).is_some_and(|area| {
            let is_made = area.execute && area.file().is_none();
            area.private && (area.write || is_made) && !area.is("[stack]")
        })
    }

    /// First pages for their build-ids, globals, what was relocated, the vDSO, files that are gone.
    fn images(&mut self) {
        let mut gone = 0;
        let code = self.areas.iter().filter(|area| area.execute);
        let code: HashSet<&[u8]> = code.filter_map(Area::file).collect();
        for (index, area) in self.areas.iter().enumerate() {
            if area.is("[vdso]") {
                self.add(area.start, area.end);
            }
            let Some(path) = area.file() else { continue };
            let size = area.end - area.start;
            if !code.contains(path) {
                continue;
            }
            if path.ends_with(b" (deleted)") && gone + size <= GONE {
                gone += size;
                self.add(area.start, area.end);
            } else if area.offset == 0 {
                self.page(area.start);
            }
            if area.write && area.private {
                self.globals(index);
            }
        }
    }

    /// A writable mapping of a file, the zeroes behind it, and the relocated end of what lies before it.
    fn globals(&mut self, index: usize) {
        let Some(area) = self.areas.get(index) else {
            return;
        };
        self.add(area.start, area.end.min(area.start + GLOBALS));
        if let Some(zeroes) = self.areas.get(index + 1)
            && zeroes.start == area.end
            && zeroes.backing == Backing::Anonymous
            && zeroes.write
        {
            self.add(zeroes.start, zeroes.end.min(zeroes.start + GLOBALS));
        }
        if let Some(before) = index.checked_sub(1).and_then(|i| self.areas.get(i))
            && before.end == area.start
            && before.file() == area.file()
            && !before.execute
        {
            let from = before.end.saturating_sub(RELOCATED).max(before.start);
            self.add(from, before.end);
        }
    }

    /// The dynamic linker's list of loaded objects (`r_debug`, link.h), which debuggers walk.
    fn objects(&mut self, auxv: &[(u64, u64)], read: Read<'_>) {
        let Some((dynamic, length)) = dynamic_section(auxv, read) else {
            return;
        };
        self.add(dynamic, dynamic + length);
        let section = read(dynamic, length.min(64 << 10) as usize);
        const DT_DEBUG: u64 = 21;
        let debug = pairs(&section).find(|(tag, _)| *tag == DT_DEBUG);
        let Some((_, debug)) = debug.filter(|(_, address)| *address != 0) else {
            return;
        };
        self.add(debug, debug.saturating_add(64));
        let mut next = le::u64_at(&read(debug, 16), 8).unwrap_or(0);
        for _ in 0..MAX_OBJECTS {
            // l_addr, l_name, l_ld, l_next, l_prev.
            let map = read(next, 40);
            let (Some(name), Some(section), Some(after)) = (
                le::u64_at(&map, 8),
                le::u64_at(&map, 16),
                le::u64_at(&map, 24),
            ) else {
                return;
            };
            self.add(next, next.saturating_add(40));
            self.add(name, name.saturating_add(256));
            self.page(section);
            if after == 0 {
                return;
            }
            next = after;
        }
    }

    fn merged(mut self) -> Vec<(u64, u64)> {
        self.ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in self.ranges {
            match merged.last_mut() {
                Some((_, last)) if start <= *last => *last = end.max(*last),
                Some(_) | None => merged.push((start, end)),
            }
        }
        merged
    }
}

fn readable(area: &Area) -> bool {
    let device = area
        .file()
        .is_some_and(|path| path.starts_with(b"/dev/") && !path.starts_with(b"/dev/shm/"));
    // The kernel's own page of the vDSO's data cannot be read by others.
    area.read && !device && !area.is("[vvar]") && !area.is("[vsyscall]")
}

/// Address and bytes of the program's PT_DYNAMIC, found by its program headers in memory.
fn dynamic_section(auxv: &[(u64, u64)], read: Read<'_>) -> Option<(u64, u64)> {
    const PT_DYNAMIC: u32 = 2;
    const PT_PHDR: u32 = 6;
    const HEADER: usize = 56;
    let headers = auxv.iter().find(|(kind, _)| *kind == AT_PHDR)?.1;
    let table = read(headers, 64 * HEADER);
    let entries: Vec<&[u8]> = table.chunks_exact(HEADER).take(64).collect();
    let of = |kind: u32| {
        entries
            .iter()
            .find(|entry| le::u32_at(entry, 0) == Some(kind))
    };
    let bias = match of(PT_PHDR) {
        Some(own) => headers.wrapping_sub(le::u64_at(own, 16)?),
        None => 0,
    };
    let dynamic = of(PT_DYNAMIC)?;
    let size = le::u64_at(dynamic, 40)?;
    Some((
        le::u64_at(dynamic, 16)?.wrapping_add(bias),
        size.min(64 << 10),
    ))
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|word| u64::from_le_bytes(*word))
}

/// The pairs of an auxiliary vector or a dynamic section, up to the terminating one.
pub fn pairs(bytes: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    bytes
        .chunks_exact(16)
        .filter_map(|pair| Some((le::u64_at(pair, 0)?, le::u64_at(pair, 8)?)))
        .take_while(|(tag, _)| *tag != 0)
}

#[cfg(test)]
mod tests {
    use super::super::proc::areas;
    use super::*;

    const MAPS: &[u8] = b"1000-2000 r--p 00000000 08:02 1 /bin/x\n\
        2000-6000 r-xp 00001000 08:02 1 /bin/x\n\
        6000-8000 r--p 00005000 08:02 1 /bin/x\n\
        8000-9000 rw-p 00007000 08:02 1 /bin/x\n\
        9000-b000 rw-p 00000000 00:00 0\n\
        20000-60000 rw-p 00000000 00:00 0 [heap]\n\
        70000-71000 ---p 00000000 00:00 0\n\
        71000-80000 rw-p 00000000 00:00 0\n\
        90000-a0000 rw-s 00000000 00:00 0 /dev/nvmap\n\
        7f0000-800000 rw-p 00000000 00:00 0 [stack]\n";

    fn stack(sp: u64, registers: &[u64]) -> Stack {
        Stack {
            pc: 0x2010,
            sp,
            registers: registers.to_vec(),
            thread_pointer: Some(0x50_000),
        }
    }

    fn covers(ranges: &[(u64, u64)], address: u64) -> bool {
        ranges
            .iter()
            .any(|(start, end)| (*start..*end).contains(&address))
    }

    fn nothing(_: u64, _: usize) -> Vec<u8> {
        Vec::new()
    }

    #[test]
    fn stacks_globals_and_what_registers_hold() {
        let areas = areas(MAPS);
        let stacks = [stack(0x7f_8000, &[0x30_000, 0x95_000])];
        let ranges = choose(&areas, &stacks, &[], &mut nothing);
        for inside in [
            0x7f_8000, 0x7f_ffff, 0x1000, 0x2010, 0x6000, 0x8000, 0xafff, 0x2f_000, 0x30_fff,
            0x4f_fff, 0x50_8ff,
        ] {
            assert!(covers(&ranges, inside), "{inside:x} in {ranges:x?}");
        }
        // Below the stack pointer, the rest of the heap, a device's memory.
        for outside in [0x7f_6000, 0x40_000, 0x95_000, 0x5000] {
            assert!(!covers(&ranges, outside), "{outside:x} in {ranges:x?}");
        }
    }

    #[test]
    fn a_deep_stack_of_another_thread_is_kept_where_it_is_known_to_be_one() {
        let maps = b"100000-900000 rw-p 00000000 00:00 0\n\
            a00000-a01000 ---p 00000000 00:00 0\n\
            a01000-1201000 rw-p 00000000 00:00 0\n\
            7f0000000000-7f0000001000 rw-p 00000000 00:00 0 [stack]\n";
        let crashed = stack(0x7f00_0000_0800, &[]);
        let [in_heap, own] = [stack(0x20_0000, &[]), stack(0xb0_0000, &[])];
        let few = [crashed.clone(), in_heap, own.clone()];
        let ranges = choose(&areas(maps), &few, &[], &mut nothing);
        // A third of what the others have together; the heap is cut as ever.
        assert!(covers(&ranges, 0xb0_0000 + (OTHER_STACKS / 3) - 0x1000));
        assert!(covers(&ranges, 0x23_0000) && !covers(&ranges, 0x25_0000));
        let many: Vec<Stack> = std::iter::once(crashed)
            .chain(std::iter::repeat_n(own, 300))
            .collect();
        let ranges = choose(&areas(maps), &many, &[], &mut nothing);
        assert!(covers(&ranges, 0xb3_0000) && !covers(&ranges, 0xb5_0000));
    }

    #[test]
    fn a_stack_pointer_in_the_guard_page_means_the_stack_behind_it() {
        let ranges = choose(&areas(MAPS), &[stack(0x70_800, &[])], &[], &mut nothing);
        assert!(covers(&ranges, 0x71_000) && covers(&ranges, 0x7f_fff));
    }

    #[test]
    fn a_handler_on_another_stack_leads_back_to_the_interrupted_one() {
        // The alternate stack lies in the heap; its frame points to the thread's stack.
        let mut read = |address: u64, length: usize| match address {
            0x40_000 => 0x78_000u64.to_le_bytes()[..length.min(8)].to_vec(),
            _ => Vec::new(),
        };
        let ranges = choose(&areas(MAPS), &[stack(0x40_000, &[])], &[], &mut read);
        assert!(covers(&ranges, 0x78_000) && covers(&ranges, 0x7f_fff));
        assert!(!covers(&ranges, 0x71_000));
    }

    #[test]
    fn what_the_kernel_saved_on_an_alternate_stack_leads_to_the_interrupted_one() {
        // The alternate stack is a part of the heap; near its end a pointer leads high up into the thread's stack.
        const ALTERNATE: u64 = 0x40_000;
        const SIZE: usize = 0x8000;
        let mut memory = vec![0u8; SIZE];
        let mut put = |at: usize, value: u64| {
            memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
        };
        put(0x110, 0x7f_f000);
        let context = 0x5000;
        put(context + UC_STACK, ALTERNATE);
        put(context + UC_STACK + 16, SIZE as u64);
        put(context + UC_SP, 0x7f_3008);
        let mut read = |address: u64, length: usize| {
            let from = address.checked_sub(ALTERNATE).map(|from| from as usize);
            let rest = from.and_then(|from| memory.get(from..));
            let rest = rest.unwrap_or_default();
            rest[..length.min(rest.len())].to_vec()
        };
        let stack = stack(ALTERNATE + 0x100, &[]);
        let ranges = choose(&areas(MAPS), &[stack], &[], &mut read);
        assert!(covers(&ranges, 0x7f_3008) && covers(&ranges, 0x7f_ffff));
        assert!(!covers(&ranges, 0x7f_1000), "{ranges:x?}");
    }

    #[test]
    fn texts_of_objects_on_the_heap_are_kept() {
        // A register leads to an object, the stack to another; both hold the address of a text elsewhere on the heap.
        let mut read = |address: u64, length: usize| {
            let word: u64 = match address {
                0x7f_8000 => 0x28_000,
                0x28_000 => 0x44_010,
                0x30_000 => 0x58_020,
                _ => return Vec::new(),
            };
            word.to_le_bytes()[..length.min(8)].to_vec()
        };
        let ranges = choose(
            &areas(MAPS),
            &[stack(0x7f_8000, &[0x30_000])],
            &[],
            &mut read,
        );
        for inside in [0x28_000, 0x44_010, 0x58_020] {
            assert!(covers(&ranges, inside), "{inside:x} in {ranges:x?}");
        }
        assert!(!covers(&ranges, 0x48_000));
    }

    #[test]
    fn the_image_of_a_deleted_file_is_kept_whole() {
        let text = b"2000-6000 r-xp 00001000 08:02 1 /bin/x (deleted)\n";
        let ranges = choose(&areas(text), &[], &[], &mut nothing);
        assert_eq!(ranges, [(0x2000, 0x6000)]);
    }
}
