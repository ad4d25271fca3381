//! backlog, replies → commands: exactly once where Redis lets us.
//!
//! On every connection each stream is first asked for its last ID; then its parcels go out
//! in batches, several in flight, each entry under an ID of ours. What becomes of an entry:
//!
//! ```text
//! answered with an ID         done
//! answered with an error      certainly not there: a new ID, its time kept in `ts`
//! never answered              in doubt: looked up on the next connection (stream.rs)
//! ```
//!
//! What was answered within the last two seconds is looked up too: a server that died may
//! have forgotten it. It is safe once Redis has answered anything two seconds later; where
//! nothing else is asked by then, a `PING` is.
//!
//! From the first refusal on (`OOM`, `READONLY`, …) one entry is in flight until one passes:
//! of several, the first could be refused and the next accepted. A stream that refuses by itself (`WRONGTYPE`, `NOPERM`) is retried alone, holds
//! up no other, and gives up what has waited for a minute.

mod disk;
mod doubts;
mod refusals;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::backlog::Backlog;
use super::recent::MEMORY;
use super::refusal::classify;
use super::resp::{Reply, command};
use super::segment::Claim;
use super::shelf::CLAIMED_AHEAD;
use super::stream::{Doubt, Ids, Parcel};

/// Entries in one batch: the knee of round trips against latency (PEERS: four batches of 64
/// in flight reach the server's own limit).
const BATCH_ENTRIES: usize = 96;
/// Bytes after which a batch is full, where memory is not scarcer than that.
const BATCH_BYTES: usize = 64 << 10;
const BATCHES_IN_FLIGHT: usize = 4;
/// Between two attempts while the server refuses everything.
const REFUSED_PAUSE: Duration = Duration::from_millis(250);
/// Between two attempts of one stream that refuses.
const STUCK_PAUSE: Duration = Duration::from_secs(2);
/// After this a stream that still refuses loses what has waited as long.
const STUCK_PATIENCE: Duration = Duration::from_secs(60);
/// Between two `dropped` entries of a stream, while more is dropped: a loss must not push out
/// what the status stream holds, nor fill the memory that it is about. Doubled each time.
const TELL_PAUSE: Duration = Duration::from_secs(1);
const TELL_PAUSE_MOST: Duration = Duration::from_secs(60);
/// While Redis acknowledged something this recently, a full backlog is backpressure, not loss.
const ACKNOWLEDGING: Duration = Duration::from_secs(1);

/// What the operator should hear, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Redis accepts nothing at the moment.
    Refusing { error: String },
    /// It does again.
    Accepting,
    /// One stream refuses.
    Stuck { key: String, error: String },
    /// Its lines have waited a minute and were dropped.
    GaveUp { key: String, count: u64 },
    /// IDs are given by Redis: delivery is at least once.
    ServerIds { key: String },
}

/// The connection is of no more use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hangup(pub String);

#[derive(Debug)]
struct Flight {
    stream: usize,
    ask: Ask,
    /// The last command of its batch.
    ends_batch: bool,
}

#[derive(Debug)]
enum Ask {
    Info,
    Range,
    Ping,
    Add {
        parcel: Parcel,
        /// Entries answered so far.
        answered: usize,
        /// Those of them that were answered with an error.
        refused: Vec<Refused>,
    },
}

#[derive(Clone, Copy, Debug)]
struct Refused {
    entry: usize,
    /// The entry was in doubt, and still is: the old connection may have put it there before
    /// this one was refused. The claim stays until the stream has been asked again.
    keeps_claim: bool,
}

impl Refused {
    /// The entry itself, as it waits for its next turn.
    fn of(self, parcel: &Parcel) -> Parcel {
        let one = parcel.part(self.entry..self.entry + 1);
        match self.keeps_claim {
            true => one,
            false => one.disclaimed(),
        }
    }
}

