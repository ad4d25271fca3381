//! Health pools as consumers see them: the whole agent and a real redis-server.

#[path = "support/agent.rs"]
mod agent;
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use agent::{AGENT, Agent, head};
use support::{RedisServer, Scratch, eventually, within};

const PROPERTIES: [&str; 8] = [
    "beats",
    "cap",
    "depletion_rate",
    "init",
    "replenish_rate",
    "running",
    "exit",
    "health",
];

fn key(service: &str, category: &str, property: &str) -> String {
    format!("{service}:__healthpool__{category}_{property}")
}

fn get(server: &RedisServer, service: &str, category: &str, property: &str) -> Option<i64> {
    redis::cmd("GET")
        .arg(key(service, category, property))
        .query(&mut server.client(2))
        .expect("an integer or nothing")
}

/// All eight, as far as they are there.
fn pool(server: &RedisServer, service: &str, category: &str) -> Vec<Option<i64>> {
    let read = |property| get(server, service, category, property);
    PROPERTIES.into_iter().map(read).collect()
}

fn sh(name: &str, script: &str, more: &str) -> String {
    format!(
        "\n[service.{name}]\nexecutable = \"/bin/sh\"\nargs = [\"-c\", '''{script}''']\n{more}\n"
    )
}

const API: &str = "[service.s.health.api]\ninit = 1500\ncap = 1000\ndepletion_rate = 100\n\
                   replenish_rate = 15";

#[test]
fn a_configured_pool_from_before_the_first_start_to_a_dead_agent() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("pool");
    let text = head(&folder, Some(&server)).replace("[agent]\n", "[agent]\nmaintenance = true\n")
        + &sh("s", "exec sleep 1000", "stream_name = \"stream\"")
        + API
        + "\n[health]\nexpiry = \"3s\"\n";
    let agent = Agent::start_in(folder, &text);
    let stopped = [0, 1000, 100, 1500, 15, 0, 0, 0].map(Some);
    eventually("it is there although nothing runs", || {
        pool(&server, "stream", "api") == stopped
    });
    let ttl = |server: &RedisServer| -> i64 {
        redis::cmd("TTL")
            .arg(key("stream", "api", "cap"))
            .query(&mut server.client(2))
            .expect("a number")
    };
    assert!((1..=3).contains(&ttl(&server)), "[health] expiry");
    assert!(agent.ask(&["start", "s"]).status.success());
    within(Duration::from_secs(2), "a start within the second", || {
        get(&server, "stream", "api", "running") == Some(1)
    });
    let health = get(&server, "stream", "api", "health").unwrap_or_default();
    assert!(
        (1200..=1500).contains(&health),
        "it begins at init: {health}"
    );
    eventually("it falls by a hundred a second", || {
        get(&server, "stream", "api", "health") < Some(health - 250)
    });
    // Renewed while nothing changes: longer than the expiry.
    let begun = Instant::now();
    within(Duration::from_secs(10), "renewals", || {
        assert!(get(&server, "stream", "api", "cap").is_some());
        begun.elapsed() > Duration::from_secs(4)
    });
    agent.signal(libc::SIGKILL);
    within(
        Duration::from_secs(6),
        "a dead agent leaves no stale health",
        || pool(&server, "stream", "api").iter().all(Option::is_none),
    );
}

