//! `jettison_health` replaced: the real binary under that name, asked as scripts ask it.
//!
//! The look-ups are those that scripts make with jq, done on the parsed JSON.

mod support;
#[path = "support/wrapp.rs"]
mod wrapp;

use std::process::{Command, Output};

use serde_json::Value;

use support::RedisServer;
use wrapp::{AGENT, Place, start};

const PROPERTIES: [(&str, i64); 8] = [
    ("beats", 1523),
    ("cap", 1000),
    ("depletion_rate", 100),
    ("init", 1500),
    ("replenish_rate", 15),
    ("running", 1),
    ("exit", 0),
    ("health", 856),
];

fn pool(server: &RedisServer, password: &str, name: &str) {
    let (service, category) = name.split_once(':').expect("a pair");
    for (property, value) in PROPERTIES {
        let _: String = redis::cmd("SET")
            .arg(format!("{service}:__healthpool__{category}_{property}"))
            .arg(value)
            .query(&mut server.client_as(2, "", password))
            .expect("SET");
    }
}

/// The tool under its old name, with exactly this environment.
fn tool(place: &Place, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(place.folder.join("jettison_health"));
    command.env_clear();
    command.envs(environment.iter().copied());
    command
}

fn ask(command: &mut Command, words: &[&str]) -> (Option<i32>, Value) {
    let output = command.args(words).output().expect("it runs");
    (output.status.code(), json(&output))
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON on stdout")
}

