//! one typed table, its keys of the key table → values by name, or diagnostics.
//!
//! Opening a table tells everything that is wrong with its keys and with the kinds of its
//! values; the getters then tell what is wrong with a single value. An empty text is as
//! absent. A wrong value is told once and then is as absent, so that all problems of a file
//! are found in one pass.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Form;
use super::diagnose::Place;
use super::file::{Entry, Node, Table, Value};
use super::found::Check;
use super::keys::{Key, Shape, Stage};
use super::kind::{kind, show};
use super::units::{self, Wrong};
use crate::nearest::nearest;

/// A value and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct At<T> {
    pub value: T,
    pub place: Place,
}

/// A table whose keys are known and whose values are of the right kind.
pub struct Fields<'t> {
    path: String,
    entries: Vec<(&'static Key, &'t Entry)>,
    /// Keys that were meant, and whose spelling or value is wrong, and told.
    rejected: Vec<&'static str>,
}

impl<'t> Fields<'t> {
    /// A table without keys.
    pub fn none(path: &str) -> Fields<'t> {
        Fields {
            path: path.to_owned(),
            entries: Vec::new(),
            rejected: Vec::new(),
        }
    }

    pub fn open(cx: &mut Check, table: &'t Table, keys: &'static [Key], path: &str) -> Fields<'t> {
        let mut fields = Fields::none(path);
        for entry in &table.entries {
            let Some(key) = find(cx.form, keys, &entry.key) else {
                let meant = unknown(cx, entry, keys, path);
                match cx.form {
                    // The key that was meant is not told as missing too.
                    Form::Native => fields.rejected.extend(meant),
                    // Only warned about: what lacks is lacking.
                    Form::Short => {}
                }
                continue;
            };
            // In JSON null is a way to leave a key out.
            if entry.node.value == Value::Null {
                continue;
            }
            if let Some(at) = fields.entries.iter().position(|(k, _)| k.name == key.name) {
                let (_, first) = fields.entries.remove(at);
                twice(cx, entry, first);
            }
            match key.stage {
                Stage::Later(off) if !off.is(&entry.node.value) => not_yet(cx, entry, key, path),
                Stage::Later(_) => {}
                Stage::Built => {
                    if kind(cx, key.shape, &entry.node, &entry.key) {
                        let setting = setting(path, key.name);
                        cx.layout.set(setting, entry.node.place);
                        fields.entries.push((key, entry));
                    } else {
                        fields.rejected.push(key.name);
                    }
                }
            }
        }
        fields
    }

    fn entry(&self, name: &str) -> Option<&'t Entry> {
        let found = self.entries.iter().find(|(key, _)| key.name == name);
        found.map(|(_, entry)| *entry)
    }

    /// Whether the key was there, but so that it had to be told and left out.
    pub fn rejected(&self, name: &str) -> bool {
        self.rejected.contains(&name)
    }

    /// Where the key itself stands, also with an empty value.
    pub fn key_place(&self, name: &str) -> Option<Place> {
        self.entry(name).map(|entry| entry.place)
    }

    /// The value as it stands.
    pub fn node(&self, name: &str) -> Option<&'t Node> {
        self.entry(name).map(|entry| &entry.node)
    }

    /// A text that is not empty.
    pub fn text(&self, name: &str) -> Option<At<&'t str>> {
        let node = self.node(name)?;
        match &node.value {
            Value::Text(text) if !text.is_empty() => Some(At {
                value: text,
                place: node.place,
            }),
            _ => None,
        }
    }

    /// Whether the key has a value that is not an empty text.
    pub fn says(&self, name: &str) -> bool {
        match self.node(name).map(|node| &node.value) {
            Some(Value::Text(text)) => !text.is_empty(),
            Some(_) => true,
            None => false,
        }
    }

    pub fn owned(&self, name: &str) -> Option<String> {
        self.text(name).map(|text| text.value.to_owned())
    }

    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.node(name)?.value {
            Value::Flag(flag) => Some(flag),
            _ => None,
        }
    }

    /// The texts of a list, or a single text; empty ones too.
    pub fn texts(&self, name: &str) -> Option<Vec<At<&'t str>>> {
        let node = self.node(name)?;
        match &node.value {
            Value::List(items) => Some(items.iter().filter_map(as_text).collect()),
            Value::Text(text) if text.is_empty() => None,
            _ => as_text(node).map(|text| vec![text]),
        }
    }

    pub fn number<T>(&self, cx: &mut Check, name: &str, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + PartialOrd + Display + Copy,
    {
        let node = self.node(name)?;
        let Value::Integer(typed) = node.value else {
            return None;
        };
        in_range(cx, node.place, name, typed, range)
    }

    pub fn duration(&self, cx: &mut Check, name: &str, least: Duration) -> Option<Duration> {
        let text = self.text(name)?;
        let duration = cx.accept(text.place, units::duration(text.value))?;
        if duration < least {
            let message = format!("`{name}` is too short");
            let remedy = format!("it must be at least {} ms", least.as_millis());
            cx.error(text.place, message, remedy);
            return None;
        }
        Some(duration)
    }

    /// Bytes.
    pub fn size(&self, cx: &mut Check, name: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let node = self.node(name)?;
        let bytes = match &node.value {
            Value::Integer(number) => *number,
            Value::Text(text) if !text.is_empty() => {
                i128::from(cx.accept(node.place, units::size(text))?)
            }
            _ => return None,
        };
        in_range(cx, node.place, name, bytes, range)
    }

    /// A text that `read` understands.
    pub fn parsed<T>(
        &self,
        cx: &mut Check,
        name: &str,
        read: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        let text = self.text(name)?;
        cx.accept(text.place, read(text.value))
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, cx: &mut Check, name: &str, known: &[(&str, T)]) -> Option<T> {
        let text = self.text(name)?;
        if let Some((_, value)) = known.iter().find(|(word, _)| *word == text.value) {
            return Some(*value);
        }
        let remedy = match nearest(text.value, known.iter().map(|(word, _)| *word)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("write {}", one_of(known.iter().map(|(word, _)| *word))),
        };
        let message = format!("`{}` is not a value of `{name}`", text.value);
        cx.error(text.place, message, remedy);
        None
    }

    /// A path that does not depend on where the agent was started.
    pub fn absolute(&self, cx: &mut Check, name: &str) -> Option<PathBuf> {
        let text = self.text(name)?;
        absolute(cx, name, text)
    }

    /// A table inside, opened with its keys of the key table.
    pub fn inner(&self, cx: &mut Check, name: &str) -> Fields<'t> {
        let path = setting(&self.path, name);
        let found = self.entries.iter().find(|(key, _)| key.name == name);
        match found.map(|(key, entry)| (key.shape, &entry.node.value)) {
            Some((Shape::Fields(keys), Value::Table(table))) => {
                Fields::open(cx, table, keys, &path)
            }
            Some(_) | None => Fields::none(&path),
        }
    }

    /// A table of free names, each once.
    pub fn names(&self, name: &str) -> &'t [Entry] {
        match self.node(name).map(|node| &node.value) {
            Some(Value::Table(table)) => &table.entries,
            Some(_) | None => &[],
        }
    }
}