#[test]
fn markers_declare_change_and_beat_across_restarts_of_the_service() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("marker");
    let flag = folder.join("go");
    // Every run declares, beats twice, and waits for the flag to end with 3.
    // One write: between two the pool would already fall at the default rate.
    let script = format!(
        "echo '{{{{__healthpool__my_beats_init:500}}}}{{{{__healthpool__my_beats_cap:400}}}}\
         {{{{__healthpool__my_beats_depletion_rate:0}}}}\
         {{{{__healthpool__my_beats_beats}}}} and {{{{__healthpool__my_beats_beats}}}}'; \
         while [ ! -e {0} ]; do sleep 0.05; done; rm {0}; exit 3",
        flag.display()
    );
    let mut agent = Agent::start(
        Some(&server),
        &sh("s", &script, "backoff = { initial = \"10ms\" }"),
    );
    // The category is what precedes the longest known property.
    let first = [2, 400, 0, 500, 20, 1, 0, 500].map(Some);
    eventually("declared and beaten", || {
        pool(&server, "s", "my_beats") == first
    });
    std::fs::write(&flag, "").expect("a file");
    // Beats count on, health begins anew, the exit is the last one's.
    let second = [4, 400, 0, 500, 20, 1, 3, 500].map(Some);
    eventually("again", || pool(&server, "s", "my_beats") == second);
    let process = pool(&server, "s", "process");
    assert_eq!(&process[1..7], &[100, 10, 100, 20, 1, 3].map(Some));
    assert!(agent.ask(&["stop", "s"]).status.success());
    eventually("0 while it does not run", || {
        get(&server, "s", "my_beats", "health") == Some(0)
            && get(&server, "s", "my_beats", "running") == Some(0)
            && get(&server, "s", "process", "health") == Some(0)
    });
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn beats_count_on_across_agents_however_they_end() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("beats");
    // Seven beats a start, never more: who counts wrongly is seen. A pool that only the first run names, and one
    // that the configuration has.
    let script = "i=0; while [ $i -lt 7 ]; do echo '{{__healthpool__my_beats}}'; i=$((i+1)); done; \
                  exec sleep 1000";
    let text = head(&folder, Some(&server)) + &sh("s", script, "") + API;
    let beats = |category: &str| get(&server, "s", category, "beats");
    let mut agent = Agent::start_beside(&folder, &text);
    eventually("the first seven", || beats("my") == Some(7));
    eventually("the process beats", || beats("process") >= Some(3));
    assert_eq!(beats("api"), Some(0));
    let before = beats("process");
    assert_eq!(agent.stop().code(), Some(0));

    let mut agent = Agent::start_beside(&folder, &text);
    eventually("seven more", || beats("my") == Some(14));
    eventually("the process counts on", || beats("process") > before);
    // What consumers have seen is not taken back by an agent that is killed.
    let before = beats("process");
    agent.signal(libc::SIGKILL);
    agent.wait();
    let mut agent = Agent::start_beside(&folder, &text);
    eventually("seven more after a SIGKILL", || beats("my") == Some(21));
    eventually("the process counts on", || {
        beats("process") > before.map(|before| before + 3)
    });
    assert_eq!(agent.stop().code(), Some(0));

    // Power went while the newer file was written: the older one holds.
    let newer = newer_of(folder.join("beats.0"), folder.join("beats.1"));
    std::fs::write(&newer, [0; 64]).expect("a file");
    let mut agent = Agent::start_beside(&folder, &text);
    eventually("what the older file knew", || beats("my") == Some(28));
    assert_eq!(agent.stop().code(), Some(0));

    // Nothing is left of either: they begin anew, and nothing else happens.
    for name in ["beats.0", "beats.1"] {
        std::fs::write(folder.join(name), "beats 1 18446744073709551615 2 0\n{}").expect("a file");
    }
    let mut agent = Agent::start_beside(&folder, &text);
    eventually("from the beginning", || beats("my") == Some(7));
    assert_eq!(agent.stop().code(), Some(0));
}

/// The file with the higher number in its first line.
fn newer_of(one: PathBuf, other: PathBuf) -> PathBuf {
    let number = |path: &Path| -> u64 {
        let text = std::fs::read_to_string(path).expect("a text");
        let number = text.split(' ').nth(2).expect("a number");
        number.parse().expect("a number")
    };
    if number(&one) > number(&other) {
        one
    } else {
        other
    }
}

