//! ELF machine number → registers: their names, DWARF numbers and places in a core file.
//!
//! Both machines are always compiled in: a core of a board can be read on a workstation and the other way round.
//! Sources: System V ABI AMD64 supplement fig. 3.36, DWARF for the Arm 64-bit architecture, Linux `user_regs`.

use crate::crash::elf::{EM_AARCH64, EM_X86_64};
use crate::crash::le;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Machine {
    X86_64,
    Aarch64,
}

/// One more than the highest general DWARF register number kept (aarch64 `pc` is 32).
const GENERAL: usize = 33;

const X86_64_NAMES: [&str; 17] = [
    "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip",
];
const AARCH64_NAMES: [&str; 33] = [
    "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14",
    "x15", "x16", "x17", "x18", "x19", "x20", "x21", "x22", "x23", "x24", "x25", "x26", "x27",
    "x28", "x29", "x30", "sp", "pc",
];
/// DWARF number of each word of x86-64 `user_regs_struct`; orig_rax, segments and flags have none here.
const X86_64_USER_REGS: [Option<u16>; 27] = [
    Some(15),
    Some(14),
    Some(13),
    Some(12),
    Some(6),
    Some(3),
    Some(11),
    Some(10),
    Some(9),
    Some(8),
    Some(0),
    Some(2),
    Some(1),
    Some(4),
    Some(5),
    None,
    Some(16),
    None,
    Some(49),
    Some(7),
    None,
    Some(58),
    Some(59),
    None,
    None,
    None,
    None,
];
const RFLAGS: u16 = 49;
const FS_BASE: u16 = 58;
const GS_BASE: u16 = 59;

impl Machine {
    pub fn from_elf(machine: u16) -> Option<Machine> {
        match machine {
            EM_X86_64 => Some(Machine::X86_64),
            EM_AARCH64 => Some(Machine::Aarch64),
            _ => None,
        }
    }

    pub fn elf_number(self) -> u16 {
        match self {
            Machine::X86_64 => EM_X86_64,
            Machine::Aarch64 => EM_AARCH64,
        }
    }

    /// DWARF number of the program counter (x86-64: the return address column).
    pub fn pc(self) -> u16 {
        match self {
            Machine::X86_64 => 16,
            Machine::Aarch64 => 32,
        }
    }

    pub fn sp(self) -> u16 {
        match self {
            Machine::X86_64 => 7,
            Machine::Aarch64 => 31,
        }
    }

    pub fn fp(self) -> u16 {
        match self {
            Machine::X86_64 => 6,
            Machine::Aarch64 => 29,
        }
    }

    /// Registers that a function must restore, so that a caller's are still known (DWARF numbers).
    pub fn is_callee_saved(self, register: u16) -> bool {
        match self {
            Machine::X86_64 => matches!(register, 3 | 6 | 12..=15),
            Machine::Aarch64 => matches!(register, 19..=29),
        }
    }

    pub fn register_name(self, register: u16) -> Option<&'static str> {
        let names: &[&'static str] = match self {
            Machine::X86_64 => &X86_64_NAMES,
            Machine::Aarch64 => &AARCH64_NAMES,
        };
        names.get(usize::from(register)).copied()
    }

    /// First DWARF number of the vector registers.
    fn first_vector(self) -> u16 {
        match self {
            Machine::X86_64 => 17,
            Machine::Aarch64 => 64,
        }
    }

    fn vector_count(self) -> usize {
        match self {
            Machine::X86_64 => 16,
            Machine::Aarch64 => 32,
        }
    }

    /// Where the vector registers begin in NT_FPREGSET (x86-64: `fxsave`, aarch64: `user_fpsimd_state`).
    fn vector_offset(self) -> usize {
        match self {
            Machine::X86_64 => 160,
            Machine::Aarch64 => 0,
        }
    }

    /// Bytes of the general register set in NT_PRSTATUS.
    pub fn user_regs_size(self) -> usize {
        match self {
            Machine::X86_64 => 27 * 8,
            Machine::Aarch64 => 34 * 8,
        }
    }
}

/// What is known of a frame's registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    pub machine: Machine,
    general: [Option<u64>; GENERAL],
    flags: Option<u64>,
    thread_pointer: Option<u64>,
    other_segment: Option<u64>,
    vectors: Option<Arc<Vec<[u8; 16]>>>,
}

impl Registers {
    pub fn new(machine: Machine) -> Registers {
        Registers {
            machine,
            general: [None; GENERAL],
            flags: None,
            thread_pointer: None,
            other_segment: None,
            vectors: None,
        }
    }

    /// From `pr_reg` of NT_PRSTATUS (also `PTRACE_GETREGSET` with NT_PRSTATUS).
    pub fn from_user_regs(machine: Machine, bytes: &[u8]) -> Option<Registers> {
        let mut registers = Registers::new(machine);
        match machine {
            Machine::X86_64 => {
                for (index, number) in X86_64_USER_REGS.iter().enumerate() {
                    let value = le::u64_at(bytes, index * 8)?;
                    if let Some(number) = number {
                        registers.set(*number, Some(value));
                    }
                }
            }
            Machine::Aarch64 => {
                for number in 0..33 {
                    registers.set(number, Some(le::u64_at(bytes, usize::from(number) * 8)?));
                }
                registers.flags = le::u64_at(bytes, 33 * 8);
            }
        }
        Some(registers)
    }

    /// Takes the vector registers from NT_FPREGSET.
    pub fn set_vectors(&mut self, fpregset: &[u8]) {
        let from = self.machine.vector_offset();
        let vectors: Option<Vec<[u8; 16]>> = (0..self.machine.vector_count())
            .map(|i| le::array(fpregset, from + 16 * i))
            .collect();
        self.vectors = vectors.map(Arc::new);
    }

