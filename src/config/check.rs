//! what was typed, and the environment → a configuration that may be used, or everything
//! that is wrong with it.
//!
//! One pass finds all problems of all files. Nothing here touches the machine: that a file
//! or a user exists is asked by `load` and `survey`.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::diagnose::{Diagnostic, Diagnostics, Layout, Sources};
use super::fields::{Fields, setting};
use super::file::{self, Entry, Syntax, Table, Value};
use super::found::Check;
use super::keys;
use super::kind::show;
use super::order;
use super::redis::{self, Precedence};
use super::service::{self, Reference};
use super::{Agent, Config, Environment, Form, Health, Loaded, Overflow, Redis, Service, Spool};
use super::{crash, single, units};
use crate::nearest::nearest;
use crate::service::ServiceName;

/// Where an agent keeps what must outlive it, unless told otherwise.
pub const DEFAULT_STATE: &str = "/var/lib/agent";
/// Where native files are included from when `[agent] include` does not say.
pub const DEFAULT_INCLUDE: &str = "services.d/*.toml";

/// One text is the whole configuration.
pub fn parse(
    bytes: &[u8],
    path: &Path,
    syntax: Syntax,
    environment: &Environment,
) -> Result<Loaded, Diagnostics> {
    let mut sources = Sources::default();
    let root = file::read(bytes, path, syntax, &mut sources).map_err(Diagnostics::sorted)?;
    let form = form(&root, syntax);
    check(sources, &root, form, vec![path.to_owned()], environment)
}

/// `app` makes it the short form. JSON without services is a short form that lacks it.
pub fn form(root: &Table, syntax: Syntax) -> Form {
    let has = |name: &str| {
        root.entries
            .iter()
            .any(|e| e.key.eq_ignore_ascii_case(name))
    };
    match syntax {
        _ if has("app") => Form::Short,
        Syntax::Json if !has("service") && !has("agent") => Form::Short,
        Syntax::Json | Syntax::Toml => Form::Native,
    }
}

/// The tables of an included file join those of the main one; no key may stand in both.
pub fn merge(main: &mut Table, other: Table, sources: &Sources, found: &mut Vec<Diagnostic>) {
    for entry in other.entries {
        let Some(present) = main.entries.iter_mut().find(|e| e.key == entry.key) else {
            main.entries.push(entry);
            continue;
        };
        match (&mut present.node.value, entry.node.value) {
            (Value::Table(table), Value::Table(more)) => {
                for inner in more.entries {
                    match table.entries.iter().find(|e| e.key == inner.key) {
                        Some(first) => found.push(again(&entry.key, &inner, first, sources)),
                        None => table.entries.push(inner),
                    }
                }
            }
            (_, value) => {
                let inner = Entry {
                    node: file::Node {
                        place: entry.node.place,
                        value,
                    },
                    ..entry
                };
                found.push(again("", &inner, present, sources));
            }
        }
    }
}

fn again(path: &str, entry: &Entry, first: &Entry, sources: &Sources) -> Diagnostic {
    let message = format!("`{}` stands twice", show(&setting(path, &entry.key)));
    let origin = sources.origin(entry.place);
    Diagnostic::error(origin, message).remedy(format!("first at {}", sources.name(first.place)))
}

/// The whole configuration.
pub fn check(
    sources: Sources,
    root: &Table,
    form: Form,
    files: Vec<PathBuf>,
    environment: &Environment,
) -> Result<Loaded, Diagnostics> {
    let mut cx = Check::new(form, Layout::new(sources));
    let config = match form {
        Form::Native => native(&mut cx, root, environment),
        Form::Short => single::short(&mut cx, root, environment),
    };
    finish(cx, config, files)
}

pub fn finish(
    cx: Check,
    config: Option<Config>,
    files: Vec<PathBuf>,
) -> Result<Loaded, Diagnostics> {
    let form = cx.form;
    let (layout, found, wrong) = cx.finish();
    match config {
        Some(config) if !wrong => Ok(Loaded {
            config,
            form,
            warnings: found,
            files,
            layout,
        }),
        Some(_) | None => Err(Diagnostics(found)),
    }
}

