//! a program, prepared → this process becomes it, or says which stage failed.
//!
//! Runs between fork and exec, in a copy of a process that had other threads: only
//! async-signal-safe calls (signal-safety(7)), no allocation, no locks, no std. Everything
//! that needs any of those is prepared before the fork. Raw system calls stand where libc
//! would do more than the call (setuid's broadcast to threads, signals 32 and 33).
//!
//! The order is the specification: what needs privilege comes before it is given up, the
//! parent-death signal after the last change of credentials (the kernel clears it there),
//! the directory after it (it is entered as the user), the empty mask last.

use std::ffi::CString;
use std::os::fd::RawFd;
use std::ptr;

use libc::{c_char, c_int, c_long, c_ulong};

/// Everything the child needs, in the form in which the kernel takes it.
pub struct Program {
    pub path: CString,
    pub arguments: Strings,
    pub environment: Strings,
    pub directory: Option<CString>,
    pub umask: libc::mode_t,
    /// Resource, soft and hard value.
    pub limits: Vec<(c_int, libc::rlimit)>,
    pub nice: Option<c_int>,
    pub affinity: Option<Box<libc::cpu_set_t>>,
    /// Policy and priority.
    pub scheduling: Option<(c_int, c_int)>,
    /// Class and level as ioprio_set(2) takes them.
    pub io_priority: Option<c_int>,
    pub oom_score_adj: Option<OomScore>,
    pub groups: Option<Vec<libc::gid_t>>,
    pub gid: Option<libc::gid_t>,
    pub uid: Option<libc::uid_t>,
    /// A bit per capability of capabilities(7): these stay, all others go.
    pub capabilities: Option<u64>,
    pub no_new_privileges: bool,
    /// Whose death is ours.
    pub parent: libc::pid_t,
    pub stdin: RawFd,
    pub stdout: RawFd,
    pub stderr: RawFd,
    /// Where the child waits until its tracer holds it.
    pub gate: Option<Gate>,
    /// The service's own control group.
    pub group: Option<Group>,
    /// Where `0` is written to move into its groups of single controllers.
    pub group_doors: Vec<RawFd>,
    /// One more descriptor, and the number that it shall have.
    pub extra: Option<(RawFd, RawFd)>,
    /// At its first instruction it is to stop for its parent.
    pub halt: bool,
    /// Close-on-exec: where a failure is written, [`REPORT_BYTES`] at once.
    pub report: RawFd,
}

/// A folder of the unified tree where one may be born in it, and the file in it to which who writes `0` moves there.
#[derive(Clone, Copy)]
pub struct Group {
    pub folder: Option<RawFd>,
    pub procs: RawFd,
}

/// Where the child found itself when it began.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Born {
    InItsGroup,
    BesideUs,
}

/// A pipe: a byte opens it, its end says that nobody will.
#[derive(Clone, Copy)]
pub struct Gate {
    pub read: RawFd,
    pub write: RawFd,
}

/// The decimal text of `/proc/self/oom_score_adj`.
pub struct OomScore {
    pub text: Vec<u8>,
    /// Asked for by the configuration, so that a failure is one.
    pub must: bool,
}

/// A null-terminated array of C strings, as execve(2) takes it.
pub struct Strings {
    pointers: Vec<*const c_char>,
    _owned: Vec<CString>,
}

impl Strings {
    pub fn new(strings: Vec<CString>) -> Strings {
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([ptr::null()])
            .collect();
        Strings {
            pointers,
            _owned: strings,
        }
    }
}

/// What was being done when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    Session,
    Stdio,
    Descriptors,
    Signals,
    Oom,
    Limit,
    Nice,
    Affinity,
    Scheduling,
    IoPriority,
    Bounding,
    Groups,
    Gid,
    Uid,
    Capabilities,
    Privileges,
    DeathSignal,
    Directory,
    Halt,
    Exec,
}

