//! Configuration files → what the operator reads, and what the agent uses. Golden texts:
//! each expected text below is what a person should see.

use std::path::Path;
use std::time::Duration;

use jettison_agent::config::check::parse;
use jettison_agent::config::diagnose::Diagnostics;
use jettison_agent::config::file::Syntax;
use jettison_agent::config::{
    Endpoint, Environment, Form, Identity, Kind, Limit, Loaded, OnFailed, Restart, Scheduling,
    Secret,
};
use jettison_agent::service::Signal;

fn native(text: &str) -> Result<Loaded, Diagnostics> {
    let path = Path::new("agent.toml");
    parse(text.as_bytes(), path, Syntax::Toml, &Environment::default())
}

fn json(text: &str) -> Result<Loaded, Diagnostics> {
    let path = Path::new("app.json");
    parse(text.as_bytes(), path, Syntax::Json, &Environment::default())
}

fn golden(text: &str, expected: &str) {
    let found = native(text).expect_err("this file is wrong").to_string();
    assert_eq!(found, expected.trim_matches('\n'), "\n{found}\n");
}

#[test]
fn every_key_of_a_native_file_reaches_its_field() {
    let text = r#"
[agent]
board = "jetson-7"
state_dir = "/data/agent"
runtime_dir = "/run/a"
shutdown_timeout = "1m"
main = "lidar"
tee = true
maintenance = true
group = "dialout"

[redis]
url = "redis://bob:p%40ss@10.0.0.1:6380/4"
value_db = 5
key_prefix = "b7:"
max_len = 500

[spool]
memory = "1MiB"

[health]
compute = false

[service.camera]
executable = "camera"

[service.lidar]
executable = "/usr/local/bin/lidar"
args = ["--rate", "20", ""]
stream_name = "front"
user = "archer"
group = 1000
supplementary_groups = ["video", 44]
working_directory = "/srv"
environment = { RUST_BACKTRACE = "1", EMPTY = "" }
environment_file = "/etc/lidar.env"
clear_environment = true
umask = "027"
limits = { nofile = 1024, core = "unlimited", memlock = "64KiB" }
nice = -5
cpu_affinity = "0-2,4"
scheduling = "rr:7"
oom_score_adj = -500
no_new_privileges = true
capabilities = ["CAP_SYS_NICE", "net_raw"]
type = "oneshot"
after = ["camera"]
requires = ["camera"]
critical = false
restart = "on-failure"
on_failed = "exit"
backoff = { initial = "200ms", max = "1h", reset_after = "1m30s" }
start_limit = { burst = 3, interval = "10s" }
stop = { signal = "SIGINT", timeout = "250ms" }
max_line = "64KiB"
stream = { max_len = 7 }

[service.lidar.health.api]
init = 1500
cap = 1000
"#;
    let config = native(text).unwrap().config;
    let agent = &config.agent;
    assert_eq!(agent.board, "jetson-7");
    assert_eq!(agent.state_dir, Path::new("/data/agent"));
    assert_eq!(agent.runtime_dir, Path::new("/run/a"));
    assert_eq!(agent.shutdown_timeout, Duration::from_secs(60));
    assert_eq!(agent.main.as_ref().unwrap().as_str(), "lidar");
    assert!(agent.tee && agent.maintenance);
    assert_eq!(agent.group.as_deref(), Some("dialout"));
    let redis = &config.redis;
    assert_eq!(redis.endpoint.to_string(), "10.0.0.1:6380");
    assert_eq!(redis.username, "bob");
    assert!(redis.password == Some(Secret::Inline("p@ss".into())));
    assert_eq!((redis.log_db, redis.value_db), (4, 5));
    assert_eq!((redis.key_prefix.as_str(), redis.max_len), ("b7:", 500));
    assert_eq!(config.spool.memory, 1 << 20);
    assert!(!config.health.compute);

    let camera = &config.services[0];
    assert_eq!((camera.name.as_str(), camera.trim.max_len), ("camera", 500));
    let lidar = &config.services[1];
    assert_eq!(lidar.args, ["--rate", "20", ""]);
    assert_eq!(lidar.stream_name, "front");
    assert_eq!(lidar.kind, Kind::Oneshot);
    let first = std::slice::from_ref(&camera.name);
    assert_eq!((&lidar.after[..], &lidar.requires[..]), (first, first));
    assert!(!lidar.critical);
    assert_eq!(lidar.restart, Restart::OnFailure);
    assert_eq!(lidar.on_failed, OnFailed::Exit);
    assert_eq!(lidar.backoff.initial, Duration::from_millis(200));
    assert_eq!(lidar.backoff.max, Duration::from_secs(3600));
    assert_eq!(lidar.reset_after, Duration::from_secs(90));
    assert_eq!(lidar.start_limit.burst, 3);
    assert_eq!(lidar.start_limit.interval, Duration::from_secs(10));
    assert_eq!(lidar.stop.signal, Signal::INT);
    assert_eq!(lidar.stop.timeout, Duration::from_millis(250));
    assert_eq!(lidar.max_line, 64 << 10);
    assert_eq!(lidar.trim.max_len, 7);
    assert_eq!(lidar.pools[0].category, "api");
    assert_eq!(lidar.pools[0].init, Some(1500));
    assert_eq!(lidar.pools[0].depletion_rate, None);

    let process = &lidar.process;
    assert_eq!(process.user, Some(Identity::Name("archer".into())));
    assert_eq!(process.group, Some(Identity::Id(1000)));
    let groups = [Identity::Name("video".into()), Identity::Id(44)];
    assert_eq!(process.supplementary_groups.as_deref(), Some(&groups[..]));
    assert_eq!(
        process.working_directory.as_deref(),
        Some(Path::new("/srv"))
    );
    assert_eq!(process.environment["RUST_BACKTRACE"], "1");
    assert_eq!(process.environment["EMPTY"], "");
    assert_eq!(process.environment_files, [Path::new("/etc/lidar.env")]);
    assert!(process.clear_environment && process.no_new_privileges);
    assert_eq!(process.umask, Some(0o27));
    let limit = |resource, name, value| Limit {
        resource,
        name,
        value,
    };
    let limits = [
        limit(4, "core", None),
        limit(7, "nofile", Some(1024)),
        limit(8, "memlock", Some(65_536)),
    ];
    assert_eq!(process.limits, limits);
    assert_eq!(process.nice, Some(-5));
    assert_eq!(process.cpu_affinity.as_deref(), Some(&[0, 1, 2, 4][..]));
    assert_eq!(process.scheduling, Some(Scheduling::RoundRobin(7)));
    assert_eq!(process.oom_score_adj, Some(-500));
    assert_eq!(process.capabilities.as_deref(), Some(&[13, 23][..]));
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = native("[service.x]\nexecutable = \"x\"\n").unwrap().config;
    assert_eq!(config.agent.state_dir, Path::new("/var/lib/agent"));
    assert_eq!(config.agent.runtime_dir, Path::new("/run/agent"));
    assert_eq!(config.agent.shutdown_timeout, Duration::from_secs(30));
    assert_eq!(config.redis.endpoint.to_string(), "localhost:6379");
    assert_eq!((config.redis.log_db, config.redis.value_db), (1, 2));
    assert_eq!(config.redis.max_len, 1000);
    assert_eq!(config.spool.memory, 8 << 20);
    assert!(config.health.compute);
    let service = &config.services[0];
    assert_eq!(service.stream_name, "x");
    assert_eq!(service.restart, Restart::Always);
    assert_eq!(service.on_failed, OnFailed::Stay);
    assert!(service.critical);
    assert_eq!(service.backoff.initial, Duration::from_millis(100));
    assert_eq!(service.backoff.max, Duration::from_secs(30));
    assert_eq!(service.reset_after, Duration::from_secs(10));
    assert_eq!(service.start_limit.burst, 10);
    assert_eq!(service.start_limit.interval, Duration::from_secs(60));
    assert_eq!(service.stop.signal, Signal::TERM);
    assert_eq!(service.stop.timeout, Duration::from_secs(10));
    assert_eq!(service.max_line, 256 << 10);
    assert_eq!(service.process, jettison_agent::config::Process::default());
    assert!(native("").unwrap().config.services.is_empty());
    assert!(native("\u{feff}[redis]\r\nport = 1\r\n").is_ok());
}

