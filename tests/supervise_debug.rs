//! Step debugging with the real gdbserver and gdb: a service that is stopped at its first instruction, in native form
//! and in wrapp's.

#[path = "support/agent.rs"]
mod agent;
mod support;
#[path = "support/wrapp.rs"]
mod wrapp;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent::{Agent, lives};
use serde_json::json;
use support::{RedisServer, Scratch, eventually, free_port, messages};
use wrapp::{Place, open_to_all};

const PROGRAM: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int work(int n) { return n * 2; }
int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
    printf("began\n"); fflush(stdout);
    if (strcmp(what, "crash") == 0) *(volatile int *)16 = work(1);
    if (strcmp(what, "stay") == 0) {
        /* Crashes when it is told to. */
        while (access(words[2], F_OK) != 0) usleep(10000);
        *(volatile int *)16 = work(1);
    }
    if (strcmp(what, "wait") == 0) pause();
    return work(3) + 1;
}
"#;

/// A folder with the program, which everybody may run.
fn workshop() -> (Scratch, PathBuf) {
    let folder = Scratch::new("debug");
    open_to_all(folder.path());
    let source = folder.file("program.c", PROGRAM);
    let program = folder.join("program");
    let status = Command::new("gcc")
        .args(["-g", "-O0", "-o"])
        .args([&program, &source])
        .status();
    assert!(status.expect("gcc").success());
    (folder, program)
}

fn service(program: &Path, args: &str, port: u16, more: &str) -> String {
    format!(
        "\n[service.app]\nexecutable = {program:?}\nargs = [{args}]\nrestart = \"never\"\n{more}\n\
         [service.app.debug]\nenabled = true\nport = {port}\n"
    )
}

