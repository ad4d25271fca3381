//! What a process starts with: every key of a service's table, read back from /proc of the running child; what it
//! gets where nothing is said; and the stage that each failure names.
//!
//! The matrix as a table: `cargo test --test supervise_start -- --nocapture --test-threads=1 | grep -o '|.*|$'`.

#[path = "support/agent.rs"]
mod agent;
mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use agent::{AGENT, Agent, die_with_parent, head};
use support::{Scratch, eventually};

fn is_root() -> bool {
    // SAFETY: geteuid(2) always succeeds.
    unsafe { libc::geteuid() == 0 }
}

/// By another process: what is started beside would inherit a descriptor that writes to it, and the kernel executes
/// nothing that somebody writes to (ETXTBSY).
fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").args([from, to]).status();
    assert!(status.expect("cp").success());
}

fn read(pid: i32, name: &str) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/{name}")).expect("a live process");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A line of `/proc/PID/status`, its blanks evened.
fn status(pid: i32, key: &str) -> String {
    let text = read(pid, "status");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let words: Vec<&str> = line.expect("a key of proc(5)").split_whitespace().collect();
    words.join(" ")
}

/// A field of `/proc/PID/stat` by its number in proc(5), from 3 on.
fn stat(pid: i32, number: usize) -> String {
    let text = read(pid, "stat");
    let fields = text.rsplit_once(')').expect("a name in brackets").1;
    let field = fields.split_whitespace().nth(number - 3);
    field.expect("that many fields").to_owned()
}

/// Soft and hard value of each limit, as `/proc/PID/limits` names them.
fn limits(pid: i32) -> BTreeMap<String, (String, String)> {
    let text = read(pid, "limits");
    let rows = text.lines().skip(1).map(|line| {
        let (name, values) = line.split_at(26);
        let mut values = values.split_whitespace().map(str::to_owned);
        let pair = (
            values.next().unwrap_or_default(),
            values.next().unwrap_or_default(),
        );
        (name.trim().to_owned(), pair)
    });
    rows.collect()
}

fn environ(pid: i32) -> Vec<String> {
    let mut entries: Vec<String> = read(pid, "environ")
        .split_terminator('\0')
        .map(str::to_owned)
        .collect();
    entries.sort();
    entries
}

fn link(pid: i32, name: &str) -> String {
    let path = std::fs::read_link(format!("/proc/{pid}/{name}"));
    path.expect("a link").to_string_lossy().into_owned()
}

/// ioprio_get(2): class and level.
fn io_priority(pid: i32) -> (i64, i64) {
    // SAFETY: no pointers.
    let value = unsafe { libc::syscall(libc::SYS_ioprio_get, 1, pid) };
    (value >> 13, value & 0x1fff)
}

fn pid_of(agent: &Agent, service: &str) -> i32 {
    agent.wait_for(service, "ready");
    let pid = agent.service(service)["pid"].as_i64();
    let pid = pid.expect("a process") as i32;
    // `ready` is when exec succeeded; the dynamic loader is through when it sleeps.
    eventually("it sleeps", || stat(pid, 3) == "S");
    pid
}

fn sleeper(name: &str, more: &str) -> String {
    format!(
        "\n[service.{name}]\nexecutable = \"/bin/sleep\"\nargs = [\"1000\"]\ncrash = \"off\"\n{more}\n"
    )
}

/// A row of the matrix: a key, what it is set to, where it is read back, and what stands there.
fn row(key: &str, set: &str, from: &str, seen: &str, wanted: &str) {
    println!("| {key:26} | {set:34} | {from:32} | {seen} |");
    assert_eq!(seen, wanted, "{key} = {set}, {from}");
}

