//! `[redis]` as typed, and the environment → where Redis is and who we are there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::diagnose::Diagnostic;
use super::endpoint::{self, Address, DEFAULT_PORT, Transport};
use super::fields::{At, Fields, absolute};
use super::found::Check;
use super::units::{self, Wrong};
use super::{Endpoint, Environment, Form, Redis, Secret, Sentinel, Tls};

/// Who wins where both speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precedence {
    Environment,
    /// `agent health --config FILE`.
    File,
}

const EXPIRY: Duration = Duration::from_secs(15);

/// Redis' own limit of `databases` is an int.
const MAX_DB: u32 = i32::MAX as u32;

impl Default for Redis {
    fn default() -> Redis {
        Redis {
            endpoint: local(),
            username: String::new(),
            password: None,
            log_db: 1,
            value_db: 2,
            key_prefix: String::new(),
            value_expiry: EXPIRY,
            max_len: 1000,
            tls: None,
            sentinel: None,
        }
    }
}

fn local() -> Endpoint {
    Endpoint::Tcp {
        host: "localhost".to_owned(),
        port: DEFAULT_PORT,
    }
}

pub fn read(
    cx: &mut Check,
    fields: &Fields<'_>,
    environment: &Environment,
    precedence: Precedence,
) -> Redis {
    let url = place(cx, fields);
    let typed_endpoint = url.is_some();
    let mut redis = Redis::default();
    if let Some(address) = url {
        apply(&mut redis, address);
    }
    let log_db = fields.number(cx, "log_db", 0..=MAX_DB);
    let value_db = fields.number(cx, "value_db", 0..=MAX_DB);
    redis.log_db = log_db.unwrap_or(redis.log_db);
    redis.value_db = value_db.unwrap_or(redis.value_db);
    redis.max_len = fields
        .number(cx, "max_len", 0..=u64::MAX >> 1)
        .unwrap_or(redis.max_len);
    let prefix = fields.parsed(cx, "key_prefix", units::key_part);
    redis.key_prefix = prefix.unwrap_or_default();
    let tls = fields.inner(cx, "tls");
    redis.tls = read_tls(cx, &tls, redis.tls.take());
    let sentinel = fields.inner(cx, "sentinel");
    redis.sentinel = read_sentinel(cx, &sentinel);
    credentials(cx, fields, &mut redis);
    let over = |typed: bool| precedence == Precedence::Environment || !typed;
    if let Some(address) = &environment.redis_addr
        && over(typed_endpoint)
        && let Some(endpoint) = variable(cx, "REDIS_ADDR", address, endpoint::host_and_port)
    {
        redis.endpoint = endpoint;
    }
    if let Some(password) = &environment.redis_password
        && over(redis.password.is_some())
        && let Some(text) = variable(cx, "REDIS_PASSWORD", password, |t| Ok(t.to_owned()))
    {
        redis.password = Some(Secret::Inline(text));
    }
    redis
}

/// A URL's database is meant for everything; `log_db` and `value_db` say it more precisely.
pub fn apply(redis: &mut Redis, address: Address) {
    redis.endpoint = address.endpoint;
    redis.tls = (address.transport == Transport::Tls).then(Tls::default);
    redis.username = address.username.unwrap_or_default();
    redis.password = address.password.map(Secret::Inline);
    if let Some(db) = address.db {
        redis.log_db = db;
        redis.value_db = db;
    }
}

/// `url`, or `host` and `port`; `None` where the file says none of them.
fn place(cx: &mut Check, fields: &Fields<'_>) -> Option<Address> {
    let host = fields.text("host");
    let url = fields.text("url");
    // Old files of the short form say 0 where they mean the default.
    let port = match fields.node("port").map(|node| &node.value) {
        Some(super::file::Value::Integer(0)) if cx.form == Form::Short => None,
        Some(_) | None => fields.number(cx, "port", 1..=u16::MAX),
    };
    if let Some(url) = url {
        for name in ["host", "port"] {
            if let Some(place) = fields.key_place(name).filter(|_| fields.says(name)) {
                let message = format!("`url` and `{name}` both say where Redis is");
                cx.error(place, message, "take one of them out");
            }
        }
        return cx.accept(url.place, endpoint::url(url.value));
    }
    if host.is_none() && port.is_none() {
        // An empty URL is said, not left out: there is no Redis.
        let says_none = matches!(
            fields.node("url").map(|node| &node.value),
            Some(super::file::Value::Text(text)) if text.is_empty()
        );
        return says_none.then_some(Address {
            endpoint: Endpoint::None,
            username: None,
            password: None,
            db: None,
            transport: Transport::Plain,
        });
    }
    let host = match host {
        Some(host) => cx.accept(host.place, endpoint::host(host.value))?,
        None => "localhost".to_owned(),
    };
    Some(Address {
        endpoint: Endpoint::Tcp {
            host,
            port: port.unwrap_or(DEFAULT_PORT),
        },
        username: None,
        password: None,
        db: None,
        transport: Transport::Plain,
    })
}

