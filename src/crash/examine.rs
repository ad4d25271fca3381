//! `symbolize CORE …` → a report on standard output; the wiring of one analysis.
//!
//! Edge. Runs in a process of its own: it maps and parses what a crashed program left behind. With `--limits` it first
//! takes limits and a low priority upon itself, so that nothing it reads can disturb the services.

use crate::crash::analysis::{self, Context};
use crate::crash::core::Core;
use crate::crash::images::{Disk, Storage};
use crate::crash::report::{Kind, Report};
use crate::crash::symbols::find::{Depth, Search};
use crate::crash::text;
use rustix::process::{Resource, Rlimit};
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::{Path, PathBuf};

const USAGE: &str =
    "Usage: agent symbolize CORE [--executable PATH] [--debug-dir DIR]... [--sysroot DIR] [--json]";
const DONE: i32 = 0;
const FAILED: i32 = 1;
const MISUSED: i32 = 2;

/// Address space under `--limits`: room to map debug files of gigabytes, while what is allocated stays far below.
const MAX_ADDRESS_SPACE: u64 = 8 << 30;
/// Memory of its own under `--limits` (mapped files do not count).
const MAX_DATA: u64 = 1 << 30;
/// Processor seconds under `--limits`; an ordinary analysis needs well below one.
const MAX_CPU_SECONDS: u64 = 60;

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

#[derive(Debug)]
struct Request {
    core: PathBuf,
    options: Options,
    form: Form,
    limited: bool,
    context: Context,
}

/// Where files are looked for.
pub type Options = Search;

/// Analyses one core file.
///
/// # Errors
/// The file cannot be read, or is no core of a machine that is known.
pub fn examine(core: &Path, options: &Options, context: &Context) -> std::io::Result<Report> {
    let storage = Storage::default();
    let disk = Disk::new(&storage);
    let bytes = disk.require(core)?;
    let core =
        Core::parse(bytes).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))?;
    Ok(analysis::analyse(core, options, &disk, context))
}

/// `args` without the program and verb. Returns the exit code: 0 done, 1 failed, 2 usage.
pub fn main(args: &[OsString]) -> i32 {
    let request = match parse(args) {
        Ok(request) => request,
        Err(problem) => {
            eprintln!("agent symbolize: {problem}\n{USAGE}");
            return MISUSED;
        }
    };
    if request.limited {
        limit_self();
    } else if let Some(program) = &request.options.executable
        && let Err(error) = std::fs::File::open(program)
    {
        eprintln!(
            "agent symbolize: --executable {}: {error}",
            program.display()
        );
        return FAILED;
    }
    let report = match examine(&request.core, &request.options, &request.context) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("agent symbolize: {}: {error}", request.core.display());
            return FAILED;
        }
    };
    let output = match request.form {
        Form::Text => text::render(&report),
        Form::Json => serde_json::to_string(&report).unwrap_or_default() + "\n",
    };
    match std::io::stdout().write_all(output.as_bytes()) {
        Ok(()) => DONE,
        Err(error) => {
            eprintln!("agent symbolize: writing the report: {error}");
            FAILED
        }
    }
}

fn parse(args: &[OsString]) -> Result<Request, String> {
    let mut core = None;
    let mut request = Request {
        core: PathBuf::new(),
        options: Options::default(),
        form: Form::Text,
        limited: false,
        context: Context::default(),
    };
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let (name, attached) = split_option(arg);
        let mut value = || {
            let value = attached.clone().or_else(|| rest.next().cloned());
            value.ok_or_else(|| format!("{} needs a value", name.to_string_lossy()))
        };
        match name.to_str() {
            Some("--json") => request.form = Form::Json,
            Some("--symbol-tables-only") => request.options.depth = Depth::SymbolTables,
            Some("--limits") => request.limited = true,
            Some("--executable") => request.options.executable = Some(value()?.into()),
            Some("--debug-dir") => request.options.debug_dirs.push(value()?.into()),
            Some("--sysroot") => request.options.sysroot = Some(value()?.into()),
            Some("--kind") => request.context.kind = kind(&text_value(value()?)?)?,
            Some("--service") => request.context.service = Some(text_value(value()?)?),
            Some("--crash-id") => request.context.crash_id = Some(text_value(value()?)?),
            Some("--time") => request.context.time = Some(text_value(value()?)?),
            Some(option) if option.starts_with("--") => {
                return Err(format!("unknown option {option}"));
            }
            _ if core.is_none() => core = Some(PathBuf::from(arg)),
            _ => {
                return Err(format!(
                    "more than one core file: {}",
                    arg.to_string_lossy()
                ));
            }
        }
    }
    request.core = core.ok_or("which core file?")?;
    Ok(request)
}

fn kind(word: &str) -> Result<Kind, String> {
    match word {
        "crash" => Ok(Kind::Crash),
        "hang" => Ok(Kind::Hang),
        "stacks" => Ok(Kind::Stacks),
        other => Err(format!("unknown kind {other:?}")),
    }
}

/// `--name=value` → name and value.
fn split_option(arg: &OsStr) -> (OsString, Option<OsString>) {
    let text = arg.to_str().filter(|t| t.starts_with("--"));
    match text.and_then(|t| t.split_once('=')) {
        Some((name, value)) => (name.into(), Some(value.into())),
        None => (arg.to_owned(), None),
    }
}

fn text_value(value: OsString) -> Result<String, String> {
    value
        .into_string()
        .map_err(|v| format!("not UTF-8: {}", v.to_string_lossy()))
}

/// Best effort: an analysis without limits is better than none.
fn limit_self() {
    for (resource, most) in [
        (Resource::As, MAX_ADDRESS_SPACE),
        (Resource::Data, MAX_DATA),
        (Resource::Cpu, MAX_CPU_SECONDS),
        // One byte keeps the kernel from calling its handler (core(5)): the analysis of a crash is not to be one.
        (Resource::Core, 1),
    ] {
        let now = rustix::process::getrlimit(resource);
        let most = now.maximum.map_or(most, |m| m.min(most));
        let _ = rustix::process::setrlimit(
            resource,
            Rlimit {
                current: Some(most),
                maximum: Some(most),
            },
        );
    }
    let _ = rustix::process::nice(10);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn options_may_stand_anywhere() {
        let request = parse(&args(&[
            "--json",
            "core",
            "--debug-dir",
            "/a",
            "--debug-dir=/b",
            "--sysroot",
            "/r",
        ]))
        .unwrap();
        assert_eq!(
            (request.core.as_path(), request.form),
            (Path::new("core"), Form::Json)
        );
        assert_eq!(
            request.options.debug_dirs,
            [Path::new("/a"), Path::new("/b")]
        );
        assert_eq!(request.options.sysroot.as_deref(), Some(Path::new("/r")));
    }

    #[test]
    fn misuse_is_told_apart_from_failure() {
        for wrong in [
            &[][..],
            &["a", "b"],
            &["core", "--what"],
            &["core", "--sysroot"],
        ] {
            assert_eq!(main(&args(wrong)), MISUSED);
        }
        assert_eq!(main(&args(&["/nonexistent/core"])), FAILED);
        let program = ["/dev/null", "--executable", "/nonexistent/program"];
        assert_eq!(main(&args(&program)), FAILED);
    }
}
