//! last ID, time → next ID: the entry IDs that we give.
//!
//! An ID is the millisecond in which the line was read, or just above the stream's last ID
//! where that is higher, so IDs never fall: not across clock steps, nor on a board that
//! boots in 1970, nor behind an entry that some other writer put into the future. The
//! sequence number goes in steps of [`STEP`]: a foreign `XADD *` in the same millisecond
//! takes `last + 1` and thus never one that we are about to use.
//! Source: <https://redis.io/docs/latest/develop/data-types/streams/#entry-ids>

/// Distance between two IDs of ours within one millisecond.
pub const STEP: u64 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct EntryId {
    pub ms: u64,
    pub seq: u64,
}

impl EntryId {
    pub const ZERO: EntryId = EntryId { ms: 0, seq: 0 };

    /// `1700000000000-1000`.
    pub fn parse(text: &[u8]) -> Option<EntryId> {
        let text = std::str::from_utf8(text).ok()?;
        let (ms, seq) = text.split_once('-')?;
        Some(EntryId {
            ms: ms.parse().ok()?,
            seq: seq.parse().ok()?,
        })
    }

    /// The first of `count` consecutive IDs ([`EntryId::nth`]) above `last` for lines that
    /// were read at `at_ms`. `None` when the stream has come to the end of all IDs.
    pub fn next(last: EntryId, at_ms: u64, count: u64) -> Option<EntryId> {
        let first = if at_ms > last.ms {
            EntryId {
                ms: at_ms,
                seq: STEP,
            }
        } else {
            match (last.seq / STEP + 1).checked_mul(STEP) {
                Some(seq) => EntryId { ms: last.ms, seq },
                None => EntryId {
                    ms: last.ms.checked_add(1)?,
                    seq: STEP,
                },
            }
        };
        let room = count
            .checked_mul(STEP)
            .and_then(|span| first.seq.checked_add(span));
        match room {
            Some(_) => Some(first),
            None => Some(EntryId {
                ms: first.ms.checked_add(1)?,
                seq: STEP,
            }),
        }
    }

    /// The ID `index` places after this one.
    pub fn nth(self, index: usize) -> EntryId {
        EntryId {
            ms: self.ms,
            seq: self.seq.saturating_add((index as u64).saturating_mul(STEP)),
        }
    }
}

impl std::fmt::Display for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(ms: u64, seq: u64) -> EntryId {
        EntryId { ms, seq }
    }

    #[test]
    fn follow_the_clock_and_never_fall() {
        assert_eq!(EntryId::next(EntryId::ZERO, 50, 3), Some(id(50, 1000)));
        assert_eq!(EntryId::next(id(50, 1000), 50, 3), Some(id(50, 2000)));
        // A foreign `*` entry took 1001.
        assert_eq!(EntryId::next(id(50, 1001), 50, 3), Some(id(50, 2000)));
        // The clock stepped back.
        assert_eq!(EntryId::next(id(50, 1000), 7, 3), Some(id(50, 2000)));
        // 1970-01-01 00:00:00.000: 0-0 is no valid ID.
        assert_eq!(EntryId::next(EntryId::ZERO, 0, 1), Some(id(0, 1000)));
        assert_eq!(id(50, 1000).nth(2), id(50, 3000));
    }

    #[test]
    fn the_end_of_sequence_numbers_and_of_ids() {
        assert_eq!(EntryId::next(id(50, u64::MAX), 50, 1), Some(id(51, 1000)));
        assert_eq!(
            EntryId::next(id(50, u64::MAX - 3 * STEP), 50, 64),
            Some(id(51, 1000))
        );
        assert_eq!(EntryId::next(id(u64::MAX, u64::MAX), 50, 1), None);
    }

    #[test]
    fn text() {
        assert_eq!(
            EntryId::parse(b"1700000000000-1000"),
            Some(id(1_700_000_000_000, 1000))
        );
        assert_eq!(EntryId::parse(b"17"), None);
        assert_eq!(id(5, 6).to_string(), "5-6");
    }
}
