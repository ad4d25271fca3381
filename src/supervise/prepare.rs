//! a service's configuration → a program, in the form in which the kernel takes it.
//!
//! Everything that may allocate, read a file or fail in words happens here, before the fork.
//! Files are read at every start: accounts and environment files may change between two.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::accounts::{self, Account};
use super::child::{Group, OomScore, Program, Strings};
use super::environment::{self, Environment};
use crate::config::{Identity, IoPriority, Process, Scheduling, Service};
use crate::event::SpawnFailure;
use crate::handoff::Helper;

/// What services inherit from the agent's own start, taken before the agent changes itself.
pub struct Inherited {
    pub(super) null: OwnedFd,
    nofile: libc::rlimit,
}

impl Inherited {
    /// # Errors
    /// There is neither `/dev/null` nor a descriptor to be had.
    pub fn take() -> io::Result<Inherited> {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .or_else(|_| empty())
            .map_err(|errno| at("opening /dev/null", errno))?;
        let mut nofile = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: writes the struct it is given.
        if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut nofile) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Inherited { null, nofile })
    }
}

/// What reads like `/dev/null`, in a root that has no `/dev`: a pipe that nobody writes to.
fn empty() -> Result<OwnedFd, Errno> {
    let (read, _) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok(read)
}

fn at(what: &str, errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// The child's ends.
pub struct Ends {
    pub stdin: RawFd,
    pub stdout: RawFd,
    pub stderr: RawFd,
    pub report: RawFd,
    /// See [`Program`] for both.
    pub group: Option<Group>,
    pub group_doors: Vec<RawFd>,
}

/// What one run is given beside what its configuration says.
#[derive(Clone, Debug, Default)]
pub struct Handed {
    /// `NOTIFY_SOCKET`.
    pub notify_socket: Option<String>,
    /// A descriptor, and the number under which the service knows it.
    pub ready_fd: Option<(Arc<OwnedFd>, RawFd)>,
}

pub fn failed(stage: impl Into<String>, errno: Errno) -> SpawnFailure {
    SpawnFailure {
        stage: stage.into(),
        errno: errno.raw_os_error(),
    }
}

pub fn failed_io(stage: impl Into<String>, error: &io::Error) -> SpawnFailure {
    SpawnFailure {
        stage: stage.into(),
        errno: error.raw_os_error().unwrap_or(0),
    }
}

/// `argv` as `service` runs it: its own program, or a command that belongs to it.
pub fn prepare<'a>(
    inherited: &Inherited,
    service: &Service,
    argv: impl IntoIterator<Item = &'a str>,
    handed: &Handed,
    ends: &Ends,
) -> Result<Program, SpawnFailure> {
    let process = &service.process;
    let user = resolve_user(process)?;
    let account = user.as_ref().map(|user| &user.account);
    let environment = service_environment(service, account, handed)?;
    let mut arguments = Vec::new();
    let mut path = String::new();
    for argument in argv {
        if arguments.is_empty() {
            path = find_program(argument, &environment)?;
        }
        arguments.push(c_string(argument.as_bytes(), "an argument")?);
    }
    let mut variables = Vec::with_capacity(environment.len());
    for entry in environment::entries(&environment) {
        variables.push(c_string(&entry, "the environment")?);
    }
    let directory = match &process.working_directory {
        Some(path) => Some(c_string(path.as_os_str().as_bytes(), "the directory")?),
        None => None,
    };
    let group = match &process.group {
        Some(group) => Some(resolve_group(group)?),
        None => None,
    };
    let groups = resolve_groups(process, user.as_ref(), group)?;
    Ok(Program {
        path: c_string(path.as_bytes(), "the executable")?,
        arguments: Strings::new(arguments),
        environment: Strings::new(variables),
        directory,
        umask: process.umask.unwrap_or(0o022) as libc::mode_t,
        limits: limits(inherited, process),
        nice: process.nice,
        affinity: process.cpu_affinity.as_deref().map(cpu_set).transpose()?,
        scheduling: process.scheduling.map(policy),
        io_priority: process.io_priority.map(io_priority),
        oom_score_adj: oom_score(process),
        groups,
        gid: group.or(user.as_ref().map(|user| user.account.gid)),
        uid: user.map(|user| user.account.uid),
        capabilities: process.capabilities.as_ref().map(|list| {
            list.iter()
                .filter(|c| **c < 64)
                .fold(0, |set, c| set | 1 << c)
        }),
        no_new_privileges: process.no_new_privileges,
        parent: rustix::process::getpid().as_raw_nonzero().get(),
        stdin: ends.stdin,
        stdout: ends.stdout,
        stderr: ends.stderr,
        gate: None,
        halt: false,
        group: ends.group,
        group_doors: ends.group_doors.clone(),
        extra: handed
            .ready_fd
            .as_ref()
            .map(|(fd, number)| (fd.as_raw_fd(), *number)),
        report: ends.report,
    })
}

