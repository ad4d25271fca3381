//! machine code and signal frames of x86-64 → what the unwinder asks about them.
//!
//! Parallel to `aarch64`. Sources: Intel SDM vol. 2 (CALL), Linux `arch/x86/include/asm/sigframe.h`.

use crate::crash::machine::Registers;
use crate::crash::memory::Memory;

/// A call ends where its return address points; its longest form has 7 bytes.
pub const LONGEST_CALL: usize = 7;

/// `rt_sigreturn`: where a signal handler returns to.
pub fn is_trampoline(code: &[u8]) -> bool {
    const MOV_RAX_15_SYSCALL: &[u8] = &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
    const MOV_EAX_15_SYSCALL: &[u8] = &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05];
    code.starts_with(MOV_RAX_15_SYSCALL) || code.starts_with(MOV_EAX_15_SYSCALL)
}

/// The interrupted code's registers. At the trampoline the handler has popped its return address, so the stack
/// pointer is at the `ucontext`, whose general registers begin 40 bytes in.
pub fn interrupted(memory: &Memory<'_>, handler: &Registers) -> Option<Registers> {
    const GREGS: u64 = 40;
    /// DWARF numbers in the order of `REG_R8` … `REG_RIP`.
    const ORDER: [u16; 17] = [8, 9, 10, 11, 12, 13, 14, 15, 5, 4, 6, 3, 1, 0, 2, 7, 16];
    let gregs = handler.sp()?.checked_add(GREGS)?;
    let mut registers = handler.callee_saved();
    for (index, number) in ORDER.into_iter().enumerate() {
        registers.set(
            number,
            Some(memory.u64(gregs.checked_add(index as u64 * 8)?)?),
        );
    }
    Some(registers)
}

/// Whether the bytes before a return address are a call instruction.
pub fn ends_with_call(before: &[u8]) -> bool {
    let back = |n: usize| {
        before
            .len()
            .checked_sub(n)
            .and_then(|i| before.get(i))
            .copied()
    };
    let opcode_and_modrm = |n: usize| {
        if back(n) == Some(0xff) {
            back(n - 1)
        } else {
            None
        }
    };
    if back(5) == Some(0xe8) {
        return true;
    }
    // FF /2: the ModRM byte's middle bits are 010; mode and base decide how many bytes follow.
    let two = matches!(
        opcode_and_modrm(2),
        Some(0x10..=0x13 | 0x16 | 0x17 | 0xd0..=0xd7)
    );
    let three = matches!(opcode_and_modrm(3), Some(0x14 | 0x50..=0x53 | 0x55..=0x57));
    let four = opcode_and_modrm(4) == Some(0x54);
    let six = matches!(opcode_and_modrm(6), Some(0x15 | 0x90..=0x93 | 0x95..=0x97));
    let seven = opcode_and_modrm(7) == Some(0x94);
    two || three || four || six || seven
}

/// Whether a function that begins so keeps a frame pointer: `push %rbp; mov %rsp,%rbp`, perhaps after `endbr64`.
/// Stubs that only jump on (`jmp *x(%rip)`) are as good as what they lead to, which is not known here.
pub fn may_keep_frame_pointer(code: &[u8; 8]) -> bool {
    const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
    let code = code.strip_prefix(ENDBR64).unwrap_or(code);
    let makes_frame = code.starts_with(&[0x55, 0x48, 0x89, 0xe5]);
    makes_frame || code.starts_with(&[0xff, 0x25]) || code.starts_with(&[0xf2, 0xff, 0x25])
}

/// Target of the direct call that ends at `return_address`.
pub fn call_target(before: &[u8], return_address: u64) -> Option<u64> {
    let call = before.len().checked_sub(5).and_then(|i| before.get(i..))?;
    let (opcode, offset) = call.split_first()?;
    let offset = i32::from_le_bytes(offset.try_into().ok()?);
    (*opcode == 0xe8).then(|| return_address.wrapping_add_signed(i64::from(offset)))
}

/// The return address of a function that was entered and has not yet moved the stack pointer, and the stack
/// pointer after its return.
pub fn return_of_entered(memory: &Memory<'_>, registers: &Registers) -> Option<(u64, u64)> {
    let sp = registers.sp()?;
    Some((memory.u64(sp)?, sp.checked_add(8)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_known_in_all_lengths() {
        // Encodings as `as` writes them.
        let calls: [&[u8]; 9] = [
            &[0xe8, 1, 2, 3, 4],             // call rel32
            &[0xff, 0xd0],                   // call *%rax
            &[0x41, 0xff, 0xd3],             // call *%r11
            &[0xff, 0x10],                   // call *(%rax)
            &[0xff, 0x50, 0x18],             // call *0x18(%rax)
            &[0xff, 0x15, 1, 0, 0, 0],       // call *0x1(%rip)
            &[0xff, 0x54, 0x24, 0x08],       // call *0x8(%rsp)
            &[0xff, 0x94, 0x24, 0, 1, 0, 0], // call *0x100(%rsp)
            &[0xff, 0x14, 0xc5],             // call *(,%rax,8), first bytes
        ];
        for call in calls {
            assert!(ends_with_call(call), "{call:x?}");
        }
        assert!(!ends_with_call(&[0x90; 8]) && !ends_with_call(&[]) && !ends_with_call(&[0xff]));
    }

    #[test]
    fn a_direct_call_names_its_target() {
        assert_eq!(
            call_target(&[0xe8, 0xfb, 0xff, 0xff, 0xff], 0x1005),
            Some(0x1000)
        );
        assert_eq!(call_target(&[0x90; 5], 0x1005), None);
    }
}
