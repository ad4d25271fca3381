//! the notes of a kernel's core → threads as a small core needs them.
//!
//! Sources: `fs/binfmt_elf.c` (`fill_note_info`: the crashed thread first), `include/linux/elfcore.h`, core(5).

use crate::crash::core::{
    NT_AUXV, NT_FPREGSET, NT_PRSTATUS, NT_SIGINFO, PR_CURSIG, PR_PID, PR_REG,
};
use crate::crash::core_write::Thread;
use crate::crash::elf::Notes;
use crate::crash::le;
use crate::crash::machine::Machine;

#[derive(Clone, Debug, Default)]
pub struct KernelNotes {
    pub threads: Vec<Thread>,
    pub siginfo: Vec<u8>,
    pub auxv: Vec<u8>,
}

/// Register sets of a thread that readers want beside the general ones: NT_ARM_TLS, NT_ARM_SVE, NT_ARM_PAC_MASK.
/// x86-64's NT_X86_XSTATE would be 2.4 KiB a thread, and no reader needs it.
const EXTRA: [u32; 3] = [0x401, 0x405, 0x406];

pub fn read(machine: Machine, notes: &[u8]) -> KernelNotes {
    let mut read = KernelNotes::default();
    for note in Notes(notes) {
        match (note.name, note.kind) {
            (b"CORE", NT_PRSTATUS) => read.threads.extend(thread(machine, note.data)),
            (b"CORE", NT_SIGINFO) => read.siginfo = note.data.to_vec(),
            (b"CORE", NT_AUXV) => read.auxv = note.data.to_vec(),
            (b"CORE", NT_FPREGSET) => {
                if let Some(thread) = read.threads.last_mut() {
                    thread.float_registers = note.data.to_vec();
                }
            }
            (b"LINUX", kind) if EXTRA.contains(&kind) => {
                if let Some(thread) = read.threads.last_mut() {
                    thread.extra.push((kind, note.data.to_vec()));
                }
            }
            _ => {}
        }
    }
    read
}

fn thread(machine: Machine, status: &[u8]) -> Option<Thread> {
    Some(Thread {
        tid: le::u32_at(status, PR_PID)?,
        signal: le::u16_at(status, PR_CURSIG)?,
        registers: status
            .get(PR_REG..PR_REG + machine.user_regs_size())?
            .to_vec(),
        ..Thread::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash::core_notes;
    use crate::crash::core_write::{Process, SmallCore};

    #[test]
    fn what_the_kernel_writes_is_what_we_write() {
        let thread = |tid: u32| Thread {
            tid,
            signal: 11,
            registers: vec![tid as u8; 27 * 8],
            float_registers: vec![3; 512],
            extra: vec![(0x406, vec![1; 16])],
            name: None,
        };
        let core = SmallCore {
            machine: Machine::X86_64,
            threads: vec![thread(7), thread(8)],
            process: Process::default(),
            siginfo: vec![5; 128],
            auxv: vec![6; 32],
            mappings: Vec::new(),
            ranges: Vec::new(),
        };
        let read = read(Machine::X86_64, &core_notes::notes(&core));
        assert_eq!((read.siginfo, read.auxv), (core.siginfo, core.auxv));
        for (read, wrote) in read.threads.iter().zip(&core.threads) {
            assert_eq!(
                (read.tid, read.signal, &read.registers),
                (wrote.tid, wrote.signal, &wrote.registers)
            );
            assert_eq!(read.float_registers, wrote.float_registers);
            assert_eq!(read.extra, wrote.extra);
        }
        assert_eq!(read.threads.len(), 2);
    }
}
