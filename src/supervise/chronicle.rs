//! what happens, one after the other → the last of it, and answers to those who follow.
//!
//! Nobody is waited for and nothing queues up for anybody: a follower asks for what came after the last event it
//! has seen, and is answered at once, or once something happens, or with nothing after a while. Who asks too late
//! is told how many events are gone. A slow reader so costs nothing but its own gap.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::request::{EventsAnswer, Reply, RequestId};

/// Events that are kept: hours of a calm board, about 200 KiB.
const KEPT: usize = 1000;
/// As many as the control socket has places; beyond it the oldest is answered with nothing.
const FOLLOWERS: usize = 128;
/// After which a follower hears that nothing happened: it would not know a hung agent from a calm one.
const PATIENCE: Duration = Duration::from_secs(10);
/// Within which a follower asks again.
const RETURN: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Chronicle {
    kept: VecDeque<Value>,
    /// The number of the latest event; the first one's was 1.
    last: u64,
    followers: VecDeque<Follower>,
    /// Followers that were answered lately and have not asked again, and when the last one was.
    away: usize,
    answered_at: Option<Instant>,
}

#[derive(Debug)]
struct Follower {
    id: RequestId,
    after: u64,
    until: Instant,
}

impl Chronicle {
    pub fn note(&mut self, event: Value) {
        if self.kept.len() >= KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(event);
        self.last += 1;
    }

    /// The answer comes from [`Chronicle::answers`].
    pub fn follow(&mut self, id: RequestId, after: u64, now: Instant) {
        if self.followers.len() >= FOLLOWERS
            && let Some(oldest) = self.followers.front_mut()
        {
            oldest.until = now;
        }
        let until = now + PATIENCE;
        self.followed();
        self.followers.push_back(Follower { id, after, until });
    }

    /// What there is to tell now, and to whom.
    pub fn answers(&mut self, now: Instant) -> Vec<(RequestId, Reply)> {
        let (due, waiting) = std::mem::take(&mut self.followers)
            .into_iter()
            .partition(|follower| follower.after != self.last || follower.until <= now);
        self.followers = waiting;
        let due: VecDeque<Follower> = due;
        if !due.is_empty() {
            let known = if self.is_followed(now) { self.away } else { 0 };
            self.away = (known + due.len()).min(FOLLOWERS);
            self.answered_at = Some(now);
        }
        due.into_iter()
            .map(|follower| (follower.id, self.after(follower.after)))
            .collect()
    }

    /// One of those who are expected to ask again did.
    pub fn followed(&mut self) {
        self.away = self.away.saturating_sub(1);
    }

    /// Somebody was answered so lately that they will ask again, if they have not left.
    pub fn is_followed(&self, now: Instant) -> bool {
        let lately = |at: Instant| now.saturating_duration_since(at) < RETURN;
        self.away > 0 && self.answered_at.is_some_and(lately)
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.followers.iter().map(|follower| follower.until).min()
    }

    /// What came after the event of this number. A number that was never given is one of an earlier agent's.
    pub fn after(&self, after: u64) -> Reply {
        let after = if after > self.last { 0 } else { after };
        let first = self.last - self.kept.len() as u64;
        let known = usize::try_from(after.saturating_sub(first)).unwrap_or(usize::MAX);
        let answer = EventsAnswer {
            events: self.kept.iter().skip(known).cloned().collect(),
            last: self.last,
            // Who asks for what is kept has missed nothing.
            missed: match after {
                0 => 0,
                after => first.saturating_sub(after),
            },
        };
        match serde_json::to_value(answer) {
            Ok(answer) => Reply::done(answer),
            Err(error) => Reply::refused(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(reply: Reply) -> (Vec<u64>, u64, u64) {
        let answer: EventsAnswer = serde_json::from_value(reply.data).expect("an answer");
        let numbers = answer.events.iter().filter_map(Value::as_u64).collect();
        (numbers, answer.last, answer.missed)
    }

    #[test]
    fn who_reads_slowly_is_told_what_is_gone() {
        let mut chronicle = Chronicle::default();
        assert_eq!(told(chronicle.after(0)), (vec![], 0, 0));
        for number in 1..=3 {
            chronicle.note(json!(number));
        }
        assert_eq!(told(chronicle.after(0)), (vec![1, 2, 3], 3, 0));
        assert_eq!(told(chronicle.after(2)), (vec![3], 3, 0));
        assert_eq!(told(chronicle.after(3)), (vec![], 3, 0));
        assert_eq!(
            told(chronicle.after(9)),
            (vec![1, 2, 3], 3, 0),
            "another agent's"
        );
        let kept = KEPT as u64;
        for number in 4..=kept + 10 {
            chronicle.note(json!(number));
        }
        let (numbers, last, missed) = told(chronicle.after(5));
        assert_eq!((numbers.len(), numbers[0]), (KEPT, 11));
        assert_eq!((last, missed), (kept + 10, 5));
        assert_eq!(told(chronicle.after(0)).2, 0);
    }

    #[test]
    fn followers_are_answered_once_each() {
        let mut chronicle = Chronicle::default();
        let now = Instant::now();
        chronicle.note(json!(1));
        chronicle.follow(RequestId(1), 0, now);
        chronicle.follow(RequestId(2), 1, now);
        let ids = |answers: Vec<(RequestId, Reply)>| -> Vec<u64> {
            answers.into_iter().map(|(id, _)| id.0).collect()
        };
        assert_eq!(ids(chronicle.answers(now)), [1]);
        assert_eq!(chronicle.deadline(), Some(now + PATIENCE));
        assert!(ids(chronicle.answers(now)).is_empty());
        chronicle.note(json!(2));
        assert_eq!(ids(chronicle.answers(now)), [2]);
        chronicle.follow(RequestId(3), 2, now);
        assert_eq!(ids(chronicle.answers(now + PATIENCE)), [3]);
        assert_eq!(chronicle.deadline(), None);
        for id in 0..=FOLLOWERS as u64 {
            chronicle.follow(RequestId(id), 2, now);
        }
        assert_eq!(ids(chronicle.answers(now)), [0]);
    }
}
