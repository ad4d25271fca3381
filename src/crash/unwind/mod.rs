//! registers, memory, unwind tables → the frames of a thread.
//!
//! For each frame, in this order: a signal trampoline, known by its code; call frame information; and where there is
//! none the calling convention (code that was jumped to), the frame pointer, the link register, a search of the stack.
//! Each frame says how far it may be trusted. Always ends: the stack pointer must rise except where stacks change
//! (signals, coroutines), which may happen only a few times, and steps are counted.
//! Own code, because callers' locals need all registers, and signal frames, jumps into nothing, `.debug_frame` next to
//! `.eh_frame` and signed return addresses are the very cases that crash reports consist of.

pub mod aarch64;
mod guess;
pub mod rules;
mod search_table;
pub mod tables;
pub mod x86_64;

use crate::crash::core::strip_signature;
use crate::crash::machine::{Machine, Registers};
use crate::crash::memory::Memory;
use rules::{Failure, Row};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use tables::Tables;

/// How a frame was found, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The thread's own registers, or those that the kernel saved for a signal handler.
    Context,
    /// Call frame information of the frame below.
    Cfi,
    /// Frame pointer or calling convention, confirmed by a call instruction before the return address.
    FramePointer,
    /// A word on the stack that looks like a return address: a guess.
    Scan,
}

/// One physical frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Position in the thread's whole stack, also where frames in between were left out.
    pub depth: usize,
    pub registers: Registers,
    pub trust: Trust,
    /// Whether `pc` is the instruction at which the frame stopped; otherwise the one after its call.
    pub interrupted: bool,
    /// The frame address, where call frame information tells it (`DW_OP_call_frame_cfa`).
    pub frame_address: Option<u64>,
    /// The frame between a signal handler and what it interrupted.
    pub trampoline: bool,
}

impl Frame {
    pub fn pc(&self) -> u64 {
        self.registers.pc()
    }

    /// The address to look up: a return address may already belong to the next line or function.
    pub fn lookup_address(&self) -> u64 {
        if self.interrupted {
            self.pc()
        } else {
            self.pc().wrapping_sub(1)
        }
    }
}

/// Why a stack ends where it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The entry of the process or thread.
    Outermost,
    /// A return address is no code: the stack was overwritten.
    Overwritten(u64),
    /// The core does not hold the next part of the stack.
    NotInCore(u64),
    /// Frames do not get nearer to the outermost one.
    Circular,
    /// Nothing says how to go on.
    Unknown,
    /// More frames than are followed.
    TooDeep,
}

/// A thread's frames, innermost first, without the middle of a very deep stack.
#[derive(Clone, Debug)]
pub struct Stack {
    pub frames: Vec<Frame>,
    /// Frames left out in the middle.
    pub omitted: usize,
    pub end: End,
}

/// Frames kept at the inner and outer end of a deep stack (the contract asks for 128 and 32).
const INNERMOST: usize = 160;
const OUTERMOST: usize = 40;
/// 8 MiB of the smallest frames there are; a bigger stack is cut.
const MAX_FRAMES: usize = 600_000;
/// Many threads that all have overflowed; only a forged core has more.
const MAX_FRAMES_IN_ALL: usize = 3_000_000;
/// A signal handler's stack, coroutines, Go's system stack: each may lie below the last.
const MAX_STACK_CHANGES: usize = 64;
/// A process entry point is shorter than this.
const ENTRY_SIZE: u64 = 64;

