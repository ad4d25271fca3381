//! what stood after a verb → its flags and words, sorted by the table of verbs.
//!
//! Bytes stay as typed: a path need not be text.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use super::args::Whom;
use super::verbs::{Verb, Words};
use crate::nearest::nearest;

/// What stood after a verb, sorted by the table.
pub struct Given {
    pub verb: &'static Verb,
    flags: Vec<(&'static str, OsString)>,
    pub words: Vec<OsString>,
    /// What stood after `--`.
    pub command: Option<Vec<OsString>>,
}

pub fn gather(verb: &'static Verb, args: &[OsString]) -> Result<Given, String> {
    let mut given = Given {
        verb,
        flags: Vec::new(),
        words: Vec::new(),
        command: None,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            let rest = args.as_slice().to_vec();
            match verb.words {
                Words::Command => given.command = Some(rest),
                Words::None
                | Words::Path
                | Words::Programs
                | Words::Services
                | Words::SomeServices
                | Words::SignalAndServices
                | Words::Own => given.words.extend(rest),
            }
            break;
        }
        let text = arg.to_string_lossy();
        // A lone `-` and a negative number are words.
        if !text.starts_with('-') || text == "-" {
            given.words.push(arg.clone());
            continue;
        }
        let (long, attached) = match text.split_once('=') {
            Some((long, value)) => (long.to_owned(), Some(value.to_owned())),
            None => (text.into_owned(), None),
        };
        let Some(flag) = verb.flags.iter().find(|flag| flag.long == long) else {
            return Err(unknown_flag(verb, &long));
        };
        let value = match (flag.value, attached) {
            (None, None) => OsString::new(),
            (None, Some(_)) => return Err(format!("{long} takes no value")),
            // The bytes as typed, not as text.
            (Some(_), Some(_)) => after_equals(arg),
            (Some(name), None) => match args.next() {
                Some(value) => value.clone(),
                None => return Err(format!("{long} needs a value: {long} {name}")),
            },
        };
        given.flags.push((flag.long, value));
    }
    Ok(given)
}

fn after_equals(arg: &OsStr) -> OsString {
    use std::os::unix::ffi::OsStrExt;
    let bytes = arg.as_bytes();
    let start = bytes.iter().position(|byte| *byte == b'=');
    OsStr::from_bytes(&bytes[start.map_or(bytes.len(), |at| at + 1)..]).to_owned()
}

fn unknown_flag(verb: &Verb, long: &str) -> String {
    let flags = verb.flags.iter().map(|flag| flag.long);
    match nearest(long, flags.chain(["--help"])) {
        Some(meant) => format!("unknown option {long:?}; did you mean {meant}?"),
        None => format!(
            "unknown option {long:?}; agent {} --help lists them",
            verb.word
        ),
    }
}

impl Given {
    pub fn has(&self, long: &str) -> bool {
        self.flags.iter().any(|(flag, _)| *flag == long)
    }

    /// The last one given holds.
    fn value(&self, long: &str) -> Option<&OsString> {
        let mut found = self.flags.iter().rev().filter(|(flag, _)| *flag == long);
        found.next().map(|(_, value)| value)
    }

    pub fn text(&self, long: &str) -> Result<Option<String>, String> {
        self.value(long).map(|value| text(value)).transpose()
    }

    pub fn path(&self, long: &str) -> Result<Option<PathBuf>, String> {
        match self.value(long) {
            Some(path) if path.is_empty() => Err(format!("{long} needs a path, not an empty word")),
            path => Ok(path.map(PathBuf::from)),
        }
    }

    pub fn timeout(&self) -> Result<Option<Duration>, String> {
        let Some(value) = self.text("--timeout")? else {
            return Ok(None);
        };
        duration(&value).map(Some).ok_or_else(|| {
            format!("--timeout: {value:?} is not a time; write \"500ms\", \"10s\" or \"5m\"")
        })
    }

    pub fn whom(&self) -> Result<Whom, String> {
        Ok(Whom {
            config: self.path("--config")?,
            timeout: self.timeout()?,
        })
    }

    pub fn services(&self) -> Result<Vec<String>, String> {
        self.names(&self.words)
    }

    pub fn some_services(&self) -> Result<Vec<String>, String> {
        match self.services()? {
            none if none.is_empty() => Err(format!(
                "names no service; agent {} {}",
                self.verb.word,
                self.verb.usage.first().copied().unwrap_or_default()
            )),
            services => Ok(services),
        }
    }

    pub fn names(&self, words: &[OsString]) -> Result<Vec<String>, String> {
        words.iter().map(|word| text(word)).collect()
    }

    pub fn no_words(&self) -> Result<(), String> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(format!("unexpected word {word:?}")),
        }
    }
}

pub fn text(word: &OsStr) -> Result<String, String> {
    match word.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(format!("{word:?} is not UTF-8")),
    }
}

/// `250ms`, `10s`, `5m`, `1h`; a bare number is seconds, as timeout(1) takes it. Never zero.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.len()
        - text
            .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
            .len();
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let seconds = number.parse::<f64>().ok()? * scale;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| !duration.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, milliseconds) in [
            ("250ms", 250),
            ("1s", 1000),
            ("1", 1000),
            ("0.5", 500),
            ("1.5m", 90_000),
            ("2h", 7_200_000),
        ] {
            assert_eq!(
                duration(text),
                Some(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in [
            "",
            "s",
            "-1s",
            "1d",
            "1 year",
            "0",
            "0ms",
            "1e3s",
            "NaN",
            "..s",
            "99999999999999999999999h",
        ] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
