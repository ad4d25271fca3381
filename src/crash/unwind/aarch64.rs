//! machine code and signal frames of aarch64 → what the unwinder asks about them.
//!
//! Parallel to `x86_64`. Sources: Arm ARM C4.1 (branches), Linux `arch/arm64/kernel/signal.c`.

use crate::crash::machine::Registers;
use crate::crash::memory::Memory;

pub const LONGEST_CALL: usize = 4;

/// `rt_sigreturn`: `mov x8, #139; svc #0`.
pub fn is_trampoline(code: &[u8]) -> bool {
    code.starts_with(&[0x68, 0x11, 0x80, 0xd2, 0x01, 0, 0, 0xd4])
}

/// The interrupted code's registers: at the trampoline the stack pointer is at `siginfo` (128 bytes), then comes the
/// `ucontext`, whose `mcontext` begins 176 bytes in with the fault address, x0 to x30, sp and pc.
pub fn interrupted(memory: &Memory<'_>, handler: &Registers) -> Option<Registers> {
    const FIRST_REGISTER: u64 = 128 + 176 + 8;
    let first = handler.sp()?.checked_add(FIRST_REGISTER)?;
    let mut registers = handler.callee_saved();
    for number in 0..33u16 {
        registers.set(
            number,
            Some(memory.u64(first.checked_add(u64::from(number) * 8)?)?),
        );
    }
    Some(registers)
}

/// Whether the bytes before a return address are BL, BLR or one of BLR's authenticating forms.
pub fn ends_with_call(before: &[u8]) -> bool {
    let Some(word) = before.last_chunk::<4>().map(|b| u32::from_le_bytes(*b)) else {
        return false;
    };
    let direct = word & 0xfc00_0000 == 0x9400_0000;
    let register = word & 0xffff_fc1f == 0xd63f_0000;
    let authenticated = word & 0xfeff_f800 == 0xd63f_0800;
    direct || register || authenticated
}

/// Target of the direct call that ends at `return_address`.
pub fn call_target(before: &[u8], return_address: u64) -> Option<u64> {
    let word = u32::from_le_bytes(*before.last_chunk::<4>()?);
    // imm26 counts words and is signed: shifting it to the top first extends the sign.
    let offset = i64::from((word << 6) as i32 >> 6) * 4;
    (word & 0xfc00_0000 == 0x9400_0000)
        .then(|| return_address.wrapping_sub(4).wrapping_add_signed(offset))
}

/// The return address of a function that was entered and has not yet saved its link register, and the stack
/// pointer after its return.
pub fn return_of_entered(_memory: &Memory<'_>, registers: &Registers) -> Option<(u64, u64)> {
    const LINK_REGISTER: u16 = 30;
    Some((registers.get(LINK_REGISTER)?, registers.sp()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_known_in_all_forms() {
        // bl, blr x8, blraaz x8, blraa x8, x9: words from the Arm ARM's encodings.
        for word in [0x9400_0001u32, 0xd63f_0100, 0xd63f_091f, 0xd73f_0909] {
            assert!(ends_with_call(&word.to_le_bytes()), "{word:x}");
        }
        // b, br x8, ret, nop
        for word in [0x1400_0001u32, 0xd61f_0100, 0xd65f_03c0, 0xd503_201f] {
            assert!(!ends_with_call(&word.to_le_bytes()), "{word:x}");
        }
        assert!(!ends_with_call(&[1, 2, 3]));
    }

    #[test]
    fn a_direct_call_names_its_target() {
        assert_eq!(
            call_target(&0x9400_0004u32.to_le_bytes(), 0x1004),
            Some(0x1010)
        );
        assert_eq!(
            call_target(&0x97ff_ffffu32.to_le_bytes(), 0x1004),
            Some(0xffc)
        );
    }
}
