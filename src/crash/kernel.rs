//! a core dump on standard input → a small core file, in the hands of the running agent or on disk.
//!
//! `agent core` is what `kernel.core_pattern` names (core(5)): the kernel starts it as root, with nothing but the dump
//! on descriptor 0, and holds the dying process until that is closed (`core_pipe_limit` above 0). Threads are taken
//! from the dump's notes, memory from `/proc/PID/mem` as tracing takes it, and the rest of the dump, which may be
//! gigabytes, is never read. No DWARF here, no runtime, no threads: it analyses nothing.
//!
//! Nobody reads what it prints: what goes wrong is told in the kernel's log.

mod call;
mod owner;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock;
use crate::crash_id::crash_id;
use crate::handoff::{CoreFile, Leads, Snapshot};
use crate::request::{CopyPlace, KernelCopy, Reply, Request};
use crate::service::{Pid, ServiceName, Signal};

use super::capture::copy::{Copy, MACHINE, copy};
use super::capture::leads::leads;
use super::capture::memory::{self, Memory};
use super::capture::{notes, proc};
use super::keeper;
use super::machine::Machine;
use super::store::{self, Store};
use super::{elf, le};
use call::Call;
pub use owner::{Ownership, SocketsOf};

/// What a configuration tells the handler.
pub struct Settings {
    pub state_dir: PathBuf,
    pub keep: usize,
    pub max_size: u64,
}

/// How it finds its way: by the configuration that the pattern names (`None`: the usual one).
pub struct Ways<'w> {
    pub settings_of: &'w dyn Fn(Option<&Path>) -> Settings,
    /// Asks the running agent, waiting so long.
    pub ask: &'w dyn Fn(Option<&Path>, &Request, Duration) -> Answer,
}

/// What became of a question.
pub enum Answer {
    Reply(Reply),
    /// There is an agent, and it took too long.
    Late,
    NoAgent,
}

const DONE: i32 = 0;
const FAILED: i32 = 1;
const MISUSED: i32 = 2;

/// The dying process is held so long at most for the agent's answer: it gives a word about the crash before its end.
const HOLD: Duration = Duration::from_millis(30);
/// The process is gone by then, and nobody waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of the notes: 3.4 KiB for a thread on x86-64.
const MOST_NOTES: u64 = 256 << 20;
const GENERATIONS: usize = 64;

/// `args` without the program and verb. Returns the exit code, which nobody sees.
pub fn main(args: &[OsString], ways: &Ways<'_>) -> i32 {
    let call = match call::parse(args) {
        Ok(call) => call,
        Err(why) => {
            eprintln!("agent core: {why}; the kernel calls it, see core(5)");
            return MISUSED;
        }
    };
    match handle(&call, ways) {
        Ok(()) => DONE,
        Err(why) => {
            complain(&format!("pid {}: {why}", call.pid));
            FAILED
        }
    }
}

fn handle(call: &Call, ways: &Ways<'_>) -> Result<(), String> {
    // The kernel dumps for SIGQUIT too, and others that are sent on purpose.
    let about = memory::read_text(&format!("/proc/{}/status", call.pid));
    if !Signal(call.signal).is_crash() || is_known(call.pid, &about) {
        return Ok(());
    }
    // On a busy board the dying process, and so its restart, would wait for our turns.
    let _ = rustix::process::nice(-15);
    // Closing it is what lets the process go.
    let dump = io::stdin();
    let mut found = find(call, &about);
    let snapshot = capture(call, &about);
    found.site.clone_from(&snapshot.site);
    found.trouble.clone_from(&snapshot.trouble);
    found.at_ms = snapshot.at_ms;
    let Snapshot { core, leads, .. } = snapshot;
    let core = match core {
        CoreFile::Bytes(bytes) => bytes,
        CoreFile::Missing | CoreFile::Open(_) | CoreFile::Kept => Vec::new(),
    };
    let held = hold(&core, &leads).map_err(|error| format!("no memory for its copy: {error}"));
    let mut answer = Answer::NoAgent;
    if let Ok((_, place)) = &held {
        found.place = place.clone();
        let question = Request::Core(Box::new(found.clone()));
        answer = (ways.ask)(call.config.as_deref(), &question, HOLD);
        close(&dump);
        if let Answer::Late = answer {
            // It knows the question again.
            answer = (ways.ask)(call.config.as_deref(), &question, PATIENCE);
        }
    }
    close(&dump);
    let there_is_one = match answer {
        Answer::Reply(Reply { ok: true, .. }) => return Ok(()),
        Answer::Reply(Reply { error, .. }) => {
            complain(&format!("the agent: {}", error.unwrap_or_default()));
            true
        }
        Answer::Late => {
            complain("the agent does not answer");
            true
        }
        Answer::NoAgent => false,
    };
    let settings = (ways.settings_of)(call.config.as_deref());
    let kept = keep(&settings, &mut found, &core, &leads);
    let id = kept.map_err(|error| {
        let folder = settings.state_dir.display();
        format!("its copy cannot be kept in {folder}: {error}")
    })?;
    if !there_is_one {
        return Ok(());
    }
    // Whoever refused what we hold may take what is on disk.
    found.place = CopyPlace::Kept(id);
    let question = Request::Core(Box::new(found));
    (ways.ask)(call.config.as_deref(), &question, PATIENCE);
    Ok(())
}