/// What every service is promised, whatever its keys say.
fn assert_clean(pid: i32) {
    for set in ["SigBlk", "SigIgn", "SigCgt", "ShdPnd", "SigPnd"] {
        let none = "0000000000000000";
        row(
            "(signals)",
            "none",
            &format!("status {set}"),
            &status(pid, set),
            none,
        );
    }
    let mut fds: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("a live process")
        .filter_map(|fd| fd.ok()?.file_name().into_string().ok())
        .collect();
    fds.sort();
    row("(descriptors)", "no others", "fd", &fds.join(" "), "0 1 2");
    row(
        "(stdin)",
        "/dev/null",
        "fd/0",
        &link(pid, "fd/0"),
        "/dev/null",
    );
    let own = stat(pid, 6) == pid.to_string();
    row("(session)", "its own", "stat 6", &own.to_string(), "true");
    row("(terminal)", "none", "stat 7", &stat(pid, 7), "0");
}

#[test]
fn every_key_reaches_the_process() {
    let folder = Scratch::new("matrix");
    let file = folder.file("env", "# of the file\nFROM_FILE='a b'\nBOTH=file\n");
    let soft = "cpu = 1000, fsize = \"1GiB\", data = \"1GiB\", stack = \"4MiB\", core = 0, rss = \"512MiB\", \
                nproc = 3000, nofile = 321, memlock = \"64KiB\", as = \"2GiB\", locks = 100, sigpending = 200, \
                msgqueue = 8192, nice = 0, rtprio = 0, rttime = 1000000";
    let full = format!(
        "working_directory = \"/usr\"\nenvironment = {{ OWN = \"1\", BOTH = \"table\" }}\n\
         environment_file = {file:?}\nclear_environment = true\numask = \"027\"\nlimits = {{ {soft} }}\n\
         nice = 7\ncpu_affinity = \"0\"\nscheduling = \"batch\"\nio_priority = \"best-effort:6\"\n\
         oom_score_adj = 300\nno_new_privileges = true\n"
    );
    let agent = Agent::start(None, &sleeper("full", &full));
    let pid = pid_of(&agent, "full");
    let argv = read(pid, "cmdline").replace('\0', " ");
    row(
        "executable, args",
        "/bin/sleep 1000",
        "cmdline",
        argv.trim(),
        "/bin/sleep 1000",
    );
    let seen = environ(pid).join(", ");
    let wanted = "AGENT_SERVICE=full, BOTH=table, FROM_FILE=a b, OWN=1";
    row("clear_environment", "true", "environ", &seen, wanted);
    row("environment", "OWN=1, BOTH=table", "environ", &seen, wanted);
    row(
        "environment_file",
        "FROM_FILE='a b', BOTH=file",
        "environ",
        &seen,
        wanted,
    );
    row(
        "working_directory",
        "/usr",
        "cwd",
        &link(pid, "cwd"),
        "/usr",
    );
    row(
        "umask",
        "027",
        "status Umask",
        &status(pid, "Umask"),
        "0027",
    );
    row("nice", "7", "stat 19", &stat(pid, 19), "7");
    row(
        "cpu_affinity",
        "0",
        "status Cpus_allowed_list",
        &status(pid, "Cpus_allowed_list"),
        "0",
    );
    row(
        "oom_score_adj",
        "300",
        "oom_score_adj",
        read(pid, "oom_score_adj").trim(),
        "300",
    );
    row(
        "no_new_privileges",
        "true",
        "status NoNewPrivs",
        &status(pid, "NoNewPrivs"),
        "1",
    );
    assert_eq!(stat(pid, 41), libc::SCHED_BATCH.to_string());
    assert_eq!(io_priority(pid), (2, 6));
    let limits = limits(pid);
    for (key, name, value) in [
        ("cpu", "Max cpu time", "1000"),
        ("fsize", "Max file size", "1073741824"),
        ("data", "Max data size", "1073741824"),
        ("stack", "Max stack size", "4194304"),
        ("core", "Max core file size", "0"),
        ("rss", "Max resident set", "536870912"),
        ("nproc", "Max processes", "3000"),
        ("nofile", "Max open files", "321"),
        ("memlock", "Max locked memory", "65536"),
        ("as", "Max address space", "2147483648"),
        ("locks", "Max file locks", "100"),
        ("sigpending", "Max pending signals", "200"),
        ("msgqueue", "Max msgqueue size", "8192"),
        ("nice", "Max nice priority", "0"),
        ("rtprio", "Max realtime priority", "0"),
        ("rttime", "Max realtime timeout", "1000000"),
    ] {
        let (soft, hard) = limits.get(name).cloned().unwrap_or_default();
        let (seen, wanted) = (format!("{soft} {hard}"), format!("{value} {value}"));
        row(
            &format!("limits.{key}"),
            value,
            &format!("limits {name}"),
            &seen,
            &wanted,
        );
    }
    assert_clean(pid);
}

