//! `agent health` against a real redis-server: what consumers of `jettison_health` rely on.

mod support;

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use jettison_agent::config::{Endpoint, Redis, Secret};
use jettison_agent::{query, sink};
use support::{RedisServer, Scratch};

fn redis_at(endpoint: Endpoint) -> Redis {
    Redis {
        endpoint,
        username: String::new(),
        password: None,
        log_db: 1,
        value_db: 2,
        key_prefix: String::new(),
        value_expiry: Duration::from_secs(15),
        max_len: 1000,
        tls: None,
        sentinel: None,
    }
}

fn tcp(host: &str, port: u16) -> Redis {
    redis_at(Endpoint::Tcp {
        host: host.to_owned(),
        port,
    })
}

struct Answer {
    code: i32,
    out: String,
    err: String,
}

impl Answer {
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).expect("JSON on stdout")
    }
}

fn ask_with(load: impl Fn(Option<&Path>) -> Result<Redis, String>, args: &[&str]) -> Answer {
    let args: Vec<OsString> = args.iter().map(OsString::from).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = query::perform(&args, load, &sink::ask::ask_within, &mut out, &mut err);
    Answer {
        code,
        out: String::from_utf8(out).expect("UTF-8"),
        err: String::from_utf8(err).expect("UTF-8"),
    }
}

fn ask(redis: &Redis, args: &[&str]) -> Answer {
    ask_with(|_| Ok(redis.clone()), args)
}

/// The example of the old tool's documentation, under any name.
fn fill(server: &RedisServer, prefix: &str, leave_out: &[&str]) {
    let mut connection = server.client(2);
    for (property, value) in [
        ("beats", 1523),
        ("cap", 1000),
        ("depletion_rate", 100),
        ("init", 1500),
        ("replenish_rate", 15),
        ("running", 1),
        ("exit", 0),
        ("health", 856),
    ] {
        if !leave_out.contains(&property) {
            let key = format!("{prefix}_{property}");
            let () = redis::cmd("SET")
                .arg(key)
                .arg(value)
                .query(&mut connection)
                .expect("SET");
        }
    }
}

const WHOLE: &str = r#"{
  "data": {
    "myapp:api": {
      "beats": 1523,
      "cap": 1000,
      "depletion_rate": 100,
      "init": 1500,
      "replenish_rate": 15,
      "running": 1,
      "exit": 0,
      "health": 856,
      "exists": true
    }
  }
}
"#;

#[test]
fn a_complete_pool_by_every_way_to_redis() {
    let server = RedisServer::start(&[]);
    fill(&server, "myapp:__healthpool__api", &[]);
    for redis in [
        tcp("127.0.0.1", server.port()),
        tcp("localhost", server.port()),
        tcp("LOCALHOST", server.port()),
        redis_at(Endpoint::Unix(server.socket())),
    ] {
        let answer = ask(&redis, &["myapp:api", " myapp : api "]);
        assert_eq!((answer.code, answer.out.as_str()), (0, WHOLE), "{redis:?}");
        assert_eq!(answer.err, "");
    }
}

#[test]
fn values_do_not_matter_but_their_form_does() {
    let server = RedisServer::start(&[]);
    let redis = redis_at(Endpoint::Unix(server.socket()));
    let mut connection = server.client(2);
    let mut set = |key: &str, value: &str| {
        let () = redis::cmd("SET")
            .arg(key)
            .arg(value)
            .query(&mut connection)
            .expect("SET");
    };
    fill(&server, "dead:__healthpool__p", &[]);
    set("dead:__healthpool__p_health", "0");
    set("dead:__healthpool__p_running", "0");
    assert_eq!(ask(&redis, &["dead:p"]).code, 0);

    fill(&server, "odd:__healthpool__p", &["beats"]);
    set("odd:__healthpool__p_health", "85.5");
    let () = redis::cmd("RPUSH")
        .arg("odd:__healthpool__p_beats")
        .arg(1)
        .query(&mut server.client(2))
        .expect("RPUSH");
    let answer = ask(&redis, &["odd:p"]);
    let pool = &answer.json()["data"]["odd:p"];
    assert_eq!(answer.code, 1);
    assert_eq!(pool["exists"], true);
    assert_eq!(pool["invalid_keys"], serde_json::json!(["beats", "health"]));
    assert_eq!(pool.get("missing_keys"), None);
    assert_eq!(pool.get("health"), None);
}

#[test]
fn missing_keys_in_order_and_targets_sorted() {
    let server = RedisServer::start(&[]);
    let redis = redis_at(Endpoint::Unix(server.socket()));
    fill(&server, "half:__healthpool__x", &["cap", "beats", "exit"]);
    fill(&server, "whole:__healthpool__x", &[]);
    let answer = ask(&redis, &["whole:x", "none:x", "half:x"]);
    assert_eq!(answer.code, 1);
    let data = &answer.json()["data"];
    assert_eq!(
        data["half:x"]["missing_keys"],
        serde_json::json!(["beats", "cap", "exit"])
    );
    assert_eq!(data["half:x"]["exists"], false);
    assert_eq!(data["half:x"]["health"], 856);
    assert_eq!(
        data["none:x"]["missing_keys"].as_array().map(Vec::len),
        Some(8)
    );
    assert_eq!(data["whole:x"]["exists"], true);
    let at = |name: &str| answer.out.find(name).expect("present");
    assert!(at("half:x") < at("none:x") && at("none:x") < at("whole:x"));
}