impl Stage {
    const ALL: [Stage; 20] = [
        Stage::Session,
        Stage::Stdio,
        Stage::Descriptors,
        Stage::Signals,
        Stage::Oom,
        Stage::Limit,
        Stage::Nice,
        Stage::Affinity,
        Stage::Scheduling,
        Stage::IoPriority,
        Stage::Bounding,
        Stage::Groups,
        Stage::Gid,
        Stage::Uid,
        Stage::Capabilities,
        Stage::Privileges,
        Stage::DeathSignal,
        Stage::Directory,
        Stage::Halt,
        Stage::Exec,
    ];
}

/// A stage, which of its items, and the errno.
pub type Failure = (Stage, u8, c_int);

pub const REPORT_BYTES: usize = 6;

/// Reads what [`become_program`] wrote; `None` for anything else.
pub fn parse_report(report: &[u8]) -> Option<Failure> {
    let [stage, index, errno @ ..] = report else {
        return None;
    };
    let stage = *Stage::ALL.get(usize::from(*stage))?;
    Some((stage, *index, c_int::from_le_bytes(errno.try_into().ok()?)))
}

/// Never returns: the program runs, or the failure is written to `report` and this process ends.
///
/// # Safety
/// Only in the child of a fork, with every signal blocked.
pub unsafe fn become_program(program: &Program, born: Born) -> ! {
    // SAFETY: the caller's promise; the descriptor is ours and open.
    unsafe {
        if let Some(gate) = program.gate {
            wait_at(gate);
        }
        let (stage, index, errno) = match prepare_and_exec(program, born) {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        let e = errno.to_le_bytes();
        let report: [u8; REPORT_BYTES] = [stage as u8, index, e[0], e[1], e[2], e[3]];
        libc::write(program.report, report.as_ptr().cast(), REPORT_BYTES);
        libc::_exit(127)
    }
}

/// SAFETY: as `become_program`.
unsafe fn wait_at(gate: Gate) {
    let mut byte = 0u8;
    unsafe {
        // Ours too since the fork: open, it would hide that the agent has died.
        libc::close(gate.write);
        if libc::read(gate.read, (&raw mut byte).cast(), 1) != 1 {
            libc::_exit(127);
        }
        libc::close(gate.read);
    }
}

enum Never {}

/// SAFETY of all below: as `become_program`; every pointer is into `program`, which outlives them.
unsafe fn prepare_and_exec(program: &Program, born: Born) -> Result<Never, Failure> {
    unsafe {
        // Outside it is found by other means.
        if let (Some(group), Born::BesideUs) = (program.group, born) {
            libc::write(group.procs, b"0".as_ptr().cast(), 1);
        }
        for door in &program.group_doors {
            libc::write(*door, b"0".as_ptr().cast(), 1);
        }
        check(Stage::Session, libc::setsid() as c_long)?;
        check(Stage::Stdio, libc::dup2(program.stdin, 0) as c_long)?;
        check(Stage::Stdio, libc::dup2(program.stdout, 1) as c_long)?;
        check(Stage::Stdio, libc::dup2(program.stderr, 2) as c_long)?;
        close_the_rest_on_exec()?;
        if let Some((fd, number)) = program.extra {
            check(Stage::Stdio, libc::dup2(fd, number) as c_long)?;
        }
        default_dispositions()?;
        libc::umask(program.umask);
        resources(program)?;
        credentials(program)?;
        die_with_the_agent(program)?;
        if let Some(directory) = &program.directory {
            check(Stage::Directory, libc::chdir(directory.as_ptr()) as c_long)?;
        }
        if program.halt {
            stop_at_exec()?;
        }
        let empty = 0u64;
        check(
            Stage::Signals,
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const empty,
                ptr::null_mut::<u64>(),
                KERNEL_SIGSET_BYTES,
            ),
        )?;
        libc::execve(
            program.path.as_ptr(),
            program.arguments.pointers.as_ptr(),
            program.environment.pointers.as_ptr(),
        );
        Err((Stage::Exec, 0, errno()))
    }
}

/// `sizeof(sigset_t)` as the kernel has it: 64 signals.
pub const KERNEL_SIGSET_BYTES: usize = 8;

