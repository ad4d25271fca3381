//! acknowledged parcels → what is to be checked after a reconnect.
//!
//! A server that dies may lose what it acknowledged last: about a second with `appendfsync
//! everysec`, as much as a replica lags, everything without persistence. What was acknowledged
//! is kept until Redis has answered something [`MEMORY`] later.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::stream::{Doubt, Parcel};

/// A server with `appendfsync everysec`, or a replica that takes over, may lose its last
/// second; a busy one two.
pub const MEMORY: Duration = Duration::from_secs(2);

/// Parcels that were acknowledged a moment ago.
#[derive(Debug, Default)]
pub struct Recent {
    parcels: VecDeque<(Instant, Parcel)>,
    entries: u64,
    cost: usize,
}

impl Recent {
    /// Of a stream that is trimmed only the last entries matter.
    pub fn keep(&mut self, parcel: Parcel, now: Instant, max_len: u64) {
        self.entries += parcel.len() as u64;
        self.cost += parcel.cost();
        self.parcels.push_back((now, parcel));
        while max_len > 0
            && let Some((_, oldest)) = self.parcels.front()
            && self.entries - oldest.len() as u64 >= max_len
        {
            self.forget_oldest();
        }
    }

    pub fn cost(&self) -> usize {
        self.cost
    }

    pub fn forget_oldest(&mut self) {
        if let Some((_, parcel)) = self.parcels.pop_front() {
            self.entries -= parcel.len() as u64;
            self.cost -= parcel.cost();
        }
    }

    /// Redis answered at `heard`: what it acknowledged [`MEMORY`] earlier is safe.
    pub fn forget_safe(&mut self, heard: Instant) {
        while let Some((at, _)) = self.parcels.front()
            && heard.saturating_duration_since(*at) >= MEMORY
        {
            self.forget_oldest();
        }
    }

    pub fn newest(&self) -> Option<Instant> {
        self.parcels.back().map(|(at, _)| *at)
    }

    /// The connection is gone: all of them are to be checked.
    pub fn drain(&mut self) -> impl Iterator<Item = Parcel> {
        self.entries = 0;
        self.cost = 0;
        std::mem::take(&mut self.parcels)
            .into_iter()
            .map(|(_, parcel)| parcel.doubted(Doubt::Acknowledged))
    }
}
