//! `logs …` → what to show; a line → how it is shown.
//!
//! Bytes go out as the service wrote them, but for what a terminal would obey: there, control
//! characters become blanks. Only colours stay.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::nearest::nearest;

/// Lines of the past where nobody says how many.
pub const LINES: usize = 100;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub services: Vec<String>,
    pub follow: bool,
    pub lines: usize,
    /// `stdout` or `stderr`.
    pub source: Option<Source>,
    pub config: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Stdout,
    Stderr,
}

const OPTIONS: [&str; 6] = ["--follow", "--lines", "--source", "--config", "-f", "-n"];

/// `args` without the program and verb.
///
/// # Errors
/// What is wrong, in a sentence.
pub fn parse(args: &[OsString]) -> Result<Asked, String> {
    let mut asked = Asked {
        services: Vec::new(),
        follow: false,
        lines: LINES,
        source: None,
        config: None,
    };
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let Some(text) = arg.to_str() else {
            return Err("arguments must be UTF-8".to_owned());
        };
        // `-fn 20`, as fingers know it from tail.
        let lines = text.strip_prefix("-fn").map(|number| format!("-n{number}"));
        asked.follow |= lines.is_some();
        let text = lines.as_deref().unwrap_or(text);
        let (option, attached) = split(text);
        let mut value = |what: &str| match attached {
            Some(value) => Ok(OsString::from(value)),
            None => match rest.next() {
                Some(value) => Ok(value.clone()),
                None => Err(format!("{option} needs a value: {option} {what}")),
            },
        };
        match option {
            "--" => {
                let words = rest.map(|word| word.to_string_lossy().into_owned());
                asked.services.extend(words);
                break;
            }
            "-n" | "--lines" => asked.lines = number(&value("N")?)?,
            "--source" => asked.source = Some(source(&value("stdout|stderr")?)?),
            "--config" => asked.config = Some(PathBuf::from(value("PATH")?)),
            "-f" | "--follow" => match attached {
                Some(_) => return Err(format!("{option} takes no value")),
                None => asked.follow = true,
            },
            word if word.starts_with('-') && word.len() > 1 => {
                let hint = match nearest(word, OPTIONS) {
                    Some(meant) => format!("did you mean {meant}?"),
                    None => "agent logs --help lists them".to_owned(),
                };
                return Err(format!("unknown option {word:?}; {hint}"));
            }
            service => asked.services.push(service.to_owned()),
        }
    }
    Ok(asked)
}

/// `--lines=5` and `-n5` are `--lines 5` and `-n 5`.
fn split(text: &str) -> (&str, Option<&str>) {
    match text.strip_prefix("-n") {
        Some(number) if !number.is_empty() => {
            return ("-n", Some(number.strip_prefix('=').unwrap_or(number)));
        }
        Some(_) | None => {}
    }
    match text.split_once('=') {
        Some((option, value)) if option.starts_with("--") => (option, Some(value)),
        Some(_) | None => (text, None),
    }
}

fn number(value: &OsString) -> Result<usize, String> {
    let text = value.to_string_lossy();
    match text.parse() {
        Ok(number) => Ok(number),
        Err(_) => Err(format!("-n: {text:?} is not a number of lines")),
    }
}

fn source(value: &OsString) -> Result<Source, String> {
    match value.to_str() {
        Some("stdout") => Ok(Source::Stdout),
        Some("stderr") => Ok(Source::Stderr),
        Some(_) | None => Err(format!(
            "--source {:?}: stdout or stderr",
            value.to_string_lossy()
        )),
    }
}

/// Where the lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    Terminal,
    /// A file or another program.
    Bytes,
}

/// One line, or one piece of a long one.
pub struct Shown<'a> {
    /// `2026-11-22 10:30:00.123`, local time.
    pub time: &'a str,
    pub service: &'a str,
    pub source: Source,
    pub text: &'a [u8],
    /// The line goes on in the next piece.
    pub partial: bool,
}

/// Draws lines one after the other.
pub struct Drawing {
    onto: Onto,
    /// Columns of the longest service's name.
    width: usize,
    /// Whose line is not over.
    open: Option<(String, Source)>,
}

