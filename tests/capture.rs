//! Crashes from the signal to the entry: the real agent, real programs, a real redis-server.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/crashes.rs"]
mod crashes;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use agent::Agent;
use crashes::{
    assert_in_order, c, c_with, events, functions, is_root, of, record, reported, service,
    tracer_of,
};
use support::{RedisServer, Scratch, eventually};

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
    let program = c(&programs, "null", NULL);
    let agent = Agent::start(Some(&server), &service("null", &program, ""));
    agent.wait_for("null", "failed");
    let report = reported(&server, "null");
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
    let events = events(&server, "null");
    let at = |name: &str| events.iter().position(|event| event == name);
    assert!(
        at("crash").is_some() && at("crash") < at("exit"),
        "{events:?}"
    );
    let core = record(&agent, &report).join("core");
    let gdb = Command::new("gdb")
        .args(["-batch", "-nx", "-ex", "bt"])
        .args([&program, &core])
        .output();
    if let Ok(gdb) = gdb {
        let said = String::from_utf8_lossy(&gdb.stdout).into_owned();
        assert!(said.contains("in outer (where=0x0)"), "{said}");
    }
}

const THREADS: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <unistd.h>
static pthread_barrier_t all;
static void *idle(void *x) { pthread_barrier_wait(&all); for (;;) pause(); return x; }
static int divide(int by) { return 100 / by; }
static void *worker(void *x) { pthread_setname_np(pthread_self(), "worker-7"); pthread_barrier_wait(&all); return (void *)(long)divide(x != 0); }
int main(void) {
  pthread_t t; pthread_barrier_init(&all, 0, 17);
  for (int i = 0; i < 16; i++) pthread_create(&t, 0, idle, 0);
  pthread_create(&t, 0, worker, 0);
  pause();
}
"#;

#[test]
fn the_crashed_thread_of_many_comes_first() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("capture");
    let program = c(&programs, "threads", THREADS);
    let agent = Agent::start(Some(&server), &service("threads", &program, ""));
    let report = reported(&server, "threads");
    assert_eq!(report["signal"]["name"], "SIGFPE");
    assert_eq!(report["threads"][0]["name"], "worker-7");
    assert_eq!(report["threads"][0]["crashed"], true);
    assert_in_order(&report, &["divide", "worker"]);
    let threads = report["threads"].as_array().cloned().unwrap_or_default();
    assert_eq!(threads.len(), 18);
    let idle = threads.iter().filter(|thread| {
        let frames = thread["frames"].as_array();
        frames
            .into_iter()
            .flatten()
            .any(|f| f["function"] == "idle")
    });
    assert_eq!(idle.count(), 16);
    agent.wait_for("threads", "failed");
    assert_eq!(agent.service("threads")["exit"], 136);
}

const HANDLED: &str = r#"
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
static sigjmp_buf back;
static void jump(int s) { siglongjmp(back, s); }
static void again(int s) { sigset_t set; signal(s, SIG_DFL); sigemptyset(&set); sigaddset(&set, s); sigprocmask(SIG_UNBLOCK, &set, 0); raise(s); }
static int inner(volatile int *where) { return *where; }
static int give_up(void) { abort(); }
int main(int n, char **v) {
  if (!strcmp(v[1], "abort")) return give_up();
  if (!strcmp(v[1], "jump")) { signal(SIGSEGV, jump); if (!sigsetjmp(back, 1)) return inner(0); return 7; }
  if (!strcmp(v[1], "again")) { signal(SIGSEGV, again); return inner(0); }
  if (!strcmp(v[1], "ignored")) { signal(SIGSEGV, SIG_IGN); return inner(0); }
  if (!strcmp(v[1], "overflow")) { char big[1024]; memset(big, 1, 1024); return main(n, v) + big[5]; }
  return 1;
}
"#;

#[test]
fn handlers_are_the_programs_own() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("capture");
    let program = c(&programs, "handled", HANDLED);
    let modes = ["abort", "jump", "again", "ignored", "overflow"];
    let services: String = modes
        .iter()
        .map(|mode| service(mode, &program, &format!("args = [{mode:?}]")))
        .collect();
    let agent = Agent::start(Some(&server), &services);
    for (mode, code) in modes.iter().zip([134, 7, 139, 139, 139]) {
        agent.wait_for(mode, "failed");
        assert_eq!(agent.service(mode)["exit"], code, "{mode}");
    }
    assert_in_order(&reported(&server, "abort"), &["abort", "give_up", "main"]);
    assert_in_order(
        &reported(&server, "again"),
        &["raise", "again", "inner", "main"],
    );
    assert_in_order(&reported(&server, "ignored"), &["inner", "main"]);
    assert_in_order(&reported(&server, "overflow"), &["main", "main", "main"]);
    assert!(of(&server, "jump", "crash").is_empty());
    for mode in ["abort", "again", "ignored", "overflow"] {
        assert_eq!(of(&server, mode, "crash").len(), 1, "{mode}");
    }
}

