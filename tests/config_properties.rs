//! Whatever bytes a file holds, they become a configuration or diagnostics; and a value of the
//! wrong kind is told where it stands, whichever key it belongs to.

use std::path::Path;

use jettison_agent::config::Environment;
use jettison_agent::config::check::parse;
use jettison_agent::config::file::Syntax;
use jettison_agent::config::keys::{self, Key, Shape, Stage};

/// SplitMix64: the same numbers at every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Both syntaxes, and everything that a caller would print.
fn survive(bytes: &[u8]) {
    for syntax in [Syntax::Toml, Syntax::Json] {
        match parse(bytes, Path::new("x"), syntax, &Environment::default()) {
            Ok(loaded) => {
                for warning in loaded.warnings {
                    let _ = warning.to_string();
                }
            }
            Err(found) => {
                assert!(found.errors().count() > 0);
                let _ = found.to_string();
            }
        }
    }
}

#[test]
fn any_bytes() {
    let mut random = Random(1);
    for _ in 0..3_000 {
        let length = random.below(80);
        let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        survive(&bytes);
    }
}

const PIECES: &[&str] = &[
    "[",
    "]",
    "[[",
    "{",
    "}",
    "\"",
    "'",
    "'''",
    "\"\"\"",
    "=",
    ":",
    ",",
    ".",
    "\n",
    "\r\n",
    " ",
    "\t",
    "#",
    "\\",
    "\\u0000",
    "\\ud800",
    "0",
    "-1",
    "1e9",
    "1979-05-27",
    "99999999999999999999",
    "true",
    "null",
    "inf",
    "ü",
    "\u{feff}",
    "\u{7f}",
    "\u{1}",
    "agent",
    "redis",
    "service",
    "service.a",
    "app",
    "executable",
    "after",
    "requires",
    "environment",
    "limits",
    "health",
    "password",
    "url",
    "redis://a:b@c/1",
    "://",
    "@",
    "port",
    "stop",
    "a",
    "b",
    "x.y.z",
    "10s",
    "8MiB",
    "0-3",
    "fifo:1",
    "_",
    "include",
];

#[test]
fn any_sequence_of_what_means_something() {
    let mut random = Random(2);
    for _ in 0..20_000 {
        let count = random.below(25);
        let text: String = (0..count)
            .map(|_| PIECES[random.below(PIECES.len())])
            .collect();
        survive(text.as_bytes());
    }
}

const TOML: &str = r#"[agent]
main = "a"
[redis]
url = "redis://u:p@h:1/2"
[service.a]
executable = "/a"
args = ["x", 'y', """z"""]
limits = { nofile = 1024, core = "unlimited" }
environment = { A = "1" }
after = ["b"]
[service.a.health.api]
init = 1
[service.b]
executable = "/b"
stop = { signal = "INT", timeout = "3s" }
"#;

const JSON: &str = r#"{"redis": {"host": "h", "port": 6379, "password": "p\u00e4\ud83d\ude00"},
"app": {"executable": "/x", "args": ["a", "b"], "user": "", "stream_name": null},
"debug": {"enabled": false}, "_c": [1, 2.5e3, {"deep": [[]]}]}"#;

#[test]
fn damaged_files() {
    for valid in [TOML, JSON] {
        for cut in 0..valid.len() {
            survive(&valid.as_bytes()[..cut]);
        }
        let mut random = Random(3);
        for _ in 0..6_000 {
            let mut bytes = valid.as_bytes().to_vec();
            for _ in 0..=random.below(3) {
                let at = random.below(bytes.len());
                match random.below(3) {
                    0 => bytes[at] = random.next() as u8,
                    1 => drop(bytes.drain(at..(at + random.below(9)).min(bytes.len()))),
                    _ => {
                        let piece = PIECES[random.below(PIECES.len())].bytes();
                        bytes.splice(at..at, piece);
                    }
                }
            }
            survive(&bytes);
        }
    }
}

/// The pattern this many times, each `#` its number.
fn many(count: usize, pattern: &str) -> String {
    (0..count)
        .map(|n| pattern.replace('#', &n.to_string()))
        .collect()
}

#[test]
fn deep_and_long_files() {
    for text in [
        "[".repeat(200_000),
        "a = ".to_owned() + &"[".repeat(200_000),
        "a = ".to_owned() + &"{ a = ".repeat(50_000),
        "a.".repeat(200_000),
        "{\"a\":".repeat(100_000),
        format!("{{\"a\":{}", "[".repeat(500_000)),
        "a=1\n".repeat(20_000),
        "\"".repeat(100_000),
        format!("[redis]\npassword = {}", "x".repeat(500_000)),
        format!("[redis]\nhosts = \"{}\"", "é".repeat(100_000)),
        "://@".repeat(50_000),
        "password=".repeat(20_000),
        format!("{}=1", "k".repeat(500_000)),
        // Many problems on one long line; many services, names, pools.
        format!("{{{}\"app\":{{}}}}", "\"x\":1,".repeat(100_000)),
        format!("[redis]\npassword = [{}]", "1, ".repeat(200_000)),
        many(30_000, "[service.s#]\nexecutable='x'\n"),
        format!("[service.a]\nafter = [{}]", many(90_000, "'s#',")),
        format!("[service.a.health]\n{}", many(60_000, "c#={}\n")),
    ] {
        let begun = std::time::Instant::now();
        survive(text.as_bytes());
        let head: String = text.chars().take(20).collect();
        assert!(
            begun.elapsed().as_secs() < 20,
            "{head}: {:?}",
            begun.elapsed()
        );
    }
}

