//! The whole agent: real binary, real processes, a real redis-server.

#[path = "support/agent.rs"]
mod agent;
mod support;

use std::time::{Duration, Instant};

use agent::{AGENT, Agent, head, lives};
use support::{Entry, RedisServer, Scratch, entries, eventually, messages};

fn sh(name: &str, script: &str, more: &str) -> String {
    format!(
        "\n[service.{name}]\nexecutable = \"/bin/sh\"\nargs = [\"-c\", '''{script}''']\n{more}\n"
    )
}

fn info(server: &RedisServer, name: &str) -> Vec<Entry> {
    entries(&mut server.client(1), &format!("logs:app:{name}:info"))
}

fn status(server: &RedisServer, name: &str) -> Vec<Entry> {
    entries(&mut server.client(1), &format!("logs:app:{name}:status"))
}

fn get(server: &RedisServer, key: &str) -> Option<String> {
    redis::cmd("GET").arg(key).query(&mut server.client(2)).ok()
}

#[test]
fn a_run_from_marker_to_marker() {
    let server = RedisServer::start(&[]);
    let script =
        "echo '  indented  '; echo; echo 'n {{count}}{{value:007}} end'; echo err >&2; exit 3";
    let mut agent = Agent::start(Some(&server), &sh("once", script, "restart = \"never\""));
    agent.wait_for("once", "failed");
    eventually("the run is closed", || {
        info(&server, "once")
            .last()
            .is_some_and(|entry| entry.message().starts_with("{{__END_RUN_"))
    });
    let lines = info(&server, "once");
    let first = lines[0].message();
    assert!(first.starts_with("{{__NEW_RUN_2"), "{first}");
    assert_eq!(first.len(), "{{__NEW_RUN_2026-11-22_10-30-00}}".len());
    assert!(
        lines
            .last()
            .is_some_and(|entry| entry.message().ends_with("_exit_3}}"))
    );
    let of = |source: &str| -> Vec<String> {
        lines
            .iter()
            .filter(|entry| entry.field("source").as_deref() == Some(source))
            .map(Entry::message)
            .collect()
    };
    assert_eq!(of("stdout"), ["  indented", "n  end"]);
    assert_eq!(of("stderr"), ["err"]);

    let status = status(&server, "once");
    let events: Vec<String> = status
        .iter()
        .map(|entry| entry.field("event").unwrap_or_else(|| "marker".to_owned()))
        .collect();
    assert_eq!(
        events,
        ["marker", "start", "ready", "exit", "marker", "failed"]
    );
    let exit = &status[3];
    assert_eq!(exit.message(), "Executable exited with code 3.");
    assert_eq!(exit.field("code").as_deref(), Some("3"));

    eventually("markers count", || {
        get(&server, "wrapp:once:count").as_deref() == Some("1")
    });
    assert_eq!(get(&server, "wrapp:once:value").as_deref(), Some("007"));
    eventually("the pool knows the exit", || {
        get(&server, "once:__healthpool__process_exit").as_deref() == Some("3")
    });
    assert_eq!(
        get(&server, "once:__healthpool__process_running").as_deref(),
        Some("0")
    );
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn redis_may_be_away_at_the_start_and_for_ever() {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let services = sh(
        "talker",
        "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done",
        "",
    );
    let mut agent = Agent::start(Some(&server), &services);
    agent.wait_for("talker", "ready");
    let probe = agent.ask(&["--probe"]);
    assert!(probe.status.success(), "live without Redis");
    let ready = agent.ask(&["--probe", "--ready"]);
    assert_eq!(ready.status.code(), Some(1), "not ready without Redis");
    std::thread::sleep(Duration::from_millis(500));
    server.up();
    eventually("ready with Redis", || {
        agent.ask(&["--probe", "--ready"]).status.success()
    });
    eventually("lines of before and after", || {
        info(&server, "talker").len() > 60
    });
    assert_eq!(agent.stop().code(), Some(0));
    let numbers: Vec<u64> = info(&server, "talker")
        .iter()
        .filter(|entry| entry.field("source").is_some())
        .map(|entry| entry.message().parse().expect("a number"))
        .collect();
    let wanted: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(
        numbers, wanted,
        "each line once, in order, from the first on"
    );
}

#[test]
fn a_flapping_service_backs_off_and_fails() {
    let server = RedisServer::start(&[]);
    let more = "backoff = { initial = \"20ms\", max = \"1s\" }\n\
                start_limit = { burst = 3, interval = \"60s\" }";
    let services = sh("flap", "exit 7", more) + &sh("steady", "sleep 1000", "");
    let mut agent = Agent::start(Some(&server), &services);
    agent.wait_for("flap", "failed");
    let service = agent.service("flap");
    assert_eq!(service["restarts"], 2, "three starts: {service}");
    assert_eq!(service["exit"], 7);
    eventually("the reason is told", || {
        status(&server, "flap")
            .iter()
            .any(|entry| entry.field("event").as_deref() == Some("failed"))
    });
    let delays: Vec<u64> = status(&server, "flap")
        .iter()
        .filter(|entry| entry.field("event").as_deref() == Some("restart"))
        .map(|entry| {
            entry
                .field("delay_ms")
                .expect("a delay")
                .parse()
                .expect("ms")
        })
        .collect();
    assert_eq!(delays.len(), 2);
    assert!(
        delays[0] == 20 && (36..=40).contains(&delays[1]),
        "{delays:?}"
    );
    let probe = agent.ask(&["--probe"]);
    assert_eq!(probe.status.code(), Some(1), "a critical service failed");
    assert!(agent.ask(&["--probe", "steady"]).status.success());
    assert_eq!(agent.ask(&["--probe", "nobody"]).status.code(), Some(1));
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn operators_stop_start_and_restart() {
    let server = RedisServer::start(&[]);
    let services = sh("a", "sleep 1000", "") + &sh("b", "sleep 1000", "requires = [\"a\"]");
    let mut agent = Agent::start(Some(&server), &services);
    agent.wait_for("b", "ready");
    let pid = agent.service("a")["pid"].as_i64().expect("a pid") as i32;
    assert!(agent.ask(&["stop", "a"]).status.success());
    assert!(!lives(pid), "stop returns when it has happened");
    assert_eq!(agent.service("a")["state"], "stopped");
    assert_ne!(agent.service("b")["state"], "ready", "b requires a");
    assert!(agent.ask(&["start", "a", "b"]).status.success());
    assert_eq!(agent.service("b")["state"], "ready");
    let before = agent.service("b")["pid"].clone();
    assert!(agent.ask(&["restart", "b"]).status.success());
    assert_ne!(agent.service("b")["pid"], before);
    let unknown = agent.ask(&["stop", "c"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains('c'));
    let table = agent.ask(&["status"]);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(text.contains("ready") && text.contains('a'), "{text}");
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn the_end_of_main_ends_the_agent_with_its_code() {
    for (script, code) in [("exit 5", 5), ("kill -SEGV $$", 139)] {
        let folder = Scratch::new("main");
        let text = head(&folder, None).replace("[agent]\n", "[agent]\nmain = \"job\"\n")
            + &sh("job", script, "restart = \"never\"")
            + &sh("side", "sleep 1000", "");
        let mut agent = Agent::start_in(folder, &text);
        assert_eq!(agent.wait().code(), Some(code), "{script}");
    }
}

#[test]
fn a_stubborn_service_and_everything_it_started_end() {
    let folder = Scratch::new("stubborn");
    let pids = folder.join("pids");
    let script = format!(
        "trap '' TERM; (setsid sleep 1000 & echo $! >> {0}); sleep 1000 & echo $! >> {0}; echo $$ >> {0}; wait; sleep 1000",
        pids.display()
    );
    let more = "stop = { signal = \"TERM\", timeout = \"300ms\" }";
    let mut agent = Agent::start(None, &sh("stubborn", &script, more));
    let read = || -> Vec<i32> {
        std::fs::read_to_string(&pids)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect()
    };
    eventually("all three live", || read().len() == 3);
    let start = Instant::now();
    assert_eq!(agent.stop().code(), Some(0));
    assert!(start.elapsed() >= Duration::from_millis(300), "TERM first");
    for pid in read() {
        eventually("it is gone", || !lives(pid));
    }
}

#[test]
fn services_die_with_a_killed_agent() {
    let folder = Scratch::new("killed");
    let file = folder.join("pid");
    let script = format!("echo $$ > {}; exec sleep 1000", file.display());
    let mut agent = Agent::start(None, &sh("child", &script, ""));
    let read = || -> Option<i32> { std::fs::read_to_string(&file).ok()?.trim().parse().ok() };
    eventually("it lives", || read().is_some_and(lives));
    agent.signal(libc::SIGKILL);
    agent.wait();
    let pid = read().expect("a pid");
    eventually("it died with the agent", || !lives(pid));
}

#[test]
fn a_grandchild_that_holds_the_pipe_does_not_hold_up_the_exit() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("late");
    // It hides from the agent: own session, own environment.
    let script = "setsid env -i /bin/sh -c 'sleep 1.5; echo late' & echo early; exit 0";
    let _ = folder;
    let mut agent = Agent::start(Some(&server), &sh("parent", script, "restart = \"never\""));
    let start = Instant::now();
    agent.wait_for("parent", "done");
    assert!(start.elapsed() < Duration::from_millis(1_400));
    eventually("the run is closed", || {
        messages(&mut server.client(1), "logs:app:parent:info")
            .iter()
            .any(|message| message.starts_with("{{__END_RUN_"))
    });
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_gigabyte_without_a_newline_flows_in_bounded_memory() {
    let server = RedisServer::start(&[]);
    let bytes: u64 = 256 << 20;
    let services = sh(
        "huge",
        &format!("head -c {bytes} /dev/zero; echo; echo after"),
        "restart = \"never\"\nstream = { max_len = 20 }",
    ) + &sh("other", "while :; do echo tick; sleep 0.05; done", "");
    let mut agent = Agent::start(Some(&server), &services);
    agent.wait_for("huge", "done");
    eventually("what came after is there", || {
        messages(&mut server.client(1), "logs:app:huge:info")
            .iter()
            .any(|message| message == "after")
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("alive");
    let peak: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kb| kb.parse().ok())
        .expect("VmHWM");
    assert!(peak < 64 << 10, "peak memory {peak} kB");
    let pieces = info(&server, "huge");
    let whole = pieces
        .iter()
        .filter(|entry| entry.field("partial").is_some())
        .all(|entry| entry.fields[0].1.len() == 256 << 10);
    assert!(whole, "pieces of max_line bytes");
    assert!(info(&server, "other").len() > 2, "others flow on");
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn bad_input_gets_one_clear_error() {
    let folder = Scratch::new("bad");
    let run = |text: &str| {
        let config = folder.file("agent.toml", text);
        let output = std::process::Command::new(AGENT)
            .args(["run", "--config"])
            .arg(&config)
            .output()
            .expect("it runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), stderr)
    };
    let (code, text) = run("[service.x]\nexecutible = \"/bin/true\"\n");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("agent.toml:2:1"), "{text}");
    assert!(
        text.contains("executible") && text.contains("`executable`"),
        "{text}"
    );
    let (code, text) = run("\u{0}\u{1}binary");
    assert_eq!(code, Some(2), "{text}");
    let (code, text) = run("");
    assert_eq!(code, Some(2), "nothing to supervise: {text}");
    let absent = std::process::Command::new(AGENT)
        .args(["run", "--config", "/nowhere/agent.toml"])
        .output()
        .expect("it runs");
    assert_eq!(absent.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("/nowhere/agent.toml"));
}

#[test]
fn under_a_manager_an_agent_waits_for_its_first_service() {
    let folder = Scratch::new("manager");
    let config = folder.file("agent.toml", &head(&folder, None));
    let name = folder.join("manager.sock");
    let manager = std::os::unix::net::UnixDatagram::bind(&name).expect("a new socket");
    manager
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a timeout");
    let mut command = std::process::Command::new(AGENT);
    command
        .args(["run", "--config"])
        .arg(&config)
        .env("NOTIFY_SOCKET", &name)
        .stderr(std::process::Stdio::null());
    agent::die_with_parent(&mut command);
    let mut child = command.spawn().expect("the agent starts");
    let mut heard = String::new();
    let mut hear_until = |text: &str| {
        let mut message = [0; 4096];
        while !heard.contains(text) {
            let length = manager
                .recv(&mut message)
                .unwrap_or_else(|error| panic!("{text}: {error}; heard: {heard}"));
            heard.push_str(&String::from_utf8_lossy(&message[..length]));
        }
        heard = heard.split_off(heard.find(text).expect("it was heard") + text.len());
    };
    hear_until("READY=1\n");
    hear_until("STATUS=no service yet\n");
    let more = "[service.first]\nexecutable = \"sleep\"\nargs = [\"1000\"]\n";
    let patient = head(&folder, None).replace("[redis]", "shutdown_timeout = \"7s\"\n[redis]");
    folder.file("agent.toml", &format!("{patient}{more}"));
    // SAFETY: plain system call, of a child that we own.
    unsafe { libc::kill(child.id() as i32, libc::SIGHUP) };
    hear_until("RELOADING=1\n");
    hear_until("READY=1\n");
    hear_until("STATUS=1 of 1 services are ready\n");
    // SAFETY: as above.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    // The services' time, and some for the last words.
    hear_until("STOPPING=1\nEXTEND_TIMEOUT_USEC=27000000\n");
    let mut status = None;
    eventually("it ends", || {
        status = child.try_wait().expect("a child of ours");
        status.is_some()
    });
    assert_eq!(status.and_then(|status| status.code()), Some(0));
}

/// By what a container's engine, a terminal, a virtual machine's host and systemd end things.
#[test]
fn whatever_asks_for_an_end_gets_an_ordered_one() {
    let signals = [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGPWR,
        libc::SIGRTMIN() + 3,
    ];
    for signal in signals {
        let folder = Scratch::new("asks");
        let told = folder.join("told");
        let script = format!(
            "trap 'echo ended > {}; exit' TERM; while :; do sleep 0.1; done",
            told.display()
        );
        let mut agent = Agent::start(None, &sh("one", &script, ""));
        agent.wait_for("one", "ready");
        // What means nothing to it ends nothing.
        agent.signal(libc::SIGALRM);
        agent.signal(libc::SIGUSR1);
        agent.signal(signal);
        let status = agent.wait();
        assert_eq!(status.code(), Some(0), "signal {signal}");
        assert!(
            told.exists(),
            "its service was stopped in order, signal {signal}"
        );
    }
}

/// The thread that talks to the manager lives, answers, and does not speak for the one that starts and reaps.
#[test]
fn a_main_thread_that_hangs_is_not_vouched_for() {
    let folder = Scratch::new("vouch");
    let one = "[service.one]\nexecutable = \"sleep\"\nargs = [\"1000\"]\n";
    let config = folder.file("agent.toml", &format!("{}{one}", head(&folder, None)));
    let name = folder.join("manager.sock");
    let manager = std::os::unix::net::UnixDatagram::bind(&name).expect("a new socket");
    let log = folder.join("log");
    let mut command = std::process::Command::new(AGENT);
    command
        .args(["run", "--config"])
        .arg(&config)
        .env("NOTIFY_SOCKET", &name)
        .env("WATCHDOG_USEC", "400000")
        .stderr(std::fs::File::create(&log).expect("a log"));
    agent::die_with_parent(&mut command);
    let mut child = command.spawn().expect("the agent starts");
    let hear = |limit: Duration| {
        manager.set_read_timeout(Some(limit)).expect("a timeout");
        let mut message = [0; 4096];
        let length = manager.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..length]).into_owned())
    };
    let fed = || {
        while let Some(message) = hear(Duration::from_secs(20)) {
            if message.contains("WATCHDOG=1\n") {
                return true;
            }
        }
        false
    };
    assert!(fed() && fed(), "it is fed while all is well");
    let main = child.id() as i32;
    let ptrace = |request: libc::c_uint| {
        // SAFETY: no memory is touched; a child of ours.
        let done = unsafe { libc::ptrace(request as _, main, 0, 0) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    };
    // Of all threads only this one stands still.
    ptrace(libc::PTRACE_SEIZE as libc::c_uint);
    ptrace(libc::PTRACE_INTERRUPT as libc::c_uint);
    let mut status = 0;
    // SAFETY: writes the status.
    let stopped = unsafe { libc::waitpid(main, &mut status, libc::__WALL) };
    assert!(stopped == main && libc::WIFSTOPPED(status));
    // What it answered before is still vouched for.
    eventually("it is fed no more", || {
        let mut silent = true;
        while let Some(message) = hear(Duration::from_secs(1)) {
            silent &= !message.contains("WATCHDOG=1");
        }
        silent
    });
    let answer = std::process::Command::new(AGENT)
        .args(["status", "--json"])
        .env("AGENT_SOCKET", folder.join("agent.sock"))
        .output()
        .expect("the client runs");
    assert!(answer.status.success(), "the other thread lives");
    assert_eq!(hear(Duration::from_secs(1)), None, "nor meanwhile");
    let log = std::fs::read_to_string(&log).expect("a log");
    assert!(log.contains("the watchdog is not fed"), "{log}");
    ptrace(libc::PTRACE_DETACH as libc::c_uint);
    assert!(fed(), "it is fed again");
    // SAFETY: plain system call, of a child that we own.
    unsafe { libc::kill(main, libc::SIGTERM) };
    let mut status = None;
    eventually("it ends", || {
        status = child.try_wait().expect("a child of ours");
        status.is_some()
    });
    assert_eq!(status.and_then(|status| status.code()), Some(0));
}

#[test]
fn what_cannot_start_says_why_and_the_rest_runs() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("cannot");
    let plain = folder.file("plain", "no program");
    let services = format!(
        "\n[service.absent]\nexecutable = \"/nowhere/program\"\nrestart = \"never\"\n\
         \n[service.plain]\nexecutable = {plain:?}\nrestart = \"never\"\n\
         \n[service.homeless]\nexecutable = \"/bin/true\"\nworking_directory = \"/nowhere\"\nrestart = \"never\"\n\
         \n[service.stranger]\nexecutable = \"/bin/true\"\nuser = \"nobody-knows\"\nrestart = \"never\"\n"
    ) + &sh("fine", "sleep 1000", "");
    let mut agent = Agent::start(Some(&server), &services);
    for (name, code) in [
        ("absent", 127),
        ("plain", 126),
        ("homeless", 126),
        ("stranger", 126),
    ] {
        agent.wait_for(name, "failed");
        assert_eq!(agent.service(name)["exit"], code, "{name}");
        eventually("the reason is in `error`", || {
            let key = format!("logs:app:{name}:error");
            messages(&mut server.client(1), &key)
                .iter()
                .any(|message| message.starts_with("Error starting command: "))
        });
        eventually("the run is closed", || {
            info(&server, name)
                .iter()
                .any(|entry| entry.message().ends_with(&format!("_exit_{code}}}}}")))
        });
    }
    assert_eq!(agent.service("fine")["state"], "ready");
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn two_agents_on_one_folder() {
    let mut first = Agent::start(None, &sh("x", "sleep 1000", ""));
    let second = std::process::Command::new(AGENT)
        .args(["run", "--config"])
        .arg(first.folder.join("agent.toml"))
        .output()
        .expect("it runs");
    assert_ne!(second.status.code(), Some(0));
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        text.contains(&first.pid().to_string()),
        "names the first: {text}"
    );
    assert!(
        first.ask(&["--probe"]).status.success(),
        "the first lives on"
    );
    assert_eq!(first.stop().code(), Some(0));
}

#[test]
fn a_hung_agent_and_no_agent_are_told_within_the_timeout() {
    let mut agent = Agent::start(None, &sh("x", "sleep 1000", ""));
    assert!(agent.ask(&["--probe"]).status.success());
    agent.freeze();
    let start = Instant::now();
    let probe = agent.ask(&["--probe"]);
    assert_eq!(probe.status.code(), Some(1));
    assert!(start.elapsed() < Duration::from_millis(1_500));
    assert_eq!(String::from_utf8_lossy(&probe.stdout).lines().count(), 1);
    agent.signal(libc::SIGCONT);
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(agent.ask(&["--probe"]).status.code(), Some(1), "no agent");
}

#[test]
fn a_reload_touches_only_what_changed() {
    let folder = Scratch::new("reload");
    let sleeper = |name: &str, more: &str| sh(name, "sleep 1000", more);
    let base = head(&folder, None);
    let first = format!(
        "{base}{}{}{}{}",
        sleeper("same", ""),
        sleeper("policy", ""),
        sleeper("changed", ""),
        sleeper("gone", "")
    );
    let mut agent = Agent::start_in(folder, &first);
    for name in ["same", "policy", "changed", "gone"] {
        agent.wait_for(name, "ready");
    }
    let pid = |agent: &Agent, name: &str| agent.service(name)["pid"].as_i64();
    let before = ["same", "policy", "changed", "gone"].map(|name| pid(&agent, name));

    let second = format!(
        "{base}{}{}{}{}",
        sleeper("same", ""),
        sleeper("policy", "backoff = { initial = \"7s\" }"),
        sleeper("changed", "environment = { A = \"b\" }"),
        sleeper("new", "")
    );
    agent.folder.file("agent.toml", &second);
    let plan = agent.ask(&["reload", "--dry-run"]);
    let text = String::from_utf8_lossy(&plan.stdout).into_owned();
    assert!(plan.status.success(), "{text}");
    for word in ["policy", "changed", "gone", "new"] {
        assert!(text.contains(word), "the plan names {word}: {text}");
    }
    assert_eq!(pid(&agent, "changed"), before[2], "a dry run does nothing");
    assert!(agent.ask(&["reload"]).status.success());
    assert_eq!(pid(&agent, "same"), before[0]);
    assert_eq!(pid(&agent, "policy"), before[1], "a policy changes live");
    assert_ne!(pid(&agent, "changed"), before[2]);
    assert_eq!(agent.service("changed")["state"], "ready");
    assert_eq!(agent.service("new")["state"], "ready");
    assert!(agent.service("gone").is_null());
    assert!(!lives(before[3].expect("it ran") as i32));

    agent
        .folder
        .file("agent.toml", "[service.x]\nexecutible = \"y\"\n");
    let bad = agent.ask(&["reload"]);
    assert_eq!(bad.status.code(), Some(2));
    let text = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(text.contains("agent.toml:2:1"), "says why: {text}");
    assert_eq!(pid(&agent, "same"), before[0], "a bad file changes nothing");

    agent.folder.file("agent.toml", &first);
    agent.signal(libc::SIGHUP);
    agent.wait_for("gone", "ready");
    assert_eq!(agent.stop().code(), Some(0));
}

/// How much a stream keeps is no reason to start anything again: it holds for the run that lives.
#[test]
fn a_reload_trims_live() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("trims");
    let go = folder.join("go");
    let script = format!(
        "for i in $(seq 40); do echo early $i; done; until [ -e {} ]; do sleep 0.02; done; \
         for i in $(seq 40); do echo late $i; done; exec sleep 1000",
        go.display()
    );
    let base = head(&folder, Some(&server));
    let with = |keep: &str| format!("{base}{}", sh("talks", &script, keep));
    let mut agent = Agent::start_beside(&folder, &with(""));
    let count = || info(&server, "talks").len();
    eventually("all is there", || count() == 41);
    let pid = agent.service("talks")["pid"].clone();
    folder.file(
        "agent.toml",
        &with("stream = { max_len = 7, exact = true }"),
    );
    let said = agent.ask(&["reload"]);
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(text, "updated: talks\n");
    std::fs::write(&go, "").expect("written");
    eventually("seven are left", || {
        let entries = info(&server, "talks");
        entries
            .last()
            .is_some_and(|last| last.message() == "late 40")
            && entries.len() == 7
    });
    let service = agent.service("talks");
    assert_eq!(service["pid"], pid, "the same process");
    assert_eq!(service["lines"], 80, "counted on");
    // Nothing is said about what is not there.
    let said = agent.ask(&["reload"]);
    assert_eq!(String::from_utf8_lossy(&said.stdout), "no changes\n");
    assert_eq!(agent.stop().code(), Some(0));
}

/// Who does not wait for it is told that it goes on.
#[test]
fn a_start_that_takes_longer_than_one_waits() {
    let mut agent = Agent::start(
        None,
        &sh("slow", "sleep 1000", "ready = { tcp = \"127.0.0.1:1\" }"),
    );
    agent.wait_for("slow", "starting");
    let waited = agent.ask(&["start", "slow", "--timeout", "200ms"]);
    assert_eq!(waited.status.code(), Some(1));
    let text = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert!(
        text.starts_with("agent: not done within 200 ms: the agent goes on"),
        "{text}"
    );
    assert!(agent.ask(&["stop", "slow"]).status.success());
    let status = agent.ask(&["status"]).stdout;
    let status = String::from_utf8_lossy(&status).into_owned();
    let line = status.lines().find(|line| line.starts_with("slow"));
    let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    assert_eq!(
        words[..4],
        ["slow", "stopped", "-", "-"],
        "no process has no age"
    );
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn what_a_helper_still_has_to_say_belongs_to_the_run() {
    let server = RedisServer::start(&[]);
    // A shell's own idiom: its output goes through a helper that outlives it for a moment.
    let script = "(sleep 0.1; echo tail; sleep 1000) & echo main";
    let mut agent = Agent::start(Some(&server), &sh("parent", script, "restart = \"never\""));
    agent.wait_for("parent", "done");
    eventually("the run is closed", || {
        info(&server, "parent")
            .last()
            .is_some_and(|entry| entry.message().starts_with("{{__END_RUN_"))
    });
    let lines: Vec<String> = info(&server, "parent")
        .iter()
        .filter(|entry| entry.field("source").is_some())
        .map(Entry::message)
        .collect();
    assert_eq!(lines, ["main", "tail"]);
    assert_eq!(agent.stop().code(), Some(0));
}
