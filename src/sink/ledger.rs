//! what was written, delivered, given up → which segments may go, and whose entries next.
//!
//! Keeps, for every segment, how much of which stream it holds, and for every stream the
//! order below which everything is delivered. A segment whose every stream is past it is
//! dead. When the journal outgrows its bound, the stream that holds most gives up its oldest
//! part, lines before anything else; a segment that is mostly dead by then is written anew
//! with what lives (`Relief::Compact`), so that one quiet stream cannot hold a whole segment.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::segment::Tag;
use crate::record::StreamKind;

/// Bytes of names and claims that a segment needs anyway: not worth writing it anew for.
const SLACK: u64 = 4096;

/// Of one stream in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Orders, from the first to behind the last.
    pub first: u64,
    pub end: u64,
    pub entries: u64,
    pub bytes: u64,
    /// Unix milliseconds at which the entries were read.
    pub from_ms: u64,
    pub to_ms: u64,
}

impl Extent {
    /// The part of it that is not below `floor`, in proportion.
    fn live(&self, floor: u64) -> (u64, u64) {
        if floor <= self.first {
            return (self.entries, self.bytes);
        }
        if floor >= self.end {
            return (0, 0);
        }
        let span = u128::from(self.end - self.first);
        let left = u128::from(self.end - floor);
        let part = |whole: u64| (u128::from(whole) * left / span) as u64;
        (part(self.entries).max(1), part(self.bytes))
    }
}

#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// Bytes of the file.
    pub size: u64,
    pub extents: HashMap<Tag, Extent>,
}

#[derive(Clone, Debug)]
struct Stream {
    kind: StreamKind,
    floor: u64,
}

#[derive(Debug, Default)]
pub struct Ledger {
    segments: BTreeMap<u64, Segment>,
    streams: HashMap<Tag, Stream>,
}

/// A stream's oldest part was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drop {
    pub tag: Tag,
    /// Everything below is gone.
    pub below: u64,
    pub count: u64,
    pub from_ms: u64,
    pub to_ms: u64,
}

/// What makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relief {
    /// Delete this segment: nothing in it lives.
    Delete(u64),
    /// Write this segment anew with what lives in it.
    Compact(u64),
    Dropped(Drop),
}

impl Ledger {
    pub fn add_stream(&mut self, tag: Tag, kind: StreamKind) {
        self.streams.entry(tag).or_insert(Stream { kind, floor: 0 });
    }

    pub fn knows(&self, tag: Tag) -> bool {
        self.streams.contains_key(&tag)
    }

    /// A file of `size` bytes now holds this segment, with nothing in it that is not told.
    pub fn resized(&mut self, number: u64, size: u64) {
        self.segments.entry(number).or_default().size = size;
    }

    /// Entries were written to a segment.
    pub fn wrote(&mut self, number: u64, tag: Tag, wrote: Extent) {
        let extents = &mut self.segments.entry(number).or_default().extents;
        match extents.get_mut(&tag) {
            Some(extent) => {
                extent.first = extent.first.min(wrote.first);
                extent.end = extent.end.max(wrote.end);
                extent.entries += wrote.entries;
                extent.bytes += wrote.bytes;
                extent.from_ms = extent.from_ms.min(wrote.from_ms);
                extent.to_ms = extent.to_ms.max(wrote.to_ms);
            }
            None => {
                extents.insert(tag, wrote);
            }
        }
    }

    /// Everything of a stream below `below` is delivered.
    pub fn done(&mut self, tag: Tag, below: u64) {
        if let Some(stream) = self.streams.get_mut(&tag) {
            stream.floor = stream.floor.max(below);
        }
    }

    pub fn floor(&self, tag: Tag) -> u64 {
        self.streams.get(&tag).map_or(0, |stream| stream.floor)
    }

    pub fn size(&self) -> u64 {
        self.segments.values().map(|segment| segment.size).sum()
    }

