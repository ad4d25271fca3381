//! one stream's queue ↔ its part of the journal.
//!
//! A queue's orders fall into parts, oldest first:
//!
//! ```text
//!    in flight │ head: in memory │ away: on disk only │ tail: in memory
//!              └──── written ─────────────────────────┘ … upto: on its way
//! ```
//!
//! Head and tail touch where nothing is away. What is written is sent only once the journal
//! knows under which IDs, so that another life of this agent can look it up.

use std::ops::Range;
use std::time::Instant;

use super::id::EntryId;
use super::segment::{Claim, Tag};
use super::stream::{Doubt, Ids, Parcel, Stream};
use crate::record::RunMark;

/// Entries whose IDs are told to the journal at once: a few milliseconds of sending for one
/// `fsync`.
pub const CLAIMED_AHEAD: u64 = 16_384;
/// Fewer than these left, and the next are told meanwhile.
const CLAIMED_LOW: u64 = CLAIMED_AHEAD / 2;

#[derive(Debug, Default)]
pub struct Shelf {
    pub tag: Option<Tag>,
    /// Orders below are in the journal or on their way there.
    pub upto: u64,
    /// Orders below are in the journal.
    pub written: u64,
    /// Orders that are only there.
    pub away: Range<u64>,
    pub away_entries: u64,
    /// When the oldest of them was last in memory.
    pub away_since: Option<Instant>,
    /// Unix milliseconds of their reading.
    pub away_ms: Range<u64>,
    pub loading: bool,
    /// The disk does not give back what is away: what is in memory does not wait for it.
    pub passed_by: bool,
    /// The journal is being told the IDs of what is below.
    pub claiming: Option<u64>,
    /// It knows the IDs of what is below and has one.
    pub cleared: u64,
    /// It knows that what is below is done.
    pub told: u64,
    /// A run began here that the disk does not know of yet.
    pub unnoted: Option<Unnoted>,
}

impl Shelf {
    /// Nothing has to be read back first.
    fn is_before_away(&self, order: u64) -> bool {
        self.away.is_empty() || self.passed_by || order < self.away.start
    }

    /// Nothing is away any more.
    fn emptied(&mut self) {
        self.away = 0..0;
        self.away_since = None;
        self.passed_by = false;
    }
}

/// From this order on nothing is sent until this note is taken ([`super::runs`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unnoted {
    pub order: u64,
    pub note: u64,
}

impl Stream {
    /// Something can be sent: nothing older is away, and no run begins with it that the disk
    /// does not know of.
    pub fn is_ready(&self) -> bool {
        self.oldest().is_some_and(|oldest| {
            let unnoted = self.shelf.unnoted;
            self.is_before_away(oldest)
                && unnoted.is_none_or(|unnoted| oldest.order() < unnoted.order)
        })
    }

    /// A run ends with the next entry, and the journal does not have that: once Redis has it,
    /// an agent that is killed before it has noted this would end the run a second time.
    pub fn ends_unwritten(&self) -> bool {
        self.oldest().is_some_and(|oldest| {
            oldest.order() >= self.shelf.written
                && !oldest.in_doubt()
                && oldest.body().run_mark() == Some(RunMark::Ends)
        })
    }

    /// A run begins at `order`, or one that began earlier is to be noted again.
    pub fn hold_for_note(&mut self, order: u64, note: u64) {
        let order = match self.shelf.unnoted {
            Some(unnoted) => unnoted.order.min(order),
            None => order,
        };
        self.shelf.unnoted = Some(Unnoted { order, note });
    }

    pub fn noted(&mut self, note: u64) {
        self.shelf.unnoted = self.shelf.unnoted.filter(|unnoted| unnoted.note > note);
    }

    fn is_before_away(&self, parcel: &Parcel) -> bool {
        self.shelf.is_before_away(parcel.order())
    }

