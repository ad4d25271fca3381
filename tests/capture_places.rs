//! Crashes where the agent may do little: as PID 1 without a capability, and without CAP_SYS_PTRACE over other users.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/crashes.rs"]
mod crashes;
mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use agent::AGENT;
use crashes::{is_root, of, reported, service};
use support::{RedisServer, Scratch, eventually};

const CRASH: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>
#include <unistd.h>
static pthread_barrier_t both;
static void *idle(void *x) { pthread_barrier_wait(&both); for (;;) pause(); return x; }
static int inner(volatile int *where) { return *where; }
int main(int n, char **v) {
  if (n > 1 && (setgid(65534) || setuid(65534))) return 9;
  pthread_t t; pthread_barrier_init(&both, 0, 2);
  pthread_create(&t, 0, idle, 0); pthread_barrier_wait(&both);
  return inner(0);
}
"#;

/// Where everybody may read it.
struct Public {
    folder: PathBuf,
    program: PathBuf,
}

impl Public {
    fn new(name: &str) -> Public {
        let folder = PathBuf::from(format!("/tmp/agent-places-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&folder, open).expect("ours");
        let source = folder.join("crash.c");
        std::fs::write(&source, CRASH).expect("a file");
        let program = folder.join("crash");
        let status = Command::new("cc")
            .args(["-g", "-O0", "-pthread", "-o"])
            .args([&program, &source])
            .status()
            .expect("a C compiler");
        assert!(status.success());
        Public { folder, program }
    }
}

impl Drop for Public {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

struct Running(Child, PathBuf);

impl Drop for Running {
    fn drop(&mut self) {
        // The whole of it: what started the agent is in a group of its own.
        // SAFETY: plain system call, of a child that we own.
        unsafe { libc::kill(-(self.0.id() as i32), libc::SIGKILL) };
        let _ = self.0.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.1).unwrap_or_default());
        }
    }
}

/// The agent below `before`.
fn start(before: &[&str], folder: &Scratch, text: &str) -> Running {
    use std::os::unix::process::CommandExt;
    let config = folder.file("agent.toml", text);
    let log = folder.join("log");
    let mut command = Command::new(before[0]);
    command.args(&before[1..]).arg(AGENT);
    command.args(["run", "--config"]).arg(config);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(std::fs::File::create(&log).expect("a file"));
    command.process_group(0);
    agent::die_with_parent(&mut command);
    Running(command.spawn().expect("it starts"), log)
}

fn is_possible(words: &[&str]) -> bool {
    let status = Command::new(words[0])
        .args(&words[1..])
        .arg("true")
        .stderr(Stdio::null())
        .status();
    let possible = status.is_ok_and(|status| status.success());
    if !possible {
        eprintln!("SKIPPED: {words:?} does not work here");
    }
    possible
}

fn assert_reported(server: &RedisServer, name: &str) {
    let report = reported(server, name);
    let threads = report["threads"].as_array().cloned().unwrap_or_default();
    assert_eq!(threads.len(), 2, "{name}: {report:#}");
    crashes::assert_top(&report, &["inner", "main"]);
    assert_eq!(threads[0]["frames"][0]["line"], 8, "{name}: {report:#}");
}

#[test]
fn as_pid_1_without_a_capability() {
    let before = [
        "unshare",
        "--user",
        "--map-root-user",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--no-new-privs",
    ];
    if !is_possible(&before) {
        return;
    }
    let server = RedisServer::start(&[]);
    let public = Public::new("pid1");
    let folder = Scratch::new("agent");
    let text = format!(
        "{}{}",
        agent::head(&folder, Some(&server)),
        service("alone", &public.program, "")
    );
    let _running = start(&before, &folder, &text);
    assert_reported(&server, "alone");
}

#[test]
fn other_users_without_the_capability_to_trace_them() {
    let before = [
        "setpriv",
        "--bounding-set=-sys_ptrace,-sys_admin",
        "--inh-caps=-all",
    ];
    if !is_root() || !is_possible(&before) {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let server = RedisServer::start(&[]);
    let public = Public::new("users");
    let folder = Scratch::new("agent");
    let text = format!(
        "{}{}{}{}",
        agent::head(&folder, Some(&server)),
        service("before", &public.program, "user = 65534"),
        service("itself", &public.program, "args = [\"x\"]"),
        service("again", &public.program, "user = 65534").replace(
            "restart = \"never\"",
            "restart = \"always\"\nbackoff = { initial = \"100ms\", max = \"100ms\" }\nstart_limit = { burst = 3 }"
        ),
    );
    let _running = start(&before, &folder, &text);
    assert_reported(&server, "before");
    // To have looked into another user's process must not cost the agent the right to trace its next child.
    eventually("its second run is reported too", || {
        of(&server, "again", "crash").len() > 1
    });
    // Nobody without the capability may look into what changed its user by itself: said, and told as far as known.
    let report = reported(&server, "itself");
    assert_eq!(report["signal"]["name"], "SIGSEGV", "{report:#}");
    assert_eq!(report["threads"].as_array().map(Vec::len), Some(2));
    assert_eq!(report["threads"][0]["frames"][0]["function"], "inner");
    assert!(
        report["notes"].to_string().contains("CAP_SYS_PTRACE"),
        "{report:#}"
    );
}