/// What a session of these commands says.
fn gdb(program: &Path, port: u16, commands: &[&str]) -> String {
    let mut gdb = Command::new("timeout");
    gdb.args(["60", "gdb", "-nx", "-batch", "-ex", "set pagination off"]);
    gdb.args(["-ex", "set sysroot /", "-ex", "set debuginfod enabled off"]);
    gdb.args(["-ex", &format!("target remote 127.0.0.1:{port}")]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let output = gdb.arg(program).stdin(Stdio::null()).output().expect("gdb");
    let both = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

fn field(pid: i32, key: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

fn name(pid: i32) -> String {
    field(pid, "Name")
}

/// The process' pid, once it stands still in gdbserver, and gdbserver's.
fn held(agent: &Agent) -> (i32, i32) {
    agent.wait_for("app", "ready");
    let pid = agent.service("app")["pid"].as_i64().expect("a process") as i32;
    assert_eq!(field(pid, "State"), "t (tracing stop)");
    let tracer = field(pid, "TracerPid").parse().expect("a number");
    assert_eq!(name(tracer), "gdbserver");
    (pid, tracer)
}

fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

#[test]
fn from_the_first_instruction_to_the_exit_code() {
    let (_folder, program) = workshop();
    let port = free_port();
    let mut agent = Agent::start(None, &service(&program, "", port, "umask = \"027\""));
    let (pid, gdbserver) = held(&agent);
    // The loader has not run yet: none of its writes to the program's memory, no libc.
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("alive");
    assert!(!maps.contains("libc.so"), "{maps}");
    assert_eq!(field(pid, "SigBlk"), "0000000000000000");
    let said = gdb(
        &program,
        port,
        &[
            "x/i $pc",
            "break work",
            "continue",
            "print n",
            "finish",
            "continue",
        ],
    );
    // What stood there is what stands in the file, and the first `continue` is the program's own.
    assert!(said.contains("_start"), "{said}");
    assert!(!said.contains("SIGSTOP") && !said.contains("jmp"), "{said}");
    assert!(said.contains("Breakpoint 1, work (n=3)"), "{said}");
    assert!(said.contains("Value returned is $2 = 6"), "{said}");
    assert!(said.contains("exited with code 07"), "{said}");
    agent.wait_for("app", "failed");
    assert_eq!(agent.service("app")["exit"], 7);
    eventually("gdbserver has ended with it", || !lives(gdbserver));
    assert_eq!(children(agent.pid()), [] as [i32; 0], "no zombies");
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn wrapps_short_form_says_how_to_connect() {
    let (_folder, program) = workshop();
    let server = RedisServer::start(&[]);
    let port = free_port();
    let place = Place::new();
    let mut config = place.program(Some(&server), &program.to_string_lossy(), &[]);
    config["debug"] = json!({ "enabled": true, "port": port });
    let mut wrapp = place.start(&config);
    let status = || messages(&mut server.client(1), "logs:app:app:status");
    eventually("it is told", || {
        status().iter().any(|line| line == "Ready.")
    });
    let said = status();
    assert!(said[0].starts_with("{{__NEW_RUN_"), "{said:?}");
    assert_eq!(
        said[1],
        "DEBUG MODE: Starting process paused for step debugging"
    );
    let address = format!("target remote 127.0.0.1:{port}");
    assert!(
        said[2].starts_with('╔') && said[2].contains(&address),
        "{said:?}"
    );
    assert!(wrapp.stdout().contains(&address), "{}", wrapp.stdout());
    // A client may come, look and lose its connection.
    let looked = gdb(&program, port, &["info registers", "disconnect"]);
    assert!(!looked.contains("refused"), "{looked}");
    let ran = gdb(&program, port, &["break main", "continue", "continue"]);
    assert!(ran.contains("Breakpoint 1, main"), "{ran}");
    assert_eq!(wrapp.code(), Some(7));
    let lines = messages(&mut server.client(1), "logs:app:app:info");
    assert!(lines.contains(&"began".to_owned()), "{lines:?}");
    assert!(
        lines.last().is_some_and(|line| line.ends_with("_exit_7}}")),
        "{lines:?}"
    );
}

/// The process is killed, the error stream says why, and the code is 1.
#[test]
fn a_session_that_cannot_be_set_up() {
    let (_folder, program) = workshop();
    let server = RedisServer::start(&[]);
    let empty = Scratch::new("empty");
    let path = empty.path().to_string_lossy().into_owned();
    for (case, words) in [
        (
            "port",
            "Failed to setup debug session: gdbserver: Can't bind address: Address already in use",
        ),
        (
            "missing",
            "Failed to setup debug session: finding gdbserver on PATH: No such file or directory (ENOENT)",
        ),
    ] {
        let held = TcpListener::bind("127.0.0.1:0").expect("a port");
        let place = Place::new();
        let mut config = place.program(Some(&server), &program.to_string_lossy(), &["wait"]);
        config["app"]["stream_name"] = json!(case);
        config["debug"] =
            json!({ "enabled": true, "port": held.local_addr().expect("bound").port() });
        let mut wrapp = place.start_as(&config, |command| {
            if case == "missing" {
                command.env("PATH", &path);
            }
        });
        assert_eq!(wrapp.code(), Some(1), "{case}");
        let errors = messages(&mut server.client(1), &format!("logs:app:{case}:error"));
        assert_eq!(errors, [words]);
        let status = messages(&mut server.client(1), &format!("logs:app:{case}:status"));
        assert!(
            status
                .last()
                .is_some_and(|line| line.ends_with("_exit_1}}")),
            "{status:?}"
        );
        let lines = messages(&mut server.client(1), &format!("logs:app:{case}:info"));
        assert!(!lines.contains(&"began".to_owned()), "{lines:?}");
    }
}

#[test]
fn a_service_that_is_not_debugged_is_as_ever() {
    let (_folder, program) = workshop();
    let port = free_port();
    let off = service(&program, "\"wait\"", port, "").replace("enabled = true", "enabled = false");
    let agent = Agent::start(None, &off);
    agent.wait_for("app", "ready");
    let pid = agent.service("app")["pid"].as_i64().expect("a process") as i32;
    assert_eq!(field(pid, "TracerPid"), agent.pid().to_string());
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn another_user_is_debugged_as_that_user() {
    // SAFETY: geteuid(2) always succeeds.
    if unsafe { libc::geteuid() } != 0 {
        return eprintln!("skipped: needs root to become another user");
    }
    let (_folder, program) = workshop();
    let port = free_port();
    let mut agent = Agent::start(None, &service(&program, "", port, "user = \"nobody\""));
    let (pid, gdbserver) = held(&agent);
    assert!(field(pid, "Uid").starts_with("65534\t65534"));
    assert!(
        field(gdbserver, "Uid").starts_with("65534\t65534"),
        "no more than it needs"
    );
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).expect("alive");
    assert_eq!(exe, program, "the application itself");
    let said = gdb(&program, port, &["break main", "continue", "continue"]);
    assert!(said.contains("Breakpoint 1, main"), "{said}");
    agent.wait_for("app", "failed");
    assert_eq!(agent.service("app")["exit"], 7);
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_crash_in_the_debugger_is_its_own_and_after_it_ours() {
    let (folder, program) = workshop();
    let port = free_port();
    let mut agent = Agent::start(None, &service(&program, "\"crash\"", port, ""));
    held(&agent);
    let said = gdb(&program, port, &["continue", "backtrace", "continue"]);
    assert!(
        agent
            .log()
            .contains("a crash is the debugger's to see and is not recorded")
    );
    assert!(
        said.contains("SIGSEGV") && said.contains("#0") && said.contains("main"),
        "{said}"
    );
    agent.wait_for("app", "failed");
    assert_eq!(agent.service("app")["exit"], 139);
    assert_eq!(agent.stop().code(), Some(0));

    let signal = folder.join("now");
    let args = format!("\"stay\", {signal:?}");
    let port = free_port();
    let mut agent = Agent::start(None, &service(&program, &args, port, ""));
    let (pid, gdbserver) = held(&agent);
    let said = gdb(
        &program,
        port,
        &["break work", "break main", "continue", "delete", "detach"],
    );
    assert!(said.contains("Breakpoint 2, main"), "{said}");
    eventually("gdbserver leaves", || !lives(gdbserver));
    eventually("the agent traces it again", || {
        field(pid, "TracerPid") == agent.pid().to_string()
    });
    // It runs on by itself for as long as it likes.
    eventually("it runs", || matches!(&field(pid, "State")[..1], "S" | "R"));
    assert_eq!(children(agent.pid()), [pid], "no zombies");
    std::fs::write(&signal, "").expect("written");
    agent.wait_for("app", "failed");
    let crashes = |words: &[&str]| {
        let mut all = vec!["crashes"];
        all.extend(words);
        let config = agent
            .folder
            .join("agent.toml")
            .to_string_lossy()
            .into_owned();
        all.extend(["--config", &config]);
        let output = agent.ask(&all);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    eventually("its crash is kept", || {
        crashes(&["list"]).contains("SIGSEGV")
    });
    let report = crashes(&["show", "last"]);
    assert!(report.contains("main"), "{report}");
    assert_eq!(agent.stop().code(), Some(0));
}

/// Nobody connects: a stop needs neither a client nor the whole of its timeout.
#[test]
fn a_stop_reaches_a_process_that_stands_still() {
    let (_folder, program) = workshop();
    let more =
        "stop = { timeout = \"30s\" }\nready = { tcp = \"127.0.0.1:1\", timeout = \"100ms\" }";
    let mut agent = Agent::start(None, &service(&program, "\"wait\"", free_port(), more));
    let pid_of = |agent: &Agent| agent.service("app")["pid"].as_i64().map(|pid| pid as i32);
    eventually("it is held", || {
        pid_of(&agent).is_some_and(|pid| field(pid, "State").starts_with('t'))
    });
    let pid = pid_of(&agent).expect("a process");
    // Longer than its readiness may take: whoever steps through it takes their time.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(agent.service("app")["state"], "starting");
    let start = Instant::now();
    assert!(
        agent
            .ask(&["stop", "app", "--timeout", "60s"])
            .status
            .success()
    );
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
    assert!(!lives(pid));
    assert_eq!(agent.service("app")["exit"], 143, "TERM, not KILL");
    assert_eq!(children(agent.pid()), [] as [i32; 0], "no zombies");
    assert_eq!(agent.stop().code(), Some(0));
}

/// gdbserver, which waits for a client, hears nothing of it.
#[test]
fn a_kill_from_outside_ends_the_run() {
    let (_folder, program) = workshop();
    let mut agent = Agent::start(None, &service(&program, "\"wait\"", free_port(), ""));
    let (pid, gdbserver) = held(&agent);
    // SAFETY: kill(2) touches no memory.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    agent.wait_for("app", "failed");
    assert_eq!(agent.service("app")["exit"], 137);
    eventually("gdbserver has ended", || !lives(gdbserver));
    assert_eq!(agent.stop().code(), Some(0));
}