const OTHER_USER: &str = r#"
#define _GNU_SOURCE
#include <unistd.h>
#include <sys/prctl.h>
static int inner(volatile int *where) { return *where; }
int main(int n, char **v) {
  if (n > 1 && (setgid(65534) || setuid(65534))) return 9;
  if (n > 2) prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
  return inner(0);
}
"#;

#[test]
fn a_change_of_user_hides_nothing() {
    if !is_root() {
        return;
    }
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("capture");
    let program = c_with(&programs, "user", OTHER_USER, &["-static"]);
    // Others must reach it.
    let public = PathBuf::from(format!("/tmp/agent-capture-user-{}", std::process::id()));
    std::fs::copy(&program, &public).expect("a copy");
    let services = [
        service("before", &public, "user = 65534"),
        service("itself", &public, "args = [\"x\"]"),
        service("hidden", &public, "args = [\"x\", \"y\"]"),
    ]
    .concat();
    let _agent = Agent::start(Some(&server), &services);
    for name in ["before", "itself", "hidden"] {
        let report = reported(&server, name);
        assert_in_order(&report, &["inner", "main"]);
    }
    std::fs::remove_file(&public).expect("it is there");
}

#[test]
fn python_and_go() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("capture");
    let python = Path::new("/usr/bin/python3");
    let mut services = String::new();
    if python.exists() {
        services += &service(
            "python",
            python,
            "args = [\"-c\", \"import ctypes; ctypes.string_at(0)\"]",
        );
    }
    let source = "package main\nimport \"os\"\nfunc inner(p *int) int { os.Stdout.WriteString(\"x\\n\"); return *p }\nfunc main() { inner(nil) }\n";
    let file = programs.file("main.go", source);
    let program = programs.join("go");
    let built = Command::new("go")
        .args(["build", "-gcflags=-l", "-o"])
        .args([&program, &file])
        .env("GOCACHE", programs.join("cache"))
        .env("GOFLAGS", "-mod=mod")
        .env("GO111MODULE", "off")
        .status();
    let go = matches!(built, Ok(status) if status.success());
    if go {
        services += &service("go", &program, "environment = { GOTRACEBACK = \"crash\" }");
    }
    if services.is_empty() {
        return;
    }
    let _agent = Agent::start(Some(&server), &services);
    if go {
        let report = reported(&server, "go");
        assert_in_order(&report, &["main.inner", "main.main"]);
    }
    if python.exists() {
        let report = reported(&server, "python");
        assert_eq!(report["signal"]["name"], "SIGSEGV");
        assert!(functions(&report).len() > 5, "{report:#}");
    }
}

#[test]
fn stacks_now_and_let_go() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("capture");
    let source = "#include <unistd.h>\nstatic void rest(void) { for (;;) pause(); }\nint main(void) { rest(); }";
    let program = c(&programs, "rest", source);
    let services = [
        service("traced", &program, ""),
        service("free", &program, "crash = \"off\""),
    ]
    .concat();
    let agent = Agent::start(Some(&server), &services);
    for name in ["traced", "free"] {
        agent.wait_for(name, "ready");
        let pid = agent.service(name)["pid"].as_i64().expect("a pid");
        let is_traced = |traced: bool| tracer_of(pid) == Some(if traced { agent.pid() } else { 0 });
        assert!(is_traced(name == "traced"), "{name}");
        let mut told = String::new();
        // Right after its start it may still be in the dynamic linker.
        eventually("its stacks are there", || {
            let output = agent.ask(&["stacks", name]);
            assert!(output.status.success(), "{output:?}");
            told = String::from_utf8_lossy(&output.stdout).into_owned();
            told.contains("rest ()")
        });
        assert!(told.starts_with("Backtrace for "), "{told}");
        assert!(is_traced(name == "traced"), "{name} afterwards");
    }
    let pid = agent.service("traced")["pid"].as_i64().expect("a pid");
    assert!(agent.ask(&["detach", "traced"]).status.success());
    assert_eq!(tracer_of(pid), Some(0));
    assert!(!agent.ask(&["detach", "traced"]).status.success());
    assert!(!agent.ask(&["stacks", "nobody"]).status.success());
    assert_eq!(agent.service("traced")["state"], "ready");
}

