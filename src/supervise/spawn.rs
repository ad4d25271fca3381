//! a service's configuration → a process with its pipes, or the stage that failed and errno.
//!
//! An own fork and exec: std's `Command` deadlocks with a tracer that seizes its child, knows
//! few of the stages below, and cannot say which of them failed. Everything is looked up and
//! allocated before the fork (`prepare`); `child` does the rest. Must run on the main thread: the
//! parent-death signal follows the forking *thread* (prctl(2)).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::OptionalActions;

use super::cgroup::Place;
use super::child::{self, Born, Gate, KERNEL_SIGSET_BYTES, Program, REPORT_BYTES, Stage};
use super::prepare::{Ends, failed, failed_io, prepare, prepare_helper};
pub use super::prepare::{Handed, Inherited};
use super::privileges;
use crate::config::Service;
use crate::event::{DEBUG_SESSION, SpawnFailure};
use crate::handoff::{Helper, Pipes, Tracer};
use crate::service::Pid;

/// Bytes that each pipe of a run is enlarged to, or the kernel's 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipeSize {
    Kernel,
    Bytes(usize),
}

/// The write ends of a run's output. Kept for as long as something else of the run is to
/// be started.
#[derive(Debug)]
pub struct Writers {
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// What a run's output goes through.
pub fn output(service: &Service, size: PipeSize) -> Result<(Pipes, Writers), SpawnFailure> {
    let (stdout, stdout_child) = match service.process.pty {
        true => terminal()?,
        false => output_pipe(size)?,
    };
    let (stderr, stderr_child) = output_pipe(size)?;
    let writers = Writers {
        stdout: stdout_child,
        stderr: stderr_child,
    };
    Ok((Pipes { stdout, stderr }, writers))
}

/// What is started for a service.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// Its own program.
    Main(&'a Handed),
    /// A command that belongs to it, as its user, in its environment.
    Command(&'a [String]),
}

/// The service's own program, with pipes that nobody else writes to.
pub fn start(
    inherited: &Inherited,
    service: &Service,
    size: PipeSize,
) -> Result<(Pid, Pipes), SpawnFailure> {
    let (pipes, writers) = output(service, size)?;
    let what = What::Main(&Handed::default());
    let pid = launch(inherited, service, what, Some(&writers), None)?;
    Ok((pid, pipes))
}

/// Starts a process and waits until its `exec` has succeeded or failed. Without `writers`
/// nobody reads what it says.
///
/// A child whose stage failed has ended, or is about to; it is the reaper's like any other.
pub fn launch(
    inherited: &Inherited,
    service: &Service,
    what: What<'_>,
    writers: Option<&Writers>,
    place: Option<&Place>,
) -> Result<Pid, SpawnFailure> {
    let launched = set_off(inherited, service, what, writers, place, None)?;
    launched.arrive(service, None)
}

/// A process on its way to its program.
pub struct Launched {
    pub pid: Pid,
    report: OwnedFd,
    program: Program,
    /// Why it is not traced though it should be.
    pub untraced: Option<Untraced>,
}

/// Why a process is not traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untraced {
    /// The kernel does not permit it (errno).
    Refused(i32),
    /// It would cost the program what its file grants.
    Privileged,
}

impl Launched {
    /// Waits until its `exec` has succeeded or failed. `tracer`: the one that it set off with.
    ///
    /// # Errors
    /// As [`launch`].
    pub fn arrive(
        self,
        service: &Service,
        tracer: Option<&mut dyn Tracer>,
    ) -> Result<Pid, SpawnFailure> {
        if let Some(tracer) = tracer
            && self.untraced.is_none()
        {
            attend_until_told(&self.report, self.pid, tracer);
        }
        match read_report(self.report) {
            None => Ok(self.pid),
            Some(failure) => Err(describe(service, &self.program, failure)),
        }
    }
}

/// As [`launch`], under a tracer where there is one, without the wait.
pub fn set_off(
    inherited: &Inherited,
    service: &Service,
    what: What<'_>,
    writers: Option<&Writers>,
    place: Option<&Place>,
    tracer: Option<&mut dyn Tracer>,
) -> Result<Launched, SpawnFailure> {
    let (report, report_child) = pipe()?;
    let report_child =
        clear_of(report_child, what).map_err(|errno| failed("creating a pipe", errno))?;
    let null = inherited.null.as_raw_fd();
    let ends = Ends {
        stdin: null,
        stdout: writers.map_or(null, |writers| writers.stdout.as_raw_fd()),
        stderr: writers.map_or(null, |writers| writers.stderr.as_raw_fd()),
        report: report_child.as_raw_fd(),
        group: place.and_then(Place::group),
        group_doors: place.map(Place::doors).unwrap_or_default(),
    };
    let nothing = Handed::default();
    let mut program = match what {
        What::Main(handed) => {
            let argv = std::iter::once(&service.executable).chain(&service.args);
            let argv = argv.map(String::as_str);
            let program = prepare(inherited, service, argv, handed, &ends)?;
            Program {
                halt: service.debug.is_some(),
                ..program
            }
        }
        What::Command(argv) => {
            let argv = argv.iter().map(String::as_str);
            prepare(inherited, service, argv, &nothing, &ends)?
        }
    };
    let (gate, opener) = pipe()?;
    let mut untraced = None;
    let tracer = tracer.filter(|_| {
        let folder = program.directory.as_deref();
        let folder = folder.map(|folder| OsStr::from_bytes(folder.to_bytes()));
        let path = OsStr::from_bytes(program.path.to_bytes());
        let is_costly = !program.no_new_privileges && privileges::are_lost(path, folder);
        untraced = is_costly.then_some(Untraced::Privileged);
        !is_costly
    });
    if tracer.is_some() {
        program.gate = Some(Gate {
            read: gate.as_raw_fd(),
            write: opener.as_raw_fd(),
        });
    }
    let pid = fork(&program)?;
    drop((report_child, gate));
    if let Some(tracer) = tracer {
        // Before the child changes its user: afterwards that needs a privilege.
        let seized = tracer.seize(pid, service.capture.forks);
        untraced = seized.err().map(Untraced::Refused);
        let _ = rustix::io::write(&opener, &[1]);
    }
    Ok(Launched {
        pid,
        report,
        program,
        untraced,
    })
}

/// A program of the service's that serves the agent rather than the service: `argv`, as its user, and what it says
/// on either stream.
pub fn launch_tool(
    inherited: &Inherited,
    service: &Service,
    argv: &[String],
    place: Option<&Place>,
) -> Result<(Pid, OwnedFd), SpawnFailure> {
    let (said, stdout) = output_pipe(PipeSize::Kernel)?;
    let stderr = stdout.try_clone();
    let stderr = stderr.map_err(|error| failed_io("creating a pipe", &error))?;
    let writers = Writers { stdout, stderr };
    let what = What::Command(argv);
    let pid = launch(inherited, service, what, Some(&writers), place)?;
    Ok((pid, said))
}

/// Starts a process of the agent's own.
pub fn start_helper(inherited: &Inherited, helper: &Helper) -> Result<(Pid, Pipes), SpawnFailure> {
    let (stdout, stdout_child) = output_pipe(PipeSize::Kernel)?;
    let (stderr, stderr_child) = output_pipe(PipeSize::Kernel)?;
    let (report, report_child) = pipe()?;
    let ends = Ends {
        stdin: inherited.null.as_raw_fd(),
        stdout: stdout_child.as_raw_fd(),
        stderr: stderr_child.as_raw_fd(),
        report: report_child.as_raw_fd(),
        group: None,
        group_doors: Vec::new(),
    };
    let program = prepare_helper(inherited, helper, &ends)?;
    let pid = fork(&program)?;
    drop((stdout_child, stderr_child, report_child));
    match read_report(report) {
        None => Ok((pid, Pipes { stdout, stderr })),
        Some((_, _, errno)) => Err(SpawnFailure {
            stage: format!("executing {}", helper.executable),
            errno,
        }),
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), SpawnFailure> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed("creating a pipe", errno))
}

