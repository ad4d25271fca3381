//! marker counts → transactions for `value_db`: each counted once where Redis lets us.
//!
//! Every increment matters, and `SET` and `INCR` of one key keep their order; while they
//! wait, increments of one key are summed, so that an outage of days costs memory per key,
//! not per marker. What is sent together is a *batch* with a number, and one transaction
//! writes its counts and its number:
//!
//! ```text
//! MULTI · SET agent:fence:<id> 17 · INCRBY … · SET … · EXEC
//! ```
//!
//! After a reconnect the fence tells which batches Redis has: those that were never answered,
//! and those that it acknowledged within the last two seconds and may have forgotten. Before
//! it is asked, connections that we left behind are ended, because a server that was frozen
//! still finds our commands in them. Where the user may not do this, counts go out bare, and
//! one whose reply was lost may count twice.

mod disk;
mod replies;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::recent::MEMORY;
use super::resp::command;
use super::stream::Doubt;
use crate::record::{Count, CountKind, fence_key};

/// Counts in one transaction.
const BATCH: usize = 1024;
/// Distinct counts that may wait; beyond it the oldest is dropped, and counted.
const COUNTS: usize = 16_384;
/// Between two attempts while the server refuses.
const REFUSED_PAUSE: Duration = Duration::from_millis(250);
/// Counts this old are noted on the disk.
const NOTE_AGE: Duration = Duration::from_millis(600);
/// How often they are, at most.
const NOTE_EVERY: Duration = Duration::from_millis(800);
/// After the disk refused.
const DISK_REFUSED: Duration = Duration::from_secs(30);
/// Between two attempts of what is forbidden, and how long they go on.
const FORBIDDEN_PAUSE: Duration = Duration::from_secs(2);
const FORBIDDEN_PATIENCE: Duration = Duration::from_secs(60);
/// Seconds after which the fence of an agent that is gone for good vanishes: a month, longer
/// than a board stays on the shelf with counts in its journal.
const FENCE_EXPIRY: &[u8] = b"2592000";

/// What came of a reply that the operator or the service should hear.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// We may not publish health and state.
    GaugesForbidden { error: String },
    /// Counts cannot be fenced: one may count twice after a lost connection.
    Unfenced { error: String },
    /// A counter was refused; the text Redis gave.
    Count { count: Count, error: String },
    /// The connection is of no more use.
    Hangup { error: String },
}

/// Counts that travel together.
#[derive(Clone, Debug)]
pub struct Batch {
    pub number: u64,
    pub counts: Vec<Count>,
    pub doubt: Doubt,
    /// When the oldest of them came.
    since: Instant,
}

#[derive(Debug)]
pub struct Counts {
    key_prefix: String,
    /// Names this agent, across its restarts.
    id: String,
    waiting: VecDeque<Count>,
    /// Numbered, and to be sent (again) where Redis does not have them.
    again: VecDeque<Batch>,
    /// Acknowledged a moment ago.
    recent: VecDeque<(Instant, Batch)>,
    flight: Flight,
    fence: Fence,
    /// Connections that we left behind, to be ended.
    ghosts: Vec<i64>,
    /// The number of the next batch.
    next: u64,
    refused_until: Option<Instant>,
    heard: Option<Instant>,
    /// Found out by trying.
    increment_by: Permission,
    forbidden_since: Option<Instant>,
    told_unfenced: bool,
    dropped: u64,
    /// When the oldest that waits came.
    since: Option<Instant>,
    disk: Disk,
}

/// What the file of counts holds.
#[derive(Debug, Default)]
struct Disk {
    /// It holds something, so that what is sent must be noted there first.
    used: bool,
    /// Batches up to this number are noted with their numbers.
    noted: u64,
    /// The highest number in the note that is being made; `None` when none is.
    noting: Option<u64>,
    /// Something changed since the last note.
    stale: bool,
    noted_at: Option<Instant>,
    /// A batch waits for its number to be noted.
    urgent: bool,
    refused_until: Option<Instant>,
}

/// What is known of the fence on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fence {
    /// Our name is not given to this connection, and who else has it is not known.
    Unnamed,
    Unknown,
    Known,
    /// We may not: counts go out bare.
    Forbidden,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Permission {
    Granted,
    Denied,
}

/// What was sent, and the replies that are owed.
#[derive(Debug)]
enum Flight {
    Nothing,
    /// `CLIENT SETNAME`, `CLIENT ID`, `CLIENT LIST`.
    Naming {
        answered: usize,
        own: i64,
    },
    /// `CLIENT KILL` of so many, then `MULTI`, `GET`, `EXEC`.
    Asking {
        kills: usize,
        answered: usize,
        refusal: Option<Vec<u8>>,
    },
    /// `MULTI`, the fence, the counts, `EXEC`.
    Fenced {
        batch: Batch,
        answered: usize,
        /// The first error before `EXEC`: nothing was done.
        refusal: Option<Vec<u8>>,
    },
    /// One reply each.
    Bare {
        sent: VecDeque<Count>,
        again: Vec<Count>,
    },
}