pub fn absolute(cx: &mut Check, name: &str, text: At<&str>) -> Option<PathBuf> {
    if Path::new(text.value).is_absolute() {
        return Some(PathBuf::from(text.value));
    }
    let message = format!("`{name}` is a relative path");
    cx.error(text.place, message, "write the whole path, from `/` on");
    None
}

pub fn in_range<T>(
    cx: &mut Check,
    place: Place,
    name: &str,
    typed: i128,
    range: RangeInclusive<T>,
) -> Option<T>
where
    T: TryFrom<i128> + PartialOrd + Display + Copy,
{
    match T::try_from(typed) {
        Ok(value) if range.contains(&value) => Some(value),
        Ok(_) | Err(_) => {
            let what = match typed {
                i128::MAX | i128::MIN => "that number".to_owned(),
                typed => typed.to_string(),
            };
            let message = format!("{what} is out of range for `{name}`");
            let remedy = format!("it must be from {} to {}", range.start(), range.end());
            cx.error(place, message, remedy);
            None
        }
    }
}

/// `"a", "b" or "c"`.
pub fn one_of<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = words.map(|word| format!("\"{word}\"")).collect();
    match quoted.as_slice() {
        [] => String::new(),
        [only] => only.clone(),
        [all @ .., last] => format!("{} or {last}", all.join(", ")),
    }
}

