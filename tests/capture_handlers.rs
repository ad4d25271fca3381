//! Crash handlers on a stack of their own: what they interrupted is captured too.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/crashes.rs"]
mod crashes;
mod support;

use std::path::Path;
use std::process::Command;

use agent::Agent;
use crashes::{c, functions, reported, service};
use support::{RedisServer, Scratch};

/// As the handlers of frameworks do: print something, and abort.
const ABORTS: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
static char alternate[65536];
static void handler(int s) { fputs("it crashed\n", stderr); abort(); }
int work(int n, volatile int *p) { volatile char b[2000]; b[0] = n; if (!n) *p = 1; else work(n - 1, p); return b[0]; }
int main(int c, char **v) {
  stack_t s = { .ss_sp = alternate, .ss_size = sizeof alternate }; sigaltstack(&s, 0);
  struct sigaction a = { .sa_handler = handler, .sa_flags = SA_ONSTACK }; sigaction(SIGSEGV, &a, 0);
  return work(atoi(v[1]), (int *)0x10);
}
"#;

const OVERFLOWS: &str = r#"
#[allow(unconditional_recursion)]
fn deeper(n: u64) -> u64 {
    let room = std::hint::black_box([n; 60]);
    deeper(n + 1) + room[7]
}
fn main() {
    if std::env::args().nth(1).as_deref() == Some("thread") {
        let _ = std::thread::spawn(|| deeper(0)).join();
    }
    println!("{}", deeper(0));
}
"#;

#[test]
fn what_a_handler_on_an_alternate_stack_interrupted() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("handlers");
    let program = c(&programs, "aborts", ABORTS);
    let mut text = service("few", &program, "args = [\"10\"]");
    text += &service("many", &program, "args = [\"3000\"]");
    let source = programs.file("overflows.rs", OVERFLOWS);
    let overflows = programs.join("overflows");
    let rustc = Command::new("rustc")
        .args([
            Path::new("--edition=2021"),
            Path::new("-g"),
            Path::new("-o"),
        ])
        .args([&overflows, &source])
        .status();
    let has_rust = rustc.is_ok_and(|status| status.success());
    if has_rust {
        text += &service("main", &overflows, "args = [\"main\"]");
        text += &service("thread", &overflows, "args = [\"thread\"]");
    }
    let _agent = Agent::start(Some(&server), &text);
    let few = functions(&reported(&server, "few"));
    let own = few.iter().filter(|name| *name == "work").count();
    assert_eq!(own, 11, "{few:?}");
    assert!(few.iter().any(|name| name == "main"), "{few:?}");
    let deep = reported(&server, "many");
    both_ends(&functions(&deep), "work", "main");
    if has_rust {
        for (name, outermost) in [("main", "main"), ("thread", "deeper")] {
            let names = functions(&reported(&server, name));
            both_ends(&names, "deeper", outermost);
        }
    }
}

/// The innermost 128 and the outermost 32 frames.
fn both_ends(names: &[String], recursive: &str, outermost: &str) {
    assert!(names.len() >= 160, "{} frames: {names:?}", names.len());
    let recursions = names.iter().filter(|name| name.contains(recursive));
    assert!(recursions.count() >= 128, "{names:?}");
    let outer = &names[names.len() - 32..];
    assert!(
        outer.iter().any(|name| name.contains(outermost)),
        "{outer:?}"
    );
    let is_entry =
        |name: &String| name == "_start" || name.starts_with("clone") || name.contains("__clone");
    assert!(outer.last().is_some_and(is_entry), "{outer:?}");
}
