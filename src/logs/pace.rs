//! How much a read brought, now → when to read next.
//!
//! Lines that come slowly travel together: after a small read the next one waits for the next
//! point of a grid of [`GRID`], so that a line costs a share of a wake-up, and all slow
//! services share the same wake-ups. While lines keep coming the pipe is looked at with every
//! point; after [`LINGER`] without any it is waited for, and a line that comes alone after
//! that is sent at once and waited behind at once. After a big read the next follows at once,
//! and
//! no wait is so long that the child could fill more than half of its pipe meanwhile: a fast
//! child is not held up, but for one pause at the beginning of a burst. A silent one costs nothing.

use std::time::{Duration, Instant};

/// The longest pause. A flush per line costs about 30 to 50 µs of CPU, one every 5 ms at
/// 1,000 lines/s a fifth of that; latency stays below what a person notices.
pub const GRID: Duration = Duration::from_millis(5);

/// How long an empty pipe is looked at before it is waited for: an empty read costs less than
/// a tenth of a wake-up.
pub const LINGER: Duration = Duration::from_millis(20);

/// Bytes. A read of at least this much is worth its flush.
pub const BIG_READ: usize = 16 * 1024;

/// Timers have a resolution of a millisecond: shorter pauses would be longer than asked for.
const SHORTEST: Duration = Duration::from_millis(1);

/// When to read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    At(Instant),
    /// As soon as there is something.
    WhenReadable,
}

/// The pace of one pipe.
#[derive(Debug)]
pub struct Pace {
    /// The grid counts from here; all pipes have the same.
    origin: Instant,
    /// Bytes that the pipe holds.
    capacity: usize,
    /// When something was read last.
    last: Instant,
    /// When the last pause began, and how many bytes were read since.
    since: Instant,
    bytes: usize,
    /// The next pause is no longer than this.
    limit: Duration,
}

impl Pace {
    pub fn new(origin: Instant, now: Instant, capacity: usize) -> Pace {
        Pace {
            origin,
            capacity,
            last: now,
            since: now,
            bytes: 0,
            limit: GRID,
        }
    }

    /// The child may have waited for room in the pipe: a larger one would do it good. (A pipe
    /// whose last page took no whole line is full before its capacity.)
    pub fn is_cramped(&self) -> bool {
        self.bytes >= self.capacity / 4 * 3
    }

    pub fn enlarged(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    /// So many bytes were read, 0 where the pipe was empty.
    pub fn step(&mut self, now: Instant, read: usize) -> Next {
        let quiet = now.saturating_duration_since(self.last);
        if read == 0 {
            return match quiet < LINGER {
                true => Next::At(self.next_point(now)),
                false => Next::WhenReadable,
            };
        }
        self.last = now;
        self.bytes += read;
        if read >= BIG_READ {
            return Next::At(now);
        }
        self.learn(now);
        if quiet >= LINGER {
            return Next::WhenReadable;
        }
        let point = self.next_point(now);
        match point.saturating_duration_since(now) <= self.limit {
            true => Next::At(point),
            false if self.limit < SHORTEST => Next::At(now),
            false => Next::At(now + self.limit),
        }
    }

    /// A pause is over, and what came meanwhile is read: how long may the next one be?
    fn learn(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        self.limit = match self.bytes < self.capacity / 2 {
            // The child was not held up, so this is its rate: time for a quarter of the pipe.
            true => {
                let nanos = (passed.as_nanos() as u64).saturating_mul(self.capacity as u64 / 4);
                Duration::from_nanos(nanos / self.bytes.max(1) as u64).min(GRID)
            }
            // It may have been held up: its rate is not known.
            false => self.limit / 4,
        };
        (self.since, self.bytes) = (now, 0);
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
        for (now, read, next) in [(7.0, 100, 10.0), (10.5, 500, 15.0), (15.0, 0, 20.0)] {
            let next = Next::At(origin + ms(next));
            assert_eq!(pace.step(origin + ms(now), read), next);
        }
    }

    #[test]
    fn silence_is_waited_for_and_a_lonely_line_is_not_waited_behind() {
        let origin = Instant::now();
        let mut pace = Pace::new(origin, origin, PIPE);
        let mut step = |now: f64, read| pace.step(origin + ms(now), read);
        assert_eq!(step(25.0, 0), Next::WhenReadable);
        assert_eq!(step(1000.0, 80), Next::WhenReadable);
        assert_eq!(step(1010.5, 80), Next::At(origin + ms(1015.0)));
        assert_eq!(step(1015.1, 0), Next::At(origin + ms(1020.0)));
        assert_eq!(step(1031.0, 0), Next::WhenReadable);
    }

    #[test]
    fn a_big_read_is_followed_at_once() {
        let origin = Instant::now();
        let mut pace = Pace::new(origin, origin, PIPE);
        for now in [origin + ms(1.0), origin + ms(1000.0)] {
            assert_eq!(pace.step(now, BIG_READ), Next::At(now));
        }
    }

    #[test]
    fn a_pause_is_never_longer_than_the_child_takes_to_fill_its_pipe() {
        let origin = Instant::now();
        let mut pace = Pace::new(origin, origin, PIPE);
        // 20,000 bytes in 4 ms: a quarter of the pipe is 3.3 ms.
        let now = origin + ms(4.0);
        assert_eq!(pace.step(now, 19_900), Next::At(now));
        assert_eq!(pace.step(now, 100), Next::At(origin + ms(5.0)));
        assert_eq!(pace.step(now, 100), Next::At(now));
    }

    #[test]
    fn a_child_that_was_held_up_is_not_any_more() {
        let origin = Instant::now();
        let mut pace = Pace::new(origin, origin, PIPE);
        let mut now = origin;
        let mut pauses = Vec::new();
        for _ in 0..4 {
            assert!(!pace.is_cramped());
            assert_eq!(pace.step(now, 60_000), Next::At(now));
            assert!(pace.is_cramped());
            let Next::At(next) = pace.step(now, 100) else {
                panic!("a pause");
            };
            pauses.push(next - now);
            now = next;
        }
        assert!(
            pauses[0] <= GRID / 4 && pauses[1] == Duration::ZERO,
            "{pauses:?}"
        );
    }
}
