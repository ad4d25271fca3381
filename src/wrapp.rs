//! one configuration file → one application, wrapped: `wrapp`, or `agent wrapp`.
//!
//! The drop-in for wrapp (CONTRACTS section 4): same command line, files, streams, keys,
//! words on stdout, and environment of the application. The daemon does the work; this file
//! says in what guise, and where wrapp's ways differ from an agent's.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::config::load::{self, Environment};
use crate::config::{Config, Form, Identity, Loaded, Service};
use crate::control::client::temporary_folder;
use crate::daemon::{self, Guise, News, Outlet};
use crate::diag;
use crate::handoff::SinkGauge;
use crate::sink::run::{Farewell, LastPools};
use crate::supervise::accounts::{self, Account};
use crate::supervise::run::Manner;

const USAGE: &str = "Usage: wrapp <path_to_config.json>\n";
/// Usage and configuration errors: wrapp had no other code.
const REFUSED: i32 = 1;
/// Who runs an application that names no user.
const DEFAULT_USER: &str = "archer";

/// The application may have said its most important words last.
const FAREWELL: Farewell = Farewell {
    patience: Duration::from_secs(10),
    pools: LastPools::Stay,
};

/// `args` without the program's name. Returns the application's exit code.
///
/// Must be called on the main thread, before any other thread exists.
pub fn main(args: &[OsString]) -> i32 {
    let [path] = args else {
        complain(USAGE);
        return REFUSED;
    };
    // wrapp said little; what an agent tells beyond that is asked for with AGENT_LOG. That
    // lines are left for the next start is more than a note.
    diag::start("warn,jettison_agent::sink::desk=info");
    let loaded = match load(Path::new(path)) {
        Ok(loaded) => loaded,
        Err(problems) => {
            complain(&format!("Error loading configuration: {problems}\n"));
            return REFUSED;
        }
    };
    for warning in &loaded.warnings {
        tracing::warn!("{}", warning.brief());
    }
    let mut config = loaded.config;
    let Some(mut service) = config.services.first().cloned() else {
        complain("Error loading configuration: there is nothing to run\n");
        return REFUSED;
    };
    dress(Arc::make_mut(&mut service), config.agent.shutdown_timeout);
    let name = service.name.as_str().to_owned();
    config.agent.state_dir = state_folder(&config.agent.state_dir, &name);
    config.services = vec![service];
    let guise = Guise {
        alias: (std::process::id() == 1 && name != "agent").then_some("agent"),
        socket: name,
        manner: Manner::Wrapp,
        farewell: FAREWELL,
        told: tell(),
    };
    let again = config.clone();
    daemon::run_as(
        guise,
        config,
        Box::new(move || Ok(again.clone())),
        Outlet::Redis,
    )
}

fn load(path: &Path) -> Result<Loaded, String> {
    let loaded =
        load::load(Some(path), &Environment::read()).map_err(|problems| problems.to_string())?;
    match loaded.form {
        Form::Short => Ok(loaded),
        Form::Native => Err(format!(
            "{0}: there is no `app`, so there is nothing to wrap\n      \
             | agent run --config {0} supervises its services",
            path.display()
        )),
    }
}

/// Where the wrapper of this configuration's application listens, likeliest first.
pub fn sockets_of(config: &Config) -> Vec<PathBuf> {
    let name = config.services.first().map(|service| &service.name);
    let folders = [config.agent.runtime_dir.clone(), temporary_folder()];
    let sockets = folders.iter().zip(std::iter::repeat(name));
    sockets
        .filter_map(|(folder, name)| Some(folder.join(format!("{}.sock", name?))))
        // An agent may run with this file too.
        .chain(daemon::sockets_of(config))
        .collect()
}

