//! argv → one call per mode → exit code.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use jettison_agent::cli::args::{self, Command, Refusal};
use jettison_agent::cli::logs;
use jettison_agent::config::diagnose::Diagnostics;
use jettison_agent::config::load::{self, Environment, Standard};
use jettison_agent::config::{Config, Form, Loaded, Restart};
use jettison_agent::control::client;
use jettison_agent::request::Request;
use jettison_agent::sink::tail;
use jettison_agent::{
    cli, clock, crash, daemon, demo, diag, names, nearest, query, record, sink, wrapp,
};

/// Linked, so that it is there in a static binary and in an image without files (`--features jemalloc`).
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Before any thread: afterwards the C library must not be told.
    names::pin();
    let argv: Vec<OsString> = std::env::args_os().collect();
    let code = match args::parse(&argv, std::process::id()) {
        Ok(command) => perform(command),
        Err(Refusal::Nothing(help)) => complain(&help, 2),
        Err(Refusal::Wrong(sentence)) => complain(&format!("agent: {sentence}\n"), 2),
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn perform(command: Command) -> i32 {
    match command {
        Command::Run { config } => run(config.as_deref()),
        Command::RunCommand {
            redis,
            name,
            restart,
            argv,
        } => run_command(redis.as_deref(), name.as_deref(), restart, &argv),
        Command::Check { config } => check(config.as_deref()),
        Command::Health { args } => query::main(&args, redis_of, &sink::ask::ask_within),
        Command::Demo { args } => demo::main(&args),
        Command::Version => say(&format!("agent {}\n", env!("CARGO_PKG_VERSION"))),
        Command::Help(text) => say(&text),
        Command::Logs { args } => logs(&args),
        Command::Crashes { args } => crash::browse::main(&args, state_of),
        Command::Symbolize { args } => crash::examine::main(&args),
        Command::Core { args } => core(&args),
        Command::Wrapp { args } => wrapp::main(&args),
        Command::Init { programs } => say(&load::begin(&programs)),
        client => cli::run::client_verb(&client, &sockets_of).unwrap_or(2),
    }
}

fn run(path: Option<&Path>) -> i32 {
    diag::start("info");
    let environment = Environment::read();
    if path.is_none() && environment.config.is_none() {
        match load::standard() {
            Standard::File => {}
            Standard::Command => {
                return run_words(None, None, None, &[load::DEFAULT_COMMAND.to_owned()]);
            }
            Standard::Nothing { .. } if environment.maintenance.is_some() => {}
            Standard::Nothing { almost } => return idle(&missing(almost), environment),
        }
    }
    let loaded = match load::load(path, &environment) {
        Ok(loaded) => loaded,
        Err(problems) => return complain(&format!("{problems}\n"), problems.exit_code()),
    };
    if loaded.config.services.is_empty() && !loaded.config.agent.maintenance {
        if !has_manager() {
            return complain(
                "agent: the configuration has no service: nothing to supervise\n",
                2,
            );
        }
        // As a package has just installed it: the unit shows it, and its reload ends it.
        tracing::warn!("the configuration has no service yet. Waiting; a reload looks again");
    }
    supervise(loaded, again(path))
}

/// Whether a manager listens that shows our state to whoever looks: sd_notify(3).
fn has_manager() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|name| !name.is_empty())
}

/// What the kernel calls with the dump of a process that is dying.
fn core(args: &[OsString]) -> i32 {
    let ways = crash::kernel::Ways {
        settings_of: &daemon::handler_settings,
        ask: &|config, question, limit| {
            let search = client::Search {
                variable: &|_| None,
                // Without one the search would begin elsewhere.
                config: Some(config.unwrap_or(Path::new(""))),
                sockets_of: &|named| {
                    let named = named.filter(|path| !path.as_os_str().is_empty());
                    Ok(daemon::handler_sockets(named))
                },
            };
            match client::ask(question, &search, Some(limit)) {
                Ok(reply) => crash::kernel::Answer::Reply(reply),
                Err(client::Trouble::Silent { .. }) => crash::kernel::Answer::Late,
                Err(_) => crash::kernel::Answer::NoAgent,
            }
        },
    };
    crash::kernel::main(args, &ways)
}