#[test]
fn every_scheduling_and_io_class() {
    // Real time needs CAP_SYS_NICE, or a limit that permits it.
    let may_be_real_time = is_root() && {
        let text = std::fs::read_to_string("/proc/self/status").expect("our own");
        let line = text
            .lines()
            .find(|line| line.starts_with("CapEff"))
            .expect("listed");
        let set = u64::from_str_radix(line[8..].trim(), 16).expect("hex");
        set & (1 << 23) != 0
    };
    if !may_be_real_time {
        eprintln!("fifo, rr and realtime are skipped: no CAP_SYS_NICE");
    }
    let cases = [
        (
            "other",
            Some((libc::SCHED_OTHER, 0)),
            "best-effort:0",
            Some((2, 0)),
            false,
        ),
        (
            "batch",
            Some((libc::SCHED_BATCH, 0)),
            "best-effort:7",
            Some((2, 7)),
            false,
        ),
        (
            "idle",
            Some((libc::SCHED_IDLE, 0)),
            "idle",
            Some((3, 0)),
            false,
        ),
        (
            "fifo:10",
            Some((libc::SCHED_FIFO, 10)),
            "realtime:0",
            Some((1, 0)),
            true,
        ),
        (
            "rr:99",
            Some((libc::SCHED_RR, 99)),
            "realtime:7",
            Some((1, 7)),
            true,
        ),
    ];
    let chosen: Vec<_> = cases
        .into_iter()
        .filter(|case| may_be_real_time || !case.4)
        .collect();
    let mut services = String::new();
    for (index, (policy, _, io, _, _)) in chosen.iter().enumerate() {
        let keys = format!("scheduling = {policy:?}\nio_priority = {io:?}");
        services.push_str(&sleeper(&format!("s{index}"), &keys));
    }
    let agent = Agent::start(None, &services);
    for (index, (policy, scheduling, io, io_class, _)) in chosen.into_iter().enumerate() {
        let pid = pid_of(&agent, &format!("s{index}"));
        let found = format!("{} {}", stat(pid, 41), stat(pid, 40));
        let (class, priority) = scheduling.expect("one");
        row(
            "scheduling",
            policy,
            "stat 41, 40",
            &found,
            &format!("{class} {priority}"),
        );
        let (found, (class, level)) = (io_priority(pid), io_class.expect("one"));
        let found = format!("{} {}", found.0, found.1);
        row(
            "io_priority",
            io,
            "ioprio_get(2)",
            &found,
            &format!("{class} {level}"),
        );
    }
}