/// What unwinding needs to know of the process.
pub struct Space<'a, 'm> {
    pub machine: Machine,
    pub memory: &'m Memory<'a>,
    pub pac_mask: u64,
    /// Where the process begins (`AT_ENTRY`, the dynamic linker's entry).
    pub entries: Vec<u64>,
    /// Code that looks called by an instruction at which a signal stopped.
    pub raised: Vec<Range<u64>>,
    /// Code that has changed the stack in a way that its tables do not tell: what comes next is a guess.
    pub switches: Vec<Range<u64>>,
    modules: Vec<(u64, u64, Rc<Tables<'a>>)>,
    /// Frames that may still be followed, over all threads.
    frames_left: Cell<usize>,
    rows: RefCell<HashMap<u64, Option<Rc<Row<'a>>>>>,
}

/// A caller, as found from its callee.
struct Caller {
    registers: Registers,
    trust: Trust,
    interrupted: bool,
}

impl<'a, 'm> Space<'a, 'm> {
    pub fn new(
        machine: Machine,
        memory: &'m Memory<'a>,
        pac_mask: u64,
        entries: Vec<u64>,
    ) -> Space<'a, 'm> {
        Space {
            machine,
            memory,
            pac_mask,
            entries,
            raised: Vec::new(),
            switches: Vec::new(),
            modules: Vec::new(),
            frames_left: Cell::new(MAX_FRAMES_IN_ALL),
            rows: RefCell::default(),
        }
    }

    /// Tables for the code in `start..end`.
    pub fn add(&mut self, start: u64, end: u64, tables: &Rc<Tables<'a>>) {
        let at = self.modules.partition_point(|m| m.0 < start);
        self.modules.insert(at, (start, end, tables.clone()));
    }

    fn row(&self, address: u64) -> Option<Rc<Row<'a>>> {
        if let Some(known) = self.rows.borrow().get(&address) {
            return known.clone();
        }
        let row = self
            .module_at(address)
            .and_then(|tables| tables.row(address));
        let row = row.map(Rc::new);
        self.rows.borrow_mut().insert(address, row.clone());
        row
    }

