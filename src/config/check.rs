//! what was typed, and the environment → a configuration that may be used, or everything
//! that is wrong with it.
//!
//! One pass finds all problems of all files. Nothing here touches the machine: that a file
//! or a user exists is asked by `load` and `survey`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::diagnose::{Diagnostic, Diagnostics, Layout, Severity, Sources, nearest};
use super::fields::{Check, Fields, setting, show};
use super::file::{self, Entry, Syntax, Table, Value};
use super::keys;
use super::order;
use super::redis::{self, Precedence};
use super::service::{self, Reference};
use super::{
    Agent, Config, Environment, Form, Health, Loaded, OnFailed, Redis, Restart, Service, Spool,
};
use crate::service::ServiceName;

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
    let mut cx = Check {
        form,
        layout: Layout::new(sources),
        found: Vec::new(),
    };
    let config = match form {
        Form::Native => native(&mut cx, root, environment),
        Form::Short => short(&mut cx, root, environment),
    };
    finish(cx, config, files)
}

pub fn finish(
    cx: Check,
    config: Option<Config>,
    files: Vec<PathBuf>,
) -> Result<Loaded, Diagnostics> {
    let wrong = cx.found.iter().any(|d| d.severity == Severity::Error);
    let Diagnostics(found) = Diagnostics::sorted(cx.found);
    match config {
        Some(config) if !wrong => Ok(Loaded {
            config,
            form: cx.form,
            warnings: found,
            files,
            layout: cx.layout,
        }),
        Some(_) | None => Err(Diagnostics(found)),
    }
}

fn native(cx: &mut Check, root: &Table, environment: &Environment) -> Option<Config> {
    let fields = Fields::open(cx, root, keys::NATIVE, "");
    let mut config = shared(cx, &fields, environment);
    fields.inner(cx, "crash");
    let health = fields.inner(cx, "health");
    config.health.compute = health.flag("compute").unwrap_or(true);
    let mut references = Vec::new();
    let mut services: Vec<Service> = Vec::new();
    for entry in fields.names("service") {
        let Some(name) = service::name(cx, &entry.key, entry.place) else {
            continue;
        };
        if services.iter().any(|service| service.name == name) {
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
        let service = service::read(cx, name, &fields, entry.place, max_len, &mut references);
        services.push(service);
    }
    together(cx, &services, &references);
    config.agent.main = main(cx, &fields, &services);
    config.services = services.into_iter().map(Arc::new).collect();
    Some(config)
}

/// One application: run once, and the agent ends with it.
fn short(cx: &mut Check, root: &Table, environment: &Environment) -> Option<Config> {
    if let Some(entry) = root.entries.iter().find(|entry| entry.key == "service") {
        let message = "a file holds either [app] or [service.NAME], not both";
        cx.error(entry.place, message, "make the application a service too");
        return None;
    }
    let fields = Fields::open(cx, root, keys::SHORT, "");
    let mut config = shared(cx, &fields, environment);
    fields.inner(cx, "crash");
    fields.inner(cx, "debug");
    let Some(app) = fields.key_place("app") else {
        let name = cx.layout.sources.path(0).to_owned();
        let missing = Diagnostic::whole(name, "there is no `app`, so there is nothing to run");
        cx.found
            .push(missing.remedy("`app.executable` names the program"));
        return None;
    };
    let fields = fields.inner(cx, "app");
    let typed = fields.text("executable").map_or("", |text| text.value);
    let base = base_name(typed);
    let stream = fields.text("stream_name").map_or(base, |text| text.value);
    let name = named_after(stream)?;
    let max_len = config.redis.max_len;
    let mut service = service::read(cx, name, &fields, app, max_len, &mut Vec::new());
    service.stream_name = stream.to_owned();
    run_once(&mut service);
    // What is found out about it later is asked for by the name of a service.
    for key in ["executable", "args", "user", "stream_name"] {
        if let Some(place) = cx.layout.place(&setting("app", key)) {
            cx.layout
                .set(format!("service.{}.{key}", service.name), place);
        }
    }
    config.agent.main = Some(service.name.clone());
    config.services = vec![Arc::new(service)];
    Some(config)
}

fn run_once(service: &mut Service) {
    service.restart = Restart::Never;
    service.on_failed = OnFailed::Exit;
}

/// `agent run -- CMD ARG…`: started again when it fails, and when it ends for good, so does
/// the agent, with its code.
pub fn command(
    argv: &[String],
    url: Option<&str>,
    name: Option<&str>,
    environment: &Environment,
) -> Result<Loaded, Diagnostics> {
    let mut cx = Check {
        form: Form::Native,
        layout: Layout::default(),
        found: Vec::new(),
    };
    let mut config = shared(&mut cx, &Fields::none(""), environment);
    if let Some(url) = url {
        match super::endpoint::url(url) {
            // The command line goes before the environment; a password may come from there.
            Ok(address) => {
                let password = config.redis.password.take();
                redis::apply(&mut config.redis, address);
                config.redis.password = config.redis.password.or(password);
            }
            Err(wrong) => {
                let found = Diagnostic::whole("--redis", wrong.message);
                cx.found.push(found.remedy(wrong.remedy));
            }
        }
    }
    let executable = argv.first().map_or("", String::as_str);
    if executable.is_empty() {
        let found = Diagnostic::whole("agent run", "there is no command to run");
        cx.found
            .push(found.remedy("agent run [--redis URL] [--name NAME] -- COMMAND [ARG…]"));
    }
    let service = match name {
        Some(name) => ServiceName::new(name).map_err(|error| {
            let found = Diagnostic::whole("--name", error.to_string());
            cx.found.push(found.remedy("such as --name lidar"));
        }),
        None => named_after(base_name(executable)).ok_or(()),
    };
    if let Ok(name) = service {
        let args = argv.get(1..).unwrap_or_default().to_vec();
        let max_len = config.redis.max_len;
        let mut service = service::plain(name, executable.to_owned(), args, max_len);
        service.restart = Restart::OnFailure;
        service.on_failed = OnFailed::Exit;
        config.agent.main = Some(service.name.clone());
        config.services = vec![Arc::new(service)];
    }
    finish(cx, Some(config), Vec::new())
}

/// The last part of a path, extension kept.
fn base_name(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    path.rsplit('/').next().unwrap_or(path)
}

/// The nearest service name: what may not stand in one becomes `_`.
fn named_after(text: &str) -> Option<ServiceName> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let name: String = text
        .chars()
        .map(|c| if allowed(c) { c } else { '_' })
        .collect();
    match name.as_str() {
        "" | "." | ".." => ServiceName::new("app").ok(),
        name => ServiceName::new(name).ok(),
    }
}