/// A value that no key of this shape accepts, in TOML and in JSON.
fn wrong(shape: Shape) -> [&'static str; 2] {
    match shape {
        Shape::Text | Shape::Duration => ["1979-05-27", "0.5"],
        Shape::Flag => ["\"true\"", "1"],
        Shape::Integer => ["\"6379\"", "6379.0"],
        Shape::Size | Shape::Identity => ["8.5", "true"],
        Shape::Texts | Shape::Identities | Shape::Commands | Shape::Tables => {
            ["{ a = 1 }", "{\"a\": 1}"]
        }
        Shape::TextOrTexts => ["false", "12"],
        Shape::Fields(_) | Shape::Names => ["[\"list\"]", "[\"list\"]"],
    }
}

fn every_key(keys: &'static [Key], path: &str, look: &mut impl FnMut(&str, &'static Key)) {
    for key in keys {
        look(path, key);
        if let Shape::Fields(inner) = key.shape {
            let path = if path.is_empty() {
                key.name.to_owned()
            } else {
                format!("{path}.{}", key.name)
            };
            every_key(inner, &path, look);
        }
    }
}

/// The expectation is computed from the text: where the wrong value was put.
fn told_at(text: &str, syntax: Syntax, value: &str, key: &str) {
    let at = text.rfind(value).unwrap();
    let line = text[..at].matches('\n').count() + 1;
    let column = at - text[..at].rfind('\n').map_or(0, |n| n + 1) + 1;
    let path = Path::new("x");
    let found = parse(text.as_bytes(), path, syntax, &Environment::default()).expect_err(text);
    let here = found
        .errors()
        .find(|d| d.position() == Some((line, column)));
    let here = here.unwrap_or_else(|| panic!("nothing at {line}:{column} of\n{text}\n{found}"));
    assert!(here.message.contains(&format!("`{key}`")), "{text}\n{here}");
}

#[test]
fn a_wrong_kind_of_value_is_told_where_it_stands() {
    let mut count = 0;
    let mut look = |path: &str, key: &'static Key| {
        let [toml, json] = wrong(key.shape);
        // A table in a place of a later key is shown by its key.
        let later = matches!(key.stage, Stage::Later(_));
        let (toml, json) = match later && (toml.starts_with('{') || json.starts_with('{')) {
            true => ("1979-05-27", "0.5"),
            false => (toml, json),
        };
        let text = match path {
            "" => format!("{} = {toml}\n", key.name),
            path => format!("# comment\n[{path}]\n{} = {toml}\n", key.name),
        };
        told_at(&text, Syntax::Toml, toml, key.name);
        // In JSON a native file is known by its service.
        let mut text = format!("{{\"{}\": {json}}}", key.name);
        for part in path.rsplit('.').filter(|part| !part.is_empty()) {
            text = format!("{{\n  \"{part}\": {text}}}");
        }
        if !text.contains("\"service\"") {
            text = format!("{{\"service\": {{}},\n {}", &text[1..]);
        }
        told_at(&text, Syntax::Json, json, key.name);
        count += 1;
    };
    every_key(keys::NATIVE, "", &mut look);
    every_key(keys::SERVICE, "service.lidar", &mut look);
    every_key(keys::POOL, "service.lidar.health.api", &mut look);
    assert!(count > 90, "{count}");
}

#[test]
fn a_wrong_item_of_a_list_is_told_where_it_stands() {
    let mut look = |path: &str, key: &'static Key| {
        if let (Some(Shape::Text | Shape::Identity), Stage::Built) = (key.shape.item(), key.stage) {
            let text = format!("[{path}]\n{} = [\"a\", 1979-05-27]\n", key.name);
            told_at(
                &text,
                Syntax::Toml,
                "1979-05-27",
                &format!("{}[1]", key.name),
            );
        }
    };
    every_key(keys::SERVICE, "service.lidar", &mut look);
}

#[test]
fn a_misspelled_key_is_told_where_it_stands() {
    let mut look = |path: &str, key: &'static Key| {
        let typed = format!("{}x", key.name);
        let text = format!("[{path}]\n\n  {typed} = 1\n");
        let path = Path::new("x");
        let none = Environment::default();
        let found = parse(text.as_bytes(), path, Syntax::Toml, &none).expect_err(&text);
        let here = found.errors().find(|d| d.position() == Some((3, 3)));
        let here = here.unwrap_or_else(|| panic!("nothing in\n{text}\n{found}"));
        let remedy = here.remedy.as_deref().unwrap_or_default();
        assert_eq!(remedy, format!("did you mean `{}`?", key.name), "{text}");
    };
    every_key(keys::AGENT, "agent", &mut look);
    every_key(keys::REDIS, "redis", &mut look);
    every_key(keys::SERVICE, "service.lidar", &mut look);
}
