//! the arguments of `jettison_health` → configuration and targets.
//!
//! Flags as they always were: one dash or two, a value after `=` or in the next argument,
//! all of them before the first target, `--` ends them.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::answer::Problem;

pub const USAGE: &str = "\
Usage: jettison_health [--config FILE] SERVICE:CATEGORY…

Prints health pools from Redis as JSON. Exit code 0 when every pool is complete, else 1.

  --config FILE  where Redis is; without it REDIS_ADDR and REDIS_PASSWORD say so,
                 and without those it is localhost:6379
";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Query {
        config: Option<PathBuf>,
        words: Vec<String>,
    },
    Help,
    /// For stderr, before the usage.
    Wrong(String),
}

/// One pool: a service and a category, neither empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub service: String,
    pub category: String,
}

/// What stands before the first word is flags.
pub fn flags(args: &[OsString]) -> Asked {
    let mut config = None;
    let mut rest = args.iter();
    loop {
        let words = rest.as_slice();
        let Some(arg) = rest.next() else {
            return query(config, words);
        };
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            return query(config, rest.as_slice());
        }
        let Some(name) = bytes.strip_prefix(b"-").filter(|name| !name.is_empty()) else {
            return query(config, words);
        };
        let name = name.strip_prefix(b"-").unwrap_or(name);
        if name.is_empty() || name[0] == b'-' || name[0] == b'=' {
            return Asked::Wrong(format!("bad flag syntax: {}", arg.to_string_lossy()));
        }
        let (name, attached) = match name.iter().position(|byte| *byte == b'=') {
            Some(at) => (&name[..at], Some(OsStr::from_bytes(&name[at + 1..]))),
            None => (name, None),
        };
        match (name, attached) {
            (b"config", Some(value)) => config = Some(PathBuf::from(value)),
            (b"config", None) => match rest.next() {
                Some(value) => config = Some(PathBuf::from(value)),
                None => return Asked::Wrong("flag needs an argument: -config".to_owned()),
            },
            (b"h" | b"help", _) => return Asked::Help,
            (name, _) => {
                let name = String::from_utf8_lossy(name);
                return Asked::Wrong(format!("flag provided but not defined: -{name}"));
            }
        }
    }
}

fn query(config: Option<PathBuf>, words: &[OsString]) -> Asked {
    Asked::Query {
        // `--config ""` is no configuration.
        config: config.filter(|path| !path.as_os_str().is_empty()),
        words: words
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
    }
}

/// Sorted, each once.
pub fn targets(words: &[String]) -> Result<BTreeSet<Target>, Problem> {
    if words.is_empty() {
        let usage = "Usage: jettison_health [--config FILE] <service>:<category>...";
        return Err(Problem::new("No arguments provided", usage));
    }
    let all: Result<_, String> = words.iter().map(|word| target(word)).collect();
    all.map_err(|details| Problem {
        args: words.to_vec(),
        ..Problem::new("Invalid arguments", details)
    })
}

fn target(word: &str) -> Result<Target, String> {
    let mut parts = word.split(':');
    let (Some(service), Some(category), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!(
            "invalid format '{word}', expected <service>:<category>"
        ));
    };
    let (service, category) = (service.trim(), category.trim());
    if service.is_empty() || category.is_empty() {
        return Err(format!("empty service or category in '{word}'"));
    }
    Ok(Target {
        service: service.to_owned(),
        category: category.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &[&str]) -> Asked {
        flags(&line.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn query(config: Option<&str>, words: &[&str]) -> Asked {
        Asked::Query {
            config: config.map(PathBuf::from),
            words: words.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    #[test]
    fn flags_as_of_old() {
        for line in [
            &["--config", "F", "a:b"][..],
            &["-config", "F", "a:b"],
            &["--config=F", "a:b"],
            &["-config=F", "a:b"],
            &["--config", "F", "--", "a:b"],
            &["--config", "G", "-config=F", "a:b"],
        ] {
            assert_eq!(asked(line), query(Some("F"), &["a:b"]), "{line:?}");
        }
        assert_eq!(
            asked(&["a:b", "--config", "F"]),
            query(None, &["a:b", "--config", "F"])
        );
        assert_eq!(asked(&["--", "--config"]), query(None, &["--config"]));
        assert_eq!(asked(&["--config", "", "a:b"]), query(None, &["a:b"]));
        assert_eq!(asked(&["-", "a:b"]), query(None, &["-", "a:b"]));
        assert_eq!(asked(&[]), query(None, &[]));
        for line in [
            &["-h"][..],
            &["--help"],
            &["-help"],
            &["--config", "F", "-h"],
        ] {
            assert_eq!(asked(line), Asked::Help);
        }
        for (line, sentence) in [
            (
                &["--verbose"][..],
                "flag provided but not defined: -verbose",
            ),
            (&["-x=1"], "flag provided but not defined: -x"),
            (&["--config"], "flag needs an argument: -config"),
            (&["---config"], "bad flag syntax: ---config"),
            (&["-=x"], "bad flag syntax: -=x"),
        ] {
            assert_eq!(asked(line), Asked::Wrong(sentence.to_owned()));
        }
    }

    #[test]
    fn targets_are_sorted_and_asked_once() {
        let words = ["b:x", "a:y", " b : x ", "a:x"].map(str::to_owned);
        let all = targets(&words).expect("valid");
        let names: Vec<_> = all
            .iter()
            .map(|t| format!("{}:{}", t.service, t.category))
            .collect();
        assert_eq!(names, ["a:x", "a:y", "b:x"]);
    }

    #[test]
    fn what_is_no_target_is_said_in_the_old_words() {
        for (word, details) in [
            ("x", "invalid format 'x', expected <service>:<category>"),
            (
                "a:b:c",
                "invalid format 'a:b:c', expected <service>:<category>",
            ),
            (":b", "empty service or category in ':b'"),
            ("a: ", "empty service or category in 'a: '"),
        ] {
            let words = ["ok:ok".to_owned(), word.to_owned()];
            let problem = targets(&words).expect_err("no target");
            assert_eq!(problem.error, "Invalid arguments");
            assert_eq!(problem.details, details);
            assert_eq!(problem.args, words);
        }
        let problem = targets(&[]).expect_err("nothing");
        assert_eq!(
            (problem.error, problem.args.len()),
            ("No arguments provided", 0)
        );
    }
}
