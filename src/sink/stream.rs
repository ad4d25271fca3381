//! parcels waiting for one Redis stream, and what is known about that stream's IDs.
//!
//! A parcel is a run of entries that share a moment and travel together. Its *claim* is the
//! ID under which its first entry was sent. A parcel that was sent and never answered is in
//! *doubt*: it may be in Redis already, so it keeps its claim, and is looked up before it
//! is sent again. One that was answered with an error is certainly not there. One that was
//! acknowledged is kept a while (recent.rs), because a server that dies may forget it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::batch::{self, Header, Trimming};
use super::id::EntryId;
use super::lookup::{Fate, Seen, stands_in};
use super::recent::Recent;
use super::resp::Reply;
use super::shelf::Shelf;
use crate::record::{Entry, Lines, RunMark, StreamKind, Streams};

/// An entry's ID must be this close (milliseconds) to its time, or it carries `ts`.
const TS_TOLERANCE_MS: u64 = 1000;
/// What an entry costs beside its text.
const ENTRY_OVERHEAD: usize = 32;
/// What a record costs beside its entries; counted with its first one, so that the costs of
/// a parcel's parts add up to the parcel's.
const RECORD_OVERHEAD: usize = 256;

/// Entries of one stream that share the moment at which they were read.
#[derive(Clone, Debug)]
pub struct Parcel {
    body: Body,
    /// Place of the first entry in the stream's order of arrival.
    order: u64,
    at_ms: u64,
    queued: Instant,
    claim: Option<EntryId>,
    doubt: Doubt,
}

/// Whether a parcel may be in Redis already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It is not, or its answer is still awaited.
    None,
    /// Sent under its claim, and the answer never came.
    Unanswered,
    /// Acknowledged, by a server that may have lost it since.
    Acknowledged,
}

#[derive(Clone, Debug)]
pub enum Body {
    Lines {
        lines: Arc<Lines>,
        range: Range<usize>,
    },
    Entry(Arc<Entry>),
}

impl Body {
    pub fn run_mark(&self) -> Option<RunMark> {
        match self {
            Body::Lines { .. } => None,
            Body::Entry(entry) => entry.run_mark(),
        }
    }
}

