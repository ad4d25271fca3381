//! one service's state → what others may know of it.

use std::time::{Duration, Instant};

use super::machine::Machine;
use super::state::{Life, Next, State, Why};
use crate::config::Kind;
use crate::handoff;

impl Machine {
    pub fn life(&self) -> Option<Life> {
        match &self.state {
            State::Starting { life, .. }
            | State::Up { life, .. }
            | State::Stopping { life, .. }
            | State::Killing { life, .. } => Some(*life),
            State::Down
            | State::Waiting
            | State::Spawning
            | State::Dying { .. }
            | State::BackingOff { .. }
            | State::Failed { .. }
            | State::Blocked { .. }
            | State::Done => None,
        }
    }

    /// From the order to start until nothing of the run is left.
    pub fn is_active(&self) -> bool {
        self.life().is_some() || matches!(self.state, State::Spawning | State::Dying { .. })
    }

    /// Wanted, and on its way to being ready without having failed on it.
    pub fn is_coming(&self) -> bool {
        self.want
            && match &self.state {
                State::Waiting | State::Spawning | State::Starting { .. } => true,
                State::Stopping { why, .. } | State::Killing { why, .. } => *why == Why::Asked,
                State::Dying { next, .. } => *next == Next::AsWanted,
                State::Down
                | State::Up { .. }
                | State::BackingOff { .. }
                | State::Failed { .. }
                | State::Blocked { .. }
                | State::Done => false,
            }
    }

    pub fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed { .. } | State::Blocked { .. })
    }

    /// As operators see it.
    pub fn shown(&self) -> handoff::State {
        match &self.state {
            State::Down => handoff::State::Stopped,
            State::Waiting => handoff::State::Waiting,
            State::Spawning | State::Starting { .. } => handoff::State::Starting,
            State::Up { .. } => handoff::State::Ready,
            State::Stopping { .. } | State::Killing { .. } | State::Dying { .. } => {
                handoff::State::Stopping
            }
            State::BackingOff { .. } => handoff::State::Backoff,
            State::Failed { .. } | State::Blocked { .. } => handoff::State::Failed,
            State::Done => handoff::State::Done,
        }
    }

    /// Why it shows `failed`.
    pub fn reason(&self) -> Option<String> {
        match &self.state {
            State::Failed { reason } => Some(reason.clone()),
            State::Blocked { by } => Some(format!("requires {by}, which failed")),
            State::Down
            | State::Waiting
            | State::Spawning
            | State::Starting { .. }
            | State::Up { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Dying { .. }
            | State::BackingOff { .. }
            | State::Done => None,
        }
    }

    /// In its second failed start in a row, or a later one. Whoever stopped it knows.
    pub fn is_looping(&self, now: Instant) -> bool {
        let up = self.life().and_then(|life| self.lasted(life, now));
        self.want && self.history.is_looping(self.service(), up)
    }

    /// How long it has done what it is there for: since it is ready, or since its start
    /// where it never will be. `None` before.
    pub(super) fn lasted(&self, life: Life, now: Instant) -> Option<Duration> {
        let since = match self.service().kind {
            Kind::Oneshot => Some(life.since),
            Kind::Simple => life.ready,
        };
        since.map(|since| now.saturating_duration_since(since))
    }

    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Stopping { kill_at, .. } => Some(*kill_at),
            State::Killing { again_at, .. } => Some(*again_at),
            State::Dying { release_by, .. } => Some(*release_by),
            State::BackingOff { until } => Some(*until),
            State::Starting { ready_by, .. } => *ready_by,
            State::Up { beat, .. } => beat.map(|beat| beat.by),
            State::Down
            | State::Waiting
            | State::Spawning
            | State::Failed { .. }
            | State::Blocked { .. }
            | State::Done => None,
        }
    }
}
