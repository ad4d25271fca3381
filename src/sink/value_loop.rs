//! counts and gauges → Redis: the sink's second loop, on a connection of its own.
//!
//! A flood of lines never delays health, and counters wait for nothing but their own replies.

use std::sync::mpsc::SyncSender;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::counts::Trouble;
use super::delivery::Hangup;
use super::link::Link;
use super::orders::{Order, Outcome};
use super::redis::Wire;
use super::run::{End, Farewell, LastPools, MOVED, receive_from, until};
use super::session::Session;
use super::spool::SILENCE;
use super::values::Values;
use crate::clock::now_ms;
use crate::record::{Entry, Record, StreamKind};

pub struct ValueLoop {
    pub values: Values,
    /// Closes when nothing more can come.
    pub records: Option<mpsc::Receiver<Record>>,
    /// What the streams should say about refused counts.
    pub errata: mpsc::Sender<Record>,
    pub farewell: Farewell,
    /// When to stop waiting for Redis.
    pub closing: Option<Instant>,
    pub notebook: Option<Notebook>,
}

/// Where counts are noted that Redis does not have.
pub struct Notebook {
    orders: SyncSender<Order>,
    answers: mpsc::Receiver<Outcome>,
    /// Since when an answer is waited for.
    asked: Option<Instant>,
    /// Answers that are owed and that nobody waits for any more.
    late: usize,
    /// What was said last, so that it is said once.
    refused: bool,
}

impl Notebook {
    pub fn new(orders: SyncSender<Order>, answers: mpsc::Receiver<Outcome>) -> Notebook {
        Notebook {
            orders,
            answers,
            asked: None,
            late: 0,
            refused: false,
        }
    }

    /// When the disk is not waited for any more.
    fn deadline(&self) -> Option<Instant> {
        self.asked.map(|asked| asked + SILENCE)
    }
}

impl ValueLoop {
    /// Runs until nothing more can come and everything is delivered, or the farewell's patience has
    /// passed; then notes what is left.
    pub async fn run(mut self, mut link: Link) {
        self.deliver(&mut link).await;
        self.note(true);
        let patience = Instant::now() + self.farewell.patience;
        while self.values.counts.is_noting() && Instant::now() < patience {
            tokio::select! {
                outcome = answer(&mut self.notebook) => self.noted(&outcome),
                () = sleep_until(patience) => {}
            }
            self.note(true);
        }
    }

    async fn deliver(&mut self, link: &mut Link) {
        loop {
            let Some(wire) = self.until_waited(link.establish()).await else {
                return;
            };
            self.values.connected();
            let end = self.serve(wire, link).await;
            self.values.disconnected();
            match end {
                End::Finished => return,
                End::Lost(reason) => {
                    tracing::debug!("value connection: {reason}");
                    self.until_waited(link.down(&reason)).await;
                }
            }
        }
    }

    async fn until_waited<T>(&mut self, event: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(event);
        loop {
            if self.is_finished() {
                return None;
            }
            self.note(false);
            let due = self.values.counts.deadline().map(Instant::from_std);
            // Never at once again: a deadline that has passed is looked at on the way.
            let soon = Instant::now() + Duration::from_millis(50);
            let deadline = [due.map(|due| due.max(soon)), self.closing, self.disk_due()];
            let deadline = deadline.into_iter().flatten().min();
            tokio::select! {
                outcome = &mut event => return Some(outcome),
                record = receive_from(&mut self.records) => self.absorb(record),
                outcome = answer(&mut self.notebook) => self.noted(&outcome),
                () = until(deadline) => {}
            }
        }
    }

    async fn serve(&mut self, wire: Box<dyn Wire>, link: &mut Link) -> End {
        let mut session = Session::new(wire);
        let moved = link.moved();
        tokio::pin!(moved);
        loop {
            if self.is_finished() {
                return End::Finished;
            }
            if self.values.is_idle() {
                self.values
                    .fill(std::time::Instant::now(), session.output());
                session.start_waiting();
            }
            self.note(false);
            let renewal = self.values.deadline().map(Instant::from_std);
            let silence = (!self.values.is_idle()).then(|| session.deadline());
            let soon = Instant::now() + Duration::from_millis(20);
            let renewal = renewal
                .filter(|_| self.values.is_idle())
                .map(|due| due.max(soon));
            let deadline = [renewal, silence, self.closing, self.disk_due()];
            let deadline = deadline.into_iter().flatten().min();
            tokio::select! {
                progress = session.progress() => {
                    if let Err(error) = progress {
                        return End::Lost(error.to_string());
                    }
                    if let Err(Hangup(reason)) = self.take_replies(&mut session) {
                        return End::Lost(reason);
                    }
                    link.proved();
                }
                record = receive_from(&mut self.records) => self.absorb(record),
                outcome = answer(&mut self.notebook) => self.noted(&outcome),
                () = &mut moved => return End::Lost(MOVED.to_owned()),
                () = until(deadline) => {
                    if !self.values.is_idle() && Instant::now() >= session.deadline() {
                        return End::Lost("no answer for 10 s".to_owned());
                    }
                }
            }
        }
    }