    fn module_at(&self, address: u64) -> Option<&Tables<'a>> {
        let after = self.modules.partition_point(|m| m.0 <= address);
        let module = after.checked_sub(1).and_then(|i| self.modules.get(i));
        module.filter(|m| address < m.1).map(|m| &*m.2)
    }

    /// All frames of a thread that stopped with these registers.
    pub fn unwind(&self, registers: &Registers) -> Stack {
        let mut inner: Vec<Frame> = Vec::new();
        let mut outer: VecDeque<Frame> = VecDeque::new();
        let mut current = Frame {
            depth: 0,
            registers: registers.clone(),
            trust: Trust::Context,
            interrupted: true,
            frame_address: None,
            trampoline: false,
        };
        let mut changes = 0;
        let mut overwritten = None;
        let mut is_doubtful = false;
        let end = loop {
            let mut next = self.caller(&mut current);
            if let Err(end @ End::Overwritten(_)) = next {
                overwritten = overwritten.or(Some(end));
                next = self.beyond_overwritten(&current).ok_or(end);
            }
            let next = next.and_then(|caller| self.accept(&current, caller, &mut changes));
            let depth = current.depth + 1;
            let is_within = |code: &Range<u64>| code.contains(&current.lookup_address());
            let raised = self.raised.iter().any(is_within);
            let on_other_stack = self.switches.iter().any(is_within);
            keep(&mut inner, &mut outer, current);
            match next {
                Err(end) => break end,
                Ok(_) if depth >= MAX_FRAMES || !self.may_follow() => break End::TooDeep,
                Ok(Caller {
                    registers,
                    trust,
                    interrupted,
                }) => {
                    // Where the kernel saved registers all is certain again.
                    is_doubtful = (is_doubtful || on_other_stack) && trust != Trust::Context;
                    let trust = if is_doubtful { Trust::Scan } else { trust };
                    current = Frame {
                        depth,
                        registers,
                        trust,
                        interrupted: interrupted || raised,
                        frame_address: None,
                        trampoline: false,
                    };
                }
            }
        };
        let total = outer.back().or(inner.last()).map_or(0, |f| f.depth + 1);
        let omitted = total - inner.len() - outer.len();
        inner.extend(outer);
        Stack {
            frames: inner,
            omitted,
            end: overwritten.unwrap_or(end),
        }
    }

    fn may_follow(&self) -> bool {
        let left = self.frames_left.get();
        self.frames_left.set(left.saturating_sub(1));
        left > 0
    }

    /// Strips the caller's pc and checks that it leads outwards.
    fn accept(
        &self,
        callee: &Frame,
        mut caller: Caller,
        changes: &mut usize,
    ) -> Result<Caller, End> {
        let pc = strip_signature(caller.registers.pc(), self.pac_mask);
        caller.registers.set(self.machine.pc(), Some(pc));
        if pc == 0 && !caller.interrupted {
            return Err(End::Outermost);
        }
        let (Some(old), Some(new)) = (callee.registers.sp(), caller.registers.sp()) else {
            return Err(End::Unknown);
        };
        // A leaf of aarch64 needs no stack: only its pc changes.
        let leaf = new == old && callee.interrupted && pc != callee.pc();
        if new > old || leaf {
            return Ok(caller);
        }
        *changes += 1;
        if new == old || *changes > MAX_STACK_CHANGES {
            return Err(End::Circular);
        }
        Ok(caller)
    }

    fn caller(&self, frame: &mut Frame) -> Result<Caller, End> {
        let registers = &frame.registers;
        let pc = frame.pc();
        if self.is_trampoline(pc)
            && let Some(interrupted) = self.interrupted(registers)
        {
            frame.trampoline = true;
            return Ok(Caller {
                registers: interrupted,
                trust: Trust::Context,
                interrupted: true,
            });
        }
        if let Some(row) = self
            .row(frame.lookup_address())
            .or_else(|| self.row_at_signal_return(frame))
        {
            frame.trampoline = row.signal;
            return match row.apply(registers, self.memory) {
                Ok((caller, cfa)) => {
                    frame.frame_address = Some(cfa);
                    self.check(&row, caller)
                }
                Err(Failure::Outermost) => Err(End::Outermost),
                Err(Failure::NoFrameAddress) => self.guessed(frame),
                Err(Failure::NoReturnAddress) => Err(End::NotInCore(registers.sp().unwrap_or(0))),
            };
        }
        if self.is_entry(pc) {
            return Err(End::Outermost);
        }
        self.guessed(frame)
    }

    /// Where there are no rules. A handler may have interrupted a stack that the core does not hold.
    fn guessed(&self, frame: &Frame) -> Result<Caller, End> {
        self.without_rules(frame)
            .ok_or_else(|| match frame.registers.sp() {
                Some(sp) if frame.depth > 0 && self.memory.u64(sp).is_none() => End::NotInCore(sp),
                Some(_) | None => End::Unknown,
            })
    }

    /// A handler returns to the first byte of the trampoline, and some describe only from there on.
    fn row_at_signal_return(&self, frame: &Frame) -> Option<Rc<Row<'a>>> {
        self.row(frame.pc()).filter(|row| row.signal)
    }

    /// A return address that is no code means that the stack was overwritten; what follows may still be searched.
    fn check(&self, row: &Row<'a>, caller: Registers) -> Result<Caller, End> {
        let pc = strip_signature(caller.pc(), self.pac_mask);
        if row.signal {
            return Ok(Caller {
                registers: caller,
                trust: Trust::Context,
                interrupted: true,
            });
        }
        if pc == 0 || self.memory.is_executable(pc) {
            return Ok(Caller {
                registers: caller,
                trust: Trust::Cfi,
                interrupted: false,
            });
        }
        Err(End::Overwritten(pc))
    }

    fn is_trampoline(&self, pc: u64) -> bool {
        let Some(code) = self.memory.array::<9>(pc).or_else(|| {
            let mut nine = [0; 9];
            nine[..8].copy_from_slice(&self.memory.array::<8>(pc)?);
            Some(nine)
        }) else {
            return false;
        };
        match self.machine {
            Machine::X86_64 => x86_64::is_trampoline(&code),
            Machine::Aarch64 => aarch64::is_trampoline(&code),
        }
    }

    fn interrupted(&self, handler: &Registers) -> Option<Registers> {
        match self.machine {
            Machine::X86_64 => x86_64::interrupted(self.memory, handler),
            Machine::Aarch64 => aarch64::interrupted(self.memory, handler),
        }
    }

    fn is_entry(&self, pc: u64) -> bool {
        self.entries
            .iter()
            .any(|entry| pc.wrapping_sub(*entry) < ENTRY_SIZE)
    }
}

