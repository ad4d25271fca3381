//! `agent --probe` against what is: every state of the agent, of its services and of Redis.
//!
//! `cargo test --test probe -- --nocapture` prints the table.

#[path = "support/agent.rs"]
mod agent;
mod support;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use agent::{AGENT, Agent, head};
use support::{RedisServer, Scratch, eventually};

/// A service, and what is waited for before it is asked.
struct Case {
    name: &'static str,
    service: &'static str,
    /// A field of its status, and the value it must have.
    until: (&'static str, &'static str),
    live: bool,
    ready: bool,
    /// What the live probe's line must hold.
    says: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "ready",
        service: "executable = '/bin/sleep'\nargs = ['1000']",
        until: ("state", "ready"),
        live: true,
        ready: true,
        says: "healthy: live: s",
    },
    Case {
        name: "done",
        service: "executable = '/bin/true'\ntype = 'oneshot'",
        until: ("state", "done"),
        live: true,
        ready: true,
        says: "healthy: live: s",
    },
    Case {
        name: "waiting",
        service: "executable = '/bin/sleep'\nargs = ['1000']\nrequires = ['before']\n\
                  [service.before]\nexecutable = '/bin/sleep'\nargs = ['1000']\ntype = 'oneshot'\n\
                  critical = false",
        until: ("state", "waiting"),
        live: true,
        ready: false,
        says: "healthy: live: s",
    },
    Case {
        name: "first failed start",
        service: "executable = '/bin/false'\nbackoff = { initial = '1h', max = '1h' }",
        until: ("state", "backoff"),
        live: true,
        ready: false,
        says: "healthy: live: s",
    },
    Case {
        name: "fails again and again",
        service: "executable = '/bin/false'\nbackoff = { initial = '300ms', max = '1h' }\n\
                  start_limit = { burst = 0 }",
        until: ("restarts", "2"),
        live: false,
        ready: false,
        says: "unhealthy: s fails again and again",
    },
    Case {
        name: "failed",
        service: "executable = '/bin/false'\nrestart = 'never'",
        until: ("state", "failed"),
        live: false,
        ready: false,
        says: "unhealthy: s failed",
    },
    Case {
        name: "failed, not critical",
        service: "executable = '/bin/false'\nrestart = 'never'\ncritical = false",
        until: ("state", "failed"),
        live: true,
        ready: true,
        says: "healthy: live",
    },
    Case {
        name: "unhealthy by its check",
        service: "executable = '/bin/sleep'\nargs = ['1000']\n[[service.s.check]]\n\
                  name = 'port'\ntcp = '127.0.0.1:1'\ninterval = '100ms'\nfailures = 1\n\
                  action = 'none'",
        until: ("reason", "unhealthy by its check port"),
        live: false,
        ready: false,
        says: "unhealthy: s is unhealthy by its check port",
    },
    Case {
        name: "healthy by its check",
        service: "executable = '/bin/sleep'\nargs = ['1000']\n[[service.s.check]]\n\
                  name = 'here'\nexec = ['true']\ninterval = '100ms'\nfailures = 1",
        until: ("state", "ready"),
        live: true,
        ready: true,
        says: "healthy: live: s",
    },
];

fn row(redis: &str, what: &str, live: &Output, ready: &Output) -> String {
    let text = String::from_utf8_lossy(&live.stdout).into_owned();
    assert_eq!(text.lines().count(), 1, "one line: {text:?}");
    format!(
        "{redis:<6} {what:<24} live {}  ready {}  {}",
        live.status.code().unwrap_or(-1),
        ready.status.code().unwrap_or(-1),
        text.trim()
    )
}

fn code(good: bool) -> Option<i32> {
    Some(i32::from(!good))
}