/// One of ours that analyses or captures, or one that an agent captures by tracing.
fn is_known(pid: Pid, about: &str) -> bool {
    let link = |pid: Pid| fs::read_link(format!("/proc/{pid}/exe")).ok();
    let program = |pid: Pid| fs::metadata(format!("/proc/{pid}/exe")).ok();
    let own = fs::metadata("/proc/self/exe").ok();
    let is_ours = |pid: Pid| {
        let file = |about: &fs::Metadata| (about.dev(), about.ino());
        let same = program(pid).as_ref().map(file) == own.as_ref().map(file);
        same && own.is_some()
    };
    let tracer = proc::number(about, "TracerPid").filter(|pid| *pid != 0);
    if let Some(tracer) = tracer.map(|pid| pid as Pid) {
        let name = link(tracer);
        let name = name.as_deref().and_then(Path::file_name);
        return is_ours(tracer) || name.is_some_and(|name| name == "agent" || name == "wrapp");
    }
    let words = memory::read_text(&format!("/proc/{pid}/cmdline"));
    let verb = words.split('\0').nth(1);
    is_ours(pid) && matches!(verb, Some("symbolize" | "core"))
}

/// What can be asked only while it is there.
fn find(call: &Call, about: &str) -> KernelCopy {
    let pid = call.pid;
    let mut ancestors = Vec::new();
    let mut next = proc::number(about, "PPid");
    while let Some(parent) = next.filter(|parent| *parent > 0)
        && ancestors.len() < GENERATIONS
    {
        ancestors.push(parent as Pid);
        let about = memory::read_text(&format!("/proc/{parent}/status"));
        next = proc::number(&about, "PPid");
    }
    let executable = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let name = executable.file_name().unwrap_or_default().to_string_lossy();
    let name = name.trim_end_matches(" (deleted)");
    let comm = memory::thread_name(pid, pid);
    let groups = memory::read_text(&format!("/proc/{pid}/cgroup"));
    KernelCopy {
        pid,
        signal: call.signal,
        program: match name {
            "" => comm.unwrap_or_default(),
            name => name.to_owned(),
        },
        ancestors,
        service: variable(pid, "AGENT_SERVICE"),
        group: groups
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .and_then(|path| path.rsplit('/').next())
            .filter(|name| !name.is_empty())
            .map(str::to_owned),
        private: call.dumpable != 1,
        ..KernelCopy::default()
    }
}

fn variable(pid: Pid, name: &str) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = environment
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    String::from_utf8(value.to_vec()).ok()
}

fn capture(call: &Call, about: &str) -> Snapshot {
    let signal = Some(Signal(call.signal));
    match dumped(call, about) {
        Ok(copy) => copy.finish(signal, leads(call.pid)),
        Err(why) => Snapshot {
            pid: call.pid,
            signal,
            at_ms: clock::now_ms(),
            site: String::new(),
            core: CoreFile::Missing,
            leads: Leads::default(),
            held: Duration::ZERO,
            trouble: Some(why),
        },
    }
}

fn dumped(call: &Call, about: &str) -> Result<Copy, String> {
    let (machine, notes) =
        notes_of(&mut io::stdin().lock()).map_err(|error| format!("its dump: {error}"))?;
    if machine != MACHINE {
        return Err("it is of another machine".to_owned());
    }
    let read = notes::read(machine, &notes);
    if read.threads.is_empty() {
        return Err("its dump names no thread".to_owned());
    }
    let threads = read.threads.into_iter().map(|mut thread| {
        thread.name = memory::thread_name(call.pid, thread.tid as Pid);
        thread
    });
    let mut memory = Memory::open(call.pid, call.tid, about);
    if memory.auxv.is_empty() {
        memory.auxv = read.auxv;
    }
    let mut copy = copy(call.pid, about, threads.collect(), memory);
    copy.siginfo = read.siginfo;
    Ok(copy)
}

