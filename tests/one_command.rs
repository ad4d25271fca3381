//! `agent run` with no file at all: one command, the standard places, maintenance.

mod support;
#[path = "support/wrapp.rs"]
mod wrapp;

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use support::{RedisServer, Scratch, eventually, messages, within};
use wrapp::{AGENT, Bare, copy_of_agent, die_with_parent, is_root, lives};

/// `agent run WORDS`, with folders of its own and Redis where `server` says.
fn run(server: &RedisServer, folder: &Scratch, words: &[&str]) -> Command {
    let mut command = Command::new(AGENT);
    command
        .arg("run")
        .args(words)
        .env("REDIS_ADDR", format!("127.0.0.1:{}", server.port()))
        .env("AGENT_RUNTIME_DIR", folder.path())
        .env("AGENT_STATE_DIR", folder.path())
        .env_remove("AGENT_CONFIG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    die_with_parent(&mut command);
    command
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

fn info(server: &RedisServer, name: &str) -> Vec<String> {
    messages(&mut server.client(1), &format!("logs:app:{name}:info"))
}

fn starts(server: &RedisServer, name: &str) -> usize {
    let texts = info(server, name);
    texts
        .iter()
        .filter(|text| text.starts_with("{{__NEW_RUN_"))
        .count()
}

#[test]
fn a_command_that_succeeds_is_done_and_so_is_the_agent() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("one");
    let words = ["--", "/bin/sh", "-c", "echo \"$1\"", "x", "--help and more"];
    let output = run(&server, &folder, &words).output().expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let texts = info(&server, "sh");
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert_eq!(texts[1], "--help and more");
}

#[test]
fn one_that_fails_is_started_again_and_the_third_failure_is_the_agents_end() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("one");
    let started = Instant::now();
    let words = ["--name", "job", "--", "/bin/sh", "-c", "exit 7"];
    let output = run(&server, &folder, &words).output().expect("it runs");
    assert_eq!(output.status.code(), Some(7), "{}", text(&output));
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(starts(&server, "job"), 3);

    // A failure that passes is got over.
    let mark = folder.join("mark");
    let script = format!(
        "[ -e {0} ] && exit 0; touch {0}; kill -SEGV $$",
        mark.display()
    );
    let words = ["--name", "once", "--", "/bin/sh", "-c", &script];
    let output = run(&server, &folder, &words).output().expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(starts(&server, "once"), 2);
}

#[test]
fn whether_it_is_started_again_may_be_said() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("one");
    let never = [
        "--restart",
        "never",
        "--name",
        "never",
        "--",
        "/bin/sh",
        "-c",
    ];
    for (script, code) in [("exit 7", 7), ("kill -TERM $$", 143), ("exit 0", 0)] {
        let words = [&never[..], &[script]].concat();
        let output = run(&server, &folder, &words).output().expect("it runs");
        assert_eq!(
            output.status.code(),
            Some(code),
            "{script}: {}",
            text(&output)
        );
    }
    assert_eq!(starts(&server, "never"), 3);

    let count = folder.join("count");
    let script = format!("echo x >> {}; sleep 0.05", count.display());
    let words = ["--restart", "always", "--", "/bin/sh", "-c", &script];
    let mut child = run(&server, &folder, &words).spawn().expect("it runs");
    eventually("it runs again and again", || {
        std::fs::read_to_string(&count).is_ok_and(|text| text.lines().count() >= 3)
    });
    assert_eq!(end(&mut child), 143, "its end by our TERM");

    let words = ["--restart", "sometimes", "--", "/bin/true"];
    let output = run(&server, &folder, &words).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("always, on-failure or never"));
}

/// Its exit code after TERM.
fn end(child: &mut Child) -> i32 {
    // SAFETY: plain system call, of a child that we own.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    let mut status = None;
    within(Duration::from_secs(20), "it ends", || {
        status = child.try_wait().expect("a child of ours");
        status.is_some()
    });
    let status = status.expect("it has ended");
    status
        .code()
        .unwrap_or_else(|| -status.signal().unwrap_or(0))
}

#[test]
fn what_is_no_program_is_told_with_the_shells_codes() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("one");
    let plain = folder.file("plain", "no program");
    for (program, code) in [
        ("no-such-program", 127),
        (plain.to_str().expect("UTF-8"), 126),
    ] {
        let output = run(&server, &folder, &["--", program])
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        assert!(text(&output).contains(program), "{}", text(&output));
    }
}

#[test]
fn help_says_what_becomes_of_one_command() {
    let output = Command::new(AGENT)
        .args(["run", "--help"])
        .output()
        .expect("it runs");
    let text = text(&output);
    for words in [
        "--restart WHEN",
        "the third",
        "exit\ncode: 128 + signal",
        "/etc/agent/run",
    ] {
        assert!(text.contains(words), "{words:?} in\n{text}");
    }
}

#[test]
fn lines_may_be_copied_to_stdout() {
    let folder = Scratch::new("tee");
    let config = folder.file(
        "agent.toml",
        &format!(
            "[agent]\ntee = true\nmain = \"job\"\nruntime_dir = {0:?}\nstate_dir = {0:?}\n\
             [redis]\nurl = \"unix:///nowhere.sock\"\n\
             [service.job]\nexecutable = \"/bin/sh\"\nargs = [\"-c\", \"echo out; echo err >&2\"]\nrestart = \"never\"\n",
            folder.path()
        ),
    );
    let output = Command::new(AGENT)
        .args(["run", "--config"])
        .arg(config)
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(0));
    let stdout = String::from_utf8_lossy(&output.stdout);
    let mut lines: Vec<&str> = stdout.lines().collect();
    lines.sort();
    assert_eq!(lines, ["err", "out"]);
}

