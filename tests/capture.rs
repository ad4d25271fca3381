//! Crashes from the signal to the entry: the real agent, real programs, a real redis-server.

#[path = "support/agent.rs"]
mod agent;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use agent::Agent;
use serde_json::Value;
use support::{Entry, RedisServer, Scratch, entries, eventually};

fn of(server: &RedisServer, name: &str, kind: &str) -> Vec<Entry> {
    entries(&mut server.client(1), &format!("logs:app:{name}:{kind}"))
}

fn service(name: &str, program: &Path, more: &str) -> String {
    format!("\n[service.{name}]\nexecutable = {program:?}\nrestart = \"never\"\n{more}\n")
}

/// Builds a C program; `None` where the machine has no compiler.
fn c(folder: &Scratch, name: &str, source: &str, flags: &[&str]) -> PathBuf {
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

/// The one report of a service, parsed.
fn report(server: &RedisServer, name: &str) -> Value {
    eventually("the crash is reported", || {
        !of(server, name, "crash").is_empty()
    });
    let entry = &of(server, name, "crash")[0];
    assert!(entry.message().starts_with("Backtrace for "));
    serde_json::from_str(&entry.field("report").expect("a report")).expect("JSON")
}

/// Function names of the crashed thread, innermost first.
fn functions(report: &Value) -> Vec<String> {
    let frames = report["threads"][0]["frames"].as_array();
    frames
        .into_iter()
        .flatten()
        .map(|frame| frame["function"].as_str().unwrap_or("??").to_owned())
        .collect()
}

/// That `wanted` stand in this order, others between them.
fn assert_in_order(report: &Value, wanted: &[&str]) {
    let found = functions(report);
    let mut rest = found.iter();
    for name in wanted {
        assert!(
            rest.any(|function| function.contains(name)),
            "{name} in {found:?} of {report:#}"
        );
    }
}

const NULL: &str = r#"
#include <stdio.h>
#include <unistd.h>
static int inner(int *where) { return *where; }
static int outer(int *where) { return inner(where) + 1; }
int main(void) { printf("about to crash\n"); fflush(stdout); return outer(0); }
"#;

#[test]
fn a_crash_from_the_signal_to_the_entry() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("capture");
    let program = c(&programs, "null", NULL, &[]);
    let agent = Agent::start(Some(&server), &service("null", &program, ""));
    agent.wait_for("null", "failed");
    let report = report(&server, "null");
    assert_in_order(&report, &["inner", "outer", "main"]);
    assert_eq!(report["signal"]["name"], "SIGSEGV");
    assert_eq!(report["signal"]["code"], "SEGV_MAPERR");
    assert_eq!(report["signal"]["address"], "0x0");
    assert_eq!(report["threads"][0]["frames"][0]["line"], 4);
    assert_eq!(report["log"][0], "about to crash");
    assert_eq!(report["seen"]["count"], 1);
    assert_eq!(agent.service("null")["exit"], 139);
    assert_eq!(agent.service("null")["crash_id"], report["crash_id"]);
    // The first word comes before the exit, and names the record.
    let status = of(&server, "null", "status");
    let events: Vec<String> = status.iter().filter_map(|e| e.field("event")).collect();
    let at = |name: &str| events.iter().position(|event| event == name);
    assert!(
        at("crash").is_some() && at("crash") < at("exit"),
        "{events:?}"
    );
    let id = report["crash_id"].as_str().expect("an identifier");
    let core = agent.folder.join("crashes").join(id).join("core");
    let gdb = Command::new("gdb")
        .args(["-batch", "-nx", "-ex", "bt"])
        .args([&program, &core])
        .output();
    if let Ok(gdb) = gdb {
        let said = String::from_utf8_lossy(&gdb.stdout).into_owned();
        assert!(said.contains("in outer (where=0x0)"), "{said}");
    }
}
