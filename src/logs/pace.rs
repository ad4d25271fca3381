//! How much a read brought, now → when to read next.
//!
//! Lines that come slowly travel together: after a small read the next one waits for the next
//! point of a grid of [`GRID`], so that a line costs a share of a wake-up, and all slow
//! services share the same wake-ups. After a big read the next follows at once, and no wait
//! is so long that the child could fill more than half of its pipe meanwhile: a fast child is
//! never held up. A silent one costs nothing.

use std::time::{Duration, Instant};

/// The longest pause. A flush per line costs about 30 to 50 µs of CPU, one every 5 ms at
/// 1,000 lines/s a fifth of that; latency stays below what a person notices.
pub const GRID: Duration = Duration::from_millis(5);

/// Bytes. A read of at least this much is worth its flush.
pub const BIG_READ: usize = 16 * 1024;

/// Timers have a resolution of a millisecond: shorter pauses would be longer than asked for.
const SHORTEST: Duration = Duration::from_millis(1);

/// The pace of one pipe.
#[derive(Debug)]
pub struct Pace {
    /// The grid counts from here; all pipes have the same.
    origin: Instant,
    /// Bytes that the pipe holds.
    capacity: usize,
    /// Since when `bytes` were read.
    since: Instant,
    bytes: usize,
}

impl Pace {
    pub fn new(origin: Instant, now: Instant, capacity: usize) -> Pace {
        Pace {
            origin,
            capacity,
            since: now,
            bytes: 0,
        }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn enlarged(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// Some bytes were read; when to read next (`now` or earlier: at once).
    pub fn step(&mut self, now: Instant, read: usize) -> Instant {
        self.bytes += read;
        if read >= BIG_READ {
            return now;
        }
        let passed = now.saturating_duration_since(self.since);
        // Bytes per `passed` → time for half a pipe.
        let half = self.capacity as u64 / 2;
        let nanos = (passed.as_nanos() as u64).saturating_mul(half) / self.bytes.max(1) as u64;
        (self.since, self.bytes) = (now, 0);
        let limit = Duration::from_nanos(nanos);
        let next = self.next_point(now);
        match next.saturating_duration_since(now) <= limit {
            true => next,
            false if limit < SHORTEST => now,
            false => now + limit,
        }
    }

    /// The pipe was empty, and now it is not: what came before says nothing about the rate.
    pub fn woke(&mut self, now: Instant) {
        // As if half a grid had passed: a first burst is judged by its size.
        self.since = now.checked_sub(GRID / 2).unwrap_or(now);
        self.bytes = 0;
    }

    fn next_point(&self, now: Instant) -> Instant {
        let passed = now.saturating_duration_since(self.origin);
        let grid = GRID.as_nanos() as u64;
        let into = (passed.as_nanos() as u64) % grid;
        now + Duration::from_nanos(grid - into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPE: usize = 64 * 1024;

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    #[test]
    fn slow_lines_meet_at_the_grid() {
        let origin = Instant::now();
        let mut pace = Pace::new(origin, origin, PIPE);
        let now = origin + ms(7.0);
        pace.woke(now);
        assert_eq!(pace.step(now, 100), origin + ms(10.0));
        assert_eq!(pace.step(origin + ms(10.5), 500), origin + ms(15.0));
        assert_eq!(pace.step(origin + ms(15.0), 500), origin + ms(20.0));
    }

    #[test]
    fn a_big_read_is_followed_at_once() {
        let origin = Instant::now();
        let mut pace = Pace::new(origin, origin, PIPE);
        let now = origin + ms(1.0);
        assert_eq!(pace.step(now, BIG_READ), now);
    }

    #[test]
    fn a_pause_is_never_longer_than_half_a_pipe() {
        let origin = Instant::now();
        let mut pace = Pace::new(origin, origin, PIPE);
        // 60,000 bytes in 4 ms, then a little: half a pipe is 2.18 ms.
        let now = origin + ms(4.0);
        assert_eq!(pace.step(now, 60_000), now);
        let pause = pace.step(now, 100) - now;
        assert!(pause <= ms(32_768.0 / 60_100.0 * 4.0), "{pause:?}");
        // Ten times as fast: no pause at all.
        let (start, now) = (now, now + ms(0.4));
        assert!(start < now);
        assert_eq!(pace.step(now, 60_000), now);
        assert_eq!(pace.step(now, 100), now);
    }
}