fn native(cx: &mut Check, root: &Table, environment: &Environment) -> Option<Config> {
    let fields = Fields::open(cx, root, keys::NATIVE, "");
    let mut config = shared(cx, &fields, environment);
    let mut references = Vec::new();
    let mut services: Vec<Service> = Vec::new();
    let mut seen = HashSet::new();
    for entry in fields.names("service") {
        let Some(name) = service::name(cx, &entry.key, entry.place) else {
            continue;
        };
        if !seen.insert(name.clone()) {
            let message = format!("the service `{name}` stands twice");
            cx.error(entry.place, message, "rename one of them");
            continue;
        }
        let Value::Table(table) = &entry.node.value else {
            let message = format!("`{name}` must be a table, not {}", entry.node.value.what());
            let remedy = format!("write [service.{name}] and its keys below");
            cx.error(entry.node.place, message, remedy);
            continue;
        };
        let path = setting("service", name.as_str());
        cx.layout.set(path.clone(), entry.place);
        let fields = Fields::open(cx, table, keys::SERVICE, &path);
        let max_len = config.redis.max_len;
        let mut service = service::read(cx, name, &fields, entry.place, max_len, &mut references);
        service.capture = crash::of_service(cx, &fields, config.crash.tracing);
        services.push(service);
    }
    together(cx, &services, &references);
    config.agent.main = main(cx, &fields, &services);
    config.services = services.into_iter().map(Arc::new).collect();
    Some(config)
}

/// The tables that both forms have.
pub fn shared(cx: &mut Check, fields: &Fields<'_>, environment: &Environment) -> Config {
    let agent = fields.inner(cx, "agent");
    let agent = self::agent(cx, &agent, environment);
    let redis = fields.inner(cx, "redis");
    let mut redis = redis::read(cx, &redis, environment, Precedence::Environment);
    let crash = fields.inner(cx, "crash");
    let crash = crash::read(cx, &crash);
    let health = fields.inner(cx, "health");
    if let Some(expiry) = health.duration(cx, "expiry", LEAST_EXPIRY) {
        redis.value_expiry = expiry;
    }
    let spool = fields.inner(cx, "spool");
    let memory = spool.size(cx, "memory", MIN_MEMORY..=MAX_MEMORY);
    let disk = spool.size(cx, "disk", 0..=MAX_DISK);
    let overflow = spool.choice(cx, "overflow", OVERFLOWS);
    Config {
        file: None,
        agent,
        redis,
        spool: Spool {
            memory: memory.unwrap_or(8 << 20),
            disk: disk.unwrap_or(64 << 20),
            overflow: overflow.unwrap_or(Overflow::DropOldest),
        },
        crash,
        health: Health {
            compute: health.flag("compute").unwrap_or(true),
        },
        services: Vec::new(),
    }
}

/// Values are renewed three times within it, and a second is the least that is counted.
const LEAST_EXPIRY: Duration = Duration::from_secs(3);

/// Less holds not even one batch; more is not on a board.
const MIN_MEMORY: u64 = 4 << 10;
const MAX_MEMORY: u64 = 64 << 30;
/// Above what any board's disk holds; sums of sizes stay far from overflow.
const MAX_DISK: u64 = 1 << 50;

const OVERFLOWS: &[(&str, Overflow)] = &[
    ("drop_oldest", Overflow::DropOldest),
    ("block", Overflow::Block),
];

fn agent(cx: &mut Check, fields: &Fields<'_>, environment: &Environment) -> Agent {
    let state_dir = fields.absolute(cx, "state_dir");
    let runtime_dir = fields.absolute(cx, "runtime_dir");
    let over = |variable: &Option<OsString>, typed: Option<PathBuf>, default: &str| {
        let variable = variable.as_ref().map(PathBuf::from);
        variable.or(typed).unwrap_or_else(|| PathBuf::from(default))
    };
    let typed = fields.flag("maintenance").unwrap_or(false);
    let board = fields.parsed(cx, "board", units::key_part);
    let shutdown = fields.duration(cx, "shutdown_timeout", Duration::ZERO);
    Agent {
        board: board.unwrap_or_default(),
        state_dir: over(&environment.state_dir, state_dir, DEFAULT_STATE),
        runtime_dir: over(&environment.runtime_dir, runtime_dir, "/run/agent"),
        shutdown_timeout: shutdown.unwrap_or(Duration::from_secs(30)),
        main: None,
        tee: fields.flag("tee").unwrap_or(false),
        maintenance: maintenance(cx, environment).unwrap_or(typed),
        group: fields.owned("group"),
    }
}