#[test]
fn users_groups_and_capabilities() {
    if !is_root() {
        return eprintln!("skipped: needs root to become another user");
    }
    let services = sleeper(
        "named",
        "user = \"nobody\"\ngroup = \"daemon\"\nsupplementary_groups = [\"adm\", 7]\n\
         capabilities = [\"NET_BIND_SERVICE\"]",
    ) + &sleeper("numbered", "user = 54321")
        + &sleeper("root_with_one", "capabilities = [\"CAP_CHOWN\"]")
        + &sleeper("root_with_none", "capabilities = []")
        + &sleeper("root_as_is", "");
    let agent = Agent::start(None, &services);
    let sets = |pid| ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| status(pid, set));
    let all = |bits: u64| [bits; 5].map(|bits| format!("{bits:016x}"));

    let pid = pid_of(&agent, "named");
    let nobody = "65534 65534 65534 65534";
    row("user", "nobody", "status Uid", &status(pid, "Uid"), nobody);
    row(
        "group",
        "daemon",
        "status Gid",
        &status(pid, "Gid"),
        "1 1 1 1",
    );
    row(
        "supplementary_groups",
        "adm, 7",
        "status Groups",
        &status(pid, "Groups"),
        "4 7",
    );
    // Ambient too, or the exec of a plain file by a plain user would lose it.
    let (seen, one) = (sets(pid), all(1 << 10));
    for (set, (seen, wanted)) in ["Inh", "Prm", "Eff", "Bnd", "Amb"]
        .iter()
        .zip(seen.iter().zip(&one))
    {
        row(
            "capabilities",
            "NET_BIND_SERVICE",
            &format!("status Cap{set}"),
            seen,
            wanted,
        );
    }
    let environ = environ(pid);
    for wanted in [
        "USER=nobody",
        "LOGNAME=nobody",
        "HOME=/nonexistent",
        "SHELL=/usr/sbin/nologin",
    ] {
        let found = environ.iter().find(|entry| *entry == wanted);
        let found = found.map_or("", String::as_str);
        row("user", "nobody", "environ", found, wanted);
    }
    assert_clean(pid);

    let pid = pid_of(&agent, "numbered");
    let number = "54321 54321 54321 54321";
    row("user", "54321", "status Uid", &status(pid, "Uid"), number);
    row("user", "54321", "status Gid", &status(pid, "Gid"), number);
    assert_eq!(status(pid, "CapEff"), "0000000000000000");
    assert_eq!(status(pid, "CapPrm"), "0000000000000000");
    assert_eq!(status(pid, "CapAmb"), "0000000000000000");

    assert_eq!(sets(pid_of(&agent, "root_with_one")), all(1));
    assert_eq!(sets(pid_of(&agent, "root_with_none")), all(0));
    let own = sets(std::process::id() as i32);
    assert_eq!(sets(pid_of(&agent, "root_as_is")), own);
}

/// What is not a number in /proc: a terminal, and the control group with what it may take.
#[test]
fn a_terminal_and_a_group_of_its_own() {
    let agent = Agent::start(
        None,
        &(sleeper("tty", "pty = true") + &sleeper("piped", "")),
    );
    let pid = pid_of(&agent, "tty");
    let kind = |pid, fd| {
        link(pid, fd)
            .split(['[', ':'])
            .next()
            .unwrap_or("")
            .to_owned()
    };
    let terminal = link(pid, "fd/1").starts_with("/dev/pts/").to_string();
    row(
        "pty",
        "true",
        "fd/1 is a pseudo-terminal",
        &terminal,
        "true",
    );
    row(
        "pty",
        "true",
        "stat 7 (not its controlling one)",
        &stat(pid, 7),
        "0",
    );
    row("pty", "true", "fd/2", &kind(pid, "fd/2"), "pipe");
    row(
        "pty",
        "(not set)",
        "fd/1",
        &kind(pid_of(&agent, "piped"), "fd/1"),
        "pipe",
    );
    let groups = read(pid, "cgroup");
    let unified = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let own = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if !is_root() || unified.is_none() || !own.contains(" - cgroup2 ") {
        return eprintln!("the control group is skipped: none can be made here");
    }
    let last = unified.and_then(|path| path.rsplit('/').next());
    let last = last
        .unwrap_or_default()
        .split('@')
        .next()
        .unwrap_or_default();
    row(
        "(control group)",
        "its own",
        "cgroup, last part",
        last,
        "tty",
    );
}

/// It really may: a port below 1024, bound by a user who is not root.
#[test]
fn a_capability_serves_a_user_who_is_not_root() {
    if !is_root() {
        return eprintln!("skipped: needs root to become another user");
    }
    let script = "import socket; s = socket.socket(); s.bind((\"127.0.0.1\", 0)); \
                  import os; print(\"bound\", os.getuid(), flush=True); \
                  s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP); \
                  print(\"raw\", flush=True); import time; time.sleep(1000)";
    let service = |name: &str, capabilities: &str| {
        format!(
            "\n[service.{name}]\nexecutable = \"/usr/bin/python3\"\nargs = [\"-c\", '''{script}''']\n\
             user = 54321\nrestart = \"never\"\ncrash = \"off\"\nready = {{ log = \"^raw$\" }}\n{capabilities}\n"
        )
    };
    let services = service("may", "capabilities = [\"NET_RAW\"]") + &service("may_not", "");
    let agent = Agent::start(None, &services);
    agent.wait_for("may", "ready");
    agent.wait_for("may_not", "failed");
}

