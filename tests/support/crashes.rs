//! What the tests of crashes share: programs to crash, and what is told of them.

#![allow(dead_code)] // each test binary uses its part

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::agent::Agent;
use crate::support::{Entry, RedisServer, Scratch, entries, eventually};

/// Entries of `logs:app:<name>:<kind>`.
pub fn of(server: &RedisServer, name: &str, kind: &str) -> Vec<Entry> {
    entries(&mut server.client(1), &format!("logs:app:{name}:{kind}"))
}

/// The events of a service's `status` stream.
pub fn events(server: &RedisServer, name: &str) -> Vec<String> {
    let status = of(server, name, "status");
    status.iter().filter_map(|e| e.field("event")).collect()
}

/// A service that is not started again, as TOML; `more` are further lines.
pub fn service(name: &str, program: &Path, more: &str) -> String {
    format!("\n[service.{name}]\nexecutable = {program:?}\nrestart = \"never\"\n{more}\n")
}

/// Builds a C program with debug information, as it was written.
pub fn c(folder: &Scratch, name: &str, source: &str) -> PathBuf {
    c_with(folder, name, source, &[])
}

pub fn c_with(folder: &Scratch, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let file = folder.file(&format!("{name}.c"), source);
    let program = folder.join(name);
    let status = Command::new("cc")
        .args(["-g", "-O0", "-fno-inline", "-pthread"])
        .args(flags)
        .arg("-o")
        .args([&program, &file])
        .status()
        .expect("a C compiler");
    assert!(status.success());
    program
}

/// The document of a `crash` entry.
pub fn document(entry: &Entry) -> Value {
    assert!(entry.message().starts_with("Backtrace for "));
    serde_json::from_str(&entry.field("report").expect("a report")).expect("JSON")
}

/// The first report of a service, once it is there.
pub fn reported(server: &RedisServer, name: &str) -> Value {
    eventually(&format!("the crash of {name} is reported"), || {
        !of(server, name, "crash").is_empty()
    });
    document(&of(server, name, "crash")[0])
}

/// Where a report's record is kept.
pub fn record(agent: &Agent, report: &Value) -> PathBuf {
    let id = report["crash_id"].as_str().expect("an identifier");
    agent.folder.join("crashes").join(id)
}

/// Function names of a thread, innermost first.
pub fn functions_of(thread: &Value) -> Vec<String> {
    let frames = thread["frames"].as_array();
    frames
        .into_iter()
        .flatten()
        .map(|frame| frame["function"].as_str().unwrap_or("??").to_owned())
        .collect()
}

/// The same of the crashed thread.
pub fn functions(report: &Value) -> Vec<String> {
    functions_of(&report["threads"][0])
}

/// That the crashed thread's innermost functions are these.
pub fn assert_top(report: &Value, wanted: &[&str]) {
    let found = functions(report);
    assert!(
        wanted.len() <= found.len() && wanted.iter().zip(&found).all(|(a, b)| a == b),
        "{wanted:?} at the top of {found:?} of {report:#}"
    );
}

/// That `wanted` are called in this order, others between them.
pub fn assert_in_order(report: &Value, wanted: &[&str]) {
    let found = functions(report);
    let mut rest = found.iter();
    for name in wanted {
        assert!(
            rest.any(|function| function.contains(name)),
            "{name} in {found:?} of {report:#}"
        );
    }
}

/// Who traces a process: 0 for nobody, `None` where there is no process.
pub fn tracer_of(pid: i64) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok()
}

/// Whether we are root: others may not change users or the machine's settings.
pub fn is_root() -> bool {
    // SAFETY: plain system call.
    unsafe { libc::geteuid() == 0 }
}
