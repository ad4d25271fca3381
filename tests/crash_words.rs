//! What programs say when they give up: joined into one entry, and in the crash report. The real agent, real programs,
//! a real redis-server.

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

/// Compiles; `None` where the compiler is absent.
fn built(folder: &Scratch, name: &str, compiler: &[&str], source: &str) -> Option<PathBuf> {
    let file = folder.file(&format!("{name}.source"), source);
    let program = folder.join(name);
    let mut command = Command::new(compiler[0]);
    command
        .args(&compiler[1..])
        .arg("-g")
        .arg("-o")
        .arg(&program);
    let status = command.arg(&file).status();
    match status {
        Ok(status) => assert!(status.success()),
        Err(_) => eprintln!("skipped: needs {}", compiler[0]),
    }
    program.exists().then_some(program)
}

fn service(name: &str, program: &Path, mode: &str) -> String {
    format!(
        "\n[service.{name}]\nexecutable = {program:?}\nargs = [\"{mode}\"]\nrestart = \"never\"\n\
         environment = {{ RUST_BACKTRACE = \"1\" }}\nmulti_line = [\"markers\", \"tracebacks\"]\n"
    )
}

const CPP: &str = r#"
#include <cassert>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
int main(int, char **v) {
  std::fputs("a line before\n", stderr);
  if (!strcmp(v[1], "throw")) throw std::runtime_error("the sensor is lost");
  if (!strcmp(v[1], "assert")) assert(!"reachable");
  char *p = (char *)malloc(9); free(p); free(p);
}
"#;

const RUST: &str = r#"
fn main() {
    eprintln!("a line before");
    let cells = vec![0; 64];
    println!("{}", cells[std::env::args().count() + 69]);
}
"#;

#[test]
fn what_a_program_said_when_it_gave_up() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("words");
    let mut text = String::new();
    // Service, what its report's message begins with, what its joined entry begins with.
    let mut wanted: Vec<(&str, &str, &str)> = Vec::new();
    if let Some(program) = built(&programs, "cpp", &["g++", "-w", "-xc++"], CPP) {
        for mode in ["throw", "assert", "free"] {
            text += &service(mode, &program, mode);
        }
        let what = "terminate called after throwing an instance of 'std::runtime_error'\n  what():  the sensor is lost";
        wanted.push(("throw", what, what));
        wanted.push(("assert", "cpp: ", "cpp: "));
        wanted.push((
            "free",
            "free(): double free detected",
            "free(): double free detected",
        ));
    }
    let rustc = ["rustc", "--edition=2021", "-Cpanic=abort"];
    if let Some(program) = built(&programs, "rust", &rustc, RUST) {
        text += &service("rust", &program, "x");
        wanted.push(("rust", "thread 'main'", "thread 'main'"));
    }
    if wanted.is_empty() {
        return;
    }
    let _agent = Agent::start(Some(&server), &text);
    let mut signatures = Vec::new();
    for (name, message, joined) in wanted {
        eventually("the crash is reported", || {
            !of(&server, name, "crash").is_empty()
        });
        let entry = &of(&server, name, "crash")[0];
        let report: Value =
            serde_json::from_str(&entry.field("report").expect("a report")).expect("JSON");
        let said = report["abort_message"].as_str().unwrap_or_default();
        assert!(said.starts_with(message), "{name}: {said:?}");
        assert!(
            entry.message().contains("\nMessage: "),
            "{}",
            entry.message()
        );
        // The lines themselves are in the report's log, each for itself.
        let log = report["log"].as_array().cloned().unwrap_or_default();
        assert_eq!(log[0], "a line before", "{log:?}");
        assert!(
            log[1].as_str().is_some_and(|line| !line.contains('\n')),
            "{log:?}"
        );
        let info: Vec<String> = of(&server, name, "info")
            .iter()
            .map(Entry::message)
            .collect();
        let trace = info.iter().find(|message| message.starts_with(joined));
        let trace = trace.unwrap_or_else(|| panic!("{name}: {info:#?}"));
        if name == "rust" {
            assert!(
                said.contains("\nindex out of bounds: the len is 64 but the index is 71"),
                "{said}"
            );
            assert!(
                trace.contains("\nstack backtrace:\n   0: ") && trace.contains("rust::main"),
                "{trace}"
            );
        }
        signatures.push(report["signature"].as_str().unwrap_or_default().to_owned());
    }
    // Three ways to give up in one `main` are three signatures.
    signatures.sort();
    let all = signatures.len();
    signatures.dedup();
    assert_eq!(signatures.len(), all, "{signatures:?}");
}
