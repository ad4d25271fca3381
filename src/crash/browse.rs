//! `crashes …` → what the store holds: a list, one record, or a copy of it.
//!
//! Reads the folder itself, so that it works while no agent runs and no Redis is there.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::fingerprint;
use super::report::{Frame, Report};
use super::store;

const USAGE: &str = "Usage: agent crashes [list|show ID|export ID DIR] [--json] [--config PATH]";
const DONE: i32 = 0;
const FAILED: i32 = 1;
const MISUSED: i32 = 2;

#[derive(Debug, PartialEq, Eq)]
enum What {
    List,
    Show(String),
    Export(String, PathBuf),
}

#[derive(Debug)]
struct Asked {
    what: What,
    json: bool,
    config: Option<PathBuf>,
}

/// `args` without the program and verb; `state_of` finds the state folder by the configuration. Returns the exit code.
pub fn main(args: &[OsString], state_of: impl Fn(Option<&Path>) -> Result<PathBuf, String>) -> i32 {
    let asked = match parse(args) {
        Ok(asked) => asked,
        Err(problem) => {
            eprintln!("agent crashes: {problem}\n{USAGE}");
            return MISUSED;
        }
    };
    let state_dir = match state_of(asked.config.as_deref()) {
        Ok(state_dir) => state_dir,
        Err(problem) => {
            eprintln!("agent crashes: {}", problem.trim_end());
            return MISUSED;
        }
    };
    let told = match &asked.what {
        What::List => list(&state_dir, asked.json),
        What::Show(id) => show(&state_dir, id, asked.json),
        What::Export(id, folder) => export(&state_dir, id, folder),
    };
    match told {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => DONE,
            Err(_) => FAILED,
        },
        Err(problem) => {
            eprintln!("agent crashes: {problem}");
            FAILED
        }
    }
}

fn parse(args: &[OsString]) -> Result<Asked, String> {
    let (mut words, mut json, mut config) = (Vec::new(), false, None);
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let text = arg.to_str().ok_or("arguments must be UTF-8")?;
        match text.split_once('=') {
            Some(("--config", path)) => config = Some(path.into()),
            _ if text == "--json" => json = true,
            _ if text == "--config" => {
                config = Some(rest.next().ok_or("--config needs a path")?.into());
            }
            _ if text.starts_with("--") => return Err(format!("unknown option {text}")),
            _ => words.push(text),
        }
    }
    let what = match words.as_slice() {
        [] | ["list"] => What::List,
        ["show", id] => What::Show((*id).to_owned()),
        ["export", id, folder] => What::Export((*id).to_owned(), PathBuf::from(folder)),
        ["show"] => return Err("show which one?".to_owned()),
        ["export", ..] => return Err("export takes an ID and a folder".to_owned()),
        ["list", word, ..] | ["show", _, word, ..] | [word, ..] => {
            return Err(format!("unexpected word {word:?}"));
        }
    };
    Ok(Asked { what, json, config })
}

fn records(state_dir: &Path) -> Result<Vec<(String, PathBuf)>, String> {
    store::records(state_dir)
        .map_err(|error| format!("{} cannot be read: {error}", state_dir.display()))
}

/// By its whole identifier, its beginning, its end, or `last`.
fn find(state_dir: &Path, wanted: &str) -> Result<(String, PathBuf), String> {
    let records = records(state_dir)?;
    if wanted == "last" {
        return records
            .into_iter()
            .next_back()
            .ok_or("there is no crash record".to_owned());
    }
    let exact = records.iter().find(|(id, _)| id == wanted);
    let alike = |(id, _): &&(String, PathBuf)| id.starts_with(wanted) || id.ends_with(wanted);
    let mut found: Vec<_> = records.iter().filter(alike).collect();
    match (exact, found.pop(), found.len()) {
        (Some(record), _, _) | (None, Some(record), 0) => Ok(record.clone()),
        (None, Some(last), more) => Err(format!(
            "{wanted:?} means {} records, {} is one of them",
            more + 1,
            last.0
        )),
        (None, None, _) => Err(format!(
            "there is no crash record {wanted:?}: it went for newer ones, or was one of many at the same place, which are \
             counted only (`agent crashes` lists what there is)"
        )),
    }
}