    fn take_replies(&mut self, session: &mut Session) -> Result<(), Hangup> {
        let now = std::time::Instant::now();
        let values = &mut self.values;
        let errata = &self.errata;
        session.replies(|reply, _| {
            values
                .reply(reply, now)
                .into_iter()
                .try_for_each(|trouble| complain(trouble, errata))
        })
    }

    fn absorb(&mut self, record: Option<Record>) {
        match record {
            Some(Record::Count(count)) => self.values.counts.push(count, std::time::Instant::now()),
            Some(Record::Gauges(gauges)) => {
                for gauge in gauges {
                    self.values.put(gauge);
                }
            }
            Some(Record::Lines(_) | Record::Entry(_)) => {}
            None => {
                self.records = None;
                self.closing = Some(Instant::now() + self.farewell.patience);
                match self.farewell.pools {
                    LastPools::Expire => {}
                    LastPools::Stay => self.values.stay(),
                }
            }
        }
    }

    /// Notes on the disk what Redis does not have, where that is due.
    fn note(&mut self, ending: bool) {
        let Some(notebook) = &mut self.notebook else {
            return;
        };
        if notebook.deadline().is_some_and(|due| Instant::now() >= due) {
            notebook.asked = None;
            notebook.late += 1;
            let silent = format!("no answer for {} s", SILENCE.as_secs());
            self.take_note(&Outcome::Failed(silent));
        }
        let Some(notebook) = &mut self.notebook else {
            return;
        };
        let now = std::time::Instant::now();
        if let Some(bytes) = self.values.counts.note(now, ending) {
            let order = Order::Counts(bytes);
            if notebook.late > 0 || notebook.orders.try_send(order).is_err() {
                let busy = Outcome::Failed("the journal is busy".to_owned());
                self.values.counts.noted(&busy, now);
            } else {
                notebook.asked = Some(Instant::now());
            }
        }
    }

    fn disk_due(&self) -> Option<Instant> {
        self.notebook.as_ref()?.deadline()
    }

    /// The journal answered.
    fn noted(&mut self, outcome: &Outcome) {
        let Some(notebook) = &mut self.notebook else {
            return;
        };
        if notebook.late > 0 {
            notebook.late -= 1;
            return;
        }
        notebook.asked = None;
        self.take_note(outcome);
    }

    fn take_note(&mut self, outcome: &Outcome) {
        self.values.counts.noted(outcome, std::time::Instant::now());
        let Some(notebook) = &mut self.notebook else {
            return;
        };
        let refused = match outcome {
            Outcome::Written => false,
            Outcome::Full => true,
            Outcome::Failed(error) => {
                if !notebook.refused {
                    tracing::warn!("counters are kept in memory only: {error}");
                }
                true
            }
        };
        notebook.refused = refused;
    }

    fn is_finished(&self) -> bool {
        self.closing
            .is_some_and(|farewell| self.values.is_settled() || Instant::now() >= farewell)
    }
}

/// The journal's answer; for ever where there is none.
async fn answer(notebook: &mut Option<Notebook>) -> Outcome {
    match notebook {
        Some(notebook) => match notebook.answers.recv().await {
            Some(outcome) => outcome,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

/// A count that Redis refuses is its service's to know.
fn complain(trouble: Trouble, errata: &mpsc::Sender<Record>) -> Result<(), Hangup> {
    match trouble {
        Trouble::Hangup { error } => return Err(Hangup(error)),
        Trouble::GaugesForbidden { error } => {
            tracing::warn!("health and state are not published: {error}");
        }
        Trouble::Unfenced { error } => {
            tracing::warn!(
                "a counter whose reply is lost may count twice, because Redis does not let us \
                 write counters and `agent:fence:*` in one transaction: {error}"
            );
        }
        Trouble::Count { count, error } => {
            let key = count.streams.value_key(&count.key);
            let text = format!("Error incrementing key: {key}, error: {error}");
            let entry = Entry::plain(&count.streams, StreamKind::Error, now_ms(), text);
            // Where even these pile up, one of many is enough.
            let _ = errata.try_send(Record::Entry(entry));
        }
    }
    Ok(())
}