fn keep(inner: &mut Vec<Frame>, outer: &mut VecDeque<Frame>, frame: Frame) {
    if inner.len() < INNERMOST {
        inner.push(frame);
        return;
    }
    if outer.len() == OUTERMOST {
        outer.pop_front();
    }
    outer.push_back(frame);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash::memory::{Access, Region};

    const CODE: u64 = 0x40_0000;
    const STACK: u64 = 0x7000_0000;

    /// Code full of `call` with every address behind one a return address, and a stack of these words.
    struct Process {
        code: Vec<u8>,
        stack: Vec<u8>,
    }

    impl Process {
        fn new(words: &[u64]) -> Process {
            // `call *%rax` in every second byte pair.
            let code = [0xff, 0xd0].repeat(2048);
            Process {
                code,
                stack: words.iter().flat_map(|w| w.to_le_bytes()).collect(),
            }
        }

        fn memory(&self) -> Memory<'_> {
            let region =
                |start, bytes: &'_ [u8], execute| (start, start + bytes.len() as u64, execute);
            let regions = [
                region(CODE, &self.code, true),
                region(STACK, &self.stack, false),
            ];
            let bytes: [&[u8]; 2] = [&self.code, &self.stack];
            let regions = regions
                .into_iter()
                .zip(bytes)
                .map(|((start, end, execute), dumped)| Region {
                    start,
                    end,
                    access: Access {
                        write: !execute,
                        execute,
                    },
                    dumped,
                    backing: &[],
                });
            Memory::new(regions.collect())
        }

        fn unwind(&self, pc: u64, sp: u64, fp: u64) -> Stack {
            let memory = self.memory();
            let space = Space::new(Machine::X86_64, &memory, 0, vec![CODE + 0x800]);
            let mut registers = Registers::new(Machine::X86_64);
            for (number, value) in [(16, pc), (7, sp), (6, fp)] {
                registers.set(number, Some(value));
            }
            space.unwind(&registers)
        }
    }

    fn shape(stack: &Stack) -> Vec<(u64, Trust)> {
        stack.frames.iter().map(|f| (f.pc(), f.trust)).collect()
    }

    /// An interpreter's caller continues at a place that it has written down: no call stands before it.
    #[test]
    fn of_code_that_no_module_has_the_chain_of_frame_pointers_is_believed() {
        let process = Process::new(&[CODE + 0x10, STACK + 0x20, CODE + 0x13, 0, 0, CODE + 0x811]);
        let stack = process.unwind(CODE + 0x101, STACK, STACK + 8);
        assert_eq!(
            shape(&stack)[1],
            (CODE + 0x13, Trust::FramePointer),
            "{stack:?}"
        );
        // A chain that does not rise is none.
        let process = Process::new(&[CODE + 0x10, STACK, CODE + 0x13, 0, 0, CODE + 0x811]);
        let stack = process.unwind(CODE + 0x101, STACK, STACK + 8);
        assert_ne!(shape(&stack)[1].1, Trust::FramePointer, "{stack:?}");
    }

    #[test]
    fn a_chain_of_frame_pointers_ends_at_the_entry_point() {
        let process = Process::new(&[0, STACK + 0x20, CODE + 0x10, 0, 0, CODE + 0x810]);
        let stack = process.unwind(CODE + 0x100, STACK, STACK + 8);
        let pointer = Trust::FramePointer;
        assert_eq!(
            shape(&stack),
            [
                (CODE + 0x100, Trust::Context),
                (CODE + 0x10, pointer),
                (CODE + 0x810, pointer)
            ]
        );
        assert_eq!((stack.end, stack.omitted), (End::Outermost, 0));
    }

    #[test]
    fn what_looks_called_by_a_signal_is_looked_up_where_it_stopped() {
        let process = Process::new(&[0, STACK + 0x20, CODE + 0x10, 0, 0, CODE + 0x810]);
        let memory = process.memory();
        let mut space = Space::new(Machine::X86_64, &memory, 0, vec![CODE + 0x800]);
        let mut registers = Registers::new(Machine::X86_64);
        for (number, value) in [(16, CODE + 0x100), (7, STACK), (6, STACK + 8)] {
            registers.set(number, Some(value));
        }
        let ends = |space: &Space<'_, '_>| -> Vec<(u64, Trust)> {
            let stack = space.unwind(&registers);
            let frames = stack.frames.iter();
            frames
                .map(|f| (f.lookup_address() - CODE, f.trust))
                .collect()
        };
        let called = [
            (0x100, Trust::Context),
            (0xf, Trust::FramePointer),
            (0x80f, Trust::FramePointer),
        ];
        assert_eq!(ends(&space), called);
        space.raised.push(CODE + 0x100..CODE + 0x120);
        assert_eq!(ends(&space)[1], (0x10, Trust::FramePointer));
        // Behind a switch of stacks everything is a guess.
        space.switches.push(CODE + 0x8..CODE + 0x20);
        assert_eq!(ends(&space)[1], (0x10, Trust::FramePointer));
        assert_eq!(ends(&space)[2], (0x80f, Trust::Scan));
    }

    #[test]
    fn a_jump_into_nothing_returns_to_its_caller() {
        let process = Process::new(&[CODE + 0x20, 0, 0]);
        let stack = process.unwind(0, STACK, 0);
        assert_eq!(
            shape(&stack),
            [(0, Trust::Context), (CODE + 0x20, Trust::FramePointer)]
        );
    }

    #[test]
    fn without_a_frame_pointer_the_stack_is_searched() {
        let process = Process::new(&[1, 2, 3, CODE + 0x30, 5, CODE + 0x802]);
        let stack = process.unwind(CODE + 0x100, STACK, 0);
        let scan = Trust::Scan;
        assert_eq!(
            shape(&stack),
            [
                (CODE + 0x100, Trust::Context),
                (CODE + 0x30, scan),
                (CODE + 0x802, scan)
            ]
        );
    }

    #[test]
    fn a_frame_that_leads_to_itself_ends() {
        // Saved frame pointer and return address of one frame, again and again.
        let process = Process::new(&[STACK, CODE + 0x10, 0, 0]);
        let stack = process.unwind(CODE + 0x100, STACK, STACK);
        assert!(stack.frames.len() < 10, "{:?}", stack.end);
        assert_ne!(stack.end, End::Outermost);
    }

    #[test]
    fn a_very_deep_stack_keeps_both_ends() {
        const DEPTH: u64 = 50_000;
        let words = (0..DEPTH).flat_map(|i| [STACK + (i + 1) * 16, CODE + 0x10 + (i % 64) * 2]);
        let mut words: Vec<u64> = words.collect();
        words.extend([0, CODE + 0x810]);
        let stack = Process::new(&words).unwind(CODE + 0x100, STACK, STACK);
        assert_eq!(stack.frames.len(), INNERMOST + OUTERMOST);
        assert_eq!(stack.omitted + stack.frames.len(), DEPTH as usize + 2);
        assert_eq!(
            stack.frames.last().map(|f| (f.pc(), f.depth)),
            Some((CODE + 0x810, DEPTH as usize + 1))
        );
        assert_eq!(
            stack.frames.get(INNERMOST - 1).map(|f| f.depth),
            Some(INNERMOST - 1)
        );
        assert_eq!(stack.end, End::Outermost);
    }

    #[test]
    fn nothing_at_all_is_one_frame() {
        let stack = Process::new(&[]).unwind(0x1234, 0, u64::MAX);
        assert_eq!((stack.frames.len(), stack.end), (1, End::Unknown));
    }
}
