//! the sink's side of the journal: its thread's channels, and what is said about it.
//!
//! Opens the journal, takes over what an earlier life left, closes the runs that it left
//! open, and at the end leaves to the disk what Redis did not take.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::backlog::{Purpose, Unwritten};
use super::delivery::Delivery;
use super::journal;
use super::orders::{Order, Outcome, Recovered, RecoveredCounts, Told};
use super::runs::Runs;
use super::spool::{Notice, Spool, WhenFull};
use super::value_loop::Notebook;
use crate::clock::{local_stamp, now_ms};
use crate::config;
use crate::record::{Entry, end_run_marker};

/// How long the start waits for what an earlier life left: longer than reading 64 MiB from a
/// slow flash. Pipes hold what services write meanwhile.
const RECOVERY: Duration = Duration::from_secs(10);
/// How long the end waits for the disk.
const FAREWELL: Duration = Duration::from_secs(2);
/// The code of a run that nobody saw end (CONTRACTS section 3).
const UNSEEN: i32 = -1;

pub struct Desk {
    spool: Spool,
    orders: Option<SyncSender<Order>>,
    told: Option<mpsc::Receiver<Told>>,
    noted: Option<mpsc::Receiver<Outcome>>,
    /// What did not fit into the channel yet.
    unsent: VecDeque<Order>,
    /// What neither Redis nor the disk has, at the end.
    lost: Unwritten,
}

impl Desk {
    /// Starts the journal where there is a place for it, and takes over what it holds.
    pub async fn open(
        settings: &config::Spool,
        folder: Option<PathBuf>,
        delivery: &mut Delivery,
    ) -> (Desk, RecoveredCounts) {
        let mut desk = Desk {
            spool: Spool::off(settings.overflow),
            orders: None,
            told: None,
            noted: None,
            unsent: VecDeque::new(),
            lost: Unwritten::default(),
        };
        let mut counts = RecoveredCounts::default();
        if let Some(folder) = folder {
            let begun = journal::start(journal::Settings {
                folder,
                bound: settings.disk,
                overflow: settings.overflow,
            });
            match begun {
                Ok(ends) => {
                    let opened = timeout(RECOVERY, ends.recovered).await;
                    match opened {
                        Ok(Ok(Ok(recovered))) => {
                            counts = ends.counts.await.unwrap_or_default();
                            desk.orders = Some(ends.orders);
                            desk.told = Some(ends.told);
                            desk.noted = Some(ends.noted);
                            desk.take_over(settings, &recovered, delivery);
                        }
                        Ok(Ok(Err(error))) => without(&error),
                        Ok(Err(_)) | Err(_) => without("the disk does not answer"),
                    }
                }
                Err(error) => without(&error.to_string()),
            }
        }
        if counts.id.is_empty() {
            counts.id = journal::random_id();
        }
        (desk, counts)
    }

    fn take_over(
        &mut self,
        settings: &config::Spool,
        recovered: &Recovered,
        delivery: &mut Delivery,
    ) {
        let now = std::time::Instant::now();
        self.spool = if settings.disk > 0 || !recovered.streams.is_empty() {
            Spool::on(settings.overflow, recovered, delivery, now)
        } else {
            Spool::off(settings.overflow)
        };
        let entries: u64 = recovered.streams.iter().map(|left| left.entries).sum();
        if entries > 0 && delivery.backlog.purpose() == Purpose::Delivery {
            tracing::info!("{entries} entries of an earlier run wait in the journal");
        }
        let mut runs = Runs::read(&recovered.runs);
        for (tag, order, mark) in &recovered.marks {
            if let Some(left) = recovered.streams.iter().find(|left| left.tag == *tag) {
                runs.mark(&left.streams, left.kind, *order, *mark);
            }
        }
        let open = runs.open();
        delivery.backlog.take_over_runs(runs);
        let at_ms = now_ms();
        for (streams, kind) in open {
            let marker = end_run_marker(&local_stamp(at_ms), UNSEEN);
            let entry = Entry::plain(&streams, kind, at_ms, marker);
            delivery.backlog.push_entry(entry, now);
        }
    }

