//! /proc → which processes belong to a run.
//!
//! Because the agent is a child subreaper (or PID 1), whatever a service leaves behind
//! becomes the agent's own child at the moment its parent ends. So after a main process is
//! gone, strays hang below children of ours that nobody knows; there usually are none, and
//! finding that out costs one read. A stray is told by its session, its process group, what
//! was seen below its service before, and `AGENT_SERVICE` in its environment.

use std::collections::HashMap;
use std::fs;

use rustix::process::{Pid as Handle, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::service::Pid;

/// Tells a process from a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub pid: Pid,
    /// Clock ticks after boot (proc(5), field 22).
    pub started: u64,
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub id: Identity,
    pub dead: bool,
    /// Held still by its tracer.
    pub halted: bool,
    pub parent: Pid,
    pub group: Pid,
    pub session: Pid,
}

pub fn stat(pid: Pid) -> Option<Stat> {
    parse_stat(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in field 2 may hold blanks and brackets: fields count from its last bracket.
fn parse_stat(pid: Pid, text: &[u8]) -> Option<Stat> {
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let text = std::str::from_utf8(&text[end + 1..]).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    // Field 22 is the 16th after the session (6).
    let started = fields.nth(15)?.parse().ok()?;
    Some(Stat {
        id: Identity { pid, started },
        dead: matches!(state, "Z" | "X" | "x"),
        halted: state == "t",
        parent,
        group,
        session,
    })
}

/// The service that the environment names with which `pid` was started.
pub fn service_of(pid: Pid) -> Option<String> {
    variable_of(pid, "AGENT_SERVICE")
}

/// A variable of the environment with which `pid` was started.
pub fn variable_of(pid: Pid, name: &str) -> Option<String> {
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = environ
        .split(|&byte| byte == 0)
        .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    String::from_utf8(value.to_vec()).ok()
}

/// The real user of a process.
pub fn uid(pid: Pid) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Whether `pid` is of the run whose main process is `main`. One that has gone already is
/// taken for one where `same_user` says so: helpers speak and end at once.
pub fn belongs(pid: Pid, main: Pid, service: &str, same_user: bool) -> bool {
    const GENERATIONS: usize = 64;
    let Some(first) = stat(pid) else {
        return same_user;
    };
    let mut next = Some(first);
    for _ in 0..GENERATIONS {
        match next {
            Some(stat) if stat.id.pid == main || stat.session == main => return true,
            Some(one) if one.parent > 1 => next = stat(one.parent),
            Some(_) | None => break,
        }
    }
    service_of(pid).as_deref() == Some(service)
}

/// SIGKILL to exactly that process, not to a later one of the same number.
pub fn kill(id: Identity) {
    let Some(handle) = Handle::from_raw(id.pid) else {
        return;
    };
    match pidfd_open(handle, PidfdFlags::empty()) {
        Ok(fd) if stat(id.pid).is_some_and(|now| now.id == id) => {
            let _ = pidfd_send_signal(&fd, Signal::KILL);
        }
        Ok(_) => {}
        // Emulated or filtered: the check just before is the best there is.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
            if stat(id.pid).is_some_and(|now| now.id == id) {
                let _ = rustix::process::kill_process(handle, Signal::KILL);
            }
        }
        Err(_) => {}
    }
}

/// Who is whose child, at one moment.
pub enum Census {
    /// The kernel lists children (CONFIG_PROC_CHILDREN).
    Listed,
    /// It does not: parents of everybody.
    Scanned(HashMap<Pid, Vec<Pid>>),
}

impl Census {
    pub fn take() -> Census {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        if fs::metadata(format!("/proc/{own}/task/{own}/children")).is_ok() {
            Census::Listed
        } else {
            Census::scan()
        }
    }

    fn scan() -> Census {
        let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if let Some(stat) = pid.and_then(stat) {
                children.entry(stat.parent).or_default().push(stat.id.pid);
            }
        }
        Census::Scanned(children)
    }

    pub fn children(&self, pid: Pid) -> Vec<Pid> {
        match self {
            Census::Listed => listed_children(pid),
            Census::Scanned(children) => children.get(&pid).cloned().unwrap_or_default(),
        }
    }

    /// Everything below `pid`, without it.
    pub fn descendants(&self, pid: Pid) -> Vec<Pid> {
        let mut found = self.children(pid);
        let mut next = 0;
        while let Some(&pid) = found.get(next) {
            next += 1;
            for child in self.children(pid) {
                // A number seen twice is one that was reused while we walked.
                if !found.contains(&child) {
                    found.push(child);
                }
            }
        }
        found
    }
}

/// Each thread has its own list; adopted processes hang on any of ours.
fn listed_children(pid: Pid) -> Vec<Pid> {
    let mut found = Vec::new();
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    for thread in threads.into_iter().flatten().flatten() {
        if let Ok(text) = fs::read_to_string(thread.path().join("children")) {
            found.extend(
                text.split_ascii_whitespace()
                    .filter_map(|pid| pid.parse::<Pid>().ok()),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_with_a_hostile_name() {
        let text =
            b"4242 (a) R 1 (b) S 17 4242 4241 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3";
        let stat = parse_stat(4242, text).expect("as proc(5) has it");
        assert_eq!(stat.parent, 17);
        assert_eq!((stat.group, stat.session), (4242, 4241));
        assert_eq!(stat.id.started, 987_654);
        assert!(!stat.dead);
        assert_eq!(parse_stat(1, b"1 (x) S 1"), None);
        assert_eq!(parse_stat(1, b""), None);
    }

    #[test]
    fn both_ways_to_find_children_agree_about_ourselves() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let parent = rustix::process::getppid().expect("a test has a parent");
        let scanned = Census::scan();
        assert!(
            scanned
                .children(parent.as_raw_nonzero().get())
                .contains(&own)
        );
        assert!(stat(own).is_some_and(|stat| !stat.dead && stat.id.started > 0));
    }
}