/// A file that spells out the defaults of keys that are not built asks for nothing.
#[test]
fn spelled_out_defaults_are_accepted() {
    let text = r#"
[redis]
username = ""
password = ""
secrets_dir = ""
tls = { ca_file = "", cert_file = "", key_file = "", server_name = "" }
sentinel = { master = "", nodes = [] }
cluster = []
[spool]
memory = "8MiB"
disk = 0
overflow = "drop_oldest"
[crash]
capture = "off"
keep = 16
debug_dirs = ["/usr/lib/debug"]
[health]
expiry = "15s"
[service.lidar]
executable = "/bin/true"
user = ""
pre_start = []
watchdog = ""
stream = { max_len = 1000, max_age = "", exact = false }
pty = false
multi_line = ["markers"]
crash = "off"
[service.lidar.debug]
enabled = false
host = "127.0.0.1"
port = 2345
"#;
    let loaded = native(text).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.config.services[0].process.user, None);
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

#[test]
fn all_problems_at_once_in_the_order_of_the_text() {
    golden(
        r#"[agent]
main = "lidr"
shutdown_timeout = 30

[redis]
port = 70000
password = 1234

[service.lidar]
executable = "/usr/bin/lidar"
restart = "allways"
requires = ["camera"]
stop = { signal = "SIGTREM", timeout = "10" }
"#,
        r#"
agent.toml:2:8: there is no service `lidr`
    2 | main = "lidr"
      |        ^^^^^^ did you mean `lidar`?

agent.toml:3:20: `shutdown_timeout` must be a duration such as "10s", not a number
    3 | shutdown_timeout = 30
      |                    ^^ write "30s" for seconds

agent.toml:6:8: 70000 is out of range for `port`
    6 | port = 70000
      |        ^^^^^ it must be from 1 to 65535

agent.toml:7:12: `password` must be a string, not a number
    7 | password = ****
      |            ^^^^ write it in quotes

agent.toml:11:11: `allways` is not a value of `restart`
   11 | restart = "allways"
      |           ^^^^^^^^^ did you mean `always`?

agent.toml:12:13: there is no service `camera`
   12 | requires = ["camera"]
      |             ^^^^^^^^ write [service.camera], or take it out

agent.toml:13:19: `SIGTREM` is not a signal
   13 | stop = { signal = "SIGTREM", timeout = "10" }
      |                   ^^^^^^^^^ did you mean `TERM`?

agent.toml:13:40: `10` has no unit
   13 | stop = { signal = "SIGTREM", timeout = "10" }
      |                                        ^^^^ write "10s" for seconds, "10ms" for milliseconds
"#,
    );
}