unsafe fn close_the_rest_on_exec() -> Result<(), Failure> {
    const CLOSE_RANGE_CLOEXEC: c_ulong = 4;
    unsafe {
        let done = libc::syscall(
            libc::SYS_close_range,
            3 as c_ulong,
            libc::c_uint::MAX as c_ulong,
            CLOSE_RANGE_CLOEXEC,
        );
        if done == 0 {
            return Ok(());
        }
        // Before Linux 5.11 and under emulation. Ours are close-on-exec anyway: this is for
        // what the agent itself was started with.
        let mut limit: libc::rlimit = std::mem::zeroed();
        check(
            Stage::Descriptors,
            libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) as c_long,
        )?;
        for fd in 3..limit.rlim_cur.min(65_536) as c_int {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
        Ok(())
    }
}

/// exec resets handlers, but what is ignored stays ignored (std ignores SIGPIPE, nohup
/// SIGHUP).
unsafe fn default_dispositions() -> Result<(), Failure> {
    // struct sigaction of the kernel, all zero: SIG_DFL, no flags, no mask. 32 bytes hold it
    // on every architecture.
    let default = [0u64; 4];
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        let done = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal as c_long,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                KERNEL_SIGSET_BYTES,
            )
        };
        check(Stage::Signals, done)?;
    }
    Ok(())
}

unsafe fn resources(program: &Program) -> Result<(), Failure> {
    unsafe {
        if let Some(score) = &program.oom_score_adj {
            let done = write_file(c"/proc/self/oom_score_adj".as_ptr(), &score.text);
            if score.must {
                check(Stage::Oom, done)?;
            }
        }
        for (index, (resource, limit)) in program.limits.iter().enumerate() {
            let done = libc::prlimit64(
                0,
                *resource as _,
                (&raw const *limit).cast(),
                ptr::null_mut(),
            );
            check_item(Stage::Limit, index, done as c_long)?;
        }
        if let Some(nice) = program.nice {
            let done = libc::setpriority(libc::PRIO_PROCESS, 0, nice);
            check(Stage::Nice, done as c_long)?;
        }
        if let Some(set) = &program.affinity {
            let bytes = size_of::<libc::cpu_set_t>();
            let done = libc::sched_setaffinity(0, bytes, &raw const **set);
            check(Stage::Affinity, done as c_long)?;
        }
        if let Some((policy, priority)) = program.scheduling {
            let mut parameters: libc::sched_param = std::mem::zeroed();
            parameters.sched_priority = priority;
            // The raw call: musl's wrapper answers ENOSYS.
            let done = libc::syscall(
                libc::SYS_sched_setscheduler,
                0 as c_long,
                policy as c_long,
                &raw const parameters,
            );
            check(Stage::Scheduling, done)?;
        }
        if let Some(priority) = program.io_priority {
            const IOPRIO_WHO_PROCESS: c_long = 1;
            let done = libc::syscall(
                libc::SYS_ioprio_set,
                IOPRIO_WHO_PROCESS,
                0 as c_long,
                priority as c_long,
            );
            check(Stage::IoPriority, done)?;
        }
        Ok(())
    }
}

unsafe fn write_file(path: *const c_char, content: &[u8]) -> c_long {
    unsafe {
        let fd = libc::open(path, libc::O_WRONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return -1;
        }
        let written = libc::write(fd, content.as_ptr().cast(), content.len());
        let failed = errno();
        libc::close(fd);
        set_errno(failed);
        if written < 0 { -1 } else { 0 }
    }
}