    /// For the counters; once.
    pub fn notebook(&mut self) -> Option<Notebook> {
        let orders = self.orders.clone()?;
        Some(Notebook::new(orders, self.noted.take()?))
    }

    pub fn when_full(&self, now: std::time::Instant, delivery: &Delivery) -> WhenFull {
        self.spool.when_full(now, delivery)
    }

    pub fn deadline(&self, delivery: &Delivery) -> Option<Instant> {
        self.spool.deadline(delivery).map(Instant::from_std)
    }

    /// What the journal says next; for ever where there is none.
    pub async fn told(&mut self) -> Option<Told> {
        match &mut self.told {
            Some(told) => told.recv().await,
            None => std::future::pending().await,
        }
    }

    pub fn take(&mut self, told: Option<Told>, delivery: &mut Delivery) {
        match told {
            Some(told) => self.spool.told(told, std::time::Instant::now(), delivery),
            // The journal's thread is gone: nothing will be noted any more.
            None => {
                self.told = None;
                self.orders = None;
                delivery.backlog.runs_noted(u64::MAX);
            }
        }
    }

    /// Gives the journal what it should have by now.
    pub fn attend(&mut self, delivery: &mut Delivery) {
        self.step(false, delivery);
    }

    /// The same where something waits for the journal. True where it waits no more.
    pub fn clears_claims(&mut self, delivery: &mut Delivery) -> bool {
        if !delivery.wants_journal() {
            return false;
        }
        self.step(false, delivery);
        !self.spool.is_on()
    }

    fn step(&mut self, ending: bool, delivery: &mut Delivery) {
        let now = std::time::Instant::now();
        let mut orders = Vec::new();
        // Before the journal is told what is done: it may forget the end of a run then.
        if let Some(note) = delivery.backlog.runs.note() {
            match self.told {
                Some(_) if !self.spool.is_silent() => orders.push(Order::Runs(note)),
                // There is nobody to note it.
                Some(_) | None => delivery.backlog.runs_noted(note.number),
            }
        }
        self.spool.step(now, ending, delivery, &mut orders);
        self.spool.asked(&orders);
        self.unsent.extend(orders);
        self.send();
        for notice in self.spool.notices() {
            match notice {
                Notice::Refused { error } => tracing::warn!(
                    "the journal cannot be written: {error}; what Redis does not take is kept \
                     in memory only"
                ),
                Notice::Accepts => tracing::info!("the journal can be written again"),
            }
        }
    }

    fn send(&mut self) {
        let Some(orders) = &self.orders else {
            self.unsent.clear();
            return;
        };
        while let Some(order) = self.unsent.pop_front() {
            match orders.try_send(order) {
                Ok(()) => {}
                Err(TrySendError::Full(order)) => {
                    self.unsent.push_front(order);
                    return;
                }
                Err(TrySendError::Disconnected(_)) => return,
            }
        }
    }

    /// Nothing more comes, and Redis is not waited for: what it does not have goes to the
    /// disk.
    pub async fn leave(&mut self, delivery: &mut Delivery) {
        let patience = Instant::now() + FAREWELL;
        loop {
            self.step(true, delivery);
            let settled = self.unsent.is_empty() && self.spool.is_settled();
            if settled || self.told.is_none() {
                break;
            }
            tokio::select! {
                told = self.told() => self.take(told, delivery),
                () = tokio::time::sleep_until(patience) => break,
            }
        }
        self.lost = delivery.backlog.unwritten();
        let lost = self.lost.lines + self.lost.entries;
        let left = delivery.backlog.undelivered().saturating_sub(lost);
        if left > 0 && delivery.backlog.purpose() == Purpose::Delivery {
            tracing::info!("{left} entries wait in the journal for the next start");
        }
    }

    /// Waits for the journal's thread. Returns what is lost.
    pub async fn close(mut self) -> Unwritten {
        self.orders = None;
        let patience = Instant::now() + FAREWELL;
        while let Some(told) = &mut self.told {
            match tokio::time::timeout_at(patience, told.recv()).await {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        self.lost
    }
}

fn without(error: &str) {
    tracing::warn!(
        "no journal: {error}; what Redis does not take is kept in memory only, and lost with \
         the agent"
    );
}
