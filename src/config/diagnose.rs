//! a problem and its place in a text → what the operator reads.
//!
//! Every message has one form: `path:line:column: what is wrong`, the line itself, a caret
//! under the words meant, and the remedy. Lines and columns count from 1, columns in
//! characters. A diagnostic holds its own copy of the line, so that it can outlive the file.
//! Passwords in a shown line are masked: diagnostics end up in logs and tickets.

use std::collections::BTreeMap;
use std::fmt;

use super::shown::{mask, window};

/// The texts that were read, by number.
#[derive(Clone, Debug, Default)]
pub struct Sources(Vec<Source>);

#[derive(Clone, Debug)]
struct Source {
    path: String,
    text: String,
}

/// A stretch of bytes in one of the [`Sources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub source: usize,
    pub start: usize,
    pub end: usize,
}

impl Sources {
    pub fn add(&mut self, path: &str, text: &str) -> usize {
        self.0.push(Source {
            path: path.to_owned(),
            text: text.to_owned(),
        });
        self.0.len() - 1
    }

    /// The line up to this place, and the text from it on.
    pub fn around(&self, place: Place) -> (&str, &str) {
        let text = self.0.get(place.source).map_or("", |s| s.text.as_str());
        let (before, rest) = text.split_at(floor(text, place.start));
        (before.rsplit('\n').next().unwrap_or(before), rest)
    }

    pub fn path(&self, source: usize) -> &str {
        self.0.get(source).map_or("", |s| s.path.as_str())
    }

    /// Where this is, and the line to show. A place outside of its text is its end.
    pub fn mark(&self, place: Place) -> Mark {
        let Some(Source { path, text }) = self.0.get(place.source) else {
            return Mark::default();
        };
        let start = floor(text, place.start);
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let rest = &text[line_start..];
        let line = rest.split('\n').next().unwrap_or(rest);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let end = floor(text, place.end).clamp(start, (line_start + line.len()).max(start));
        let column = text[line_start..start].chars().count();
        // Of a very long line only the part around the place is worked on.
        let near = floor(text, start.saturating_sub(NEAR)).max(line_start);
        let far = floor(text, start + NEAR).clamp(near, line_start + line.len());
        let skipped = text[line_start..near].chars().count();
        let (shown, offset) = window(&mask(&text[near..far]), column - skipped);
        Mark {
            path: path.clone(),
            line: before.matches('\n').count() + 1,
            column: column + 1,
            width: text[start..end].chars().count().max(1),
            shown,
            offset,
            order: (place.source, start),
        }
    }

    pub fn origin(&self, place: Place) -> Origin {
        Origin::Mark(Box::new(self.mark(place)))
    }

    /// `path:line:column`, for a message that names a second place.
    pub fn name(&self, place: Place) -> String {
        let Mark {
            path, line, column, ..
        } = self.mark(place);
        format!("{path}:{line}:{column}")
    }

    /// What stands at this place.
    pub fn text(&self, place: Place) -> &str {
        let text = self.0.get(place.source).map_or("", |s| s.text.as_str());
        let start = floor(text, place.start);
        &text[start..floor(text, place.end).max(start)]
    }
}

/// Bytes of a line on each side of a place; enough to find the key of a password.
const NEAR: usize = 4096;

/// The last character border at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Where each setting stands: `service.lidar.executable`, `redis.port`.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    pub sources: Sources,
    places: BTreeMap<String, Place>,
}

impl Layout {
    pub fn new(sources: Sources) -> Layout {
        Layout {
            sources,
            places: BTreeMap::new(),
        }
    }

    pub fn set(&mut self, setting: String, place: Place) {
        self.places.insert(setting, place);
    }

    pub fn place(&self, setting: &str) -> Option<Place> {
        self.places.get(setting).copied()
    }

    /// Its place, or its name where no file says it.
    pub fn origin(&self, setting: &str) -> Origin {
        match self.place(setting) {
            Some(place) => self.sources.origin(place),
            None => Origin::Whole(setting.to_owned()),
        }
    }
}

/// A place as shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    pub path: String,
    pub line: usize,
    pub column: usize,
    /// The line, or the part of a very long one around the place.
    shown: String,
    /// Characters of `shown` before the caret, and under it.
    offset: usize,
    width: usize,
    /// Source and byte, to sort by.
    order: (usize, usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
}