#[test]
fn a_prefix_a_database_and_a_thousand_targets() {
    let server = RedisServer::start(&[]);
    let mut redis = redis_at(Endpoint::Unix(server.socket()));
    redis.key_prefix = "board7:".to_owned();
    fill(&server, "board7:s:__healthpool__c", &[]);
    assert_eq!(ask(&redis, &["s:c"]).code, 0);
    let names: Vec<String> = (0..1000).map(|n| format!("s{n}:c")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let answer = ask(&redis, &names);
    assert_eq!(answer.code, 1);
    assert_eq!(
        answer.json()["data"].as_object().map(|all| all.len()),
        Some(1000)
    );
    redis.value_db = 3;
    assert_eq!(ask(&redis, &["s:c"]).code, 1);
}

#[test]
fn the_narrowest_access_and_passwords() {
    let server = RedisServer::start(&["--requirepass", "master"]);
    let mut admin = server.client_as(0, "", "master");
    let () = redis::cmd("ACL")
        .arg("SETUSER")
        .arg(&[
            "viewer",
            "on",
            ">s3cret",
            "+get",
            "+select",
            "%R~*:__healthpool__*",
        ])
        .query(&mut admin)
        .expect("ACL");
    let mut redis = redis_at(Endpoint::Unix(server.socket()));
    redis.password = Some(Secret::Inline("master".to_owned()));
    assert_eq!(ask(&redis, &["a:b"]).json()["data"]["a:b"]["exists"], false);

    let folder = Scratch::new("secrets");
    redis.username = "viewer".to_owned();
    redis.password = Some(Secret::File(folder.file("password", " s3cret\n")));
    assert_eq!(ask(&redis, &["a:b"]).json()["data"]["a:b"]["exists"], false);

    for (password, part) in [("wrong", "WRONGPASS"), ("", "NOAUTH")] {
        redis.password = (!password.is_empty()).then(|| Secret::Inline(password.to_owned()));
        let answer = ask(&redis, &["a:b"]);
        assert_eq!(answer.code, 1);
        assert_eq!(answer.json()["error"], "Redis connection failed");
        let details = answer.json()["details"].to_string();
        assert!(
            details.contains(part) || details.to_lowercase().contains("auth"),
            "{details}"
        );
        assert!(!details.contains("s3cret"));
    }

    let missing = folder.join("nothing/password");
    redis.password = Some(Secret::File(missing.clone()));
    let answer = ask(&redis, &["a:b"]).json();
    assert_eq!(answer["error"], "Credential loading failed");
    let details = answer["details"].as_str().expect("text");
    let expected = format!("failed to read password file {}", missing.display());
    assert!(details.starts_with(&expected), "{details}");
    let empty = folder.file("empty", " \n");
    redis.password = Some(Secret::File(empty.clone()));
    let answer = ask(&redis, &["a:b"]).json();
    assert_eq!(
        answer["details"],
        format!("password file {} is empty", empty.display())
    );
}

#[test]
fn errors_are_json_on_stdout_in_the_old_order() {
    let gone = || tcp("127.0.0.1", 1);
    let answer = ask(&gone(), &["a:b"]);
    assert_eq!(
        (answer.code, &answer.json()["error"]),
        (1, &"Redis connection failed".into())
    );
    assert_eq!(answer.err, "");
    assert_eq!(answer.json().get("args"), None);

    let answer = ask(&gone(), &[]);
    assert_eq!(
        (answer.code, &answer.json()["error"]),
        (1, &"No arguments provided".into())
    );

    let answer = ask(&gone(), &["ok:x", "<bad>"]);
    let expected = "{\n  \"error\": \"Invalid arguments\",\n  \"details\": \"invalid format '\\u003cbad\\u003e', \
                    expected \\u003cservice\\u003e:\\u003ccategory\\u003e\",\n  \"args\": [\n    \"ok:x\",\n    \
                    \"\\u003cbad\\u003e\"\n  ]\n}\n";
    assert_eq!((answer.code, answer.out.as_str()), (1, expected));

    // The configuration is looked at before the targets.
    let broken = |path: Option<&Path>| match path {
        Some(path) => Err(format!("cannot read {}", path.display())),
        None => Ok(gone()),
    };
    let answer = ask_with(broken, &["--config", "/x.json", "nonsense"]);
    assert_eq!(answer.json()["error"], "Configuration error");
    assert_eq!(answer.json()["details"], "cannot read /x.json");
    assert_eq!(answer.code, 1);
}

#[test]
fn usage_is_for_stderr() {
    let never = |_: Option<&Path>| Err("not asked".to_owned());
    let answer = ask_with(never, &["-h"]);
    assert_eq!((answer.code, answer.out.as_str()), (0, ""));
    assert!(answer.err.starts_with("Usage: jettison_health"));
    let answer = ask_with(never, &["--verbose", "a:b"]);
    assert_eq!((answer.code, answer.out.as_str()), (2, ""));
    assert!(
        answer
            .err
            .starts_with("flag provided but not defined: -verbose\nUsage")
    );
}

#[test]
fn a_silent_redis_is_left_behind_in_time() {
    let server = RedisServer::start(&[]);
    server.signal(libc::SIGSTOP);
    let began = Instant::now();
    let answer = ask(&tcp("127.0.0.1", server.port()), &["a:b"]);
    let took = began.elapsed();
    assert_eq!(answer.json()["error"], "Redis connection failed");
    assert_eq!(answer.code, 1);
    assert!(took > Duration::from_millis(4500), "{took:?}");
    assert!(took < Duration::from_millis(5500), "{took:?}");
    server.signal(libc::SIGCONT);
}