#[test]
fn two_hundred_crashes_leave_nothing_behind() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("capture");
    let program = c(&programs, "null", NULL);
    let text = format!(
        "\n[service.loop]\nexecutable = {program:?}\nbackoff = {{ initial = \"1ms\", max = \"1ms\" }}\nstart_limit = {{ burst = 0 }}\n"
    );
    let agent = Agent::start(Some(&server), &text);
    let restarts = || agent.service("loop")["restarts"].as_u64().unwrap_or(0);
    let fds = || {
        let folder = format!("/proc/{}/fd", agent.pid());
        std::fs::read_dir(folder).map_or(0, Iterator::count)
    };
    support::within(std::time::Duration::from_secs(60), "ten", || {
        restarts() > 10
    });
    support::within(std::time::Duration::from_secs(120), "many", || {
        restarts() > 210
    });
    assert!(agent.ask(&["stop", "loop"]).status.success());
    eventually("no descriptor is left open", || fds() < 40);
    let children = format!("/proc/{0}/task/{0}/children", agent.pid());
    eventually("no child is left", || {
        std::fs::read_to_string(&children).is_ok_and(|text| text.trim().is_empty())
    });
    let told = of(&server, "loop", "crash").len();
    assert!((1..=20).contains(&told), "{told} reports");
    let listed = agent.ask(&["crashes"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(
        // One of them may be under way.
        listed.lines().count() <= 17 && listed.contains("SIGSEGV"),
        "{listed}"
    );
    assert!(listed.contains("inner at "), "{listed}");
}

#[test]
fn a_killed_agent_takes_even_who_changed_its_user_along() {
    if !is_root() {
        return;
    }
    let programs = Scratch::new("capture");
    let source =
        "#include <unistd.h>\nint main(void) { if (setuid(65534)) return 1; for (;;) pause(); }";
    let program = c(&programs, "other", source);
    let agent = Agent::start(None, &service("other", &program, ""));
    agent.wait_for("other", "ready");
    let pid = agent.service("other")["pid"].as_i64().expect("a pid") as i32;
    agent.signal(libc::SIGKILL);
    eventually("it is gone", || !agent::lives(pid));
}

#[test]
fn without_redis_and_without_a_disk() {
    let programs = Scratch::new("capture");
    let program = c(&programs, "null", NULL);
    let agent = Agent::start(None, &service("null", &program, ""));
    let mut agent = agent;
    let show = |agent: &Agent, more: &[&str]| {
        let output = agent.ask(&[&["crashes", "show", "last"], more].concat());
        let told = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&told).into_owned()
    };
    let is_told = |text: &str| text.contains("inner (where=0x0)");
    eventually("the record is there", || is_told(&show(&agent, &[])));
    // Who runs no more is not asked where they are.
    agent.stop();
    let config = agent.folder.join("agent.toml");
    let config = config.to_string_lossy();
    assert!(is_told(&show(&agent, &["--config", &config])));
    let told = show(&agent, &[]);
    assert!(!is_told(&told), "{told}");

    let server = RedisServer::start(&[]);
    let folder = Scratch::new("agent");
    let text = agent::head(&folder, Some(&server)).replace(
        &format!("state_dir = {:?}", folder.path()),
        "state_dir = \"/dev/null/nowhere\"",
    );
    let agent = Agent::start_in(folder, &format!("{text}{}", service("null", &program, "")));
    assert_in_order(&reported(&server, "null"), &["inner", "outer", "main"]);
    let complaints = agent.log();
    assert_eq!(
        complaints.matches("cannot be kept on disk").count(),
        1,
        "{complaints}"
    );
}

#[test]
fn a_crash_that_ends_the_agent_is_reported() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("capture");
    let program = c(&programs, "null", NULL);
    let folder = Scratch::new("agent");
    let text =
        agent::head(&folder, Some(&server)).replace("[agent]\n", "[agent]\nmain = \"null\"\n");
    let mut agent = Agent::start_in(folder, &format!("{text}{}", service("null", &program, "")));
    assert_eq!(agent.wait().code(), Some(139));
    assert_in_order(&reported(&server, "null"), &["inner", "outer", "main"]);
}
