//! run markers that come and go → which runs are open.
//!
//! A run is open from the moment its start marker is told to the sink until its end marker
//! is delivered, or stands in the journal of an earlier life. What is open when an agent is
//! killed is noted on the disk, so that the next one can close it: one line per stream,
//! `<kind> <max_len> <stream>`, and a last line that says that the note is whole.
//!
//! Notes are numbered. A start marker is sent only once a note that knows its run has been
//! taken ([`super::shelf`]): an agent that is killed a moment later leaves no run open.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::record::{RunMark, StreamKind, Streams, Trim};

#[derive(Debug, Default)]
pub struct Runs {
    /// Name and kind → place of the start marker in the stream's order, and `max_len`.
    open: BTreeMap<(Arc<str>, &'static str), (u64, u64)>,
    changed: bool,
    /// Of the last note that was made.
    number: u64,
}

/// What is open now, for the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub number: u64,
    pub text: Vec<u8>,
}

/// The last line: no stream has this kind.
const WHOLE: &str = "whole\n";

/// Run markers go to these two.
const KINDS: [StreamKind; 2] = [StreamKind::Info, StreamKind::Status];

impl Runs {
    /// A note of which nothing is missing.
    pub fn is_whole(bytes: &[u8]) -> bool {
        bytes.ends_with(WHOLE.as_bytes())
    }

    /// The number of the note that will know of what has come until now.
    pub fn next_note(&self) -> u64 {
        self.number + 1
    }

    /// What an earlier life noted.
    pub fn read(bytes: &[u8]) -> Runs {
        let mut runs = Runs::default();
        for line in String::from_utf8_lossy(bytes).lines() {
            let mut words = line.splitn(3, ' ');
            let (Some(kind), Some(max_len), Some(name)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let kind = KINDS.iter().find(|known| known.as_str() == kind);
            if let (Some(kind), Ok(max_len), false) = (kind, max_len.parse(), name.is_empty()) {
                let key = (Arc::from(name), kind.as_str());
                runs.open.insert(key, (0, max_len));
            }
        }
        runs
    }

    pub fn mark(&mut self, streams: &Streams, kind: StreamKind, order: u64, mark: RunMark) {
        let key = (Arc::clone(streams.name()), kind.as_str());
        match mark {
            RunMark::Begins => {
                self.open.insert(key, (order, streams.trim.max_len));
                self.changed = true;
            }
            RunMark::Ends => {
                // An end that is delivered late must not close the next run.
                if self
                    .open
                    .get(&key)
                    .is_some_and(|(begun, _)| *begun <= order)
                {
                    self.open.remove(&key);
                    self.changed = true;
                }
            }
        }
    }

    /// The streams that an earlier life left open.
    pub fn left_open(&self) -> Vec<(Arc<Streams>, StreamKind)> {
        let mut left: Vec<(Arc<Streams>, StreamKind)> = Vec::new();
        for ((name, kind), (_, max_len)) in &self.open {
            let Some(kind) = KINDS.iter().find(|known| known.as_str() == *kind) else {
                continue;
            };
            let streams = match left.last() {
                Some((streams, _)) if streams.name() == name => Arc::clone(streams),
                _ => Streams::new(name, Trim { max_len: *max_len }),
            };
            left.push((streams, *kind));
        }
        left
    }

    /// What to note, where that has changed.
    pub fn note(&mut self) -> Option<Note> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut text = String::new();
        for ((name, kind), (_, max_len)) in &self.open {
            text.push_str(&format!("{kind} {max_len} {name}\n"));
        }
        text.push_str(WHOLE);
        self.number += 1;
        Some(Note {
            number: self.number,
            text: text.into_bytes(),
        })
    }

    /// To be noted again, whatever the disk has.
    pub fn renote(&mut self) {
        self.changed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_survives_and_late_ends_close_nothing_new() {
        let streams = Streams::new("a b", Trim { max_len: 5 });
        let mut runs = Runs::default();
        assert_eq!(runs.note(), None);
        runs.mark(&streams, StreamKind::Info, 0, RunMark::Begins);
        runs.mark(&streams, StreamKind::Status, 0, RunMark::Begins);
        runs.mark(&streams, StreamKind::Status, 7, RunMark::Ends);
        assert_eq!(runs.next_note(), 1);
        let note = runs.note().unwrap();
        assert_eq!(note.number, 1);
        assert_eq!(note.text, b"info 5 a b\nwhole\n");
        for cut in 0..note.text.len() {
            assert!(!Runs::is_whole(&note.text[..cut]));
        }
        assert!(Runs::is_whole(&note.text));
        let mut again = Runs::read(&note.text);
        let left = again.left_open();
        assert_eq!(left.len(), 1);
        assert_eq!(&**left[0].0.name(), "a b");
        again.mark(&streams, StreamKind::Info, 10, RunMark::Begins);
        again.mark(&streams, StreamKind::Info, 9, RunMark::Ends);
        assert_eq!(again.left_open().len(), 1, "the new run is open");
        again.mark(&streams, StreamKind::Info, 11, RunMark::Ends);
        assert_eq!(again.note().unwrap().text, b"whole\n");
    }
}