/// The first segment of a dump, which is its notes, read from its beginning.
fn notes_of(dump: &mut impl Read) -> io::Result<(Machine, Vec<u8>)> {
    const HEADERS: usize = 64 + 56;
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut head = [0u8; HEADERS];
    dump.read_exact(&mut head)?;
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return Err(bad("not a 64-bit process"));
    }
    let machine = le::u16_at(&head, 18).and_then(Machine::from_elf);
    let machine = machine.ok_or_else(|| bad("an unknown machine"))?;
    let segment = elf::read_segment(&head[64..]).filter(|first| first.kind == elf::PT_NOTE);
    let segment = segment.ok_or_else(|| bad("its first segment is not its notes"))?;
    let gap = segment.offset.checked_sub(HEADERS as u64);
    let gap = gap.ok_or_else(|| bad("its notes overlap its headers"))?;
    io::copy(&mut dump.by_ref().take(gap), &mut io::sink())?;
    let mut notes = Vec::new();
    dump.take(segment.file_size.min(MOST_NOTES))
        .read_to_end(&mut notes)?;
    Ok((machine, notes))
}

/// The kernel sees the reader go, and ends the dump and the process.
fn close(dump: &io::Stdin) {
    if let Ok(nothing) = File::open("/dev/null") {
        // SAFETY: both descriptors are open; ours of the dump becomes another file.
        unsafe { libc::dup2(nothing.as_raw_fd(), dump.as_raw_fd()) };
    } else {
        // SAFETY: nothing reads from it any more.
        unsafe { libc::close(dump.as_raw_fd()) };
    }
}

/// The copy in memory of its own, and where the agent finds it.
fn hold(core: &[u8], leads: &Leads) -> io::Result<(OwnedFd, CopyPlace)> {
    let fd = rustix::fs::memfd_create("core", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(core)?;
    let fd = OwnedFd::from(file);
    let number = |fd: &OwnedFd| fd.as_raw_fd();
    let place = CopyPlace::Held {
        by: rustix::process::getpid().as_raw_nonzero().get(),
        core: number(&fd),
        executable: leads.executable.as_ref().map(number),
        root: leads
            .root
            .as_ref()
            .map(|(root, namespace)| (number(root), number(namespace))),
    };
    Ok((fd, place))
}

/// For an agent that starts later. Returns the record's name.
fn keep(
    settings: &Settings,
    found: &mut KernelCopy,
    core: &[u8],
    leads: &Leads,
) -> io::Result<String> {
    if settings.keep == 0 {
        return Err(io::Error::other("[crash] keep = 0"));
    }
    let store = Store::new(&settings.state_dir, settings.keep, settings.max_size);
    let named = found.service.as_deref().unwrap_or(&found.program);
    let id = crash_id(found.at_ms, &ServiceName::near(named), found.pid);
    found.place = CopyPlace::Kept(id.clone());
    store.save(&id, store::CORE, core)?;
    if let Some(executable) = &leads.executable {
        let mut image = Vec::new();
        let path = format!("/proc/self/fd/{}", executable.as_raw_fd());
        let read = File::open(path)?
            .take(MOST_IMAGE + 1)
            .read_to_end(&mut image)?;
        if read as u64 <= MOST_IMAGE {
            store.save(&id, store::EXECUTABLE, &image)?;
        }
    }
    // Last: with it the record is complete.
    let words = serde_json::to_vec(found).map_err(io::Error::other)?;
    store.save(&id, store::LEFT, &words)?;
    store.hand_over(&id);
    store.sweep(&id);
    Ok(id)
}

/// Of a program that is not on disk any more.
const MOST_IMAGE: u64 = 64 << 20;

/// What earlier calls, and earlier agents, left on disk for the next agent, oldest first.
pub fn left(state_dir: &Path) -> Vec<KernelCopy> {
    let records = store::records(state_dir).unwrap_or_default();
    let read = |(id, folder): (String, PathBuf)| -> Option<KernelCopy> {
        let text = fs::read(folder.join(store::LEFT)).ok()?;
        let mut copy: KernelCopy = serde_json::from_slice(&text).ok()?;
        copy.place = CopyPlace::Kept(id);
        Some(copy).filter(|copy| !keeper::is_taken(copy))
    };
    records.into_iter().filter_map(read).collect()
}

/// The kernel's log is all that it has.
fn complain(what: &str) {
    if let Ok(mut log) = File::options().write(true).open("/dev/kmsg") {
        // <4> is a warning (printk).
        let _ = writeln!(log, "<4>agent core: {what}");
    }
}
