//! Crashes that nobody could capture, and programs that tracing would cost more than it gives.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/crashes.rs"]
mod crashes;
mod support;

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};

use agent::{AGENT, Agent};
use crashes::{c, document, events, is_root, of, reported, service};
use support::{Entry, RedisServer, Scratch, eventually};

const FILTERED: &str = r#"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
  struct sock_filter code[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_getppid, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = { sizeof code / sizeof *code, code };
  fputs("a line before\n", stderr);
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
  syscall(__NR_getppid);
  return 0;
}
"#;

const NULL: &str = "int main(void) { return *(volatile int *)0; }";

#[test]
fn what_the_kernel_ends_without_a_stop_is_recorded() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("unseen");
    let filtered = c(&programs, "filtered", FILTERED);
    let null = c(&programs, "null", NULL);
    let text = service("filtered", &filtered, "")
        + &service("off", &filtered, "crash = \"off\"")
        + &service("seen", &null, "");
    let agent = Agent::start(Some(&server), &text);
    let report = reported(&server, "filtered");
    assert_eq!(report["signal"]["name"], "SIGSYS");
    assert_eq!(report["log"][0], "a line before");
    let notes = report["notes"].to_string();
    assert!(notes.contains("SECCOMP_RET_KILL_PROCESS"), "{notes}");
    let folder = crashes::record(&agent, &report);
    assert!(folder.join("report.txt").exists());
    assert_eq!(agent.service("filtered")["crash_id"], report["crash_id"]);
    let all = events(&server, "filtered");
    let at = |event: &str| all.iter().position(|is| is == event);
    assert!(at("crash").is_some() && at("crash") < at("exit"), "{all:?}");
    // What was captured is told once, and what is not to be captured is not.
    reported(&server, "seen");
    agent.wait_for("off", "failed");
    let crashes = |name: &str| {
        events(&server, name)
            .iter()
            .filter(|e| *e == "crash")
            .count()
    };
    assert_eq!((crashes("seen"), crashes("off")), (1, 0));
    assert_eq!(of(&server, "seen", "crash").len(), 1);
    assert!(document(&of(&server, "seen", "crash")[0])["threads"][0]["frames"].is_array());
}

/// An agent in other circumstances than the test's.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn privileges_of_a_file_are_worth_more_than_its_crashes() {
    if !is_root() {
        return eprintln!("skipped: needs root");
    }
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("privileged");
    // Below folders that the service's user may enter.
    std::fs::set_permissions(programs.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let id = programs.join("id");
    std::fs::copy("/usr/bin/id", &id).expect("a copy of id");
    std::fs::set_permissions(&id, PermissionsExt::from_mode(0o4755)).unwrap();
    let folder = Scratch::new("agent");
    let user = "user = \"nobody\"";
    let text = format!(
        "{}{}{}",
        agent::head(&folder, Some(&server)),
        service("privileged", &id, user),
        service("plain", std::path::Path::new("/usr/bin/id"), user)
    );
    let config = folder.file("agent.toml", &text);
    let log = folder.join("log");
    let mut command = Command::new("setpriv");
    command
        .args([
            "--bounding-set=-sys_ptrace",
            "--inh-caps=-sys_ptrace",
            AGENT,
        ])
        .args(["run", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).expect("a log file"));
    agent::die_with_parent(&mut command);
    let Ok(child) = command.spawn() else {
        return eprintln!("skipped: needs setpriv");
    };
    let _agent = Started(child);
    let lines = |name: &str| {
        let entries = of(&server, name, "info");
        let lines: Vec<String> = entries.iter().map(Entry::message).collect();
        lines.join("\n")
    };
    for name in ["privileged", "plain"] {
        eventually("it says who it is", || lines(name).contains("uid="));
    }
    assert!(
        lines("privileged").contains("euid=0"),
        "{}",
        lines("privileged")
    );
    assert!(!lines("plain").contains("euid=0"));
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    let told: Vec<&str> = log
        .lines()
        .filter(|l| l.contains("is not traced"))
        .collect();
    assert_eq!(told.len(), 1, "{log}");
    assert!(told[0].contains("[privileged]"), "{log}");
}
