//! a valid configuration → what this machine lacks for it, as warnings.
//!
//! Warnings only: an executable may be mounted, a user made, before the service starts. The
//! user and group files are read here, because a static binary cannot ask NSS.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::diagnose::Diagnostic;
use super::units;
use super::{Capture, Identity, Loaded, Service};
use crate::nearest::nearest;

/// Everything that would keep a service from starting as the machine is now.
pub fn survey(loaded: &Loaded) -> Vec<Diagnostic> {
    let mut survey = Survey {
        loaded,
        users: names("/etc/passwd"),
        groups: names("/etc/group"),
        root: rustix::process::geteuid().is_root(),
        cpus: fs::read_to_string("/sys/devices/system/cpu/present")
            .ok()
            .and_then(|text| units::cpu_list(text.trim()).ok()),
        found: Vec::new(),
    };
    if let Some(group) = &loaded.config.agent.group {
        let group = units::identity(group).ok();
        survey.group("agent.group", group.as_ref());
    }
    survey.tls();
    for service in &loaded.config.services {
        survey.service(service);
    }
    survey.tracing();
    survey.found
}

struct Survey<'l> {
    loaded: &'l Loaded,
    /// `None` where the file cannot be read: then nothing is said about names.
    users: Option<Vec<String>>,
    groups: Option<Vec<String>>,
    root: bool,
    cpus: Option<Vec<usize>>,
    found: Vec<Diagnostic>,
}

impl Survey<'_> {
    fn warn(&mut self, setting: &str, message: String, remedy: Option<String>) {
        let found = Diagnostic::warning(self.loaded.layout.origin(setting), message);
        self.found.push(match remedy {
            Some(remedy) => found.remedy(remedy),
            None => found,
        });
    }

    /// Read at every connection: what is not there yet may come.
    fn tls(&mut self) {
        let Some(tls) = &self.loaded.config.redis.tls else {
            return;
        };
        let own = tls.own.as_ref();
        for (name, file) in [
            ("ca_file", tls.ca_file.as_ref()),
            ("cert_file", own.map(|(cert, _)| cert)),
            ("key_file", own.map(|(_, key)| key)),
        ] {
            if let Some(file) = file
                && let Err(error) = fs::File::open(file)
            {
                let message = format!("{} cannot be read: {error}", file.display());
                self.warn(&format!("redis.tls.{name}"), message, None);
            }
        }
    }

    /// What tracing costs, once: whoever wrote a word about it knows.
    fn tracing(&mut self) {
        let config = &self.loaded.config;
        let traced = |service: &&std::sync::Arc<Service>| service.capture.how == Capture::Auto;
        let Some(first) = config.services.iter().find(traced) else {
            return;
        };
        let origin = ["crash.capture", "crash"]
            .iter()
            .any(|key| self.loaded.layout.place(key).is_some());
        if origin {
            return;
        }
        let setting = format!("service.{}", first.name);
        let message = "services are traced to explain their crashes, unless kernel.core_pattern names this \
            agent: each signal costs them about 30 µs and each new thread 45 µs; gdb, strace and LeakSanitizer cannot \
            attach";
        let remedy =
            "[crash] capture = \"auto\" says that this is meant; crash = \"off\" spares a service";
        self.warn(&setting, message.to_owned(), Some(remedy.to_owned()));
    }

    fn service(&mut self, service: &Service) {
        let key = |name: &str| format!("service.{}.{name}", service.name);
        let process = &service.process;
        if let Err(message) = executable(service) {
            let spaced = service.executable.contains(' ');
            let remedy = spaced.then(|| "arguments go into `args`".to_owned());
            self.warn(&key("executable"), message, remedy);
        }
        self.user(&key("user"), process.user.as_ref());
        self.group(&key("group"), process.group.as_ref());
        for group in process.supplementary_groups.iter().flatten() {
            self.group(&key("supplementary_groups"), Some(group));
        }
        if !self.root && (process.user.is_some() || process.group.is_some()) {
            let setting = match process.user {
                Some(_) => key("user"),
                None => key("group"),
            };
            let message = "only root can start a service as another user".to_owned();
            let remedy = "not being root, the service runs as the agent does".to_owned();
            self.warn(&setting, message, Some(remedy));
        }
        if let Some(folder) = &process.working_directory
            && !folder.is_dir()
        {
            let message = format!("{} is not a folder here", folder.display());
            self.warn(&key("working_directory"), message, None);
        }
        for file in &process.environment_files {
            if let Err(error) = fs::File::open(file) {
                let message = format!("{} cannot be read: {error}", file.display());
                self.warn(&key("environment_file"), message, None);
            }
        }
        if let (Some(cpus), Some(wanted)) = (&self.cpus, &process.cpu_affinity)
            && !wanted.iter().any(|cpu| cpus.contains(cpu))
        {
            let message = "this machine has none of these CPUs".to_owned();
            let last = cpus.last().copied().unwrap_or(0);
            let remedy = format!("it has 0 to {last}");
            self.warn(&key("cpu_affinity"), message, Some(remedy));
        }
    }

    fn user(&mut self, setting: &str, user: Option<&Identity>) {
        if let (Some(known), Some(Identity::Name(name))) = (&self.users, user)
            && let Some(remedy) = missing(known, name)
        {
            let message = format!("there is no user `{name}` here");
            self.warn(setting, message, Some(remedy));
        }
    }

    fn group(&mut self, setting: &str, group: Option<&Identity>) {
        if let (Some(known), Some(Identity::Name(name))) = (&self.groups, group)
            && let Some(remedy) = missing(known, name)
        {
            let message = format!("there is no group `{name}` here");
            self.warn(setting, message, Some(remedy));
        }
    }
}

/// What to do about a name that the file lacks; `None` where it has it.
fn missing(known: &[String], name: &str) -> Option<String> {
    if known.iter().any(|other| other == name) {
        return None;
    }
    Some(match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "make it, or write a number".to_owned(),
    })
}

/// First fields of passwd(5) or group(5).
fn names(path: &str) -> Option<Vec<String>> {
    let bytes = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    Some(lines.map(|(name, _)| name.to_owned()).collect())
}

/// What execvp(3) searches where no PATH is set.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why it would not start.
fn executable(service: &Service) -> Result<(), String> {
    let name = &service.executable;
    if name.contains('/') {
        return runnable(Path::new(name));
    }
    let own = service.process.environment.get("PATH").cloned();
    let path = own.or_else(|| std::env::var("PATH").ok());
    let path = path.as_deref().unwrap_or(DEFAULT_PATH);
    let mut folders = path.split(':').map(|folder| Path::new(folder).join(name));
    if folders.any(|candidate| runnable(&candidate).is_ok()) {
        return Ok(());
    }
    Err(format!("there is no `{name}` on PATH ({path})"))
}

fn runnable(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let about = fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("{shown} does not exist here"),
        _ => format!("{shown} cannot be read: {error}"),
    })?;
    if about.is_dir() {
        return Err(format!("{shown} is a folder"));
    }
    if about.permissions().mode() & 0o111 == 0 {
        return Err(format!("{shown} is not executable (chmod +x)"));
    }
    match interpreter(path) {
        Some(program) if !Path::new(&program).exists() => Err(format!(
            "the interpreter of {shown}, {program}, does not exist here"
        )),
        Some(_) | None => Ok(()),
    }
}

/// The program of a `#!` line, execve(2).
fn interpreter(path: &Path) -> Option<String> {
    let mut head = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(256).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let line = String::from_utf8_lossy(line).trim().to_owned();
    let program = line.split([' ', '\t']).next()?;
    program.starts_with('/').then(|| program.to_owned())
}
