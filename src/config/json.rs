//! a JSON text → the tree of `file`, with places.
//!
//! Exactly the grammar of RFC 8259: no comments, no trailing commas, one value. The value
//! must be an object (a configuration). A lone surrogate in a string, which the grammar
//! allows, becomes U+FFFD. Own parser because a place is needed for every key and value.

use super::diagnose::Place;
use super::file::{Entry, Node, Table, Value, integer};

/// Deeper than any configuration; keeps the parser's stack bounded.
const MAX_DEPTH: usize = 64;

/// Where, what, and the remedy where there is one.
pub type Problem = (Place, String, Option<&'static str>);

/// The first error ends it.
pub fn read(text: &str, source: usize) -> Result<Table, Problem> {
    let mut reader = Reader {
        text,
        bytes: text.as_bytes(),
        at: 0,
        source,
    };
    reader.blanks();
    if reader.peek() != Some(b'{') {
        let message = match reader.peek() {
            Some(_) => "a configuration begins with `{`",
            None => "the file is empty",
        };
        let (place, message, remedy) = reader.problem(message);
        let toml = "is this TOML? then the file's name must end in .toml";
        let remedy = match reader.peek() {
            Some(b'[') => Some(toml),
            Some(_) | None => remedy,
        };
        return Err((place, message, remedy));
    }
    let root = reader.object(0)?;
    reader.blanks();
    match reader.peek() {
        None => Ok(root),
        Some(_) => Err(reader.problem("nothing may follow the last `}`")),
    }
}

struct Reader<'t> {
    text: &'t str,
    bytes: &'t [u8],
    at: usize,
    source: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn since(&self, start: usize) -> Place {
        Place {
            source: self.source,
            start,
            end: self.at,
        }
    }

    fn here(&self) -> Place {
        Place {
            source: self.source,
            start: self.at,
            end: self.at + 1,
        }
    }

    fn problem(&self, what: &str) -> Problem {
        let remedy = match self.bytes.get(self.at..) {
            Some([b'/', b'/' | b'*', ..] | [b'#', ..]) => {
                Some("JSON has no comments; in this file a key that begins with `_` is one")
            }
            Some(_) | None => None,
        };
        (self.here(), format!("this is not JSON: {what}"), remedy)
    }

    fn value(&mut self, depth: usize) -> Result<Node, Problem> {
        let start = self.at;
        let value = match self.peek() {
            Some(b'{') => Value::Table(self.object(depth)?),
            Some(b'[') => Value::List(self.array(depth)?),
            Some(b'"') => Value::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b't') => self.word("true", Value::Flag(true))?,
            Some(b'f') => self.word("false", Value::Flag(false))?,
            Some(b'n') => self.word("null", Value::Null)?,
            Some(b'\'') => return Err(self.problem("strings stand in double quotes")),
            Some(_) => return Err(self.problem("a value was expected here")),
            None => return Err(self.problem("the text ends where a value was expected")),
        };
        Ok(Node {
            place: self.since(start),
            value,
        })
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, Problem> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if !rest.starts_with(word.as_bytes()) {
            return Err(self.problem("a value was expected here"));
        }
        self.at += word.len();
        Ok(value)
    }

    fn object(&mut self, depth: usize) -> Result<Table, Problem> {
        let mut entries = Vec::new();
        self.open(depth)?;
        if self.closes(b'}') {
            return Ok(Table { entries });
        }
        loop {
            self.blanks();
            let start = self.at;
            match self.peek() {
                Some(b'"') => {}
                Some(b'}') => return Err(self.problem("no comma may stand before `}`")),
                Some(_) => return Err(self.problem("a key in double quotes was expected here")),
                None => return Err(self.problem("the text ends before the closing `}`")),
            }
            let key = self.string()?;
            let place = self.since(start);
            self.blanks();
            if self.peek() != Some(b':') {
                return Err(self.problem("a `:` was expected after the key"));
            }
            self.at += 1;
            self.blanks();
            let node = self.value(depth + 1)?;
            entries.push(Entry { key, place, node });
            if !self.continues(b'}')? {
                return Ok(Table { entries });
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Vec<Node>, Problem> {
        let mut items = Vec::new();
        self.open(depth)?;
        if self.closes(b']') {
            return Ok(items);
        }
        loop {
            self.blanks();
            if self.peek() == Some(b']') {
                return Err(self.problem("no comma may stand before `]`"));
            }
            items.push(self.value(depth + 1)?);
            if !self.continues(b']')? {
                return Ok(items);
            }
        }
    }

    fn open(&mut self, depth: usize) -> Result<(), Problem> {
        if depth >= MAX_DEPTH {
            return Err(self.problem("this is nested too deeply"));
        }
        self.at += 1;
        self.blanks();
        Ok(())
    }

    fn closes(&mut self, close: u8) -> bool {
        let closes = self.peek() == Some(close);
        self.at += usize::from(closes);
        closes
    }

    /// After a member: true at a comma, false at the closing bracket.
    fn continues(&mut self, close: u8) -> Result<bool, Problem> {
        self.blanks();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            Some(_) => {
                let close = char::from(close);
                Err(self.problem(&format!("a comma or `{close}` was expected here")))
            }
            None => {
                let close = char::from(close);
                Err(self.problem(&format!("the text ends before the closing `{close}`")))
            }
        }
    }

    fn number(&mut self) -> Result<Value, Problem> {
        let start = self.at;
        self.at += usize::from(self.peek() == Some(b'-'));
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            Some(_) | None => return Err(self.problem("a digit was expected here")),
        }
        if matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.problem("a number may not begin with 0"));
        }
        let whole = self.at;
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.need_digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.need_digits()?;
        }
        if self.at > whole {
            return Ok(Value::Float);
        }
        let digits = self.text.get(start..whole).unwrap_or_default();
        Ok(Value::Integer(integer(digits, 10)))
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn need_digits(&mut self) -> Result<(), Problem> {
        let start = self.at;
        self.digits();
        if self.at == start {
            return Err(self.problem("a digit was expected here"));
        }
        Ok(())
    }

    /// From the opening quote to behind the closing one.
    fn string(&mut self) -> Result<String, Problem> {
        let mut out = String::new();
        self.at += 1;
        let mut plain = self.at;
        loop {
            let byte = self.peek();
            if matches!(byte, Some(b'"' | b'\\')) {
                out.push_str(self.text.get(plain..self.at).unwrap_or_default());
            }
            match byte {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    out.push(self.escape()?);
                    plain = self.at;
                }
                Some(b'\n' | b'\r') => {
                    return Err(self.problem("the string is not closed on its line"));
                }
                Some(0..=0x1f) => {
                    return Err(self.problem("a control character must be written as an escape"));
                }
                Some(_) => self.at += 1,
                None => return Err(self.problem("the string is not closed")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Problem> {
        let known = match self.bytes.get(self.at + 1) {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            Some(_) | None => return Err(self.problem("unknown escape in a string")),
        };
        self.at += 2;
        Ok(known)
    }

    fn unicode(&mut self) -> Result<char, Problem> {
        let Some(first) = self.four_digits() else {
            return Err(self.problem("`\\u` is followed by four hexadecimal digits"));
        };
        self.at += 6;
        if (0xd800..0xdc00).contains(&first)
            && let Some(second) = self.four_digits()
            && (0xdc00..0xe000).contains(&second)
        {
            self.at += 6;
            let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
            return Ok(char::from_u32(code).unwrap_or('\u{fffd}'));
        }
        Ok(char::from_u32(first).unwrap_or('\u{fffd}'))
    }

    /// Of an escape `\uXXXX` at the present place.
    fn four_digits(&self) -> Option<u32> {
        let rest = self.bytes.get(self.at..self.at + 6)?;
        let digits = rest.strip_prefix(b"\\u")?;
        digits.iter().try_fold(0, |sum, byte| {
            char::from(*byte).to_digit(16).map(|digit| sum * 16 + digit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees(text: &str) {
        let theirs = serde_json::from_str::<serde_json::Value>(text);
        let theirs = theirs.ok().filter(serde_json::Value::is_object);
        match (read(text, 0), theirs) {
            (Ok(table), Some(value)) => assert_eq!(plain(&Value::Table(table)), value, "{text}"),
            (Err(_), None) => {}
            (Ok(_), None) => panic!("accepted: {text}"),
            (Err((place, message, _)), Some(_)) => panic!("{message} at {place:?}: {text}"),
        }
    }

    fn plain(value: &Value) -> serde_json::Value {
        match value {
            Value::Text(text) => text.clone().into(),
            Value::Integer(number) => (*number as i64).into(),
            Value::Float => 0.5.into(),
            Value::Flag(flag) => (*flag).into(),
            Value::Null | Value::Date => serde_json::Value::Null,
            Value::List(items) => items.iter().map(|node| plain(&node.value)).collect(),
            Value::Table(table) => table
                .entries
                .iter()
                .map(|entry| (entry.key.clone(), plain(&entry.node.value)))
                .collect(),
        }
    }

    /// The reference is another implementation of the same grammar.
    #[test]
    fn agrees_with_another_parser() {
        for text in [
            "{}",
            " { } ",
            r#"{"a":1}"#,
            r#"{"a":-7}"#,
            r#"{"a":01}"#,
            r#"{"a":0.5}"#,
            r#"{"a":.5}"#,
            r#"{"a":1.}"#,
            r#"{"a":5e-1}"#,
            r#"{"a":1e}"#,
            r#"{"a":+1}"#,
            r#"{"a":[]}"#,
            r#"{"a":[1,]}"#,
            r#"{"a":1,}"#,
            r#"{"a" 1}"#,
            r#"{a:1}"#,
            r#"{"a":'x'}"#,
            r#"{"a":"\u00e4\n\/"}"#,
            r#"{"a":"\ud83d\ude00"}"#,
            r#"{"a":"\x"}"#,
            "{\"a\":\"\t\"}",
            "{\"a\":\"\u{7f}\"}",
            r#"{"a":tru}"#,
            r#"{"a":true,"b":false,"c":null}"#,
            r#"{"a":{"b":[{"c":[[]]}]}}"#,
            "",
            "[]",
            "1",
            "{}x",
            "{",
            r#"{"a""#,
            r#"{"a":"#,
            r#"{"a":"x"#,
            "// c\n{}",
            r#"{"a":1} // c"#,
            "{\"ä\":\"ö\"}",
            "{\"a\":NaN}",
            r#"{"a":"\u12"}"#,
            r#"{"a":1 "b":2}"#,
        ] {
            agrees(text);
        }
    }

    #[test]
    fn depth_is_bounded() {
        let deep = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(read(&deep(MAX_DEPTH - 1), 0).is_ok());
        assert!(read(&deep(MAX_DEPTH), 0).is_err());
        assert!(read(&deep(500_000), 0).is_err());
        assert!(read(&"{\"a\":".repeat(100_000), 0).is_err());
    }

    #[test]
    fn lone_surrogates_become_the_replacement_character() {
        let table = read(r#"{"a":"x\ud800y\udc00"}"#, 0).unwrap();
        let Value::Text(text) = &table.entries[0].node.value else {
            panic!("text")
        };
        assert_eq!(text, "x\u{fffd}y\u{fffd}");
    }
}
