//! The small core of a real crash, read by gdb and by lldb: both find the stack that the report has.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/crashes.rs"]
mod crashes;
#[path = "support/pattern.rs"]
mod pattern;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use agent::Agent;
use crashes::{c, functions, record, reported, service};
use pattern::Pattern;
use support::{RedisServer, Scratch};

/// Two threads, memory that a small core leaves out, a shared library's frames above the program's own (qsort), and a value to read.
const SOURCE: &str = r#"
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
struct scan { int count; const char *name; };
static struct scan global = { 42, "scanner" };
static char *heap;
static pthread_barrier_t both;
static void *idle(void *x) { pthread_barrier_wait(&both); for (;;) pause(); return x; }
static int compare(const void *a, const void *b) { return *(volatile int *)(long)(global.count + (a == b) - 42); }
static void sort(struct scan *scan) { int cells[3] = { 3, 1, 2 }; qsort(cells, 3, sizeof *cells, compare); scan->count = cells[0]; }
int main(void) {
  pthread_t t; pthread_barrier_init(&both, 0, 2);
  heap = malloc(1 << 20);
  for (int i = 0; i < 1 << 20; i += 4096) heap[i] = 7;
  pthread_create(&t, 0, idle, 0); pthread_barrier_wait(&both);
  sort(&global);
}
"#;

/// Who copied the process.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Tracing,
    /// `agent core`, which the kernel calls.
    Kernel,
}

/// A program, its small core, and its own functions in the report. `None` where the kernel's pattern cannot be set.
fn core(folder: &Scratch, by: By) -> Option<(PathBuf, PathBuf, Vec<String>)> {
    let server = RedisServer::start(&[]);
    let program = c(folder, "sorted", SOURCE);
    let home = Scratch::new("ka");
    let (way, _pattern) = match by {
        By::Tracing => ("crash = \"ptrace\"", None),
        By::Kernel => ("crash = \"core\"", Some(Pattern::take(&home)?)),
    };
    let head = agent::head(&home, Some(&server));
    let agent = Agent::start_in(home, &(head + &service("sorted", &program, way)));
    let report = reported(&server, "sorted");
    let kept = folder.join("core");
    std::fs::copy(record(&agent, &report).join("core"), &kept).expect("a core file");
    let functions = functions(&report);
    let functions = own(functions.iter().map(String::as_str));
    Some((program, kept, functions))
}

fn is_present(debugger: &str) -> bool {
    let present = Command::new(debugger).arg("--version").output().is_ok();
    if !present {
        eprintln!("SKIPPED: there is no {debugger}");
    }
    present
}

/// The program's own functions: what the C library's are called differs with its debug information.
fn own<'f>(functions: impl Iterator<Item = &'f str>) -> Vec<String> {
    functions
        .filter(|name| ["compare", "sort", "main"].contains(name))
        .map(str::to_owned)
        .collect()
}

fn said(command: &str, arguments: &[&str], files: &[&Path]) -> String {
    let output = Command::new(command).args(arguments).args(files).output();
    let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn debuggers_agree(by: By) {
    let folder = Scratch::new("debuggers");
    let Some((program, core, expected)) = core(&folder, by) else {
        return;
    };
    assert_eq!(expected, ["compare", "sort", "main"]);
    if is_present("gdb") {
        gdb_agrees(&program, &core, &expected);
    }
    if is_present("lldb") {
        lldb_agrees(&program, &core, &expected);
    }
}

#[test]
fn of_a_core_made_by_tracing_debuggers_show_the_same() {
    debuggers_agree(By::Tracing);
}

#[test]
fn of_a_core_made_by_the_kernels_handler_debuggers_show_the_same() {
    debuggers_agree(By::Kernel);
}

fn gdb_agrees(program: &Path, core: &Path, expected: &[String]) {
    let words = [
        "-nx",
        "-batch",
        "-ex",
        "bt",
        "-ex",
        "print global",
        "-ex",
        "print heap[500 * 1024]",
        "-ex",
        "info threads",
    ];
    let output = Command::new("gdb")
        .args(words)
        .args([program, core])
        .output();
    let output = output.expect("gdb runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // What is not in the core is not zero.
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("Cannot access memory"), "{text}{errors}");
    // Before it is asked, gdb shows the first frame by itself.
    let answers = text
        .split_once("[Current thread")
        .map_or(&*text, |(_, rest)| rest);
    let names = answers
        .lines()
        .filter(|line| line.starts_with('#'))
        .filter_map(|line| {
            let line = line.split_once("  ")?.1;
            let line = line.split_once(" in ").map_or(line, |(_, rest)| rest);
            line.split_once(" (").map(|(name, _)| name)
        });
    assert_eq!(own(names), expected, "{text}");
    assert!(
        text.contains("count = 42") && text.contains("\"scanner\""),
        "{text}"
    );
    let listed = answers.split_once("Target Id").map_or("", |(_, list)| list);
    assert_eq!(listed.matches("(LWP ").count(), 2, "{text}");
}

fn lldb_agrees(program: &Path, core: &Path, expected: &[String]) {
    let core_text = core.to_string_lossy().into_owned();
    let words = [
        "--no-lldbinit",
        "-b",
        "-o",
        "bt",
        "-o",
        "target variable global",
        "-o",
        "thread list",
        "-c",
        &core_text,
    ];
    let text = said("lldb", &words, &[program]);
    let backtrace = text
        .split("(lldb)")
        .find(|part| part.trim_start().starts_with("bt"));
    let backtrace = backtrace.unwrap_or_default();
    let names = backtrace.lines().filter_map(|line| {
        let (_, rest) = line.split_once("frame #")?;
        let (_, name) = rest.split_once('`')?;
        name.split(['(', ' ']).next()
    });
    assert_eq!(own(names), expected, "{text}");
    assert!(
        text.contains("count = 42") && text.contains("\"scanner\""),
        "{text}"
    );
    assert_eq!(
        text.matches("thread #").count() - backtrace.matches("thread #").count(),
        2,
        "{text}"
    );
}
