//! The pool against an independent model: millisecond by millisecond instead of by formula.
//!
//! Beat trains, settings that change under way, restarts, and times that jump ahead or back
//! (an `Instant` that a caller took earlier).

use std::time::{Duration, Instant};

use jettison_agent::handoff::{BeatKind, PoolProperty, PoolSettings};
use jettison_agent::health::pool::{Input, Pool};

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

/// Levels as fractions of 1000, one millisecond after the other.
#[derive(Default)]
struct Model {
    given: [Option<i64>; 4],
    beats: i64,
    up: Option<Up>,
}

struct Up {
    thousandths: i64,
    /// Microseconds of the start, and whole milliseconds lived since.
    start: u64,
    lived: u64,
    beaten: bool,
}

impl Model {
    fn cap(&self) -> i64 {
        self.given[0].unwrap_or(100)
    }
    fn depletion(&self) -> i64 {
        self.given[1].unwrap_or(10)
    }
    fn init(&self) -> i64 {
        self.given[2].unwrap_or_else(|| self.cap())
    }
    fn replenish(&self) -> i64 {
        self.given[3].unwrap_or(20)
    }

    fn live_until(&mut self, micros: u64) {
        let depletion = self.depletion();
        if let Some(up) = &mut self.up {
            while up.start + (up.lived + 1) * 1000 <= micros {
                up.lived += 1;
                up.thousandths -= depletion;
                if up.thousandths < 0 {
                    up.thousandths = 0;
                }
            }
        }
    }

    fn act(&mut self, micros: u64, input: Input) {
        self.live_until(micros);
        let (cap, replenish) = (self.cap(), self.replenish());
        match input {
            Input::Start => self.start(micros),
            Input::Stop => self.up = None,
            Input::Pass => {}
            Input::Mark(BeatKind::SetBeats(beats)) => self.beats = beats,
            Input::Mark(BeatKind::Beats(times)) => {
                for _ in 0..times {
                    self.beats += 1;
                    let Some(up) = &mut self.up else { continue };
                    up.beaten = true;
                    let risen = up.thousandths + replenish * 1000;
                    up.thousandths = up.thousandths.max(risen.min(cap * 1000));
                }
            }
            Input::Mark(BeatKind::Set(property, value)) => {
                let init = self.init();
                let place = match property {
                    PoolProperty::Cap => 0,
                    PoolProperty::DepletionRate => 1,
                    PoolProperty::Init => 2,
                    PoolProperty::ReplenishRate => 3,
                };
                self.given[place] = Some(value);
                let unbeaten = self.up.as_ref().is_some_and(|up| !up.beaten);
                if unbeaten && (place == 2 || self.init() != init) {
                    self.start(micros);
                }
            }
        }
    }

    fn start(&mut self, micros: u64) {
        self.up = Some(Up {
            thousandths: self.init() * 1000,
            start: micros,
            lived: 0,
            beaten: false,
        });
    }

    fn values(&self) -> [i64; 8] {
        let health = self.up.as_ref().map_or(0, |up| up.thousandths / 1000);
        let running = i64::from(self.up.is_some());
        let (cap, init) = (self.cap(), self.init());
        [
            self.beats,
            cap,
            self.depletion(),
            init,
            self.replenish(),
            running,
            7,
            health,
        ]
    }
}

fn input(random: &mut Random) -> Input {
    let property = match random.below(4) {
        0 => PoolProperty::Cap,
        1 => PoolProperty::DepletionRate,
        2 => PoolProperty::Init,
        _ => PoolProperty::ReplenishRate,
    };
    match random.below(20) {
        0 => Input::Start,
        1 => Input::Stop,
        2 => Input::Mark(BeatKind::SetBeats(random.below(1000) as i64)),
        3..6 => {
            let largest = [1, 10, 300, 2000][random.below(4) as usize];
            Input::Mark(BeatKind::Set(property, random.below(largest) as i64))
        }
        6..10 => Input::Pass,
        _ => Input::Mark(BeatKind::Beats(random.below(4))),
    }
}

#[test]
fn beat_trains_give_what_the_model_gives() {
    let origin = Instant::now();
    for case in 0..3000 {
        let random = &mut Random(case * 7919 + 1);
        let mut pool = Pool::new(PoolSettings::default());
        let mut model = Model::default();
        let mut micros = 0;
        for step in 0..60 {
            micros += match random.below(8) {
                0 => random.below(40_000_000),
                1 => 0,
                2 => random.below(999),
                _ => random.below(1_500_000),
            };
            // A caller's clock reading may be older than the last one.
            let behind = if random.below(10) == 0 {
                random.below(micros.max(1))
            } else {
                0
            };
            let input = match input(random) {
                // A start at an older time would be another story for the model.
                Input::Mark(BeatKind::Set(..)) | Input::Start if behind > 0 => Input::Pass,
                input => input,
            };
            let at = micros - behind;
            pool.step(origin + Duration::from_micros(at), input);
            model.act(at, input);
            assert_eq!(
                pool.values(7),
                model.values(),
                "case {case}, step {step}, {input:?}"
            );
        }
    }
}