fn as_text(node: &Node) -> Option<At<&str>> {
    match &node.value {
        Value::Text(text) => Some(At {
            value: text,
            place: node.place,
        }),
        _ => None,
    }
}

/// `service.lidar` and `stop` → `service.lidar.stop`.
pub fn setting(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// An exact match goes before one without regard to case.
fn find(form: Form, keys: &'static [Key], typed: &str) -> Option<&'static Key> {
    let exact = keys.iter().find(|key| key.name == typed);
    match form {
        Form::Native => exact,
        Form::Short => {
            exact.or_else(|| keys.iter().find(|key| key.name.eq_ignore_ascii_case(typed)))
        }
    }
}

/// A table that could be a service's.
fn is_service(value: &Value) -> bool {
    match value {
        Value::Table(table) => table.entries.iter().any(|inner| inner.key == "executable"),
        _ => false,
    }
}

/// Tells it, and returns the key that was meant.
fn unknown(
    cx: &mut Check,
    entry: &Entry,
    keys: &'static [Key],
    path: &str,
) -> Option<&'static str> {
    if cx.form == Form::Short && entry.key.starts_with('_') {
        return None;
    }
    let message = match path {
        "" => format!("unknown key `{}`", show(&entry.key)),
        path => format!("unknown key `{}` in [{path}]", show(&entry.key)),
    };
    let service = cx.form == Form::Native && path.is_empty() && is_service(&entry.node.value);
    let meant = nearest(&entry.key, keys.iter().map(|key| key.name));
    let remedy = match meant {
        Some(near) => format!("did you mean `{near}`?"),
        // A name with a dot that is not quoted is a table in a table.
        None if is_service(&entry.node.value)
            && path.starts_with("service.")
            && cx.form == Form::Native =>
        {
            let name = path.strip_prefix("service.").unwrap_or_default();
            format!(
                "a name with a dot stands in quotes: [service.\"{name}.{}\"]",
                show(&entry.key)
            )
        }
        None if service => format!("a service is written [service.{}]", show(&entry.key)),
        None if keys.len() <= 9 => {
            let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
            format!("known here are {}", names.join(", "))
        }
        None => "this key has no meaning here; take it out".to_owned(),
    };
    match cx.form {
        Form::Native => cx.error(entry.place, message, remedy),
        Form::Short => cx.warning(entry.place, message, remedy),
    }
    meant
}

/// JSON lets a key stand twice, and so does the short form with two spellings. The tools that
/// the short form comes from took the last one.
fn twice(cx: &mut Check, entry: &Entry, first: &Entry) {
    let message = format!("the key `{}` stands twice", show(&entry.key));
    let first = cx.layout.sources.name(first.place);
    match cx.form {
        Form::Native => cx.error(entry.place, message, format!("first at {first}")),
        Form::Short => {
            let remedy = format!("the one at {first} is not used");
            cx.warning(entry.place, message, remedy);
        }
    }
}

fn not_yet(cx: &mut Check, entry: &Entry, key: &Key, path: &str) {
    let place = match entry.node.value {
        Value::Table(_) => entry.place,
        _ => entry.node.place,
    };
    let message = match path {
        "" => format!("`{}` is not in this version of the agent yet", key.name),
        path => format!(
            "`{}` of [{path}] is not in this version of the agent yet",
            key.name
        ),
    };
    cx.error(place, message, "take it out for now");
}