/// A process of the agent's own: as the agent is, but with little in its environment.
pub fn prepare_helper(
    inherited: &Inherited,
    helper: &Helper,
    ends: &Ends,
) -> Result<Program, SpawnFailure> {
    let path = c_string(helper.executable.as_bytes(), "the executable")?;
    let mut arguments = vec![c_string(b"agent", "the executable")?];
    for argument in &helper.args {
        arguments.push(c_string(argument.as_bytes(), "an argument")?);
    }
    let nofile = libc::RLIMIT_NOFILE as libc::c_int;
    Ok(Program {
        path,
        arguments: Strings::new(arguments),
        environment: Strings::new(Vec::new()),
        directory: None,
        umask: 0o077,
        limits: vec![(nofile, inherited.nofile)],
        nice: Some(helper.nice),
        affinity: None,
        scheduling: None,
        io_priority: None,
        oom_score_adj: Some(OomScore {
            text: b"1000".to_vec(),
            must: false,
        }),
        groups: None,
        gid: None,
        uid: None,
        capabilities: None,
        no_new_privileges: true,
        parent: rustix::process::getpid().as_raw_nonzero().get(),
        stdin: ends.stdin,
        stdout: ends.stdout,
        stderr: ends.stderr,
        gate: None,
        halt: false,
        group: None,
        group_doors: Vec::new(),
        extra: None,
        report: ends.report,
    })
}

fn c_string(bytes: &[u8], what: &str) -> Result<CString, SpawnFailure> {
    CString::new(bytes).map_err(|_| SpawnFailure {
        stage: format!("preparing {what}: it contains a NUL byte"),
        errno: 0,
    })
}

/// As configured, soft and hard; the number of descriptors as the agent found it otherwise.
fn limits(inherited: &Inherited, process: &Process) -> Vec<(libc::c_int, libc::rlimit)> {
    let mut limits: Vec<_> = process
        .limits
        .iter()
        .map(|limit| {
            let value = limit.value.unwrap_or(libc::RLIM_INFINITY);
            let value = libc::rlimit {
                rlim_cur: value,
                rlim_max: value,
            };
            (limit.resource as libc::c_int, value)
        })
        .collect();
    let nofile = libc::RLIMIT_NOFILE as libc::c_int;
    if !limits.iter().any(|(resource, _)| *resource == nofile) {
        limits.push((nofile, inherited.nofile));
    }
    limits
}

