//! Real processes under the supervisor: how they are started, what they are given, and how
//! they and everything they started end.

#[path = "supervise_driver/mod.rs"]
mod harness;

use harness::{Driver, alive, eventually};
use serde_json::json;

/// Not a test: what the other tests start (see `supervise_driver`).
#[test]
fn driver() {
    if let Ok(services) = std::env::var("SUPERVISE_DRIVER") {
        harness::drive(&services);
    }
}

#[test]
fn a_service_is_started_restarted_and_stopped() {
    let mut driver = Driver::start(json!({"services": [
        {"name": "talker", "argv": ["/bin/sh", "-c", "echo hello; exec sleep 1000"]},
    ]}));
    driver.expect("word talker status {{__NEW_RUN_");
    let first = driver.started();
    driver.expect("word talker status Ready.");
    driver.expect("stdout hello");
    assert!(alive(first));
    // SAFETY: kill(2) touches no memory.
    assert_eq!(unsafe { libc::kill(first, libc::SIGSEGV) }, 0);
    driver.expect("word talker status Executable exited with code 139.");
    driver.expect("word talker status Restarting in 50 ms.");
    driver.expect("drained 1");
    driver.expect("_exit_139}}");
    assert!(driver.place("drained 1") < driver.place("_exit_139}}"));
    let second = driver.started();
    assert!(first != second && !alive(first));
    driver.ask(r#"{"verb":"stop","services":["talker"]}"#);
    driver.expect("word talker status Stopping with SIGTERM.");
    driver.expect("_exit_143}}");
    driver.expect(r#"reply 0 {"ok":true}"#);
    assert!(!alive(second));
    driver.ask(r#"{"verb":"status","services":[]}"#);
    let status = driver.expect("reply 1 ");
    assert!(status.contains(r#""state":"stopped""#), "{status}");
    assert_eq!(driver.shutdown(), 0);
}

#[test]
fn what_cannot_be_started_says_why() {
    let mut driver = Driver::start(json!({"services": [
        {"name": "ghost", "argv": ["/no/such/program"], "restart": "never"},
    ]}));
    driver.expect("word ghost status {{__NEW_RUN_");
    driver.expect(
        "word ghost error Error starting command: executing /no/such/program: \
         No such file or directory (ENOENT)",
    );
    driver.expect("word ghost status Executable exited with code 127.");
    driver.expect("word ghost status Failed: executing /no/such/program");
    driver.expect("_exit_127}}");
    assert_eq!(driver.shutdown(), 0);
    eventually("nothing is left", || !alive(driver.child.id() as i32));
}

/// A process' line in `/proc/PID/status`.
fn status_line(pid: i32, key: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    let line = text.lines().find(|line| line.starts_with(key));
    let value = line
        .and_then(|line| line.split(':').nth(1))
        .expect("a key of proc(5)");
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn environ(pid: i32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).expect("a live process");
    let text = String::from_utf8(bytes).expect("a plain environment");
    text.split_terminator('\0').map(str::to_owned).collect()
}

fn is_root() -> bool {
    // SAFETY: geteuid(2) always succeeds.
    unsafe { libc::geteuid() == 0 }
}

/// A folder of this test's own.
fn scratch(name: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("supervise-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a temporary folder");
    path
}

#[test]
fn a_service_gets_exactly_what_it_was_promised() {
    let folder = scratch("promised");
    let file = folder.join("env");
    std::fs::write(&file, "# extra\nFROM_FILE='a b'\nBOTH=file\n").expect("written");
    let script = "sleep 1000; :";
    let mut driver = Driver::start(json!({"services": [
        {"name": "argued", "argv": ["/bin/sh", "-c", script, "", "a b", "--x=*", "$HOME"],
         "clear_environment": true},
    ]}));
    let pid = driver.started();
    let argv = std::fs::read(format!("/proc/{pid}/cmdline")).expect("alive");
    assert_eq!(argv, b"/bin/sh\0-c\0sleep 1000; :\0\0a b\0--x=*\0$HOME\0");
    assert_eq!(environ(pid), ["AGENT_SERVICE=argued"]);
    assert_eq!(driver.shutdown(), 0);

    let mut driver = Driver::with(
        json!({"services": [{
            "name": "plain", "argv": ["sleep", "1000"],
            "directory": "/usr", "umask": 0o027, "nofile": 321, "nice": 5, "oom": 300, "cpus": [0],
            "environment": {"BOTH": "table", "OWN": "1"}, "environment_files": [file],
        }]}),
        |command| {
            command
                .env("REDIS_PASSWORD", "secret")
                .env("AGENT_CONFIG", "/x")
                .env("NOTIFY_SOCKET", "/nonexistent")
                .env("KEPT", "yes")
        },
    );
    let pid = driver.started();
    let environ = environ(pid);
    for wanted in [
        "AGENT_SERVICE=plain",
        "FROM_FILE=a b",
        "BOTH=table",
        "OWN=1",
        "KEPT=yes",
    ] {
        assert!(
            environ.iter().any(|entry| entry == wanted),
            "{wanted}: {environ:?}"
        );
    }
    for secret in ["REDIS_PASSWORD", "AGENT_CONFIG", "NOTIFY_SOCKET"] {
        assert!(!environ.iter().any(|e| e.starts_with(secret)), "{secret}");
    }
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).expect("alive");
    assert_eq!(cwd, std::path::Path::new("/usr"));
    assert_eq!(status_line(pid, "Umask"), "0027");
    assert_eq!(status_line(pid, "Cpus_allowed_list"), "0");
    for mask in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(status_line(pid, mask), "0000000000000000", "{mask}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("alive");
    let nofile = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    assert_eq!(
        nofile.expect("listed").split_whitespace().nth(3),
        Some("321")
    );
    let oom = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("alive");
    assert_eq!(oom.trim(), "300");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("alive");
    let fields: Vec<&str> = stat
        .split(") ")
        .nth(1)
        .expect("fields")
        .split(' ')
        .collect();
    assert_eq!(fields[16], "5", "nice");
    assert_eq!(fields[3], pid.to_string(), "a session of its own");
    // The dynamic loader has a descriptor open for a moment; a leaked one would stay.
    eventually("only 0, 1 and 2 are open", || {
        let mut fds: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("alive")
            .filter_map(|fd| fd.ok()?.file_name().into_string().ok())
            .collect();
        fds.sort();
        fds == ["0", "1", "2"]
    });
    let stdin = std::fs::read_link(format!("/proc/{pid}/fd/0")).expect("open");
    assert_eq!(stdin, std::path::Path::new("/dev/null"));
    assert_eq!(driver.shutdown(), 0);
    std::fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn a_change_of_user_is_complete() {
    if !is_root() {
        return;
    }
    let mut driver = Driver::start(json!({"services": [
        {"name": "named", "argv": ["/bin/sleep", "1000"], "user": "nobody"},
    ]}));
    let pid = driver.started();
    assert_eq!(status_line(pid, "Uid"), "65534 65534 65534 65534");
    assert_eq!(status_line(pid, "Gid"), "65534 65534 65534 65534");
    assert_eq!(status_line(pid, "Groups"), "65534");
    assert_eq!(status_line(pid, "CapEff"), "0000000000000000");
    // `nobody` of Debian's base-passwd.
    let as_root = environ(pid);
    for wanted in ["USER=nobody", "LOGNAME=nobody", "HOME=/nonexistent"] {
        assert!(
            as_root.iter().any(|entry| entry == wanted),
            "{wanted}: {as_root:?}"
        );
    }
    assert_eq!(driver.shutdown(), 0);

    let mut driver = Driver::start(json!({"services": [
        {"name": "numbered", "argv": ["/bin/sleep", "1000"], "user": 54321, "group": 12,
         "groups": [7, 9], "no_new_privileges": true, "capabilities": [10]},
    ]}));
    let pid = driver.started();
    assert_eq!(status_line(pid, "Uid"), "54321 54321 54321 54321");
    assert_eq!(status_line(pid, "Gid"), "12 12 12 12");
    assert_eq!(status_line(pid, "Groups"), "7 9");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status_line(pid, set), "0000000000000400", "{set}");
    }
    assert_eq!(status_line(pid, "NoNewPrivs"), "1");
    assert_eq!(driver.shutdown(), 0);
}

#[test]
fn every_stage_that_fails_is_named() {
    let folder = scratch("stages");
    let script = folder.join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").expect("written");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("changed");
    let plain = folder.join("plain");
    std::fs::write(&plain, "echo\n").expect("written");
    let (script, plain) = (script.display().to_string(), plain.display().to_string());
    let cases = [
        (
            json!({"argv": ["no-such-program"]}),
            "finding no-such-program on PATH: No such file or directory (ENOENT)".to_owned(),
            127,
        ),
        (
            json!({"argv": [plain]}),
            format!("executing {plain}: Permission denied (EACCES)"),
            126,
        ),
        (
            json!({"argv": [script]}),
            format!("finding the interpreter of {script}: No such file or directory (ENOENT)"),
            126,
        ),
        (
            json!({"argv": ["/bin/true"], "directory": "/no/such"}),
            "changing to directory /no/such: No such file or directory (ENOENT)".to_owned(),
            126,
        ),
        (
            json!({"argv": ["/bin/true"], "user": "ghost"}),
            "finding user ghost: not in /etc/passwd".to_owned(),
            126,
        ),
        (
            json!({"argv": ["/bin/true"], "group": "ghosts"}),
            "finding group ghosts: not in /etc/group".to_owned(),
            126,
        ),
        (
            json!({"argv": ["/bin/true"], "cpus": [1000]}),
            "setting cpu affinity: Invalid argument (EINVAL)".to_owned(),
            126,
        ),
        (
            json!({"argv": ["/bin/true"], "fifo": 1000}),
            "setting scheduling: Invalid argument (EINVAL)".to_owned(),
            126,
        ),
        (
            json!({"argv": ["/bin/true"], "environment_files": ["/no/such"]}),
            "reading environment file /no/such: No such file or directory (ENOENT)".to_owned(),
            126,
        ),
    ];
    for (mut service, words, code) in cases {
        service["name"] = json!("x");
        service["restart"] = json!("never");
        let mut driver = Driver::start(json!({"agent": {"main": "x"}, "services": [service]}));
        driver.expect(&format!("word x error Error starting command: {words}"));
        driver.expect(&format!("never ran {code}"));
        assert_eq!(driver.end(), code, "{words}");
    }
    std::fs::remove_dir_all(folder).expect("removed");
}

/// The numbers that a service said on stdout.
fn numbers(line: &str) -> Vec<i32> {
    let words = line.split_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn everything_a_service_started_ends_with_it() {
    // A plain child, one in its own session, and one that was orphaned with a session of its
    // own; all of them deaf to TERM.
    let script = "trap '' TERM; sleep 1001 & a=$!; setsid sleep 1002 & b=$!; \
                  c=$(setsid sh -c 'sleep 1003 >/dev/null 2>&1 & echo $!'); \
                  echo pids $a $b $c; sleep 0.2; exit 3";
    let mut driver = Driver::start(json!({"services": [
        {"name": "messy", "argv": ["/bin/sh", "-c", script], "restart": "never"},
        {"name": "other", "argv": ["/bin/sleep", "1000"]},
    ]}));
    let pids = numbers(&driver.expect("stdout pids "));
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|pid| alive(*pid)));
    driver.expect("_exit_3}}");
    for pid in pids {
        assert!(!alive(pid), "{pid} outlives its service");
    }
    driver.ask(r#"{"verb":"status","services":["other"]}"#);
    assert!(driver.expect("reply 0").contains(r#""state":"ready""#));
    assert_eq!(driver.shutdown(), 0);
}

#[test]
fn a_stop_that_is_not_heeded_becomes_a_kill_of_the_tree() {
    let script = "trap '' TERM; setsid sleep 1001 & echo pids $$ $!; while :; do sleep 1; done";
    let mut driver = Driver::start(json!({"services": [
        {"name": "deaf", "argv": ["/bin/sh", "-c", script], "stop_ms": 200},
    ]}));
    let pids = numbers(&driver.expect("stdout pids "));
    driver.ask(r#"{"verb":"stop","services":["deaf"]}"#);
    driver.expect("Stopping with SIGKILL.");
    driver.expect("_exit_137}}");
    driver.expect(r#"reply 0 {"ok":true}"#);
    assert!(pids.iter().all(|pid| !alive(*pid)));
    assert_eq!(driver.shutdown(), 0);
}

#[test]
fn orphans_are_adopted_and_reaped() {
    let script = "sh -c 'sleep 0.2 & echo pids $!'; exec sleep 1000";
    let mut driver = Driver::start(json!({"services": [
        {"name": "parent", "argv": ["/bin/sh", "-c", script]},
    ]}));
    let pids = numbers(&driver.expect("stdout pids "));
    eventually("the orphan is reaped", || {
        !std::path::Path::new(&format!("/proc/{}", pids[0])).exists()
    });
    assert_eq!(driver.shutdown(), 0);
}

#[test]
fn services_die_with_an_agent_that_is_killed() {
    let mut driver = Driver::start(json!({"services": [
        {"name": "one", "argv": ["/bin/sleep", "1000"]},
        {"name": "two", "argv": ["/bin/sleep", "1000"], "user": if is_root() { json!(4711) } else { json!(null) }},
    ]}));
    let pids = [driver.started(), driver.started()];
    driver.child.kill().expect("own child");
    driver.child.wait().expect("own child");
    eventually("the services die too", || {
        pids.iter().all(|pid| !alive(*pid))
    });
}

#[test]
fn shutdown_goes_in_reverse_and_returns_what_main_returned() {
    let quits = "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done";
    let mut driver = Driver::start(json!({"agent": {"main": "app"}, "services": [
        {"name": "app", "argv": ["/bin/sh", "-c", quits], "requires": ["db"]},
        {"name": "db", "argv": ["/bin/sleep", "1000"], "after": ["disk"]},
        {"name": "disk", "argv": ["/bin/true"], "kind": "oneshot"},
    ]}));
    driver.expect("stdout up");
    // SAFETY: kill(2) touches no memory.
    assert_eq!(
        unsafe { libc::kill(driver.child.id() as i32, libc::SIGTERM) },
        0
    );
    assert_eq!(driver.end(), 7);
    let order = [
        "word disk status Started",
        "word disk status Executable exited with code 0.",
        "word db status Started",
        "word db status Ready.",
        "word app status Started",
        "word app status Stopping",
        "_exit_7}}",
        "word db status Stopping",
        "_exit_143}}",
    ];
    let places: Vec<usize> = order.iter().map(|text| driver.place(text)).collect();
    assert!(places.is_sorted(), "{:#?}", driver.seen);
}

#[test]
fn a_second_signal_hurries() {
    let deaf = "trap '' TERM; echo up; while :; do sleep 0.05; done";
    let mut driver = Driver::start(json!({"services": [
        {"name": "deaf", "argv": ["/bin/sh", "-c", deaf], "stop_ms": 60000},
    ]}));
    driver.expect("stdout up");
    driver.ask(r#"{"verb":"shutdown"}"#);
    driver.expect("Stopping with SIGTERM.");
    // SAFETY: kill(2) touches no memory.
    assert_eq!(
        unsafe { libc::kill(driver.child.id() as i32, libc::SIGINT) },
        0
    );
    driver.expect("Stopping with SIGKILL.");
    assert_eq!(driver.end(), 0);
}

#[test]
fn what_requires_a_failed_service_fails_and_comes_back_with_it() {
    let folder = scratch("requires");
    let gate = folder.join("gate");
    let check = format!("test -e {}", gate.display());
    let mut driver = Driver::start(json!({"services": [
        {"name": "app", "argv": ["/bin/sleep", "1000"], "requires": ["gate"]},
        {"name": "gate", "argv": ["/bin/sh", "-c", check], "kind": "oneshot", "restart": "never"},
    ]}));
    driver.expect("word gate status Failed: exited with code 1.");
    driver.expect("word app status Failed: requires gate, which failed.");
    driver.ask(r#"{"verb":"probe","ready":false}"#);
    assert!(driver.expect("reply 0").contains("false"));
    std::fs::write(&gate, "").expect("written");
    driver.ask(r#"{"verb":"start","services":["app"]}"#);
    driver.expect(r#"reply 1 {"ok":true}"#);
    driver.expect("word app status Ready.");
    assert_eq!(driver.shutdown(), 0);
    std::fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn a_crash_loop_ends_in_failed_and_may_end_the_agent() {
    let mut driver = Driver::start(json!({"services": [
        {"name": "loop", "argv": ["/bin/sh", "-c", "exit 9"], "burst": 3, "backoff_ms": 10, "on_failed": "exit"},
        {"name": "other", "argv": ["/bin/sleep", "1000"]},
    ]}));
    driver.expect("word loop status Failed: started 3 times within 60s; last: exited with code 9.");
    assert_eq!(driver.end(), 9);
    let starts = driver
        .seen
        .iter()
        .filter(|l| l.contains("word loop status Started"))
        .count();
    assert_eq!(starts, 3);
}

#[test]
fn reload_touches_only_what_changed() {
    let folder = scratch("reload");
    let file = folder.join("new.json");
    let new = json!({"services": [
        {"name": "kept", "argv": ["/bin/sleep", "1000"], "backoff_ms": 70},
        {"name": "changed", "argv": ["/bin/sleep", "1002"]},
        {"name": "added", "argv": ["/bin/sleep", "1003"]},
    ]});
    std::fs::write(&file, new.to_string()).expect("written");
    let mut driver = Driver::with(
        json!({"services": [
            {"name": "kept", "argv": ["/bin/sleep", "1000"]},
            {"name": "changed", "argv": ["/bin/sleep", "1001"]},
            {"name": "removed", "argv": ["/bin/sleep", "1001"]},
        ]}),
        |command| command.env("SUPERVISE_RELOAD", &file),
    );
    let kept = driver.expect("standing kept ready");
    driver.expect("standing changed ready");
    driver.expect("standing removed ready");
    driver.ask(r#"{"verb":"reload","dry_run":true}"#);
    let plan = driver.expect("reply 0");
    for part in [
        r#""added":["added"]"#,
        r#""removed":["removed"]"#,
        r#""restarted":["changed"]"#,
        r#""updated":["kept"]"#,
    ] {
        assert!(plan.contains(part), "{plan}");
    }
    driver.ask(r#"{"verb":"reload"}"#);
    assert!(driver.expect("reply 1").contains(r#""ok":true"#));
    driver.ask(r#"{"verb":"status","services":[]}"#);
    let status = driver.expect("reply 2");
    let pid = kept
        .split("Some(")
        .nth(1)
        .expect("a pid")
        .trim_end_matches(')')
        .to_owned();
    assert!(status.contains(&format!(r#""pid":{pid}"#)), "{status}");
    assert!(
        status.contains(r#""name":"added""#) && !status.contains("removed"),
        "{status}"
    );
    assert_eq!(driver.shutdown(), 0);
    std::fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn the_manager_is_told() {
    let folder = scratch("notify");
    let path = folder.join("socket");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("a new socket");
    socket
        .set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .expect("a timeout");
    let mut driver = Driver::with(
        json!({"services": [{"name": "one", "argv": ["/bin/sleep", "1000"]}]}),
        |command| {
            command
                .env("NOTIFY_SOCKET", &path)
                .env("WATCHDOG_USEC", "100000")
        },
    );
    let mut heard = String::new();
    let mut hear_until = |text: &str| {
        let mut message = [0; 4096];
        while !heard.contains(text) {
            let length = socket.recv(&mut message).unwrap_or_else(|error| {
                panic!("{text}: {error}; heard: {heard}");
            });
            heard.push_str(&String::from_utf8_lossy(&message[..length]));
        }
    };
    hear_until("READY=1\n");
    hear_until("STATUS=1 of 1 services are ready\n");
    hear_until("WATCHDOG=1\n");
    let pid = driver.started();
    assert!(
        !environ(pid)
            .iter()
            .any(|entry| entry.starts_with("WATCHDOG"))
    );
    assert_eq!(driver.shutdown(), 0);
    hear_until("STOPPING=1\nEXTEND_TIMEOUT_USEC=");
    std::fs::remove_dir_all(folder).expect("removed");
}
