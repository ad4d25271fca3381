//! Where `wrapp` runs and as whom: users, bare roots, folders it may not write to.

mod support;
#[path = "support/wrapp.rs"]
mod wrapp;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use support::{RedisServer, eventually};
use wrapp::{AGENT, Bare, Place, copy_of_agent, is_root, lines, open_to_all, texts, value};

fn with_tcp(config: &mut serde_json::Value, server: &RedisServer) {
    config["redis"] = serde_json::json!({ "host": "127.0.0.1", "port": server.port() });
}

const WHO: &str = "echo \"$(id -u):$(id -g) $HOME $USER $LOGNAME $SHELL $(pwd)\"";

#[test]
fn a_uid_without_a_name_runs_the_application_as_itself() {
    if !is_root() {
        return eprintln!("skipped: needs root to become another user");
    }
    let server = RedisServer::start(&[]);
    let place = Place::new();
    copy_of_agent(place.folder.path(), "wrapp");
    // `user` is whatever it is: only root can become somebody else.
    let mut config = place.script(None, "echo \"$(id -u):$(id -g) [$USER] $FROM\"");
    with_tcp(&mut config, &server);
    config["app"]["user"] = serde_json::json!("root");
    let mut wrapp = place.start_as(&config, |command| {
        command
            .uid(54321)
            .gid(54321)
            .env_remove("USER")
            .env("FROM", "outside");
    });
    assert_eq!(wrapp.code(), Some(0));
    assert_eq!(lines(&server), ["54321:54321 [] outside"]);
}

#[test]
fn root_runs_it_as_the_user_that_is_named() {
    if !is_root() {
        return eprintln!("skipped: needs root");
    }
    let server = RedisServer::start(&[]);
    // Who stays root keeps root's environment, as it came.
    for (user, expected) in [
        (serde_json::json!("nobody"), "65534:65534 "),
        (
            serde_json::json!("12345"),
            "12345:12345 / 12345 12345 /bin/sh ",
        ),
        (serde_json::json!("root"), "0:0 /data captain "),
    ] {
        let _: String = redis::cmd("FLUSHALL")
            .query(&mut server.client(0))
            .expect("FLUSHALL");
        let place = Place::new();
        let mut config = place.script(Some(&server), WHO);
        config["app"]["user"] = user.clone();
        let mut wrapp = place.start_as(&config, |command| {
            command.env("HOME", "/data").env("USER", "captain");
            command.env_remove("LOGNAME").env_remove("SHELL");
        });
        assert_eq!(wrapp.code(), Some(0), "{user}");
        let line = lines(&server).concat();
        assert!(line.starts_with(expected), "{user}: {line}");
    }
    let place = Place::new();
    let mut config = place.script(Some(&server), WHO);
    config["app"]["user"] = serde_json::json!("nobody-knows");
    let mut wrapp = place.start(&config);
    assert_eq!(wrapp.code(), Some(126), "never as root instead");
    assert!(wrapp.stderr().contains("nobody-knows"));
}

/// The agent itself is the application: it is static, and its words and codes are known.
fn bare_config(server: &RedisServer, args: &str) -> String {
    format!(
        "[redis]\nhost = \"127.0.0.1\"\nport = {}\n[app]\nexecutable = \"/agent\"\nargs = {args}\nstream_name = \"app\"\n",
        server.port()
    )
}