impl Drawing {
    pub fn new<'s>(onto: Onto, services: impl Iterator<Item = &'s str>) -> Drawing {
        Drawing {
            onto,
            width: services.map(|name| name.chars().count()).max().unwrap_or(0),
            open: None,
        }
    }

    pub fn line(&mut self, line: &Shown<'_>, out: &mut Vec<u8>) {
        let whose = (line.service.to_owned(), line.source);
        let continued = self.open.as_ref() == Some(&whose);
        if !continued {
            if self.open.take().is_some() {
                out.push(b'\n');
            }
            self.head(line, out);
        }
        match self.onto {
            Onto::Bytes => out.extend_from_slice(line.text),
            Onto::Terminal => out.extend_from_slice(harmless(line.text).as_bytes()),
        }
        self.open = line.partial.then_some(whose);
        if !line.partial {
            if self.onto == Onto::Terminal {
                // What the line painted ends with it.
                out.extend_from_slice(b"\x1b[0m");
            }
            out.push(b'\n');
        }
    }

    fn head(&self, line: &Shown<'_>, out: &mut Vec<u8>) {
        let (time, service, width) = (line.time, line.service, self.width);
        let head = match (self.onto, line.source) {
            (Onto::Bytes, _) => format!("{time} {service:<width$} "),
            (Onto::Terminal, Source::Stdout) => {
                format!("\x1b[2m{time}\x1b[0m \x1b[36m{service:<width$}\x1b[0m ")
            }
            (Onto::Terminal, Source::Stderr) => {
                format!("\x1b[2m{time}\x1b[0m \x1b[33m{service:<width$}\x1b[0m ")
            }
        };
        out.extend_from_slice(head.as_bytes());
    }
}

/// Text whose only escapes are colours (`ESC [ … m`).
fn harmless(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("\x1b[")
            && let Some(end) = after.find(|c: char| !c.is_ascii_digit() && c != ';')
            && after[end..].starts_with('m')
        {
            let length = 2 + end + 1;
            out.push_str(&rest[..length]);
            rest = &rest[length..];
            continue;
        }
        let shown = match c {
            '\n' | '\t' => c,
            c if c.is_control() => ' ',
            c => c,
        };
        out.push(shown);
        rest = &rest[c.len_utf8()..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(line: &str) -> Result<Asked, String> {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        parse(&args)
    }

    #[test]
    fn options_as_people_type_them() {
        let asked = typed("-f -n 5 --source stderr lidar camera").unwrap();
        assert!(asked.follow);
        assert_eq!((asked.lines, asked.source), (5, Some(Source::Stderr)));
        assert_eq!(asked.services, ["lidar", "camera"]);
        assert_eq!(typed("-n7").unwrap().lines, 7);
        for both in ["-fn 9", "-fn9"] {
            let asked = typed(both).unwrap();
            assert_eq!((asked.follow, asked.lines), (true, 9), "{both}");
        }
        assert_eq!(typed("--lines=8").unwrap().lines, 8);
        assert_eq!(typed("").unwrap().lines, LINES);
        assert_eq!(typed("-- -n").unwrap().services, ["-n"]);
        for (line, said) in [
            ("-n", "-n needs a value: -n N"),
            ("-n x", "-n: \"x\" is not a number of lines"),
            ("--source out", "--source \"out\": stdout or stderr"),
            (
                "--folow",
                "unknown option \"--folow\"; did you mean --follow?",
            ),
            ("--follow=1", "--follow takes no value"),
        ] {
            assert_eq!(typed(line), Err(said.to_owned()), "{line}");
        }
    }

    fn shown(onto: Onto, lines: &[(&str, &str, bool)]) -> String {
        let mut drawing = Drawing::new(onto, ["ab", "abcd"].into_iter());
        let mut out = Vec::new();
        for (service, text, partial) in lines {
            let line = Shown {
                time: "T",
                service,
                source: Source::Stdout,
                text: text.as_bytes(),
                partial: *partial,
            };
            drawing.line(&line, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn pieces_of_a_line_are_one_line_and_bytes_stay() {
        assert_eq!(
            shown(
                Onto::Bytes,
                &[
                    ("ab", "x\x1b[2J", false),
                    ("ab", "1", true),
                    ("ab", "2", false),
                    ("ab", "3", true),
                    ("abcd", "y", false),
                ]
            ),
            "T ab   x\x1b[2J\nT ab   12\nT ab   3\nT abcd y\n"
        );
    }

    #[test]
    fn a_terminal_obeys_colours_only() {
        let text = shown(
            Onto::Terminal,
            &[("ab", "\x1b[31mred\x1b[0m \x1b[2J\x07\x1b]0;title", false)],
        );
        assert!(
            text.contains("\x1b[31mred\x1b[0m  [2J  ]0;title\x1b[0m\n"),
            "{text:?}"
        );
    }
}