/// The tables that both forms have.
fn shared(cx: &mut Check, fields: &Fields<'_>, environment: &Environment) -> Config {
    let agent = fields.inner(cx, "agent");
    let agent = self::agent(cx, &agent, environment);
    let redis = fields.inner(cx, "redis");
    let redis = redis::read(cx, &redis, environment, Precedence::Environment);
    let spool = fields.inner(cx, "spool");
    let memory = spool.size(cx, "memory", MIN_MEMORY..=MAX_MEMORY);
    Config {
        agent,
        redis,
        spool: Spool {
            memory: memory.unwrap_or(8 << 20),
        },
        health: Health { compute: true },
        services: Vec::new(),
    }
}

/// Less holds not even one batch; more is not on a board.
const MIN_MEMORY: u64 = 4 << 10;
const MAX_MEMORY: u64 = 64 << 30;

fn agent(cx: &mut Check, fields: &Fields<'_>, environment: &Environment) -> Agent {
    let state_dir = fields.absolute(cx, "state_dir");
    let runtime_dir = fields.absolute(cx, "runtime_dir");
    let over = |variable: &Option<OsString>, typed: Option<PathBuf>, default: &str| {
        let variable = variable.as_ref().map(PathBuf::from);
        variable.or(typed).unwrap_or_else(|| PathBuf::from(default))
    };
    let typed = fields.flag("maintenance").unwrap_or(false);
    let shutdown = fields.duration(cx, "shutdown_timeout", Duration::ZERO);
    Agent {
        board: fields.owned("board").unwrap_or_default(),
        state_dir: over(&environment.state_dir, state_dir, "/var/lib/agent"),
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
            cx.found.push(found.remedy("write 1 or 0"));
            None
        }
    }
}

/// Only `[redis]`, for tools that ask Redis and run nothing; the rest is not looked at.
pub fn only_redis(sources: Sources, root: &Table, environment: &Environment) -> (Check, Redis) {
    let mut cx = Check {
        form: Form::Short,
        layout: Layout::new(sources),
        found: Vec::new(),
    };
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
    let known = |name: &ServiceName| services.iter().any(|service| service.name == *name);
    for reference in references.iter().filter(|r| !known(&r.to)) {
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
