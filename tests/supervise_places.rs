//! The whole agent where containers put it: PID 1 of a namespace, a root that holds nothing or cannot be written,
//! another user, no capability. And what services leave behind or take too much of.

#[path = "support/agent.rs"]
mod agent;
mod support;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use agent::{AGENT, Agent, die_with_parent, head, lives};
use support::{RedisServer, Scratch, entries, eventually, messages, within};

fn is_root() -> bool {
    // SAFETY: geteuid(2) always succeeds.
    unsafe { libc::geteuid() == 0 }
}

/// The static program of the tests, and a folder for everything.
fn workshop() -> (Scratch, PathBuf) {
    let folder = Scratch::new("places");
    let program = folder.join("program");
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/supervise_places/program.c"
    );
    let status = Command::new("gcc")
        .args(["-O1", "-w", "-static", "-o"])
        .args([program.as_path(), Path::new(source)])
        .status();
    assert!(status.expect("gcc").success());
    (folder, program)
}

/// By another process: what is started beside would inherit a descriptor that writes to it, and the kernel executes
/// nothing that somebody writes to (ETXTBSY).
fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").args([from, to]).status();
    assert!(status.expect("cp").success());
}

/// Whether namespaces can be had here.
fn has_namespaces() -> bool {
    let status = Command::new("unshare")
        .args(["-pfm", "true"])
        .stderr(Stdio::null())
        .status();
    let has = is_root() && status.is_ok_and(|status| status.success());
    if !has {
        eprintln!("skipped: no namespaces here");
    }
    has
}

/// An agent that is PID 1 of its own namespace.
struct First {
    child: Child,
    pid: i32,
    /// As it is known inside.
    socket: &'static str,
    log: PathBuf,
}

impl First {
    /// `script` becomes the agent; its `$0` is the agent's path.
    fn start(folder: &Scratch, script: &str, socket: &'static str) -> First {
        let log = folder.join("log");
        let mut command = Command::new("unshare");
        command
            .args(["-pfm", "--kill-child", "/bin/sh", "-ec", script, AGENT])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).expect("a log file"));
        die_with_parent(&mut command);
        let child = command.spawn().expect("unshare");
        let mut first = First {
            pid: 0,
            child,
            socket,
            log,
        };
        eventually("the agent answers", || {
            first.pid = children(first.child.id() as i32)
                .first()
                .copied()
                .unwrap_or(0);
            let answers = std::os::unix::net::UnixStream::connect(first.path(socket)).is_ok();
            answers || first.has_ended()
        });
        first
    }

    fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// What is there inside, seen from here.
    fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.pid))
    }

    fn ask(&self, words: &[&str]) -> Output {
        let socket = self.path(self.socket);
        let output = Command::new(AGENT)
            .args(words)
            .env("AGENT_SOCKET", socket)
            .output();
        output.expect("the agent's client runs")
    }

    fn service(&self, name: &str) -> serde_json::Value {
        let output = self.ask(&["status", "--json", name]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        status["services"][0].clone()
    }

    fn wait_for(&self, name: &str, state: &str) {
        eventually(&format!("{name} is {state}"), || {
            self.service(name)["state"] == state
        });
    }

    fn signal(&self, signal: i32) {
        // SAFETY: kill(2) touches no memory.
        assert_eq!(unsafe { libc::kill(self.pid, signal) }, 0);
    }

    fn wait(&mut self) -> Option<i32> {
        let mut status = None;
        within(Duration::from_secs(40), "the agent ends", || {
            status = self.child.try_wait().expect("a child of ours");
            status.is_some()
        });
        status.expect("it has ended").code()
    }

    fn zombies(&self) -> usize {
        let state = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/stat"));
        let is_zombie = |pid: &&i32| state(pid).is_ok_and(|stat| stat.contains(") Z "));
        children(self.pid).iter().filter(is_zombie).count()
    }
}

