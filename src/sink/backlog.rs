//! records → streams of parcels, within a bound of memory.
//!
//! The one place where an entry can wait or be dropped, and every drop is counted: in the
//! service's tally, in the total, and in one `dropped` entry of its `status` stream that
//! says how many and from when to when. The stream that holds most loses first, so that one
//! chatterbox cannot push out the others' lines; life-cycle entries go last.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::ledger::Drop;
use super::orders::{Left, ReadBack};
use super::runs::Runs;
use super::segment::Tag;
use super::shelf::Shelf;
use super::stream::{Body, Doubt, Parcel, Stream};
use crate::record::{Entry, Lines, RunMark, StatusEvent, StreamKind, Streams};

#[derive(Debug)]
pub struct Backlog {
    key_prefix: String,
    /// Bytes of memory.
    bound: usize,
    streams: Vec<Stream>,
    index: HashMap<(Arc<str>, StreamKind), usize>,
    /// Bytes of everything that is not acknowledged, in flight or waiting.
    held: usize,
    entries: u64,
    losses: HashMap<Arc<str>, Loss>,
    dropped: u64,
    /// Entries that ever came.
    pushed: u64,
    /// Bytes of what was acknowledged a moment ago; beside `held`, at most a quarter of the
    /// bound.
    recent: usize,
    pub runs: Runs,
    purpose: Purpose,
}

/// What the journal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To keep what Redis shall get: whatever it gives up is lost, and counted.
    Delivery,
    /// There is no Redis: to keep the newest. What it gives up for them is only old.
    Store,
}

/// What a service lost and was not told yet.
#[derive(Debug)]
struct Loss {
    streams: Arc<Streams>,
    count: u64,
    from_ms: u64,
    to_ms: u64,
}

/// What is lost when nobody waits for Redis any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unwritten {
    /// Of services.
    pub lines: u64,
    /// Of ours about them: markers, states, errors.
    pub entries: u64,
}

impl Backlog {
    pub fn new(key_prefix: &str, bound: usize) -> Backlog {
        Backlog {
            key_prefix: key_prefix.to_owned(),
            bound,
            streams: Vec::new(),
            index: HashMap::new(),
            held: 0,
            entries: 0,
            losses: HashMap::new(),
            dropped: 0,
            pushed: 0,
            recent: 0,
            runs: Runs::default(),
            purpose: Purpose::Delivery,
        }
    }

    pub fn serve(&mut self, purpose: Purpose) {
        self.purpose = purpose;
    }

    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    pub fn push_lines(&mut self, lines: Lines, now: Instant) {
        if lines.spans.is_empty() {
            return;
        }
        self.entries += lines.spans.len() as u64;
        self.pushed += lines.spans.len() as u64;
        let streams = Arc::clone(&lines.streams);
        self.held += self
            .stream(&streams, StreamKind::Info)
            .push_lines(lines, now);
    }

    pub fn push_entry(&mut self, entry: Entry, now: Instant) {
        self.entries += 1;
        self.pushed += 1;
        let streams = Arc::clone(&entry.streams);
        if let Some(mark @ RunMark::Begins) = entry.run_mark() {
            let note = self.runs.next_note();
            let stream = self.stream(&streams, entry.kind);
            let order = stream.arrived();
            stream.hold_for_note(order, note);
            self.runs.mark(&streams, entry.kind, order, mark);
        }
        self.held += self.stream(&streams, entry.kind).push_entry(entry, now);
    }

    /// What an earlier life left open: nothing of these streams is sent before that is noted
    /// once more, because what was noted of them may have been lost.
    pub fn take_over_runs(&mut self, runs: Runs) {
        self.runs = runs;
        let arrived: HashMap<(&str, &str), u64> = self
            .streams
            .iter()
            .map(|stream| {
                let key = (&**stream.streams.name(), stream.kind.as_str());
                (key, stream.arrived())
            })
            .collect();
        self.runs
            .begin_anew(|name, kind| arrived.get(&(name, kind)).copied().unwrap_or(0));
        let note = self.runs.next_note();
        for (streams, kind) in self.runs.open() {
            self.stream(&streams, kind).hold_for_note(0, note);
        }
    }

    /// The disk knows of the runs in this note.
    pub fn runs_noted(&mut self, note: u64) {
        for stream in &mut self.streams {
            stream.noted(note);
        }
    }

    fn stream(&mut self, streams: &Arc<Streams>, kind: StreamKind) -> &mut Stream {
        let key = (Arc::clone(streams.name()), kind);
        let next = self.streams.len();
        let index = *self.index.entry(key).or_insert(next);
        if index == next {
            self.streams
                .push(Stream::new(streams, kind, &self.key_prefix));
        }
        let stream = &mut self.streams[index];
        if !Arc::ptr_eq(&stream.streams, streams) {
            // A reload gave the service new settings: what comes from now on follows them.
            stream.adopt(streams);
        }
        stream
    }

