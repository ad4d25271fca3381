//! bytes of a file → what was typed: tables, keys and values, each with its place.
//!
//! TOML and JSON give the same tree, so that one set of checks serves both. Nothing is judged
//! here but the syntax. Entries keep the order of the text; a key that stands twice (JSON
//! allows it) is kept twice, for the checks to tell.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::diagnose::{Diagnostic, Place, Sources};
use super::{json, syntax};

/// A configuration is read by people: a file above this many bytes is a mistake.
pub const MAX_BYTES: u64 = 1 << 20;

/// Syntax errors told of one file: one slip can make every later line wrong.
const MAX_SYNTAX_ERRORS: usize = 8;

/// Complaints of the parser that are looked at for them.
const MAX_COMPLAINTS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    Toml,
    Json,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    /// Saturated, where it is longer than any number in use.
    Integer(i128),
    Float,
    Flag(bool),
    Date,
    /// JSON only.
    Null,
    List(Vec<Node>),
    Table(Table),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    pub entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    /// Of the key.
    pub place: Place,
    pub node: Node,
}

impl Value {
    /// For "… is a list".
    pub fn what(&self) -> &'static str {
        match self {
            Value::Text(_) => "a string",
            Value::Integer(_) => "a number",
            Value::Float => "a number with a fraction",
            Value::Flag(_) => "a boolean",
            Value::Date => "a date",
            Value::Null => "null",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

/// By the extension; where that says nothing, by the first character.
pub fn syntax_of(path: &Path, bytes: &[u8]) -> Syntax {
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .map(str::to_ascii_lowercase);
    match extension.as_deref() {
        Some("json") => Syntax::Json,
        Some("toml") => Syntax::Toml,
        Some(_) | None => {
            let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
            match bytes.iter().find(|b| !b.is_ascii_whitespace()) {
                Some(b'{') => Syntax::Json,
                Some(_) | None => Syntax::Toml,
            }
        }
    }
}

const BOM: &[u8] = b"\xef\xbb\xbf";

/// The text is added to `sources`; the tree's places refer to it.
pub fn read(
    bytes: &[u8],
    path: &Path,
    syntax: Syntax,
    sources: &mut Sources,
) -> Result<Table, Vec<Diagnostic>> {
    let name = path.display().to_string();
    let text = decode(bytes, &name, sources).map_err(|found| vec![found])?;
    let source = sources.add(&name, text);
    match syntax {
        Syntax::Toml => read_toml(text, source, sources),
        Syntax::Json => json::read(text, source).map_err(|(place, message, remedy)| {
            let found = Diagnostic::error(sources.origin(place), message);
            vec![match remedy {
                Some(remedy) => found.remedy(remedy),
                None => found,
            }]
        }),
    }
}

fn decode<'b>(bytes: &'b [u8], name: &str, sources: &mut Sources) -> Result<&'b str, Diagnostic> {
    let whole = |message: &str, remedy: &str| Diagnostic::whole(name, message).remedy(remedy);
    if bytes.len() as u64 > MAX_BYTES {
        return Err(whole(
            "the file is larger than 1 MiB",
            "a configuration is a short text; is this the right file?",
        ));
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(whole("the file is UTF-16", "save it as UTF-8"));
    }
    if bytes.contains(&0) {
        return Err(whole(
            "the file is not text: it contains NUL bytes",
            "is this the right file?",
        ));
    }
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let valid = error.valid_up_to();
        // The bad bytes are shown as U+FFFD, which is where the caret points.
        let source = sources.add(name, &String::from_utf8_lossy(bytes));
        let place = Place {
            source,
            start: valid,
            end: valid + '\u{fffd}'.len_utf8(),
        };
        Diagnostic::error(sources.origin(place), "this is not UTF-8")
            .remedy("save the file as UTF-8")
    })
}

fn read_toml(text: &str, source: usize, sources: &Sources) -> Result<Table, Vec<Diagnostic>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(table(root.get_ref(), source));
    }
    let mut found: Vec<Diagnostic> = Vec::new();
    for error in errors.into_iter().take(MAX_COMPLAINTS) {
        let span = error.span().unwrap_or(text.len()..text.len());
        let place = Place {
            source,
            start: span.start,
            end: span.end,
        };
        let (before, rest) = sources.around(place);
        let (message, remedy) = syntax::explain(error.message(), before, rest);
        let diagnostic = Diagnostic {
            remedy,
            ..Diagnostic::error(sources.origin(place), message)
        };
        // The first error of a line explains it; the others come of the recovery.
        let line = |d: &Diagnostic| d.position().map(|(line, _)| line);
        if !found.iter().any(|d| line(d) == line(&diagnostic)) {
            found.push(diagnostic);
        }
        if found.len() == MAX_SYNTAX_ERRORS {
            break;
        }
    }
    Err(found)
}

