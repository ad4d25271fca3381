//! Crashes by way of the kernel's core_pattern: the real handler, called by the real kernel.
//!
//! The pattern is the whole machine's: it is set under a lock, for moments, and put back. Where it cannot be set (no
//! root, a container) the tests say so and pass.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/crashes.rs"]
mod crashes;
#[path = "support/pattern.rs"]
mod pattern;
mod support;

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};

use agent::Agent;
use crashes::{assert_top, c, c_with, events, of, record, reported, service, tracer_of};
use pattern::Pattern;
use support::{RedisServer, Scratch, eventually};

/// Runs it to its end; whether the kernel says that it was dumped.
fn crash(command: &mut Command) -> bool {
    let status = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("it starts");
    status.core_dumped()
}

const NULL: &str = r#"
#include <stdio.h>
static int inner(int *where) { return *where; }
static int outer(int *where) { return inner(where) + 1; }
int main(void) { printf("about to crash\n"); fflush(stdout); return outer(0); }
"#;

/// Threads, a fork that crashes on its own, and a change of user: all at once, untraced.
const MANY: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
extern char **environ;
static pthread_barrier_t all;
static void *idle(void *x) { pthread_barrier_wait(&all); for (;;) pause(); return x; }
static int divide(int by) { return 100 / by; }
static void *worker(void *x) { pthread_setname_np(pthread_self(), "worker-7"); pthread_barrier_wait(&all); return (void *)(long)divide(x != 0); }
static int fell(volatile int *x) { return *x; }
int main(int n, char **v) {
  pthread_t t;
  if (!strcmp(v[1], "rest")) for (;;) pause();
  if (!strcmp(v[1], "fork")) { environ = 0; if (!fork()) return fell(0); wait(0); for (;;) pause(); }
  pthread_barrier_init(&all, 0, 17);
  for (int i = 0; i < 16; i++) pthread_create(&t, 0, idle, 0);
  pthread_create(&t, 0, worker, 0);
  for (;;) pause();
}
"#;

#[test]
fn services_are_handed_over_by_the_kernel() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("kernel");
    let folder = Scratch::new("ka");
    let Some(_pattern) = Pattern::take(&folder) else {
        return;
    };
    let null = c(&programs, "null", NULL);
    let many = c(&programs, "many", MANY);
    let services = [
        service("null", &null, ""),
        service("rest", &many, "args = [\"rest\"]"),
        service("threads", &many, "args = [\"threads\"]"),
        service("fork", &many, "args = [\"fork\"]"),
        service("traced", &null, "crash = \"ptrace\""),
    ]
    .concat();
    let text = format!("{}{services}", agent::head(&folder, Some(&server)));
    let agent = Agent::start_in(folder, &text);
    // Nobody is traced who need not be.
    agent.wait_for("rest", "ready");
    let pid = agent.service("rest")["pid"].as_i64().expect("a pid");
    assert_eq!(tracer_of(pid), Some(0));

    let report = reported(&server, "null");
    assert_top(&report, &["inner", "outer", "main"]);
    assert_eq!(report["signal"]["name"], "SIGSEGV");
    assert_eq!(report["signal"]["code"], "SEGV_MAPERR");
    assert_eq!(report["log"][0], "about to crash");
    agent.wait_for("null", "failed");
    assert_eq!(agent.service("null")["exit"], 139);
    assert_eq!(agent.service("null")["crash_id"], report["crash_id"]);
    let events = events(&server, "null");
    let at = |name: &str| events.iter().position(|event| event == name);
    assert!(
        at("crash").is_some() && at("crash") < at("exit"),
        "{events:?}"
    );
    let core = record(&agent, &report).join("core");
    assert!(fs::metadata(&core).expect("a core file").len() < 1 << 20);

    let report = reported(&server, "threads");
    assert_eq!(report["signal"]["name"], "SIGFPE");
    assert_eq!(report["threads"][0]["name"], "worker-7");
    assert_top(&report, &["divide", "worker"]);
    assert_eq!(report["threads"].as_array().map(Vec::len), Some(18));

    // A fork that hides whose it is, is known by its parent.
    let report = reported(&server, "fork");
    assert_top(&report, &["fell", "main"]);
    assert_eq!(agent.service("fork")["state"], "ready");

    // Traced as the configuration says, and told once.
    assert_top(&reported(&server, "traced"), &["inner", "outer", "main"]);
    agent.wait_for("traced", "failed");
    for name in ["null", "threads", "fork", "traced"] {
        assert_eq!(of(&server, name, "crash").len(), 1, "{name}");
    }
}

