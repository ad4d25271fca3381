//! arrivals → how long the next one has to wait.
//!
//! At most `burst` at once and one per `gap` in the long run, whatever arrives (the generic
//! cell rate algorithm, ITU-T I.371): a stranger who connects and asks as fast as the kernel
//! lets him must not take the thread from the services' lines.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    gap: Duration,
    /// `gap` times the arrivals that may come at once.
    slack: Duration,
    /// When the next arrival is due if all had kept to the gap.
    due: Instant,
}

impl Pace {
    pub fn new(now: Instant, burst: u32, gap: Duration) -> Pace {
        Pace {
            gap,
            slack: gap * burst,
            due: now,
        }
    }

    /// Counts one arrival; it may go on at the returned time, `now` at the earliest.
    pub fn next(&mut self, now: Instant) -> Instant {
        self.due = self.due.max(now) + self.gap;
        now.max(self.due.checked_sub(self.slack).unwrap_or(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_gap_then_a_burst_again() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let mut pace = Pace::new(start, 3, Duration::from_millis(10));
        let at: Vec<_> = (0..6).map(|_| pace.next(start)).collect();
        assert_eq!(at, [ms(0), ms(0), ms(0), ms(10), ms(20), ms(30)]);
        assert_eq!(pace.next(ms(1000)), ms(1000));
        assert_eq!(pace.next(ms(1000)), ms(1000));
        assert_eq!(pace.next(ms(1000)), ms(1000));
        assert_eq!(pace.next(ms(1000)), ms(1010));
    }
}
