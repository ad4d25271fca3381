//! `agent events`, `agent wait` and `agent top` against the whole agent.

#[path = "support/agent.rs"]
mod agent;
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent::{AGENT, Agent};
use serde_json::Value;
use support::{RedisServer, eventually};

fn client(agent: &Agent, words: &[&str]) -> Command {
    let mut command = Command::new(AGENT);
    command
        .args(words)
        .env("AGENT_SOCKET", agent.folder.join("agent.sock"))
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    agent::die_with_parent(&mut command);
    command
}

fn events(agent: &Agent) -> Vec<Value> {
    let output = agent.ask(&["events", "--json"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn of<'e>(events: &'e [Value], service: &str, event: &str) -> Vec<&'e Value> {
    let wanted = |it: &&Value| it["service"] == service && it["event"] == event;
    events.iter().filter(wanted).collect()
}

const SERVICES: &str = "[service.s]\nexecutable = '/bin/sleep'\nargs = ['1000']\n\
    [service.ends]\nexecutable = '/bin/sh'\nargs = ['-c', 'exit 3']\nrestart = 'never'\n";

#[test]
fn what_happens_is_told_to_who_asks_and_to_who_follows() {
    let server = RedisServer::start(&[]);
    let checked = "[[service.s.check]]\nname = 'port'\ntcp = '127.0.0.1:1'\ninterval = '100ms'\n\
                   failures = 1\naction = 'none'\n";
    let mut agent = Agent::start(Some(&server), &format!("{SERVICES}{checked}"));
    let follower = client(&agent, &["events", "-f", "--json"])
        .stdout(Stdio::piped())
        .spawn();
    let mut follower = follower.expect("it runs");
    eventually("the check is told", || {
        !of(&events(&agent), "s", "health").is_empty()
    });
    let all = events(&agent);
    let health = of(&all, "s", "health")[0];
    assert_eq!(
        (&health["check"], &health["verdict"]),
        (&"port".into(), &"unhealthy".into())
    );
    let exit = of(&all, "ends", "exit")[0];
    assert_eq!(exit["code"], 3);
    let pid = of(&all, "s", "start")[0]["pid"].clone();
    assert_eq!(pid, agent.service("s")["pid"]);
    let states: Vec<String> = of(&all, "ends", "state")
        .iter()
        .map(|event| event["state"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(states, ["starting", "ready", "stopping", "failed"]);
    assert!(
        all.iter()
            .all(|event| event["time_ms"].is_u64() && event["message"].is_string())
    );
    eventually("Redis is told", || {
        events(&agent).iter().any(|event| event["event"] == "redis")
    });
    assert!(agent.ask(&["stop", "s"]).status.success());
    assert_eq!(agent.stop().code(), Some(0));
    // It ends with the agent, and has heard everything.
    let mut text = String::new();
    follower
        .stdout
        .take()
        .expect("piped")
        .read_to_string(&mut text)
        .expect("UTF-8");
    assert_eq!(follower.wait().expect("a child of ours").code(), Some(0));
    let heard: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(heard[..all.len()], all);
    let last = |event: &str| {
        of(&heard, "s", event)
            .last()
            .copied()
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(last("state")["state"], "stopped");
    assert_eq!(last("exit")["signal"], "SIGTERM");
    assert_eq!(
        heard
            .iter()
            .filter(|event| event["event"] == "shutdown")
            .count(),
        1
    );
}

#[test]
fn a_pool_that_runs_empty_is_told_and_that_it_rose() {
    let script = "read line < $0; echo '{{__healthpool__api_beats}}'; exec sleep 1000";
    let folder = support::Scratch::new("pools");
    let fifo = folder.join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .expect("mkfifo")
            .success()
    );
    let service = format!(
        "[service.s]\nexecutable = '/bin/sh'\nargs = ['-c', {script:?}, {fifo:?}]\n\
         [service.s.health.api]\ninit = 5\ncap = 50\ndepletion_rate = 10\nreplenish_rate = 45\n"
    );
    let mut agent = Agent::start(None, &service);
    eventually("it runs empty", || {
        of(&events(&agent), "s", "pool")
            .iter()
            .any(|event| event["health"] == 0)
    });
    std::fs::write(&fifo, "go\n").expect("a reader");
    eventually("it rises", || {
        of(&events(&agent), "s", "pool")
            .iter()
            .any(|event| event["health"].as_i64() > Some(0))
    });
    assert!(
        of(&events(&agent), "s", "pool")
            .iter()
            .all(|event| event["pool"] == "api")
    );
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_reader_that_does_not_read_holds_up_nothing() {
    let mut agent = Agent::start(
        None,
        "[service.s]\nexecutable = '/bin/true'\nrestart = 'always'\n\
        backoff = { initial = '1ms', max = '1ms' }\nstart_limit = { burst = 0 }\n",
    );
    let mut stuck = client(&agent, &["events", "-f", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    // A restart is half a dozen events: more than are kept, and more than a pipe holds.
    let restarts = || agent.service("s")["restarts"].as_u64().unwrap_or(0);
    support::within(Duration::from_secs(60), "it restarts on and on", || {
        restarts() > 300
    });
    assert_eq!(events(&agent).len(), 1000);
    let probe = agent.ask(&["--probe"]);
    let line = String::from_utf8_lossy(&probe.stdout).into_owned();
    // Who writes to a full pipe is the client: the agent answers at once.
    assert!(!line.contains("did not answer"), "{line}");
    let mut lines = BufReader::new(stuck.stdout.take().expect("piped")).lines();
    let told = lines.by_ref().take(20_000).find_map(|line| {
        let event: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        (event["event"] == "dropped").then(|| event["count"].as_u64())
    });
    assert!(told.flatten() > Some(0), "{told:?}");
    end(&mut stuck);
    assert_eq!(agent.stop().code(), Some(0));
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn waiting_for_a_state() {
    let slow = "[service.slow]\nexecutable = '/bin/sh'\nargs = ['-c', 'sleep 1; echo go; exec sleep 1000']\n\
                ready = { log = 'go' }\n";
    let mut agent = Agent::start(None, &format!("{SERVICES}{slow}"));
    let wait = |words: &[&str]| {
        let begun = Instant::now();
        let output = agent.ask(&[&["wait"], words].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap_or(-1), text, begun.elapsed())
    };
    let (code, text, _) = wait(&["slow", "s", "--state", "ready"]);
    assert_eq!((code, text.as_str()), (0, ""));
    assert_eq!(agent.service("slow")["state"], "ready");
    // Already there: at once.
    assert_eq!(
        wait(&["s", "slow", "--state", "ready", "--timeout", "1ms"]).0,
        0
    );
    assert_eq!(wait(&["ends", "--state", "failed"]).0, 0);
    let (code, text, took) = wait(&["s", "ends", "--state", "backoff", "--timeout", "300ms"]);
    let expected = "agent: not backoff in time: s is ready, ends is failed\n";
    assert_eq!((code, text.as_str()), (1, expected));
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(3),
        "{took:?}"
    );
    assert_eq!(
        wait(&["none", "--state", "ready"]).1,
        "agent: no service \"none\"\n"
    );
    for wrong in [&["s"][..], &["--state", "ready"], &["s", "--state", "redy"]] {
        assert_eq!(wait(wrong).0, 2, "{wrong:?}");
    }
    let waiting = client(&agent, &["wait", "s", "--state", "stopped"]).spawn();
    let mut waiting = waiting.expect("it runs");
    assert!(agent.ask(&["restart", "s"]).status.success());
    assert_eq!(
        waiting.try_wait().expect("a child of ours"),
        None,
        "not by a restart"
    );
    assert!(agent.ask(&["stop", "s"]).status.success());
    assert_eq!(waiting.wait().expect("a child of ours").code(), Some(0));
    // Nobody waits for an agent that ends.
    let mut waiting = client(&agent, &["wait", "s", "--state", "ready"])
        .spawn()
        .expect("it runs");
    eventually("it waits", || events(&agent).len() > 5);
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(waiting.wait().expect("a child of ours").code(), Some(1));
}

#[test]
fn an_agent_that_is_about_to_come_is_waited_for() {
    let folder = support::Scratch::new("coming");
    let text = agent::head(&folder, None) + SERVICES;
    let mut waiting = Command::new(AGENT)
        .args(["wait", "s", "--state", "ready"])
        .env("AGENT_SOCKET", folder.join("agent.sock"))
        .stderr(Stdio::null())
        .spawn()
        .expect("it runs");
    let mut agent = Agent::start_in(folder, &text);
    assert_eq!(waiting.wait().expect("a child of ours").code(), Some(0));
    assert_eq!(agent.stop().code(), Some(0));
}

/// A terminal of our own, as wide and high as told.
fn terminal(columns: u16, rows: u16) -> (std::fs::File, OwnedFd) {
    let (mut master, mut slave) = (0, 0);
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: both descriptors are written, the rest is read or null.
    let opened = unsafe {
        libc::openpty(
            &mut master,
            &mut slave,
            std::ptr::null_mut(),
            std::ptr::null(),
            &size,
        )
    };
    assert_eq!(opened, 0);
    // SAFETY: both are ours alone.
    unsafe {
        (
            std::fs::File::from_raw_fd(master),
            OwnedFd::from_raw_fd(slave),
        )
    }
}

/// What has been written to the terminal so far.
fn shown(master: &mut std::fs::File, text: &mut String, wanted: &str) {
    let mut chunk = [0; 65536];
    let until = Instant::now() + Duration::from_secs(20);
    while !text.contains(wanted) && Instant::now() < until {
        let count = master.read(&mut chunk).unwrap_or(0);
        text.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
    let end: String = text
        .chars()
        .skip(text.chars().count().saturating_sub(500))
        .collect();
    assert!(text.contains(wanted), "no {wanted:?}; the end is {end:?}");
}

fn mode(slave: &OwnedFd) -> libc::termios {
    // SAFETY: plain data, written by the call.
    unsafe {
        let mut mode: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(slave.as_raw_fd(), &mut mode), 0);
        mode
    }
}

#[test]
fn a_live_view_leaves_the_terminal_as_it_was() {
    let mut agent = Agent::start(None, SERVICES);
    agent.wait_for("ends", "failed");
    for way_out in ["q", "\x03", "TERM"] {
        let (mut master, slave) = terminal(100, 20);
        let before = mode(&slave);
        let mut command = client(&agent, &["top"]);
        command.env("TERM", "xterm");
        let stdio = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let mut top = command
            .stdin(stdio())
            .stdout(stdio())
            .spawn()
            .expect("it runs");
        let mut text = String::new();
        shown(&mut master, &mut text, "2 services");
        assert!(text.starts_with("\x1b[?1049h"), "{text:?}");
        // Raw: no echo, no signal of Ctrl-C.
        assert_ne!(mode(&slave).c_lflag, before.c_lflag);
        master.write_all(b"c").expect("a terminal");
        // It is redrawn in another size.
        let size = libc::winsize {
            ws_row: 9,
            ws_col: 40,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the size is read.
        unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        // SAFETY: of a child of ours, which has no controlling terminal to tell it.
        unsafe { libc::kill(top.id() as i32, libc::SIGWINCH) };
        text.clear();
        shown(&mut master, &mut text, "\x1b[?2026l");
        match way_out {
            // SAFETY: of a child of ours.
            "TERM" => drop(unsafe { libc::kill(top.id() as i32, libc::SIGTERM) }),
            keys => master.write_all(keys.as_bytes()).expect("a terminal"),
        }
        shown(&mut master, &mut text, "\x1b[?1049l");
        assert_eq!(top.wait().expect("a child of ours").code(), Some(0));
        assert_eq!(mode(&slave).c_lflag, before.c_lflag);
        assert!(text.contains("\x1b[?25h"), "the cursor is back");
    }
    let once = agent.ask(&["top"]);
    let text = String::from_utf8_lossy(&once.stdout).into_owned();
    assert!(once.status.success());
    assert!(
        text.contains("2 services · 1 ready · 1 failed") && !text.contains('\x1b'),
        "{text}"
    );
    assert_eq!(agent.stop().code(), Some(0));
    let gone = agent.ask(&["top"]);
    assert_eq!(gone.status.code(), Some(1));
}
