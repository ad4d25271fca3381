//! backlog, time → what goes to the journal, what comes back.
//!
//! While Redis acknowledges nothing is written. What has waited for a second is, and when
//! acknowledgements have stopped, whatever memory cannot hold. Lines leave memory only once
//! they are written, and the oldest stay, so that sending can begin at once.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::delivery::Delivery;
use super::ledger::Drop;
use super::orders::{Order, Outcome, Recovered, Shelved, Told};
use super::segment::Tag;
use super::stream::Parcel;
use crate::config::Overflow;

/// An entry this old is written: with [`TICK`] and the write itself, well within a second.
const AGE: Duration = Duration::from_millis(600);
/// How often ages are looked at while anything waits.
const TICK: Duration = Duration::from_millis(200);
/// Between two attempts on a disk that refuses.
const BROKEN: Duration = Duration::from_secs(30);
/// A disk that has not answered for so long is not waited for any more: longer than a flash
/// card's worst pause.
pub const SILENCE: Duration = Duration::from_secs(10);
/// How long readers are held up for the disk before lines are dropped.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of one append, about.
const APPEND: usize = 2 << 20;
/// A head shorter than this is filled from the disk: enough to send while the disk takes the
/// IDs of the next.
const SHORT: usize = 1 << 20;
/// Bytes of one read, about: no more than a stream's share of memory, and enough to be worth
/// finding its place in the segment.
const READ: RangeInclusive<usize> = 16 << 10..=1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Memory only.
    Off,
    On,
    /// The disk refused; tried again at this time.
    Broken(Instant),
    /// The disk neither writes nor refuses: nothing waits for it, until it answers.
    Silent,
}

#[derive(Debug)]
enum Pending {
    /// Stream and the `upto` before and after.
    Append(Vec<(usize, u64, u64)>),
    /// Streams.
    Claim(Vec<usize>),
    /// Nobody waits for it any more.
    Nothing,
}

/// What the operator should hear, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    Refused { error: String },
    Accepts,
}

#[derive(Debug)]
pub struct Spool {
    state: State,
    overflow: Overflow,
    pending: VecDeque<Pending>,
    /// Answers that the journal owes.
    owed: usize,
    /// The journal is at its bound and may drop nothing.
    full: bool,
    next_tag: Tag,
    looked: Option<Instant>,
    /// When the journal last answered, or owed no answer.
    progress: Option<Instant>,
    /// What had come when the journal was last offered everything ([`Backlog::pushed`]).
    ///
    /// [`Backlog::pushed`]: super::backlog::Backlog::pushed
    offered: u64,
    /// Memory holds nothing that could be put away, unless the journal has said something.
    packed: bool,
    notices: Vec<Notice>,
}

impl Spool {
    pub fn off(overflow: Overflow) -> Spool {
        Spool {
            state: State::Off,
            overflow,
            pending: VecDeque::new(),
            owed: 0,
            full: false,
            next_tag: 0,
            looked: None,
            progress: None,
            offered: 0,
            packed: false,
            notices: Vec::new(),
        }
    }

    /// Takes over what an earlier life left behind.
    pub fn on(
        overflow: Overflow,
        recovered: &Recovered,
        delivery: &mut Delivery,
        now: Instant,
    ) -> Spool {
        for left in &recovered.streams {
            delivery.backlog.revive(left, now);
        }
        let highest = recovered.streams.iter().map(|left| left.tag + 1).max();
        Spool {
            state: State::On,
            next_tag: highest.unwrap_or(0),
            ..Spool::off(overflow)
        }
    }

    pub fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// When to call [`Spool::step`] although nothing happened.
    pub fn deadline(&self, delivery: &Delivery) -> Option<Instant> {
        let idle = self.state == State::Off
            || (delivery.backlog.is_empty() && !delivery.backlog.has_untold());
        let tick = self.looked.filter(|_| !idle).map(|looked| looked + TICK);
        let waits = self.owed > 0 && self.state != State::Silent;
        let silence = self.progress.filter(|_| waits).map(|at| at + SILENCE);
        [tick, silence].into_iter().flatten().min()
    }

    /// These go to the journal.
    pub fn asked(&mut self, orders: &[Order]) {
        self.owed += orders.iter().filter(|order| order.is_answered()).count();
    }

    /// Nothing waits for the disk any more: what it does not have goes to Redis from memory,
    /// also before what only it has.
    fn give_up_waiting(&mut self, delivery: &mut Delivery) {
        self.state = State::Silent;
        for pending in &mut self.pending {
            if let Pending::Claim(streams) = pending {
                delivery.claims_known(streams);
                *pending = Pending::Nothing;
            }
        }
        for stream in delivery.backlog.streams() {
            stream.pass_away_by();
        }
        delivery.backlog.runs_noted(u64::MAX);
        let error = format!("no answer for {} s", SILENCE.as_secs());
        self.notices.push(Notice::Refused { error });
    }