    /// The journal has to know the next parcel's ID first.
    pub fn lacks_claim(&self) -> bool {
        matches!(self.ids, Ids::Ours { .. })
            && self.oldest().is_some_and(|oldest| {
                oldest.order() < self.shelf.upto
                    && !oldest.in_doubt()
                    && (oldest.claim().is_none() || oldest.order() >= self.shelf.cleared)
            })
    }

    /// Soon it has to know more: the disk takes its time, and what it knows is sent meanwhile.
    pub fn wants_claims(&self) -> bool {
        let shelf = &self.shelf;
        let Some(oldest) = self.oldest() else {
            return false;
        };
        shelf.cleared < shelf.upto
            && matches!(self.ids, Ids::Ours { .. })
            && shelf.claiming.is_none()
            && oldest.order() + CLAIMED_LOW > shelf.cleared
            && self.parcels_from(shelf.cleared).next().is_some_and(|next| {
                next.order() < shelf.upto && !next.in_doubt() && self.is_before_away(next)
            })
    }

    /// Gives the next parcels their IDs, about `most` entries, to be told to the journal;
    /// nothing where that is under way.
    pub fn claim_ahead(&mut self, most: u64) -> Vec<Claim> {
        let mut claims = Vec::new();
        let (Some(tag), Ids::Ours { mut last }, None) =
            (self.shelf.tag, self.ids, self.shelf.claiming)
        else {
            return claims;
        };
        let mut count = 0;
        let mut until = 0;
        let (upto, cleared) = (self.shelf.upto, self.shelf.cleared);
        let before_away = match self.shelf.is_before_away(u64::MAX) {
            true => u64::MAX,
            false => self.shelf.away.start,
        };
        for parcel in self.parcels_mut() {
            if parcel.order() >= upto.min(before_away) || count >= most {
                break;
            }
            let known = parcel.claim().is_some() && parcel.order() < cleared;
            if parcel.in_doubt() || known {
                let end = parcel.len().saturating_sub(1);
                last = last.max(parcel.claim().map_or(last, |first| first.nth(end)));
                continue;
            }
            let first = match parcel.claim() {
                Some(first) => Some(first),
                None => EntryId::next(last, parcel.at_ms(), parcel.len() as u64),
            };
            let Some(first) = first else { break };
            parcel.set_claim(first);
            last = last.max(first.nth(parcel.len().saturating_sub(1)));
            count += parcel.len() as u64;
            until = parcel.end();
            claims.push(Claim {
                tag,
                order: parcel.order(),
                count: parcel.len() as u64,
                id: first,
            });
        }
        self.ids = Ids::Ours { last };
        if until > 0 {
            self.shelf.claiming = Some(until);
        }
        claims
    }

    /// The journal knows what it was told.
    pub fn claims_known(&mut self) {
        if let Some(until) = self.shelf.claiming.take() {
            self.shelf.cleared = self.shelf.cleared.max(until);
        }
    }

    /// A new connection, or one before them was refused and gets a later ID: those that were
    /// given and never used are given anew.
    pub fn withdraw_claims(&mut self) {
        if self.shelf.cleared == 0 && self.shelf.claiming.is_none() {
            return;
        }
        self.shelf.cleared = 0;
        for parcel in self.parcels_mut() {
            if parcel.doubt() == Doubt::None {
                parcel.clear_claim();
            }
        }
    }

    /// What is away is sent when it is back; what is in memory does not wait for it.
    pub fn pass_away_by(&mut self) {
        self.shelf.passed_by = !self.shelf.away.is_empty();
    }

    /// Bytes in memory that come before what is away.
    pub fn head_bytes(&self, enough: usize) -> usize {
        let away = &self.shelf.away;
        let mut bytes = 0;
        for parcel in self.parcels() {
            if bytes >= enough || !(away.is_empty() || parcel.order() < away.start) {
                break;
            }
            bytes += parcel.cost();
        }
        bytes
    }

