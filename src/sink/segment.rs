//! parcels, claims, cursors ↔ bytes of a journal segment.
//!
//! A segment begins with [`MAGIC`]; then frames follow, each with its length and a checksum:
//!
//! ```text
//! length u32 · CRC-32 u32 · kind u8 · body          (all numbers little endian)
//! ```
//!
//! Reading stops at the first frame that is cut or does not match its checksum: what a power
//! loss left behind is never more than a wrong end. Every segment names its streams itself,
//! so that any of them can be deleted. Input is untrusted: nothing here panics, and nothing
//! is allocated that the bytes at hand do not fill.

use std::sync::Arc;

use bytes::Bytes;

use super::id::EntryId;
use super::stream::{Body, Parcel};
use crate::checksum::checksum;
use crate::record::{Entry, Lines, Source, Span, StreamKind, Streams, Trim, field_name};

/// The first bytes of every segment; the digit is the version of the format.
pub const MAGIC: &[u8; 8] = b"agentj1\n";
/// Length and checksum.
const FRAME: usize = 8;
/// A longer frame is damage: 10 MiB is the longest message, a chunk of them not much longer.
const MAX_FRAME: usize = 64 << 20;
const PARTIAL: u32 = 1 << 31;

/// A stream's number within one journal.
pub type Tag = u32;

/// What a frame says.
#[derive(Debug)]
pub enum Item<'a> {
    Stream {
        tag: Tag,
        kind: StreamKind,
        max_len: u64,
        name: &'a str,
    },
    /// Entries, not decoded yet.
    Parcel {
        tag: Tag,
        order: u64,
        at_ms: u64,
        entries: u64,
        body: &'a [u8],
        shape: Shape,
    },
    /// The entries from `order` on are about to be sent under IDs from `id` on.
    Claim(Claim),
    /// Everything below is delivered, or given up.
    Done { tag: Tag, below: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Lines(Source),
    Entry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub tag: Tag,
    pub order: u64,
    pub count: u64,
    pub id: EntryId,
}

const STREAM: u8 = 1;
const STDOUT: u8 = 2;
const STDERR: u8 = 3;
const ENTRY: u8 = 4;
const CLAIM: u8 = 5;
const DONE: u8 = 6;

/// Appends one frame whose payload `fill` writes.
pub fn frame(out: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME]);
    out.push(kind);
    fill(out);
    let payload = out.get(start + FRAME..).unwrap_or_default();
    let (length, sum) = (payload.len() as u32, checksum(payload));
    if let Some(head) = out.get_mut(start..start + FRAME) {
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4..].copy_from_slice(&sum.to_le_bytes());
    }
}

pub fn stream(out: &mut Vec<u8>, tag: Tag, streams: &Streams, kind: StreamKind) {
    frame(out, STREAM, |out| {
        out.extend_from_slice(&tag.to_le_bytes());
        out.push(kind_number(kind));
        out.extend_from_slice(&streams.trim.max_len.to_le_bytes());
        out.extend_from_slice(streams.name().as_bytes());
    });
}

pub fn claim(out: &mut Vec<u8>, claim: &Claim) {
    frame(out, CLAIM, |out| {
        out.extend_from_slice(&claim.tag.to_le_bytes());
        for number in [claim.order, claim.count, claim.id.ms, claim.id.seq] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    });
}

pub fn done(out: &mut Vec<u8>, tag: Tag, below: u64) {
    frame(out, DONE, |out| {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&below.to_le_bytes());
    });
}

/// Appends a parcel, without its claim.
pub fn parcel(out: &mut Vec<u8>, tag: Tag, parcel: &Parcel) {
    let head = |out: &mut Vec<u8>| {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&parcel.order().to_le_bytes());
        out.extend_from_slice(&parcel.at_ms().to_le_bytes());
    };
    match parcel.body() {
        Body::Lines { lines, range } => {
            let kind = match lines.source {
                Source::Stdout => STDOUT,
                Source::Stderr => STDERR,
            };
            frame(out, kind, |out| {
                head(out);
                let spans = lines.spans.get(range.clone()).unwrap_or_default();
                out.extend_from_slice(&(spans.len() as u32).to_le_bytes());
                for span in spans {
                    let partial = if span.partial { PARTIAL } else { 0 };
                    out.extend_from_slice(&((span.end - span.start) | partial).to_le_bytes());
                }
                for index in 0..spans.len() {
                    out.extend_from_slice(parcel.text(index));
                }
            });
        }
        Body::Entry(entry) => frame(out, ENTRY, |out| {
            head(out);
            text(out, &entry.message);
            for (name, value) in &entry.fields {
                text(out, name.as_bytes());
                text(out, value);
            }
        }),
    }
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text);
}

/// The next frame's item and the length of the frame; `None` at the end of what is whole.
pub fn next(bytes: &[u8]) -> Option<(Item<'_>, usize)> {
    let (payload, length) = next_frame(bytes)?;
    Some((item(payload)?, length))
}

/// The next frame's payload and the length of the frame, without a look at its checksum:
/// for what has been checked once and is only passed over.
pub fn glance(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let mut reader = Reader(bytes);
    let length = reader.u32()? as usize;
    reader.u32()?;
    if length == 0 || length > MAX_FRAME {
        return None;
    }
    Some((reader.take(length)?, FRAME + length))
}