#[test]
fn the_truth_table() {
    let mut table = Vec::new();
    let server = RedisServer::start(&[]);
    for (redis, word) in [(Some(&server), "up"), (None, "away")] {
        for case in CASES {
            let mut agent = Agent::start(redis, &format!("[service.s]\n{}\n", case.service));
            let (field, wanted) = case.until;
            eventually(case.name, || {
                let value = agent.service("s")[field].clone();
                value.as_str().map_or(value.to_string(), str::to_owned) == wanted
            });
            let connected = || agent.status()["agent"]["redis"]["state"] == "connected";
            eventually("Redis stands as it should", || {
                connected() == redis.is_some()
            });
            let (live, ready) = (agent.ask(&["--probe"]), agent.ask(&["--probe", "--ready"]));
            let shown = row(word, case.name, &live, &ready);
            assert_eq!(live.status.code(), code(case.live), "{shown}");
            let wanted = case.ready && redis.is_some();
            assert_eq!(ready.status.code(), code(wanted), "{shown}");
            assert!(shown.contains(case.says), "{shown}");
            // By name, each counts as critical.
            if case.name == "failed, not critical" {
                assert_eq!(agent.ask(&["--probe", "s"]).status.code(), Some(1));
            }
            table.push(shown);
            assert_eq!(agent.stop().code(), Some(0));
            let gone = agent.ask(&["--probe"]);
            assert_eq!(gone.status.code(), Some(1), "no agent");
        }
    }
    println!("{}", table.join("\n"));
}

#[test]
fn an_agent_that_hangs_is_unhealthy_within_the_second() {
    let services = "[service.s]\nexecutable = '/bin/sleep'\nargs = ['1000']\n";
    let agent = Agent::start(None, services);
    assert!(agent.ask(&["--probe"]).status.success());
    agent.freeze();
    let begun = Instant::now();
    let output = agent.ask(&["--probe"]);
    let took = begun.elapsed();
    agent.signal(libc::SIGCONT);
    assert_eq!(output.status.code(), Some(1));
    assert!(took < Duration::from_millis(1100), "{took:?}");
    agent.freeze();
    let begun = Instant::now();
    let output = agent.ask(&["--probe", "--timeout", "200ms"]);
    let took = begun.elapsed();
    agent.signal(libc::SIGCONT);
    assert_eq!(output.status.code(), Some(1));
    assert!(took < Duration::from_millis(500), "{took:?}");
    println!(
        "a stopped agent: {}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn in_a_root_that_holds_nothing_else() {
    // SAFETY: no arguments.
    if unsafe { libc::geteuid() } != 0 {
        return eprintln!("skipped: needs root for chroot");
    }
    let root = Scratch::new("scratch");
    std::fs::copy(AGENT, root.join("agent")).expect("a copy");
    std::fs::create_dir(root.join("run")).expect("a folder");
    let probe = |arguments: &[&str]| {
        Command::new("/usr/sbin/chroot")
            .arg(root.path())
            .arg("/agent")
            .args(arguments)
            .env_clear()
            .env("AGENT_SOCKET", "/run/agent.sock")
            .output()
            .expect("chroot runs")
    };
    assert_eq!(probe(&["--probe"]).status.code(), Some(1), "no agent yet");
    let folder = Scratch::new("outside");
    let run = root.join("run");
    let text = head(&folder, None).replace(
        &format!("runtime_dir = {:?}", folder.path()),
        &format!("runtime_dir = {run:?}"),
    ) + "[service.s]\nexecutable = '/bin/sleep'\nargs = ['1000']\n";
    let config = folder.file("agent.toml", &text);
    let mut agent = Command::new(AGENT);
    agent.args(["run", "--config"]).arg(config);
    agent::die_with_parent(&mut agent);
    let mut agent = agent
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the agent starts");
    eventually("healthy from inside the root", || {
        probe(&["--probe", "s"]).status.success()
    });
    let output = probe(&["--probe"]);
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(line, "healthy: live: s\n");
    agent.kill().expect("a child of ours");
    agent.wait().expect("a child of ours");
    assert_eq!(probe(&["--probe"]).status.code(), Some(1), "a dead agent");
}