impl Parcel {
    pub fn len(&self) -> usize {
        match &self.body {
            Body::Lines { range, .. } => range.len(),
            Body::Entry(_) => 1,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn at_ms(&self) -> u64 {
        self.at_ms
    }

    pub fn queued(&self) -> Instant {
        self.queued
    }

    pub fn in_doubt(&self) -> bool {
        self.doubt != Doubt::None
    }

    pub fn order(&self) -> u64 {
        self.order
    }

    /// Behind its last entry.
    pub fn end(&self) -> u64 {
        self.order + self.len() as u64
    }

    pub fn claim(&self) -> Option<EntryId> {
        self.claim
    }

    pub fn set_claim(&mut self, claim: EntryId) {
        self.claim = Some(claim);
    }

    pub fn clear_claim(&mut self) {
        self.claim = None;
    }

    pub fn doubt(&self) -> Doubt {
        self.doubt
    }

    pub fn body(&self) -> &Body {
        &self.body
    }

    /// Read back from the journal.
    pub fn revived(body: Body, order: u64, at_ms: u64, now: Instant) -> Parcel {
        Parcel {
            body,
            order,
            at_ms,
            queued: now,
            claim: None,
            doubt: Doubt::None,
        }
    }

    /// What the journal knows: claimed is maybe sent.
    pub fn claimed(mut self, claim: Option<EntryId>) -> Parcel {
        self.claim = claim;
        self.doubted(Doubt::Unanswered)
    }

    /// Bytes of memory that this parcel stands for.
    pub fn cost(&self) -> usize {
        let text: usize = (0..self.len()).map(|index| self.text(index).len()).sum();
        let record = match &self.body {
            Body::Lines { range, .. } if range.start > 0 => 0,
            Body::Lines { .. } => RECORD_OVERHEAD,
            Body::Entry(entry) => {
                let fields: usize = entry.fields.iter().map(|(_, value)| value.len()).sum();
                RECORD_OVERHEAD + fields
            }
        };
        text + self.len() * ENTRY_OVERHEAD + record
    }

    pub fn text(&self, index: usize) -> &[u8] {
        match &self.body {
            Body::Lines { lines, range } => lines
                .spans
                .get(range.start + index)
                .and_then(|span| lines.chunk.get(span.start as usize..span.end as usize))
                .unwrap_or_default(),
            Body::Entry(entry) => &entry.message,
        }
    }

    /// The entries `range` (counted within this parcel), with their own claim and order.
    pub fn part(&self, range: Range<usize>) -> Parcel {
        let body = match &self.body {
            Body::Lines {
                lines,
                range: whole,
            } => Body::Lines {
                lines: Arc::clone(lines),
                range: whole.start + range.start..whole.start + range.end,
            },
            Body::Entry(entry) => Body::Entry(Arc::clone(entry)),
        };
        Parcel {
            body,
            order: self.order + range.start as u64,
            at_ms: self.at_ms,
            queued: self.queued,
            claim: self.claim.map(|first| first.nth(range.start)),
            doubt: self.doubt,
        }
    }

    /// Certainly not in Redis: to be sent under a new ID.
    pub fn disclaimed(mut self) -> Parcel {
        self.claim = None;
        self.doubt = Doubt::None;
        self
    }

    /// The connection is gone; nothing is in doubt that has no claim.
    pub fn doubted(mut self, doubt: Doubt) -> Parcel {
        self.doubt = match self.claim {
            Some(_) => doubt,
            None => Doubt::None,
        };
        self
    }

    /// Appends the parcel's commands. `now_ms` stands for the ID where Redis gives it.
    pub fn encode(&self, header: &Header, now_ms: u64, out: &mut Vec<u8>) {
        let count = self.len();
        for index in 0..count {
            let id = self.claim.map(|first| first.nth(index));
            let id_ms = id.map_or(now_ms, |id| id.ms);
            let ts = (id_ms.abs_diff(self.at_ms) > TS_TOLERANCE_MS).then_some(self.at_ms);
            match &self.body {
                Body::Lines { lines, range } => {
                    let trimming = if index + 1 == count {
                        header.trimming(self.order + index as u64, id_ms)
                    } else {
                        Trimming::Later
                    };
                    let partial = lines
                        .spans
                        .get(range.start + index)
                        .is_some_and(|span| span.partial);
                    let line = batch::Line {
                        message: self.text(index),
                        source: lines.source,
                        partial,
                        ts,
                    };
                    batch::line(out, header, trimming, id, &line);
                }
                Body::Entry(entry) => {
                    let trimming = header.trimming(self.order, id_ms);
                    batch::entry(out, header, trimming, id, &entry.message, &entry.fields, ts);
                }
            }
        }
    }

    /// Whether what the stream holds under our ID is what we sent.
    fn is_content(&self, index: usize, fields: &[Reply<'_>]) -> bool {
        let mut sent: Vec<&[u8]> = vec![b"message", self.text(index)];
        match &self.body {
            Body::Lines { lines, .. } => {
                sent.extend([&b"source"[..], lines.source.as_str().as_bytes()]);
            }
            Body::Entry(entry) => {
                for (name, value) in &entry.fields {
                    sent.extend([name.as_bytes(), &value[..]]);
                }
            }
        }
        // `partial` and `ts` may follow; nothing else of ours differs between two entries
        // of one stream under one ID.
        fields.len() >= sent.len()
            && sent
                .iter()
                .zip(fields)
                .all(|(ours, theirs)| matches!(theirs, Reply::Text(text) if text == ours))
    }
}

impl Parcel {
    fn fate(&self, index: usize, seen: Seen, upto: EntryId, found: &[Reply<'_>]) -> Fate {
        let Some(id) = self.claim.filter(|_| self.in_doubt()) else {
            return Fate::Waits;
        };
        let id = id.nth(index);
        if id > seen.last || id > upto {
            Fate::Waits
        } else if seen.trimmed_below.is_some_and(|first| id < first)
            || stands_in(found, id).is_some_and(|fields| self.is_content(index, fields))
        {
            Fate::There
        } else {
            Fate::Absent
        }
    }
}

/// What is known of a stream's IDs on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// Nothing yet.
    Unknown,
    /// `XINFO STREAM` is under way.
    Asking,
    /// `XRANGE` over the doubtful entries is under way.
    Verifying { seen: Seen, upto: EntryId },
    /// The stream's `last-generated-id`, or the last one that we sent.
    Ours { last: EntryId },
    /// We may not ask: Redis gives the IDs, and delivery is at least once.
    Servers,
}

/// A stream that refuses (`WRONGTYPE`, `NOPERM`); the others flow on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    pub since: Instant,
    pub retry_at: Instant,
    pub told: bool,
}

/// One Redis stream's queue.
#[derive(Debug)]
pub struct Stream {
    pub streams: Arc<Streams>,
    pub kind: StreamKind,
    pub key: String,
    pub header: Header,
    pub ids: Ids,
    pub stuck: Option<Stuck>,
    /// The operator knows that Redis gives the IDs.
    pub told_server_ids: bool,
    pub recent: Recent,
    pub shelf: Shelf,
    parcels: VecDeque<Parcel>,
    arrived: u64,
    /// Bytes of what waits here (not of what is in flight).
    waiting: usize,
}

impl Stream {
    pub fn new(streams: &Arc<Streams>, kind: StreamKind, key_prefix: &str) -> Stream {
        let key = format!("{key_prefix}{}", streams.key(kind));
        Stream {
            header: Header::new(&key, streams.trim, streams.keep),
            streams: Arc::clone(streams),
            kind,
            key,
            ids: Ids::Unknown,
            stuck: None,
            told_server_ids: false,
            recent: Recent::default(),
            shelf: Shelf::default(),
            parcels: VecDeque::new(),
            arrived: 0,
            waiting: 0,
        }
    }

    /// Appends; returns the cost.
    pub fn push_lines(&mut self, lines: Lines, now: Instant) -> usize {
        let range = 0..lines.spans.len();
        let at_ms = lines.read_ms;
        let lines = Arc::new(lines);
        self.push(Body::Lines { lines, range }, at_ms, now)
    }

    /// Appends; returns the cost.
    pub fn push_entry(&mut self, entry: Entry, now: Instant) -> usize {
        let at_ms = entry.at_ms;
        self.push(Body::Entry(Arc::new(entry)), at_ms, now)
    }

    fn push(&mut self, body: Body, at_ms: u64, now: Instant) -> usize {
        let parcel = Parcel {
            body,
            order: self.arrived,
            at_ms,
            queued: now,
            claim: None,
            doubt: Doubt::None,
        };
        self.arrived += parcel.len() as u64;
        let cost = parcel.cost();
        self.waiting += cost;
        self.parcels.push_back(parcel);
        cost
    }

    /// A reload changed the service's settings: the queue stays, the trimming follows.
    pub fn adopt(&mut self, streams: &Arc<Streams>) {
        self.header = Header::new(&self.key, streams.trim, streams.keep);
        self.streams = Arc::clone(streams);
    }

    pub fn has_waiting(&self) -> bool {
        !self.parcels.is_empty()
    }

    /// Continues behind what an earlier life left.
    pub fn begin_at(&mut self, order: u64) {
        self.arrived = order;
    }

    /// Behind the last entry that came.
    pub fn arrived(&self) -> u64 {
        self.arrived
    }

    pub fn parcels(&self) -> impl Iterator<Item = &Parcel> {
        self.parcels.iter()
    }

    /// Those from an order on.
    pub fn parcels_from(&self, order: u64) -> impl Iterator<Item = &Parcel> {
        self.parcels.range(self.place_of(order)..)
    }

    /// Where the parcel that begins at an order stands, or would stand.
    pub fn place_of(&self, order: u64) -> usize {
        self.parcels.partition_point(|other| other.order < order)
    }

    pub fn parcels_mut(&mut self) -> impl Iterator<Item = &mut Parcel> {
        self.parcels.iter_mut()
    }

    /// Removes the parcels from a place on for as long as `wanted` says so.
    pub fn remove_while(&mut self, place: usize, wanted: impl Fn(&Parcel) -> bool) -> Vec<Parcel> {
        let count = self
            .parcels
            .range(place..)
            .take_while(|p| wanted(p))
            .count();
        let removed: Vec<Parcel> = self.parcels.drain(place..place + count).collect();
        let cost: usize = removed.iter().map(Parcel::cost).sum();
        self.waiting = self.waiting.saturating_sub(cost);
        removed
    }

    pub fn remove_at(&mut self, place: usize) -> Option<Parcel> {
        let parcel = self.parcels.remove(place)?;
        self.waiting = self.waiting.saturating_sub(parcel.cost());
        Some(parcel)
    }

    pub fn waiting_bytes(&self) -> usize {
        self.waiting
    }

    /// Whether something waits here that is certainly not in Redis.
    pub fn has_droppable(&self) -> bool {
        self.parcels.iter().any(|parcel| !parcel.in_doubt())
    }

    pub fn oldest(&self) -> Option<&Parcel> {
        self.parcels.front()
    }

    /// Takes up to `max_entries` and about `max_bytes` from the front; at least one entry.
    /// Where IDs are ours the parcel leaves with its claim.
    pub fn take(&mut self, max_entries: usize, max_bytes: usize) -> Option<Parcel> {
        let front = self.parcels.front()?;
        let mut count = 0;
        let mut bytes = 0;
        while count < front.len().min(max_entries.max(1)) && (count == 0 || bytes < max_bytes) {
            bytes += front.text(count).len() + ENTRY_OVERHEAD;
            count += 1;
        }
        let mut parcel = self.split_front(count)?;
        self.claim(&mut parcel);
        Some(parcel)
    }

    fn split_front(&mut self, count: usize) -> Option<Parcel> {
        let whole = self.parcels.pop_front()?;
        let first = if count >= whole.len() {
            whole
        } else {
            self.parcels.push_front(whole.part(count..whole.len()));
            whole.part(0..count)
        };
        self.waiting = self.waiting.saturating_sub(first.cost());
        Some(first)
    }

    fn claim(&mut self, parcel: &mut Parcel) {
        let Ids::Ours { last } = self.ids else {
            parcel.claim = None;
            parcel.doubt = Doubt::None;
            return;
        };
        let first = match parcel.claim {
            Some(first) => Some(first),
            None => EntryId::next(last, parcel.at_ms, parcel.len() as u64),
        };
        parcel.claim = first;
        if let Some(first) = first {
            let end = first.nth(parcel.len().saturating_sub(1));
            self.ids = Ids::Ours {
                last: last.max(end),
            };
        }
    }

    /// Puts a parcel back to its place in the order of arrival.
    pub fn put_back(&mut self, parcel: Parcel) {
        if parcel.is_empty() {
            return;
        }
        self.waiting += parcel.cost();
        let place = self
            .parcels
            .partition_point(|other| other.order <= parcel.order);
        self.parcels.insert(place, parcel);
    }

    /// Removes the oldest parcel that is certainly not in Redis.
    pub fn drop_oldest(&mut self) -> Option<Parcel> {
        let place = self.parcels.iter().position(|parcel| !parcel.in_doubt())?;
        let parcel = self.parcels.remove(place)?;
        self.waiting = self.waiting.saturating_sub(parcel.cost());
        Some(parcel)
    }

    /// Removes the oldest parcel that lies below an order and is certainly not in Redis.
    pub fn drop_below(&mut self, below: u64) -> Option<Parcel> {
        let place = self.parcels.iter().position(|parcel| !parcel.in_doubt())?;
        if self.parcels.get(place)?.end() > below {
            return None;
        }
        self.remove_at(place)
    }

    /// Before a lookup: the range of IDs up to `last` that doubtful parcels claim.
    pub fn doubtful_range(&self, last: EntryId) -> Option<(EntryId, EntryId)> {
        let mut range: Option<(EntryId, EntryId)> = None;
        for parcel in self.parcels.iter().filter(|parcel| parcel.in_doubt()) {
            if let Some(first) = parcel.claim.filter(|first| *first <= last) {
                let end = first.nth(parcel.len() - 1).min(last);
                range = Some(match range {
                    Some((low, high)) => (low.min(first), high.max(end)),
                    None => (first, end),
                });
            }
        }
        range
    }

    /// After a lookup: `found` is what the stream holds from the lowest doubtful ID up to
    /// `upto`. What is there is done, and so is what was there and has been trimmed since;
    /// what cannot come there any more loses its claim; what may still come (from the old
    /// connection's buffers) keeps it, so that it can come only once. Returns the parcels
    /// that are done.
    pub fn resolve(&mut self, seen: Seen, upto: EntryId, found: &[Reply<'_>]) -> Vec<Parcel> {
        let mut done = Vec::new();
        let parcels = std::mem::take(&mut self.parcels);
        self.waiting = 0;
        for parcel in parcels {
            let mut start = 0;
            while start < parcel.len() {
                let fate = parcel.fate(start, seen, upto, found);
                let mut end = start + 1;
                while end < parcel.len() && parcel.fate(end, seen, upto, found) == fate {
                    end += 1;
                }
                let run = parcel.part(start..end);
                match fate {
                    Fate::There => done.push(run),
                    Fate::Waits => self.append(run),
                    Fate::Absent => self.append(run.disclaimed()),
                }
                start = end;
            }
        }
        done
    }

    /// Behind everything else, which came earlier.
    fn append(&mut self, parcel: Parcel) {
        self.waiting += parcel.cost();
        self.parcels.push_back(parcel);
    }

    /// Nothing can be looked up: what was acknowledged is believed to be there. Returns it.
    pub fn believe(&mut self) -> Vec<Parcel> {
        let (believed, rest): (VecDeque<_>, VecDeque<_>) = self
            .parcels
            .drain(..)
            .partition(|parcel| parcel.doubt == Doubt::Acknowledged);
        self.parcels = rest;
        self.waiting = self.parcels.iter().map(Parcel::cost).sum();
        Vec::from(believed)
    }

    /// The stream may not be looked into: what was acknowledged is believed, and what was
    /// never answered is sent again, rather twice than never. Returns what is done.
    pub fn unverifiable(&mut self, seen: Seen) -> Vec<Parcel> {
        let believed = self.believe();
        let nothing_is_trimmed = Seen {
            trimmed_below: None,
            ..seen
        };
        self.resolve(nothing_is_trimmed, seen.last, &[]);
        believed
    }

    /// Entries that wait only to be checked: they were acknowledged once.
    pub fn rechecked(&self) -> u64 {
        self.parcels
            .iter()
            .filter(|parcel| parcel.doubt == Doubt::Acknowledged)
            .map(|parcel| parcel.len() as u64)
            .sum()
    }
}
