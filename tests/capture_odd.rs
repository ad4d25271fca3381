//! Programs that trace, fork or catch signals in ways of their own.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/crashes.rs"]
mod crashes;
mod support;

use std::path::Path;
use std::process::Command;

use agent::Agent;
use crashes::{assert_in_order, c, of, reported, service};
use support::{Entry, RedisServer, Scratch, eventually};

fn lines(server: &RedisServer, name: &str) -> String {
    let entries = of(server, name, "info");
    let lines: Vec<String> = entries.iter().map(Entry::message).collect();
    lines.join("\n")
}

/// Its lines may still be on their way when its state is told.
fn says(server: &RedisServer, name: &str, text: &str) {
    eventually(&format!("{name} says {text:?}"), || {
        lines(server, name).contains(text)
    });
}

const TRACES: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
  int status, child = fork();
  if (!child) { if (ptrace(PTRACE_TRACEME, 0, 0, 0)) _exit(9); raise(SIGTRAP); _exit(4); }
  waitpid(child, &status, 0); printf("stopped %d\n", WIFSTOPPED(status));
  ptrace(PTRACE_CONT, child, 0, 0); waitpid(child, &status, 0);
  printf("exited %d\n", WEXITSTATUS(status));
  return 0;
}
"#;

const VFORKS: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
static void *hold(void *x) { if (!vfork()) { usleep(2000000); _exit(0); } return x; }
static int fell(volatile int *x) { return *x; }
int main(int n, char **v) {
  int status, child; pthread_t t;
  for (int i = 0; i < 20; i++) { if (!(child = vfork())) { execl("/bin/true", "true", (char *)0); _exit(1); } waitpid(child, &status, 0); }
  if (!strcmp(v[1], "child")) {
    if (!(child = vfork())) { fell(0); _exit(1); }
    waitpid(child, &status, 0); printf("child ended by %d\n", WTERMSIG(status)); return 0;
  }
  pthread_create(&t, 0, hold, 0); usleep(300000);
  return fell(0);
}
"#;

#[test]
fn tracers_and_vforks_of_their_own() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("odd");
    let traces = c(&programs, "traces", TRACES);
    let vforks = c(&programs, "vforks", VFORKS);
    let gdb = "args = [\"-nx\", \"-batch\", \"-ex\", \"run\", \"-ex\", \"bt\", \"--args\", ";
    let services = [
        service("traces", &traces, ""),
        service("vforks", &vforks, "args = [\"child\"]"),
        service("held", &vforks, "args = [\"thread\"]"),
        service(
            "gdb",
            Path::new("/usr/bin/gdb"),
            &format!("{gdb}{vforks:?}, \"thread\"]"),
        ),
    ]
    .concat();
    let agent = Agent::start(Some(&server), &services);
    agent.wait_for("traces", "done");
    says(&server, "traces", "stopped 1\nexited 4");
    // A child that nobody asked to follow: its parent is told, and lives.
    agent.wait_for("vforks", "done");
    says(&server, "vforks", "child ended by 11");
    assert!(of(&server, "vforks", "crash").is_empty());
    // A thread that waits for its vfork does not stop: it is not waited for.
    agent.wait_for("held", "failed");
    let report = reported(&server, "held");
    assert_eq!(report["threads"][0]["frames"][0]["function"], "fell");
    assert!(
        report["notes"].to_string().contains("did not stop"),
        "{report:#}"
    );
    assert_eq!(agent.service("held")["exit"], 139);
    if Path::new("/usr/bin/gdb").exists() {
        agent.wait_for("gdb", "done");
        says(&server, "gdb", "fell (x=0x0)");
    }
}

const JAVA: &str = r#"
public class Odd {
  static int length(String s) { return s.length(); }
  public static void main(String[] a) throws Exception {
    int caught = 0;
    for (int i = 0; i < 50000; i++) try { length(i % 7 == 0 ? null : "x"); } catch (NullPointerException e) { caught++; }
    System.out.println("caught " + caught);
    if (a[0].equals("exit")) System.exit(3);
    java.lang.reflect.Field f = sun.misc.Unsafe.class.getDeclaredField("theUnsafe");
    f.setAccessible(true);
    ((sun.misc.Unsafe) f.get(null)).putAddress(0, 0);
  }
}
"#;

/// The JVM lives on SIGSEGV, and gives up by SIGABRT after its own report.
#[test]
fn a_virtual_machine_keeps_its_handlers() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("odd");
    let source = programs.file("Odd.java", JAVA);
    let built = Command::new("javac")
        .args(["-nowarn", "-d"])
        .args([programs.path(), &source])
        .output();
    if !built.is_ok_and(|built| built.status.success()) {
        eprintln!("SKIPPED: there is no javac");
        return;
    }
    let java = |mode: &str| {
        let folder = programs.path().display();
        let more = format!(
            "args = [\"-Xmx64m\", \"-cp\", \"{folder}\", \"Odd\", {mode:?}]\nworking_directory = \"{folder}\""
        );
        service(mode, Path::new("/usr/bin/java"), &more)
    };
    let agent = Agent::start(Some(&server), &[java("exit"), java("crash")].concat());
    for (mode, code) in [("exit", 3), ("crash", 134)] {
        support::within(std::time::Duration::from_secs(90), mode, || {
            agent.service(mode)["state"] == "failed"
        });
        assert_eq!(agent.service(mode)["exit"], code, "{mode}");
        says(&server, mode, "caught 7143");
    }
    assert!(of(&server, "exit", "crash").is_empty());
    let report = reported(&server, "crash");
    assert_eq!(report["signal"]["name"], "SIGABRT");
    // Through the interpreter's own code, which no table describes, and out again: no frame is a guess.
    assert_in_order(&report, &["JavaCalls::call_helper", "JavaMain"]);
    let frames = report["threads"][0]["frames"].to_string();
    assert!(!frames.contains("\"scan\""), "{report:#}");
    let message = report["abort_message"].as_str().unwrap_or_default();
    assert!(message.contains("SIGSEGV (0xb) at pc="), "{report:#}");
    assert!(message.contains("Problematic frame:\n"), "{report:#}");
    assert!(
        report["threads"]
            .as_array()
            .is_some_and(|all| all.len() > 5)
    );
}
