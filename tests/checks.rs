//! Liveness checks on the whole agent: real binary, real processes, a real redis-server.

#[path = "support/agent.rs"]
mod agent;
mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use agent::{Agent, lives};
use support::{RedisServer, Scratch, entries, eventually, free_port};

fn sleeper(name: &str, checks: &str) -> String {
    format!("\n[service.{name}]\nexecutable = \"/bin/sleep\"\nargs = [\"1000\"]\n{checks}\n")
}

fn check(service: &str, keys: &str) -> String {
    format!("[[service.{service}.check]]\ninterval = \"100ms\"\n{keys}\n")
}

fn verdicts(server: &RedisServer, name: &str) -> Vec<(String, String)> {
    entries(&mut server.client(1), &format!("logs:app:{name}:status"))
        .iter()
        .filter(|entry| entry.field("event").as_deref() == Some("health"))
        .map(|entry| {
            let field = |name| entry.field(name).unwrap_or_default();
            (field("check"), field("verdict"))
        })
        .collect()
}

fn pool(server: &RedisServer, name: &str, property: &str) -> i64 {
    let key = format!("{name}_{property}");
    let value: Option<i64> = redis::cmd("GET")
        .arg(key)
        .query(&mut server.client(2))
        .unwrap_or_default();
    value.unwrap_or(-1)
}

fn pair(check: &str, verdict: &str) -> (String, String) {
    (check.to_owned(), verdict.to_owned())
}

#[test]
fn a_check_that_never_succeeded_can_be_asked_for() {
    let server = RedisServer::start(&[]);
    let port = free_port();
    let checks = check("s", &format!("name = \"port\"\ntcp = \"127.0.0.1:{port}\""));
    let mut agent = Agent::start(Some(&server), &sleeper("s", &checks));
    eventually("its pool is there", || {
        let of = |property| pool(&server, "s:__healthpool__port", property);
        of("beats") == 0 && of("cap") == 100 && of("health") >= 0
    });
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn every_kind_of_check_follows_what_it_looks_at() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("kinds");
    let port = free_port();
    let (file, socket, flag) = (
        folder.join("file"),
        folder.join("s.sock"),
        folder.join("flag"),
    );
    let all = [
        format!("name = \"tcp\"\ntcp = \"127.0.0.1:{port}\""),
        format!("name = \"http\"\nhttp = \"http://localhost:{port}/health?x\"\nbody = \"up\""),
        format!("name = \"unix\"\nunix = {socket:?}"),
        "name = \"redis\"\nredis = \"robot:pose\"".to_owned(),
        format!("name = \"file\"\nfile = {file:?}\nmax_age = \"1m\""),
        format!("name = \"exec\"\nexec = [\"test\", \"-e\", {flag:?}]"),
    ];
    let names = ["exec", "file", "http", "redis", "tcp", "unix"];
    let checks: String = all
        .iter()
        .map(|keys| check("s", &format!("{keys}\nfailures = 2\naction = \"none\"")))
        .collect();
    let mut agent = Agent::start(Some(&server), &sleeper("s", &checks));
    eventually("all are unhealthy", || {
        let service = agent.service("s");
        names
            .iter()
            .all(|name| service["checks"][name] == "unhealthy")
    });
    let before = agent.service("s");
    assert_eq!(before["state"], "ready", "{before}");
    assert_eq!(before["reason"], "unhealthy by its check exec");
    let probe = agent.ask(&["--probe"]);
    assert_eq!(probe.status.code(), Some(1));
    let line = String::from_utf8_lossy(&probe.stdout).into_owned();
    assert_eq!(line, "unhealthy: s is unhealthy by its check exec\n");
    eventually("the process pool falls without beats", || {
        pool(&server, "s:__healthpool__process", "health") < 90
    });

    let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap_or(0);
            if request[..length].starts_with(b"GET /health?x HTTP/1.1\r\n") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nup");
            }
        }
    });
    let _unix = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    redis::cmd("SET")
        .arg(&["robot:pose", "1"])
        .exec(&mut server.client(2))
        .expect("a key");
    std::fs::write(&file, "").expect("a file");
    std::fs::write(&flag, "").expect("a file");
    eventually("all are healthy", || {
        let service = agent.service("s");
        names
            .iter()
            .all(|name| service["checks"][name] == "healthy")
    });
    assert!(agent.ask(&["--probe"]).status.success());
    let after = agent.service("s");
    assert_eq!(after["pid"], before["pid"], "action = none");
    assert_eq!(after["reason"], serde_json::Value::Null);
    for name in names {
        eventually("its pool has beats", || {
            pool(&server, &format!("s:__healthpool__{name}"), "beats") > 2
        });
        eventually("both verdicts are told", || {
            let told: Vec<_> = verdicts(&server, "s");
            told.contains(&pair(name, "unhealthy")) && told.contains(&pair(name, "healthy"))
        });
    }
    assert_eq!(verdicts(&server, "s").len(), 12, "changes only");
    // A file grows old: nobody writes it.
    let old = std::time::SystemTime::now() - Duration::from_secs(61);
    let opened = std::fs::File::options().write(true).open(&file);
    opened
        .and_then(|file| file.set_modified(old))
        .expect("an old file");
    eventually("an old file is unhealthy", || {
        agent.service("s")["checks"]["file"] == "unhealthy"
    });
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn an_unhealthy_service_is_restarted_and_begins_healthy() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("restart");
    let flag = folder.join("flag");
    std::fs::write(&flag, "").expect("a file");
    let keys = format!("name = \"flag\"\nexec = [\"/usr/bin/test\", \"-e\", {flag:?}]");
    let more = "backoff = { initial = \"10ms\" }\n".to_owned() + &check("s", &keys);
    let mut agent = Agent::start(Some(&server), &sleeper("s", &more));
    agent.wait_for("s", "ready");
    let pid = agent.service("s")["pid"].as_i64().expect("a pid") as i32;
    eventually("beats", || {
        pool(&server, "s:__healthpool__flag", "beats") > 1
    });
    std::fs::remove_file(&flag).expect("the file");
    eventually("it is restarted", || {
        agent.service("s")["restarts"].as_u64() >= Some(1)
    });
    assert!(!lives(pid));
    std::fs::write(&flag, "").expect("a file");
    eventually("it is well", || {
        let service = agent.service("s");
        service["state"] == "ready" && service["checks"]["flag"] == "healthy"
    });
    eventually("the verdict is told", || {
        verdicts(&server, "s").contains(&pair("flag", "unhealthy"))
    });
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_command_that_hangs_is_killed_with_everything_it_started() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("hang");
    let pids = folder.join("pids");
    // A child in its session, and one that has left it.
    let script = format!(
        "echo $AGENT_SERVICE >&2; sleep 1000 & echo $! >> {0}; \
         setsid sh -c 'sleep 1000 & echo $! >> {0}; wait' & echo $$ >> {0}; wait",
        pids.display()
    );
    let keys = format!(
        "name = \"hang\"\nexec = [\"/bin/sh\", \"-c\", {script:?}]\ntimeout = \"300ms\"\n\
         failures = 1\naction = \"none\""
    );
    let mut agent = Agent::start(Some(&server), &sleeper("s", &check("s", &keys)));
    eventually("it is unhealthy", || {
        agent.service("s")["checks"]["hang"] == "unhealthy"
    });
    let read = || -> Vec<i32> {
        let text = std::fs::read_to_string(&pids).unwrap_or_default();
        text.lines().filter_map(|pid| pid.parse().ok()).collect()
    };
    eventually("never more than one run is alive", || {
        let all = read();
        let alive = all.iter().filter(|pid| lives(**pid)).count();
        assert!(alive <= 3, "{alive} of {all:?}");
        all.len() >= 9
    });
    let log = agent.log();
    assert!(
        log.contains("check hang failed: no answer within 300 ms"),
        "{log}"
    );
    let service = agent.service("s");
    assert_eq!(service["state"], "ready", "{service}");
    assert_eq!(agent.stop().code(), Some(0));
    for pid in read() {
        assert!(!lives(pid), "{pid} outlived the agent");
    }
}

