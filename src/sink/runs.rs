//! run markers that come and go → which runs are open.
//!
//! A run is open from the moment its start marker is told to the sink until its end marker
//! is delivered, or stands in the journal of an earlier life. What is open when an agent is
//! killed is noted on the disk, so that the next one can close it: one line per stream,
//! `<open|closed> <kind> <max_len> <order> <stream>`, and a last line that says that the note
//! is whole.
//!
//! The order is the marker's place in its stream, as the journal counts: the journal may still
//! hold the markers of runs that are long over, and only a later one says something new. That
//! is also why closed runs are noted.
//!
//! Notes are numbered. A start marker is sent only once a note that knows its run has been
//! taken ([`super::shelf`]): an agent that is killed a moment later leaves no run open.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::record::{RunMark, StreamKind, Streams, Trim};

#[derive(Debug, Default)]
pub struct Runs {
    /// By name and kind.
    last: BTreeMap<(Arc<str>, &'static str), Last>,
    changed: bool,
    /// Of the last note that was made.
    number: u64,
}

/// The last marker of a stream.
#[derive(Clone, Copy, Debug)]
struct Last {
    mark: RunMark,
    order: u64,
    max_len: u64,
}

/// What is open now, for the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub number: u64,
    pub text: Vec<u8>,
}

/// The last line of a note.
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
            if let Some((key, last)) = read_line(line) {
                runs.last.insert(key, last);
            }
        }
        runs
    }

    pub fn mark(&mut self, streams: &Streams, kind: StreamKind, order: u64, mark: RunMark) {
        let key = (Arc::clone(streams.name()), kind.as_str());
        // An end that is delivered late must not close the next run; what the journal still
        // holds of a run that is over must not open it again.
        if self.last.get(&key).is_some_and(|last| last.order > order) {
            return;
        }
        let max_len = streams.trim.max_len;
        let last = Last {
            mark,
            order,
            max_len,
        };
        self.last.insert(key, last);
        self.changed = true;
    }

    /// `arrived` says how far a stream's orders have come: those of a journal that is gone
    /// count no more.
    pub fn begin_anew(&mut self, arrived: impl Fn(&str, &'static str) -> u64) {
        self.changed = true;
        self.last.retain(|(name, kind), last| {
            let arrived = arrived(name, kind);
            last.order = last.order.min(arrived);
            match last.mark {
                RunMark::Begins => true,
                RunMark::Ends => last.order < arrived,
            }
        });
    }

    /// The streams whose run is open.
    pub fn open(&self) -> Vec<(Arc<Streams>, StreamKind)> {
        let mut open: Vec<(Arc<Streams>, StreamKind)> = Vec::new();
        for ((name, kind), last) in &self.last {
            let kind = KINDS.iter().find(|known| known.as_str() == *kind);
            let (Some(kind), RunMark::Begins) = (kind, last.mark) else {
                continue;
            };
            let streams = match open.last() {
                Some((streams, _)) if streams.name() == name => Arc::clone(streams),
                _ => {
                    let max_len = last.max_len;
                    Streams::new(name, Trim { max_len })
                }
            };
            open.push((streams, *kind));
        }
        open
    }

    /// The last notes may not stand.
    pub fn note_again(&mut self) {
        self.changed = true;
    }

    /// What to note, where that has changed.
    pub fn note(&mut self) -> Option<Note> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut text = String::new();
        for ((name, kind), last) in &self.last {
            let word = word(last.mark);
            let (max_len, order) = (last.max_len, last.order);
            text.push_str(&format!("{word} {kind} {max_len} {order} {name}\n"));
        }
        text.push_str(WHOLE);
        self.number += 1;
        Some(Note {
            number: self.number,
            text: text.into_bytes(),
        })
    }
}

fn word(mark: RunMark) -> &'static str {
    match mark {
        RunMark::Begins => "open",
        RunMark::Ends => "closed",
    }
}

fn read_line(line: &str) -> Option<((Arc<str>, &'static str), Last)> {
    let mut words = line.splitn(5, ' ');
    let found = words.next()?;
    let mark = [RunMark::Begins, RunMark::Ends]
        .into_iter()
        .find(|mark| word(*mark) == found)?;
    let found = words.next()?;
    let kind = KINDS.iter().find(|kind| kind.as_str() == found)?.as_str();
    let max_len = words.next()?.parse().ok()?;
    let order = words.next()?.parse().ok()?;
    let name = words.next().filter(|name| !name.is_empty())?;
    let last = Last {
        mark,
        order,
        max_len,
    };
    Some(((Arc::from(name), kind), last))
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
        assert_eq!(
            note.text,
            b"open info 5 0 a b\nclosed status 5 7 a b\nwhole\n"
        );
        for cut in 0..note.text.len() {
            assert!(!Runs::is_whole(&note.text[..cut]));
        }
        assert!(Runs::is_whole(&note.text));
        let mut again = Runs::read(&note.text);
        let left = again.open();
        assert_eq!(left.len(), 1);
        assert_eq!(&**left[0].0.name(), "a b");
        again.mark(&streams, StreamKind::Info, 10, RunMark::Begins);
        again.mark(&streams, StreamKind::Info, 9, RunMark::Ends);
        assert_eq!(again.open().len(), 1, "the new run is open");
        again.mark(&streams, StreamKind::Info, 11, RunMark::Ends);
        assert!(again.open().is_empty());
    }

    #[test]
    fn what_the_journal_still_holds_of_earlier_runs_changes_nothing() {
        let streams = Streams::new("s", Trim { max_len: 0 });
        let note = b"open info 0 12 s\nclosed status 0 9 s\nwhole\n";
        let mut runs = Runs::read(note);
        runs.mark(&streams, StreamKind::Info, 11, RunMark::Ends);
        runs.mark(&streams, StreamKind::Status, 8, RunMark::Begins);
        let open = runs.open();
        assert_eq!(open.len(), 1);
        assert_eq!(open[0].1, StreamKind::Info);
        // The journal is empty by now: orders begin anew, and a new end closes the run.
        runs.begin_anew(|_, _| 0);
        runs.mark(&streams, StreamKind::Info, 0, RunMark::Ends);
        runs.mark(&streams, StreamKind::Status, 0, RunMark::Begins);
        assert_eq!(runs.open()[0].1, StreamKind::Status);
    }
}