fn table(typed: &DeTable<'_>, source: usize) -> Table {
    let mut entries: Vec<Entry> = typed
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            place: place(key, source),
            node: node(value, source),
        })
        .collect();
    entries.sort_by_key(|entry| entry.place.start);
    Table { entries }
}

fn node(typed: &Spanned<DeValue<'_>>, source: usize) -> Node {
    let value = match typed.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => Value::Integer(integer(number.as_str(), number.radix())),
        DeValue::Float(_) => Value::Float,
        DeValue::Boolean(flag) => Value::Flag(*flag),
        DeValue::Datetime(_) => Value::Date,
        DeValue::Array(items) => Value::List(list(items, source)),
        DeValue::Table(inner) => Value::Table(table(inner, source)),
    };
    Node {
        place: place(typed, source),
        value,
    }
}

fn list(items: &DeArray<'_>, source: usize) -> Vec<Node> {
    items.iter().map(|item| node(item, source)).collect()
}

fn place<T>(spanned: &Spanned<T>, source: usize) -> Place {
    let span = spanned.span();
    Place {
        source,
        start: span.start,
        end: span.end,
    }
}

/// An integer of any length; what exceeds 128 bits saturates, and no key accepts it.
pub(super) fn integer(digits: &str, radix: u32) -> i128 {
    i128::from_str_radix(digits, radix).unwrap_or(if digits.starts_with('-') {
        i128::MIN
    } else {
        i128::MAX
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toml(text: &str) -> (Result<Table, Vec<Diagnostic>>, Sources) {
        let mut sources = Sources::default();
        let table = read(
            text.as_bytes(),
            Path::new("t.toml"),
            Syntax::Toml,
            &mut sources,
        );
        (table, sources)
    }

    #[test]
    fn every_key_and_value_has_its_place() {
        let (table, sources) = toml("[a]\nx = \"one\"\n[a.b]\ny = [1, 0x10]\nz = { q = true }\n");
        let table = table.unwrap();
        let a = &table.entries[0];
        assert_eq!(sources.text(a.place), "a");
        let Value::Table(inner) = &a.node.value else {
            panic!("a is a table")
        };
        assert_eq!(sources.text(inner.entries[0].node.place), "\"one\"");
        let Value::Table(b) = &inner.entries[1].node.value else {
            panic!("b is a table")
        };
        assert_eq!(sources.text(inner.entries[1].place), "b");
        let Value::List(items) = &b.entries[0].node.value else {
            panic!("y is a list")
        };
        assert_eq!(items[1].value, Value::Integer(16));
        assert_eq!(sources.text(items[1].place), "0x10");
    }

    #[test]
    fn numbers_of_any_length() {
        assert_eq!(
            integer("99999999999999999999999999999999999999999", 10),
            i128::MAX
        );
        assert_eq!(
            integer("-99999999999999999999999999999999999999999", 10),
            i128::MIN
        );
        assert_eq!(integer("18446744073709551616", 10), 1 << 64);
    }

    #[test]
    fn syntax_by_extension_then_by_first_character() {
        assert_eq!(syntax_of(Path::new("a.json"), b"[x]"), Syntax::Json);
        assert_eq!(syntax_of(Path::new("a.TOML"), b"{"), Syntax::Toml);
        assert_eq!(syntax_of(Path::new("a"), b"\xef\xbb\xbf \n{"), Syntax::Json);
        assert_eq!(syntax_of(Path::new("a.conf"), b"[redis]"), Syntax::Toml);
    }

    #[test]
    fn what_is_no_text_is_said_in_one_message() {
        let mut sources = Sources::default();
        for (bytes, message) in [
            (
                &b"\x7fELF\0\0"[..],
                "t: the file is not text: it contains NUL bytes",
            ),
            (&b"\xff\xfea\0"[..], "t: the file is UTF-16"),
            (&b"a = 1\nb = \"\xe4\"\n"[..], "t:2:6: this is not UTF-8"),
        ] {
            let found = read(bytes, Path::new("t"), Syntax::Toml, &mut sources).unwrap_err();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].brief(), message);
        }
        let large = vec![b' '; MAX_BYTES as usize + 1];
        let found = read(&large, Path::new("t"), Syntax::Toml, &mut sources).unwrap_err();
        assert_eq!(found[0].brief(), "t: the file is larger than 1 MiB");
    }
}