fn report(folder: &Path) -> Option<Report> {
    serde_json::from_slice(&fs::read(folder.join(store::REPORT)).ok()?).ok()
}

fn list(state_dir: &Path, json: bool) -> Result<String, String> {
    let records = records(state_dir)?;
    // Also those since, that were counted only.
    let seen = store::seen(state_dir);
    let row = |(id, folder): &(String, PathBuf)| {
        let mut report = report(folder).unwrap_or_default();
        let counted = report.signature.as_ref().and_then(|s| seen.get(s));
        report.seen = counted
            .and_then(|seen| serde_json::to_value(seen).ok())
            .or(report.seen);
        row(id, &report)
    };
    let rows: Vec<Value> = records.iter().map(row).collect();
    if json {
        return Ok(format!("{:#}\n", Value::from(rows)));
    }
    if rows.is_empty() {
        return Ok("no crash records\n".to_owned());
    }
    let mut text = String::new();
    for row in rows {
        let word = |key: &str| clean(row[key].as_str().unwrap_or("-"));
        let id = word("crash_id");
        let (signal, place) = (word("signal"), word("place"));
        let times = match row["seen"]["count"].as_u64() {
            Some(count) if count > 1 => format!("  ({count} times)"),
            Some(_) | None => String::new(),
        };
        text.push_str(&format!("{id}  {signal:<7}  {place}{times}\n"));
    }
    Ok(text)
}

/// Terminals obey control characters, and names come from a program that went wrong.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

fn function(frame: &Frame) -> &str {
    frame.function.as_deref().unwrap_or(&frame.address)
}

fn whereabouts(frame: &Frame) -> String {
    let function = function(frame);
    match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!("{function} at {file}:{line}"),
        (_, _) => function.to_owned(),
    }
}

fn row(id: &str, report: &Report) -> Value {
    let frames = report
        .threads
        .first()
        .map(|thread| thread.frames.as_slice());
    let place = frames.and_then(|frames| match fingerprint::place(frames) {
        Some((own, within)) => {
            let within = within.map_or(String::new(), |frame| format!(", in {}", function(frame)));
            Some(format!("{}{within}", whereabouts(own)))
        }
        None => frames.first().map(whereabouts),
    });
    json!({
        "crash_id": id,
        "service": report.service,
        "time": report.time,
        "signal": report.signal.as_ref().map(|signal| signal.name.clone()),
        "signature": report.signature,
        "place": place,
        "seen": report.seen,
    })
}

fn show(state_dir: &Path, id: &str, json: bool) -> Result<String, String> {
    let (id, folder) = find(state_dir, id)?;
    let name = if json { store::REPORT } else { store::TEXT };
    let text = fs::read_to_string(folder.join(name))
        .map_err(|error| format!("the report of {id} cannot be read: {error}"))?;
    if !json {
        return Ok(text);
    }
    let value: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    Ok(format!("{value:#}\n"))
}

/// Into a folder of the record's own name below `folder`.
fn export(state_dir: &Path, id: &str, folder: &Path) -> Result<String, String> {
    let (id, from) = find(state_dir, id)?;
    let to = folder.join(&id);
    let failed = |error: std::io::Error| format!("{} cannot be written: {error}", to.display());
    fs::create_dir_all(&to).map_err(failed)?;
    for name in [store::CORE, store::REPORT, store::TEXT] {
        if from.join(name).exists() {
            fs::copy(from.join(name), to.join(name)).map_err(failed)?;
        }
    }
    Ok(format!("{}\n", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_that_is_too_much_is_named() {
        let problem = |words: &[&str]| {
            let args: Vec<OsString> = words.iter().map(OsString::from).collect();
            parse(&args).err().unwrap_or_default()
        };
        assert_eq!(problem(&["list"]), "");
        assert_eq!(problem(&["list", "extra"]), "unexpected word \"extra\"");
        assert_eq!(
            problem(&["show", "last", "more"]),
            "unexpected word \"more\""
        );
        assert_eq!(problem(&["what", "else"]), "unexpected word \"what\"");
    }
}
