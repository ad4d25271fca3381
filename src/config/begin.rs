//! programs → a commented configuration to begin with.

use std::collections::HashSet;

use crate::service::ServiceName;

/// One service to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// As it is to stand in the file: a path from the root, or a name for PATH.
    pub executable: String,
    pub args: Vec<String>,
    /// Whether it is there now.
    pub found: bool,
}

const HEAD: &str = r#"# Begun by `agent init`. Every key, with its default, stands in the README.
# `agent check --config FILE` says what is wrong with it; `agent run --config FILE` runs it.

[agent]
# Where the spool and crash records are kept, and where the control socket lies.
# state_dir = "/var/lib/agent"
# runtime_dir = "/run/agent"
# The service with whose end the agent ends too, with its code:
# main = "NAME"
# Also copy what services say to the agent's own stdout (`podman logs`):
# tee = true

[redis]
# Services run, and their lines wait, while it is away.
host = "localhost"
port = 6379
# password_file = "/run/secrets/redis"
"#;

const SERVICE: &str = r#"# user = "nobody"                      # only an agent that is root can change it
# environment = { KEY = "value" }
# after = ["other"]                    # start order only; `requires` also fails and stops together
# What says that it is ready; without it, that it was started:
# ready = { tcp = "127.0.0.1:8080" }   # or http = "http://…", log = "regex", notify = true, exec = […]
restart = "always"                     # "on-failure", "never"
# stop = { signal = "TERM", timeout = "10s" }
"#;

const CHECK: &str = r#"
# Liveness; each success is a beat of the health pool of its name:
# [[service.NAME.check]]
# name = "port"
# tcp = "127.0.0.1:8080"
# interval = "5s"
# failures = 3
# action = "restart"
"#;

/// The text; `agent check` accepts it.
pub fn configuration(programs: &[Program]) -> String {
    let mut text = HEAD.to_owned();
    let mut taken = HashSet::new();
    for program in programs {
        let name = free_name(&program.executable, &mut taken);
        text.push_str(&format!("\n[service.{}]\n", key(&name)));
        if !program.found {
            text.push_str("# There is no such program here now.\n");
        }
        text.push_str(&format!("executable = {}\n", quoted(&program.executable)));
        let args: Vec<String> = program.args.iter().map(|arg| quoted(arg)).collect();
        text.push_str(&format!("args = [{}]", args.join(", ")));
        text.push_str("   # exactly these: there is no shell\n");
        text.push_str(SERVICE);
        text.push_str(&CHECK.replace("NAME", &key(&name)));
    }
    text
}

/// After the program, told apart from earlier ones.
fn free_name(executable: &str, taken: &mut HashSet<String>) -> String {
    let base = executable.rsplit('/').next().unwrap_or(executable);
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let base: String = base
        .chars()
        .map(|c| if allowed(c) { c } else { '_' })
        .take(100)
        .collect();
    let base = match base.as_str() {
        "" | "." | ".." => "service".to_owned(),
        base => ServiceName::new(base).map_or("service".to_owned(), |name| name.to_string()),
    };
    let numbered = (2..).map(|number| format!("{base}-{number}"));
    let name = std::iter::once(base.clone())
        .chain(numbered)
        .find(|name| !taken.contains(name));
    let name = name.unwrap_or(base);
    taken.insert(name.clone());
    name
}

/// A bare key of TOML takes no dots.
fn key(name: &str) -> String {
    match name.contains('.') {
        true => format!("\"{name}\""),
        false => name.to_owned(),
    }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut out = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Environment, check, file};

    fn program(executable: &str, args: &[&str]) -> Program {
        Program {
            executable: executable.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            found: true,
        }
    }

    #[test]
    fn what_it_writes_is_accepted_and_says_what_was_typed() {
        let programs = [
            program("/usr/bin/redis-server", &["--port", "0"]),
            program(
                "/opt/a b/my.server",
                &["say \"hi\"", "back\\slash", "tab\there", "é"],
            ),
            program("redis-server", &[]),
            program("/opt/ü", &[]),
        ];
        let text = configuration(&programs);
        let path = Path::new("agent.toml");
        let loaded = check::parse(
            text.as_bytes(),
            path,
            file::Syntax::Toml,
            &Environment::default(),
        );
        let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        assert_eq!(loaded.warnings, []);
        let services = &loaded.config.services;
        let names: Vec<&str> = services
            .iter()
            .map(|service| service.name.as_str())
            .collect();
        assert_eq!(names, ["redis-server", "my.server", "redis-server-2", "_"]);
        for (service, program) in services.iter().zip(&programs) {
            assert_eq!(service.executable, program.executable);
            assert_eq!(service.args, program.args);
        }
        // What is commented out is accepted as well.
        let bare = text.replace("# [[", "[[").replace("\n# name", "\nname");
        let bare = bare
            .replace("\n# tcp", "\ntcp")
            .replace("\n# interval", "\ninterval");
        let bare = bare
            .replace("\n# failures", "\nfailures")
            .replace("\n# action", "\naction");
        let bare = bare
            .replace("\n# ready", "\nready")
            .replace("\n# stop", "\nstop");
        let bare = bare
            .replace("\n# environment", "\nenvironment")
            .replace("\n# user", "\nuser");
        let loaded = check::parse(
            bare.as_bytes(),
            path,
            file::Syntax::Toml,
            &Environment::default(),
        );
        let loaded = loaded.unwrap_or_else(|problems| panic!("{problems}\n{bare}"));
        assert_eq!(loaded.config.services[0].checks.len(), 1);
        assert!(configuration(&[]).contains("[redis]"));
    }
}
