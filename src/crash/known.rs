//! which crashes were reported of late → whether one more is the same again.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::service::ServiceName;

/// Repeats of one signature of one service that are reported in full within [`RATE_INTERVAL`].
const RATE: usize = 10;
const RATE_INTERVAL: Duration = Duration::from_secs(60);
/// Places that are remembered.
const MOST_SITES: usize = 1000;

/// What counts as the same crash again: a service and a signature. Another service's is news.
pub type Same = (ServiceName, String);

#[derive(Default)]
pub struct Known {
    /// The signature that a place of a service had the last time.
    sites: HashMap<(ServiceName, String), String>,
    /// When each signature of a service was reported in full.
    told: HashMap<Same, VecDeque<Instant>>,
    /// Crashes that wait on disk for their analysis, by identifier, and where they happened.
    waiting: HashMap<String, (ServiceName, String)>,
}

impl Known {
    /// What a service's crash at a place was the last time.
    pub fn at(&self, service: &ServiceName, site: &str) -> Option<Same> {
        let signature = self.sites.get(&(service.clone(), site.to_owned()))?;
        Some((service.clone(), signature.clone()))
    }

    pub fn is_often_at(&self, service: &ServiceName, site: &str, now: Instant) -> bool {
        let same = self.at(service, site);
        same.is_some_and(|same| self.is_often(&same, now))
    }

    /// Whether one more crash at a place will be reported in full, as far as can be told before its analysis: then it
    /// waits, until [`Known::take_up`].
    pub fn is_to_wait(
        &mut self,
        id: &str,
        service: &ServiceName,
        site: &str,
        now: Instant,
    ) -> bool {
        let same = self.at(service, site);
        let told = same.map_or(0, |same| self.lately(&same, now));
        let place = (service.clone(), site.to_owned());
        let waiting = self.waiting.values().filter(|at| **at == place).count();
        let is_to_wait = told + waiting < RATE;
        if is_to_wait {
            self.waiting.insert(id.to_owned(), place);
        }
        is_to_wait
    }

    pub fn take_up(&mut self, id: &str) {
        self.waiting.remove(id);
    }

    /// Whether a signature was reported in full as often as it may be.
    pub fn is_often(&self, same: &Same, now: Instant) -> bool {
        self.lately(same, now) >= RATE
    }

    fn lately(&self, same: &Same, now: Instant) -> usize {
        let told = self.told.get(same).into_iter().flatten();
        let recently = |at: &&Instant| now.duration_since(**at) < RATE_INTERVAL;
        told.filter(recently).count()
    }

    pub fn learn(&mut self, service: &ServiceName, site: String, signature: &str) {
        if self.sites.len() >= MOST_SITES {
            self.sites.clear();
        }
        if !site.is_empty() {
            self.sites
                .insert((service.clone(), site), signature.to_owned());
        }
    }

    pub fn told(&mut self, same: Same, now: Instant) {
        self.told.entry(same).or_default().push_back(now);
    }

    pub fn forget_old(&mut self, now: Instant) {
        self.told.retain(|_, at| {
            at.retain(|at| now.duration_since(*at) < RATE_INTERVAL);
            !at.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eleventh_within_a_minute_is_counted_only_and_another_services_is_not() {
        let name = |name: &str| ServiceName::new(name).expect("a name");
        let (camera, radar) = (name("camera"), name("radar"));
        let now = Instant::now();
        let mut known = Known::default();
        for service in [&camera, &radar] {
            known.learn(service, "SEGV x+1".to_owned(), "abc");
        }
        for _ in 0..RATE {
            assert!(!known.is_often_at(&camera, "SEGV x+1", now));
            known.told((camera.clone(), "abc".to_owned()), now);
        }
        assert!(known.is_often_at(&camera, "SEGV x+1", now));
        assert!(!known.is_often_at(&camera, "SEGV x+2", now));
        assert!(!known.is_often_at(&radar, "SEGV x+1", now));
        // Of those that wait some will be counted only.
        let waits = |known: &mut Known, id: u32, service| {
            known.is_to_wait(&id.to_string(), service, "SEGV x+1", now)
        };
        assert!(!waits(&mut known, 0, &camera));
        known.told((radar.clone(), "abc".to_owned()), now);
        let waiting = (1..20).filter(|id| waits(&mut known, *id, &radar)).count();
        assert_eq!(waiting, RATE - 1);
        known.take_up("1");
        assert!(waits(&mut known, 21, &radar));
        let later = now + RATE_INTERVAL;
        assert!(!known.is_often_at(&camera, "SEGV x+1", later));
        known.forget_old(later);
        assert!(known.told.is_empty());
    }
}