    pub fn set_thread_pointer(&mut self, value: u64) {
        self.thread_pointer = Some(value);
    }

    /// x86-64 `fs` base, aarch64 `tpidr_el0`.
    pub fn thread_pointer(&self) -> Option<u64> {
        self.thread_pointer
    }

    /// A general register by DWARF number.
    pub fn get(&self, register: u16) -> Option<u64> {
        match (self.machine, register) {
            (Machine::X86_64, RFLAGS) => self.flags,
            (Machine::X86_64, FS_BASE) => self.thread_pointer,
            (Machine::X86_64, GS_BASE) => self.other_segment,
            _ => self.general.get(usize::from(register)).copied().flatten(),
        }
    }

    /// Numbers that are not kept are ignored.
    pub fn set(&mut self, register: u16, value: Option<u64>) {
        match (self.machine, register) {
            (Machine::X86_64, RFLAGS) => self.flags = value,
            (Machine::X86_64, FS_BASE) => self.thread_pointer = value,
            (Machine::X86_64, GS_BASE) => self.other_segment = value,
            _ => {
                if let Some(slot) = self.general.get_mut(usize::from(register)) {
                    *slot = value;
                }
            }
        }
    }

    /// A vector register by DWARF number.
    pub fn vector(&self, register: u16) -> Option<[u8; 16]> {
        let index = register.checked_sub(self.machine.first_vector())?;
        self.vectors.as_ref()?.get(usize::from(index)).copied()
    }

    /// A vector register's low half, as unwind rules restore it (aarch64 `d8` to `d15`).
    pub fn set_vector_low(&mut self, register: u16, value: u64) {
        let index = register.checked_sub(self.machine.first_vector());
        if let (Some(index), Some(vectors)) = (index, self.vectors.as_mut())
            && let Some(vector) = Arc::make_mut(vectors).get_mut(usize::from(index))
        {
            vector[..8].copy_from_slice(&value.to_le_bytes());
        }
    }

    pub fn pc(&self) -> u64 {
        self.get(self.machine.pc()).unwrap_or(0)
    }

    pub fn sp(&self) -> Option<u64> {
        self.get(self.machine.sp())
    }

    pub fn fp(&self) -> Option<u64> {
        self.get(self.machine.fp())
    }

    /// A caller's registers as far as they are known before any rule is applied.
    pub fn callee_saved(&self) -> Registers {
        let mut kept = Registers::new(self.machine);
        for number in 0..GENERAL as u16 {
            if self.machine.is_callee_saved(number) {
                kept.set(number, self.get(number));
            }
        }
        kept.thread_pointer = self.thread_pointer;
        kept.other_segment = self.other_segment;
        // x86-64 has no callee-saved vector register; on aarch64 the low halves of v8 to v15 are.
        kept.vectors = match self.machine {
            Machine::X86_64 => None,
            Machine::Aarch64 => self.vectors.clone(),
        };
        kept
    }

    /// Those of a caller of which nothing is known yet but to which thread it belongs: what its callees have saved
    /// somewhere must not be shown with their values.
    pub fn forgotten(&self) -> Registers {
        let mut kept = Registers::new(self.machine);
        kept.thread_pointer = self.thread_pointer;
        kept.other_segment = self.other_segment;
        kept
    }

    /// Name and value of every known general register, in the machine's customary order.
    pub fn named(&self) -> Vec<(&'static str, u64)> {
        const X86_64_ORDER: [u16; 17] = [16, 7, 6, 0, 3, 2, 1, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];
        let order: Vec<u16> = match self.machine {
            Machine::X86_64 => X86_64_ORDER.to_vec(),
            Machine::Aarch64 => [32, 31].into_iter().chain(0..31).collect(),
        };
        let mut named: Vec<(&'static str, u64)> = order
            .into_iter()
            .filter_map(|n| Some((self.machine.register_name(n)?, self.get(n)?)))
            .collect();
        if let Some(flags) = self.flags {
            named.push((
                if self.machine == Machine::X86_64 {
                    "eflags"
                } else {
                    "pstate"
                },
                flags,
            ));
        }
        named
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_regs_land_at_their_dwarf_numbers() {
        // r15 is word 0, rip word 16, rsp word 19 of user_regs_struct (sys/user.h).
        let bytes: Vec<u8> = (0..27u64).flat_map(|n| (n + 100).to_le_bytes()).collect();
        let registers = Registers::from_user_regs(Machine::X86_64, &bytes).unwrap();
        assert_eq!(
            (registers.pc(), registers.sp(), registers.get(15)),
            (116, Some(119), Some(100))
        );
        assert_eq!(registers.thread_pointer(), Some(121));
        assert_eq!(
            Registers::from_user_regs(Machine::X86_64, &bytes[1..]),
            None
        );
        let bytes: Vec<u8> = (0..34u64).flat_map(|n| n.to_le_bytes()).collect();
        let registers = Registers::from_user_regs(Machine::Aarch64, &bytes).unwrap();
        assert_eq!(
            (registers.pc(), registers.sp(), registers.fp()),
            (32, Some(31), Some(29))
        );
    }

    #[test]
    fn only_callee_saved_registers_survive_a_call() {
        let bytes: Vec<u8> = (0..27u64).flat_map(|n| n.to_le_bytes()).collect();
        let caller = Registers::from_user_regs(Machine::X86_64, &bytes)
            .unwrap()
            .callee_saved();
        assert!(caller.get(3).is_some() && caller.get(0).is_none() && caller.get(16).is_none());
    }
}
