//! registers, memory, unwind tables → the frames of a thread.
//!
//! For each frame, in this order: a signal trampoline, known by its code; call frame information; and where there is
//! none the calling convention (code that was jumped to), the frame pointer, the link register, a search of the stack.
//! Each frame says how far it may be trusted. Always ends: the stack pointer must rise except where stacks change
//! (signals, coroutines), which may happen only a few times, and steps are counted.
//! Own code, because callers' locals need all registers, and signal frames, jumps into nothing, `.debug_frame` next to
//! `.eh_frame` and signed return addresses are the very cases that crash reports consist of.

pub mod aarch64;
pub mod rules;
pub mod tables;
pub mod x86_64;

use crate::crash::core::strip_signature;
use crate::crash::machine::{Machine, Registers};
use crate::crash::memory::Memory;
use rules::{Failure, Row};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
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
/// A signal handler's stack, coroutines, Go's system stack: each may lie below the last.
const MAX_STACK_CHANGES: usize = 64;
/// Words searched for a return address.
const SCANNED_WORDS: u64 = 512;
/// A function that a call leads to begins at most this far before the code in it.
const NEAR: u64 = 4096;
/// A process entry point is shorter than this.
const ENTRY_SIZE: u64 = 64;

/// What unwinding needs to know of the process.
pub struct Space<'a, 'm> {
    pub machine: Machine,
    pub memory: &'m Memory<'a>,
    pub pac_mask: u64,
    /// Where the process begins (`AT_ENTRY`, the dynamic linker's entry).
    pub entries: Vec<u64>,
    modules: Vec<(u64, u64, Rc<Tables<'a>>)>,
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
            modules: Vec::new(),
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
        let after = self.modules.partition_point(|m| m.0 <= address);
        let module = after
            .checked_sub(1)
            .and_then(|i| self.modules.get(i))
            .filter(|m| address < m.1);
        let row = module.and_then(|m| m.2.row(address)).map(Rc::new);
        self.rows.borrow_mut().insert(address, row.clone());
        row
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
        let end = loop {
            let mut next = self.caller(&mut current);
            if let Err(end @ End::Overwritten(_)) = next {
                overwritten = overwritten.or(Some(end));
                next = self.beyond_overwritten(&current).ok_or(end);
            }
            let next = next.and_then(|caller| self.accept(&current, caller, &mut changes));
            let depth = current.depth + 1;
            keep(&mut inner, &mut outer, current);
            match next {
                Err(end) => break end,
                Ok(_) if depth >= MAX_FRAMES => break End::TooDeep,
                Ok(Caller {
                    registers,
                    trust,
                    interrupted,
                }) => {
                    current = Frame {
                        depth,
                        registers,
                        trust,
                        interrupted,
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

    /// The outer part of an overwritten stack is often whole: it is searched for, and marked as a guess.
    fn beyond_overwritten(&self, frame: &Frame) -> Option<Caller> {
        let mut registers = frame.registers.clone();
        registers.set(self.machine.sp(), frame.frame_address.or(registers.sp()));
        self.by_scan(&registers)
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
                Err(Failure::NoFrameAddress) => self.without_rules(frame).ok_or(End::Unknown),
                Err(Failure::NoReturnAddress) => Err(End::NotInCore(registers.sp().unwrap_or(0))),
            };
        }
        if self.is_entry(pc) {
            return Err(End::Outermost);
        }
        self.without_rules(frame).ok_or(End::Unknown)
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

    fn without_rules(&self, frame: &Frame) -> Option<Caller> {
        let registers = &frame.registers;
        if frame.interrupted
            && let Some(caller) = self.by_convention(registers)
        {
            return Some(caller);
        }
        let by_pointer = self.by_frame_pointer(registers);
        if let Some((caller, function)) = self.by_direct_call(registers) {
            let trusted = by_pointer
                .as_ref()
                .is_some_and(|c| self.may_have_called(c, registers.pc()));
            if !trusted || !self.keeps_frame_pointer(function) {
                return Some(caller);
            }
        }
        by_pointer
            .or_else(|| {
                if frame.interrupted {
                    self.by_link_register(registers)
                } else {
                    None
                }
            })
            .or_else(|| self.by_scan(registers))
    }

    /// Code that was jumped to but is none, or a function that was entered and has done nothing yet: the return
    /// address is where the call put it.
    fn by_convention(&self, registers: &Registers) -> Option<Caller> {
        let pc = registers.pc();
        let (address, sp) = match self.machine {
            Machine::X86_64 => x86_64::return_of_entered(self.memory, registers),
            Machine::Aarch64 => aarch64::return_of_entered(self.memory, registers),
        }?;
        let address = strip_signature(address, self.pac_mask);
        if !self.is_return_address(address) {
            return None;
        }
        let just_entered = || {
            self.call_target(address)
                .is_some_and(|t| pc.wrapping_sub(t) < NEAR)
        };
        if self.memory.is_executable(pc) && !just_entered() {
            return None;
        }
        let mut caller = registers.callee_saved();
        caller.set(self.machine.pc(), Some(address));
        caller.set(self.machine.sp(), Some(sp));
        Some(Caller {
            registers: caller,
            trust: Trust::FramePointer,
            interrupted: false,
        })
    }

    /// Both machines keep the caller's frame pointer and the return address in two words at the frame pointer.
    fn by_frame_pointer(&self, registers: &Registers) -> Option<Caller> {
        let (fp, sp) = (registers.fp()?, registers.sp()?);
        if fp < sp || !fp.is_multiple_of(8) || self.memory.region(fp)?.end <= sp {
            return None;
        }
        let saved = self.memory.u64(fp)?;
        let address = strip_signature(self.memory.u64(fp.checked_add(8)?)?, self.pac_mask);
        if !self.is_return_address(address) {
            return None;
        }
        let mut caller = registers.callee_saved();
        caller.set(self.machine.pc(), Some(address));
        caller.set(self.machine.fp(), Some(saved));
        caller.set(self.machine.sp(), fp.checked_add(16));
        Some(Caller {
            registers: caller,
            trust: Trust::FramePointer,
            interrupted: false,
        })
    }

    /// Assembly that keeps no frame pointer leaves that of its caller in place: then the call before the return
    /// address found there leads elsewhere.
    fn may_have_called(&self, caller: &Caller, pc: u64) -> bool {
        self.call_target(caller.registers.pc())
            .is_none_or(|target| pc.wrapping_sub(target) < NEAR)
    }

    /// Whether a function may keep a frame pointer, by its first instructions; on aarch64 it may do so later, and gets the benefit of the doubt.
    fn keeps_frame_pointer(&self, function: u64) -> bool {
        match self.machine {
            Machine::X86_64 => self
                .memory
                .array::<8>(function)
                .is_none_or(|code| x86_64::may_keep_frame_pointer(&code)),
            Machine::Aarch64 => true,
        }
    }

    /// A word near the top of the stack that returns from a direct call of the code at pc; and what was called.
    fn by_direct_call(&self, registers: &Registers) -> Option<(Caller, u64)> {
        const WORDS: u64 = 64;
        let (sp, pc) = (registers.sp()?, registers.pc());
        (0..WORDS).find_map(|index| {
            let slot = sp.checked_add(index * 8)?;
            let address = strip_signature(self.memory.u64(slot)?, self.pac_mask);
            if !self.is_return_address(address) {
                return None;
            }
            let function = self
                .call_target(address)
                .filter(|t| pc.wrapping_sub(*t) < NEAR)?;
            let mut caller = registers.callee_saved();
            caller.set(self.machine.pc(), Some(address));
            caller.set(self.machine.sp(), slot.checked_add(8));
            let caller = Caller {
                registers: caller,
                trust: Trust::Scan,
                interrupted: false,
            };
            Some((caller, function))
        })
    }

    fn by_link_register(&self, registers: &Registers) -> Option<Caller> {
        if self.machine == Machine::X86_64 {
            return None;
        }
        let (address, sp) = aarch64::return_of_entered(self.memory, registers)?;
        let address = strip_signature(address, self.pac_mask);
        if !self.is_return_address(address) {
            return None;
        }
        let mut caller = registers.callee_saved();
        caller.set(self.machine.pc(), Some(address));
        caller.set(self.machine.sp(), Some(sp));
        Some(Caller {
            registers: caller,
            trust: Trust::FramePointer,
            interrupted: false,
        })
    }

    fn by_scan(&self, registers: &Registers) -> Option<Caller> {
        let start = registers.sp()?.checked_next_multiple_of(8)?;
        for index in 0..SCANNED_WORDS {
            let slot = start.checked_add(index * 8)?;
            let address = strip_signature(self.memory.u64(slot)?, self.pac_mask);
            if !self.is_return_address(address) {
                continue;
            }
            let mut caller = registers.callee_saved();
            let sp = slot.checked_add(8)?;
            caller.set(self.machine.pc(), Some(address));
            caller.set(self.machine.sp(), Some(sp));
            // A frame pointer below the new frame belongs to a frame that was skipped.
            caller.set(self.machine.fp(), registers.fp().filter(|fp| *fp >= sp));
            return Some(Caller {
                registers: caller,
                trust: Trust::Scan,
                interrupted: false,
            });
        }
        None
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

    /// Whether an address is executable and a call instruction stands before it.
    fn is_return_address(&self, address: u64) -> bool {
        if !self.memory.is_executable(address) {
            return false;
        }
        let before = self.before(address);
        match self.machine {
            Machine::X86_64 => x86_64::ends_with_call(&before),
            Machine::Aarch64 => address.is_multiple_of(4) && aarch64::ends_with_call(&before),
        }
    }

    fn call_target(&self, return_address: u64) -> Option<u64> {
        let before = self.before(return_address);
        match self.machine {
            Machine::X86_64 => x86_64::call_target(&before, return_address),
            Machine::Aarch64 => aarch64::call_target(&before, return_address),
        }
    }

    /// The code before an address, as far as a call can reach back and as far as it is known.
    fn before(&self, address: u64) -> Vec<u8> {
        let longest = match self.machine {
            Machine::X86_64 => x86_64::LONGEST_CALL,
            Machine::Aarch64 => aarch64::LONGEST_CALL,
        };
        (2..=longest)
            .rev()
            .find_map(|n| self.memory.bytes(address.checked_sub(n as u64)?, n))
            .unwrap_or_default()
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