#[derive(Debug)]
pub struct Delivery {
    pub backlog: Backlog,
    flights: VecDeque<Flight>,
    batches: usize,
    /// The stream that is served first next time.
    turn: usize,
    refusing: Option<Instant>,
    acknowledged: Option<Instant>,
    /// When Redis last said anything.
    heard: Option<Instant>,
    connected: bool,
    /// IDs that the journal must know before they are sent, by stream.
    claims: Vec<(usize, Vec<Claim>)>,
    /// There is a journal that takes entries.
    journal: bool,
    /// Streams whose next entry the journal must have before it is sent.
    ends: Vec<usize>,
    /// When losses may be told next, and the pause after that.
    tell_at: Option<Instant>,
    tell_pause: Duration,
    /// When the safe ones among the acknowledged were last forgotten.
    tidied: Option<Instant>,
    notices: Vec<Notice>,
}

impl Delivery {
    pub fn new(backlog: Backlog) -> Delivery {
        Delivery {
            backlog,
            flights: VecDeque::new(),
            batches: 0,
            turn: 0,
            refusing: None,
            acknowledged: None,
            heard: None,
            connected: false,
            claims: Vec::new(),
            journal: false,
            ends: Vec::new(),
            tell_at: None,
            tell_pause: TELL_PAUSE,
            tidied: None,
            notices: Vec::new(),
        }
    }

    /// A new connection: what was known of the streams is known no more.
    pub fn connected(&mut self) {
        self.refusing = None;
        self.connected = true;
        for stream in self.backlog.streams() {
            stream.ids = Ids::Unknown;
            stream.withdraw_claims();
        }
    }