    /// What a full memory means now: the disk is waited for only where it can still help.
    pub fn when_full(&self, now: Instant, delivery: &Delivery) -> WhenFull {
        let patient = self
            .progress
            .is_some_and(|at| now.saturating_duration_since(at) < PATIENCE);
        let helps = match self.pending.is_empty() {
            true => delivery.backlog.pushed() > self.offered && !self.full,
            false => patient,
        };
        match (&self.state, self.overflow) {
            (State::On, Overflow::DropOldest) if helps => WhenFull::Hold,
            (_, Overflow::Block) => WhenFull::Hold,
            (State::Off | State::On | State::Broken(_) | State::Silent, Overflow::DropOldest) => {
                WhenFull::Drop
            }
        }
    }

    /// Appends what the journal should do. `ending`: there is no later, everything goes.
    pub fn step(
        &mut self,
        now: Instant,
        ending: bool,
        delivery: &mut Delivery,
        out: &mut Vec<Order>,
    ) {
        if self.owed == 0 {
            self.progress = Some(now);
        }
        let silent_for = self.progress.map(|at| now.saturating_duration_since(at));
        if self.state != State::Silent && silent_for.is_some_and(|silent| silent >= SILENCE) {
            self.give_up_waiting(delivery);
        }
        self.claim(delivery, out);
        let ends = delivery.ends_wanted();
        if self.may_append(now) && self.state == State::On {
            self.append(now, ends, delivery, out);
        }
        delivery.journal_writes(self.state == State::On && !self.full);
        let pressed = delivery.backlog.is_half_full() && !delivery.is_acknowledging(now);
        let due = self
            .looked
            .is_none_or(|looked| now.saturating_duration_since(looked) >= TICK);
        if !(due || ending || pressed) {
            self.load(now, delivery, out);
            return;
        }
        if due || ending {
            self.looked = Some(now);
            self.tell_done(delivery, out);
            self.full = false;
            self.packed = false;
        }
        if self.may_append(now) {
            let older_than = match ending || pressed {
                true => Some(now),
                false => now.checked_sub(AGE),
            };
            if let Some(older_than) = older_than {
                let all = 0..delivery.backlog.view().len();
                self.append(older_than, all, delivery, out);
            }
            if ending || pressed {
                self.offered = delivery.backlog.pushed();
            }
        }
        // Also what was read back and cannot be sent after all.
        if pressed && self.state == State::On && !self.packed && delivery.backlog.is_full() {
            delivery.backlog.put_away(now);
            self.packed = true;
        }
        self.load(now, delivery, out);
    }

    fn may_append(&self, now: Instant) -> bool {
        let may_write = match self.state {
            State::Off | State::Silent => false,
            State::On => true,
            State::Broken(retry_at) => now >= retry_at,
        };
        let appending = self
            .pending
            .iter()
            .any(|pending| matches!(pending, Pending::Append(_)));
        may_write && !appending && !self.full
    }

    /// What was queued before `older_than` in some streams and is not written yet.
    fn append(
        &mut self,
        older_than: Instant,
        streams: impl IntoIterator<Item = usize>,
        delivery: &mut Delivery,
        out: &mut Vec<Order>,
    ) {
        let mut moves = Vec::new();
        let mut shelved = Vec::new();
        let mut bytes = 0;
        for index in streams {
            if bytes >= APPEND {
                break;
            }
            let parcels = delivery.unwritten(index, older_than, APPEND - bytes);
            let Some(upto) = parcels.iter().map(Parcel::end).max() else {
                continue;
            };
            let Some(stream) = delivery.backlog.streams().get_mut(index) else {
                continue;
            };
            let tag = *stream.shelf.tag.get_or_insert_with(|| {
                self.next_tag += 1;
                self.next_tag - 1
            });
            moves.push((index, stream.shelf.upto, upto));
            stream.shelf.upto = upto;
            for parcel in parcels {
                bytes += parcel.cost();
                shelved.push(Shelved {
                    tag,
                    streams: stream.streams.clone(),
                    kind: stream.kind,
                    parcel,
                });
            }
        }
        if !shelved.is_empty() {
            out.push(Order::Append(shelved));
            self.pending.push_back(Pending::Append(moves));
        }
    }