/// Started by somebody untidy: nothing of that reaches a service.
#[test]
fn nothing_of_the_agents_own_is_passed_on() {
    let folder = Scratch::new("untidy");
    let text = head(&folder, None) + &sleeper("plain", "");
    let config = folder.file("agent.toml", &text);
    let log = std::fs::File::create(folder.join("log")).expect("a log file");
    let script = "umask 077; ulimit -Sn 300; echo 250 >/proc/self/oom_score_adj; \
                  trap '' HUP USR1 PIPE CHLD TERM; exec 7</etc/passwd 9>/dev/null; exec \"$0\" run --config \"$1\"";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, AGENT]).arg(&config);
    command
        .env("KEPT", "yes")
        .env("AGENT_CONFIG", "/x")
        .env("REDIS_PASSWORD", "x");
    command
        .env("NOTIFY_SOCKET", "@nobody")
        .env("AGENT_SERVICE", "outer");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    die_with_parent(&mut command);
    // SAFETY: sigprocmask is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
            Ok(())
        });
    }
    let mut child = command.spawn().expect("sh");
    let ask = |words: &[&str]| {
        let socket = folder.join("agent.sock");
        let output = Command::new(AGENT)
            .args(words)
            .env("AGENT_SOCKET", socket)
            .output();
        output.expect("the client runs")
    };
    let mut pid = None;
    eventually("the service runs", || {
        let output = ask(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        pid = status["services"][0]["pid"].as_i64().map(|pid| pid as i32);
        pid.is_some()
    });
    let pid = pid.expect("a process");
    eventually("it sleeps", || stat(pid, 3) == "S");
    assert_clean(pid);
    row(
        "umask",
        "(not set; the agent's 077)",
        "status Umask",
        &status(pid, "Umask"),
        "0022",
    );
    let score = read(pid, "oom_score_adj");
    row(
        "oom_score_adj",
        "(not set; the agent's 250)",
        "oom_score_adj",
        score.trim(),
        "0",
    );
    // As the agent found it, not as it changed it for itself.
    let files = &limits(pid)["Max open files"].0;
    row(
        "limits.nofile",
        "(not set; 300 at the agent's start)",
        "limits Max open files",
        files,
        "300",
    );
    let environ = environ(pid);
    assert!(
        environ.iter().any(|entry| entry == "KEPT=yes"),
        "{environ:?}"
    );
    assert!(
        environ.iter().any(|entry| entry == "AGENT_SERVICE=plain"),
        "{environ:?}"
    );
    for kept_back in [
        "AGENT_CONFIG=",
        "REDIS_PASSWORD=",
        "NOTIFY_SOCKET=",
        "AGENT_SERVICE=outer",
    ] {
        assert!(
            !environ.iter().any(|entry| entry.starts_with(kept_back)),
            "{environ:?}"
        );
    }
    assert!(ask(&["shutdown"]).status.success());
    eventually("the agent ends", || matches!(child.try_wait(), Ok(Some(_))));
}

