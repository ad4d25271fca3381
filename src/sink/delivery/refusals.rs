//! What the server refuses → sent again later, alone, or given up.

use std::time::Instant;

use super::{Delivery, Hangup, Notice, REFUSED_PAUSE, STUCK_PATIENCE, STUCK_PAUSE};
use crate::sink::refusal::Refusal;
use crate::sink::stream::{Ids, Parcel, Stuck};

impl Delivery {
    /// An XADD was answered with an error.
    pub(super) fn refused(
        &mut self,
        index: usize,
        class: Refusal,
        error: &[u8],
        now: Instant,
    ) -> Result<(), Hangup> {
        let text = String::from_utf8_lossy(error).into_owned();
        match class {
            Refusal::Later => self.hold(text, now),
            Refusal::Connection | Refusal::Credentials => return Err(Hangup(text)),
            // `Never` is a bug of ours or a server of another kind: retried alone like the
            // other two, so that nothing is lost before a minute has passed.
            Refusal::Forbidden
            | Refusal::WrongType
            | Refusal::NoSuchKey
            | Refusal::NotAnInteger
            | Refusal::Never => self.stick(index, text, now),
            Refusal::IdTooSmall => {
                if let Some(stream) = self.backlog.streams().get_mut(index) {
                    stream.ids = Ids::Unknown;
                }
            }
        }
        Ok(())
    }

    pub(super) fn hold(&mut self, error: String, now: Instant) {
        if self.refusing.is_none() {
            self.notices.push(Notice::Refusing { error });
        }
        self.refusing = Some(now + REFUSED_PAUSE);
    }

    pub(super) fn stick(&mut self, index: usize, error: String, now: Instant) {
        let Some(stream) = self.backlog.streams().get_mut(index) else {
            return;
        };
        let retry_at = now + STUCK_PAUSE;
        match &mut stream.stuck {
            Some(stuck) => stuck.retry_at = retry_at,
            None => {
                stream.stuck = Some(Stuck {
                    since: now,
                    retry_at,
                    told: false,
                });
                let key = stream.key.clone();
                self.notices.push(Notice::Stuck { key, error });
            }
        }
    }

    /// Streams that have refused for a minute lose what has waited as long.
    pub(super) fn expire_stuck(&mut self, now: Instant) {
        for index in 0..self.backlog.view().len() {
            if self.backlog.view()[index].stuck.is_none() {
                continue;
            }
            let mut count = 0;
            while let Some(parcel) = self.expired(index, now) {
                count += parcel.len() as u64;
                self.backlog.lose(index, &parcel);
            }
            if self.has_expired_away(index, now) {
                count += self.backlog.lose_all_away(index);
            }
            self.tell_gave_up(index, count);
        }
    }

    /// The oldest parcel of a stream that has refused for a minute, if it waited as long.
    pub(super) fn expired(&mut self, index: usize, now: Instant) -> Option<Parcel> {
        let impatient = |since: Instant| now.saturating_duration_since(since) >= STUCK_PATIENCE;
        let stream = self.backlog.streams().get_mut(index)?;
        let refusing = stream.stuck.is_some_and(|stuck| impatient(stuck.since));
        let waited = stream
            .oldest()
            .is_some_and(|parcel| impatient(parcel.queued()));
        // What is in doubt too: nobody will ever tell.
        (refusing && waited).then(|| stream.remove_at(0)).flatten()
    }

    /// A stream has refused for a minute, and what is only on the disk has waited as long.
    pub(super) fn has_expired_away(&self, index: usize, now: Instant) -> bool {
        let impatient = |since: Instant| now.saturating_duration_since(since) >= STUCK_PATIENCE;
        self.backlog.view().get(index).is_some_and(|stream| {
            stream.stuck.is_some_and(|stuck| impatient(stuck.since))
                && stream.shelf.away_since.is_some_and(impatient)
        })
    }

    pub(super) fn tell_gave_up(&mut self, index: usize, count: u64) {
        let Some(stream) = self.backlog.streams().get_mut(index) else {
            return;
        };
        if count == 0 {
            return;
        }
        if let Some(stuck) = &mut stream.stuck
            && !stuck.told
        {
            stuck.told = true;
            let key = stream.key.clone();
            self.notices.push(Notice::GaveUp { key, count });
        }
    }
}