#[test]
fn a_command_may_talk_and_is_no_burden() {
    let folder = Scratch::new("talk");
    let keys = "name = \"talk\"\nfailures = 1\naction = \"none\"\ntimeout = \"20s\"\n\
                exec = [\"/bin/sh\", \"-c\", \"head -c 1000000 /dev/zero; echo no disk >&2; exit 3\"]";
    let text = agent::head(&folder, None) + &sleeper("s", &check("s", keys));
    let mut agent = Agent::start_in(folder, &text);
    eventually("it is unhealthy", || {
        agent.service("s")["checks"]["talk"] == "unhealthy"
    });
    let log = agent.log();
    assert!(
        log.contains("check talk failed: exited with code 3: no disk"),
        "{log}"
    );
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn redis_being_away_restarts_nobody() {
    let mut server = RedisServer::start(&[]);
    let keys = "name = \"key\"\nredis = \"k\"\nfailures = 2";
    let mut agent = Agent::start(Some(&server), &sleeper("s", &check("s", keys)));
    redis::cmd("SET")
        .arg(&["k", "1"])
        .exec(&mut server.client(2))
        .expect("a key");
    eventually("it passes", || {
        pool(&server, "s:__healthpool__key", "beats") > 0
    });
    let before = agent.service("s");
    server.kill();
    std::thread::sleep(Duration::from_secs(1));
    let after = agent.service("s");
    assert_eq!(after["pid"], before["pid"]);
    assert_eq!(after["checks"]["key"], "healthy");
    assert!(agent.ask(&["--probe"]).status.success());
    assert_eq!(agent.stop().code(), Some(0));
}
