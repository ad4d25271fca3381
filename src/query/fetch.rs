//! targets → their pools, read from Redis in one round trip.
//!
//! Needs no more of Redis than AUTH, SELECT and GET. A name server or a Redis that keeps
//! silent is left behind when the time is up: the work is done by a thread that nobody
//! waits for longer, because name lookups know no deadline.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use redis::{
    Client, Connection, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    RedisError, Value,
};

use super::answer::{Pool, Pools, Reading};
use super::args::Target;
use crate::config::{Endpoint, Redis, Secret};
use crate::record::{POOL_PROPERTIES, pool_key};

/// Why there are no pools, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    Credential(String),
    Connection(String),
}

pub fn pools(redis: &Redis, targets: BTreeSet<Target>, limit: Duration) -> Result<Pools, Failure> {
    let until = Instant::now() + limit;
    let (answer, answered) = mpsc::sync_channel(1);
    let asked = redis.clone();
    let work = move || {
        // After the time is up nobody listens.
        let _ = answer.send(ask(&asked, &targets, until));
    };
    if let Err(error) = thread::Builder::new().spawn(work) {
        return Err(Failure::Connection(format!(
            "cannot start a thread: {error}"
        )));
    }
    match answered.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            Err(silent(redis, limit))
        }
    }
}

fn silent(redis: &Redis, limit: Duration) -> Failure {
    let seconds = limit.as_secs_f32();
    Failure::Connection(format!("{}: no answer within {seconds} s", redis.endpoint))
}

fn ask(redis: &Redis, targets: &BTreeSet<Target>, until: Instant) -> Result<Pools, Failure> {
    let mut settings = RedisConnectionInfo::default()
        .set_db(redis.value_db.into())
        // AUTH and SELECT instead of HELLO: the narrowest access will do.
        .set_protocol(ProtocolVersion::RESP2)
        .set_skip_set_lib_name();
    if !redis.username.is_empty() {
        settings = settings.set_username(&redis.username);
    }
    if let Some(secret) = &redis.password {
        settings = settings.set_password(password(secret)?);
    }
    let failed = |error: RedisError| {
        let error = error.to_string();
        // Rust's ` (os error 111)` tells a reader nothing.
        let words = error.split(" (os error ").next().unwrap_or_default();
        Failure::Connection(format!("{}: {words}", redis.endpoint))
    };
    let mut connection = connect(&redis.endpoint, &settings, until).map_err(failed)?;
    let mut pipeline = redis::pipe();
    for target in targets {
        for property in POOL_PROPERTIES {
            let key = pool_key(&target.service, &target.category, property);
            pipeline
                .cmd("GET")
                .arg(format!("{}{key}", redis.key_prefix));
        }
    }
    let values: Vec<Value> = pipeline
        .ignore_errors()
        .query(&mut connection)
        .map_err(failed)?;
    let mut values = values.into_iter();
    let mut pools = Pools::new();
    for target in targets {
        let mut pool = Pool([Reading::Missing; POOL_PROPERTIES.len()]);
        for reading in &mut pool.0 {
            *reading = match values.next() {
                Some(value) => self::reading(value).map_err(failed)?,
                None => Reading::Missing,
            };
        }
        pools.insert(format!("{}:{}", target.service, target.category), pool);
    }
    Ok(pools)
}

fn reading(value: Value) -> Result<Reading, RedisError> {
    match value {
        Value::Nil => Ok(Reading::Missing),
        Value::BulkString(text) => Ok(Reading::of(&text)),
        Value::ServerError(error) if error.code() == "WRONGTYPE" => Ok(Reading::Invalid),
        // NOPERM, LOADING and their like concern all of them.
        Value::ServerError(error) => Err(error.into()),
        _ => Ok(Reading::Invalid),
    }
}

/// Read at every start: it may rotate. White space around it is not part of it.
fn password(secret: &Secret) -> Result<String, Failure> {
    match secret {
        Secret::Inline(password) => Ok(password.clone()),
        Secret::File(path) => read_password(path).map_err(Failure::Credential),
    }
}

fn read_password(path: &Path) -> Result<String, String> {
    let text = fs::read_to_string(path)
        .map_err(|error| format!("failed to read password file {}: {error}", path.display()))?;
    match text.trim() {
        "" => Err(format!("password file {} is empty", path.display())),
        password => Ok(password.to_owned()),
    }
}

fn connect(
    endpoint: &Endpoint,
    settings: &RedisConnectionInfo,
    until: Instant,
) -> Result<Connection, RedisError> {
    let mut first_error = None;
    for address in addresses(endpoint) {
        let info = address
            .into_connection_info()?
            .set_redis_settings(settings.clone());
        // Zero would mean no limit.
        let left = until
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        match Client::open(info)?.get_connection_with_timeout(left) {
            Ok(connection) => return Ok(connection),
            Err(error) if error.is_io_error() => {
                first_error.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(first_error.unwrap_or_else(|| std::io::Error::other("no address").into()))
}

/// `localhost` is loopback whatever the machine's files say: a container may have none.
fn addresses(endpoint: &Endpoint) -> Vec<ConnectionAddr> {
    match endpoint {
        Endpoint::None => Vec::new(),
        Endpoint::Unix(path) => vec![ConnectionAddr::Unix(path.clone())],
        Endpoint::Tcp { host, port } if host.eq_ignore_ascii_case("localhost") => {
            ["127.0.0.1", "::1"]
                .map(|host| ConnectionAddr::Tcp(host.to_owned(), *port))
                .to_vec()
        }
        Endpoint::Tcp { host, port } => vec![ConnectionAddr::Tcp(host.clone(), *port)],
    }
}