#[test]
fn tables_name_their_keys() {
    golden(
        "[agent]\nboard = \"a\\u0007\"\n[service.a]\nexecutable = \"/a\"\nstop = \"TERM\"\n",
        r#"
agent.toml:2:9: part of a Redis key may not contain '\u{7}'
    2 | board = "a\u0007"
      |         ^^^^^^^^^ take it out

agent.toml:5:8: `stop` must be a table, not a string
    5 | stop = "TERM"
      |        ^^^^^^ its keys are signal, timeout
"#,
    );
}

#[test]
fn what_services_say_about_each_other() {
    golden(
        r#"[service.a]
executable = "/a"
requires = ["b"]
[service.b]
executable = "/b"
after = ["c"]
[service.c]
executable = "/c"
after = ["x", "a"]
[service.x]
executable = "/x"
stream_name = "a"
"#,
        r#"
agent.toml:3:13: services wait for each other: a → b → c → a
    3 | requires = ["b"]
      |             ^^^ take one of these out of `after` and `requires`

agent.toml:12:15: `a` and `x` would write to one stream, `a`
   12 | stream_name = "a"
      |               ^^^ give one of them another `stream_name`
"#,
    );
    golden(
        "[service.a]\nexecutable = \"/a\"\nafter = [\"a\"]\n",
        r#"
agent.toml:3:10: services wait for each other: a → a
    3 | after = ["a"]
      |          ^^^ take one of these out of `after` and `requires`
"#,
    );
}