/// TLS is on where the URL says so or any of its keys is given.
fn read_tls(cx: &mut Check, fields: &Fields<'_>, from_url: Option<Tls>) -> Option<Tls> {
    let mut file = |name: &str| {
        let text = fields.text(name).filter(|text| !text.value.is_empty())?;
        path(cx, name, text)
    };
    let (ca_file, cert_file, key_file) = (file("ca_file"), file("cert_file"), file("key_file"));
    let server_name = fields.owned("server_name").filter(|name| !name.is_empty());
    let own = match (cert_file, key_file) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            let known = ["cert_file", "key_file"];
            if let Some(place) = known.iter().find_map(|name| fields.key_place(name)) {
                let message = "`cert_file` and `key_file` belong together";
                cx.error(place, message, "give both for mutual TLS, or none");
            }
            None
        }
    };
    if ca_file.is_none() && own.is_none() && server_name.is_none() {
        return from_url;
    }
    Some(Tls {
        ca_file,
        own,
        server_name,
    })
}

fn read_sentinel(cx: &mut Check, fields: &Fields<'_>) -> Option<Sentinel> {
    let master = fields.text("master").filter(|text| !text.value.is_empty());
    let nodes = fields.texts("nodes").unwrap_or_default();
    match (master, nodes.is_empty()) {
        (None, true) => None,
        (Some(master), false) => Some(Sentinel {
            master: master.value.to_owned(),
            nodes: nodes
                .into_iter()
                .filter_map(|node| {
                    // Sentinels listen on a port of their own.
                    let text = match node.value.contains(':') {
                        true => node.value.to_owned(),
                        false => format!("{}:26379", node.value),
                    };
                    cx.accept(node.place, endpoint::host_and_port(&text))
                })
                .collect(),
        }),
        (Some(_), true) | (None, false) => {
            let known = ["master", "nodes"];
            if let Some(place) = known.iter().find_map(|name| fields.key_place(name)) {
                let message = "`master` and `nodes` of [redis] sentinel belong together";
                cx.error(
                    place,
                    message,
                    "write { master = \"mymaster\", nodes = [\"host:26379\"] }",
                );
            }
            None
        }
    }
}

fn credentials(cx: &mut Check, fields: &Fields<'_>, redis: &mut Redis) {
    let username = fields.text("username");
    let password = fields.text("password");
    let file = fields.text("password_file");
    let dir = fields.text("secrets_dir");
    if let Some(dir) = dir {
        for other in [username, password, file].into_iter().flatten() {
            let message = "`secrets_dir` wins over this";
            cx.warning(other.place, message, "take one of them out");
        }
        secrets(cx, dir, redis);
        return;
    }
    for (typed, from_url) in [
        (username, !redis.username.is_empty()),
        (password, redis.password.is_some()),
        (file, redis.password.is_some()),
    ] {
        if let (Some(typed), true) = (typed, from_url) {
            let message = "`url` says this too";
            cx.error(typed.place, message, "take one of them out");
        }
    }
    if let (Some(password), Some(_)) = (password, file) {
        let message = "`password` and `password_file` are both given";
        cx.error(password.place, message, "keep one; a file is safer");
    }
    if let Some(username) = username {
        redis.username = username.value.to_owned();
    }
    if let Some(password) = password {
        redis.password = Some(Secret::Inline(password.value.to_owned()));
    }
    if let Some(file) = file.and_then(|file| path(cx, "password_file", file)) {
        redis.password = Some(Secret::File(file));
    }
}

/// The folder's name is the user, its file `password` the password (FEATURES A11).
fn secrets(cx: &mut Check, dir: At<&str>, redis: &mut Redis) {
    let Some(folder) = path(cx, "secrets_dir", dir) else {
        return;
    };
    match folder.file_name().and_then(|name| name.to_str()) {
        Some(name) => {
            redis.username = name.to_owned();
            redis.password = Some(Secret::File(folder.join("password")));
        }
        None => {
            let message =
                "the last part of `secrets_dir` is the Redis user, and here there is none";
            cx.error(
                dir.place,
                message,
                "write such as \"/run/secrets/redis/agent\"",
            );
        }
    }
}

/// Absolute in the native form; the tools that the short form comes from took any path.
fn path(cx: &mut Check, name: &str, text: At<&str>) -> Option<PathBuf> {
    match cx.form {
        Form::Native => absolute(cx, name, text),
        Form::Short => Some(Path::new(text.value).to_owned()),
    }
}

/// A variable's text as `read` understands it. Its value is not repeated in messages where
/// it is a secret.
fn variable<T>(
    cx: &mut Check,
    name: &str,
    value: &OsString,
    read: impl Fn(&str) -> Result<T, Wrong>,
) -> Option<T> {
    let Some(text) = value.to_str() else {
        cx.push(Diagnostic::whole(name, "this variable is not UTF-8"));
        return None;
    };
    match read(text) {
        Ok(value) => Some(value),
        Err(wrong) => {
            let found = Diagnostic::whole(name, wrong.message).remedy(wrong.remedy);
            cx.push(found);
            None
        }
    }
}
