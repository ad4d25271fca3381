//! Counts that wait ↔ their note on the disk.

use std::time::Instant;

use super::{Batch, Counts, DISK_REFUSED, Flight, NOTE_AGE, NOTE_EVERY};
use crate::record::Count;
use crate::sink::note;
use crate::sink::orders::Outcome;
use crate::sink::stream::Doubt;

impl Counts {
    /// When the file of counts should be written.
    pub(super) fn note_due(&self) -> Option<Instant> {
        if self.disk.noting.is_some() || !self.disk.stale {
            return None;
        }
        let flying = match &self.flight {
            Flight::Fenced { batch, .. } => Some(batch.since),
            Flight::Nothing
            | Flight::Naming { .. }
            | Flight::Asking { .. }
            | Flight::Bare { .. } => None,
        };
        let oldest = self
            .again
            .iter()
            .filter(|batch| batch.doubt != Doubt::Acknowledged)
            .map(|batch| batch.since)
            .chain(self.since)
            .chain(flying)
            .min();
        let due = match oldest {
            Some(oldest) => {
                let after = self.disk.noted_at.map(|at| at + NOTE_EVERY);
                Some(after.map_or(oldest + NOTE_AGE, |after| after.max(oldest + NOTE_AGE)))
            }
            // All is done: the file may go.
            None if self.disk.used => self.disk.noted_at,
            None => None,
        };
        due.max(self.disk.refused_until.filter(|_| due.is_some()))
    }

    /// The file of counts, where it is to be written now. `ending`: there is no later.
    pub fn note(&mut self, now: Instant, ending: bool) -> Option<Vec<u8>> {
        if self.disk.noting.is_some() {
            return None;
        }
        let urgent = std::mem::take(&mut self.disk.urgent);
        let needed = self.disk.used || !self.is_settled();
        let due = self.note_due().is_some_and(|due| now >= due);
        if !(urgent || due || (ending && needed && self.disk.stale)) {
            return None;
        }
        self.disk.stale = false;
        self.disk.noted_at = Some(now);
        self.disk.refused_until = None;
        let highest = self.again.back().map_or(0, |batch| batch.number);
        let flying = match &self.flight {
            Flight::Fenced { batch, .. } => batch.number,
            Flight::Nothing
            | Flight::Naming { .. }
            | Flight::Asking { .. }
            | Flight::Bare { .. } => 0,
        };
        self.disk.noting = Some(highest.max(flying));
        Some(self.encode())
    }

    /// The note stands, or the disk refused it.
    pub fn noted(&mut self, outcome: &Outcome, now: Instant) {
        let Some(number) = self.disk.noting.take() else {
            return;
        };
        match outcome {
            Outcome::Written => {
                self.disk.noted = self.disk.noted.max(number);
                self.disk.used = !self.is_settled() || self.disk.stale;
            }
            Outcome::Full | Outcome::Failed(_) => {
                self.disk.stale = true;
                self.disk.refused_until = Some(now + DISK_REFUSED);
            }
        }
    }

    pub fn is_noting(&self) -> bool {
        self.disk.noting.is_some()
    }

    /// Every count that Redis may not have, as the file holds them.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.is_settled() {
            return out;
        }
        note::head(&mut out, self.next);
        let flying = match &self.flight {
            Flight::Fenced { batch, .. } => Some(batch),
            Flight::Nothing
            | Flight::Naming { .. }
            | Flight::Asking { .. }
            | Flight::Bare { .. } => None,
        };
        for batch in flying.into_iter().chain(&self.again) {
            for count in &batch.counts {
                note::count(&mut out, batch.number, count);
            }
        }
        let bare: Vec<&Count> = match &self.flight {
            Flight::Bare { sent, again } => again.iter().chain(sent).collect(),
            Flight::Nothing
            | Flight::Naming { .. }
            | Flight::Asking { .. }
            | Flight::Fenced { .. } => Vec::new(),
        };
        for count in bare.into_iter().chain(&self.waiting) {
            note::count(&mut out, 0, count);
        }
        out
    }

    /// Takes over what an earlier life noted.
    pub fn revive(&mut self, note: &[u8], now: Instant) {
        let Some((next, counts)) = note::read(note) else {
            return;
        };
        self.next = next;
        self.disk.used = true;
        self.disk.stale = true;
        self.disk.noted_at = Some(now);
        for (number, count) in counts {
            if number == 0 {
                self.since.get_or_insert(now);
                self.waiting.push_back(count);
                continue;
            }
            match self.again.back_mut() {
                Some(batch) if batch.number == number => batch.counts.push(count),
                _ => self.again.push_back(Batch {
                    number,
                    counts: vec![count],
                    doubt: Doubt::Unanswered,
                    since: now,
                }),
            }
            self.disk.noted = self.disk.noted.max(number);
        }
    }
}