fn cpu_set(cpus: &[usize]) -> Result<Box<libc::cpu_set_t>, SpawnFailure> {
    // SAFETY: plain bits, valid when zeroed.
    let mut set: Box<libc::cpu_set_t> = Box::new(unsafe { std::mem::zeroed() });
    for &cpu in cpus {
        if cpu >= libc::CPU_SETSIZE as usize {
            return Err(failed("setting cpu affinity", Errno::INVAL));
        }
        // SAFETY: the index is within the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    Ok(set)
}

fn policy(scheduling: Scheduling) -> (libc::c_int, libc::c_int) {
    match scheduling {
        Scheduling::Other => (libc::SCHED_OTHER, 0),
        Scheduling::Batch => (libc::SCHED_BATCH, 0),
        Scheduling::Idle => (libc::SCHED_IDLE, 0),
        Scheduling::Fifo(priority) => (libc::SCHED_FIFO, priority as libc::c_int),
        Scheduling::RoundRobin(priority) => (libc::SCHED_RR, priority as libc::c_int),
    }
}

/// `IOPRIO_PRIO_VALUE` of ioprio_set(2): class above bit 13, level below.
fn io_priority(priority: IoPriority) -> libc::c_int {
    let (class, level) = match priority {
        IoPriority::RealTime(level) => (1, level),
        IoPriority::BestEffort(level) => (2, level),
        IoPriority::Idle => (3, 0),
    };
    class << 13 | libc::c_int::from(level)
}

/// As configured; where nothing is, the kernel's own 0 rather than what the agent protects
/// itself with, as far as the kernel lets us.
fn oom_score(process: &Process) -> Option<OomScore> {
    if let Some(score) = process.oom_score_adj {
        return Some(OomScore {
            text: score.to_string().into_bytes(),
            must: true,
        });
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").ok()?;
    (own.trim() != "0").then(|| OomScore {
        text: b"0".to_vec(),
        must: false,
    })
}

/// A user to become.
struct User {
    account: Account,
    /// Without an entry in the user file it has no name, and no groups.
    listed: bool,
}

fn read_accounts(path: &str) -> String {
    // A scratch image has none: everything is by number then.
    std::fs::read(path).map_or(String::new(), |bytes| {
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn resolve_user(process: &Process) -> Result<Option<User>, SpawnFailure> {
    let Some(who) = &process.user else {
        return Ok(None);
    };
    if let Some(account) = accounts::find_user(&read_accounts("/etc/passwd"), who) {
        return Ok(Some(User {
            account,
            listed: true,
        }));
    }
    match who {
        // The group of the same number rather than root's.
        Identity::Id(id) => Ok(Some(User {
            account: Account {
                name: id.to_string(),
                uid: *id,
                gid: *id,
                home: "/".to_owned(),
                shell: String::new(),
            },
            listed: false,
        })),
        Identity::Name(name) => Err(SpawnFailure {
            stage: format!("finding user {name}: not in /etc/passwd"),
            errno: 0,
        }),
    }
}

fn resolve_group(who: &Identity) -> Result<u32, SpawnFailure> {
    accounts::find_group(&read_accounts("/etc/group"), who).ok_or_else(|| SpawnFailure {
        stage: format!("finding group {who}: not in /etc/group"),
        errno: 0,
    })
}

/// `None` where they stay as they are: nothing asked for, or already so (an agent that is
/// not root may not even set the groups it has).
fn resolve_groups(
    process: &Process,
    user: Option<&User>,
    group: Option<u32>,
) -> Result<Option<Vec<u32>>, SpawnFailure> {
    let mut groups = match (&process.supplementary_groups, user, group) {
        (Some(listed), _, _) => listed.iter().map(resolve_group).collect::<Result<_, _>>()?,
        (None, Some(user), group) => {
            let primary = group.unwrap_or(user.account.gid);
            if user.listed {
                let file = read_accounts("/etc/group");
                accounts::groups_of(&file, &user.account.name, primary)
            } else {
                vec![primary]
            }
        }
        (None, None, Some(group)) => vec![group],
        (None, None, None) => return Ok(None),
    };
    groups.sort_unstable();
    groups.dedup();
    let mut own: Vec<u32> = rustix::process::getgroups()
        .map_err(|errno| failed("reading supplementary groups", errno))?
        .into_iter()
        .map(rustix::process::Gid::as_raw)
        .collect();
    own.sort_unstable();
    own.dedup();
    Ok((groups != own).then_some(groups))
}

fn service_environment(
    service: &Service,
    user: Option<&Account>,
    handed: &Handed,
) -> Result<Environment, SpawnFailure> {
    let process = &service.process;
    let mut environment = Environment::new();
    if !process.clear_environment {
        environment.extend(
            std::env::vars_os()
                .map(|(name, value)| (name.into_vec(), value.into_vec()))
                .filter(|(name, _)| !environment::is_ours(name)),
        );
    }
    if let Some(user) = user {
        let shell = match user.shell.as_str() {
            "" => "/bin/sh",
            shell => shell,
        };
        for (name, value) in [
            ("HOME", user.home.as_str()),
            ("USER", &user.name),
            ("LOGNAME", &user.name),
            ("SHELL", shell),
        ] {
            environment.insert(name.into(), value.into());
        }
    }
    for path in &process.environment_files {
        let shown = path.display();
        let content = std::fs::read(path)
            .map_err(|error| failed_io(format!("reading environment file {shown}"), &error))?;
        environment::read_file(&content, &mut environment).map_err(|line| SpawnFailure {
            stage: format!("reading environment file {shown}: line {line} is not KEY=VALUE"),
            errno: 0,
        })?;
    }
    for (name, value) in &process.environment {
        environment.insert(name.as_bytes().to_vec(), value.as_bytes().to_vec());
    }
    if let Some(socket) = &handed.notify_socket {
        environment.insert(b"NOTIFY_SOCKET".to_vec(), socket.as_bytes().to_vec());
        if let Some(interval) = service.lifecycle.watchdog {
            let usec = interval.as_micros().to_string();
            environment.insert(b"WATCHDOG_USEC".to_vec(), usec.into_bytes());
        }
    }
    environment.insert(b"AGENT_SERVICE".to_vec(), service.name.as_str().into());
    Ok(environment)
}

/// With a slash it stands as written; otherwise the first executable file on the service's PATH.
fn find_program(executable: &str, environment: &Environment) -> Result<String, SpawnFailure> {
    const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    if executable.contains('/') {
        return Ok(executable.to_owned());
    }
    let own = std::env::var_os("PATH");
    let path = match (environment.get(&b"PATH"[..]), &own) {
        (Some(path), _) => path,
        (None, Some(own)) => own.as_bytes(),
        (None, None) => DEFAULT_PATH,
    };
    let mut seen = Errno::NOENT;
    for folder in path.split(|&byte| byte == b':') {
        let folder = Path::new(std::ffi::OsStr::from_bytes(folder));
        // An empty entry means the working directory, which is nobody's intention here.
        if folder.as_os_str().is_empty() {
            continue;
        }
        let candidate = folder.join(executable);
        match std::fs::metadata(&candidate) {
            Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => {
                if let Some(text) = candidate.to_str() {
                    return Ok(text.to_owned());
                }
            }
            Ok(file) if file.is_file() => seen = Errno::ACCESS,
            Ok(_) | Err(_) => {}
        }
    }
    Err(failed(format!("finding {executable} on PATH"), seen))
}