#[test]
fn the_environment_form_under_the_old_name() {
    let server = RedisServer::start(&["--requirepass", "secret"]);
    for name in ["myapp:api", "myapp:db", "other:api"] {
        pool(&server, "secret", name);
    }
    let place = Place::new();
    let addr = format!("127.0.0.1:{}", server.port());
    let environment = [("REDIS_ADDR", addr.as_str()), ("REDIS_PASSWORD", "secret")];
    let tool = || tool(&place, &environment);

    // One, several, in any order and twice.
    let (code, answer) = ask(&mut tool(), &["myapp:api"]);
    assert_eq!(code, Some(0));
    assert_eq!(answer["data"]["myapp:api"]["health"], 856);
    let (code, answer) = ask(
        &mut tool(),
        &["other:api", "myapp:db", "myapp:api", "other:api"],
    );
    assert_eq!(code, Some(0));
    let keys: Vec<&String> = answer["data"]
        .as_object()
        .expect("an object")
        .keys()
        .collect();
    assert_eq!(keys, ["myapp:api", "myapp:db", "other:api"]);

    // `.data | to_entries[] | select(.value.running == 1) | .key`, and a percentage.
    let running = answer["data"]
        .as_object()
        .expect("an object")
        .iter()
        .filter(|(_, pool)| pool["running"] == 1)
        .count();
    assert_eq!(running, 3);
    let pool = &answer["data"]["myapp:api"];
    let number = |name: &str| pool[name].as_f64().expect("a number");
    assert_eq!((number("health") / number("cap") * 100.0).floor(), 85.0);

    // Missing, and mixed: `jq -e '.data["x:y"].exists'` fails, the others are there.
    let (code, answer) = ask(&mut tool(), &["gone:api", "myapp:api"]);
    assert_eq!(code, Some(1));
    assert_eq!(answer["data"]["gone:api"]["exists"], false);
    assert_eq!(answer["data"]["myapp:api"]["exists"], true);
    let missing = answer["data"]["gone:api"]["missing_keys"]
        .as_array()
        .expect("a list");
    let names: Vec<&str> = missing.iter().filter_map(Value::as_str).collect();
    assert_eq!(names, PROPERTIES.map(|(name, _)| name));

    // Bad form, nothing at all.
    let (code, answer) = ask(&mut tool(), &["myapp", "myapp:api"]);
    assert_eq!(code, Some(1));
    assert_eq!(answer["error"], "Invalid arguments");
    assert_eq!(
        answer["details"],
        "invalid format 'myapp', expected <service>:<category>"
    );
    let (code, answer) = ask(&mut tool(), &[]);
    assert_eq!(code, Some(1));
    assert_eq!(answer["error"], "No arguments provided");

    // The old tool's flags.
    let help = tool().arg("-h").output().expect("it runs");
    assert_eq!(help.status.code(), Some(0));
    assert!(help.stdout.is_empty() && !help.stderr.is_empty());
    let unknown = tool()
        .args(["--frobnicate", "a:b"])
        .output()
        .expect("it runs");
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn the_configuration_form_under_the_old_name() {
    let server = RedisServer::start(&[]);
    let mut acl = redis::cmd("ACL");
    for word in
        "SETUSER robot reset on >first +hello +auth +ping +select +client +get ~*:__healthpool__*"
            .split(' ')
    {
        acl.arg(word);
    }
    let _: String = acl.query(&mut server.client(0)).expect("ACL");
    pool(&server, "", "myapp:api");
    let place = Place::new();
    let secrets = place.folder.join("vault/robot");
    std::fs::create_dir_all(&secrets).expect("a folder");
    std::fs::write(secrets.join("password"), "first\n").expect("a file");
    let config = format!(
        "{{\"_comment\": \"of wrapp too\", \"redis\": {{\"host\": \"127.0.0.1\", \"port\": {}, \"secrets_dir\": {secrets:?}}},\n\
          \"app\": {{\"executable\": \"/nowhere\"}}}}",
        server.port()
    );
    let path = place.folder.file("config.json", &config);
    let path = path.to_str().expect("UTF-8");
    // The file wins over the environment.
    let environment = [("REDIS_ADDR", "127.0.0.1:1"), ("REDIS_PASSWORD", "wrong")];
    let whole = format!("--config={path}");
    for words in [
        &["--config", path, "myapp:api"][..],
        &["-config", path, "myapp:api"],
        &[&whole, "--", "myapp:api"],
    ] {
        let output = tool(&place, &environment)
            .args(words)
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // As it always was, to the byte: scripts also grep.
        let mut expected = String::from("{\n  \"data\": {\n    \"myapp:api\": {\n");
        for (name, value) in PROPERTIES {
            expected.push_str(&format!("      \"{name}\": {value},\n"));
        }
        expected.push_str("      \"exists\": true\n    }\n  }\n}\n");
        assert_eq!(text, expected);
    }
    std::fs::remove_file(secrets.join("password")).expect("ours");
    let (code, answer) = ask(&mut tool(&place, &[]), &["--config", path, "myapp:api"]);
    assert_eq!(code, Some(1));
    assert_eq!(answer["error"], "Credential loading failed");
    let details = answer["details"].as_str().expect("details");
    let words = format!(
        "failed to read password file {}/password",
        secrets.display()
    );
    assert!(details.starts_with(&words), "{details}");
    let (code, answer) = ask(
        &mut tool(&place, &[]),
        &["--config", "/nowhere/c.json", "a:b"],
    );
    assert_eq!(
        (code, &answer["error"]),
        (Some(1), &"Configuration error".into())
    );
}

#[test]
fn agent_health_is_the_same_and_no_redis_is_an_answer() {
    let server = RedisServer::start(&[]);
    pool(&server, "", "myapp:api");
    let addr = format!("127.0.0.1:{}", server.port());
    let mut command = Command::new(AGENT);
    let (code, answer) = ask(
        command.arg("health").env("REDIS_ADDR", &addr),
        &["myapp:api"],
    );
    assert_eq!(code, Some(0));
    assert_eq!(answer["data"]["myapp:api"]["exists"], true);

    let place = Place::new();
    let (code, answer) = ask(
        &mut tool(&place, &[("REDIS_ADDR", "127.0.0.1:1")]),
        &["a:b"],
    );
    assert_eq!(code, Some(1));
    assert_eq!(answer["error"], "Redis connection failed");
}

#[test]
fn q19_what_is_no_integer_is_named_and_fails() {
    let server = RedisServer::start(&[]);
    pool(&server, "", "myapp:api");
    let mut client = server.client(2);
    let key = |property: &str| format!("myapp:__healthpool__api_{property}");
    let _: String = redis::cmd("SET")
        .arg(key("health"))
        .arg("85.5")
        .query(&mut client)
        .expect("SET");
    let _: i64 = redis::cmd("DEL")
        .arg(key("cap"))
        .query(&mut client)
        .expect("DEL");
    let _: i64 = redis::cmd("RPUSH")
        .arg(key("cap"))
        .arg("x")
        .query(&mut client)
        .expect("RPUSH");
    let addr = format!("127.0.0.1:{}", server.port());
    let place = Place::new();
    let (code, answer) = ask(&mut tool(&place, &[("REDIS_ADDR", &addr)]), &["myapp:api"]);
    assert_eq!(code, Some(1));
    let pool = &answer["data"]["myapp:api"];
    assert_eq!(pool["invalid_keys"], serde_json::json!(["cap", "health"]));
    assert!(pool.get("health").is_none() && pool.get("cap").is_none());
}

#[test]
fn an_application_that_has_ended_still_answers() {
    let server = RedisServer::start(&[]);
    let mut wrapp = start(Some(&server), "exit 3");
    assert_eq!(wrapp.code(), Some(3));
    let addr = format!("127.0.0.1:{}", server.port());
    let (code, answer) = ask(
        &mut tool(&wrapp.place, &[("REDIS_ADDR", &addr)]),
        &["app:process"],
    );
    assert_eq!(code, Some(0), "complete, whatever it says");
    let pool = &answer["data"]["app:process"];
    assert_eq!((&pool["running"], &pool["exit"]), (&0.into(), &3.into()));
}