#[test]
fn contradictions() {
    for (text, brief) in [
        (
            "[redis]\nurl = 'redis://h'\nport = 1\n",
            "agent.toml:3:1: `url` and `port` both say where Redis is",
        ),
        (
            "[redis]\npassword = 'a'\npassword_file = '/p'\n",
            "agent.toml:2:12: `password` and `password_file` are both given",
        ),
        (
            "[redis]\nurl = 'redis://u:p@h'\npassword = 'a'\n",
            "agent.toml:3:12: `url` says this too",
        ),
        (
            "[redis]\nhost = 'h:6379'\n",
            "agent.toml:2:8: the port does not belong into `host`",
        ),
        (
            "[redis]\nport = 0\n",
            "agent.toml:2:8: 0 is out of range for `port`",
        ),
        (
            "[redis]\nmax_len = -1\n",
            "agent.toml:2:11: -1 is out of range for `max_len`",
        ),
        (
            "[redis]\nlog_db = 99999999999999999999999999999999999999999999\n",
            "agent.toml:2:10: that number is out of range for `log_db`",
        ),
        (
            "[agent]\nstate_dir = 'x'\n",
            "agent.toml:2:13: `state_dir` is a relative path",
        ),
        (
            "[service.a]\nexecutable = ''\n",
            "agent.toml:2:1: there is no executable",
        ),
        ("[service.a]\n", "agent.toml:1:10: there is no executable"),
        (
            "[service.a]\nexecutable = \"/a\\u0000\"\n",
            "agent.toml:2:14: `executable` contains a NUL character",
        ),
        (
            "[service.a]\nexecutable = '/a'\nargs = ['x', \"\\u0000\"]\n",
            "agent.toml:3:14: `args[1]` contains a NUL character",
        ),
        (
            "[service.a]\nexecutable = './a'\n",
            "agent.toml:2:14: `executable` is a relative path",
        ),
        (
            "[service.'a b']\nexecutable = '/a'\n",
            "agent.toml:1:10: a service name may not contain ' ' (allowed: letters, digits, '_', '.', '-')",
        ),
        (
            "[service.'..']\nexecutable = '/a'\n",
            "agent.toml:1:10: `..` is not a service name",
        ),
        (
            "[service.a]\nexecutable = '/a'\nstream_name = '../x'\n",
            "agent.toml:3:15: a stream name may not contain '/'",
        ),
        (
            "[service.a]\nexecutable = '/a'\nbackoff = { initial = '2s', max = '1s' }\n",
            "agent.toml:3:35: `max` is shorter than `initial`",
        ),
        (
            "[service.a]\nexecutable = '/a'\nenvironment = { 'A=B' = '1' }\n",
            "agent.toml:3:17: this cannot be the name of a variable",
        ),
        (
            "[service.a]\nexecutable = '/a'\n[[service.a.check]]\nname = 'x'\n",
            "agent.toml:3:1: this check looks at nothing",
        ),
        (
            "[service.a]\nexecutable = '/a'\n[[service.a.check]]\ntcp = 'h:1'\nunix = '/s'\n",
            "agent.toml:5:1: this check looks at more than one thing",
        ),
        (
            "[service.a]\nexecutable = '/a'\ncheck = [{ tcp = 'h' }]\n",
            "agent.toml:3:18: there is no port",
        ),
        (
            "[service.a]\nexecutable = '/a'\ncheck = [{ http = 'https://h' }]\n",
            "agent.toml:3:19: a check speaks plain HTTP, not TLS",
        ),
        (
            "[service.a]\nexecutable = '/a'\ncheck = [{ exec = [] }]\n",
            "agent.toml:3:10: `exec` names no program",
        ),
        (
            "[service.a]\nexecutable = '/a'\ncheck = [{ file = '/f' }]\n",
            "agent.toml:3:10: a check by `file` needs `max_age`",
        ),
        (
            "[service.a]\nexecutable = '/a'\ncheck = [{ unix = '/f', body = 'x' }]\n",
            "agent.toml:3:25: `body` says nothing of a check by `unix`",
        ),
        (
            "[service.a]\nexecutable = '/a'\ncheck = [{ name = 'process', unix = '/f' }]\n",
            "agent.toml:3:19: the pool `process` is the agent's own",
        ),
        (
            "[service.a]\nexecutable = '/a'\ncheck = [{ unix = '/f', action = 'reboot' }]\n",
            "agent.toml:3:34: `reboot` is not a value of `action`",
        ),
        (
            "service = 3\n",
            "agent.toml:1:11: `service` must be a table, not a number",
        ),
        (
            "[service]\na = 3\n",
            "agent.toml:2:5: `a` must be a table, not a number",
        ),
        (
            "[app]\nexecutable = 'x'\n[service.a]\nexecutable = '/a'\n",
            "agent.toml:3:2: a file holds either [app] or [service.NAME], not both",
        ),
    ] {
        let found = native(text).expect_err(text);
        let briefs: Vec<String> = found.0.iter().map(|d| d.brief()).collect();
        assert_eq!(briefs, [brief], "{text}");
    }
}