/// What an application got from wrapp and a service does not get from an agent.
fn dress(service: &mut Service, grace: Duration) {
    // Systemd and podman have their own patience: ours must not be the shorter one.
    service.stop.timeout = grace;
    let process = &mut service.process;
    if let Some(password) = std::env::var_os("REDIS_PASSWORD").and_then(|p| p.into_string().ok()) {
        let name = "REDIS_PASSWORD".to_owned();
        process.environment.entry(name).or_insert(password);
    }
    if !rustix::process::geteuid().is_root() {
        // Whatever the file says: the application runs as who we are.
        process.user = None;
        return;
    }
    let passwd = std::fs::read("/etc/passwd").unwrap_or_default();
    let passwd = String::from_utf8_lossy(&passwd);
    let default = Identity::Name(DEFAULT_USER.to_owned());
    if process.user.is_none() && accounts::find_user(&passwd, &default).is_some() {
        process.user = Some(default);
    }
    if process.user.as_ref().is_some_and(is_root) {
        // No change of user: its environment stays as it is, and no user file is needed.
        process.user = None;
    }
    let account = process
        .user
        .as_ref()
        .and_then(|user| accounts::find_user(&passwd, user));
    if process.working_directory.is_none() {
        process.working_directory = account.and_then(home);
    }
}

fn is_root(user: &Identity) -> bool {
    match user {
        Identity::Name(name) => name == "root",
        Identity::Id(id) => *id == 0,
    }
}

/// A change of user was a login: it began at home, where there is one.
fn home(account: Account) -> Option<PathBuf> {
    let home = PathBuf::from(account.home);
    (home.is_absolute() && home.is_dir()).then_some(home)
}

/// `<state_dir>/<name>`, else the same below our own folder in `/tmp`. Where neither can be
/// made the first is returned all the same: what lies there is then told to be unusable.
fn state_folder(state_dir: &Path, name: &str) -> PathBuf {
    let own = temporary_folder();
    let first = state_dir.join(name);
    if make(state_dir, 0o755) && make(&first, 0o700) {
        return first;
    }
    let second = own.join(name);
    match make(&own, 0o755) && is_ours(&own) && make(&second, 0o700) {
        true => second,
        false => first,
    }
}

/// Where [`state_folder`] may have put things.
pub fn state_folders(state_dir: &Path, name: &str) -> [PathBuf; 2] {
    [state_dir.join(name), temporary_folder().join(name)]
}

fn make(folder: &Path, mode: u32) -> bool {
    let made = DirBuilder::new().recursive(true).mode(mode).create(folder);
    made.is_ok() && rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Whoever made a folder in `/tmp` before us could read and replace what we keep there.
fn is_ours(folder: &Path) -> bool {
    std::fs::symlink_metadata(folder)
        .is_ok_and(|found| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw())
}

/// What wrapp printed on stdout and stderr about Redis and the end, in this order also where
/// the application ends before Redis has answered.
fn tell() -> Box<dyn FnMut(News<'_>) + Send> {
    let mut heard = Heard::Nothing;
    let mut ended = None;
    Box::new(move |news| {
        let over = match news {
            News::Redis(gauge) => {
                heard = heard.next(gauge);
                false
            }
            News::Ended(code) => {
                ended = Some(code);
                false
            }
            News::Over => true,
        };
        if (over || heard != Heard::Nothing)
            && let Some(code) = ended.take()
        {
            say_ended(code);
        }
    })
}

fn say_ended(code: i32) {
    say(&format!("Executable exited with code {code}."));
    if code != 0 {
        complain(&format!(
            "Error running executable: executable exited with non-zero code: {code}\n"
        ));
    }
}

/// What has been said about Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Nothing,
    Waiting,
    There,
}

impl Heard {
    fn next(self, gauge: &SinkGauge) -> Heard {
        match (self, gauge.connected) {
            (Heard::Nothing, true) => {
                say("Connected to Redis.");
                Heard::There
            }
            (Heard::Waiting, true) => {
                say("Redis is available.");
                Heard::There
            }
            (Heard::Nothing, false) if !gauge.state.is_empty() && !gauge.is_well() => {
                say("Initial Redis connection failed, will wait for Redis to become available...");
                say("Waiting for Redis to become available...");
                Heard::Waiting
            }
            (Heard::There, false) => {
                say("Waiting for Redis to become available...");
                Heard::Waiting
            }
            (Heard::Nothing | Heard::Waiting, false) | (Heard::There, true) => self,
        }
    }
}

/// Nobody need read our stdout.
fn say(line: &str) {
    let mut stdout = std::io::stdout();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}