    /// What is about to be sent and stands in the journal.
    fn claim(&mut self, delivery: &mut Delivery, out: &mut Vec<Order>) {
        let wanted = delivery.claims_wanted();
        if wanted.is_empty() {
            return;
        }
        let streams: Vec<usize> = wanted.iter().map(|(index, _)| *index).collect();
        if self.state == State::On {
            out.push(Order::Claim(
                wanted.into_iter().flat_map(|(_, claims)| claims).collect(),
            ));
            self.pending.push_back(Pending::Claim(streams));
        } else {
            delivery.claims_known(&streams);
        }
    }

    fn tell_done(&mut self, delivery: &mut Delivery, out: &mut Vec<Order>) {
        if matches!(self.state, State::Off | State::Silent) {
            return;
        }
        let floors = delivery.floors();
        if !floors.is_empty() {
            out.push(Order::Done(floors));
        }
    }

    /// Fills short heads, of streams that can be sent. While nothing is acknowledged one
    /// that has something in flight or in memory needs no more: what is read would only fill
    /// the memory.
    fn load(&mut self, now: Instant, delivery: &mut Delivery, out: &mut Vec<Order>) {
        if matches!(self.state, State::Off | State::Silent) || !delivery.is_connected() {
            return;
        }
        let share = delivery.backlog.share();
        let bytes = share.clamp(*READ.start(), *READ.end());
        let short = match delivery.is_acknowledging(now) {
            true => share.clamp(1, SHORT),
            false => 1,
        };
        for index in 0..delivery.backlog.view().len() {
            let flies = short == 1 && delivery.is_flying(index);
            let Some(stream) = delivery.backlog.streams().get_mut(index) else {
                continue;
            };
            let shelf = &stream.shelf;
            if shelf.away.is_empty() || shelf.loading || flies || stream.head_bytes(short) >= short
            {
                continue;
            }
            let (Some(tag), from) = (shelf.tag, shelf.away.start) else {
                continue;
            };
            stream.shelf.loading = true;
            out.push(Order::Read { tag, from, bytes });
        }
    }

    /// Takes an answer of the journal.
    pub fn told(&mut self, told: Told, now: Instant, delivery: &mut Delivery) {
        self.progress = Some(now);
        self.packed = false;
        if !matches!(told, Told::Dropped(_)) {
            self.owed = self.owed.saturating_sub(1);
        }
        if self.state == State::Silent {
            self.state = State::On;
            self.notices.push(Notice::Accepts);
            // What could not be noted meanwhile.
            delivery.backlog.runs.note_again();
        }
        match told {
            Told::Written(outcome) => self.written(outcome, now, delivery),
            Told::Loaded {
                tag,
                parcels,
                upto,
                read,
            } => delivery.backlog.bring_back(tag, parcels, upto, read),
            Told::Dropped(drop) => self.dropped(&drop, delivery),
            Told::Noted(note) => delivery.backlog.runs_noted(note),
        }
    }

    fn written(&mut self, outcome: Outcome, now: Instant, delivery: &mut Delivery) {
        match &outcome {
            Outcome::Written => {
                if matches!(self.state, State::Broken(_)) {
                    self.state = State::On;
                    self.notices.push(Notice::Accepts);
                }
            }
            Outcome::Full => self.full = true,
            Outcome::Failed(error) => {
                if self.state == State::On {
                    let error = error.clone();
                    self.notices.push(Notice::Refused { error });
                }
                self.state = State::Broken(now + BROKEN);
            }
        }
        match self.pending.pop_front() {
            Some(Pending::Append(moves)) => {
                for (index, before, upto) in moves {
                    let Some(stream) = delivery.backlog.streams().get_mut(index) else {
                        continue;
                    };
                    match outcome {
                        Outcome::Written => stream.shelf.written = upto,
                        Outcome::Full | Outcome::Failed(_) => stream.shelf.upto = before,
                    }
                }
            }
            // Where it could not be noted it is sent all the same: only another life of this
            // agent might send it twice.
            Some(Pending::Claim(streams)) => delivery.claims_known(&streams),
            Some(Pending::Nothing) | None => {}
        }
        if delivery.backlog.is_half_full() && !delivery.is_acknowledging(now) {
            delivery.backlog.put_away(now);
        }
    }

    fn dropped(&mut self, drop: &Drop, delivery: &mut Delivery) {
        delivery.backlog.lose_away(drop);
    }

    /// Entries of the journal are all that is left: what is not written is lost.
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    pub fn is_on(&self) -> bool {
        self.state == State::On
    }

    pub fn is_silent(&self) -> bool {
        self.state == State::Silent
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// No more lines are taken.
    Hold,
    /// The oldest make room.
    Drop,
}
