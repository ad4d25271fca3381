//! one application, of a short file or of a command line → a configuration of one service.

use std::sync::Arc;
use std::time::Duration;

use super::check::{finish, shared};
use super::diagnose::{Diagnostic, Diagnostics, Layout};
use super::fields::{Fields, setting};
use super::file::Table;
use super::found::Check;
use super::{Config, Environment, Form, Loaded, OnFailed, Restart, Service, StartLimit};
use super::{endpoint, keys};
use super::{redis, service};
use crate::service::ServiceName;

/// One application: run once, and the agent ends with it.
pub fn short(cx: &mut Check, root: &Table, environment: &Environment) -> Option<Config> {
    if let Some(entry) = root.entries.iter().find(|entry| entry.key == "service") {
        let message = "a file holds either [app] or [service.NAME], not both";
        cx.error(entry.place, message, "make the application a service too");
        return None;
    }
    let fields = Fields::open(cx, root, keys::SHORT, "");
    let mut config = shared(cx, &fields, environment);
    let debug = service::debug(cx, &fields);
    let Some(app) = fields.key_place("app") else {
        let name = cx.layout.sources.path(0).to_owned();
        let missing = Diagnostic::whole(name, "there is no `app`, so there is nothing to run");
        cx.push(missing.remedy("`app.executable` names the program"));
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
    service.capture = config.crash.tracing;
    service.debug = debug;
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

/// What fails a third time within a minute will fail a fourth time: whoever typed the command
/// is to learn its exit code, and whoever started the agent may know what to do.
const STARTS: StartLimit = StartLimit {
    burst: 3,
    interval: Duration::from_secs(60),
};

/// `agent run -- CMD ARG…`: started again when it fails, and when it ends for good, so does
/// the agent, with its code.
pub fn command(
    argv: &[String],
    url: Option<&str>,
    name: Option<&str>,
    restart: Option<Restart>,
    environment: &Environment,
) -> Result<Loaded, Diagnostics> {
    let mut cx = Check::new(Form::Native, Layout::default());
    let mut config = shared(&mut cx, &Fields::none(""), environment);
    if let Some(url) = url {
        match endpoint::url(url) {
            // The command line goes before the environment; a password may come from there.
            Ok(address) => {
                let password = config.redis.password.take();
                redis::apply(&mut config.redis, address);
                config.redis.password = config.redis.password.or(password);
            }
            Err(wrong) => {
                let found = Diagnostic::whole("--redis", wrong.message);
                cx.push(found.remedy(wrong.remedy));
            }
        }
    }
    let executable = argv.first().map_or("", String::as_str);
    if executable.is_empty() {
        let found = Diagnostic::whole("agent run", "there is no command to run");
        cx.push(found.remedy("agent run [--redis URL] [--name NAME] -- COMMAND [ARG…]"));
    }
    let service = match name {
        Some(name) => ServiceName::new(name).map_err(|error| {
            let found = Diagnostic::whole("--name", error.to_string());
            cx.push(found.remedy("such as --name lidar"));
        }),
        None => named_after(base_name(executable)).ok_or(()),
    };
    if let Ok(name) = service {
        let args = argv.get(1..).unwrap_or_default().to_vec();
        let max_len = config.redis.max_len;
        let mut service = service::plain(name, executable.to_owned(), args, max_len);
        service.restart = restart.unwrap_or(Restart::OnFailure);
        if service.restart != Restart::Always {
            service.start_limit = STARTS;
        }
        service.on_failed = OnFailed::Exit;
        service.capture = config.crash.tracing;
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