#[test]
fn q6_a_root_folder_with_one_static_program_is_enough() {
    if !is_root() {
        return eprintln!("skipped: needs root for chroot");
    }
    let server = RedisServer::start(&[]);
    let bare = Bare::new();
    bare.file("config.toml", &bare_config(&server, "[\"--version\"]"));
    let output = bare
        .first("/wrapp", &["/config.toml"])
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let version = format!("agent {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(lines(&server), [version], "{text}");
    assert_eq!(texts(&server, "error"), [""; 0]);
    assert!(output.stderr.is_empty(), "{text}");

    let named = bare_config(&server, "[\"nonsense\"]").replace("[app]", "[app]\nuser = \"root\"");
    bare.file("config.toml", &named);
    let status = bare
        .first("/wrapp", &["/config.toml"])
        .status()
        .expect("it runs");
    assert_eq!(status.code(), Some(2), "the application's own");
}

#[test]
fn archer_runs_what_names_no_user_where_archer_exists() {
    if !is_root() {
        return eprintln!("skipped: needs root for chroot");
    }
    let server = RedisServer::start(&[]);
    let bare = Bare::new();
    bare.file(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\narcher:x:4242:4243::/home/archer:/bin/bash\n",
    );
    bare.file("etc/group", "video:x:44:archer\n");
    bare.file("home/archer/.profile", "");
    std::fs::create_dir(bare.folder.join("run")).expect("a folder");
    open_to_all(&bare.folder.join("run"));
    bare.file(
        "inner.toml",
        "[agent]\nmaintenance = true\nruntime_dir = \"/run/inner\"\nstate_dir = \"/run/inner\"\n\
         [redis]\nport = 1\n",
    );
    let args = "[\"run\", \"--config\", \"/inner.toml\"]";
    bare.file("config.toml", &bare_config(&server, args));
    let mut child = bare
        .first("/wrapp", &["/config.toml"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("it runs");
    let mut found = None;
    eventually("the application runs", || {
        found = bare.process_with("/inner.toml");
        found.is_some()
    });
    let application = found.expect("a process");
    let status = std::fs::read_to_string(application.join("status")).expect("it lives");
    let of = |name: &str| -> Vec<String> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let words = line.expect("a line").split_whitespace();
        words.map(str::to_owned).collect()
    };
    assert_eq!(of("Uid:"), ["4242"; 4]);
    assert_eq!(of("Gid:"), ["4243"; 4]);
    assert_eq!(of("Groups:"), ["44", "4243"]);
    assert_eq!(of("CapEff:"), ["0000000000000000"]);
    let cwd = std::fs::read_link(application.join("cwd")).expect("it lives");
    assert_eq!(
        cwd,
        bare.folder.join("home/archer"),
        "a login begins at home"
    );
    let environ = std::fs::read(application.join("environ")).expect("it lives");
    let environ = String::from_utf8_lossy(&environ);
    let variables: Vec<&str> = environ.split_terminator('\0').collect();
    for expected in [
        "HOME=/home/archer",
        "USER=archer",
        "LOGNAME=archer",
        "SHELL=/bin/bash",
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        "AGENT_SERVICE=app",
    ] {
        assert!(variables.contains(&expected), "{variables:?}");
    }
    child.kill().expect("ours");
    child.wait().expect("ours");
}

#[test]
fn its_socket_and_state_have_its_streams_name_and_pid_1_is_also_the_agent() {
    let server = RedisServer::start(&[]);
    let place = Place::new();
    let config = place.script(Some(&server), "echo x > up; sleep 1000");
    let mut wrapp = place.start(&config);
    wrapp.wait_for_file("up");
    let run = wrapp.path("run");
    assert!(run.join("app.sock").exists() && !run.join("agent.sock").exists());
    assert!(wrapp.path("state/app").is_dir());
    let ask = |socket: &Path, words: &[&str]| {
        let mut command = Command::new(AGENT);
        command
            .args(words)
            .env("AGENT_SOCKET", socket)
            .output()
            .expect("it runs")
    };
    eventually("it is live and ready", || {
        ask(&run.join("app.sock"), &["--probe", "--ready"])
            .status
            .success()
    });
    // By its configuration too.
    let config = wrapp.path("config.json");
    let output = Command::new(AGENT)
        .args(["status", "--json", "--config"])
        .arg(&config)
        .output()
        .expect("it runs");
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(status["services"][0]["name"], "app");
    wrapp.signal(libc::SIGTERM);
    wrapp.wait();
    assert!(!run.join("app.sock").exists());

    if !is_root() {
        return eprintln!("skipped: the rest needs root for a PID namespace");
    }
    let bare = Bare::new();
    // As PID 1 `agent --probe` finds it without being told where.
    bare.file(
        "config.toml",
        &bare_config(&server, "[\"--probe\", \"--timeout\", \"5s\"]"),
    );
    let status = bare
        .first("/wrapp", &["/config.toml"])
        .status()
        .expect("it runs");
    assert_eq!(status.code(), Some(0));
    assert!(
        lines(&server)
            .iter()
            .any(|line| line.starts_with("healthy"))
    );
}

#[test]
fn without_a_folder_to_write_to_it_does_without() {
    if !is_root() {
        return eprintln!("skipped: needs root to become another user");
    }
    let server = RedisServer::start(&[]);
    let uid = 54322;
    let place = Place::new();
    copy_of_agent(place.folder.path(), "wrapp");
    let mut config = place.script(None, "echo x > up; sleep 1000");
    with_tcp(&mut config, &server);
    config["agent"] =
        serde_json::json!({"runtime_dir": "/proc/nowhere", "state_dir": "/proc/nowhere"});
    let own = format!("/tmp/agent-{uid}");
    let mut wrapp = place.start_as(&config, |command| {
        command.uid(uid).gid(uid);
    });
    wrapp.wait_for_file("up");
    let socket = Path::new(&own).join("app.sock");
    assert!(socket.exists());
    assert!(Path::new(&own).join("app").is_dir());
    assert_eq!(wrapp.stderr(), "", "nothing is wrong with that");
    wrapp.signal(libc::SIGTERM);
    assert_eq!(wrapp.code(), Some(143));
    let _ = std::fs::remove_dir_all(&own);

    // Whoever else made that folder first could listen in our stead.
    std::fs::create_dir(&own).expect("free");
    let place = Place::new();
    copy_of_agent(place.folder.path(), "wrapp");
    let mut config = place.script(None, "exit 3");
    with_tcp(&mut config, &server);
    config["agent"] =
        serde_json::json!({"runtime_dir": "/proc/nowhere", "state_dir": "/proc/nowhere"});
    let mut wrapp = place.start_as(&config, |command| {
        command.uid(uid).gid(uid);
    });
    assert_eq!(wrapp.code(), Some(3));
    let stderr = wrapp.stderr();
    assert!(stderr.contains("without a control socket"), "{stderr}");
    let left = std::fs::read_dir(&own).expect("ours").count();
    assert_eq!(left, 0, "nothing of it is used");
    let _ = std::fs::remove_dir_all(&own);
}

#[test]
fn two_of_one_stream_both_run() {
    let server = RedisServer::start(&[]);
    let place = Place::new();
    let config = place.script(Some(&server), "echo first; echo x > up; sleep 1000");
    let first = place.start(&config);
    first.wait_for_file("up");
    let place = Place::new();
    let mut second = place.script(Some(&server), "echo second {{two}}; exit 4");
    second["agent"] = config["agent"].clone();
    let mut second = place.start(&second);
    assert_eq!(second.code(), Some(4));
    assert!(second.stderr().contains("already runs on"));
    eventually("both are heard", || {
        let lines = lines(&server);
        lines.contains(&"first".to_owned()) && lines.contains(&"second".to_owned())
    });
    assert_eq!(value(&server, "wrapp:app:two").as_deref(), Some("1"));
}
