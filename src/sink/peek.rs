//! bytes of journal segments → the lines in them, for whoever looks from outside.
//!
//! Reads what [`super::segment`] writes, from the beginning of a segment on, and goes on where
//! it stopped when the segment has grown. Nothing is changed, and damage only ends a segment.

use std::collections::HashMap;
use std::sync::Arc;

use super::claims::Claims;
use super::id::EntryId;
use super::segment::{self, Item, MAGIC, Tag};
use super::stream::Body;
use crate::record::{Source, StreamKind, Streams};

/// One line, or one piece of a long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Name of the stream.
    pub stream: Arc<str>,
    /// Unix milliseconds at which it was read.
    pub at_ms: u64,
    pub source: Source,
    /// A piece of a line, and not its last.
    pub partial: bool,
    pub text: Vec<u8>,
}

/// A line in the journal.
#[derive(Clone, Debug)]
pub struct Shelved {
    pub line: Line,
    tag: Tag,
    order: u64,
}

/// Which bytes of a segment they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Beginning,
    /// Behind frames that were read before.
    Rest,
}

/// What has been read of the journal so far.
#[derive(Debug, Default)]
pub struct Peek {
    streams: HashMap<Tag, (Arc<Streams>, StreamKind)>,
    claims: HashMap<Tag, Claims>,
    floors: HashMap<Tag, u64>,
}

impl Peek {
    /// Hands on the lines of a segment. Returns how many bytes are done with: a frame that is
    /// only half there may be whole next time.
    pub fn read(&mut self, bytes: &[u8], part: Part, take: &mut dyn FnMut(Shelved)) -> usize {
        let mut at = match part {
            Part::Beginning if !bytes.starts_with(MAGIC) => return 0,
            Part::Beginning => MAGIC.len(),
            Part::Rest => 0,
        };
        while let Some((item, length)) = segment::next(bytes.get(at..).unwrap_or_default()) {
            at += length;
            self.item(item, take);
        }
        at
    }

    fn item(&mut self, item: Item<'_>, take: &mut dyn FnMut(Shelved)) {
        match item {
            Item::Stream {
                tag,
                kind,
                max_len,
                name,
            } => {
                let streams = segment::revived(name, max_len);
                self.streams.insert(tag, (streams, kind));
            }
            Item::Claim(claim) => {
                let claims = self.claims.entry(claim.tag).or_default();
                claims.add(claim.order, claim.count, claim.id);
            }
            Item::Done { tag, below } => {
                let floor = self.floors.entry(tag).or_default();
                *floor = below.max(*floor);
            }
            Item::Parcel {
                tag,
                order,
                at_ms,
                body,
                shape,
                ..
            } => {
                let Some((streams, StreamKind::Info)) = self.streams.get(&tag) else {
                    return;
                };
                let body = segment::body(streams, StreamKind::Info, at_ms, shape, body);
                // Entries of their own are run markers, not lines.
                let Some(Body::Lines { lines, range }) = body else {
                    return;
                };
                for (index, span) in lines.spans.iter().enumerate().take(range.end) {
                    let text = lines.chunk.get(span.start as usize..span.end as usize);
                    take(Shelved {
                        line: Line {
                            stream: Arc::clone(streams.name()),
                            at_ms,
                            source: lines.source,
                            partial: span.partial,
                            text: text.unwrap_or_default().to_vec(),
                        },
                        tag,
                        order: order + index as u64,
                    });
                }
            }
        }
    }

    /// Whether a stream of Redis whose last ID is `last` holds this line, or will never.
    pub fn is_delivered(&self, line: &Shelved, last: EntryId) -> bool {
        let range = line.order..line.order + 1;
        self.floors
            .get(&line.tag)
            .is_some_and(|floor| line.order < *floor)
            || self.claims.get(&line.tag).is_some_and(|claims| {
                let pieces = claims.pieces(range);
                let claim = pieces.first().and_then(|(_, claim)| *claim);
                claim.is_some_and(|claim| claim <= last)
            })
    }
}