impl Counts {
    pub fn new(key_prefix: &str, id: &str) -> Counts {
        Counts {
            key_prefix: key_prefix.to_owned(),
            id: id.to_owned(),
            waiting: VecDeque::new(),
            again: VecDeque::new(),
            recent: VecDeque::new(),
            flight: Flight::Nothing,
            fence: Fence::Unnamed,
            ghosts: Vec::new(),
            next: 1,
            refused_until: None,
            heard: None,
            increment_by: Permission::Granted,
            forbidden_since: None,
            told_unfenced: false,
            dropped: 0,
            since: None,
            disk: Disk::default(),
        }
    }

    pub fn push(&mut self, count: Count, now: Instant) {
        self.since.get_or_insert(now);
        self.disk.stale = true;
        // Only the newest count of the same key may be summed into: order is kept.
        let newest = self.waiting.iter_mut().rev().take(64).find(|waiting| {
            waiting.key == count.key && waiting.streams.name() == count.streams.name()
        });
        match (newest, &count.what) {
            (Some(waiting), CountKind::Set(_)) => *waiting = count,
            (
                Some(Count {
                    what: CountKind::Increment(sum),
                    ..
                }),
                CountKind::Increment(more),
            ) => *sum = sum.saturating_add(*more),
            _ => self.waiting.push_back(count),
        }
        if self.waiting.len() > COUNTS
            && let Some(oldest) = self.waiting.pop_front()
        {
            self.dropped += 1;
            oldest.streams.tally.add_dropped(1);
        }
    }

    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Replies are owed.
    pub fn is_waiting(&self) -> bool {
        !matches!(self.flight, Flight::Nothing)
    }

    /// Every count was answered.
    pub fn is_settled(&self) -> bool {
        !self.is_waiting() && self.waiting.is_empty() && self.again.is_empty()
    }

    /// When to try again what was refused, or to make a note.
    pub fn deadline(&self) -> Option<Instant> {
        if self.is_settled() && !self.disk.used {
            return None;
        }
        [self.refused_until, self.note_due()]
            .into_iter()
            .flatten()
            .min()
    }

    pub fn connected(&mut self) {
        self.fence = Fence::Unnamed;
        self.increment_by = Permission::Granted;
        self.refused_until = None;
    }

    /// What was sent and never answered, and what was acknowledged a moment ago, is sent
    /// again unless the fence says that it is there.
    pub fn disconnected(&mut self) {
        match std::mem::replace(&mut self.flight, Flight::Nothing) {
            Flight::Fenced { mut batch, .. } => {
                batch.doubt = Doubt::Unanswered;
                self.again.push_front(batch);
            }
            Flight::Bare { sent, again } => {
                for count in again.into_iter().chain(sent).rev() {
                    self.waiting.push_front(count);
                }
            }
            Flight::Nothing | Flight::Naming { .. } | Flight::Asking { .. } => {}
        }
        self.forget_safe();
        for (_, mut batch) in std::mem::take(&mut self.recent).into_iter().rev() {
            batch.doubt = Doubt::Acknowledged;
            self.again.push_front(batch);
        }
    }

    fn forget_safe(&mut self) {
        let Some(heard) = self.heard else { return };
        while let Some((at, _)) = self.recent.front()
            && (heard.saturating_duration_since(*at) >= MEMORY || self.recent.len() > 256)
        {
            self.recent.pop_front();
        }
    }

    /// Appends what is to be sent next; only when every reply has come.
    pub fn fill(&mut self, now: Instant, out: &mut Vec<u8>) {
        if self.is_settled() || self.is_waiting() {
            return;
        }
        if self.refused_until.is_some_and(|until| now < until) {
            return;
        }
        self.refused_until = None;
        match self.fence {
            Fence::Unnamed => {
                let name = self.connection_name();
                command(out, &[b"CLIENT", b"SETNAME", name.as_bytes()]);
                command(out, &[b"CLIENT", b"ID"]);
                // Nobody is looked for where nothing is in doubt.
                let list: &[&[u8]] = if self.again.is_empty() {
                    &[b"PING"]
                } else {
                    &[b"CLIENT", b"LIST"]
                };
                command(out, list);
                self.flight = Flight::Naming {
                    answered: 0,
                    own: 0,
                };
            }
            Fence::Unknown => self.ask(out),
            Fence::Known => self.send_fenced(now, out),
            Fence::Forbidden => self.send_bare(out),
        }
    }

