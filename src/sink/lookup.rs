//! replies about a stream → what has become of doubtful entries.
//!
//! Three questions are asked of Redis: the stream's last ID, its first entry, and what stands
//! between two IDs. An entry is there when its ID holds its content; it was there when the
//! stream has been trimmed past it. Anything else never came, or is lost.

use super::id::EntryId;
use super::resp::Reply;

/// Entries of one lookup: its reply is held in memory whole.
pub const LOOKUP: usize = 1000;

/// What `XINFO STREAM` said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `last-generated-id`.
    pub last: EntryId,
    /// Entries below this one were trimmed: the first entry, of a stream that has had more
    /// entries than it holds. `None` where nothing was.
    pub trimmed_below: Option<EntryId>,
}

impl Seen {
    /// There is no such stream.
    pub const NOTHING: Seen = Seen {
        last: EntryId::ZERO,
        trimmed_below: None,
    };
}

/// What has become of a doubtful entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    There,
    Absent,
    /// Not in doubt, or not looked up yet, or still to come.
    Waits,
}

/// The ID of one entry of an `XRANGE` reply.
pub fn entry_id(entry: &Reply<'_>) -> Option<EntryId> {
    match entry {
        Reply::Array(parts) => match parts.first() {
            Some(Reply::Text(id)) => EntryId::parse(id),
            _ => None,
        },
        _ => None,
    }
}

/// The fields of an `XINFO STREAM` reply that tell what the stream has and had.
/// `entries-added` exists since Redis 7; before it, what is below the first entry is taken
/// for trimmed.
pub fn seen(reply: &Reply<'_>) -> Option<Seen> {
    let Reply::Array(items) = reply else {
        return None;
    };
    let (mut last, mut first, mut length, mut added) = (None, None, None, None);
    for pair in items.chunks_exact(2) {
        match pair {
            [Reply::Text(b"last-generated-id"), Reply::Text(id)] => last = EntryId::parse(id),
            [Reply::Text(b"first-entry"), entry] => first = entry_id(entry),
            [Reply::Text(b"length"), Reply::Integer(count)] => length = Some(*count),
            [Reply::Text(b"entries-added"), Reply::Integer(count)] => added = Some(*count),
            _ => {}
        }
    }
    let trimmed = match (added, length) {
        (Some(added), Some(length)) => added > length,
        _ => true,
    };
    let last = last?;
    // A stream that is empty now but has had entries: everything was trimmed.
    let first = first.unwrap_or(last.nth(1));
    Some(Seen {
        last,
        trimmed_below: (trimmed && last > EntryId::ZERO).then_some(first),
    })
}

/// The fields under `id` in an `XRANGE` reply, which is sorted.
pub fn stands_in<'a, 'r>(found: &'a [Reply<'r>], id: EntryId) -> Option<&'a [Reply<'r>]> {
    let place = found.partition_point(|entry| entry_id(entry).is_some_and(|other| other < id));
    match found.get(place) {
        Some(Reply::Array(parts)) => match parts.as_slice() {
            [Reply::Text(theirs), Reply::Array(fields)] if EntryId::parse(theirs) == Some(id) => {
                Some(fields)
            }
            _ => None,
        },
        _ => None,
    }
}