#[test]
fn all_of_it_is_there_again_after_redis_forgot_everything() {
    let mut server = RedisServer::start(&[]);
    let services = sh("s", "exec sleep 1000", "") + API;
    let mut agent = Agent::start(Some(&server), &services);
    eventually("it is there", || {
        get(&server, "s", "api", "running") == Some(1)
    });
    server.kill();
    server.up();
    within(Duration::from_secs(8), "it is there again", || {
        pool(&server, "s", "api").iter().all(Option::is_some)
            && pool(&server, "s", "process").iter().all(Option::is_some)
    });
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn the_health_keys_may_be_anothers() {
    let server = RedisServer::start(&[]);
    redis::cmd("SET")
        .arg(&[&key("s", "api", "health"), "77"])
        .exec(&mut server.client(2))
        .expect("a foreign value");
    let services = sh("s", "exec sleep 1000", "") + API + "\n[health]\ncompute = false\n";
    let mut agent = Agent::start(Some(&server), &services);
    eventually("the other seven", || {
        get(&server, "s", "api", "running") == Some(1)
    });
    let begun = Instant::now();
    within(Duration::from_secs(10), "some ticks", || {
        assert_eq!(get(&server, "s", "api", "health"), Some(77));
        assert_eq!(get(&server, "s", "process", "health"), None);
        begun.elapsed() > Duration::from_secs(3)
    });
    assert_eq!(agent.stop().code(), Some(0));
}

fn value(server: &RedisServer, key: &str) -> Option<String> {
    let value = redis::cmd("GET").arg(key).query(&mut server.client(2));
    value.expect("a text or nothing")
}

#[test]
fn strange_names_and_huge_values() {
    let server = RedisServer::start(&[]);
    let markers = [
        "{{__healthpool__init_init:7}}",
        "{{__healthpool__a_init:99999999999999999999}}{{__healthpool__a_depletion_rate:0}}",
        "{{__healthpool__health_beats}}",
        "{{__healthpool___beats}}",
        "{{__healthpool__b_health:5}}{{__healthpool__b_running:0}}{{__healthpool__b_init}}",
    ];
    let script: String = markers
        .iter()
        .map(|line| format!("echo \"{line}\"; "))
        .collect();
    let mut agent = Agent::start(Some(&server), &sh("s", &(script + "exec sleep 1000"), ""));
    let of = |category: &str| pool(&server, "s", category);
    eventually("they are pools", || {
        of("init")[3] == Some(7) && of("a")[3] == Some(i64::MAX) && of("health")[0] == Some(1)
    });
    assert_eq!(of("a")[7], Some(i64::MAX));
    assert_eq!(of("init")[1..5], [100, 10, 7, 20].map(Some));
    // As markers they count as any other: their digits as they stood.
    let marked = |key: &str| value(&server, &format!("wrapp:s:__healthpool__{key}"));
    eventually("the last marker counts", || {
        marked("b_init").as_deref() == Some("1")
    });
    assert_eq!(marked("a_init").as_deref(), Some("99999999999999999999"));
    assert_eq!(marked("_beats").as_deref(), Some("1"));
    assert_eq!(marked("b_health").as_deref(), Some("5"));
    // No category, and properties that only the agent knows: no pools.
    let pools: Vec<String> = scanned(&server).into_keys().collect();
    assert_eq!(pools, ["s:a", "s:health", "s:init", "s:process"]);
    assert_eq!(agent.stop().code(), Some(0));
}

/// CPU time of a process so far, in seconds.
fn cpu_seconds(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<f64> = rest
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0.0))
        .collect();
    // SAFETY: a plain number.
    (fields[11] + fields[12]) / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}

fn status_bytes(pid: i32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.trim_matches([':', ' ', '\t']).strip_suffix(" kB"));
    number
        .and_then(|number| number.trim().parse::<u64>().ok())
        .expect("kB")
        * 1024
}