#[test]
fn under_maintenance_nothing_runs_until_it_is_asked_for() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("maintenance");
    let pid = folder.join("pid");
    let script = format!("echo $$ > {}; exec sleep 1000", pid.display());
    let words = ["--name", "job", "--", "/bin/sh", "-c", &script];
    let mut child = run(&server, &folder, &words)
        .env("AGENT_MAINTENANCE", "1")
        .spawn()
        .expect("it runs");
    let ask = |words: &[&str]| {
        let mut command = Command::new(AGENT);
        command
            .args(words)
            .env("AGENT_SOCKET", folder.join("agent.sock"));
        command.output().expect("it runs")
    };
    eventually("it lives", || ask(&["--probe"]).status.success());
    let status = || -> serde_json::Value {
        serde_json::from_slice(&ask(&["status", "--json"]).stdout).unwrap_or_default()
    };
    assert_eq!(status()["services"][0]["state"], "stopped");
    assert_eq!(
        ask(&["--probe", "--ready"]).status.code(),
        Some(1),
        "not ready"
    );
    assert!(!pid.exists());
    assert!(ask(&["start", "job"]).status.success());
    eventually("it runs", || {
        std::fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n'))
    });
    let number: i32 = std::fs::read_to_string(&pid)
        .expect("a file")
        .trim()
        .parse()
        .expect("a pid");
    end(&mut child);
    assert!(!lives(number));
}

const MISSING: &str = "/etc/agent/agent.toml does not exist, and /etc/agent/run";

#[test]
fn with_nothing_to_run_pid_1_waits_and_anyone_else_is_told() {
    if !is_root() {
        return eprintln!("skipped: needs root for chroot and a PID namespace");
    }
    let bare = Bare::new();
    let output = Command::new("chroot")
        .arg(bare.folder.path())
        .args(["/agent", "run"])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains(MISSING), "{}", text(&output));

    let log = std::fs::File::create(bare.folder.join("log")).expect("a file");
    let mut child = bare
        .first("/agent", &[])
        .stderr(log)
        .spawn()
        .expect("it runs");
    let read = || std::fs::read_to_string(bare.folder.join("log")).unwrap_or_default();
    eventually("it says what it misses", || read().contains(MISSING));
    eventually("it answers", || {
        let mut probe = Command::new("chroot");
        probe.arg(bare.folder.path()).args(["/agent", "--probe"]);
        probe.output().is_ok_and(|output| output.status.success())
    });
    assert!(
        child.try_wait().expect("ours").is_none(),
        "it waits: {}",
        read()
    );

    // What is put there later runs after a HUP.
    bare.file(
        "etc/agent/agent.toml",
        "[service.late]\nexecutable = \"/agent\"\nargs = [\"--version\"]\nrestart = \"never\"\n",
    );
    let first = bare.process_with("/agent").expect("the waiting agent");
    let pid: i32 = first
        .file_name()
        .and_then(|n| n.to_str())
        .and_then(|n| n.parse().ok())
        .expect("a pid");
    // SAFETY: plain system call, of a grandchild that the test started.
    unsafe { libc::kill(pid, libc::SIGHUP) };
    eventually("it runs", || read().contains("[late] exited with code 0"));
    child.kill().expect("ours");
    child.wait().expect("ours");
}

#[test]
fn an_executable_run_is_the_one_command() {
    if !is_root() {
        return eprintln!("skipped: needs root for chroot and a PID namespace");
    }
    let server = RedisServer::start(&[]);
    let bare = Bare::new();
    bare.file("etc/agent/unused", "");
    copy_of_agent(&bare.folder.join("etc/agent"), "run");
    let run = bare.folder.join("etc/agent/run");
    let redis = format!("127.0.0.1:{}", server.port());
    let started = || {
        let mut command = bare.first("/agent", &["run"]);
        command.env("REDIS_ADDR", &redis);
        command
    };
    // `run` is the agent, which asked for nothing prints its help and ends with 2.
    let output = started().output().expect("it runs");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    let texts = info(&server, "run");
    assert!(
        texts.iter().any(|text| text.contains("Usage: agent")),
        "{texts:?}"
    );

    // What cannot be executed is not run, and said to be the reason.
    std::fs::set_permissions(&run, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .expect("chmod");
    let output = Command::new("chroot")
        .arg(bare.folder.path())
        .args(["/agent", "run"])
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output).contains("is not executable"),
        "{}",
        text(&output)
    );

    // A file wins, and a file that is named wins over both.
    bare.file(
        "etc/agent/agent.toml",
        "[service.x]\nexecutible = \"/bin/x\"\n",
    );
    let output = started().output().expect("it runs");
    assert!(
        text(&output).contains("/etc/agent/agent.toml:2:1"),
        "{}",
        text(&output)
    );
    let output = started()
        .env("AGENT_CONFIG", "/other.toml")
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("/other.toml"), "{}", text(&output));
}
