//! Real processes that say, or are asked, whether they are ready and alive.

#[path = "supervise_driver/mod.rs"]
mod harness;

#[path = "support/agent.rs"]
mod agent;
mod support;

use harness::{Driver, alive, eventually};
use serde_json::json;

/// Not a test: what the other tests start (see `supervise_driver`).
#[test]
fn driver() {
    if let Ok(services) = std::env::var("SUPERVISE_DRIVER") {
        harness::drive(&services);
    }
}

/// A program of sd_notify(3)'s protocol, as long as Python is there. It sees to signals between two steps of its own:
/// one that waits for them must not sleep for long.
const SAY: &str = "import os,socket,sys,time
def say(text):
    name = os.environ['NOTIFY_SOCKET']
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.sendto(text.encode(), '\\0' + name[1:] if name[0] == '@' else name)
";

fn python(body: &str) -> Option<serde_json::Value> {
    if !std::path::Path::new("/usr/bin/python3").exists() {
        eprintln!("skipped: no python3");
        return None;
    }
    Some(json!(["/usr/bin/python3", "-c", format!("{SAY}{body}")]))
}

/// A folder of this test's own.
fn scratch(name: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("ready-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a temporary folder");
    path
}

#[test]
fn what_comes_after_waits_for_the_word() {
    let go = scratch("word").join("go");
    let Some(argv) = python(&format!(
        "while not os.path.exists({go:?}): time.sleep(0.01)\nsay('STATUS=all set\\nREADY=1')\ntime.sleep(1000)"
    )) else {
        return;
    };
    let mut driver = Driver::start(json!({"services": [
        {"name": "first", "argv": argv, "ready": {"notify": true}},
        {"name": "next", "argv": ["/bin/sleep", "1000"], "after": ["first"]},
    ]}));
    driver.expect("standing first starting");
    driver.started();
    driver.ask(r#"{"verb":"status","services":[]}"#);
    let status = driver.expect("reply 0 ");
    assert!(status.contains(r#""state":"starting""#), "{status}");
    assert!(status.contains(r#""state":"waiting""#), "{status}");
    std::fs::write(&go, "").expect("written");
    driver.expect("word first status Ready.");
    driver.started();
    assert!(driver.place("word first status Ready.") < driver.place("word next status Started"));
    driver.ask(r#"{"verb":"status","services":["first"]}"#);
    let status = driver.expect("reply 1 ");
    assert!(status.contains(r#""said":"all set""#), "{status}");
    assert_eq!(driver.shutdown(), 0);
    let _ = std::fs::remove_dir_all(go.parent().expect("a folder"));
}

#[test]
fn who_is_not_ready_in_time_has_failed_to_start() {
    let mut driver = Driver::start(json!({"services": [
        {"name": "slow", "argv": ["/bin/sleep", "1000"], "ready": {"notify": true}, "ready_ms": 100},
    ]}));
    let first = driver.started();
    driver.expect("word slow error The process is not ready within 100ms.");
    driver.expect("word slow status Stopping with SIGTERM.");
    driver.expect("word slow status Restarting in");
    driver.started();
    assert!(!alive(first));
    driver.expect("word slow status Restarting in");
    // In its second failed start, and later ones.
    driver.started();
    driver.ask(r#"{"verb":"probe","ready":false,"services":["slow"]}"#);
    let answer = driver.expect("reply 0 ");
    assert!(
        answer.contains("fails again and again: not ready within 100ms"),
        "{answer}"
    );
    assert_eq!(driver.shutdown(), 0);
}

#[test]
fn a_stranger_is_not_heard() {
    let file = scratch("stranger").join("name");
    let Some(argv) = python(&format!(
        "open({file:?} + '.new', 'w').write(os.environ['NOTIFY_SOCKET'])\n\
         os.rename({file:?} + '.new', {file:?})\ntime.sleep(1000)"
    )) else {
        return;
    };
    let mut driver = Driver::start(json!({"services": [
        {"name": "mute", "argv": argv, "ready": {"notify": true}, "ready_ms": 1500},
    ]}));
    driver.started();
    eventually("it has a socket", || file.exists());
    let name = std::fs::read_to_string(&file).expect("written");
    let socket = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
    let address =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(
            name.trim_start_matches('@'),
        )
        .expect("a name");
    socket.send_to_addr(b"READY=1", &address).expect("sent");
    driver.expect("word mute error The process is not ready within 1.5s.");
    assert!(!driver.seen.iter().any(|line| line.contains("Ready.")));
    driver.shutdown();
    let _ = std::fs::remove_dir_all(file.parent().expect("a folder"));
}

#[test]
fn every_way_to_be_ready() {
    let folder = scratch("ways");
    let flag = folder.join("flag");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    // Answers 503 twice, then 200.
    let web = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let web_port = web.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for (number, stream) in web.incoming().flatten().enumerate() {
            let (mut stream, mut request) = (stream, [0u8; 512]);
            let read = stream.read(&mut request).unwrap_or(0);
            assert!(request[..read].starts_with(b"GET /up HTTP/1.1\r\nHost: 127.0.0.1:"));
            let status = if number < 2 { "503 Not yet" } else { "200 OK" };
            let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let sleep = json!(["/bin/sleep", "1000"]);
    let late = format!("sleep 0.2; : > {}; exec sleep 1000", flag.display());
    let mut driver = Driver::start(json!({"services": [
        {"name": "port", "argv": sleep, "ready": {"tcp": port}},
        {"name": "web", "argv": sleep, "ready": {"http": web_port}},
        {"name": "asked", "argv": ["/bin/sh", "-c", late],
         "ready": {"exec": ["/usr/bin/test", "-e", flag]}},
        {"name": "fd", "argv": ["/bin/sh", "-c", "sleep 0.1; echo >&7; exec sleep 1000"],
         "ready": {"fd": 7}},
    ]}));
    for name in ["port", "web", "asked", "fd"] {
        driver.expect(&format!("word {name} status Ready."));
    }
    assert!(flag.exists());
    assert_eq!(driver.shutdown(), 0);
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn a_missed_watchdog_is_killed_and_started_again() {
    let Some(argv) = python(
        "assert os.environ['WATCHDOG_USEC'] == '300000'\nsay('READY=1')\n\
         for i in range(5): time.sleep(0.1); say('WATCHDOG=1')\n\
         print('hangs', flush=True)\ntime.sleep(1000)",
    ) else {
        return;
    };
    let mut driver = Driver::start(json!({"services": [
        {"name": "hung", "argv": argv, "ready": {"notify": true}, "watchdog_ms": 300},
    ]}));
    let first = driver.started();
    driver.expect("stdout hangs");
    driver.expect("word hung error The process missed its watchdog of 300ms and is killed.");
    driver.expect("word hung status Executable exited with code 137.");
    driver.expect("word hung status Restarting in");
    assert!(driver.place("stdout hangs") < driver.place("missed its watchdog"));
    driver.started();
    assert!(!alive(first));
    assert_eq!(driver.shutdown(), 0);
}

#[test]
fn who_asks_for_more_time_gets_it() {
    let Some(argv) = python(
        "import signal\n\
         def end(*_):\n    say('STOPPING=1\\nEXTEND_TIMEOUT_USEC=20000000'); time.sleep(2.5); os._exit(0)\n\
         signal.signal(signal.SIGTERM, end)\n\
         say('EXTEND_TIMEOUT_USEC=20000000')\ntime.sleep(2.5)\nsay('READY=1')\n\
         while True: time.sleep(0.02)",
    ) else {
        return;
    };
    let mut driver = Driver::start(json!({"services": [
        {"name": "slow", "argv": argv, "ready": {"notify": true}, "ready_ms": 2000, "stop_ms": 2000},
    ]}));
    driver.started();
    driver.expect("word slow status Ready.");
    assert_eq!(driver.shutdown(), 0);
    // Not 137, as who takes too long.
    driver.place("word slow status Executable exited with code 0.");
    let late = |line: &String| line.contains("is not ready within") || line.contains("SIGKILL");
    assert!(!driver.seen.iter().any(late), "{:?}", driver.seen);
}

#[test]
fn what_it_says_of_itself_is_shown() {
    let folder = scratch("said");
    let (again, over) = (folder.join("again"), folder.join("over"));
    let Some(argv) = python(&format!(
        "import signal\n\
         def wait_for(path):\n    while not os.path.exists(path): time.sleep(0.01)\n\
         def reload(*_):\n    say('RELOADING=1'); wait_for({again:?}); say('READY=1')\n\
         def end(*_):\n    say('STOPPING=1'); wait_for({over:?}); os._exit(0)\n\
         signal.signal(signal.SIGHUP, reload); signal.signal(signal.SIGTERM, end)\n\
         say('READY=1')\nwhile True: time.sleep(0.02)"
    )) else {
        return;
    };
    let mut driver = Driver::start(json!({"services": [
        {"name": "talks", "argv": argv, "ready": {"notify": true}, "stop_ms": 20_000},
    ]}));
    let pid = driver.started();
    driver.expect("word talks status Ready.");
    let asked = std::cell::Cell::new(0);
    let status = |driver: &mut Driver| {
        driver.ask(r#"{"verb":"status","services":["talks"]}"#);
        driver.expect(&format!("reply {} ", asked.replace(asked.get() + 1)))
    };
    // SAFETY: kill(2) touches no memory; a process that we started.
    unsafe { libc::kill(pid, libc::SIGHUP) };
    let says = |status: String, what: &str| status.contains(&format!(r#""said":"{what}""#));
    eventually("it reloads", || says(status(&mut driver), "reloading"));
    std::fs::write(&again, "").expect("written");
    eventually("it has", || !says(status(&mut driver), "reloading"));
    driver.ask(r#"{"verb":"shutdown"}"#);
    asked.set(asked.get() + 1);
    eventually("it stops", || says(status(&mut driver), "stopping"));
    std::fs::write(&over, "").expect("written");
    driver.expect("word talks status Executable exited with code 0.");
    assert_eq!(driver.end(), 0);
    let _ = std::fs::remove_dir_all(folder);
}

/// Over TLS, as a user of its own, with a prefix: the way of everything else.
#[test]
fn a_key_of_redis_says_that_it_is_ready() {
    let folder = support::Scratch::new("key");
    let openssl = |words: &str| {
        let output = std::process::Command::new("openssl")
            .args(words.split(' '))
            .current_dir(folder.path())
            .output();
        assert!(output.expect("openssl").status.success(), "openssl {words}");
    };
    folder.file("names", "subjectAltName=DNS:localhost");
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca");
    openssl("req -newkey rsa:2048 -nodes -keyout own.key -out own.csr -subj /CN=localhost");
    openssl(
        "x509 -req -in own.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out own.crt -days 2 -extfile names",
    );
    let text = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let port = support::free_port();
    let server = support::RedisServer::start(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &text("own.crt"),
        "--tls-key-file",
        &text("own.key"),
        "--tls-ca-cert-file",
        &text("ca.crt"),
        "--tls-auth-clients",
        "no",
    ]);
    let mut client = server.client(2);
    let mut redis = |words: &[&str]| {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let _: redis::Value = command.query(&mut client).expect("done");
    };
    redis(&["ACL", "SETUSER", "board", "on", ">secret", "~b1:*", "+@all"]);
    let configuration = format!(
        "[agent]\nruntime_dir = {run:?}\nstate_dir = {run:?}\n\
         [redis]\nhost = \"localhost\"\nport = {port}\nusername = \"board\"\npassword = \"secret\"\n\
         key_prefix = \"b1:\"\ntls = {{ ca_file = {ca:?} }}\n\
         [service.one]\nexecutable = \"sleep\"\nargs = [\"1000\"]\nready = {{ redis = \"go\" }}\n",
        run = folder.path(),
        ca = folder.join("ca.crt"),
    );
    redis(&["SET", "go", "1"]);
    redis(&["SET", "b1:go", "0"]);
    let mut agent = agent::Agent::start_beside(&folder, &configuration);
    agent.wait_for("one", "starting");
    eventually("it was asked", || {
        let mut client = server.client(0);
        let stats: String = redis::cmd("INFO")
            .arg("commandstats")
            .query(&mut client)
            .expect("INFO");
        stats.contains("cmdstat_get:")
    });
    assert_eq!(agent.service("one")["state"], "starting");
    redis(&["SET", "b1:go", "now"]);
    agent.wait_for("one", "ready");
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_new_main_process_takes_over() {
    let Some(argv) = python(
        "if os.fork():\n    time.sleep(0.3); os._exit(0)\nsay('MAINPID=%d\\nREADY=1' % os.getpid())\n\
         time.sleep(0.6); os._exit(9)",
    ) else {
        return;
    };
    let mut driver = Driver::start(json!({"services": [
        {"name": "forks", "argv": argv, "ready": {"notify": true}, "restart": "never"},
    ]}));
    let first = driver.started();
    driver.expect("word forks status Ready.");
    eventually("the old one has ended", || !alive(first));
    driver.expect("word forks status Executable exited with code 9.");
    assert_eq!(driver.shutdown(), 0);
}

#[test]
fn commands_before_and_after_belong_to_the_run() {
    let folder = scratch("steps");
    let made = folder.join("made");
    let mut driver = Driver::start(json!({"services": [{
        "name": "stepped", "restart": "never",
        "argv": ["/bin/sh", "-c", format!("cat {}; exec sleep 0.1", made.display())],
        "pre_start": [["/bin/sh", "-c", format!("echo made by $AGENT_SERVICE > {}", made.display())],
                      ["/bin/echo", "two words"]],
        "post_stop": [["/bin/rm", made], ["/bin/echo", "cleaned"], ["/bin/false"]],
    }]}));
    driver.expect("stdout two words");
    driver.expect("stdout made by stepped");
    driver.expect("stdout cleaned");
    driver.expect("drained 1");
    driver.expect("_exit_0}}");
    assert!(driver.place("two words") < driver.place("made by stepped"));
    assert!(driver.place("stdout cleaned") < driver.place("drained 1"));
    assert!(!made.exists());
    assert_eq!(driver.shutdown(), 0);
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn a_command_before_that_fails_is_a_failed_start() {
    let mut driver = Driver::start(json!({"services": [
        {"name": "failing", "argv": ["/bin/echo", "never"], "restart": "never",
         "pre_start": [["/bin/sh", "-c", "echo said; exit 4"]]},
        {"name": "slow", "argv": ["/bin/echo", "never"], "restart": "never", "stop_ms": 100,
         "pre_start": [["/bin/sleep", "1000"]]},
        {"name": "ghost", "argv": ["/bin/echo", "never"], "restart": "never",
         "pre_start": [["/no/such"]]},
    ]}));
    driver.expect("stdout said");
    driver.expect("Failed: pre_start: /bin/sh exited with code 4");
    driver.expect("Failed: pre_start: /bin/sleep took longer than 100ms");
    driver.expect("Failed: pre_start: executing /no/such");
    assert!(!driver.seen.iter().any(|line| line.contains("stdout never")));
    assert_eq!(driver.shutdown(), 0);
}

#[test]
fn a_terminal_makes_lines_leave_at_once() {
    let Some(argv) = python(
        "print(sys.stdout.isatty(), sys.stderr.isatty())\nprint('tab\\there\\\\n')\ntime.sleep(1000)",
    ) else {
        return;
    };
    let mut driver = Driver::start(json!({"services": [
        {"name": "lively", "argv": argv, "pty": true},
    ]}));
    // Without a flush, and as it was written: no carriage return comes with it.
    assert_eq!(driver.expect("stdout True False"), "stdout True False");
    assert_eq!(driver.expect("stdout tab"), "stdout tab\there\\n");
    assert_eq!(driver.shutdown(), 0);
}

/// Where control groups can be made, they are made here.
fn own_group() -> Option<std::path::PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = std::path::Path::new(line.split(' ').nth(4)?).join(path);
    let probe = own.join(format!("ready-probe-{}", std::process::id()));
    let made = std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe));
    if made.is_err() {
        eprintln!("skipped: no control group may be made in {}", own.display());
    }
    made.ok().map(|()| own)
}

/// Starts a process that hides from its service in every way there is without a group.
fn hider(file: &std::path::Path) -> String {
    let file = file.display();
    format!("env -i setsid sh -c 'setsid sleep 1000 & echo $! > {file}.new; mv {file}.new {file}'")
}

fn pid_in(file: &std::path::Path) -> i32 {
    eventually("the hidden one has begun", || file.exists());
    let text = std::fs::read_to_string(file).expect("written");
    text.trim().parse().expect("a pid")
}

#[test]
fn nobody_leaves_a_control_group() {
    let Some(own) = own_group() else { return };
    let file = scratch("group").join("pid");
    let mut driver = Driver::start(json!({"services": [
        {"name": "ready-grouped", "argv": ["/bin/sh", "-c", format!("{}; exec sleep 1000", hider(&file))]},
    ]}));
    driver.started();
    let hidden = pid_in(&file);
    assert!(own.join("ready-grouped").is_dir());
    driver.ask(r#"{"verb":"stop","services":["ready-grouped"]}"#);
    driver.expect(r#"reply 0 {"ok":true}"#);
    assert!(!alive(hidden));
    eventually("the group is gone", || !own.join("ready-grouped").exists());
    assert_eq!(driver.shutdown(), 0);
    let _ = std::fs::remove_dir_all(file.parent().expect("a folder"));
}

/// The group in which it runs has been killed just before.
#[test]
fn a_command_after_a_killed_tree_lives() {
    let Some(_) = own_group() else { return };
    let mut driver = Driver::start(json!({"services": [
        {"name": "ready-after", "argv": ["/bin/sh", "-c", "env -i setsid sleep 1000 & sleep 0.1"],
         "restart": "never", "post_stop": [["/bin/sh", "-c", "sleep 0.1; echo cleaned up"]]},
    ]}));
    driver.started();
    driver.expect("stdout cleaned up");
    driver.expect("word ready-after status {{__END_RUN_");
    assert_eq!(driver.shutdown(), 0);
}

/// A control group in which nobody else starts agents.
struct Apart(std::path::PathBuf);

impl Apart {
    fn below(own: &std::path::Path) -> Apart {
        let path = own.join(format!("ready-apart-{}", std::process::id()));
        std::fs::create_dir(&path).expect("a group");
        Apart(path)
    }

    fn enter<'c>(&self, command: &'c mut std::process::Command) -> &'c mut std::process::Command {
        use std::io::Write;
        use std::os::unix::process::CommandExt;
        let procs = std::fs::File::options()
            .write(true)
            .open(self.0.join("cgroup.procs"));
        let procs = procs.expect("ours");
        // SAFETY: write(2) is async-signal-safe.
        unsafe { command.pre_exec(move || (&procs).write_all(b"0")) }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // Who was in it is a zombie for a moment.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while std::fs::remove_dir(&self.0).is_err() && std::time::Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[test]
fn what_a_killed_agent_left_is_ended_before_anything_starts() {
    let Some(own) = own_group() else { return };
    // Any agent that starts in the same group ends what was left there, also that of the test beside.
    let own = Apart::below(&own);
    let file = scratch("left").join("pid");
    let start = |services| Driver::with(services, |command| own.enter(command));
    let services = |command: &str| json!({"services": [{"name": "ready-left", "argv": ["/bin/sh", "-c", command]}]});
    let mut driver = start(services(&format!("{}; exec sleep 1000", hider(&file))));
    driver.started();
    let hidden = pid_in(&file);
    driver.child.kill().expect("own child");
    driver.child.wait().expect("own child");
    assert!(alive(hidden), "nobody else ended it");
    // An agent that lives keeps what is its own, whoever comes beside it.
    let mut other = start(services("exec sleep 1000"));
    other.started();
    assert!(!alive(hidden));
    let mut third = start(services("exec sleep 1000"));
    third.started();
    other.ask(r#"{"verb":"status","services":[]}"#);
    assert!(other.expect("reply 0 ").contains(r#""state":"ready""#));
    assert_eq!((third.shutdown(), other.shutdown()), (0, 0));
    eventually("the group is gone", || !own.0.join("ready-left").exists());
    let _ = std::fs::remove_dir_all(file.parent().expect("a folder"));
}

/// A script that starts something and then becomes the agent: that is no service's stray.
#[test]
fn what_was_there_before_the_agent_is_left_alone() {
    let file = scratch("heirloom").join("pid");
    let script = format!(
        "sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; exec \"$0\" \"$@\"",
        file.display()
    );
    let services = json!({"services": [
        {"name": "plain", "argv": ["/bin/sh", "-c", "sleep 1000 & exec sleep 1000"]},
    ]});
    let mut driver = Driver::with(services.clone(), |command| {
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let program = command.get_program().to_owned();
        *command = std::process::Command::new("/bin/sh");
        command
            .args(["-c", &script])
            .arg(program)
            .args(arguments)
            .env("SUPERVISE_DRIVER", services.to_string())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
    });
    driver.started();
    let heirloom = pid_in(&file);
    driver.ask(r#"{"verb":"stop","services":["plain"]}"#);
    driver.expect(r#"reply 0 {"ok":true}"#);
    assert_eq!(driver.shutdown(), 0);
    assert!(alive(heirloom));
    // SAFETY: kill(2) touches no memory.
    assert_eq!(unsafe { libc::kill(heirloom, libc::SIGKILL) }, 0);
    let _ = std::fs::remove_dir_all(file.parent().expect("a folder"));
}
