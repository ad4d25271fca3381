//! a path, the environment → a configuration, from the files of this machine.
//!
//! Finds the file, reads it and what it includes, and looks whether passwords can be had.
//! Every failure is one diagnostic that names the file it is about.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::begin::Program;
use super::check;
pub use super::check::DEFAULT_STATE;
use super::diagnose::{Diagnostic, Diagnostics, Layout, Origin, Place, Severity, Sources};
use super::file::{self, MAX_BYTES, Syntax, Table, Value};
pub use super::survey::survey;
pub use super::{Environment, Form, Loaded};
use super::{Redis, Restart, Secret, single};

pub const DEFAULT_PATH: &str = "/etc/agent/agent.toml";
/// An executable that is the one command where nothing else says what to run.
pub const DEFAULT_COMMAND: &str = "/etc/agent/run";

/// What `agent run` finds when nobody names a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standard {
    File,
    Command,
    /// Neither; and whether there is a file that only lacks the right to be executed.
    Nothing {
        almost: bool,
    },
}

pub fn standard() -> Standard {
    use std::os::unix::fs::PermissionsExt;
    if !absent(Path::new(DEFAULT_PATH)) {
        return Standard::File;
    }
    match fs::metadata(DEFAULT_COMMAND) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {
            Standard::Command
        }
        Ok(_) => Standard::Nothing { almost: true },
        Err(_) => Standard::Nothing { almost: false },
    }
}

impl Environment {
    /// Of this process.
    pub fn read() -> Environment {
        let get = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Environment {
            redis_addr: get("REDIS_ADDR"),
            redis_password: get("REDIS_PASSWORD"),
            state_dir: get("AGENT_STATE_DIR"),
            runtime_dir: get("AGENT_RUNTIME_DIR"),
            config: get("AGENT_CONFIG"),
            maintenance: get("AGENT_MAINTENANCE"),
        }
    }
}

/// `path`, else `AGENT_CONFIG`, else [`DEFAULT_PATH`].
pub fn load(path: Option<&Path>, environment: &Environment) -> Result<Loaded, Diagnostics> {
    let named = path.or(environment.config.as_deref().map(Path::new));
    let path = named.unwrap_or(Path::new(DEFAULT_PATH));
    let bytes = match bytes(path) {
        Ok(bytes) => bytes,
        Err(problem) => {
            // A board under maintenance comes up without a file too.
            let mut bare = check::parse(b"", path, Syntax::Toml, environment)?;
            if named.is_none() && bare.config.agent.maintenance && absent(path) {
                bare.files.clear();
                return Ok(bare);
            }
            return Err(Diagnostics::one(problem));
        }
    };
    let mut sources = Sources::default();
    let syntax = file::syntax_of(path, &bytes);
    let mut root = file::read(&bytes, path, syntax, &mut sources).map_err(Diagnostics::sorted)?;
    let form = check::form(&root, syntax);
    let mut files = vec![path.to_owned()];
    let mut warnings = Vec::new();
    match (include(&root), form) {
        (Include::None, Form::Native | Form::Short) | (Include::Default, Form::Short) => {}
        (Include::Typed(_, place), Form::Short) => {
            let found = Diagnostic::error(
                sources.origin(place),
                "a file of one application includes no others",
            );
            return Err(Diagnostics::one(found.remedy("take it out")));
        }
        (Include::Default, Form::Native) => {
            let pattern = check::DEFAULT_INCLUDE.to_owned();
            let more = matching(path, &pattern, None, &sources, &mut warnings)?;
            join(&mut root, more, &mut sources, &mut files)?;
        }
        (Include::Typed(pattern, place), Form::Native) => {
            let more = matching(path, &pattern, Some(place), &sources, &mut warnings)?;
            join(&mut root, more, &mut sources, &mut files)?;
        }
    }
    let mut loaded = check::check(sources, &root, form, files, environment)?;
    loaded.warnings.extend(warnings);
    loaded.config.file = std::path::absolute(path).ok();
    if form == Form::Short {
        anchor(&mut loaded);
    }
    match password(&loaded.config.redis, &loaded.layout) {
        Some(problem) => {
            loaded.warnings.push(problem);
            Err(Diagnostics::sorted(loaded.warnings))
        }
        None => Ok(loaded),
    }
}

/// `agent run [--redis URL] [--name NAME] [--restart WHEN] -- CMD ARG…`: no file.
pub fn from_command(
    argv: &[String],
    redis_url: Option<&str>,
    name: Option<&str>,
    restart: Option<Restart>,
    environment: &Environment,
) -> Result<Loaded, Diagnostics> {
    let mut loaded = single::command(argv, redis_url, name, restart, environment)?;
    anchor(&mut loaded);
    Ok(loaded)
}

