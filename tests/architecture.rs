//! The house rules, held by a test: who may import whom, where I/O may happen, which words
//! may not stand in the code at all.
//!
//! Reads the sources as text. A file is pure unless it is listed in [`EDGES`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files that may do I/O, read clocks and know the runtime.
const EDGES: &[&str] = &[
    "main.rs",
    "daemon.rs",
    "wrapp.rs",
    "demo.rs",
    "demo/acts.rs",
    "demo/fallen.rs",
    "demo/screen.rs",
    "demo/watch.rs",
    "names.rs",
    "signals.rs",
    "slim.rs",
    "diag.rs",
    "clock.rs",
    "query/fetch.rs",
    "config/load.rs",
    "config/survey.rs",
    "supervise/aside.rs",
    "supervise/cgroup.rs",
    "supervise/child.rs",
    "supervise/crashes.rs",
    "supervise/debugger.rs",
    "supervise/held.rs",
    "supervise/lane.rs",
    "supervise/prepare.rs",
    "supervise/privileges.rs",
    "supervise/spawn.rs",
    "supervise/tasks.rs",
    "supervise/tree.rs",
    "supervise/reap.rs",
    "supervise/reap/orders.rs",
    "supervise/reap/trees.rs",
    "supervise/notified.rs",
    "supervise/notify.rs",
    "supervise/probe.rs",
    "supervise/quota.rs",
    "supervise/steps.rs",
    "supervise/watch.rs",
    "supervise/run.rs",
    "supervise/run/acts.rs",
    "supervise/run/requests.rs",
    "supervise/share.rs",
    "supervise/told.rs",
    "logs/pipe.rs",
    "logs/run.rs",
    "logs/tee.rs",
    "health/check.rs",
    "health/checks.rs",
    "health/sample.rs",
    "health/device.rs",
    "health/keeper.rs",
    "health/nvme.rs",
    "health/sensors.rs",
    "health/run.rs",
    "crash/browse.rs",
    "crash/capture.rs",
    "crash/capture/copy.rs",
    "crash/capture/halt.rs",
    "crash/capture/leads.rs",
    "crash/capture/memory.rs",
    "crash/capture/ptrace.rs",
    "crash/disk.rs",
    "crash/examiner.rs",
    "crash/images.rs",
    "crash/keeper.rs",
    "crash/kernel.rs",
    "crash/kernel/owner.rs",
    "crash/run.rs",
    "crash/store.rs",
    "crash/examine.rs",
    "sink/ask.rs",
    "sink/redis.rs",
    "sink/desk.rs",
    "sink/sentinel.rs",
    "sink/tls.rs",
    "sink/journal.rs",
    "sink/journal/recall.rs",
    "sink/value_loop.rs",
    "sink/link.rs",
    "sink/session.rs",
    "sink/run.rs",
    "sink/tail.rs",
    "control/server.rs",
    "control/peer.rs",
    "control/bind.rs",
    "control/client.rs",
    "cli/run.rs",
    "cli/events.rs",
    "cli/terminal.rs",
    "cli/top.rs",
];

/// Words that make a file an edge.
const IMPURE: &[&str] = &[
    "tokio",
    "use redis::",
    " ::redis::",
    "redis::cmd",
    "rustix",
    "signal_hook",
    "libc::",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "std::env",
    "::now()",
    ".await",
    "SystemTime",
];

/// Words that stand nowhere: one place waits for every child, and the agent never panics.
const FORBIDDEN: &[&str] = &[
    "process::Command",
    "tokio::process",
    ".unwrap()",
    ".expect(",
    "panic!(",
    "unreachable!(",
    "todo!(",
    "unimplemented!(",
    "dbg!(",
];

/// What each part may name after `crate::`. Itself is always allowed.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("service", &[]),
    ("backoff", &[]),
    ("nearest", &[]),
    ("record", &["service", "handoff", "recent"]),
    ("recent", &[]),
    ("handoff", NOUNS),
    ("request", NOUNS),
    ("event", NOUNS),
    ("clock", &[]),
    ("checksum", &[]),
    ("crash_id", &["clock", "service"]),
    ("config", NOUNS),
    ("supervise", LINE),
    ("logs", LINE),
    ("crash", LINE),
    ("health", LINE),
    ("sink", LINE),
    ("query", LINE),
    ("names", &[]),
    ("slim", &[]),
    ("signals", &["event", "service"]),
    ("control", &["event", "request", "service", "config"]),
    (
        "cli",
        &[
            "nearest", "request", "service", "config", "handoff", "control", "clock",
        ],
    ),
    ("diag", LINE),
];
const NOUNS: &[&str] = &[
    "nearest", "service", "backoff", "record", "handoff", "request", "event",
];
const LINE: &[&str] = &[
    "nearest", "service", "backoff", "record", "handoff", "request", "event", "config", "clock",
    "crash_id", "checksum",
];