#[test]
fn slips_of_syntax_are_explained() {
    for (text, shown) in [
        ("a = b", "1:5: a text must stand in quotes; write \"b\""),
        (
            "a: 1",
            "1:4: a key and its value are joined by `=`; write `=` in place of `:`",
        ),
        ("a =", "1:4: a value is missing here; "),
        (
            "a = \"b\nc = 1",
            "1:7: the string is not closed on its line; a quote is missing",
        ),
        (
            "a = 1\na = 2",
            "2:1: this key stands twice; keep one of them",
        ),
        ("[a]\n[a]", "2:2: this table stands twice; join the two"),
        ("a = 012", "1:5: a number may not begin with 0; write 12"),
        (
            "[a",
            "1:3: the `[` of this line is not closed; a `]` is missing",
        ),
        (
            "a = True",
            "1:5: true and false are written in small letters; write true",
        ),
        (
            "a = ['1' '2']",
            "1:10: a `,` or `]` is missing before this; ",
        ),
    ] {
        let found = native(text).expect_err(text);
        let first = &found.0[0];
        let remedy = first.remedy.clone().unwrap_or_default();
        let expected = format!("agent.toml:{shown}");
        assert_eq!(format!("{}; {remedy}", first.brief()), expected, "{text}");
    }
}

const WRAPP: &str = r#"{
  "redis": { "host": "localhost", "port": 6379, "password": "" },
  "app": { "executable": "/usr/local/bin/my service.sh", "args": ["-v"], "user": "", "stream_name": "" },
  "debug": { "enabled": false, "port": 2345, "host": "127.0.0.1" },
  "_comment_debug": "a comment", "_instructions": ["one", "two"]
}"#;

#[test]
fn the_short_form_in_json() {
    let loaded = json(WRAPP).unwrap();
    assert_eq!(loaded.form, Form::Short);
    assert_eq!(loaded.warnings, []);
    let [service] = &loaded.config.services[..] else {
        panic!("one service")
    };
    assert_eq!(service.stream_name, "my service.sh");
    assert_eq!(service.name.as_str(), "my_service.sh");
    assert_eq!(service.restart, Restart::Never);
    assert_eq!(service.args, ["-v"]);
    assert_eq!(service.process.user, None);
    assert_eq!(loaded.config.agent.main, Some(service.name.clone()));
    assert_eq!(loaded.config.redis.password, None);
}

#[test]
fn the_short_form_in_toml_and_without_regard_to_case() {
    let loaded =
        native("[Redis]\nHOST = 'h'\n[APP]\nExecutable = 'sleep'\nUser = 'bob'\n").unwrap();
    let service = &loaded.config.services[0];
    assert_eq!(service.stream_name, "sleep");
    assert_eq!(service.process.user, Some(Identity::Name("bob".into())));
    assert_eq!(loaded.config.redis.endpoint.to_string(), "h:6379");
    assert_eq!(loaded.warnings, []);
}

#[test]
fn the_short_form_warns_where_the_native_form_refuses() {
    let text = r#"{"redis": {"hots": "x", "host": "a", "Host": "b"},
 "app": {"executable": "x"}, "extra": {"deep": 1}}"#;
    let loaded = json(text).unwrap();
    let briefs: Vec<String> = loaded.warnings.iter().map(|d| d.brief()).collect();
    assert_eq!(
        briefs,
        [
            "app.json:1:12: warning: unknown key `hots` in [redis]",
            "app.json:1:38: warning: the key `Host` stands twice",
            "app.json:2:30: warning: unknown key `extra`",
        ]
    );
    // As the tools did that the form comes from: the last one.
    assert_eq!(loaded.config.redis.endpoint.to_string(), "b:6379");
}