/// Whose entries a payload holds, if it holds any.
pub fn parcel_of(payload: &[u8]) -> Option<Tag> {
    let mut reader = Reader(payload);
    matches!(reader.u8()?, STDOUT | STDERR | ENTRY).then(|| reader.u32())?
}

/// The next frame's payload, kind first, and the length of the frame.
pub fn next_frame(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let mut reader = Reader(bytes);
    let length = reader.u32()? as usize;
    let sum = reader.u32()?;
    if length == 0 || length > MAX_FRAME {
        return None;
    }
    let payload = reader.take(length)?;
    (checksum(payload) == sum).then_some((payload, FRAME + length))
}

fn item(payload: &[u8]) -> Option<Item<'_>> {
    let (&kind, rest) = payload.split_first()?;
    let mut reader = Reader(rest);
    let tag = reader.u32()?;
    match kind {
        STREAM => {
            let kind = kind_of(reader.u8()?)?;
            let max_len = reader.u64()?;
            let name = std::str::from_utf8(reader.0).ok()?;
            Some(Item::Stream {
                tag,
                kind,
                max_len,
                name,
            })
        }
        STDOUT | STDERR | ENTRY => {
            let (order, at_ms) = (reader.u64()?, reader.u64()?);
            let body = reader.0;
            let (entries, shape) = match kind {
                STDOUT => (u64::from(reader.u32()?), Shape::Lines(Source::Stdout)),
                STDERR => (u64::from(reader.u32()?), Shape::Lines(Source::Stderr)),
                _ => (1, Shape::Entry),
            };
            Some(Item::Parcel {
                tag,
                order,
                at_ms,
                entries,
                body,
                shape,
            })
        }
        CLAIM => Some(Item::Claim(Claim {
            tag,
            order: reader.u64()?,
            count: reader.u64()?,
            id: EntryId {
                ms: reader.u64()?,
                seq: reader.u64()?,
            },
        })),
        DONE => Some(Item::Done {
            tag,
            below: reader.u64()?,
        }),
        _ => None,
    }
}

/// The entries of a parcel's frame.
pub fn body(
    streams: &Arc<Streams>,
    stream: StreamKind,
    at_ms: u64,
    shape: Shape,
    bytes: &[u8],
) -> Option<Body> {
    let mut reader = Reader(bytes);
    match shape {
        Shape::Lines(source) => {
            let count = reader.u32()? as usize;
            let mut spans = Vec::with_capacity(count.min(bytes.len() / 4));
            let mut end = 0u32;
            for _ in 0..count {
                let length = reader.u32()?;
                let start = end;
                end = end.checked_add(length & !PARTIAL)?;
                spans.push(Span {
                    start,
                    end,
                    partial: length & PARTIAL != 0,
                });
            }
            let chunk = reader.take(end as usize)?;
            let lines = Lines {
                streams: Arc::clone(streams),
                source,
                read_ms: at_ms,
                chunk: Bytes::copy_from_slice(chunk),
                spans,
            };
            Some(Body::Lines {
                lines: Arc::new(lines),
                range: 0..count,
            })
        }
        Shape::Entry => {
            let message = Bytes::copy_from_slice(reader.text()?);
            let mut fields = Vec::new();
            while !reader.0.is_empty() {
                let name = field_name(std::str::from_utf8(reader.text()?).ok()?);
                fields.push((name, Bytes::copy_from_slice(reader.text()?)));
            }
            Some(Body::Entry(Arc::new(Entry {
                streams: Arc::clone(streams),
                kind: stream,
                at_ms,
                message,
                fields,
            })))
        }
    }
}

/// A stream of an earlier life, until its service tells its settings.
pub fn revived(name: &str, max_len: u64) -> Arc<Streams> {
    Streams::new(name, Trim { max_len })
}

/// Where a reader stands in bytes that may end anywhere.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.0.get(..count)?;
        self.0 = self.0.get(count..)?;
        Some(taken)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    pub fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        self.take(length)
    }
}

fn kind_number(kind: StreamKind) -> u8 {
    match kind {
        StreamKind::Info => 0,
        StreamKind::Status => 1,
        StreamKind::Error => 2,
        StreamKind::Crash => 3,
        StreamKind::Events => 4,
    }
}

fn kind_of(number: u8) -> Option<StreamKind> {
    match number {
        0 => Some(StreamKind::Info),
        1 => Some(StreamKind::Status),
        2 => Some(StreamKind::Error),
        3 => Some(StreamKind::Crash),
        4 => Some(StreamKind::Events),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_and_any_flipped_bit_is_noticed() {
        let streams = revived("x", 7);
        let mut bytes = Vec::new();
        stream(&mut bytes, 3, &streams, StreamKind::Crash);
        done(&mut bytes, 3, 99);
        for cut in 0..bytes.len() {
            let mut rest = &bytes[..cut];
            while let Some((_, length)) = next(rest) {
                rest = &rest[length..];
            }
            assert!(rest.len() < bytes.len());
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let whole = next(&damaged).and_then(|(_, length)| next(&damaged[length..]));
            assert!(whole.is_none(), "bit {bit}");
        }
        assert!(matches!(
            next(&bytes),
            Some((
                Item::Stream {
                    tag: 3,
                    kind: StreamKind::Crash,
                    max_len: 7,
                    name: "x"
                },
                _
            ))
        ));
    }
}