    pub fn streams(&mut self) -> &mut [Stream] {
        &mut self.streams
    }

    pub fn view(&self) -> &[Stream] {
        &self.streams
    }

    /// Bytes and entries that Redis has not acknowledged.
    pub fn held(&self) -> (usize, u64) {
        (self.held, self.entries)
    }

    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Entries that ever came: tells whether anything came since.
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    /// Bytes of memory.
    pub fn bound(&self) -> usize {
        self.bound
    }

    /// Bytes that one stream may have in memory ahead of what is only on the disk: all of
    /// them together a quarter of the bound.
    pub fn share(&self) -> usize {
        self.bound / 4 / self.streams.len().max(1)
    }

    pub fn has_losses(&self) -> bool {
        !self.losses.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        self.entries == 0 && self.losses.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.held >= self.bound
    }

    /// The parcel needs no memory any more: delivered or given up.
    pub fn release(&mut self, parcel: &Parcel) {
        self.held = self.held.saturating_sub(parcel.cost());
        self.entries = self.entries.saturating_sub(parcel.len() as u64);
        if let Body::Entry(entry) = parcel.body()
            && let Some(mark @ RunMark::Ends) = entry.run_mark()
        {
            self.runs
                .mark(&entry.streams, entry.kind, parcel.order(), mark);
        }
    }

    /// Delivered: kept a moment longer, in case Redis forgets it.
    pub fn acknowledged(&mut self, index: usize, parcel: Parcel, now: Instant) {
        self.release(&parcel);
        let Some(stream) = self.streams.get_mut(index) else {
            return;
        };
        if parcel.claim().is_none() {
            return;
        }
        let before = stream.recent.cost();
        stream.recent.keep(parcel, now, stream.streams.trim.max_len);
        while self.recent + stream.recent.cost() > before + self.bound / 4
            && stream.recent.cost() > 0
        {
            stream.recent.forget_oldest();
        }
        self.recent = self.recent + stream.recent.cost() - before;
    }

    /// Redis answered at `heard`.
    pub fn forget_safe(&mut self, heard: Instant) {
        for stream in &mut self.streams {
            let before = stream.recent.cost();
            stream.recent.forget_safe(heard);
            self.recent = self.recent + stream.recent.cost() - before;
        }
    }

    /// When Redis last acknowledged something that it may still forget.
    pub fn newest_recent(&self) -> Option<Instant> {
        if self.recent == 0 {
            return None;
        }
        self.streams
            .iter()
            .filter_map(|stream| stream.recent.newest())
            .max()
    }

    /// The connection is gone: what was acknowledged a moment ago is to be checked.
    pub fn doubt_recent(&mut self) {
        self.recent = 0;
        for stream in &mut self.streams {
            for parcel in stream.recent.drain().collect::<Vec<_>>() {
                self.held += parcel.cost();
                self.entries += parcel.len() as u64;
                stream.put_back(parcel);
            }
        }
    }

    /// What neither Redis nor the journal has.
    pub fn unwritten(&self) -> Unwritten {
        let mut unwritten = Unwritten::default();
        for stream in &self.streams {
            for parcel in stream.parcels_from(stream.shelf.written) {
                match (parcel.doubt(), parcel.body()) {
                    (Doubt::Acknowledged, _) => {}
                    (Doubt::None | Doubt::Unanswered, Body::Lines { .. }) => {
                        unwritten.lines += parcel.len() as u64;
                    }
                    (Doubt::None | Doubt::Unanswered, Body::Entry(_)) => unwritten.entries += 1,
                }
            }
        }
        unwritten
    }

    /// Entries that Redis never acknowledged.
    pub fn undelivered(&self) -> u64 {
        let rechecked: u64 = self.streams.iter().map(Stream::rechecked).sum();
        self.entries.saturating_sub(rechecked)
    }

    /// What an earlier life left on the disk.
    pub fn revive(&mut self, left: &Left, now: Instant) {
        self.entries += left.entries;
        let stream = self.stream(&left.streams, left.kind);
        stream.begin_at(left.end);
        stream.shelf = Shelf {
            tag: Some(left.tag),
            upto: left.end,
            written: left.end,
            away: match left.entries {
                0 => 0..0,
                _ => left.floor..left.end,
            },
            away_entries: left.entries,
            away_since: Some(now),
            away_ms: left.span.clone(),
            told: left.floor,
            ..Shelf::default()
        };
    }