/// Pools by markers of ten services, each with a beat a second.
fn crowd(pools: usize, seconds: u64) {
    let server = RedisServer::start(&[]);
    let each = pools / 10;
    let script = format!(
        "one() {{ i=0; while [ $i -lt {each} ]; do echo \"{{{{__healthpool__p${{i}}_$1}}}}\"; i=$((i+1)); done; }}; \
         one init:1000000; one cap:1000000; one depletion_rate:7; while :; do one beats; sleep 1; done"
    );
    let services: String = (0..10).map(|n| sh(&format!("s{n}"), &script, "")).collect();
    let mut agent = Agent::start(Some(&server), &services);
    let last = format!("p{}", each - 1);
    within(Duration::from_secs(120), "all are there", || {
        (0..10).all(|n| get(&server, &format!("s{n}"), &last, "beats") > Some(1))
    });
    let keys: usize = redis::cmd("DBSIZE")
        .query(&mut server.client(2))
        .expect("a number");
    assert!(keys >= pools * 8, "{keys}");
    let (begun, cpu) = (Instant::now(), cpu_seconds(agent.pid()));
    // Every second every pool has fallen by 7, risen by 20 below its cap, and had a beat.
    for _ in 0..seconds {
        let before: Vec<_> = (0..10)
            .map(|n| get(&server, &format!("s{n}"), &last, "beats"))
            .collect();
        within(Duration::from_secs(30), "beats are told", || {
            (0..10).all(|n| get(&server, &format!("s{n}"), &last, "beats") > before[n])
        });
    }
    let spent = (cpu_seconds(agent.pid()) - cpu) / begun.elapsed().as_secs_f64();
    let (memory, most) = (
        status_bytes(agent.pid(), "VmRSS") >> 20,
        status_bytes(agent.pid(), "VmHWM") >> 20,
    );
    println!(
        "{pools} pools: {:.1} % of a CPU, {memory} MiB, at most {most} MiB",
        100.0 * spent
    );
    assert!(most < 120, "{most} MiB");
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_thousand_pools() {
    crowd(1000, 3);
}

#[test]
#[ignore = "a minute of a busy CPU"]
fn five_thousand_pools() {
    crowd(5000, 20);
}

#[test]
fn a_service_that_invents_pools_without_end_is_bounded_and_told() {
    let server = RedisServer::start(&[]);
    let script = "i=0; while [ $i -lt 5000 ]; do echo \"{{__healthpool__x${i}_beats}}\"; i=$((i+1)); done; \
                  echo all; exec sleep 1000";
    let mut agent = Agent::start(
        Some(&server),
        &(sh("s", script, "") + &sh("well", "exec sleep 1000", "")),
    );
    let told = || -> Vec<String> {
        let all = support::entries(&mut server.client(1), "logs:app:s:error");
        all.iter()
            .filter_map(|entry| entry.field("message"))
            .collect()
    };
    within(Duration::from_secs(40), "it is told", || !told().is_empty());
    within(Duration::from_secs(40), "all markers counted", || {
        value(&server, "wrapp:s:__healthpool__x4999_beats").is_some()
    });
    assert_eq!(told().len(), 1);
    assert!(
        told()[0].starts_with("Too many health pools: beyond 4096"),
        "{:?}",
        told()
    );
    eventually("those within the bound are there", || {
        get(&server, "s", "x4000", "beats") == Some(1)
    });
    assert_eq!(get(&server, "s", "x4999", "beats"), None);
    assert_eq!(get(&server, "well", "process", "running"), Some(1));
    let process = pool(&server, "s", "process");
    assert!(process[7] > Some(0), "{process:?}");
    assert_eq!(agent.stop().code(), Some(0));
}

/// What a consumer sees that scans for pools, and one that asks the query tool for the same.
fn scanned(server: &RedisServer) -> BTreeMap<String, BTreeMap<String, i64>> {
    let mut client = server.client(2);
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*:__healthpool__*")
        .query(&mut client)
        .expect("keys");
    let mut pools: BTreeMap<String, BTreeMap<String, i64>> = BTreeMap::new();
    // Markers are counted as such too, at `wrapp:<stream>:<key>`.
    for key in keys.into_iter().filter(|key| !key.starts_with("wrapp:")) {
        let value: Option<i64> = redis::cmd("GET").arg(&key).query(&mut client).expect("GET");
        let (service, rest) = key.split_once(":__healthpool__").expect("a pool's key");
        let mut properties = PROPERTIES.iter();
        let property = properties.find(|name| rest.ends_with(&format!("_{name}")));
        let property = property.expect("a known property");
        let category = &rest[..rest.len() - property.len() - 1];
        let pool = pools.entry(format!("{service}:{category}")).or_default();
        pool.extend(value.map(|value| ((*property).to_owned(), value)));
    }
    pools
}

fn queried(config: &Path, targets: &[String]) -> BTreeMap<String, BTreeMap<String, i64>> {
    let output = Command::new(AGENT)
        .args(["health", "--config"])
        .arg(config)
        .args(targets)
        .output()
        .expect("the query tool runs");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let data = document["data"].as_object();
    let data = data.unwrap_or_else(|| panic!("{document}"));
    let integers = |pool: &serde_json::Value| {
        let fields = pool.as_object().expect("a pool").iter();
        fields
            .filter_map(|(name, value)| Some((name.clone(), value.as_i64()?)))
            .collect()
    };
    data.iter()
        .map(|(name, pool)| (name.clone(), integers(pool)))
        .collect()
}

/// Once a second for `rounds` seconds. What changed between the two looks is looked at again:
/// a value is the same to both when nobody wrote in between.
fn agree(rounds: u32) {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("agree");
    let redis = format!("[redis]\nhost = \"127.0.0.1\"\nport = {}\n", server.port());
    let config = folder.file("query.toml", &redis);
    let flapping = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); \
                    echo \"{{__healthpool__pulse_beats}} $i\"; sleep 0.05; done; exit 4";
    let services = sh("s", "exec sleep 1000", "")
        + API
        + &sh("flap", flapping, "start_limit = { burst = 0 }")
        + &sh("gone", "exit 0", "restart = \"never\"");
    let mut agent = Agent::start(Some(&server), &services);
    eventually("all pools", || scanned(&server).len() == 5);
    let mut seen = 0;
    for _ in 0..rounds {
        let second = Instant::now();
        within(Duration::from_secs(5), "both see the same", || {
            let before = scanned(&server);
            let targets: Vec<String> = before.keys().cloned().collect();
            let told = queried(&config, &targets);
            let after = scanned(&server);
            if before == after {
                assert_eq!(told, before);
                assert!(before.values().all(|pool| pool.len() == 8), "{before:?}");
                seen += 1;
            }
            before == after
        });
        std::thread::sleep(Duration::from_secs(1).saturating_sub(second.elapsed()));
    }
    assert_eq!(seen, rounds);
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_scan_and_the_query_tool_agree() {
    agree(5);
}

#[test]
#[ignore = "takes ten minutes"]
fn a_scan_and_the_query_tool_agree_for_ten_minutes() {
    agree(600);
}
