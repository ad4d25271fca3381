//! Beats of every pool ↔ the text that an agent leaves to the next one.
//!
//! `beats` counts on across agents. What the last agent knew is kept by stream and category until a pool of
//! that name comes to be, which for a pool that is declared by markers may be a while.
//!
//! A text is a line with its sequence number and the checksum of the rest, then JSON:
//! `{"<stream>": {"<category>": <beats>}}`. It is written over an older one of the two that there are, so a power
//! loss costs at most the newer.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::checksum::checksum;

/// What begins each text.
const HEAD: &str = "beats 1";

/// Pools that nobody asked for yet are kept in this number: names that change with every start must not
/// add up.
const UNASKED: usize = 1024;

/// A text that is longer is not ours.
pub const LONGEST: u64 = 16 << 20;

/// Stream → category → beats.
pub type Beats = BTreeMap<String, BTreeMap<String, i64>>;

/// What the last agent left and no pool took over yet.
#[derive(Debug, Default)]
pub struct Kept {
    beats: Beats,
}

impl Kept {
    pub fn new(beats: Beats) -> Kept {
        Kept { beats }
    }

    /// The beats with which a new pool begins; from now on they are that pool's to tell.
    pub fn take(&mut self, stream: &str, category: &str) -> i64 {
        let Some(categories) = self.beats.get_mut(stream) else {
            return 0;
        };
        let beats = categories.remove(category).unwrap_or(0);
        if categories.is_empty() {
            self.beats.remove(stream);
        }
        beats
    }

    /// A stream is gone, and with it everything that was to be kept for it.
    pub fn forget(&mut self, stream: &str) {
        self.beats.remove(stream);
    }

    /// What nobody asked for yet, for the next agent.
    pub fn add_unasked(&self, beats: &mut Beats) {
        let each = self.beats.iter().flat_map(|(stream, categories)| {
            categories
                .iter()
                .map(move |(category, count)| (stream, category, *count))
        });
        for (stream, category, count) in each.take(UNASKED) {
            beats
                .entry(stream.clone())
                .or_default()
                .entry(category.clone())
                .or_insert(count);
        }
    }
}

/// The text number `sequence`.
pub fn written(sequence: u64, beats: &Beats) -> String {
    let body = serde_json::to_string(beats).unwrap_or_default();
    let mut text = String::with_capacity(body.len() + 64);
    // Nothing fails when a string is written to.
    let _ = writeln!(
        text,
        "{HEAD} {sequence} {} {:08x}",
        body.len(),
        checksum(body.as_bytes())
    );
    text.push_str(&body);
    text.push('\n');
    text
}

/// A text's number and beats, unless it was cut or damaged. What follows it (the rest of a longer one) is
/// not looked at.
pub fn read(text: &[u8]) -> Option<(u64, Beats)> {
    let end = text.iter().position(|byte| *byte == b'\n')?;
    let head = std::str::from_utf8(&text[..end]).ok()?;
    let mut words = head.strip_prefix(HEAD)?.split_ascii_whitespace();
    let sequence = words.next()?.parse().ok()?;
    let length: usize = words.next()?.parse().ok()?;
    let sum = u32::from_str_radix(words.next()?, 16).ok()?;
    let body = text.get(end + 1..)?.get(..length)?;
    if checksum(body) != sum {
        return None;
    }
    Some((sequence, serde_json::from_slice(body).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(all: &[(&str, &str, i64)]) -> Beats {
        let mut beats = Beats::new();
        for (stream, category, count) in all {
            let of_stream = beats.entry((*stream).to_owned()).or_default();
            of_stream.insert((*category).to_owned(), *count);
        }
        beats
    }

    #[test]
    fn a_text_is_read_as_it_was_written_also_over_a_longer_one() {
        let long = beats(&[
            ("a", "process", 7),
            ("a", "ü \"\n{", i64::MAX),
            ("b", "", 0),
        ]);
        let text = written(3, &long);
        assert_eq!(read(text.as_bytes()), Some((3, long)));
        let short = beats(&[("a", "process", 8)]);
        let mut over = written(4, &short).into_bytes();
        over.extend_from_slice(&text.as_bytes()[over.len()..]);
        assert_eq!(read(&over), Some((4, short)));
    }

    #[test]
    fn a_damaged_text_is_none_and_nothing_panics() {
        let text = written(3, &beats(&[("a", "process", 7), ("b", "api", 12)]));
        let whole = text.trim_end().len();
        for cut in 0..whole {
            assert_eq!(read(&text.as_bytes()[..cut]), None, "cut at {cut}");
        }
        let body = text.find('{').unwrap();
        for place in 0..whole {
            let mut bytes = text.clone().into_bytes();
            bytes[place] ^= 4;
            let seen = read(&bytes);
            // The number alone has no checksum: it only says which of two is the newer.
            if place >= body {
                assert_eq!(seen, None, "changed at {place}");
            }
        }
        assert_eq!(read(&[0; 4096]), None);
        assert_eq!(read(b"beats 1 1 99999999999999999999 0\n{}"), None);
    }

    #[test]
    fn what_is_asked_for_is_given_once_and_the_rest_stays() {
        let mut kept = Kept::new(beats(&[
            ("a", "api", 5),
            ("a", "process", 9),
            ("b", "x", 1),
        ]));
        assert_eq!(kept.take("a", "api"), 5);
        assert_eq!(kept.take("a", "api"), 0);
        assert_eq!(kept.take("c", "api"), 0);
        let mut next = beats(&[("a", "api", 6)]);
        kept.add_unasked(&mut next);
        assert_eq!(
            next,
            beats(&[("a", "api", 6), ("a", "process", 9), ("b", "x", 1)])
        );
        kept.forget("b");
        let mut next = Beats::new();
        kept.add_unasked(&mut next);
        assert_eq!(next, beats(&[("a", "process", 9)]));
    }

    #[test]
    fn what_nobody_asks_for_is_bounded() {
        let mut many = Beats::new();
        let categories = many.entry("a".to_owned()).or_default();
        for number in 0..20_000 {
            categories.insert(format!("pool-{number}"), 1);
        }
        let mut next = Beats::new();
        Kept::new(many).add_unasked(&mut next);
        assert_eq!(next["a"].len(), UNASKED);
    }
}
