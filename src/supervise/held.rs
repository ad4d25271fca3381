//! a child that stops at its exec → the same child, standing still at its first instruction without a tracer.
//!
//! Its own tracer would keep a debugger out. So its first instruction is replaced by a jump to itself, and put back
//! once the debugger holds it: nothing of that is seen by either. Where its memory may not be written (another user's,
//! without CAP_SYS_PTRACE) it is stopped by SIGSTOP instead, which the debugger then tells of.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use super::prepare::failed_io;
use crate::event::{DEBUG_SESSION, SpawnFailure};
use crate::service::Pid;

/// How a process stands still.
pub enum Held {
    Jumping {
        memory: File,
        at: u64,
        instruction: Instruction,
    },
    Stopped,
}

#[cfg(target_arch = "x86_64")]
type Instruction = [u8; 2];
#[cfg(target_arch = "aarch64")]
type Instruction = [u8; 4];

/// `jmp .`
#[cfg(target_arch = "x86_64")]
const JUMP: Instruction = [0xeb, 0xfe];
/// `b .`
#[cfg(target_arch = "aarch64")]
const JUMP: Instruction = [0x00, 0x00, 0x00, 0x14];

/// Of a child that asked to be traced by us and whose exec has succeeded. `None` where it has died meanwhile: the
/// reaper's.
pub fn hold(pid: Pid) -> Result<Option<Held>, SpawnFailure> {
    if !has_stopped(pid)? {
        return Ok(None);
    }
    let held = match jump(pid) {
        Ok(held) => held,
        Err(error) => {
            tracing::debug!("its memory cannot be written ({error}): it is stopped by a signal");
            // SAFETY: kill(2) touches no memory.
            if unsafe { libc::kill(pid, libc::SIGSTOP) } != 0 {
                return Err(failed_io(stage("stopping it"), &io::Error::last_os_error()));
            }
            Held::Stopped
        }
    };
    // SAFETY: no pointers.
    if unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0) } != 0 {
        return Err(failed_io(
            stage("letting it go"),
            &io::Error::last_os_error(),
        ));
    }
    Ok(Some(held))
}

impl Held {
    /// Its debugger holds it: nothing of ours is left.
    pub fn release(self) -> io::Result<()> {
        match self {
            Held::Jumping {
                memory,
                at,
                instruction,
            } => memory.write_all_at(&instruction, at),
            Held::Stopped => Ok(()),
        }
    }
}

fn stage(what: &str) -> String {
    format!("{DEBUG_SESSION}{what}")
}

/// Waits for the stop that its exec makes; false where it ended instead, which is left to be reaped.
fn has_stopped(pid: Pid) -> Result<bool, SpawnFailure> {
    // SAFETY: plain data, valid when zeroed, which the calls write.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT | libc::__WALL;
        while libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, options) != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(Errno::INTR.raw_os_error()) {
                return Err(failed_io(
                    stage("waiting for its first instruction"),
                    &error,
                ));
            }
        }
        let stopped = matches!(info.si_code, libc::CLD_TRAPPED | libc::CLD_STOPPED);
        if stopped {
            let mut status = 0;
            libc::waitpid(pid, &mut status, libc::__WALL | libc::WNOHANG);
        }
        Ok(stopped)
    }
}

fn jump(pid: Pid) -> io::Result<Held> {
    let memory = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/mem"))?;
    let at = first_instruction(pid)?;
    let mut instruction = Instruction::default();
    memory.read_exact_at(&mut instruction, at)?;
    memory.write_all_at(&JUMP, at)?;
    Ok(Held::Jumping {
        memory,
        at,
        instruction,
    })
}

/// Where a process that is stopped for us stands.
fn first_instruction(pid: Pid) -> io::Result<u64> {
    const NT_PRSTATUS: usize = 1;
    // SAFETY: the kernel writes at most `iov_len` bytes of plain data.
    unsafe {
        let mut registers: libc::user_regs_struct = std::mem::zeroed();
        let mut buffer = libc::iovec {
            iov_base: (&raw mut registers).cast(),
            iov_len: size_of_val(&registers),
        };
        let request = libc::PTRACE_GETREGSET;
        if libc::ptrace(request, pid, NT_PRSTATUS, &raw mut buffer) != 0 {
            return Err(io::Error::last_os_error());
        }
        #[cfg(target_arch = "x86_64")]
        return Ok(registers.rip);
        #[cfg(target_arch = "aarch64")]
        return Ok(registers.pc);
    }
}
