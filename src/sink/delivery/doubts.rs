//! Entries that were never answered → looked up on the next connection.

use std::time::Instant;

use super::{Ask, Delivery, Flight, Hangup, Notice};
use crate::sink::lookup::{LOOKUP, Seen, entry_id, seen};
use crate::sink::refusal::{Refusal, classify};
use crate::sink::resp::{Reply, command};
use crate::sink::stream::Ids;

impl Delivery {
    /// Looks the lowest of the doubtful entries up; where none is left, sending may begin.
    pub(super) fn look_up(&mut self, index: usize, seen: Seen, out: &mut Vec<u8>) {
        let Some(stream) = self.backlog.streams().get_mut(index) else {
            return;
        };
        let Some((low, high)) = stream.doubtful_range(seen.last) else {
            stream.ids = Ids::Ours { last: seen.last };
            return;
        };
        stream.ids = Ids::Verifying { seen, upto: high };
        let (low, high, count) = (low.to_string(), high.to_string(), LOOKUP.to_string());
        command(
            out,
            &[
                b"XRANGE",
                stream.key.as_bytes(),
                low.as_bytes(),
                high.as_bytes(),
                b"COUNT",
                count.as_bytes(),
            ],
        );
        // Behind everything that is in flight, as a batch of its own.
        self.flights.push_back(Flight {
            stream: index,
            ask: Ask::Range,
            ends_batch: true,
        });
        self.batches += 1;
    }

    /// We may not ask for the last ID: Redis gives the IDs of this stream.
    pub(super) fn let_server_count(&mut self, index: usize) {
        let Some(stream) = self.backlog.streams().get_mut(index) else {
            return;
        };
        stream.ids = Ids::Servers;
        let told = std::mem::replace(&mut stream.told_server_ids, true);
        let key = stream.key.clone();
        let believed = stream.believe();
        for parcel in &believed {
            self.backlog.release(parcel);
        }
        if !told {
            self.notices.push(Notice::ServerIds { key });
        }
    }

    /// `XINFO STREAM` was answered.
    pub(super) fn info(
        &mut self,
        index: usize,
        reply: &Reply<'_>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<(), Hangup> {
        let seen = match reply {
            Reply::Error(error) => match classify(error) {
                Refusal::NoSuchKey => Some(Seen::NOTHING),
                class => return self.info_refused(index, class, error, now),
            },
            reply => seen(reply),
        };
        match seen {
            Some(seen) => self.look_up(index, seen, out),
            // No such field (a server of another kind): let it give the IDs.
            None => self.let_server_count(index),
        }
        Ok(())
    }

    pub(super) fn info_refused(
        &mut self,
        index: usize,
        class: Refusal,
        error: &[u8],
        now: Instant,
    ) -> Result<(), Hangup> {
        let text = String::from_utf8_lossy(error).into_owned();
        let Some(stream) = self.backlog.streams().get_mut(index) else {
            return Ok(());
        };
        match class {
            Refusal::Connection | Refusal::Credentials => return Err(Hangup(text)),
            Refusal::Later => {
                stream.ids = Ids::Unknown;
                self.hold(text, now);
            }
            Refusal::WrongType => {
                stream.ids = Ids::Unknown;
                self.stick(index, text, now);
            }
            // We may not ask, or it does not know the question: it gives the IDs.
            Refusal::Forbidden
            | Refusal::IdTooSmall
            | Refusal::NoSuchKey
            | Refusal::NotAnInteger
            | Refusal::Never => self.let_server_count(index),
        }
        Ok(())
    }

    /// `XRANGE` over doubtful entries was answered.
    pub(super) fn range(
        &mut self,
        index: usize,
        reply: &Reply<'_>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<(), Hangup> {
        let Some(stream) = self.backlog.streams().get_mut(index) else {
            return Ok(());
        };
        let Ids::Verifying { seen, upto } = stream.ids else {
            return Ok(());
        };
        let done = match reply {
            Reply::Array(found) => {
                // A full page ends where its last entry stands.
                let end = match found.last().and_then(entry_id) {
                    Some(last) if found.len() >= LOOKUP => last,
                    Some(_) | None => upto,
                };
                stream.resolve(seen, end, found)
            }
            Reply::Error(error) => match classify(error) {
                Refusal::Connection | Refusal::Credentials => {
                    return Err(Hangup(String::from_utf8_lossy(error).into_owned()));
                }
                Refusal::Later => {
                    stream.ids = Ids::Unknown;
                    self.hold(String::from_utf8_lossy(error).into_owned(), now);
                    return Ok(());
                }
                Refusal::Forbidden
                | Refusal::WrongType
                | Refusal::IdTooSmall
                | Refusal::NoSuchKey
                | Refusal::NotAnInteger
                | Refusal::Never => stream.unverifiable(seen),
            },
            Reply::Text(_) | Reply::Integer(_) | Reply::Nil => stream.unverifiable(seen),
        };
        for parcel in done {
            // Kept once more: this server may forget it too.
            self.acknowledged = Some(now);
            self.backlog.acknowledged(index, parcel, now);
        }
        self.look_up(index, seen, out);
        Ok(())
    }
}