    /// Lets go of what the journal holds too, but for about `keep` bytes of the oldest.
    /// Returns the bytes of memory that are free now.
    pub fn put_away(&mut self, keep: usize, now: Instant) -> usize {
        // What is away and what is in memory do not touch: something was sent between them.
        if self.shelf.passed_by {
            return 0;
        }
        let (start, place) = if self.shelf.away.is_empty() {
            let mut kept = 0;
            let place = self
                .parcels()
                .take_while(|parcel| {
                    kept += parcel.cost();
                    parcel.in_doubt() || kept <= keep
                })
                .count();
            (None, place)
        } else {
            let start = self.shelf.away.start;
            (Some(start), self.place_of(start))
        };
        let written = self.shelf.written;
        let parcels = self.remove_while(place, |parcel| {
            parcel.end() <= written && !parcel.in_doubt()
        });
        let mut freed = 0;
        for parcel in parcels {
            let shelf = &mut self.shelf;
            let first = match shelf.away.is_empty() {
                true => start.unwrap_or(parcel.order()),
                false => shelf.away.start,
            };
            shelf.away = first..parcel.end();
            if shelf.away_entries == 0 {
                shelf.away_ms = parcel.at_ms()..parcel.at_ms();
                shelf.away_since = Some(now);
            }
            shelf.away_ms.start = shelf.away_ms.start.min(parcel.at_ms());
            shelf.away_ms.end = shelf.away_ms.end.max(parcel.at_ms());
            shelf.away_entries += parcel.len() as u64;
            freed += parcel.cost();
        }
        freed
    }

    /// What was away is back: everything below `upto`. Returns the bytes that memory holds
    /// more, and how many entries turned out not to be there.
    pub fn bring_back(&mut self, parcels: Vec<Parcel>, upto: u64) -> (usize, u64) {
        self.shelf.loading = false;
        let away = self.shelf.away.clone();
        if away.is_empty() {
            return (0, 0);
        }
        let mut bytes = 0;
        let mut back = 0;
        for parcel in parcels {
            // What was given up or taken meanwhile does not come back.
            let first = away
                .start
                .saturating_sub(parcel.order())
                .min(parcel.len() as u64);
            let end = away
                .end
                .saturating_sub(parcel.order())
                .min(parcel.len() as u64);
            if first >= end {
                continue;
            }
            let parcel = parcel.part(first as usize..end as usize);
            if parcel.in_doubt() {
                // To be looked up, as after a reconnect; a lookup that is under way did not
                // ask for it.
                self.ids = match self.ids {
                    Ids::Ours { .. } | Ids::Verifying { .. } => Ids::Unknown,
                    other @ (Ids::Unknown | Ids::Asking | Ids::Servers) => other,
                };
            }
            bytes += parcel.cost();
            back += parcel.len() as u64;
            self.put_back(parcel);
        }
        let start = upto.max(away.start);
        self.shelf.away_entries = self.shelf.away_entries.saturating_sub(back);
        let mut missing = 0;
        if start >= away.end {
            missing = std::mem::take(&mut self.shelf.away_entries);
            self.shelf.emptied();
        } else {
            self.shelf.away.start = start;
        }
        (bytes, missing)
    }

    /// Gives up what is away below an order. Returns how many entries those were.
    pub fn give_up_away(&mut self, below: u64) -> u64 {
        let shelf = &mut self.shelf;
        let end = below.min(shelf.away.end);
        if end <= shelf.away.start {
            return 0;
        }
        let count = (end - shelf.away.start).min(shelf.away_entries);
        shelf.away_entries -= count;
        shelf.away.start = end;
        if shelf.away.is_empty() {
            // Gaps between two outages are no entries.
            let rest = std::mem::take(&mut shelf.away_entries);
            shelf.emptied();
            return count + rest;
        }
        count
    }

    /// Everything below is done. `flying` is the lowest order in flight.
    pub fn floor(&self, flying: Option<u64>) -> u64 {
        let waiting = self
            .parcels()
            .find(|parcel| parcel.doubt() != Doubt::Acknowledged)
            .map(Parcel::order);
        let away = (!self.shelf.away.is_empty()).then_some(self.shelf.away.start);
        [flying, waiting, away]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.arrived())
    }
}