fn again(path: Option<&Path>) -> daemon::Reload {
    let path = path.map(Path::to_owned);
    Box::new(move || {
        load::load(path.as_deref(), &Environment::read())
            .map(|loaded| loaded.config)
            .map_err(|problems| problems.to_string())
    })
}

fn missing(almost: bool) -> String {
    let command = match almost {
        true => "is not executable",
        false => "does not exist",
    };
    format!(
        "nothing to supervise: {} does not exist, and {} {command}; \
         AGENT_CONFIG or --config names another file, agent run -- COMMAND one command",
        load::DEFAULT_PATH,
        load::DEFAULT_COMMAND
    )
}

/// PID 1 waits, so that a container stays there to be looked into, and takes a configuration
/// that is put there later (HUP). Elsewhere nobody would notice: an error.
fn idle(missing: &str, environment: Environment) -> i32 {
    if std::process::id() != 1 {
        return complain(&format!("agent: {missing}\n"), 2);
    }
    let waiting = Environment {
        maintenance: Some("1".into()),
        ..environment
    };
    match load::load(None, &waiting) {
        Ok(loaded) => {
            tracing::warn!("{missing}. Waiting; HUP looks again");
            supervise(loaded, again(None))
        }
        Err(problems) => complain(&format!("{problems}\n"), problems.exit_code()),
    }
}

fn run_command(
    redis: Option<&str>,
    name: Option<&str>,
    restart: Option<Restart>,
    argv: &[OsString],
) -> i32 {
    diag::start("info");
    let Some(words) = argv
        .iter()
        .map(|word| word.to_str().map(str::to_owned))
        .collect::<Option<Vec<String>>>()
    else {
        return complain("agent: the command's words must be UTF-8\n", 2);
    };
    run_words(redis, name, restart, &words)
}

fn run_words(
    redis: Option<&str>,
    name: Option<&str>,
    restart: Option<Restart>,
    words: &[String],
) -> i32 {
    match load::from_command(words, redis, name, restart, &Environment::read()) {
        Ok(loaded) => {
            let config = loaded.config.clone();
            supervise(loaded, Box::new(move || Ok(config.clone())))
        }
        Err(problems) => complain(&format!("{problems}\n"), problems.exit_code()),
    }
}

fn supervise(loaded: Loaded, reload: daemon::Reload) -> i32 {
    for warning in &loaded.warnings {
        tracing::warn!("{}", warning.brief());
    }
    daemon::run(loaded.config, reload, daemon::Outlet::Redis)
}

fn check(path: Option<&Path>) -> i32 {
    match load::load(path, &Environment::read()) {
        Ok(loaded) => {
            let mut warnings = loaded.warnings.clone();
            warnings.extend(load::survey(&loaded));
            let count = warnings.len();
            if count > 0 {
                complain(&format!("{}\n", Diagnostics::sorted(warnings)), 0);
            }
            say(&summary(&loaded.config, count))
        }
        Err(problems) => complain(&format!("{problems}\n"), problems.exit_code()),
    }
}

fn summary(config: &Config, warnings: usize) -> String {
    let services = match config.services.len() {
        1 => "1 service".to_owned(),
        count => format!("{count} services"),
    };
    let warnings = match warnings {
        0 => String::new(),
        1 => ", 1 warning".to_owned(),
        count => format!(", {count} warnings"),
    };
    format!(
        "ok: {services}, Redis at {}{warnings}\n",
        config.redis.endpoint
    )
}