/// What kind of help a caller needs to give (`agent health` names the two apart).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    Configuration,
    /// A password that cannot be had.
    Credentials,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Mark(Box<Mark>),
    /// A whole file, or a setting that has no file: `REDIS_ADDR`, `--redis`.
    Whole(String),
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    pub about: About,
    pub origin: Origin,
    /// One sentence without its full stop.
    pub message: String,
    pub remedy: Option<String>,
}

impl Diagnostic {
    pub fn error(origin: Origin, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            about: About::Configuration,
            origin,
            message: message.into(),
            remedy: None,
        }
    }

    pub fn warning(origin: Origin, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity: Severity::Warning,
            ..Diagnostic::error(origin, message)
        }
    }

    pub fn whole(name: impl Into<String>, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(Origin::Whole(name.into()), message)
    }

    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Diagnostic {
        self.remedy = Some(remedy.into());
        self
    }

    #[must_use]
    pub fn credentials(mut self) -> Diagnostic {
        self.about = About::Credentials;
        self
    }

    /// Line and column, from 1.
    pub fn position(&self) -> Option<(usize, usize)> {
        match &self.origin {
            Origin::Mark(mark) => Some((mark.line, mark.column)),
            Origin::Whole(_) => None,
        }
    }

    /// `path:line:column: message`, for one line of a log.
    pub fn brief(&self) -> String {
        let warning = match self.severity {
            Severity::Error => "",
            Severity::Warning => "warning: ",
        };
        match &self.origin {
            Origin::Mark(m) => format!(
                "{}:{}:{}: {warning}{}",
                m.path, m.line, m.column, self.message
            ),
            Origin::Whole(name) => format!("{name}: {warning}{}", self.message),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.brief())?;
        match &self.origin {
            Origin::Mark(mark) => {
                let caret = "^".repeat(mark.width.min(visible(&mark.shown, mark.offset)));
                let blank = " ".repeat(mark.offset);
                write!(f, "\n{:>5} | {}", mark.line, mark.shown)?;
                write!(f, "\n      | {blank}{caret}")?;
                match &self.remedy {
                    Some(remedy) => write!(f, " {remedy}"),
                    None => Ok(()),
                }
            }
            Origin::Whole(_) => match &self.remedy {
                Some(remedy) => write!(f, "\n      | {remedy}"),
                None => Ok(()),
            },
        }
    }
}

/// How many carets fit under what is shown; one at least (the place may be the line's end).
fn visible(shown: &str, offset: usize) -> usize {
    shown.chars().count().saturating_sub(offset).max(1)
}

/// Every problem that was found, in the order of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// Usage and configuration errors (CONTRACTS section 1).
    pub const EXIT_CODE: i32 = 2;

    pub fn one(diagnostic: Diagnostic) -> Diagnostics {
        Diagnostics(vec![diagnostic])
    }

    pub fn sorted(mut found: Vec<Diagnostic>) -> Diagnostics {
        found.sort_by_key(|d| match &d.origin {
            Origin::Mark(mark) => mark.order,
            Origin::Whole(_) => (usize::MAX, 0),
        });
        // One mistake may be met twice (a key that two checks look at): told once.
        found.dedup();
        Diagnostics(found)
    }

    pub fn exit_code(&self) -> i32 {
        Diagnostics::EXIT_CODE
    }

    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.iter().filter(|d| d.severity == Severity::Error)
    }

    /// Whether nothing is wrong but passwords that cannot be had.
    pub fn only_credentials(&self) -> bool {
        self.errors().all(|d| d.about == About::Credentials)
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::shown::WINDOW;

    #[test]
    fn long_lines_are_cut_around_the_place() {
        let line = format!("{}HERE{}", "a".repeat(300), "b".repeat(300));
        let mut sources = Sources::default();
        let source = sources.add("x", &line);
        let mark = sources.mark(Place {
            source,
            start: 300,
            end: 304,
        });
        assert_eq!(mark.column, 301);
        assert_eq!(mark.shown.chars().count(), WINDOW + 2);
        let under: String = mark.shown.chars().skip(mark.offset).take(4).collect();
        assert_eq!(under, "HERE");
    }

    #[test]
    fn places_outside_of_the_text_do_not_panic() {
        let mut sources = Sources::default();
        let source = sources.add("x", "a = \"ü\"");
        for start in 0..12 {
            for end in 0..12 {
                let place = Place { source, start, end };
                let _ = Diagnostic::error(sources.origin(place), "m").to_string();
                let _ = sources.text(place);
            }
        }
    }
}