#[test]
fn what_is_no_service_is_kept_and_told_under_its_name() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("kernel");
    let folder = Scratch::new("ka");
    let Some(_pattern) = Pattern::take(&folder) else {
        return;
    };
    let stranger = c(&programs, "stranger", NULL);
    let private = c(
        &programs,
        "private",
        &NULL.replace(
            "int main(void) {",
            "#include <sys/prctl.h>\nint main(void) { prctl(PR_SET_NAME, \"p\");",
        ),
    );
    let text = format!(
        "{}{}",
        agent::head(&folder, Some(&server)),
        service("other", Path::new("/bin/sleep"), "args = [\"1000\"]")
    );
    let agent = Agent::start_in(folder, &text);
    agent.wait_for("other", "ready");
    assert!(crash(&mut Command::new(&stranger)));
    let report = reported(&server, "stranger");
    assert_top(&report, &["inner", "outer", "main"]);
    assert_eq!(report["service"], "stranger");
    assert!(of(&server, "stranger", "status").is_empty());
    assert!(agent.service("other")["crash_id"].is_null());

    // Asked to quit, not crashed.
    let mut quits = Command::new("sh");
    quits.args(["-c", "kill -QUIT $$"]);
    // SAFETY: signal is async-signal-safe.
    unsafe {
        quits.pre_exec(|| {
            // Ignored in what a shell runs in the background.
            libc::signal(libc::SIGQUIT, libc::SIG_DFL);
            Ok(())
        });
    }
    assert!(crash(&mut quits));

    // Replaced while it ran: the inode still tells.
    let gone = c(
        &programs,
        "gone",
        &NULL.replace(
            "int main(void) {",
            "#include <unistd.h>\nint main(int n, char **v) { unlink(v[0]);",
        ),
    );
    assert!(crash(&mut Command::new(&gone)));
    let report = reported(&server, "gone");
    assert_top(&report, &["inner", "outer", "main"]);
    assert_eq!(report["threads"][0]["frames"][0]["line"], 3);

    // Its files are seen by nobody but itself, and its numbers are of its own.
    let inside = Scratch::new("kn");
    let mut hidden = Command::new("unshare");
    hidden
        .args(["--mount", "--pid", "--fork", "--mount-proc", "sh", "-c"])
        .arg(format!(
            "mount -t tmpfs none {0} && cp {1} {0}/boxed && {0}/boxed; true",
            inside.path().display(),
            private.display()
        ));
    crash(&mut hidden);
    let report = reported(&server, "boxed");
    assert_top(&report, &["inner", "outer", "main"]);

    // A root of its own.
    let root = Scratch::new("kr");
    let jailed = c_with(&root, "jailed", NULL, &["-static"]);
    let mut command = Command::new("/jailed");
    let path = root.path().to_owned();
    // SAFETY: chroot and chdir are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            std::os::unix::fs::chroot(&path)?;
            std::env::set_current_dir("/")
        });
    }
    assert!(jailed.exists() && crash(&mut command));
    assert_top(&reported(&server, "jailed"), &["inner", "outer", "main"]);
    let listed = agent.ask(&["crashes"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(
        listed.contains("-stranger-") && listed.contains("inner at"),
        "{listed}"
    );
}

#[test]
fn while_no_agent_runs_it_is_kept_for_the_next_one() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("kernel");
    let folder = Scratch::new("ka");
    let Some(_pattern) = Pattern::take(&folder) else {
        return;
    };
    let text = format!(
        "{}{}",
        agent::head(&folder, Some(&server)),
        service("orphan", Path::new("/bin/sleep"), "args = [\"1000\"]")
    );
    folder.file("agent.toml", &text);
    let stranger = c(&programs, "stranger", NULL);
    assert!(crash(&mut Command::new(&stranger)));
    // As a service of an agent that was killed.
    assert!(crash(
        Command::new(&stranger).env("AGENT_SERVICE", "orphan")
    ));
    // Others may crash on this machine at the same time.
    let kept = || {
        let records = fs::read_dir(folder.join("crashes")).into_iter().flatten();
        let paths = records.flatten().map(|record| record.path());
        let ours = paths.filter(|path| {
            let name = path.to_string_lossy();
            name.contains("-stranger-") || name.contains("-orphan-")
        });
        ours.filter(|path| path.join("left.json").exists()).count()
    };
    eventually("both are kept", || kept() == 2);
    let agent = Agent::start_beside(&folder, &text);
    for name in ["stranger", "orphan"] {
        assert_top(&reported(&server, name), &["inner", "outer", "main"]);
    }
    eventually("nothing waits", || kept() == 0);
    let report = reported(&server, "orphan");
    assert_eq!(agent.service("orphan")["crash_id"], report["crash_id"]);
    assert_eq!(agent.service("orphan")["state"], "ready");
}