    /// The same on all connections of this agent, and on nobody else's.
    fn connection_name(&self) -> String {
        format!("agent-counts-{}", self.id)
    }

    fn fence_key(&self) -> String {
        format!("{}{}", self.key_prefix, fence_key(&self.id))
    }

    fn ask(&mut self, out: &mut Vec<u8>) {
        let ghosts = std::mem::take(&mut self.ghosts);
        for ghost in &ghosts {
            let id = ghost.to_string();
            command(out, &[b"CLIENT", b"KILL", b"ID", id.as_bytes()]);
        }
        // As a transaction, so that a user who may not use one is found out here.
        command(out, &[b"MULTI"]);
        command(out, &[b"GET", self.fence_key().as_bytes()]);
        command(out, &[b"EXEC"]);
        self.flight = Flight::Asking {
            kills: ghosts.len(),
            answered: 0,
            refusal: None,
        };
    }

    fn send_fenced(&mut self, now: Instant, out: &mut Vec<u8>) {
        if self.again.is_empty() {
            let count = self.waiting.len().min(BATCH);
            let number = self.next;
            self.next += 1;
            let batch = Batch {
                number,
                counts: self.waiting.drain(..count).collect(),
                doubt: Doubt::None,
                since: self.since.unwrap_or(now),
            };
            if self.waiting.is_empty() {
                self.since = None;
            }
            self.again.push_back(batch);
            self.disk.stale = true;
        }
        let noted = !self.disk.used || self.disk.refused_until.is_some();
        let first = self.again.front().map_or(0, |batch| batch.number);
        if !noted && first > self.disk.noted {
            self.disk.urgent = true;
            return;
        }
        let Some(batch) = self.again.pop_front() else {
            return;
        };
        command(out, &[b"MULTI"]);
        let number = batch.number.to_string();
        command(
            out,
            &[
                b"SET",
                self.fence_key().as_bytes(),
                number.as_bytes(),
                b"EX",
                FENCE_EXPIRY,
            ],
        );
        for count in &batch.counts {
            let key = self.key(count);
            match &count.what {
                CountKind::Set(digits) => {
                    command(out, &[b"SET", key.as_bytes(), digits.as_bytes()]);
                }
                CountKind::Increment(1) => command(out, &[b"INCR", key.as_bytes()]),
                CountKind::Increment(by) => {
                    let by = by.to_string();
                    command(out, &[b"INCRBY", key.as_bytes(), by.as_bytes()]);
                }
            }
        }
        command(out, &[b"EXEC"]);
        self.flight = Flight::Fenced {
            batch,
            answered: 0,
            refusal: None,
        };
    }

    fn key(&self, count: &Count) -> String {
        format!("{}{}", self.key_prefix, count.streams.value_key(&count.key))
    }

    fn send_bare(&mut self, out: &mut Vec<u8>) {
        let mut sent = VecDeque::new();
        while sent.len() < BATCH
            && let Some(count) = self.waiting.pop_front()
        {
            let key = self.key(&count);
            match &count.what {
                CountKind::Set(digits) => {
                    command(out, &[b"SET", key.as_bytes(), digits.as_bytes()]);
                    sent.push_back(count);
                }
                CountKind::Increment(by) if *by > 1 && self.increment_by == Permission::Granted => {
                    let by = by.to_string();
                    command(out, &[b"INCRBY", key.as_bytes(), by.as_bytes()]);
                    sent.push_back(count);
                }
                // The small ACL knows only INCR: one after the other.
                CountKind::Increment(by) => {
                    let room = (BATCH - sent.len()) as u64;
                    for _ in 0..(*by).min(room) {
                        command(out, &[b"INCR", key.as_bytes()]);
                        sent.push_back(some(&count, 1));
                    }
                    if *by > room {
                        self.waiting.push_front(some(&count, by - room));
                    }
                }
            }
        }
        self.flight = Flight::Bare {
            sent,
            again: Vec::new(),
        };
    }
}

/// `times` of an increment.
fn some(count: &Count, times: u64) -> Count {
    Count {
        streams: Arc::clone(&count.streams),
        key: count.key.clone(),
        what: CountKind::Increment(times),
    }
}

/// The connections in a `CLIENT LIST` reply that have our name and are not this one: lines of
/// `id=7 addr=… name=… …`.
fn ghosts(list: &[u8], name: &str, own: i64) -> Vec<i64> {
    let list = String::from_utf8_lossy(list);
    let name = format!("name={name}");
    list.lines()
        .filter(|line| line.split(' ').any(|word| word == name))
        .filter_map(|line| line.split(' ').find_map(|word| word.strip_prefix("id=")))
        .filter_map(|id| id.parse().ok())
        .filter(|id| *id != own)
        .collect()
}
