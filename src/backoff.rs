//! attempt, seed → delay. For restarts of services and for reconnecting to Redis.
//!
//! Doubles from `initial` up to `max`; from the second attempt on the last tenth is spread
//! by the seed, so that fifty services (or a thousand boards) that failed together do not
//! come back together. The same attempt and seed always give the same delay.

use std::time::Duration;

/// How delays grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub initial: Duration,
    pub max: Duration,
}

impl Backoff {
    /// The delay before attempt number `attempt` (1 is the first retry: exactly `initial`).
    pub fn delay(&self, attempt: u32, seed: u64) -> Duration {
        let doublings = attempt.saturating_sub(1).min(32);
        let full = self
            .initial
            .checked_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX))
            .unwrap_or(self.max)
            .min(self.max);
        if doublings == 0 {
            return full;
        }
        let tenth = full / 10;
        let share = (mix(seed ^ u64::from(attempt)) >> 40) as u32; // 24 bits
        full - tenth + tenth.mul_f64(f64::from(share) / f64::from(1u32 << 24))
    }
}

/// A cheap avalanche of all bits (the finalizer of SplitMix64).
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff {
        initial: Duration::from_millis(100),
        max: Duration::from_secs(30),
    };

    #[test]
    fn doubles_within_the_spread_and_stops_at_the_maximum() {
        assert_eq!(BACKOFF.delay(1, 7), Duration::from_millis(100));
        for (attempt, full) in [
            (2, 200),
            (3, 400),
            (9, 25_600),
            (10, 30_000),
            (4_000, 30_000),
        ] {
            let delay = BACKOFF.delay(attempt, 7).as_millis();
            assert!(
                (full * 9 / 10..=full).contains(&delay),
                "attempt {attempt}: {delay}"
            );
        }
    }

    #[test]
    fn seeds_spread() {
        let delays: std::collections::BTreeSet<_> =
            (0..50).map(|seed| BACKOFF.delay(5, seed)).collect();
        assert!(delays.len() > 45);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let wide = Backoff {
            initial: Duration::MAX / 2,
            max: Duration::MAX,
        };
        assert!(wide.delay(u32::MAX, u64::MAX) <= Duration::MAX);
        let none = Backoff {
            initial: Duration::ZERO,
            max: Duration::ZERO,
        };
        assert_eq!(none.delay(9, 1), Duration::ZERO);
    }
}