impl Drop for First {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

fn service(name: &str, executable: &str, args: &[&str], more: &str) -> String {
    format!("\n[service.{name}]\nexecutable = {executable:?}\nargs = {args:?}\n{more}\n")
}

#[test]
fn as_pid_1_it_reaps_what_is_orphaned_and_hears_its_signals() {
    if !has_namespaces() {
        return;
    }
    let (folder, program) = workshop();
    let program = program.to_string_lossy();
    let services = service(
        "parent",
        &program,
        &["orphans", "300"],
        "ready = { log = \"orphaned\" }",
    ) + &service("deaf", &program, &["deaf"], "stop = { timeout = \"60s\" }");
    let config = folder.file("agent.toml", &(head(&folder, None) + &services));
    let script = format!("mount -t proc proc /proc; exec \"$0\" run --config {config:?}");
    let socket: &'static str = folder
        .join("agent.sock")
        .to_string_lossy()
        .into_owned()
        .leak();
    let mut first = First::start(&folder, &script, socket);
    first.wait_for("parent", "ready");
    first.wait_for("deaf", "ready");
    eventually("orphans and zombies are gone", || {
        children(first.pid).len() == 2 && first.zombies() == 0
    });
    // HUP reloads, and nothing of what PID 1 ignores by default ends or confuses it.
    let more = services.clone() + &service("late", &program, &[], "");
    folder.file("agent.toml", &(head(&folder, None) + &more));
    for signal in [
        libc::SIGUSR1,
        libc::SIGWINCH,
        libc::SIGPIPE,
        libc::SIGCHLD,
        libc::SIGHUP,
    ] {
        first.signal(signal);
    }
    first.wait_for("late", "ready");
    // An ordered end, and a second signal that hurries it: `deaf` would take a minute.
    let start = Instant::now();
    first.signal(libc::SIGTERM);
    eventually("it is stopping", || {
        first.service("deaf")["state"] == "stopping"
    });
    first.signal(libc::SIGINT);
    assert_eq!(first.wait(), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "{:?}",
        start.elapsed()
    );
}

/// Nothing in its root but itself, its configuration and its services: no /proc, no /dev, no /tmp, no /etc.
#[test]
fn in_a_root_that_holds_nothing_else() {
    if !has_namespaces() {
        return;
    }
    let (folder, program) = workshop();
    let root = folder.join("root");
    std::fs::create_dir(&root).expect("a folder");
    copy_program(Path::new(AGENT), &root.join("agent"));
    copy_program(&program, &root.join("program"));
    let text = "[agent]\nruntime_dir = \"/run\"\nstate_dir = \"/state\"\nmain = \"main\"\n"
        .to_owned()
        + &service("stays", "/program", &[], "")
        + &service("main", "/program", &[], "restart = \"never\"")
        + &service(
            "again",
            "/program",
            &["exit", "3"],
            "backoff = { initial = \"1ms\", max = \"10ms\" }\ncritical = false",
        );
    std::fs::write(root.join("agent.toml"), text).expect("written");
    let script = "exec chroot root /agent run --config /agent.toml";
    let mut first = First::start(&folder, script, "/run/agent.sock");
    first.wait_for("stays", "ready");
    first.wait_for("main", "ready");
    first.wait_for("again", "failed");
    assert!(first.ask(&["--probe", "stays", "main"]).status.success());
    assert!(first.ask(&["restart", "stays"]).status.success());
    assert_eq!(first.service("stays")["restarts"], 1);
    assert_eq!(first.zombies(), 0);
    assert!(first.ask(&["signal", "KILL", "main"]).status.success());
    assert_eq!(first.wait(), Some(137), "of its main service");
}

/// `--user 54321 --read-only --tmpfs /run`, in a root without /etc and /tmp.
#[test]
fn as_a_user_without_a_name_in_a_root_that_cannot_be_written() {
    if !has_namespaces() {
        return;
    }
    let (folder, program) = workshop();
    let root = folder.join("root");
    for name in ["", "run", "proc"] {
        std::fs::create_dir(root.join(name)).expect("a folder");
    }
    copy_program(Path::new(AGENT), &root.join("agent"));
    copy_program(&program, &root.join("program"));
    let text = "[agent]\nruntime_dir = \"/run/agent\"\nstate_dir = \"/nowhere\"\n".to_owned()
        + &service(
            "plain",
            "/program",
            &["orphans", "50"],
            "ready = { log = \"orphaned\" }",
        );
    std::fs::write(root.join("agent.toml"), text).expect("written");
    let script = "mount --bind root root; mount -o remount,ro,bind root; mount -t tmpfs -o mode=1777 run root/run; \
                  mount -t proc proc root/proc; \
                  exec chroot --userspec=54321:54321 --groups= root /agent run --config /agent.toml";
    let mut first = First::start(&folder, script, "/run/agent/agent.sock");
    first.wait_for("plain", "ready");
    let pid = children(first.pid)[0];
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("alive");
    assert!(
        status.contains("Uid:\t54321\t54321\t54321\t54321"),
        "{status}"
    );
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    eventually("orphans and zombies are gone", || {
        children(first.pid) == [pid]
    });
    assert!(first.ask(&["--probe"]).status.success());
    first.signal(libc::SIGTERM);
    assert_eq!(first.wait(), Some(0));
}

/// `--cap-drop=all` as root: whom it would change or kill against the kernel's will is told, and nothing hangs.
#[test]
fn as_root_without_any_capability() {
    if !has_namespaces() {
        return;
    }
    let (folder, program) = workshop();
    let program = program.to_string_lossy();
    let services = service(
        "plain",
        &program,
        &["orphans", "50"],
        "ready = { log = \"orphaned\" }",
    ) + &service(
        "other",
        &program,
        &[],
        "user = 54321\nrestart = \"never\"\ncritical = false",
    );
    let config = folder.file("agent.toml", &(head(&folder, None) + &services));
    let script = format!(
        "mount -t proc proc /proc; exec setpriv --bounding-set=-all --inh-caps=-all \"$0\" run --config {config:?}"
    );
    let socket: &'static str = folder
        .join("agent.sock")
        .to_string_lossy()
        .into_owned()
        .leak();
    let mut first = First::start(&folder, &script, socket);
    first.wait_for("plain", "ready");
    first.wait_for("other", "failed");
    let log = std::fs::read_to_string(&first.log).expect("a log");
    assert!(
        log.contains("[other] failed: setting supplementary groups: Operation not permitted"),
        "{log}"
    );
    eventually("orphans and zombies are gone", || {
        children(first.pid).len() == 1 && first.zombies() == 0
    });
    assert!(first.ask(&["--probe"]).status.success());
    first.signal(libc::SIGTERM);
    assert_eq!(first.wait(), Some(0));
}

fn info(server: &RedisServer, name: &str) -> Vec<String> {
    messages(&mut server.client(1), &format!("logs:app:{name}:info"))
}

/// Twice forked, in a session of its own, deaf, its environment cleared, every descriptor closed.
#[test]
fn a_daemon_that_hides_ends_with_its_service() {
    let (_folder, program) = workshop();
    let server = RedisServer::start(&[]);
    let program = program.to_string_lossy();
    let mut agent = Agent::start(
        Some(&server),
        &service("daemonizes", &program, &["daemon"], ""),
    );
    let mut hidden = 0;
    eventually("it says whom it hides", || {
        let lines = info(&server, "daemonizes");
        let line = lines.iter().find_map(|line| line.strip_prefix("hidden "));
        hidden = line.and_then(|pid| pid.parse().ok()).unwrap_or(0);
        hidden > 0
    });
    eventually("it is who it says", || {
        std::fs::read(format!("/proc/{hidden}/cmdline"))
            .is_ok_and(|words| words.starts_with(b"hidden"))
    });
    let groups = std::fs::read_to_string(format!("/proc/{hidden}/cgroup")).expect("alive");
    assert!(agent.ask(&["stop", "daemonizes"]).status.success());
    if groups
        .lines()
        .any(|line| line.starts_with("0::") && line.ends_with("/daemonizes"))
    {
        assert!(!lives(hidden), "it outlives its service");
    } else {
        // Without a control group such a one is left alone, and told.
        eprintln!("no control groups here: hidden processes are only told");
        eventually("it is told", || {
            agent.log().contains("hides whose it was") || !lives(hidden)
        });
    }
    assert_eq!(agent.stop().code(), Some(0));
    // At the very end nothing is left in any case.
    eventually("nothing is left", || !lives(hidden));
}

/// Neither one that hears nothing nor one that waits in the kernel for its child holds up a shutdown.
#[test]
fn a_shutdown_is_bounded() {
    let (folder, program) = workshop();
    let program = program.to_string_lossy();
    let long = "stop = { timeout = \"600s\" }";
    let text = head(&folder, None).replace("[agent]\n", "[agent]\nshutdown_timeout = \"1s\"\n")
        + &service("deaf", &program, &["deaf"], long)
        + &service("stuck", &program, &["vfork"], long);
    let mut agent = Agent::start_beside(&folder, &text);
    agent.wait_for("deaf", "ready");
    agent.wait_for("stuck", "ready");
    let stuck = agent.service("stuck")["pid"].as_i64().expect("a process") as i32;
    eventually("it waits in vfork", || {
        std::fs::read_to_string(format!("/proc/{stuck}/stat"))
            .is_ok_and(|stat| stat.contains(") D "))
    });
    let child = children(stuck);
    let start = Instant::now();
    assert_eq!(agent.stop().code(), Some(0));
    let took = start.elapsed();
    assert!(
        took > Duration::from_millis(900) && took < Duration::from_secs(6),
        "{took:?}"
    );
    assert!(!lives(stuck) && child.iter().all(|pid| !lives(*pid)));
}

/// A control group of the test's own, where a controller's tree can be written.
struct Group(PathBuf);

impl Group {
    fn make(controller: &str) -> Option<Group> {
        let path = Path::new("/sys/fs/cgroup").join(controller);
        let path = path.join(format!("agent-test-{}", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        Some(Group(path))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for name in ["hungry", "forks", ""] {
            let _ = std::fs::remove_dir(self.0.join(name));
        }
    }
}

/// On a hybrid system: the trees of single controllers.
#[test]
fn what_a_service_may_take_binds_it_and_an_oom_kill_is_told_apart() {
    let groups: Vec<Group> = ["memory", "cpu", "pids"]
        .into_iter()
        .filter_map(Group::make)
        .collect();
    if !is_root() || groups.len() < 3 {
        return eprintln!(
            "skipped: no separate memory, cpu and pids controllers that can be written"
        );
    }
    let (folder, program) = workshop();
    let server = RedisServer::start(&[]);
    let program = program.to_string_lossy();
    let text = head(&folder, Some(&server))
        + &service(
            "hungry",
            &program,
            &["eat", "200"],
            "restart = \"never\"\nmemory_max = \"32MiB\"\ncpu_max = \"150%\"\ncpu_weight = 50\npids_max = 7",
        )
        + &service("killed", &program, &[], "restart = \"never\"");
    let config = folder.file("agent.toml", &text);
    let log = folder.join("log");
    let mut command = Command::new(AGENT);
    command
        .args(["run", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command.stderr(std::fs::File::create(&log).expect("a log file"));
    die_with_parent(&mut command);
    let doors: Vec<_> = groups
        .iter()
        .map(|group| {
            std::fs::File::options()
                .write(true)
                .open(group.0.join("cgroup.procs"))
                .expect("ours")
        })
        .collect();
    // SAFETY: write(2) is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            use std::io::Write;
            doors.iter().try_for_each(|mut door| door.write_all(b"0"))
        });
    }
    let mut child = command.spawn().expect("the agent starts");
    let status = |name: &str| entries(&mut server.client(1), &format!("logs:app:{name}:status"));
    let read = |group: &Group, file: &str| {
        let text = std::fs::read_to_string(group.0.join("hungry").join(file));
        text.unwrap_or_default().trim().to_owned()
    };
    let mut seen = Vec::new();
    eventually("it was killed", || {
        if seen.len() < 4 {
            seen = [
                (0, "memory.limit_in_bytes"),
                (1, "cpu.cfs_quota_us"),
                (1, "cpu.shares"),
                (2, "pids.max"),
            ]
            .iter()
            .map(|(group, file)| read(&groups[*group], file))
            .filter(|text| !text.is_empty())
            .collect();
        }
        status("hungry")
            .iter()
            .any(|entry| entry.field("event").as_deref() == Some("exit"))
    });
    // The group lives as long as the run: it may have been too short to be read.
    if seen.len() == 4 {
        assert_eq!(seen, ["33554432", "150000", "512", "7"]);
    }
    let exit = |name: &str| {
        let all = status(name);
        all.into_iter()
            .find(|entry| entry.field("event").as_deref() == Some("exit"))
    };
    let entry = exit("hungry").expect("it ended");
    assert_eq!(entry.message(), "Executable exited with code 137.");
    assert_eq!(entry.field("reason").as_deref(), Some("out of memory"));
    // Another stream: it may be there a moment later.
    eventually("the error stream says so", || {
        messages(&mut server.client(1), "logs:app:hungry:error")
            == ["The kernel ended the process with SIGKILL: it was out of memory."]
    });
    // Any other SIGKILL is none.
    let socket = folder.join("agent.sock");
    let ask = |words: &[&str]| {
        Command::new(AGENT)
            .args(words)
            .env("AGENT_SOCKET", &socket)
            .status()
    };
    assert!(ask(&["signal", "KILL", "killed"]).expect("asked").success());
    eventually("it ended", || exit("killed").is_some());
    assert_eq!(exit("killed").expect("ended").field("reason"), None);
    assert!(ask(&["shutdown"]).expect("asked").success());
    eventually("the agent ends", || matches!(child.try_wait(), Ok(Some(_))));
    for group in &groups {
        assert!(
            !group.0.join("hungry").exists(),
            "groups go with their runs"
        );
    }
}

/// Services that end at once, by themselves and by a crash, started again `times` times all in all.
fn restarts(times: u64) {
    let (folder, program) = workshop();
    let program = program.to_string_lossy();
    let quick = "backoff = { initial = \"1ms\", max = \"1ms\" }\nstart_limit = { burst = 0 }";
    let mut text = head(&folder, None);
    for number in 0..6 {
        text.push_str(&service(
            &format!("exits{number}"),
            &program,
            &["exit", "3"],
            quick,
        ));
    }
    for number in 0..2 {
        let untraced = format!("{quick}\ncrash = \"off\"");
        text.push_str(&service(
            &format!("crashes{number}"),
            &program,
            &["crash"],
            &untraced,
        ));
    }
    text.push_str(&service("traced", &program, &["crash"], quick));
    // Redis away is the worse case, but fills its bound first: that is growth by design.
    let text = text.replace("[redis]", "[spool]\nmemory = \"64KiB\"\ndisk = 0\n[redis]");
    let mut agent = Agent::start_beside(&folder, &text);
    let count = || {
        let status = agent.status();
        let services = status["services"].as_array().cloned().unwrap_or_default();
        services
            .iter()
            .map(|one| one["restarts"].as_u64().unwrap_or(0))
            .sum::<u64>()
    };
    let held = || {
        let pid = agent.pid();
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("alive")
            .count();
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("alive");
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        (fds, kib.expect("kibibytes"))
    };
    let limit = Duration::from_secs(600);
    within(limit, "a third of them", || count() >= times / 3);
    let (_, before) = held();
    within(limit, "all of them", || count() >= times);
    let (_, after) = held();
    let all = count();
    let names: Vec<String> = (0..6).map(|number| format!("exits{number}")).collect();
    let mut words = vec!["stop", "traced", "crashes0", "crashes1"];
    words.extend(names.iter().map(String::as_str));
    assert!(agent.ask(&words).status.success());
    eventually("no process is left", || children(agent.pid()).is_empty());
    let fds = held().0;
    println!("{all} restarts: RssAnon {before} → {after} KiB, {fds} descriptors at rest");
    assert!(after < before + 1024, "{before} → {after} KiB");
    assert!(fds < 40, "{fds} descriptors");
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn hundreds_of_restarts_leave_nothing() {
    restarts(600);
}

#[test]
#[ignore = "takes minutes"]
fn ten_thousand_restarts_leave_nothing() {
    restarts(10_000);
}
