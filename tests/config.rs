//! Configuration files → what the operator reads, and what the agent uses. Golden texts:
//! each expected text below was written by hand, and is what a person should see.

use std::path::Path;

use jettison_agent::config::check::parse;
use jettison_agent::config::diagnose::Diagnostics;
use jettison_agent::config::file::Syntax;
use jettison_agent::config::{Environment, Form, Loaded};

fn native(text: &str) -> Result<Loaded, Diagnostics> {
    let path = Path::new("agent.toml");
    parse(text.as_bytes(), path, Syntax::Toml, &Environment::default())
}

fn golden(text: &str, expected: &str) {
    let found = native(text).expect_err("this file is wrong").to_string();
    assert_eq!(found, expected.trim_matches('\n'), "\n{found}\n");
}

#[test]
fn a_native_file() {
    let text = r#"
[agent]
main = "lidar"

[redis]
host = "10.0.0.1"
port = 6380

[service.lidar]
executable = "/usr/local/bin/lidar"
args = ["--rate", "20"]
user = "archer"
restart = "on-failure"
limits = { nofile = 1024, core = 0 }
stop = { signal = "INT", timeout = "3s" }
"#;
    let loaded = native(text).unwrap();
    assert_eq!(loaded.form, Form::Native);
    let config = loaded.config;
    assert_eq!(config.redis.endpoint.to_string(), "10.0.0.1:6380");
    assert_eq!(config.services.len(), 1);
    assert_eq!(config.services[0].stream_name, "lidar");
    assert_eq!(config.agent.main.as_ref().unwrap().as_str(), "lidar");
}

#[test]
fn an_unknown_key_names_the_nearest() {
    golden(
        r#"[service.lidar]
executible = "/usr/local/bin/lidar"
"#,
        r#"
agent.toml:2:1: unknown key `executible` in [service.lidar]
    2 | executible = "/usr/local/bin/lidar"
      | ^^^^^^^^^^ did you mean `executable`?
"#,
    );
}
