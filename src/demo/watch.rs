//! Redis → the screen: what a consumer of the streams and keys sees, as it appears.
//!
//! Deliberately an ordinary client with ordinary commands: what it shows is in Redis.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{Connection, RedisResult};

use super::fallen;
use super::screen::Screen;
use crate::record::{POOL_PROPERTIES, StreamKind, Streams, Trim, pool_key, service_key};

/// The stream names of the services.
pub const SERVICES: [&str; 6] = [
    "demo-camera",
    "demo-lidar",
    "demo-pump",
    "demo-planner",
    fallen::SERVICES[0],
    fallen::SERVICES[1],
];

const KINDS: [StreamKind; 4] = [
    StreamKind::Info,
    StreamKind::Status,
    StreamKind::Error,
    StreamKind::Crash,
];

/// Shows everything until told to stop, and a little longer for the last words.
pub fn watch(client: &redis::Client, screen: Screen, stop: &Arc<AtomicBool>) {
    let (Some(mut logs), Some(mut values)) = (connect(client, 1), connect(client, 2)) else {
        screen.print("cannot read Redis: the account stays empty");
        return;
    };
    let keys: Vec<String> = SERVICES
        .iter()
        .flat_map(|name| {
            let streams = Streams::new(name, Trim { max_len: 0 });
            KINDS.map(|kind| streams.key(kind))
        })
        .collect();
    let mut last: HashMap<String, String> = HashMap::new();
    let mut shown: HashMap<String, String> = HashMap::new();
    let mut due = 0.5;
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        let fresh = read(&mut logs, &keys, &last);
        let quiet = fresh.is_empty();
        for (key, id, fields) in fresh {
            show(screen, &key, &fields);
            last.insert(key, id);
        }
        if screen.seconds() >= due && !stopping {
            show_values(screen, &mut values, &mut shown);
            due += 1.0;
        }
        if stopping && quiet {
            return;
        }
    }
}

fn connect(client: &redis::Client, db: i64) -> Option<Connection> {
    let mut connection = client
        .get_connection_with_timeout(Duration::from_secs(5))
        .ok()?;
    redis::cmd("SELECT").arg(db).exec(&mut connection).ok()?;
    Some(connection)
}

/// A stream's key and its entries: ID, and names and values in turn.
type OfStream = (String, Vec<(String, Vec<String>)>);

/// Key, ID, fields.
type Fresh = (String, String, Vec<(String, String)>);

/// Entries of all streams since the last call; waits up to 200 ms for one.
fn read(logs: &mut Connection, keys: &[String], last: &HashMap<String, String>) -> Vec<Fresh> {
    let since = keys
        .iter()
        .map(|key| last.get(key).map_or("0", String::as_str));
    let reply: RedisResult<Option<Vec<OfStream>>> = redis::cmd("XREAD")
        .arg(&["COUNT", "100", "BLOCK", "200", "STREAMS"])
        .arg(keys)
        .arg(since.collect::<Vec<_>>())
        .query(logs);
    let mut fresh: Vec<Fresh> = Vec::new();
    for (key, entries) in reply.ok().flatten().unwrap_or_default() {
        for (id, flat) in entries {
            let fields = flat
                .chunks_exact(2)
                .filter_map(|pair| match pair {
                    [name, value] => Some((name.clone(), value.clone())),
                    _ => None,
                })
                .collect();
            fresh.push((key.clone(), id, fields));
        }
    }
    // In the order in which they happened, over all streams.
    fresh.sort_by_key(|(_, id, _)| {
        let (ms, seq) = id.split_once('-').unwrap_or((id, "0"));
        (ms.parse().unwrap_or(0u64), seq.parse().unwrap_or(0u64))
    });
    fresh
}

fn show(screen: Screen, key: &str, fields: &[(String, String)]) {
    let field = |wanted: &str| {
        fields
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.as_str())
    };
    if let Some(message) = field("message").filter(|_| field("crash_id").is_some())
        && field("report").is_some()
    {
        return screen.report(key, message);
    }
    let what = field("event").or(field("source")).unwrap_or("marker");
    screen.row(key, what, field("message").unwrap_or_default());
}

/// What changed among the values that the demonstration's services feed.
fn show_values(screen: Screen, values: &mut Connection, shown: &mut HashMap<String, String>) {
    let camera = Streams::new("demo-camera", Trim { max_len: 0 });
    let keys = [
        (camera.value_key("frames"), "value"),
        (camera.value_key("exposure"), "value"),
        (pool_key("demo-pump", "pulse", "health"), "health"),
        (pool_key("demo-lidar", "process", "health"), "health"),
    ];
    for (key, what) in keys {
        let value: RedisResult<Option<String>> = redis::cmd("GET").arg(&key).query(values);
        if let Ok(Some(value)) = value
            && shown.get(&key) != Some(&value)
        {
            screen.row(&key, what, &value);
            shown.insert(key, value);
        }
    }
}

/// redis-cli commands that show what is there, one of each kind.
pub fn suggestions() -> [String; 5] {
    let streams = |name| Streams::new(name, Trim { max_len: 0 });
    let info = streams("demo-camera").key(StreamKind::Info);
    let status = streams("demo-lidar").key(StreamKind::Status);
    [
        format!("-n 1 XREVRANGE {info} + - COUNT 3"),
        format!("-n 1 XRANGE {status} - +"),
        format!("-n 2 GET {}", streams("demo-camera").value_key("frames")),
        format!("-n 2 GET {}", pool_key("demo-pump", "pulse", "health")),
        format!("-n 2 HGETALL {}", service_key("demo-lidar")),
    ]
}

/// Removes what the demonstration wrote to a Redis that is not its own.
pub fn sweep(client: &redis::Client) {
    let Some(mut connection) = connect(client, 1) else {
        return;
    };
    for name in SERVICES {
        let streams = Streams::new(name, Trim { max_len: 0 });
        let keys = KINDS.map(|kind| streams.key(kind));
        let _ = redis::cmd("DEL").arg(&keys[..]).exec(&mut connection);
    }
    let Some(mut connection) = connect(client, 2) else {
        return;
    };
    let camera = Streams::new("demo-camera", Trim { max_len: 0 });
    let mut keys = vec![camera.value_key("frames"), camera.value_key("exposure")];
    for name in SERVICES {
        keys.push(service_key(name));
        for property in POOL_PROPERTIES {
            keys.extend(["process", "pulse"].map(|category| pool_key(name, category, property)));
        }
    }
    let _ = redis::cmd("DEL").arg(&keys).exec(&mut connection);
}