/// Only `[redis]`, for tools that ask Redis: what FILE says wins over the environment.
pub fn load_redis(path: Option<&Path>, environment: &Environment) -> Result<Redis, Diagnostics> {
    let (redis, layout) = written_redis(path, environment)?;
    match password(&redis, &layout) {
        Some(problem) => Err(Diagnostics::one(problem)),
        None => Ok(redis),
    }
}

/// The same without a look at the password file, for who reads it anyway and has own words.
pub fn redis_as_written(
    path: Option<&Path>,
    environment: &Environment,
) -> Result<Redis, Diagnostics> {
    written_redis(path, environment).map(|(redis, _)| redis)
}

fn written_redis(
    path: Option<&Path>,
    environment: &Environment,
) -> Result<(Redis, Layout), Diagnostics> {
    let mut sources = Sources::default();
    let root = match path {
        Some(path) => {
            let bytes = bytes(path).map_err(Diagnostics::one)?;
            let syntax = file::syntax_of(path, &bytes);
            file::read(&bytes, path, syntax, &mut sources).map_err(Diagnostics::sorted)?
        }
        None => Table::default(),
    };
    let (cx, redis) = check::only_redis(sources, &root, environment);
    let (layout, found, wrong) = cx.finish();
    if wrong {
        let errors = found.into_iter().filter(|d| d.severity == Severity::Error);
        return Err(Diagnostics(errors.collect()));
    }
    Ok((redis, layout))
}

/// `./app` becomes a whole path: the application may start in another folder.
fn anchor(loaded: &mut Loaded) {
    for service in &mut loaded.config.services {
        if service.executable.contains('/')
            && let Ok(whole) = std::path::absolute(&service.executable)
            && let Some(whole) = whole.to_str()
        {
            Arc::make_mut(service).executable = whole.to_owned();
        }
    }
}

fn absent(path: &Path) -> bool {
    matches!(fs::metadata(path), Err(error) if error.kind() == std::io::ErrorKind::NotFound)
}