fn maintenance(cx: &mut Check, environment: &Environment) -> Option<bool> {
    let variable = environment.maintenance.as_ref()?;
    match variable.to_str().map(str::to_ascii_lowercase).as_deref() {
        Some("1" | "true" | "yes" | "on") => Some(true),
        Some("0" | "false" | "no" | "off") => Some(false),
        Some(_) | None => {
            let found = Diagnostic::whole("AGENT_MAINTENANCE", "this is neither yes nor no");
            cx.push(found.remedy("write 1 or 0"));
            None
        }
    }
}

/// Only `[redis]`, for tools that ask Redis and run nothing; the rest is not looked at.
pub fn only_redis(sources: Sources, root: &Table, environment: &Environment) -> (Check, Redis) {
    let mut cx = Check::new(Form::Short, Layout::new(sources));
    let typed = root
        .entries
        .iter()
        .rfind(|e| e.key.eq_ignore_ascii_case("redis"));
    let table = Table {
        entries: typed.cloned().into_iter().collect(),
    };
    let outer = Fields::open(&mut cx, &table, keys::SHORT, "");
    let fields = outer.inner(&mut cx, "redis");
    let redis = redis::read(&mut cx, &fields, environment, Precedence::File);
    (cx, redis)
}

/// What services say about each other.
fn together(cx: &mut Check, services: &[Service], references: &[Reference]) {
    let known: HashSet<&ServiceName> = services.iter().map(|service| &service.name).collect();
    for reference in references.iter().filter(|r| !known.contains(&r.to)) {
        let message = format!("there is no service `{}`", reference.to);
        let names = services.iter().map(|service| service.name.as_str());
        let remedy = match nearest(reference.to.as_str(), names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("write [service.{}], or take it out", reference.to),
        };
        cx.error(reference.place, message, remedy);
    }
    if let Err(cycle) = order::start_order(services.iter()) {
        circle(cx, services, references, &cycle);
    }
    let mut streams: HashMap<&str, &Service> = HashMap::new();
    for service in services {
        let Some(first) = streams.insert(&service.stream_name, service) else {
            continue;
        };
        let own = format!("service.{}", service.name);
        let place = cx.layout.place(&setting(&own, "stream_name"));
        let message = format!(
            "`{}` and `{}` would write to one stream, `{}`",
            first.name,
            service.name,
            show(&service.stream_name)
        );
        if let Some(place) = place.or_else(|| cx.layout.place(&own)) {
            cx.error(place, message, "give one of them another `stream_name`");
        }
    }
}

fn circle(cx: &mut Check, services: &[Service], references: &[Reference], cycle: &[usize]) {
    let names: Vec<&ServiceName> = cycle.iter().map(|index| &services[*index].name).collect();
    let (Some(first), Some(second)) = (names.first(), names.get(1).or(names.first())) else {
        return;
    };
    let place = references
        .iter()
        .find(|r| r.from == **first && r.to == **second)
        .map(|r| r.place);
    let mut shown = String::new();
    for name in &names {
        shown.push_str(name.as_str());
        shown.push_str(" → ");
    }
    if let Some(place) = place {
        let message = format!("services wait for each other: {shown}{first}");
        cx.error(
            place,
            message,
            "take one of these out of `after` and `requires`",
        );
    }
}

fn main(cx: &mut Check, fields: &Fields<'_>, services: &[Service]) -> Option<ServiceName> {
    let agent = fields.node("agent")?;
    let Value::Table(table) = &agent.value else {
        return None;
    };
    let typed = table.entries.iter().find(|entry| entry.key == "main")?;
    let Value::Text(name) = &typed.node.value else {
        return None;
    };
    if name.is_empty() {
        return None;
    }
    if let Some(service) = services.iter().find(|s| s.name.as_str() == name) {
        return Some(service.name.clone());
    }
    let names = services.iter().map(|service| service.name.as_str());
    let remedy = match nearest(name, names) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`main` names the service whose end ends the agent".to_owned(),
    };
    let message = format!("there is no service `{}`", show(name));
    cx.error(typed.node.place, message, remedy);
    None
}
