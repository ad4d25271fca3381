//! messages → a bounded channel, in order, without ever waiting for it.
//!
//! What the channel cannot take stays here. The supervisor must not wait for a neighbour:
//! a full channel would otherwise hold up the restart of a service.

use std::collections::VecDeque;

use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

pub struct Lane<T> {
    channel: Sender<T>,
    waiting: VecDeque<T>,
}

impl<T> Lane<T> {
    pub fn new(channel: Sender<T>) -> Lane<T> {
        Lane {
            channel,
            waiting: VecDeque::new(),
        }
    }

    pub fn send(&mut self, message: T) {
        self.waiting.push_back(message);
        self.push();
    }

    /// For who may wait for the channel, and whose message may come after what waits here.
    pub fn channel(&self) -> Sender<T> {
        self.channel.clone()
    }

    /// How many the channel has not taken yet.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Something of all that wait, together.
    pub fn sum(&self, of: impl Fn(&T) -> usize) -> usize {
        self.waiting.iter().map(of).sum()
    }

    /// Messages that wait and are worth nothing any more.
    pub fn forget(&mut self, worthless: impl Fn(&T) -> bool) {
        self.waiting.retain(|message| !worthless(message));
    }

    fn push(&mut self) {
        while let Some(message) = self.waiting.pop_front() {
            match self.channel.try_send(message) {
                // A closed channel: the neighbour has ended, and with it who would care.
                Ok(()) | Err(TrySendError::Closed(_)) => {}
                Err(TrySendError::Full(message)) => {
                    self.waiting.push_front(message);
                    return;
                }
            }
        }
    }

    /// Returns when the channel took something that waited; never where nothing waits.
    /// Nothing is lost when it is cancelled.
    pub async fn flush(&mut self) {
        if self.waiting.is_empty() {
            return std::future::pending().await;
        }
        // An error is a closed channel, which push knows how to take.
        if let Ok(permit) = self.channel.reserve().await
            && let Some(message) = self.waiting.pop_front()
        {
            permit.send(message);
        }
        self.push();
    }

    /// Until nothing waits.
    pub async fn finish(&mut self) {
        while !self.waiting.is_empty() {
            self.flush().await;
        }
    }
}