/// A traced child that stops before its `exec` (a program that the kernel cannot load dies of SIGSEGV there) would
/// wait for us, and we for its report. Where it has stopped right after its `exec` already, it is let go at once.
fn attend_until_told(report: &OwnedFd, pid: Pid, tracer: &mut dyn Tracer) {
    const LOOK: rustix::event::Timespec = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 5_000_000,
    };
    loop {
        let mut told = [PollFd::new(report, PollFlags::IN)];
        match poll(&mut told, Some(&LOOK)) {
            Ok(0) => attend(pid, tracer),
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => return attend(pid, tracer),
        }
    }
}

/// Only a stop is taken: its end is the reaper's.
fn attend(pid: Pid, tracer: &mut dyn Tracer) {
    // SAFETY: plain data, valid when zeroed, which the call writes.
    let status = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
        let done = libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, options);
        if done != 0 || info.si_pid() == 0 {
            return;
        }
        info.si_status()
    };
    // Nothing is copied here: its program has not begun. As wait4(2) would have told it.
    let _ = tracer.stopped(pid, (status << 8) | 0x7f, &mut Vec::new());
}

/// Beyond the number that the service's own descriptor shall have. The first one is closed:
/// an open copy would hide that `exec` closed the child's.
fn clear_of(fd: OwnedFd, what: What<'_>) -> Result<OwnedFd, Errno> {
    match what {
        What::Main(Handed {
            ready_fd: Some((_, number)),
            ..
        }) => rustix::io::fcntl_dupfd_cloexec(&fd, number + 1),
        What::Main(_) | What::Command(_) => Ok(fd),
    }
}

