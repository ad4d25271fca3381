//! `agent logs`: the last lines, those that follow, with Redis and without.

#[path = "support/agent.rs"]
mod agent;
mod support;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};

use agent::{AGENT, Agent, die_with_parent, head};
use support::{RedisServer, Scratch, eventually};

const TALK: &str = "
[service.talk]
executable = \"/bin/sh\"
args = [\"-c\", '''for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; sleep 0.02; done; exec sleep 1000''']
[service.calm]
executable = \"/bin/sh\"
stream_name = \"other\"
args = [\"-c\", \"echo calm; exec sleep 1000\"]
";

fn logs(agent: &Agent, words: &[&str]) -> Output {
    command(agent, words).output().expect("it runs")
}

fn command(agent: &Agent, words: &[&str]) -> Command {
    let mut command = Command::new(AGENT);
    command
        .arg("logs")
        .args(words)
        .env("AGENT_CONFIG", agent.folder.join("agent.toml"))
        .stdin(Stdio::null());
    die_with_parent(&mut command);
    command
}

/// The lines without their times.
fn texts(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| {
            let (time, text) = line.split_at("2026-11-22 10:30:00.123 ".len());
            assert!(time.starts_with("20") && time.ends_with(' '), "{line}");
            text.to_owned()
        })
        .collect()
}

#[test]
fn the_last_lines_by_service_and_source() {
    let server = RedisServer::start(&[]);
    let agent = Agent::start(Some(&server), TALK);
    eventually("all lines", || texts(&logs(&agent, &[])).len() == 11);
    let out = logs(&agent, &["-n", "2", "--source", "stdout", "talk"]);
    assert_eq!(texts(&out), ["talk out 4", "talk out 5"]);
    assert_eq!(out.status.code(), Some(0));
    let err = logs(&agent, &["--source=stderr", "-n3", "talk"]);
    assert_eq!(texts(&err), ["talk err 3", "talk err 4", "talk err 5"]);
    assert_eq!(texts(&logs(&agent, &["calm"])), ["calm calm"]);
    assert_eq!(logs(&agent, &["-n", "0"]).stdout, b"");
    let unknown = logs(&agent, &["tal"]);
    assert_eq!(unknown.status.code(), Some(1));
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert_eq!(
        said,
        "agent: logs: no service \"tal\"; did you mean talk?\n"
    );
    assert_eq!(logs(&agent, &["--sauce", "x"]).status.code(), Some(2));
}

#[test]
fn while_redis_is_away_the_journal_is_shown() {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let folder = Scratch::new("logs-away");
    let agent = Agent::start_beside(
        &folder,
        &format!("{}max_len = 0\n{TALK}", head(&folder, Some(&server))),
    );
    eventually("all lines", || texts(&logs(&agent, &[])).len() == 11);
    let out = logs(&agent, &["-n", "2", "--source", "stdout", "talk"]);
    assert_eq!(texts(&out), ["talk out 4", "talk out 5"]);
    assert_eq!(out.status.code(), Some(1));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("showing what waits in the journal"), "{said}");
    // Following it over the return of Redis shows every line once.
    let mut follower = command(&agent, &["-f", "--source", "stdout", "talk"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut lines = BufReader::new(follower.stdout.take().expect("piped")).lines();
    let mut words = BufReader::new(follower.stderr.take().expect("piped")).lines();
    let mut next = || lines.next().expect("a line").expect("text");
    for number in 1..=5 {
        assert!(next().ends_with(&format!("talk out {number}")));
    }
    server.up();
    let back = |word: &str| word == "agent: Redis is back";
    assert!(words.by_ref().any(|word| back(&word.expect("text"))));
    assert_eq!(agent.ask(&["restart", "talk"]).status.code(), Some(0));
    for number in 1..=5 {
        assert!(next().ends_with(&format!("talk out {number}")));
    }
    // SAFETY: plain system call, of a child that we own.
    unsafe { libc::kill(follower.id() as i32, libc::SIGTERM) };
    assert!(!follower.wait().expect("it ends").success());
}

#[test]
fn nobody_listens_and_nobody_is_told() {
    let server = RedisServer::start(&[]);
    let services = "[service.many]\nexecutable = \"/usr/bin/seq\"\nargs = [\"20000\"]\n\
                    restart = \"never\"\nstream = { max_len = 0 }\n";
    let agent = Agent::start(Some(&server), services);
    eventually("all lines", || {
        texts(&logs(&agent, &["-n", "30000"])).len() == 20_000
    });
    let mut head = command(&agent, &["-f", "-n", "30000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut first = String::new();
    let mut out = BufReader::new(head.stdout.take().expect("piped"));
    out.read_line(&mut first).expect("a line");
    drop(out);
    assert!(first.ends_with("many 1\n"), "{first}");
    assert!(head.wait().expect("it ends").success());
    let mut said = String::new();
    let mut errors = head.stderr.take().expect("piped");
    errors.read_to_string(&mut said).expect("text");
    assert_eq!(said, "");
}

/// As the README's tour: nothing but `AGENT_SOCKET` says where the agent is.
#[test]
fn the_running_agent_says_where_its_lines_are() {
    let server = RedisServer::start(&[]);
    let agent = Agent::start(Some(&server), TALK);
    let by_socket = |words: &[&str]| agent.ask(words);
    eventually("all lines", || texts(&by_socket(&["logs"])).len() == 11);
    assert_eq!(texts(&by_socket(&["logs", "calm"])), ["calm calm"]);
    drop(agent);

    // And without any file: one command.
    let folder = Scratch::new("logs-command");
    let url = format!("unix://{}", server.socket().display());
    let mut run = Command::new(AGENT);
    run.args(["run", "--redis", &url, "--name", "one", "--"])
        .args(["/bin/sh", "-c", "echo hello; exec sleep 1000"])
        .env("AGENT_RUNTIME_DIR", folder.path())
        .env("AGENT_STATE_DIR", folder.path())
        .env_remove("AGENT_CONFIG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    die_with_parent(&mut run);
    let mut run = run.spawn().expect("it runs");
    let ask = || {
        let mut logs = Command::new(AGENT);
        logs.arg("logs")
            .env("AGENT_SOCKET", folder.join("agent.sock"))
            .env_remove("AGENT_CONFIG");
        logs.output().expect("it runs")
    };
    eventually("its line", || texts(&ask()) == ["one hello"]);
    run.kill().expect("ours");
    run.wait().expect("ours");
}

#[test]
fn a_reader_that_is_gone_ends_what_waits_for_the_next_line() {
    let server = RedisServer::start(&[]);
    let agent = Agent::start(Some(&server), TALK);
    eventually("all lines", || texts(&logs(&agent, &[])).len() == 11);
    for verb in ["logs", "events"] {
        let mut follow = Command::new(AGENT);
        follow
            .args([verb, "-f"])
            .env("AGENT_SOCKET", agent.folder.join("agent.sock"))
            .env("AGENT_CONFIG", agent.folder.join("agent.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        die_with_parent(&mut follow);
        let mut follow = follow.spawn().expect("it runs");
        let mut out = BufReader::new(follow.stdout.take().expect("piped"));
        let mut first = String::new();
        out.read_line(&mut first).expect("a line");
        drop(out);
        // Nothing happens any more that it could have been woken by.
        eventually(verb, || follow.try_wait().expect("a child").is_some());
    }
}

#[test]
fn what_cannot_be_written_is_told() {
    let server = RedisServer::start(&[]);
    let agent = Agent::start(Some(&server), TALK);
    eventually("all lines", || texts(&logs(&agent, &[])).len() == 11);
    for verb in ["logs", "status", "events", "graph"] {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let output = Command::new(AGENT)
            .arg(verb)
            .env("AGENT_SOCKET", agent.folder.join("agent.sock"))
            .env("AGENT_CONFIG", agent.folder.join("agent.toml"))
            .stdout(full.expect("a device"))
            .stderr(Stdio::piped())
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{verb}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("No space left"), "{verb}: {said}");
    }
}

/// `url = ""`: the journal is where lines stay, the newest of them.
#[test]
fn without_redis_the_journal_is_the_store() {
    let folder = Scratch::new("logs-none");
    let configured = |services: &str| {
        let run = folder.path();
        format!(
            "[agent]\nruntime_dir = {run:?}\nstate_dir = {run:?}\n[redis]\nurl = \"\"\n\
             [spool]\nmemory = \"1MiB\"\ndisk = \"2MiB\"\noverflow = \"block\"\n{services}"
        )
    };
    let mut agent = Agent::start_beside(&folder, &configured(TALK));
    eventually("all lines", || texts(&logs(&agent, &[])).len() == 11);
    assert_eq!(logs(&agent, &[]).stderr, b"");
    assert_eq!(agent.status()["agent"]["redis"]["state"], "none");
    assert_eq!(agent.ask(&["--probe", "--ready"]).status.code(), Some(0));
    let begun = std::time::Instant::now();
    assert_eq!(agent.stop().code(), Some(0));
    assert!(begun.elapsed().as_millis() < 1_900, "nobody is waited for");
    // The next life goes on, and the oldest lines make room.
    let loud = "[service.loud]\nexecutable = \"/usr/bin/seq\"\nargs = [\"400000\"]\n\
                restart = \"never\"\n";
    let mut agent = Agent::start_beside(&folder, &configured(&format!("{TALK}{loud}")));
    assert_eq!(
        texts(&logs(&agent, &["-n", "11", "talk"]))[0],
        "talk out 1",
        "of the life before"
    );
    agent.wait_for("loud", "done");
    eventually("the newest are there", || {
        let kept = texts(&logs(&agent, &["-n", "500000", "loud"]));
        kept.last().is_some_and(|last| last == "loud 400000")
    });
    let size: u64 = std::fs::read_dir(folder.join("spool"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").metadata().expect("data").len())
        .sum();
    assert!(size <= 2 << 20, "{size}");
    let kept = texts(&logs(&agent, &["-n", "500000", "loud"]));
    let numbers: Vec<u64> = kept.iter().map(|line| line[5..].parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    assert!(numbers.len() > 50_000, "{}", numbers.len());
    // The quiet ones lost nothing, and nothing counts as lost.
    assert_eq!(texts(&logs(&agent, &["talk"])).len(), 20);
    assert_eq!(agent.status()["agent"]["redis"]["dropped"], 0);
    assert_eq!(agent.stop().code(), Some(0));
}