/// What only root may do, asked of an agent that is not root: each stage says its name.
#[test]
fn each_stage_that_fails_is_named() {
    let folder = Scratch::new("stages");
    let unreadable = folder.file("no-entry", "#!/bin/sh\n");
    let bad = folder.file("bad.env", "FINE=1\nnot a variable\n");
    let (plain, bad) = (unreadable.display().to_string(), bad.display().to_string());
    let cases: &[(&str, &str, &str)] = &[
        (
            "/bin/true",
            "limits = { memlock = \"unlimited\" }",
            "setting limit memlock: Operation not permitted (EPERM)",
        ),
        (
            "/bin/true",
            "nice = -5",
            "setting nice: Permission denied (EACCES)",
        ),
        (
            "/bin/true",
            "scheduling = \"fifo:10\"",
            "setting scheduling: Operation not permitted (EPERM)",
        ),
        (
            "/bin/true",
            "scheduling = \"rr:10\"",
            "setting scheduling: Operation not permitted (EPERM)",
        ),
        (
            "/bin/true",
            "io_priority = \"realtime:0\"",
            "setting io priority: Operation not permitted (EPERM)",
        ),
        (
            "/bin/true",
            "oom_score_adj = -500",
            "setting oom_score_adj: Permission denied (EACCES)",
        ),
        (
            "/bin/true",
            "cpu_affinity = \"1000\"",
            "setting cpu affinity: Invalid argument (EINVAL)",
        ),
        (
            "/bin/true",
            "capabilities = [\"CHOWN\"]",
            "dropping capabilities: Operation not permitted (EPERM)",
        ),
        (
            "/bin/true",
            "capabilities = [\"CHOWN\"]\nno_new_privileges = true",
            "setting capabilities: Operation not permitted (EPERM)",
        ),
        (
            "/bin/true",
            "supplementary_groups = [7]",
            "setting supplementary groups: Operation not permitted (EPERM)",
        ),
        (
            "/bin/true",
            "user = 65534",
            "setting supplementary groups: Operation not permitted (EPERM)",
        ),
        (
            "/bin/true",
            "user = 65534\ngroup = 54321\nsupplementary_groups = []",
            "setting user 65534: Operation not permitted (EPERM)",
        ),
        (
            "/bin/true",
            "group = 65534\nsupplementary_groups = []",
            "setting group 65534: Operation not permitted (EPERM)",
        ),
        (
            "/bin/true",
            "user = \"ghost\"",
            "finding user ghost: not in /etc/passwd",
        ),
        (
            "/bin/true",
            "group = \"ghosts\"",
            "finding group ghosts: not in /etc/group",
        ),
        (
            "/bin/true",
            "supplementary_groups = [\"ghosts\"]",
            "finding group ghosts: not in /etc/group",
        ),
        (
            "/bin/true",
            "working_directory = \"/no/such\"",
            "changing to directory /no/such: No such file or directory (ENOENT)",
        ),
        (
            "/bin/true",
            "environment_file = \"/no/such\"",
            "reading environment file /no/such: No such file or directory (ENOENT)",
        ),
        (
            "/bin/true",
            "environment_file = \"BAD\"",
            "reading environment file BAD: line 2 is not KEY=VALUE",
        ),
        (
            "no-such-program",
            "",
            "finding no-such-program on PATH: No such file or directory (ENOENT)",
        ),
        (
            "/no/such/program",
            "",
            "executing /no/such/program: No such file or directory (ENOENT)",
        ),
        ("PLAIN", "", "executing PLAIN: Permission denied (EACCES)"),
        ("/usr", "", "executing /usr: Permission denied (EACCES)"),
        (
            "/etc/passwd/x",
            "",
            "executing /etc/passwd/x: Not a directory (ENOTDIR)",
        ),
    ];
    let fill = |text: &str| text.replace("PLAIN", &plain).replace("BAD", &bad);
    let mut text = head(&folder, None);
    for (index, (executable, keys, _)) in cases.iter().enumerate() {
        text.push_str(&format!(
            "\n[service.s{index}]\nexecutable = {:?}\nrestart = \"never\"\ncrash = \"off\"\n{}\n",
            fill(executable),
            fill(keys)
        ));
    }
    let config = folder.file("agent.toml", &text);
    let log = folder.join("log");
    let mut command = Command::new(AGENT);
    command.args(["run", "--config"]).arg(&config);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(std::fs::File::create(&log).expect("a log file"));
    if is_root() {
        let copy = folder.join("agent");
        copy_program(Path::new(AGENT), &copy);
        for path in [folder.path(), &copy, &config] {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            std::fs::set_permissions(path, mode).expect("ours");
        }
        command = {
            let mut other = Command::new(&copy);
            other.args(["run", "--config"]).arg(&config);
            other.stdin(Stdio::null()).stdout(Stdio::null());
            other.stderr(std::fs::File::create(&log).expect("a log file"));
            // Drops the supplementary groups too.
            other.uid(54321).gid(54321);
            other
        };
    }
    die_with_parent(&mut command);
    let mut child = command.spawn().expect("the agent starts");
    for (index, (_, keys, words)) in cases.iter().enumerate() {
        if !is_root() && (keys.contains("65534") || keys.contains("54321")) {
            continue;
        }
        let words = format!("Error starting command: {}", fill(words));
        let said = || std::fs::read_to_string(&log).unwrap_or_default();
        let of_service = format!("s{index}");
        let limit = std::time::Duration::from_secs(20);
        let start = std::time::Instant::now();
        let found = |text: &str| {
            text.lines()
                .any(|line| line.contains(&words) && line.contains(&of_service))
        };
        while !found(&said()) {
            if start.elapsed() > limit {
                let _ = std::io::stderr().write_all(said().as_bytes());
                panic!("{of_service} ({keys}) does not say {words:?}");
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// `agent init` and `agent graph`, from nothing to the critical path.
#[test]
fn a_configuration_is_begun_and_its_start_explained() {
    let folder = Scratch::new("begun");
    let script = folder.file("my server.sh", "#!/bin/sh\nexec sleep 1000\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).expect("ours");
    let run = |words: &[&str]| {
        let output = Command::new(AGENT)
            .args(words)
            .current_dir(folder.path())
            .output();
        let output = output.expect("the agent runs");
        let both = [&output.stdout[..], &output.stderr[..]].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&both).into_owned(),
            output.stdout,
        )
    };
    assert_eq!(run(&["init"]).0, Some(2));
    let (code, _, begun) = run(&[
        "init",
        "./my server.sh",
        "sleep 1000",
        "no-such-program --x \"y",
    ]);
    assert_eq!(code, Some(0));
    let begun = String::from_utf8(begun).expect("text");
    assert!(
        begun.contains("# There is no such program here now."),
        "{begun}"
    );
    assert!(
        begun.contains(&format!("executable = {script:?}")),
        "{begun}"
    );
    folder.file("begun.toml", &begun);
    let (code, said, _) = run(&["check", "--config", "begun.toml"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("ok: 3 services"), "{said}");

    let slow = |name: &str, seconds: &str, more: &str| {
        format!(
            "\n[service.{name}]\nexecutable = \"/bin/sh\"\ncrash = \"off\"\n\
             args = [\"-c\", \"sleep {seconds}; echo up; exec sleep 1000\"]\nready = {{ log = \"up\" }}\n{more}\n"
        )
    };
    let services = slow("db", "0.5", "")
        + &slow("cache", "0.1", "")
        + &slow("web", "0.2", "requires = [\"db\"]\nafter = [\"cache\"]");
    let mut agent = Agent::start(None, &services);
    agent.wait_for("web", "ready");
    let graph = agent.ask(&["graph", "--json"]);
    let graph: serde_json::Value = serde_json::from_slice(&graph.stdout).expect("JSON");
    assert_eq!(graph["critical"], serde_json::json!(["db", "web"]));
    let total = graph["total_ms"].as_f64().expect("a time");
    assert!(total > 700.0, "{graph}");
    let page = agent.ask(&["graph"]).stdout;
    let page = String::from_utf8_lossy(&page).into_owned();
    assert!(
        page.contains("last start: ") && page.contains(", by db "),
        "{page}"
    );
    let dot = agent.ask(&["graph", "--dot"]).stdout;
    let dot = String::from_utf8_lossy(&dot).into_owned();
    assert!(dot.contains("\"db\" -> \"web\" [color = red];"), "{dot}");
    assert!(
        dot.contains("\"cache\" -> \"web\" [color = black, style = dashed];"),
        "{dot}"
    );
    // What is started again later waits for nothing that was there already.
    assert!(agent.ask(&["restart", "cache"]).status.success());
    let graph = agent.ask(&["graph", "--json"]);
    let graph: serde_json::Value = serde_json::from_slice(&graph.stdout).expect("JSON");
    assert_eq!(graph["critical"], serde_json::json!(["cache"]));
    assert_eq!(agent.stop().code(), Some(0));
}
