//! a service's configuration → a process with its pipes, or the stage that failed and errno.
//!
//! An own fork and exec: std's `Command` deadlocks with a tracer that seizes its child, knows
//! few of the stages below, and cannot say which of them failed. Everything is looked up and
//! allocated before the fork (`prepare`); `child` does the rest. Must run on the main thread: the
//! parent-death signal follows the forking *thread* (prctl(2)).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::child::{self, Gate, KERNEL_SIGSET_BYTES, Program, REPORT_BYTES, Stage};
pub use super::prepare::Inherited;
use super::prepare::{Ends, failed, failed_io, prepare, prepare_helper};
use crate::config::Service;
use crate::event::SpawnFailure;
use crate::handoff::{Helper, Pipes, Tracer};
use crate::service::Pid;

/// Bytes that each pipe of a run is enlarged to, or the kernel's 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipeSize {
    Kernel,
    Bytes(usize),
}

/// How a start ended.
pub struct Started {
    pub pid: Pid,
    pub pipes: Pipes,
    /// Why the tracer could not attach (errno); `None` also where none was wanted.
    pub untraced: Option<i32>,
}

/// Starts the service's process and waits until its `exec` has succeeded or failed.
///
/// A child whose stage failed has ended, or is about to; it is the reaper's like any other.
pub fn start(
    inherited: &Inherited,
    service: &Service,
    size: PipeSize,
    tracer: Option<&mut dyn Tracer>,
) -> Result<Started, SpawnFailure> {
    let (pipes, child) = output_pipes(size)?;
    let (report, report_child) = pipe()?;
    let mut program = prepare(inherited, service, &child.ends(inherited, &report_child))?;
    let Some(tracer) = tracer else {
        let pid = fork(&program)?;
        drop((child, report_child));
        return match read_report(report) {
            None => Ok(Started {
                pid,
                pipes,
                untraced: None,
            }),
            Some(failure) => Err(describe(service, &program, failure)),
        };
    };
    let (gate, opener) = pipe()?;
    program.gate = Some(Gate {
        read: gate.as_raw_fd(),
        write: opener.as_raw_fd(),
    });
    let pid = fork(&program)?;
    drop((child, report_child, gate));
    // Before the child changes its user: afterwards that needs a privilege.
    let untraced = tracer.seize(pid, service.capture.forks).err();
    let _ = rustix::io::write(&opener, &[1]);
    drop(opener);
    if untraced.is_none() {
        attend_until_told(&report, pid, tracer);
    }
    match read_report(report) {
        None => Ok(Started {
            pid,
            pipes,
            untraced,
        }),
        Some(failure) => Err(describe(service, &program, failure)),
    }
}

/// Starts a process of the agent's own.
pub fn start_helper(inherited: &Inherited, helper: &Helper) -> Result<(Pid, Pipes), SpawnFailure> {
    let (pipes, child) = output_pipes(PipeSize::Kernel)?;
    let (report, report_child) = pipe()?;
    let ends = child.ends(inherited, &report_child);
    let program = prepare_helper(inherited, helper, &ends)?;
    let pid = fork(&program)?;
    drop((child, report_child));
    match read_report(report) {
        None => Ok((pid, pipes)),
        Some((_, _, errno)) => Err(SpawnFailure {
            stage: format!("executing {}", helper.executable),
            errno,
        }),
    }
}

/// The child's ends of its output.
struct Output {
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Output {
    fn ends(&self, inherited: &Inherited, report: &OwnedFd) -> Ends {
        Ends {
            stdin: inherited.null.as_raw_fd(),
            stdout: self.stdout.as_raw_fd(),
            stderr: self.stderr.as_raw_fd(),
            report: report.as_raw_fd(),
        }
    }
}

fn output_pipes(size: PipeSize) -> Result<(Pipes, Output), SpawnFailure> {
    let (stdout, stdout_child) = output_pipe(size)?;
    let (stderr, stderr_child) = output_pipe(size)?;
    let child = Output {
        stdout: stdout_child,
        stderr: stderr_child,
    };
    Ok((Pipes { stdout, stderr }, child))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), SpawnFailure> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed("creating a pipe", errno))
}