/// A pseudo-terminal (pty(7)): what writes to it believes that somebody watches, and writes
/// line by line. Raw, so that the bytes stay as they are.
fn terminal() -> Result<(OwnedFd, OwnedFd), SpawnFailure> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let create = || -> Result<(OwnedFd, OwnedFd), Errno> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let name = ptsname(&ours, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let theirs = rustix::fs::open(name.as_c_str(), flags, Mode::empty())?;
        let mut modes = rustix::termios::tcgetattr(&theirs)?;
        modes.make_raw();
        rustix::termios::tcsetattr(&theirs, OptionalActions::Now, &modes)?;
        rustix::fs::fcntl_setfl(&ours, OFlags::NONBLOCK)?;
        Ok((ours, theirs))
    };
    create().map_err(|errno| failed("opening a pseudo-terminal", errno))
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
    let (pid, born) = unsafe {
        let folder = program.group.and_then(|group| group.folder);
        match folder.map(|folder| clone_into(folder)) {
            Some(pid @ 0..) => (pid, Born::InItsGroup),
            // Before Linux 5.7, where a filter knows no clone3, and where the group is full.
            Some(_) | None => (libc::fork(), Born::BesideUs),
        }
    };
    if pid == 0 {
        // SAFETY: this is the child of a fork and every signal is blocked.
        unsafe { child::become_program(program, born) }
    }
    let error = io::Error::last_os_error();
    mask(&raw const before, std::ptr::null_mut());
    if pid < 0 {
        return Err(failed_io("forking", &error));
    }
    Ok(pid)
}

/// A fork whose child begins in a control group. To move there later takes a lock that every fork and exit of the
/// machine shares, and after a quiet while a grace period of the kernel's: 10 ms and more.
///
/// # Safety
/// As for a fork: the child may call only what is async-signal-safe. Unlike libc's it is in no list of libc's either.
unsafe fn clone_into(group: RawFd) -> Pid {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // struct clone_args of clone(2), as of Linux 5.7.
    let mut arguments = [0u64; 11];
    arguments[0] = CLONE_INTO_CGROUP;
    arguments[4] = libc::SIGCHLD as u64;
    arguments[10] = group as u64;
    // SAFETY: the caller's promise; without CLONE_VM the child has memory of its own.
    unsafe {
        libc::syscall(
            libc::SYS_clone3,
            arguments.as_ptr(),
            size_of_val(&arguments),
        ) as Pid
    }
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
        Stage::IoPriority => "setting io priority".to_owned(),
        Stage::Halt => format!("{DEBUG_SESSION}stopping it at its first instruction"),
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
