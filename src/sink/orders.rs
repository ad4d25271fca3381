//! what the sink asks of the journal ⇄ what it answers.

use std::ops::Range;
use std::sync::Arc;

use super::ledger::Drop;
use super::runs;
use super::segment::{Claim, Tag};
use super::stream::Parcel;
use crate::record::{RunMark, StreamKind, Streams};

/// What the sink asks for.
#[derive(Debug)]
pub enum Order {
    /// Write these, with the claims that they have. Answered by `Written`.
    Append(Vec<Shelved>),
    /// These are about to be sent. Answered by `Written`.
    Claim(Vec<Claim>),
    /// Delivered or given up, below these orders.
    Done(Vec<(Tag, u64)>),
    /// Bring back what stands from an order on, about so many bytes. Answered by `Loaded`.
    Read { tag: Tag, from: u64, bytes: usize },
    /// Which runs are open. Answered by `Noted`.
    Runs(runs::Note),
    /// The file `counts`, as a whole; answered, on a channel of its own, when it stands.
    Counts(Vec<u8>),
}

impl Order {
    /// By `Told`.
    pub fn is_answered(&self) -> bool {
        match self {
            Order::Append(_) | Order::Claim(_) | Order::Read { .. } | Order::Runs(_) => true,
            Order::Done(_) | Order::Counts(_) => false,
        }
    }
}

/// A parcel on its way to the disk.
#[derive(Debug)]
pub struct Shelved {
    pub tag: Tag,
    pub streams: Arc<Streams>,
    pub kind: StreamKind,
    pub parcel: Parcel,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Written,
    /// The bound is reached, and nothing may be dropped.
    Full,
    Failed(String),
}

/// What the journal answers.
#[derive(Debug)]
pub enum Told {
    Written(Outcome),
    /// Entries in order; everything below `upto` is among them, or lost.
    Loaded {
        tag: Tag,
        parcels: Vec<Parcel>,
        upto: u64,
        read: ReadBack,
    },
    Dropped(Drop),
    /// The note of this number survives us, or cannot be written (and that was said).
    Noted(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadBack {
    Whole,
    /// The disk did not give back what it was given.
    Damaged,
}

/// What an earlier life left behind.
#[derive(Debug, Default)]
pub struct Recovered {
    pub streams: Vec<Left>,
    /// The file `runs`, and what the journal itself says about runs since.
    pub runs: Vec<u8>,
    /// With their orders.
    pub marks: Vec<(Tag, u64, RunMark)>,
}

#[derive(Debug)]
pub struct Left {
    pub tag: Tag,
    pub streams: Arc<Streams>,
    pub kind: StreamKind,
    /// Orders: the first that is not delivered, and behind the last.
    pub floor: u64,
    pub end: u64,
    pub entries: u64,
    /// Unix milliseconds of the oldest and the newest.
    pub span: Range<u64>,
}

/// For the counters.
#[derive(Debug, Default)]
pub struct RecoveredCounts {
    pub id: String,
    pub counts: Vec<u8>,
}
