//! thread, request → what ptrace(2) and wait4(2) answer; nothing is decided here.
//!
//! Raw system calls: the C libraries disagree about the types of `ptrace`, and glibc's wrapper changes what PEEKDATA
//! answers. All of them must come from the thread that seized.

use std::ptr;

use libc::{c_long, c_void};

use crate::service::Pid;

const PEEKDATA: c_long = 2;
const CONT: c_long = 7;
const DETACH: c_long = 17;
const GETSIGINFO: c_long = 0x4202;
const GETREGSET: c_long = 0x4204;
const SEIZE: c_long = 0x4206;
const INTERRUPT: c_long = 0x4207;
const LISTEN: c_long = 0x4208;

pub const O_TRACEFORK: c_long = 1 << 1;
pub const O_TRACEVFORK: c_long = 1 << 2;
pub const O_TRACECLONE: c_long = 1 << 3;
pub const O_TRACEEXEC: c_long = 1 << 4;
pub const O_EXITKILL: c_long = 1 << 20;

/// The event of ptrace(2) that is a group-stop or the answer to INTERRUPT, as it stands above the signal in a wait
/// status.
pub const EVENT_STOP: i32 = 128;

/// Register sets: their note types in core files.
pub const NT_PRSTATUS: u32 = 1;
pub const NT_PRFPREG: u32 = 2;
#[cfg(target_arch = "aarch64")]
pub const EXTRA_REGSETS: &[u32] = &[0x401, 0x405, 0x406];
/// x86-64's NT_X86_XSTATE would be 2.4 KiB a thread, and no reader needs it.
#[cfg(not(target_arch = "aarch64"))]
pub const EXTRA_REGSETS: &[u32] = &[];

/// `sizeof(siginfo_t)`.
const SIGINFO_BYTES: usize = 128;

/// An errno.
pub type Refused = i32;

fn ptrace(request: c_long, tid: Pid, address: usize, data: usize) -> Result<(), Refused> {
    // SAFETY: every caller passes numbers, or addresses of buffers that outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_ptrace,
            request,
            c_long::from(tid),
            address as *mut c_void,
            data as *mut c_void,
        )
    };
    if done < 0 { Err(errno()) } else { Ok(()) }
}

pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

pub fn seize(tid: Pid, options: c_long) -> Result<(), Refused> {
    ptrace(SEIZE, tid, 0, options as usize)
}

pub fn interrupt(tid: Pid) -> Result<(), Refused> {
    ptrace(INTERRUPT, tid, 0, 0)
}

/// Lets a stopped thread run on, and receive `signal` where it is not 0.
pub fn go_on(tid: Pid, signal: i32) -> Result<(), Refused> {
    ptrace(CONT, tid, 0, signal as usize)
}

/// Leaves a group-stop as it is, so that SIGCONT works.
pub fn listen(tid: Pid) -> Result<(), Refused> {
    ptrace(LISTEN, tid, 0, 0)
}

pub fn detach(tid: Pid, signal: i32) -> Result<(), Refused> {
    ptrace(DETACH, tid, 0, signal as usize)
}

/// The raw `siginfo_t` of a signal-delivery-stop.
pub fn siginfo(tid: Pid) -> Option<Vec<u8>> {
    let mut bytes = vec![0u8; SIGINFO_BYTES];
    ptrace(GETSIGINFO, tid, 0, bytes.as_mut_ptr() as usize).ok()?;
    Some(bytes)
}

/// A register set, read into `room`: one for all threads, as new memory would cost more than the call.
pub fn regset(tid: Pid, kind: u32, room: &mut [u8]) -> Option<Vec<u8>> {
    let mut vector = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    };
    ptrace(GETREGSET, tid, kind as usize, &raw mut vector as usize).ok()?;
    room.get(..vector.iov_len).map(<[u8]>::to_vec)
}

/// Eight bytes: slow, and the last resort.
pub fn peek(tid: Pid, address: u64) -> Option<[u8; 8]> {
    let mut word = 0u64;
    ptrace(PEEKDATA, tid, address as usize, &raw mut word as usize).ok()?;
    Some(word.to_ne_bytes())
}

/// What a thread has been waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    Nothing,
    Stopped(i32),
    Ended(i32),
    /// It is not ours to wait for (any more).
    Gone,
}

/// Without blocking.
pub fn wait(tid: Pid) -> Waited {
    let mut status = 0;
    // SAFETY: writes the status; no resource usage wanted.
    let got = unsafe {
        libc::wait4(
            tid,
            &mut status,
            libc::__WALL | libc::WNOHANG,
            ptr::null_mut(),
        )
    };
    match got {
        0 => Waited::Nothing,
        got if got < 0 => Waited::Gone,
        _ if libc::WIFSTOPPED(status) => Waited::Stopped(status),
        _ => Waited::Ended(status),
    }
}

/// Reads another process' memory: process_vm_readv(2).
pub fn read_memory(tid: Pid, address: u64, into: &mut [u8]) -> usize {
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut c_void,
        iov_len: into.len(),
    };
    // SAFETY: the local vector is `into`, which outlives the call; the remote one is only read.
    let got = unsafe {
        libc::syscall(
            libc::SYS_process_vm_readv,
            c_long::from(tid),
            &raw const local,
            1 as c_long,
            &raw const remote,
            1 as c_long,
            0 as c_long,
        )
    };
    usize::try_from(got).unwrap_or(0)
}