unsafe fn credentials(program: &Program) -> Result<(), Failure> {
    unsafe {
        if let Some(keep) = program.capabilities {
            drop_bounding(keep, program.no_new_privileges)?;
            if program.uid.is_some() {
                let done = libc::prctl(libc::PR_SET_KEEPCAPS, 1 as c_ulong, 0, 0, 0);
                check(Stage::Capabilities, done as c_long)?;
            }
        }
        if let Some(groups) = &program.groups {
            let done = libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr());
            check(Stage::Groups, done)?;
        }
        if let Some(gid) = program.gid {
            let done = libc::syscall(libc::SYS_setresgid, gid, gid, gid);
            check(Stage::Gid, done)?;
        }
        if let Some(uid) = program.uid {
            let done = libc::syscall(libc::SYS_setresuid, uid, uid, uid);
            check(Stage::Uid, done)?;
        }
        if let Some(keep) = program.capabilities {
            set_capabilities(keep)?;
        }
        if program.no_new_privileges {
            let done = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, 0, 0, 0);
            check(Stage::Privileges, done as c_long)?;
        }
        Ok(())
    }
}

/// Without CAP_SETPCAP this is not allowed; it is not needed where no exec can gain anything.
unsafe fn drop_bounding(keep: u64, no_new_privileges: bool) -> Result<(), Failure> {
    for capability in 0..64u64 {
        if keep & (1 << capability) != 0 {
            continue;
        }
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability as c_ulong, 0, 0, 0) };
        if done == 0 {
            continue;
        }
        match errno() {
            libc::EINVAL => break, // beyond the last one that this kernel knows
            libc::EPERM if no_new_privileges => break,
            errno => return Err((Stage::Bounding, 0, errno)),
        }
    }
    Ok(())
}

/// Permitted, effective and inheritable alike; ambient too, so that they survive the exec of
/// a plain file by a user who is not root.
unsafe fn set_capabilities(keep: u64) -> Result<(), Failure> {
    const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
    let low = keep as u32;
    let high = (keep >> 32) as u32;
    let header = [LINUX_CAPABILITY_VERSION_3, 0];
    let sets = [low, low, low, high, high, high];
    unsafe {
        let done = libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr());
        check(Stage::Capabilities, done)?;
        let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong;
        libc::prctl(libc::PR_CAP_AMBIENT, clear, 0, 0, 0);
        for capability in (0..64u64).filter(|bit| keep & (1 << bit) != 0) {
            let raise = libc::PR_CAP_AMBIENT_RAISE as c_ulong;
            let done = libc::prctl(libc::PR_CAP_AMBIENT, raise, capability as c_ulong, 0, 0);
            check(Stage::Capabilities, done as c_long)?;
        }
    }
    Ok(())
}

/// The agent may have died between fork and prctl: then nobody would tell.
unsafe fn die_with_the_agent(program: &Program) -> Result<(), Failure> {
    unsafe {
        let kill = libc::SIGKILL as c_ulong;
        let done = libc::prctl(libc::PR_SET_PDEATHSIG, kill, 0, 0, 0);
        check(Stage::DeathSignal, done as c_long)?;
        if libc::getppid() != program.parent {
            libc::_exit(127);
        }
        Ok(())
    }
}

/// Traced by its parent, a process stops with SIGTRAP when exec has succeeded (ptrace(2)).
unsafe fn stop_at_exec() -> Result<(), Failure> {
    unsafe {
        // Where Yama asks for it: the debugger is no ancestor. Elsewhere EINVAL.
        let anyone = c_ulong::MAX;
        libc::prctl(libc::PR_SET_PTRACER, anyone, 0, 0, 0);
        let done = libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
        check(Stage::Halt, done)
    }
}

fn check(stage: Stage, result: c_long) -> Result<(), Failure> {
    check_item(stage, 0, result)
}

fn check_item(stage: Stage, index: usize, result: c_long) -> Result<(), Failure> {
    if result >= 0 {
        Ok(())
    } else {
        Err((stage, index as u8, errno()))
    }
}

fn errno() -> c_int {
    // SAFETY: a pointer to this thread's errno, always valid.
    unsafe { *libc::__errno_location() }
}

fn set_errno(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_survives_the_pipe() {
        for (number, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, number);
            let report = [stage as u8, 3, 22, 0, 0, 0];
            assert_eq!(parse_report(&report), Some((stage, 3, 22)));
        }
        assert_eq!(parse_report(&[20, 0, 0, 0, 0, 0]), None);
        assert_eq!(parse_report(&[0, 0, 0]), None);
    }
}
