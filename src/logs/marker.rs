//! The bytes of a line → the line without its markers, and what they said.
//!
//! A marker is `{{key}}`, `{{key:}}` or `{{key:42}}` with `key` = `[0-9A-Za-z_]+`, found from
//! left to right; what only looks like one stays text, and so does what comes to look like
//! one because a marker was cut out of it. A scan for bytes, no regex engine: lines without
//! `{{` cost one search. A marker longer than [`MARKER_MAX`] is text, so that no byte is held
//! back for ever.

use std::collections::HashMap;

use memchr::memmem;

use crate::handoff::{BeatKind, PoolProperty};
use crate::record::{CountKind, POOL_PROPERTIES};

/// Bytes, braces included.
pub const MARKER_MAX: usize = 4096;

/// Whether the line goes on after the bytes in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    More,
    Nothing,
}

/// Cuts the markers out of `text[from..]` and tells each to `found`: key, and the digits
/// where there was a colon with digits. Returns how much of the text is settled: with
/// [`Rest::More`] what may yet become a marker is not.
pub fn cut(
    text: &mut Vec<u8>,
    from: usize,
    rest: Rest,
    mut found: impl FnMut(&[u8], Option<&[u8]>),
) -> usize {
    // text[..write] is kept, text[read..] is still to be looked at; write <= read.
    let (mut read, mut write) = (from, from);
    let keep = |text: &mut Vec<u8>, read: &mut usize, write: &mut usize, end: usize| {
        if *read != *write {
            text.copy_within(*read..end, *write);
        }
        *write += end - *read;
        *read = end;
    };
    loop {
        let length = text.len();
        let Some(offset) = memmem::find(&text[read..], b"{{") else {
            keep(text, &mut read, &mut write, length);
            text.truncate(write);
            let open = rest == Rest::More && write > from && text[write - 1] == b'{';
            return write - usize::from(open);
        };
        let at = read + offset;
        match parse(&text[at..]) {
            Parsed::Marker { key, digits, end } => {
                found(
                    &text[at + 2..at + key],
                    digits.map(|(a, b)| &text[at + a..at + b]),
                );
                keep(text, &mut read, &mut write, at);
                read = at + end;
            }
            Parsed::Unfinished if rest == Rest::More => {
                keep(text, &mut read, &mut write, length);
                text.truncate(write);
                return write - (length - at);
            }
            Parsed::Unfinished | Parsed::Text => keep(text, &mut read, &mut write, at + 1),
        }
    }
}

/// What stands at a `{{`.
enum Parsed {
    /// The key is `2..key`; all offsets from the first brace.
    Marker {
        key: usize,
        digits: Option<(usize, usize)>,
        end: usize,
    },
    Text,
    /// A marker so far, but the bytes end.
    Unfinished,
}

