//! Beats and elapsed time → a pool's eight values.
//!
//! Health begins at `init`, which may exceed `cap`: a grace period. It falls by
//! `depletion_rate` per second, exactly in proportion to the elapsed milliseconds, and rises
//! by `replenish_rate` per beat up to `cap`: a beat never lifts it above `cap`, and never
//! lowers it where `init` put it above. It never falls below 0, and is 0 while there is no
//! process. Published is its whole part.
//!
//! Levels are kept in thousandths: a rate per second is as many thousandths per millisecond,
//! so nothing is ever rounded. All arithmetic saturates; negative settings count as 0.

use std::time::{Duration, Instant};

use crate::handoff::{BeatKind, PoolProperty, PoolSettings};
use crate::record::POOL_PROPERTIES;

/// The values of [`POOL_PROPERTIES`], in that order.
pub type Values = [i64; POOL_PROPERTIES.len()];

const DEFAULT_CAP: i64 = 100;
const DEFAULT_DEPLETION_RATE: i64 = 10;
const DEFAULT_REPLENISH_RATE: i64 = 20;

#[derive(Clone, Debug)]
pub struct Pool {
    /// What was given; the rest are defaults.
    settings: PoolSettings,
    /// Ever, across restarts of the process and of the agent.
    beats: i64,
    life: Life,
}

#[derive(Clone, Copy, Debug)]
enum Life {
    Down,
    Up {
        /// Thousandths, at `at`.
        level: i128,
        at: Instant,
        /// There was a beat since the start.
        beaten: bool,
    },
}

/// What may happen to a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The process began: so does health, at `init`.
    Start,
    /// The process ended.
    Stop,
    Mark(BeatKind),
    /// Nothing but time.
    Pass,
}

impl Pool {
    pub fn new(settings: PoolSettings) -> Pool {
        Pool {
            settings,
            beats: 0,
            life: Life::Down,
        }
    }

    pub fn step(&mut self, now: Instant, input: Input) {
        self.pass(now);
        match input {
            Input::Start => self.begin(now),
            Input::Stop => self.life = Life::Down,
            Input::Mark(BeatKind::Beats(times)) => self.beat(times),
            Input::Mark(BeatKind::SetBeats(beats)) => self.beats = beats.max(0),
            Input::Mark(BeatKind::Set(property, value)) => self.set(now, property, value),
            Input::Pass => {}
        }
    }

    /// New settings from the configuration; what it leaves open stays as markers gave it.
    pub fn configure(&mut self, now: Instant, settings: &PoolSettings) {
        for (property, value) in [
            (PoolProperty::Cap, settings.cap),
            (PoolProperty::DepletionRate, settings.depletion_rate),
            (PoolProperty::Init, settings.init),
            (PoolProperty::ReplenishRate, settings.replenish_rate),
        ] {
            if let Some(value) = value {
                self.step(now, Input::Mark(BeatKind::Set(property, value)));
            }
        }
    }

    /// So many beats were counted before this pool came to be.
    pub fn count_on(&mut self, beats: i64) {
        self.beats = self.beats.saturating_add(beats.max(0));
    }

    pub fn beats(&self) -> i64 {
        self.beats
    }

    /// As of the last step.
    pub fn health(&self) -> i64 {
        match self.life {
            Life::Down => 0,
            Life::Up { level, .. } => i64::try_from(level / 1000).unwrap_or(i64::MAX),
        }
    }

    /// All values as of the last step; `exit` is the process' last exit code.
    pub fn values(&self, exit: i64) -> Values {
        let running = i64::from(self.is_up());
        [
            self.beats,
            self.cap(),
            self.depletion_rate(),
            self.init(),
            self.replenish_rate(),
            running,
            exit,
            self.health(),
        ]
    }

    /// Its process lives.
    pub fn is_up(&self) -> bool {
        matches!(self.life, Life::Up { .. })
    }

    /// The health of a full pool.
    pub fn cap(&self) -> i64 {
        self.settings.cap.unwrap_or(DEFAULT_CAP).max(0)
    }

    fn init(&self) -> i64 {
        self.settings.init.unwrap_or(self.cap()).max(0)
    }

    fn depletion_rate(&self) -> i64 {
        let rate = self.settings.depletion_rate;
        rate.unwrap_or(DEFAULT_DEPLETION_RATE).max(0)
    }

    fn replenish_rate(&self) -> i64 {
        let rate = self.settings.replenish_rate;
        rate.unwrap_or(DEFAULT_REPLENISH_RATE).max(0)
    }

    fn begin(&mut self, now: Instant) {
        self.life = Life::Up {
            level: i128::from(self.init()) * 1000,
            at: now,
            beaten: false,
        };
    }

    fn pass(&mut self, now: Instant) {
        let rate = i128::from(self.depletion_rate());
        if let Life::Up { level, at, .. } = &mut self.life {
            // Whole milliseconds; the rest counts the next time.
            let passed = now.saturating_duration_since(*at).as_millis();
            let passed = u64::try_from(passed).unwrap_or(u64::MAX);
            let fallen = rate.saturating_mul(i128::from(passed));
            *level = level.saturating_sub(fallen).max(0);
            *at = at.checked_add(Duration::from_millis(passed)).unwrap_or(now);
        }
    }