/// The content of one file; at most a byte more than a configuration may have.
fn bytes(path: &Path) -> Result<Vec<u8>, Diagnostic> {
    let name = path.display().to_string();
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            let found = Diagnostic::whole(name.clone(), "this file does not exist");
            // Who named it knows how; the usual one may be unknown.
            found.remedy(match path == Path::new(DEFAULT_PATH) {
                true => {
                    "--config PATH or AGENT_CONFIG names another; `agent run -- PROGRAM` needs none"
                }
                false => "look for a typing error in its path",
            })
        }
        _ => Diagnostic::whole(name.clone(), format!("this file cannot be read: {error}")),
    };
    let kind = fs::metadata(path).map_err(failed)?.file_type();
    if kind.is_dir() {
        let found = Diagnostic::whole(name.clone(), "this is a folder, not a file");
        return Err(found.remedy("name the file in it"));
    }
    // A named pipe could keep us waiting for ever; a shell's `<(…)` and stdin do not.
    if !kind.is_file() && !path.starts_with("/dev") && !path.starts_with("/proc") {
        return Err(Diagnostic::whole(
            name.clone(),
            "this is not a regular file",
        ));
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

enum Include {
    None,
    Default,
    Typed(String, Place),
}

/// What `[agent] include` says. What is wrong with it is told by `check`.
fn include(root: &Table) -> Include {
    let get = |table: &Table, name: &str| {
        let found = table.entries.iter().find(|entry| entry.key == name);
        found.map(|entry| entry.node.clone())
    };
    let Some(Value::Table(agent)) = get(root, "agent").map(|node| node.value) else {
        return Include::Default;
    };
    match get(&agent, "include") {
        None => Include::Default,
        Some(node) => match node.value {
            Value::Text(pattern) if !pattern.is_empty() => Include::Typed(pattern, node.place),
            _ => Include::None,
        },
    }
}

/// Files of one folder whose names match, in lexical order. The pattern is relative to the
/// main file; only its last part may hold `*` and `?`. A folder that was typed and is not
/// there is worth a warning.
fn matching(
    main: &Path,
    pattern: &str,
    typed: Option<Place>,
    sources: &Sources,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Vec<PathBuf>, Diagnostics> {
    let (folder, last) = pattern
        .rsplit_once('/')
        .map_or((".", pattern), |(folder, last)| {
            (if folder.is_empty() { "/" } else { folder }, last)
        });
    let origin = || match typed {
        Some(place) => sources.origin(place),
        None => Origin::Whole(main.display().to_string()),
    };
    if folder.contains(['*', '?']) {
        let found = Diagnostic::error(origin(), "only the file name of `include` may hold `*`");
        return Err(Diagnostics::one(
            found.remedy("such as \"services.d/*.toml\""),
        ));
    }
    let beside = main.parent().unwrap_or(Path::new(""));
    let folder = match folder {
        "." => beside.to_owned(),
        folder => beside.join(folder),
    };
    // `agent.toml` alone has an empty parent.
    let listed = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => &folder,
    };
    let entries = match fs::read_dir(listed) {
        Ok(entries) => entries,
        Err(error) => {
            if typed.is_some() || error.kind() != std::io::ErrorKind::NotFound {
                let message = format!("cannot look into {}: {error}", listed.display());
                warnings.push(Diagnostic::warning(origin(), message));
            }
            return Ok(Vec::new());
        }
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.file_name())
        .filter(|name| matches!(name.to_str(), Some(name) if glob(last, name)))
        .map(|name| folder.join(name))
        .filter(|path| path != main)
        .collect();
    if found.is_empty() && typed.is_some() && !last.contains(['*', '?']) && !pattern.is_empty() {
        let message = format!(
            "`include` names a file that is not there: {}",
            folder.join(last).display()
        );
        let warning = Diagnostic::warning(origin(), message);
        warnings.push(warning.remedy("`*` stands for any text, such as in \"services.d/*.toml\""));
    }
    found.sort();
    Ok(found)
}

/// `*` is any text, `?` any one character; hidden files only where the pattern says so.
fn glob(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where the last `*` stands, and the end of what it covers so far.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match (pattern.get(p), star) {
            (Some('*'), _) => {
                star = Some((p, n));
                p += 1;
            }
            (Some(c), _) if *c == '?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            (_, Some((at, covered))) => {
                star = Some((at, covered + 1));
                p = at + 1;
                n = covered + 1;
            }
            (_, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Reads the included files into the main one's tables.
fn join(
    root: &mut Table,
    more: Vec<PathBuf>,
    sources: &mut Sources,
    files: &mut Vec<PathBuf>,
) -> Result<(), Diagnostics> {
    let mut found = Vec::new();
    for path in more {
        let bytes = match bytes(&path) {
            Ok(bytes) => bytes,
            Err(problem) => {
                found.push(problem);
                continue;
            }
        };
        let syntax = file::syntax_of(&path, &bytes);
        match file::read(&bytes, &path, syntax, sources) {
            Ok(table) => {
                if let Include::Typed(_, place) = include(&table) {
                    let origin = sources.origin(place);
                    let message = "an included file includes no others";
                    found.push(Diagnostic::error(origin, message).remedy("take it out"));
                }
                check::merge(root, table, sources, &mut found);
            }
            Err(problems) => found.extend(problems),
        }
        files.push(path);
    }
    if found.is_empty() {
        Ok(())
    } else {
        Err(Diagnostics::sorted(found))
    }
}

/// Whether the password file can be read and holds something (texts: FEATURES A11).
fn password(redis: &Redis, layout: &Layout) -> Option<Diagnostic> {
    let Some(Secret::File(path)) = &redis.password else {
        return None;
    };
    let setting = ["redis.secrets_dir", "redis.password_file"]
        .into_iter()
        .find(|setting| layout.place(setting).is_some())
        .unwrap_or("redis.password_file");
    let shown = path.display();
    let problem =
        |message: String| Diagnostic::error(layout.origin(setting), message).credentials();
    match fs::read(path) {
        Ok(text) if text.trim_ascii().is_empty() => {
            Some(problem(format!("password file {shown} is empty")))
        }
        Ok(_) => None,
        Err(error) => {
            let found = problem(format!("failed to read password file {shown}"));
            Some(found.remedy(error.to_string()))
        }
    }
}

/// A configuration to begin with, for programs as they were typed: a path below the working directory becomes one from
/// the root, since nobody knows where an agent will be started.
pub fn begin(programs: &[String]) -> String {
    let programs: Vec<Program> = programs.iter().map(|typed| program(typed)).collect();
    super::begin::configuration(&programs)
}

fn program(typed: &str) -> Program {
    // The name of a file may hold blanks: a command line is what is no file.
    let mut words = match Path::new(typed).is_file() {
        true => vec![typed.to_owned()],
        false => typed.split_whitespace().map(str::to_owned).collect(),
    };
    let executable = if words.is_empty() {
        String::new()
    } else {
        words.remove(0)
    };
    let executable = match executable.contains('/') {
        true => {
            std::path::absolute(&executable).map_or(executable, |path| path.display().to_string())
        }
        false => executable,
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = match executable.contains('/') {
        true => Path::new(&executable).is_file(),
        false => std::env::split_paths(&path).any(|folder| folder.join(&executable).is_file()),
    };
    Program {
        executable,
        args: words,
        found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".a.toml", false),
            ("*.toml", "a.toml.bak", false),
            ("*", "x", true),
            ("a?c*", "abcd", true),
            ("a?c", "ac", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("", "", true),
            ("**", "abc", true),
        ] {
            assert_eq!(glob(pattern, name), fits, "{pattern} {name}");
        }
    }
}
