//! registers, memory → a frame's caller where no call frame information tells it.
//!
//! In this order: the calling convention (code that was jumped to, or entered a moment ago), the frame pointer, the
//! link register, a search of the stack. Each needs a call instruction before the return address; what the search
//! finds is marked as a guess.

use super::{Caller, Frame, Space, Trust, aarch64, x86_64};
use crate::crash::core::strip_signature;
use crate::crash::machine::{Machine, Registers};
use std::borrow::Cow;

/// Words searched for a return address.
const SCANNED_WORDS: u64 = 512;
/// A function that a call leads to begins at most this far before the code in it.
const NEAR: u64 = 4096;

impl Space<'_, '_> {
    /// The outer part of an overwritten stack is often whole: it is searched for, and marked as a guess.
    pub(super) fn beyond_overwritten(&self, frame: &Frame) -> Option<Caller> {
        let mut registers = frame.registers.clone();
        registers.set(self.machine.sp(), frame.frame_address.or(registers.sp()));
        self.by_scan(&registers)
    }

    pub(super) fn without_rules(&self, frame: &Frame) -> Option<Caller> {
        let registers = &frame.registers;
        if frame.interrupted
            && let Some(caller) = self.by_convention(registers)
        {
            return Some(caller);
        }
        let by_pointer = self.by_frame_pointer(registers);
        if let Some((caller, function)) = self.by_direct_call(registers) {
            // Two ways to one place; and code that was made at run time calls itself to learn where it is.
            let is_one = by_pointer
                .as_ref()
                .is_some_and(|c| c.registers.pc() == caller.registers.pc());
            if is_one || (by_pointer.is_some() && self.module_at(registers.pc()).is_none()) {
                return by_pointer;
            }
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
        // Code that was made at run time is often not in a small core, and interpreters return to where nobody called:
        // there the chain of pointers has to do.
        let is_called = match self.module_at(address) {
            Some(_) => self.is_called(address).unwrap_or(saved > fp),
            None => saved > fp || self.is_called(address) == Some(true),
        };
        if !is_called || !self.memory.is_executable(address) {
            return None;
        }
        let mut caller = registers.forgotten();
        caller.set(self.machine.pc(), Some(address));
        caller.set(self.machine.fp(), Some(saved));
        // On aarch64 the two words lie at the bottom of the frame, and above them what is not known: the caller's stack
        // pointer is nearest to its own two words.
        let behind = fp.checked_add(16);
        let sp = match self.machine {
            Machine::Aarch64 if Some(saved) > behind => Some(saved),
            Machine::X86_64 | Machine::Aarch64 => behind,
        };
        caller.set(self.machine.sp(), sp);
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
            let mut caller = registers.forgotten();
            caller.set(self.machine.pc(), Some(address));
            caller.set(self.machine.sp(), slot.checked_add(8));
            caller.set(self.machine.fp(), registers.fp());
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
            let mut caller = registers.forgotten();
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

    /// Whether an address is executable and a call instruction stands before it.
    fn is_return_address(&self, address: u64) -> bool {
        self.memory.is_executable(address) && self.is_called(address) == Some(true)
    }

    /// Whether a call instruction stands before an address; `None` where the code there is not known.
    fn is_called(&self, address: u64) -> Option<bool> {
        let before = self.before(address);
        if before.is_empty() {
            return None;
        }
        Some(match self.machine {
            Machine::X86_64 => x86_64::ends_with_call(&before),
            Machine::Aarch64 => address.is_multiple_of(4) && aarch64::ends_with_call(&before),
        })
    }

    fn call_target(&self, return_address: u64) -> Option<u64> {
        let before = self.before(return_address);
        match self.machine {
            Machine::X86_64 => x86_64::call_target(&before, return_address),
            Machine::Aarch64 => aarch64::call_target(&before, return_address),
        }
    }

    /// The code before an address, as far as a call can reach back and as far as it is known.
    fn before(&self, address: u64) -> Cow<'_, [u8]> {
        let longest = match self.machine {
            Machine::X86_64 => x86_64::LONGEST_CALL,
            Machine::Aarch64 => aarch64::LONGEST_CALL,
        };
        // Nearly always in one piece: this is asked for every word of a searched stack.
        let start = address.wrapping_sub(longest as u64);
        if let Some(code) = self.memory.known(start).get(..longest) {
            return Cow::Borrowed(code);
        }
        (2..=longest)
            .rev()
            .find_map(|n| self.memory.bytes(address.checked_sub(n as u64)?, n))
            .unwrap_or_default()
            .into()
    }
}