    fn beat(&mut self, times: u64) {
        let cap = i128::from(self.cap()) * 1000;
        let rise = i128::from(self.replenish_rate()) * 1000;
        let times_counted = i64::try_from(times).unwrap_or(i64::MAX);
        self.beats = self.beats.saturating_add(times_counted);
        if let Life::Up { level, beaten, .. } = &mut self.life {
            *beaten |= times > 0;
            if *level < cap {
                let risen = level.saturating_add(rise.saturating_mul(i128::from(times)));
                *level = risen.min(cap);
            }
        }
    }

    fn set(&mut self, now: Instant, property: PoolProperty, value: i64) {
        let before = self.init();
        match property {
            PoolProperty::Cap => self.settings.cap = Some(value),
            PoolProperty::DepletionRate => self.settings.depletion_rate = Some(value),
            PoolProperty::Init => self.settings.init = Some(value),
            PoolProperty::ReplenishRate => self.settings.replenish_rate = Some(value),
        }
        // A service that declares its pool after its start begins where it says; a cap
        // without an init is one.
        let says = property == PoolProperty::Init || self.init() != before;
        if says && matches!(self.life, Life::Up { beaten: false, .. }) {
            self.begin(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(init: i64, cap: i64, depletion_rate: i64, replenish_rate: i64) -> Pool {
        Pool::new(PoolSettings {
            category: "api".to_owned(),
            init: Some(init),
            cap: Some(cap),
            depletion_rate: Some(depletion_rate),
            replenish_rate: Some(replenish_rate),
        })
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_example_of_the_contract() {
        let start = Instant::now();
        let mut pool = pool(1500, 1000, 100, 15);
        assert_eq!(pool.values(0), [0, 1000, 100, 1500, 15, 0, 0, 0]);
        pool.step(start, Input::Start);
        assert_eq!(pool.health(), 1500);
        // Above the cap a beat does nothing but count.
        pool.step(start + ms(1000), Input::Mark(BeatKind::Beats(5)));
        assert_eq!(pool.values(0), [5, 1000, 100, 1500, 15, 1, 0, 1400]);
        pool.step(start + ms(5500), Input::Pass);
        assert_eq!(pool.health(), 950);
        pool.step(start + ms(5500), Input::Mark(BeatKind::Beats(2)));
        assert_eq!(pool.health(), 980);
        pool.step(start + ms(5500), Input::Mark(BeatKind::Beats(2)));
        assert_eq!(pool.health(), 1000);
        pool.step(start + ms(60_000), Input::Pass);
        assert_eq!(pool.health(), 0);
        pool.step(start + ms(60_000), Input::Mark(BeatKind::Beats(1)));
        assert_eq!(pool.health(), 15);
        pool.step(start + ms(60_001), Input::Stop);
        assert_eq!(pool.values(139), [10, 1000, 100, 1500, 15, 0, 139, 0]);
        pool.step(start + ms(61_000), Input::Start);
        assert_eq!(pool.values(139), [10, 1000, 100, 1500, 15, 1, 139, 1500]);
    }

    #[test]
    fn defaults() {
        let start = Instant::now();
        let mut pool = Pool::new(PoolSettings::default());
        pool.step(start, Input::Start);
        assert_eq!(pool.values(0), [0, 100, 10, 100, 20, 1, 0, 100]);
        // A pool that gets a beat each second is full each second.
        for second in 1..100 {
            pool.step(
                start + ms(second * 1000 + 7),
                Input::Mark(BeatKind::Beats(1)),
            );
            assert_eq!(pool.health(), 100);
        }
    }

    #[test]
    fn a_declaration_after_the_start_begins_there_until_a_beat() {
        let start = Instant::now();
        let set = |property, value| Input::Mark(BeatKind::Set(property, value));
        let mut pool = Pool::new(PoolSettings::default());
        pool.step(start, Input::Start);
        pool.step(start + ms(500), set(PoolProperty::Cap, 1000));
        assert_eq!(pool.health(), 1000);
        pool.step(start + ms(700), set(PoolProperty::Init, 1500));
        assert_eq!(pool.health(), 1500);
        pool.step(start + ms(700), set(PoolProperty::DepletionRate, 100));
        pool.step(start + ms(1700), Input::Mark(BeatKind::Beats(1)));
        pool.step(start + ms(1700), set(PoolProperty::Init, 3000));
        assert_eq!(pool.health(), 1400);
    }

    #[test]
    fn extremes_saturate() {
        let start = Instant::now();
        let mut pool = pool(i64::MAX, i64::MAX, i64::MAX, i64::MAX);
        pool.step(start, Input::Start);
        assert_eq!(pool.health(), i64::MAX);
        pool.step(start + ms(1), Input::Pass);
        assert_eq!(pool.health(), i64::MAX - i64::MAX / 1000 - 1);
        pool.step(start + Duration::from_secs(1 << 33), Input::Pass);
        assert_eq!(pool.health(), 0);
        for _ in 0..2 {
            pool.step(start, Input::Mark(BeatKind::Beats(u64::MAX)));
        }
        assert_eq!(pool.values(-1)[0], i64::MAX);
        pool.step(
            start,
            Input::Mark(BeatKind::Set(PoolProperty::Cap, i64::MIN)),
        );
        assert_eq!(pool.values(0)[1], 0);
    }
}
