//! a TOML parser's complaint → what a person did, and what to write.
//!
//! The parser speaks of grammar ("key with no value"); the reader of a message wants to know
//! what to type. Complaints that are not listed here are passed on in the parser's words.

/// `rest` is the text from the place of the complaint on; `before` the line up to it.
pub fn explain(complaint: &str, before: &str, rest: &str) -> (String, Option<String>) {
    let what = complaint.split(", expected").next().unwrap_or(complaint);
    let line = rest.split('\n').next().unwrap_or(rest).trim_end();
    let word: String = line
        .chars()
        .take_while(|c| !c.is_whitespace() && !matches!(c, ',' | ']' | '}' | '#'))
        .collect();
    // A password is not repeated in a message.
    let secret = before.to_ascii_lowercase().contains("password");
    let (message, remedy) = match what {
        "string values must be quoted" | "missing value" | "missing value for key"
            if word.is_empty() =>
        {
            ("a value is missing here", None)
        }
        "string values must be quoted" if secret => (
            "a text must stand in quotes",
            Some("write it in quotes".to_owned()),
        ),
        "string values must be quoted" if word.contains(['\\', '"']) => (
            "a text must stand in quotes",
            Some(format!("write '{word}'")),
        ),
        "string values must be quoted" => (
            "a text must stand in quotes",
            Some(format!("write \"{word}\"")),
        ),
        "invalid boolean" => {
            let right = word.to_ascii_lowercase();
            (
                "true and false are written in small letters",
                Some(format!("write {right}")),
            )
        }
        "key with no value" if before.trim_end().ends_with(':') || line.starts_with(':') => {
            let remedy = "write `=` in place of `:`".to_owned();
            ("a key and its value are joined by `=`", Some(remedy))
        }
        "key with no value" => ("`=` and a value are missing here", None),
        "invalid basic string" | "invalid literal string" if line.is_empty() => (
            "the string is not closed on its line",
            Some("a quote is missing".to_owned()),
        ),
        "duplicate key" if before.trim_start().starts_with('[') => {
            ("this table stands twice", Some("join the two".to_owned()))
        }
        "duplicate key" => ("this key stands twice", Some("keep one of them".to_owned())),
        "missing escaped value" => {
            let remedy = "write `\\\\` for a backslash, or the whole text in single quotes";
            ("unknown escape in a string", Some(remedy.to_owned()))
        }
        "unexpected leading zero" => {
            let right = word.trim_start_matches('0');
            (
                "a number may not begin with 0",
                Some(format!("write {right}")),
            )
        }
        "unclosed table" | "unclosed array table" => (
            "the `[` of this line is not closed",
            Some("a `]` is missing".to_owned()),
        ),
        "missing comma between array elements" | "unclosed array" => {
            ("a `,` or `]` is missing before this", None)
        }
        "missing comma between key-value pairs" | "unclosed inline table" => {
            ("a `,` or `}` is missing before this", None)
        }
        "unexpected key or value" => {
            let remedy = "one key and one value a line; texts in quotes".to_owned();
            ("this does not belong here", Some(remedy))
        }
        "invalid key-value pair" if line.starts_with('{') => {
            let remedy = "is this JSON? then the file's name must end in .json".to_owned();
            ("a key was expected here", Some(remedy))
        }
        "invalid key-value pair" => ("a key was expected here", None),
        "cannot recurse further; max recursion depth met" | "recursion limit" => {
            ("this is nested too deeply", None)
        }
        other => return (format!("this is not TOML: {other}"), None),
    };
    (message.to_owned(), remedy)
}