fn logs(args: &[OsString]) -> i32 {
    let asked = match logs::parse(args) {
        Ok(asked) => asked,
        Err(problem) => return complain(&format!("agent: logs: {problem}\n"), 2),
    };
    let config = match config_of_logs(asked.config.as_deref()) {
        Ok(config) => config,
        Err(problems) => return complain(&format!("{problems}\n"), problems.exit_code()),
    };
    let known = config.services.iter().map(|service| service.name.as_str());
    let mut streams = Vec::new();
    for name in &asked.services {
        let service = config
            .services
            .iter()
            .find(|service| service.name.as_str() == name);
        let Some(service) = service else {
            let hint = match nearest::nearest(name, known) {
                Some(meant) => format!("; did you mean {meant}?"),
                None => String::new(),
            };
            return complain(&format!("agent: logs: no service {name:?}{hint}\n"), 1);
        };
        streams.push(service);
    }
    if streams.is_empty() {
        streams.extend(&config.services);
    }
    let names: HashMap<&str, &str> = streams
        .iter()
        .map(|service| (service.stream_name.as_str(), service.name.as_str()))
        .collect();
    let wanted = tail::Wanted {
        streams: names.keys().map(|stream| (*stream).to_owned()).collect(),
        source: asked.source.map(|source| match source {
            logs::Source::Stdout => record::Source::Stdout,
            logs::Source::Stderr => record::Source::Stderr,
        }),
        last: asked.lines,
        follow: asked.follow,
    };
    let places = tail::Places {
        redis: config.redis.clone(),
        journals: journals(&config),
    };
    let mut stdout = std::io::stdout().lock();
    let onto = match std::io::IsTerminal::is_terminal(&stdout) {
        true => logs::Onto::Terminal,
        false => logs::Onto::Bytes,
    };
    if asked.follow {
        cli::terminal::end_with_the_reader();
    }
    let mut unwritten = None;
    let mut drawing = logs::Drawing::new(onto, names.values().copied());
    let mut show = |line: &tail::Line| {
        let mut out = Vec::new();
        let shown = logs::Shown {
            time: &clock::local(line.at_ms),
            service: names.get(&*line.stream).copied().unwrap_or(&line.stream),
            source: match line.source {
                record::Source::Stdout => logs::Source::Stdout,
                record::Source::Stderr => logs::Source::Stderr,
            },
            text: &line.text,
            partial: line.partial,
        };
        drawing.line(&shown, &mut out);
        stdout.write_all(&out).inspect_err(|error| {
            if error.kind() != std::io::ErrorKind::BrokenPipe {
                unwritten = Some(error.to_string());
            }
        })
    };
    let mut says = |text: &str| {
        complain(&format!("agent: {text}\n"), 0);
    };
    let told = tail::run(&places, &wanted, &mut show, &mut says);
    if let Some(error) = unwritten {
        return complain(&format!("agent: logs: stdout: {error}\n"), 1);
    }
    match told {
        Ok(tail::Told::Everything | tail::Told::NobodyListens) => 0,
        Ok(tail::Told::JournalOnly(_)) => 1,
        Err(error) => complain(&format!("agent: logs: {error}\n"), 1),
    }
}

/// What names the streams and where they are: the file that is named, else that of the agent that `AGENT_SOCKET` names,
/// else the usual one, else that of any agent that runs.
fn config_of_logs(path: Option<&Path>) -> Result<Config, Diagnostics> {
    let environment = Environment::read();
    let is_named = path.is_some() || environment.config.is_some();
    let is_usual = std::env::var_os("AGENT_SOCKET").is_none() && load::standard() == Standard::File;
    // Beside an agent that hangs nothing is asked that a file can answer.
    if is_named || is_usual {
        return load::load(path, &environment).map(|loaded| loaded.config);
    }
    let Some(status) = running() else {
        return load::load(None, &environment).map(|loaded| loaded.config);
    };
    let agent = &status["agent"];
    if let Some(file) = agent["config"].as_str() {
        return load::load(Some(Path::new(file)), &environment).map(|loaded| loaded.config);
    }
    // It runs one command, without a file.
    let name = status["services"][0]["name"].as_str();
    let url = agent["redis"]["url"].as_str();
    let words = [name.unwrap_or("command").to_owned()];
    let mut config = load::from_command(&words, url, name, None, &environment)?.config;
    if let Some(folder) = agent["state_dir"].as_str() {
        config.agent.state_dir = folder.into();
    }
    Ok(config)
}