/// Folders and files that tell nothing about what is in them.
const DRAWERS: &[&str] = &[
    "util", "utils", "common", "types", "helpers", "manager", "misc",
];

struct Source {
    /// Below `src`, with `/`.
    path: String,
    /// Without its tests at the end and without comments.
    code: Vec<(usize, String)>,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    files
        .into_iter()
        .map(|file| {
            let text = std::fs::read_to_string(&file).expect("a source file");
            let path = file.strip_prefix(&root).expect("below src");
            Source {
                path: path.to_string_lossy().replace('\\', "/"),
                code: code_of(&text),
                text,
            }
        })
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push(path);
        }
    }
}

fn code_of(text: &str) -> Vec<(usize, String)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .map(|(number, line)| {
            let code = line.split_once("//").map_or(line, |(code, _)| code);
            (number + 1, code.to_owned())
        })
        .collect()
}

/// A word in a text (a function's name in a table of names, say) does nothing.
fn without_texts(line: &str) -> String {
    line.split('"').step_by(2).collect()
}

fn part_of(path: &str) -> &str {
    path.split(['/', '.']).next().unwrap_or(path)
}

fn report(broken: &[String]) {
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn pure_files_do_no_io_and_read_no_clock() {
    let mut broken = Vec::new();
    for source in sources() {
        // A test module in a file of its own belongs to the tests.
        if EDGES.contains(&source.path.as_str()) || source.path.ends_with("tests.rs") {
            continue;
        }
        for (number, line) in &source.code {
            let line = without_texts(line);
            for word in IMPURE {
                if line.contains(word) {
                    broken.push(format!(
                        "src/{}:{number}: `{word}` in a pure file",
                        source.path
                    ));
                }
            }
        }
    }
    report(&broken);
}

#[test]
fn the_listed_edges_exist() {
    let paths: Vec<String> = sources().into_iter().map(|source| source.path).collect();
    let missing: Vec<String> = EDGES
        .iter()
        .filter(|edge| !paths.iter().any(|path| path == *edge))
        .map(|edge| format!("src/{edge} is listed as an edge and does not exist"))
        .collect();
    report(&missing);
}

#[test]
fn forbidden_words_stand_nowhere() {
    let mut broken = Vec::new();
    for source in sources() {
        if source.path.ends_with("tests.rs") {
            continue;
        }
        for (number, line) in &source.code {
            for word in FORBIDDEN {
                if line.contains(word) {
                    broken.push(format!("src/{}:{number}: `{word}`", source.path));
                }
            }
        }
    }
    report(&broken);
}

#[test]
fn lines_import_nouns_and_never_each_other() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let mut broken = Vec::new();
    for source in sources() {
        let part = part_of(&source.path);
        if ["main", "lib", "daemon", "demo", "wrapp"].contains(&part) {
            continue;
        }
        let Some(may) = allowed.get(part) else {
            broken.push(format!(
                "src/{}: no rule says what it may import",
                source.path
            ));
            continue;
        };
        for (number, line) in &source.code {
            for after in line.split("crate::").skip(1) {
                let name = after
                    .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                    .next()
                    .unwrap_or_default();
                if !name.is_empty() && name != part && !may.contains(&name) {
                    broken.push(format!(
                        "src/{}:{number}: {part} may not import {name}",
                        source.path
                    ));
                }
            }
        }
    }
    report(&broken);
}

#[test]
fn names_of_keys_stand_in_one_place() {
    let mut broken = Vec::new();
    for source in sources() {
        if source.path == "record.rs" {
            continue;
        }
        for (number, line) in &source.code {
            for name in [
                "\"logs:",
                "logs:app:",
                "wrapp:{",
                "agent:service",
                "agent:device",
            ] {
                if line.contains(name) {
                    broken.push(format!(
                        "src/{}:{number}: `{name}` belongs into record.rs",
                        source.path
                    ));
                }
            }
        }
    }
    report(&broken);
}

#[test]
fn every_file_says_what_it_is() {
    let mut broken = Vec::new();
    for source in sources() {
        if !source.text.starts_with("//! ") {
            broken.push(format!("src/{}: begins without `//!`", source.path));
        }
        for drawer in DRAWERS {
            if source.path.split(['/', '.']).any(|part| part == *drawer) {
                broken.push(format!("src/{}: a drawer, not a name", source.path));
            }
        }
    }
    report(&broken);
}
