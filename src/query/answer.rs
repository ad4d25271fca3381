//! what Redis said → the JSON that consumers of `jettison_health` read.
//!
//! Two-space indentation, properties in [`POOL_PROPERTIES`]' order, and the escapes of Go's
//! encoding/json (`<`, `>`, `&`, U+2028, U+2029), byte for byte as the old tool printed.

use std::collections::BTreeMap;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::record::POOL_PROPERTIES;

/// What one key held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    Number(i64),
    Missing,
    /// Not an integer, or no string at all.
    Invalid,
}

impl Reading {
    /// The whole text as a decimal integer of 64 bits, as Go's strconv reads it.
    pub fn of(text: &[u8]) -> Reading {
        match std::str::from_utf8(text).map(str::parse) {
            Ok(Ok(number)) => Reading::Number(number),
            Ok(Err(_)) | Err(_) => Reading::Invalid,
        }
    }
}

/// One pool: a reading for each of [`POOL_PROPERTIES`], in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool(pub [Reading; POOL_PROPERTIES.len()]);

/// By `service:category`.
pub type Pools = BTreeMap<String, Pool>;

impl Pool {
    /// Every key is there and holds an integer, whatever its value.
    pub fn is_complete(&self) -> bool {
        let number = |reading: &Reading| matches!(reading, Reading::Number(_));
        self.0.iter().all(number)
    }

    fn named(&self, wanted: Reading) -> Vec<&'static str> {
        let readings = POOL_PROPERTIES.iter().zip(&self.0);
        readings
            .filter(|(_, reading)| **reading == wanted)
            .map(|(name, _)| *name)
            .collect()
    }
}

impl Serialize for Pool {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, reading) in POOL_PROPERTIES.iter().zip(&self.0) {
            if let Reading::Number(number) = reading {
                map.serialize_entry(name, number)?;
            }
        }
        let (missing, invalid) = (self.named(Reading::Missing), self.named(Reading::Invalid));
        map.serialize_entry("exists", &missing.is_empty())?;
        if !missing.is_empty() {
            map.serialize_entry("missing_keys", &missing)?;
        }
        if !invalid.is_empty() {
            map.serialize_entry("invalid_keys", &invalid)?;
        }
        map.end()
    }
}

/// Why there is no data.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    pub error: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub details: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
}

impl Problem {
    pub fn new(error: &'static str, details: impl Into<String>) -> Problem {
        Problem {
            error,
            details: details.into(),
            args: Vec::new(),
        }
    }

    pub fn document(&self) -> String {
        render(self)
    }
}

pub fn document(pools: &Pools) -> String {
    #[derive(serde::Serialize)]
    struct Document<'a> {
        data: &'a Pools,
    }
    render(&Document { data: pools })
}

fn render(value: &impl Serialize) -> String {
    // Text keys and plain values always have a JSON form.
    let text = serde_json::to_string_pretty(value).unwrap_or_else(|_| "{}".to_owned());
    let mut escaped = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            c => escaped.push(c),
        }
    }
    escaped.push('\n');
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(values: [i64; 8]) -> Pool {
        Pool(values.map(Reading::Number))
    }

    #[test]
    fn the_contracts_example() {
        let pool = numbers([1523, 1000, 100, 1500, 15, 1, 0, 856]);
        assert!(pool.is_complete());
        let expected = r#"{
  "data": {
    "myapp:api": {
      "beats": 1523,
      "cap": 1000,
      "depletion_rate": 100,
      "init": 1500,
      "replenish_rate": 15,
      "running": 1,
      "exit": 0,
      "health": 856,
      "exists": true
    }
  }
}
"#;
        assert_eq!(
            document(&Pools::from([("myapp:api".to_owned(), pool)])),
            expected
        );
    }

    #[test]
    fn missing_and_invalid_keys_are_absent_and_named() {
        let mut pool = numbers([1, 2, 3, 4, 5, 6, 7, 8]);
        pool.0[1] = Reading::Missing;
        pool.0[7] = Reading::Missing;
        pool.0[2] = Reading::Invalid;
        assert!(!pool.is_complete());
        let expected = r#"{
  "data": {
    "a<b:c": {
      "beats": 1,
      "init": 4,
      "replenish_rate": 5,
      "running": 6,
      "exit": 7,
      "exists": false,
      "missing_keys": [
        "cap",
        "health"
      ],
      "invalid_keys": [
        "depletion_rate"
      ]
    }
  }
}
"#
        .replace('<', "\\u003c");
        assert_eq!(
            document(&Pools::from([("a<b:c".to_owned(), pool)])),
            expected
        );
        pool.0[1] = Reading::Number(2);
        pool.0[7] = Reading::Number(2);
        assert!(document(&Pools::from([("x:y".to_owned(), pool)])).contains("\"exists\": true,\n"));
    }

    #[test]
    fn a_problem_leaves_out_what_is_empty() {
        let bare = Problem::new("Configuration error", "");
        assert_eq!(
            bare.document(),
            "{\n  \"error\": \"Configuration error\"\n}\n"
        );
        let full = Problem {
            args: vec!["x".to_owned()],
            ..Problem::new(
                "Invalid arguments",
                "invalid format 'x', expected <service>:<category>",
            )
        };
        let expected = "{\n  \"error\": \"Invalid arguments\",\n  \"details\": \"invalid format 'x', \
                        expected \\u003cservice\\u003e:\\u003ccategory\\u003e\",\n  \"args\": [\n    \"x\"\n  ]\n}\n";
        assert_eq!(full.document(), expected);
    }

    #[test]
    fn integers_are_whole_texts() {
        for (text, number) in [
            ("0", 0),
            ("-7", -7),
            ("+7", 7),
            ("007", 7),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(
                Reading::of(text.as_bytes()),
                Reading::Number(number),
                "{text}"
            );
        }
        for text in [
            "",
            "85.5",
            " 1",
            "1 ",
            "1_000",
            "0x1",
            "9223372036854775808",
            "+",
            "--1",
            "\u{661}",
        ] {
            assert_eq!(Reading::of(text.as_bytes()), Reading::Invalid, "{text}");
        }
        assert_eq!(Reading::of(b"\xff"), Reading::Invalid);
    }
}