fn parse(bytes: &[u8]) -> Parsed {
    let within = &bytes[..bytes.len().min(MARKER_MAX)];
    let short = if bytes.len() < MARKER_MAX {
        Parsed::Unfinished
    } else {
        Parsed::Text
    };
    let run = |from: usize, belongs: fn(&u8) -> bool| {
        from + within[from..]
            .iter()
            .take_while(|byte| belongs(byte))
            .count()
    };
    let key = run(2, |byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    if key == 2 {
        return if within.len() == 2 {
            short
        } else {
            Parsed::Text
        };
    }
    let (digits, close) = match within.get(key) {
        Some(b':') => {
            let end = run(key + 1, u8::is_ascii_digit);
            ((end > key + 1).then_some((key + 1, end)), end)
        }
        Some(_) | None => (None, key),
    };
    match (within.get(close), within.get(close + 1)) {
        (Some(b'}'), Some(b'}')) => Parsed::Marker {
            key,
            digits,
            end: close + 2,
        },
        (Some(b'}') | None, None) => short,
        (Some(_), _) | (None, Some(_)) => Parsed::Text,
    }
}

/// What the markers of one chunk said, in order. Increments of one key are summed as long as
/// nothing set it in between.
#[derive(Debug, Default)]
pub struct Marks {
    list: Vec<(String, CountKind)>,
    /// Key → its last place in the list.
    last: HashMap<String, usize>,
}

impl Marks {
    pub fn add(&mut self, key: &[u8], digits: Option<&[u8]>) {
        // Keys and digits are ASCII by construction.
        let key = String::from_utf8_lossy(key);
        let what = match digits {
            None => {
                if let Some(&at) = self.last.get(&*key)
                    && let Some((_, CountKind::Increment(times))) = self.list.get_mut(at)
                {
                    *times = times.saturating_add(1);
                    return;
                }
                CountKind::Increment(1)
            }
            Some(digits) => CountKind::Set(String::from_utf8_lossy(digits).into_owned()),
        };
        self.last.insert(key.clone().into_owned(), self.list.len());
        self.list.push((key.into_owned(), what));
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Takes what was said so far.
    pub fn take(&mut self) -> Vec<(String, CountKind)> {
        self.last.clear();
        std::mem::take(&mut self.list)
    }
}

/// What a marker says about a pool: `__healthpool__<category>_<property>`, where the category
/// is what precedes the longest known property. `None` for every other key, for properties
/// that only the agent knows, and for a setting without a value.
pub fn beat<'a>(key: &'a str, what: &CountKind) -> Option<(&'a str, BeatKind)> {
    let rest = key.strip_prefix("__healthpool__")?;
    let (category, property) = POOL_PROPERTIES
        .iter()
        .filter_map(|property| {
            let category = rest.strip_suffix(property)?.strip_suffix('_')?;
            (!category.is_empty()).then_some((category, *property))
        })
        .min_by_key(|(category, _)| category.len())?;
    let value = match what {
        CountKind::Increment(times) => {
            return (property == "beats").then_some((category, BeatKind::Beats(*times)));
        }
        // Digits only: what does not fit is too large.
        CountKind::Set(digits) => digits.parse().unwrap_or(i64::MAX),
    };
    let kind = match property {
        "beats" => BeatKind::SetBeats(value),
        "cap" => BeatKind::Set(PoolProperty::Cap, value),
        "depletion_rate" => BeatKind::Set(PoolProperty::DepletionRate, value),
        "init" => BeatKind::Set(PoolProperty::Init, value),
        "replenish_rate" => BeatKind::Set(PoolProperty::ReplenishRate, value),
        // `running`, `exit` and `health` are the agent's to know.
        _ => return None,
    };
    Some((category, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(line: &str) -> (String, Vec<String>) {
        let mut text = line.as_bytes().to_vec();
        let mut seen = Vec::new();
        let settled = cut(&mut text, 0, Rest::Nothing, |key, digits| {
            let mut said = String::from_utf8_lossy(key).into_owned();
            if let Some(digits) = digits {
                said = said + "=" + &String::from_utf8_lossy(digits);
            }
            seen.push(said);
        });
        assert_eq!(settled, text.len());
        (String::from_utf8_lossy(&text).into_owned(), seen)
    }

    #[test]
    fn markers_are_cut_and_told_in_order() {
        let (text, seen) = cleaned("hello {{counter}} mid {{value:42}} end");
        assert_eq!(text, "hello  mid  end");
        assert_eq!(seen, ["counter", "value=42"]);
        assert_eq!(cleaned("{{a}}{{b:}}{{c:007}}").1, ["a", "b", "c=007"]);
        assert_eq!(cleaned("{{counter42}}").1, ["counter42"]);
        assert_eq!(
            cleaned("{{_:18446744073709551616}}").1,
            ["_=18446744073709551616"]
        );
        assert_eq!(cleaned("{{{a}}}"), ("{}".into(), vec!["a".into()]));
        assert_eq!(cleaned("{{a{{b}}}}"), ("{{a}}".into(), vec!["b".into()]));
        assert_eq!(
            cleaned("{{ab{{c}}{{d}}"),
            ("{{ab".into(), vec!["c".into(), "d".into()])
        );
    }

    #[test]
    fn what_only_looks_like_a_marker_stays() {
        for text in [
            "{{neg:-5}}",
            "{{flt:3.14}}",
            "{{a b}}",
            "{{a:b}}",
            "{{:5}}",
            "{{}}",
            "{{a::1}}",
            "{{a}",
            "{{a:1",
            "{{",
            "{",
            "{{é}}",
            "{{__NEW_RUN_2025-01-01_00-00-00}}",
        ] {
            assert_eq!(cleaned(text), (text.to_owned(), vec![]));
        }
    }

    #[test]
    fn what_may_become_a_marker_is_not_settled() {
        for (text, settled) in [
            ("abc", 3),
            ("ab{", 2),
            ("ab{{", 2),
            ("ab{{key", 2),
            ("ab{{key:", 2),
            ("ab{{key:12", 2),
            ("ab{{key:12}", 2),
            ("ab{{key:12} ", 12),
            ("{{{", 1),
        ] {
            let mut bytes = text.as_bytes().to_vec();
            let got = cut(&mut bytes, 0, Rest::More, |_, _| {});
            assert_eq!((got, bytes.len()), (settled, text.len()), "{text}");
        }
        let mut endless = b"{{".to_vec();
        endless.resize(MARKER_MAX, b'a');
        let settled = cut(&mut endless, 0, Rest::More, |_, _| {});
        assert_eq!(settled, MARKER_MAX);
    }

    #[test]
    fn sums_keep_the_order_of_one_key() {
        let mut marks = Marks::default();
        for (key, digits) in [
            ("a", None),
            ("b", None),
            ("a", None),
            ("a", Some("7")),
            ("a", None),
            ("b", None),
            ("a", None),
        ] {
            marks.add(key.as_bytes(), digits.map(str::as_bytes));
        }
        let expected = [
            ("a", CountKind::Increment(2)),
            ("b", CountKind::Increment(2)),
            ("a", CountKind::Set("7".into())),
            ("a", CountKind::Increment(2)),
        ];
        assert_eq!(
            marks.take(),
            expected.map(|(key, what)| (key.to_owned(), what))
        );
        assert!(marks.is_empty());
    }

    #[test]
    fn pools_by_the_longest_property() {
        let set = |digits: &str| CountKind::Set(digits.to_owned());
        let once = CountKind::Increment(1);
        for (key, what, expected) in [
            (
                "__healthpool__api_beats",
                &once,
                Some(("api", BeatKind::Beats(1))),
            ),
            (
                "__healthpool__api_beats",
                &set("9"),
                Some(("api", BeatKind::SetBeats(9))),
            ),
            (
                "__healthpool__a_cap_depletion_rate",
                &set("5"),
                Some(("a_cap", BeatKind::Set(PoolProperty::DepletionRate, 5))),
            ),
            ("__healthpool___init", &set("99999999999999999999"), None),
            (
                "__healthpool____init",
                &set("99999999999999999999"),
                Some(("_", BeatKind::Set(PoolProperty::Init, i64::MAX))),
            ),
            ("__healthpool__api_init", &once, None),
            ("__healthpool__api_running", &set("1"), None),
            ("__healthpool__init", &set("1"), None),
            ("healthpool__api_init", &set("1"), None),
        ] {
            assert_eq!(beat(key, what), expected, "{key}");
        }
    }
}
