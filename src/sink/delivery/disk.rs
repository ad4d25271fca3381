//! What the journal is to know of what is on its way: IDs before they are used, what is done.

use std::time::Instant;

use super::{Ask, Delivery};
use crate::sink::segment::{Claim, Tag};
use crate::sink::stream::{Doubt, Parcel};

impl Delivery {
    /// What the journal should know before anything more of these streams is sent.
    pub fn claims_wanted(&mut self) -> Vec<(usize, Vec<Claim>)> {
        std::mem::take(&mut self.claims)
    }

    /// Streams that wait until the journal has their next entry.
    pub fn ends_wanted(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.ends)
    }

    /// Something waits for the journal to write it, or its ID.
    pub fn wants_journal(&self) -> bool {
        !(self.claims.is_empty() && self.ends.is_empty())
    }

    /// Whether the journal takes entries: nothing waits for one that does not.
    pub fn journal_writes(&mut self, writes: bool) {
        self.journal = writes;
    }

    pub fn claims_known(&mut self, streams: &[usize]) {
        for index in streams {
            if let Some(stream) = self.backlog.streams().get_mut(*index) {
                stream.claims_known();
            }
        }
    }

    /// What is in flight of one stream, without what is answered; what was refused waits
    /// until the rest of its parcel is answered too.
    pub(super) fn flying(&self, index: usize) -> impl Iterator<Item = Parcel> + '_ {
        self.flights
            .iter()
            .filter(move |flight| flight.stream == index)
            .filter_map(|flight| match &flight.ask {
                Ask::Add {
                    parcel,
                    answered,
                    refused,
                } => Some((parcel, *answered, refused)),
                Ask::Info | Ask::Range | Ask::Ping => None,
            })
            .flat_map(|(parcel, answered, refused)| {
                let refused = refused.iter().map(|refused| refused.of(parcel));
                refused.chain(std::iter::once(parcel.part(answered..parcel.len())))
            })
    }

    /// What the journal does not have of a stream, up to the last that was queued before
    /// `older_than`, about `bytes` of it.
    pub fn unwritten(&self, index: usize, older_than: Instant, bytes: usize) -> Vec<Parcel> {
        let Some(stream) = self.backlog.view().get(index) else {
            return Vec::new();
        };
        let from = stream.shelf.upto;
        let mut all: Vec<Parcel> = self
            .flying(index)
            .filter(|parcel| parcel.order() >= from)
            .collect();
        let flew = all.iter().map(Parcel::end).max().unwrap_or(0);
        let mut old = all.iter().any(|parcel| parcel.queued() <= older_than);
        let mut size: usize = all.iter().map(Parcel::cost).sum();
        for parcel in stream.parcels_from(from) {
            let young = parcel.queued() > older_than;
            // No gap may be left below what flies: a refused entry waits again.
            if parcel.order() >= flew && (young || size >= bytes) {
                break;
            }
            if parcel.doubt() == Doubt::Acknowledged {
                continue;
            }
            old |= !young;
            size += parcel.cost();
            all.push(parcel.clone());
        }
        if !old {
            return Vec::new();
        }
        all.sort_by_key(Parcel::order);
        all
    }

    pub fn is_flying(&self, index: usize) -> bool {
        self.flights
            .iter()
            .any(|flight| flight.stream == index && matches!(flight.ask, Ask::Add { .. }))
    }

    pub(super) fn lowest_flying(&self, index: usize) -> Option<u64> {
        self.flights
            .iter()
            .filter(|flight| flight.stream == index)
            .filter_map(|flight| match &flight.ask {
                Ask::Add {
                    parcel,
                    answered,
                    refused,
                } => {
                    let entry = refused.first().map_or(*answered, |refused| refused.entry);
                    Some(parcel.order() + entry as u64)
                }
                Ask::Info | Ask::Range | Ask::Ping => None,
            })
            .min()
    }

    /// Below which orders everything is done, where the journal does not know it.
    pub fn floors(&mut self) -> Vec<(Tag, u64)> {
        let mut floors = Vec::new();
        for index in 0..self.backlog.view().len() {
            let flying = self.lowest_flying(index);
            let Some(stream) = self.backlog.streams().get_mut(index) else {
                continue;
            };
            let Some(tag) = stream.shelf.tag else {
                continue;
            };
            if stream.shelf.told >= stream.shelf.upto {
                continue;
            }
            let floor = stream.floor(flying);
            if floor > stream.shelf.told {
                stream.shelf.told = floor;
                floors.push((tag, floor));
            }
        }
        floors
    }
}