/// A traced child that stops before its `exec` (a program that the kernel cannot load dies of SIGSEGV there) would
/// wait for us, and we for its report.
fn attend_until_told(report: &OwnedFd, pid: Pid, tracer: &mut dyn Tracer) {
    const LOOK: rustix::event::Timespec = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 5_000_000,
    };
    loop {
        let mut told = [PollFd::new(report, PollFlags::IN)];
        match poll(&mut told, Some(&LOOK)) {
            Ok(0) => {}
            Err(Errno::INTR) => continue,
            Ok(_) | Err(_) => return,
        }
        // Only a stop is taken: its end is the reaper's.
        // SAFETY: plain data, valid when zeroed, which the call writes.
        let status = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let options = libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
            let done = libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, options);
            if done != 0 || info.si_pid() == 0 {
                continue;
            }
            info.si_status()
        };
        // Nothing is copied here: there is no program yet. As wait4(2) would have told it.
        let _ = tracer.stopped(pid, (status << 8) | 0x7f, &mut Vec::new());
    }
}

fn output_pipe(size: PipeSize) -> Result<(OwnedFd, OwnedFd), SpawnFailure> {
    let create = || -> Result<(OwnedFd, OwnedFd), Errno> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        // Only ours: the child's end is another open file description, and stays blocking.
        rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)?;
        Ok((read, write))
    };
    let (read, write) = create().map_err(|errno| failed("creating a pipe", errno))?;
    if let PipeSize::Bytes(bytes) = size {
        // A smaller pipe only means more reads.
        let _ = rustix::pipe::fcntl_setpipe_size(read.as_fd(), bytes);
    }
    Ok((read, write))
}

/// The only place where the agent becomes two.
fn fork(program: &Program) -> Result<Pid, SpawnFailure> {
    let all = u64::MAX;
    let mut before = 0u64;
    let mask = |set: *const u64, old: *mut u64| {
        // SAFETY: pointers to 8 bytes each, or null, as rt_sigprocmask(2) wants them.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                set,
                old,
                KERNEL_SIGSET_BYTES,
            )
        };
    };
    // Blocked until the child has default dispositions: our handlers write to pipes that
    // the child still shares.
    mask(&raw const all, &raw mut before);
    // SAFETY: the child calls nothing but `become_program`, which is async-signal-safe.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: this is the child of a fork and every signal is blocked.
        unsafe { child::become_program(program) }
    }
    let error = io::Error::last_os_error();
    mask(&raw const before, std::ptr::null_mut());
    if pid < 0 {
        return Err(failed_io("forking", &error));
    }
    Ok(pid)
}

/// `None` at end of file: exec closed the other end.
fn read_report(report: OwnedFd) -> Option<child::Failure> {
    let mut bytes = Vec::with_capacity(REPORT_BYTES);
    // An unreadable pipe says nothing about the child: its exit will.
    let _ = File::from(report).read_to_end(&mut bytes);
    child::parse_report(&bytes)
}

fn describe(service: &Service, program: &Program, failure: child::Failure) -> SpawnFailure {
    let (stage, index, errno) = failure;
    let process = &service.process;
    let path = String::from_utf8_lossy(program.path.as_bytes()).into_owned();
    let stage = match stage {
        Stage::Session => "starting a session".to_owned(),
        Stage::Stdio => "connecting stdin, stdout and stderr".to_owned(),
        Stage::Descriptors => "closing descriptors".to_owned(),
        Stage::Signals => "resetting signals".to_owned(),
        Stage::Oom => "setting oom_score_adj".to_owned(),
        Stage::Limit => {
            let name = process.limits.get(usize::from(index)).map(|l| l.name);
            format!("setting limit {}", name.unwrap_or("nofile"))
        }
        Stage::Nice => "setting nice".to_owned(),
        Stage::Affinity => "setting cpu affinity".to_owned(),
        Stage::Scheduling => "setting scheduling".to_owned(),
        Stage::Bounding => "dropping capabilities".to_owned(),
        Stage::Groups => "setting supplementary groups".to_owned(),
        Stage::Gid => format!("setting group {}", program.gid.unwrap_or(0)),
        Stage::Uid => format!("setting user {}", program.uid.unwrap_or(0)),
        Stage::Capabilities => "setting capabilities".to_owned(),
        Stage::Privileges => "setting no_new_privileges".to_owned(),
        Stage::DeathSignal => "tying it to the agent's life".to_owned(),
        Stage::Directory => match &program.directory {
            Some(directory) => {
                format!("changing to directory {}", directory.to_string_lossy())
            }
            None => "changing directory".to_owned(),
        },
        // ENOENT of a file that is there is about its interpreter.
        Stage::Exec if errno == libc::ENOENT && Path::new(&path).is_absolute() => {
            match std::fs::metadata(&path) {
                Ok(_) => format!("finding the interpreter of {path}"),
                Err(_) => format!("executing {path}"),
            }
        }
        Stage::Exec => format!("executing {path}"),
    };
    SpawnFailure { stage, errno }
}