#[test]
fn what_is_wrong_in_a_short_file() {
    let found = json(r#"{"redis": {}}"#).unwrap_err();
    assert_eq!(
        found.to_string(),
        "app.json: there is no `app`, so there is nothing to run\n      | `app.executable` names the program"
    );
    let found =
        json("{\"app\": {\"executable\": \"\"},\n \"debug\": {\"enabled\": true}}").unwrap_err();
    let briefs: Vec<String> = found.0.iter().map(|d| d.brief()).collect();
    assert_eq!(briefs, ["app.json:1:10: there is no executable"]);
    let found = json("{\"app\": {\"executable\": \"x\",}}").unwrap_err();
    assert_eq!(
        found.to_string(),
        r#"
app.json:1:28: this is not JSON: no comma may stand before `}`
    1 | {"app": {"executable": "x",}}
      |                            ^"#
            .trim_start()
    );
}

#[test]
fn secrets_dir_wins_with_a_warning() {
    let text = r#"{"redis": {"password": "p", "secrets_dir": "/run/redis/bob/"}, "app": {"executable": "x"}}"#;
    let loaded = json(text).unwrap();
    assert_eq!(loaded.config.redis.username, "bob");
    let file = Secret::File("/run/redis/bob/password".into());
    assert_eq!(loaded.config.redis.password, Some(file));
    assert_eq!(
        loaded.warnings[0].to_string(),
        r#"
app.json:1:24: warning: `secrets_dir` wins over this
    1 | {"redis": {"password": "*", "secrets_dir": "/run/redis/bob/"}, "app": {"executable": "x"}}
      |                        ^^^ take one of them out"#
            .trim_start()
    );
}

#[test]
fn the_environment_goes_over_the_file() {
    let set = |text: &str| Some(text.into());
    let environment = Environment {
        redis_addr: set("[::1]:7"),
        redis_password: set("env"),
        state_dir: set("/s"),
        runtime_dir: set("/r"),
        config: None,
        maintenance: set("yes"),
    };
    let text = "[redis]\nhost = 'h'\npassword = 'file'\n[agent]\nstate_dir = '/x'\n";
    let path = Path::new("a.toml");
    let config = parse(text.as_bytes(), path, Syntax::Toml, &environment)
        .unwrap()
        .config;
    let endpoint = Endpoint::Tcp {
        host: "::1".into(),
        port: 7,
    };
    assert_eq!(config.redis.endpoint, endpoint);
    assert_eq!(config.redis.password, Some(Secret::Inline("env".into())));
    assert_eq!(config.agent.state_dir, Path::new("/s"));
    assert_eq!(config.agent.runtime_dir, Path::new("/r"));
    assert!(config.agent.maintenance);

    let environment = Environment {
        redis_addr: set("h:99999"),
        maintenance: set("maybe"),
        ..Environment::default()
    };
    let found = parse(b"", path, Syntax::Toml, &environment).unwrap_err();
    assert_eq!(
        found.to_string(),
        "AGENT_MAINTENANCE: this is neither yes nor no\n      | write 1 or 0\n\n\
         REDIS_ADDR: `99999` is not a port\n      | ports go from 1 to 65535"
    );
}

#[test]
fn a_condition_that_says_nothing_is_told() {
    let nothing = "`ready` says nothing: the service counts as ready once it runs";
    let warned = |words: &str| -> Vec<String> {
        let loaded = native(&format!("[service.a]\nexecutable = 'x'\n{words}\n")).unwrap();
        loaded.warnings.iter().map(|d| d.message.clone()).collect()
    };
    assert_eq!(warned("ready = { timeout = '5s' }"), [nothing]);
    assert_eq!(warned("ready = {}"), [nothing]);
    let none: [&str; 0] = [];
    assert_eq!(warned("type = 'notify'\nready = { timeout = '5s' }"), none);
    assert_eq!(warned("ready = { notify = true }"), none);
}