    pub fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.segments.keys().copied()
    }

    pub fn forget(&mut self, number: u64) {
        self.segments.remove(&number);
    }

    /// A segment was written anew: what lives in it is told again.
    pub fn emptied(&mut self, number: u64) {
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.extents.clear();
        }
    }

    fn live_bytes(&self, segment: &Segment) -> u64 {
        let live = |(tag, extent): (&Tag, &Extent)| extent.live(self.floor(*tag)).1;
        segment.extents.iter().map(live).sum()
    }

    fn is_dead(&self, segment: &Segment) -> bool {
        segment
            .extents
            .iter()
            .all(|(tag, extent)| extent.end <= self.floor(*tag))
    }

    /// Segments in which nothing lives, oldest first. The newest one knows every claim and
    /// cursor: it goes only with all the others.
    pub fn dead(&self) -> Vec<u64> {
        let mut dead: Vec<u64> = self
            .segments
            .iter()
            .filter(|(_, segment)| self.is_dead(segment))
            .map(|(number, _)| *number)
            .collect();
        if dead.len() < self.segments.len() && dead.last() == self.segments.keys().last() {
            dead.pop();
        }
        dead
    }

    /// Live entries and bytes of one stream.
    pub fn holds(&self, tag: Tag) -> (u64, u64) {
        let floor = self.floor(tag);
        self.segments
            .values()
            .filter_map(|segment| segment.extents.get(&tag))
            .map(|extent| extent.live(floor))
            .fold((0, 0), |sum, live| (sum.0 + live.0, sum.1 + live.1))
    }

    /// Behind the highest order that was ever written of a stream.
    pub fn end(&self, tag: Tag) -> u64 {
        self.segments
            .values()
            .filter_map(|segment| segment.extents.get(&tag))
            .map(|extent| extent.end)
            .max()
            .unwrap_or(0)
            .max(self.floor(tag))
    }

    /// Unix milliseconds of the oldest and the newest entry of a stream.
    pub fn span(&self, tag: Tag) -> Range<u64> {
        let floor = self.floor(tag);
        let extents = self
            .segments
            .values()
            .filter_map(|segment| segment.extents.get(&tag))
            .filter(|extent| extent.end > floor);
        let (mut from, mut to) = (u64::MAX, 0);
        for extent in extents {
            from = from.min(extent.from_ms);
            to = to.max(extent.to_ms);
        }
        from.min(to)..to
    }

    /// Behind the last order of a stream in one segment.
    pub fn behind(&self, number: u64, tag: Tag) -> u64 {
        self.segments
            .get(&number)
            .and_then(|segment| segment.extents.get(&tag))
            .map_or(u64::MAX, |extent| extent.end)
    }

    /// The segment in which the next entries of a stream stand from `order` on: the oldest one
    /// that has them, unless somebody has renamed segments.
    pub fn from(&self, tag: Tag, order: u64) -> Option<u64> {
        let has = |(number, segment): (&u64, &Segment)| {
            let extent = segment.extents.get(&tag)?;
            (extent.end > order).then_some((extent.first.max(order), *number))
        };
        let (_, number) = self.segments.iter().filter_map(has).min()?;
        Some(number)
    }

    /// The next step to make the journal smaller; never touches `head`, the segment that is
    /// being written. `None` when nothing can be done.
    pub fn relieve(&mut self, head: u64) -> Option<Relief> {
        let old = || self.segments.iter().filter(|(number, _)| **number != head);
        if let Some((number, _)) = old().find(|(_, segment)| self.is_dead(segment)) {
            return Some(Relief::Delete(*number));
        }
        if let Some((number, _)) =
            old().find(|(_, segment)| self.live_bytes(segment) * 2 + SLACK < segment.size)
        {
            return Some(Relief::Compact(*number));
        }
        let lines = |kind: StreamKind| kind == StreamKind::Info;
        let victim = self
            .fullest(head, lines)
            .or_else(|| self.fullest(head, |kind| !lines(kind)))?;
        let floor = self.floor(victim);
        let extent = self
            .segments
            .iter()
            .filter(|(number, _)| **number != head)
            .filter_map(|(_, segment)| segment.extents.get(&victim))
            .find(|extent| extent.end > floor)
            .copied()?;
        self.done(victim, extent.end);
        Some(Relief::Dropped(Drop {
            tag: victim,
            below: extent.end,
            count: extent.live(floor).0,
            from_ms: extent.from_ms,
            to_ms: extent.to_ms,
        }))
    }

    fn fullest(&self, head: u64, wanted: impl Fn(StreamKind) -> bool) -> Option<Tag> {
        let old = |tag: &Tag| {
            let floor = self.floor(*tag);
            self.segments.iter().any(|(number, segment)| {
                *number != head
                    && segment
                        .extents
                        .get(tag)
                        .is_some_and(|extent| extent.end > floor)
            })
        };
        self.streams
            .iter()
            .filter(|(tag, stream)| wanted(stream.kind) && old(tag))
            .map(|(tag, _)| *tag)
            .max_by_key(|tag| self.holds(*tag).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(first: u64, end: u64, bytes: u64) -> Extent {
        Extent {
            first,
            end,
            entries: end - first,
            bytes,
            from_ms: first,
            to_ms: end,
        }
    }

    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.add_stream(0, StreamKind::Info);
        ledger.add_stream(1, StreamKind::Info);
        ledger.add_stream(2, StreamKind::Status);
        for number in 0..3 {
            ledger.resized(number, 100_000);
            ledger.wrote(number, 0, extent(number * 10, number * 10 + 10, 90_000));
            ledger.wrote(number, 1, extent(number, number + 1, 5_000));
            ledger.wrote(number, 2, extent(number, number + 1, 5_000));
        }
        ledger
    }

    #[test]
    fn a_segment_dies_when_every_stream_is_past_it() {
        let mut ledger = ledger();
        ledger.done(0, 10);
        ledger.done(1, 1);
        assert!(ledger.dead().is_empty());
        ledger.done(2, 1);
        assert_eq!(ledger.dead(), [0]);
    }

    #[test]
    fn the_chatterbox_gives_up_first_and_quiet_streams_survive() {
        let mut ledger = ledger();
        let Some(Relief::Dropped(drop)) = ledger.relieve(2) else {
            panic!("the chatterbox drops");
        };
        assert_eq!((drop.tag, drop.below, drop.count), (0, 10, 10));
        assert_eq!(ledger.relieve(2), Some(Relief::Compact(0)));
        ledger.emptied(0);
        ledger.wrote(0, 1, extent(0, 1, 5_000));
        ledger.resized(0, 6_000);
        let Some(Relief::Dropped(drop)) = ledger.relieve(2) else {
            panic!("again");
        };
        assert_eq!((drop.tag, drop.below), (0, 20));
    }

    #[test]
    fn the_head_is_never_touched_and_lines_go_before_words() {
        let mut ledger = ledger();
        let mut dropped = Vec::new();
        loop {
            match ledger.relieve(2) {
                Some(Relief::Dropped(drop)) => dropped.push(drop.tag),
                Some(Relief::Delete(number)) => ledger.forget(number),
                Some(Relief::Compact(number)) => {
                    let size = ledger.segments[&number].size;
                    ledger.resized(number, size / 2);
                }
                None => break,
            }
        }
        assert_eq!(ledger.numbers().collect::<Vec<_>>(), [2]);
        let words = dropped.iter().position(|tag| *tag == 2).unwrap();
        assert!(dropped[words..].iter().all(|tag| *tag == 2), "{dropped:?}");
    }
}