/// Of the agent that supervises, and of each application that is wrapped alone.
fn journals(config: &Config) -> Vec<PathBuf> {
    let state = &config.agent.state_dir;
    let own = config.services.iter().flat_map(|service| {
        let name = service.stream_name.as_str();
        wrapp::state_folders(state, name)
    });
    std::iter::once(state.clone())
        .chain(own)
        .map(|folder| folder.join(daemon::SPOOL))
        .collect()
}

fn redis_of(path: Option<&Path>) -> Result<jettison_agent::config::Redis, String> {
    load::redis_as_written(path, &Environment::read()).map_err(|problems| problems.to_string())
}

/// Where the crash records are: the running agent says it, unless a configuration is named; else the configuration;
/// where there is neither, the usual folder.
fn state_of(path: Option<&Path>) -> Result<PathBuf, String> {
    if path.is_none()
        && let Some(folder) = running_state()
    {
        return Ok(folder);
    }
    let environment = Environment::read();
    let problems = match load::load(path, &environment) {
        Ok(loaded) => return Ok(configured_state(&loaded)),
        Err(problems) => problems.to_string(),
    };
    let is_named = path.is_some() || environment.config.is_some();
    let usual = environment.state_dir.map(PathBuf::from);
    let usual = usual.unwrap_or_else(|| load::DEFAULT_STATE.into());
    match !is_named && load::standard() != Standard::File && usual.is_dir() {
        true => Ok(usual),
        false => Err(format!(
            "no agent answers that could tell its state folder, and\n{problems}"
        )),
    }
}

fn running_state() -> Option<PathBuf> {
    Some(running()?["agent"]["state_dir"].as_str()?.into())
}

/// The status of the agent that `AGENT_SOCKET` names, or that is found as by every other verb.
fn running() -> Option<serde_json::Value> {
    /// As long as `agent status` waits.
    const PATIENCE: Duration = Duration::from_secs(5);
    let search = client::Search {
        variable: &|name| std::env::var_os(name),
        config: None,
        sockets_of: &sockets_of,
    };
    let question = Request::Status {
        services: Vec::new(),
        pss: false,
    };
    let reply = client::ask(&question, &search, Some(PATIENCE)).ok()?;
    Some(reply.data)
}

fn configured_state(loaded: &Loaded) -> PathBuf {
    let state = &loaded.config.agent.state_dir;
    match (loaded.form, loaded.config.services.first()) {
        (Form::Short, Some(application)) => {
            let folders = wrapp::state_folders(state, application.name.as_str());
            let used = folders.iter().find(|folder| folder.is_dir());
            used.unwrap_or(&folders[0]).clone()
        }
        (Form::Short | Form::Native, _) => state.clone(),
    }
}

fn sockets_of(path: Option<&Path>) -> Result<Vec<PathBuf>, String> {
    load::load(path, &Environment::read())
        .map(|loaded| match loaded.form {
            Form::Native => daemon::sockets_of(&loaded.config),
            Form::Short => wrapp::sockets_of(&loaded.config),
        })
        .map_err(|problems| problems.to_string())
}

fn say(text: &str) -> i32 {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => 0,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => 1,
        Err(error) => complain(&format!("agent: stdout: {error}\n"), 1),
    }
}

fn complain(text: &str, code: i32) -> i32 {
    let _ = std::io::stderr().write_all(diag::plain(text).as_bytes());
    code
}
