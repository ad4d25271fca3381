//! Changes of the board's state → entries of its own stream, `logs:device:<board>:events`.

use std::sync::Arc;

use bytes::Bytes;

use super::{Entry, StreamKind, Streams};

/// An edge: something began, ended or happened on the board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// A cooling device holds a unit back, or no longer (its state is 0).
    Throttling {
        device: String,
        state: i64,
    },
    /// A counter of over-current events rose by so much.
    OverCurrent {
        counter: String,
        count: i64,
    },
    /// A rail's current went over its limit, or came back.
    Rail {
        rail: String,
        over: bool,
    },
    PowerMode {
        from: String,
        to: String,
    },
}

impl DeviceEvent {
    pub fn entry(&self, streams: &Arc<Streams>, at_ms: u64) -> Entry {
        let (message, event, fields) = self.words();
        let text = |(name, value): (&'static str, String)| (name, Bytes::from(value));
        let mut all = vec![("event", Bytes::from_static(event.as_bytes()))];
        all.extend(fields.into_iter().map(text));
        Entry {
            streams: Arc::clone(streams),
            kind: StreamKind::Events,
            at_ms,
            message: message.into(),
            fields: all,
        }
    }

    /// The message, the event's name, and the fields after it.
    fn words(&self) -> (String, &'static str, Vec<(&'static str, String)>) {
        match self {
            DeviceEvent::Throttling { device, state: 0 } => (
                format!("Throttling by {device} ended."),
                "throttling_ended",
                vec![("device", device.clone())],
            ),
            DeviceEvent::Throttling { device, state } => (
                format!("Throttling by {device} began."),
                "throttling_began",
                vec![("device", device.clone()), ("state", state.to_string())],
            ),
            DeviceEvent::OverCurrent { counter, count } => (
                format!("Throttled due to over-current ({counter})."),
                "over_current",
                vec![("counter", counter.clone()), ("count", count.to_string())],
            ),
            DeviceEvent::Rail { rail, over: true } => (
                format!("Rail {rail} is over its limit."),
                "rail_over_limit",
                vec![("rail", rail.clone())],
            ),
            DeviceEvent::Rail { rail, over: false } => (
                format!("Rail {rail} is within its limit."),
                "rail_within_limit",
                vec![("rail", rail.clone())],
            ),
            DeviceEvent::PowerMode { from, to } => (
                format!("Power mode {to} instead of {from}."),
                "power_mode",
                vec![("from", from.clone()), ("to", to.clone())],
            ),
        }
    }
}