    /// Lets go of what the journal holds too.
    pub fn put_away(&mut self, now: Instant) {
        let keep = self.share();
        for stream in &mut self.streams {
            let freed = stream.put_away(keep, now);
            self.held = self.held.saturating_sub(freed);
        }
    }

    /// The journal brought a stream's entries back.
    pub fn bring_back(&mut self, tag: Tag, parcels: Vec<Parcel>, upto: u64, read: ReadBack) {
        let Some(index) = self.tagged(tag) else {
            return;
        };
        let span = self.streams[index].shelf.away_ms.clone();
        let (bytes, missing) = self.streams[index].bring_back(parcels, upto);
        self.held += bytes;
        self.entries = self.entries.saturating_sub(missing);
        if read == ReadBack::Damaged {
            self.note_loss(index, missing.max(1), span);
        }
    }

    /// The journal gave a stream's oldest entries up.
    pub fn lose_away(&mut self, drop: &Drop) {
        let Some(index) = self.tagged(drop.tag) else {
            return;
        };
        while let Some(parcel) = self.streams[index].drop_below(drop.below) {
            self.lose(index, &parcel);
        }
        let count = self.streams[index].give_up_away(drop.below);
        self.entries = self.entries.saturating_sub(count);
        self.note_loss(index, count, drop.from_ms..drop.to_ms);
    }

    /// A stream that refuses for good gives up what is away.
    pub fn lose_all_away(&mut self, index: usize) -> u64 {
        let Some(stream) = self.streams.get_mut(index) else {
            return 0;
        };
        let span = stream.shelf.away_ms.clone();
        let count = stream.give_up_away(u64::MAX);
        self.entries = self.entries.saturating_sub(count);
        self.note_loss(index, count, span);
        count
    }

    fn tagged(&self, tag: Tag) -> Option<usize> {
        self.streams
            .iter()
            .position(|stream| stream.shelf.tag == Some(tag))
    }

    /// Something is done that the journal was not told.
    pub fn has_untold(&self) -> bool {
        self.streams
            .iter()
            .any(|stream| stream.shelf.told < stream.shelf.upto)
    }

    /// Beyond what holding up the lines can help: words come all the time, and one chunk of
    /// lines may be larger than a small bound.
    pub fn is_overfull(&self) -> bool {
        const WORDS: usize = 16 << 20;
        self.held >= self.bound.saturating_mul(2).saturating_add(WORDS)
    }

    pub fn is_half_full(&self) -> bool {
        self.held >= self.bound / 2
    }

    /// Gives a parcel up: released, counted, to be told.
    pub fn lose(&mut self, index: usize, parcel: &Parcel) {
        self.release(parcel);
        let at_ms = parcel.at_ms();
        self.note_loss(index, parcel.len() as u64, at_ms..at_ms);
    }

    fn note_loss(&mut self, index: usize, count: u64, span: Range<u64>) {
        if self.purpose == Purpose::Store {
            return;
        }
        let Some(stream) = self.streams.get(index).filter(|_| count > 0) else {
            return;
        };
        self.dropped += count;
        stream.streams.tally.add_dropped(count);
        let loss = self
            .losses
            .entry(Arc::clone(stream.streams.name()))
            .or_insert_with(|| Loss {
                streams: Arc::clone(&stream.streams),
                count: 0,
                from_ms: span.start,
                to_ms: span.end,
            });
        loss.count += count;
        loss.from_ms = loss.from_ms.min(span.start);
        loss.to_ms = loss.to_ms.max(span.end);
    }

    /// Drops the oldest until the bound holds again: lines of the fullest stream first.
    pub fn shrink(&mut self) {
        while self.held > self.bound {
            let lines = self.fullest(|kind| kind == StreamKind::Info);
            let Some(index) = lines.or_else(|| self.fullest(|_| true)) else {
                return;
            };
            let Some(parcel) = self.streams[index].drop_oldest() else {
                return;
            };
            self.lose(index, &parcel);
        }
    }

    fn fullest(&self, wanted: impl Fn(StreamKind) -> bool) -> Option<usize> {
        self.streams
            .iter()
            .enumerate()
            .filter(|(_, stream)| wanted(stream.kind) && stream.has_droppable())
            .max_by_key(|(_, stream)| stream.waiting_bytes())
            .map(|(index, _)| index)
    }

    /// Turns what was lost into `dropped` entries, once there is somebody to tell.
    pub fn tell_losses(&mut self, now: Instant, now_ms: u64) {
        for (_, loss) in std::mem::take(&mut self.losses) {
            let event = StatusEvent::Dropped {
                count: loss.count,
                from_ms: loss.from_ms,
                to_ms: loss.to_ms,
            };
            self.push_entry(Entry::status(&loss.streams, now_ms, &event), now);
        }
    }
}