    /// The connection is gone: what was sent and not answered is in doubt.
    pub fn disconnected(&mut self) {
        self.batches = 0;
        self.connected = false;
        self.acknowledged = None;
        if let Some(heard) = self.heard {
            self.backlog.forget_safe(heard);
        }
        for flight in std::mem::take(&mut self.flights) {
            if let Ask::Add {
                parcel,
                answered,
                refused,
            } = flight.ask
            {
                let unanswered = parcel.part(answered..parcel.len());
                let unanswered = unanswered.doubted(Doubt::Unanswered);
                self.settle(flight.stream, &parcel, answered, &refused, self.heard);
                if let Some(stream) = self.backlog.streams().get_mut(flight.stream) {
                    stream.put_back(unanswered);
                }
            }
        }
        self.backlog.doubt_recent();
    }

    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }

    /// Redis acknowledges: a full memory should hold up the readers rather than lose lines.
    pub fn is_acknowledging(&self, now: Instant) -> bool {
        self.refusing.is_none()
            && self
                .acknowledged
                .is_some_and(|at| now.saturating_duration_since(at) < ACKNOWLEDGING)
    }

    /// What there is to say since the last call.
    pub fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// When [`Delivery::fill`] should be called although nothing happened.
    pub fn deadline(&self) -> Option<Instant> {
        let stuck = self
            .backlog
            .view()
            .iter()
            .filter(|stream| stream.is_ready())
            .filter_map(|stream| stream.stuck.map(|stuck| stuck.retry_at))
            .min();
        let losses = self
            .tell_at
            .filter(|_| self.flights.is_empty() && self.backlog.has_losses());
        [self.refusing, stuck, self.ping_due(), losses]
            .into_iter()
            .flatten()
            .min()
    }

    /// When to ask whether Redis is still there, so that what it acknowledged is safe.
    fn ping_due(&self) -> Option<Instant> {
        if !self.flights.is_empty() {
            return None;
        }
        Some(self.backlog.newest_recent()? + MEMORY)
    }

    /// Forgets what is safe, now and then.
    fn tidy(&mut self, now: Instant) {
        const NOW_AND_THEN: Duration = Duration::from_millis(250);
        if self
            .tidied
            .is_some_and(|at| now.saturating_duration_since(at) < NOW_AND_THEN)
        {
            return;
        }
        self.tidied = Some(now);
        if let Some(heard) = self.heard {
            self.backlog.forget_safe(heard);
        }
    }

    /// Appends as many batches as may be in flight.
    pub fn fill(&mut self, now: Instant, now_ms: u64, out: &mut Vec<u8>) {
        self.tell_losses(now, now_ms);
        self.expire_stuck(now);
        self.tidy(now);
        if self.ping_due().is_some_and(|due| now >= due) {
            command(out, &[b"PING"]);
            self.flights.push_back(Flight {
                stream: 0,
                ask: Ask::Ping,
                ends_batch: true,
            });
            self.batches += 1;
        }
        let allowed = match self.refusing {
            Some(retry_at) if now < retry_at => return,
            Some(_) => 1,
            None => BATCHES_IN_FLIGHT,
        };
        while self.batches < allowed && self.batch(now, now_ms, out) {}
    }

    /// Nothing more will be lost that could be told together with what is.
    pub fn last_words(&mut self) {
        self.tell_at = None;
        self.tell_pause = Duration::ZERO;
    }

    /// Once somebody listens, and not too often.
    fn tell_losses(&mut self, now: Instant, now_ms: u64) {
        let listens = self.refusing.is_none()
            && self.connected
            && (self.flights.is_empty() || self.is_acknowledging(now));
        if !listens || !self.backlog.has_losses() || self.tell_at.is_some_and(|at| now < at) {
            return;
        }
        self.backlog.tell_losses(now, now_ms);
        let calm = self.tell_at.is_none_or(|at| now >= at + self.tell_pause);
        if !self.tell_pause.is_zero() {
            self.tell_pause = match calm {
                true => TELL_PAUSE,
                false => (self.tell_pause * 2).min(TELL_PAUSE_MOST),
            };
        }
        self.tell_at = Some(now + self.tell_pause);
    }

    /// Appends one batch over all streams, each in turn; false when there was nothing.
    fn batch(&mut self, now: Instant, now_ms: u64, out: &mut Vec<u8>) -> bool {
        let count = self.backlog.view().len();
        let start = out.len();
        let before = self.flights.len();
        let full = (self.backlog.bound() / 16).clamp(4 << 10, BATCH_BYTES);
        let most = match self.refusing {
            Some(_) => 1,
            None => BATCH_ENTRIES,
        };
        let mut entries = 0;
        for place in 0..count {
            let index = (self.turn + place) % count;
            while entries < most && out.len() - start < full {
                let room = (most - entries, full - (out.len() - start));
                match self.send_from(index, now, now_ms, room, out) {
                    Some(sent) => entries += sent,
                    None => break,
                }
            }
        }
        if self.flights.len() == before {
            return false;
        }
        if let Some(last) = self.flights.back_mut() {
            last.ends_batch = true;
        }
        self.batches += 1;
        self.turn = (self.turn + 1) % count.max(1);
        true
    }

    /// One command or parcel of one stream; `None` when it has nothing to send now.
    fn send_from(
        &mut self,
        index: usize,
        now: Instant,
        now_ms: u64,
        (entries, bytes): (usize, usize),
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let stream = self.backlog.streams().get_mut(index)?;
        if !stream.is_ready() || stream.stuck.is_some_and(|stuck| now < stuck.retry_at) {
            return None;
        }
        if self.journal && stream.ends_unwritten() {
            self.ends.push(index);
            return None;
        }
        if stream.wants_claims() || stream.lacks_claim() {
            let most = match self.refusing {
                Some(_) => 1,
                None => CLAIMED_AHEAD,
            };
            let claims = stream.claim_ahead(most);
            if !claims.is_empty() {
                self.claims.push((index, claims));
            }
        }
        let (ask, sent) = match stream.ids {
            Ids::Asking | Ids::Verifying { .. } => return None,
            Ids::Unknown => {
                stream.ids = Ids::Asking;
                command(out, &[b"XINFO", b"STREAM", stream.key.as_bytes()]);
                (Ask::Info, 0)
            }
            Ids::Ours { .. } if stream.lacks_claim() => return None,
            Ids::Ours { .. } | Ids::Servers => {
                let mut room = entries;
                if let Some(stuck) = &mut stream.stuck {
                    // One entry to try; the next attempt only after its pause.
                    stuck.retry_at = now + STUCK_PAUSE;
                    room = 1;
                }
                let parcel = stream.take(room, bytes)?;
                parcel.encode(&stream.header, now_ms, out);
                let count = parcel.len();
                let add = Ask::Add {
                    parcel,
                    answered: 0,
                    refused: Vec::new(),
                };
                (add, count)
            }
        };
        self.flights.push_back(Flight {
            stream: index,
            ask,
            ends_batch: false,
        });
        Some(sent)
    }

    /// Takes the next reply of the connection.
    pub fn reply(
        &mut self,
        reply: &Reply<'_>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<(), Hangup> {
        let Some(mut flight) = self.flights.pop_front() else {
            return Err(Hangup(format!("a reply to nothing: {reply:?}")));
        };
        let index = flight.stream;
        self.heard = Some(now);
        let finished = match &mut flight.ask {
            // Any answer will do, also an error.
            Ask::Ping => {
                self.backlog.forget_safe(now);
                Ok(())
            }
            Ask::Info => self.info(index, reply, now, out),
            Ask::Range => self.range(index, reply, now, out),
            Ask::Add {
                parcel,
                answered,
                refused,
            } => {
                let outcome = if let Reply::Error(error) = reply {
                    let class = classify(error);
                    refused.push(Refused {
                        entry: *answered,
                        keeps_claim: parcel.in_doubt(),
                    });
                    let doubted = parcel.in_doubt();
                    if let Some(stream) = self.backlog.streams().get_mut(index) {
                        stream.withdraw_claims();
                    }
                    let outcome = self.refused(index, class, error, now);
                    if doubted && let Some(stream) = self.backlog.streams().get_mut(index) {
                        stream.ids = Ids::Unknown;
                    }
                    outcome
                } else {
                    self.accepted(index, now);
                    Ok(())
                };
                *answered += 1;
                if *answered < parcel.len() {
                    self.flights.push_front(flight);
                    return outcome;
                }
                let refused = std::mem::take(refused);
                self.finish(index, parcel.clone(), &refused, now);
                outcome
            }
        };
        if flight.ends_batch {
            self.batches = self.batches.saturating_sub(1);
        }
        finished
    }

    fn accepted(&mut self, index: usize, now: Instant) {
        self.acknowledged = Some(now);
        if self.refusing.take().is_some() {
            self.notices.push(Notice::Accepting);
        }
        if let Some(stream) = self.backlog.streams().get_mut(index) {
            stream.stuck = None;
        }
    }

    /// Every entry of a parcel is answered.
    fn finish(&mut self, index: usize, parcel: Parcel, refused: &[Refused], now: Instant) {
        if refused.is_empty() {
            self.backlog.acknowledged(index, parcel, now);
            return;
        }
        self.settle(index, &parcel, parcel.len(), refused, Some(now));
    }

    /// The first `answered` entries of a parcel have their answers: what was refused waits
    /// again, the rest is done.
    fn settle(
        &mut self,
        index: usize,
        parcel: &Parcel,
        answered: usize,
        refused: &[Refused],
        heard: Option<Instant>,
    ) {
        let mut refused = refused.iter().peekable();
        for entry in 0..answered {
            match refused.next_if(|refused| refused.entry == entry) {
                None => {
                    let one = parcel.part(entry..entry + 1);
                    match heard {
                        Some(heard) => self.backlog.acknowledged(index, one, heard),
                        None => self.backlog.release(&one),
                    }
                }
                Some(refused) => {
                    if let Some(stream) = self.backlog.streams().get_mut(index) {
                        stream.put_back(refused.of(parcel));
                    }
                }
            }
        }
    }
}
