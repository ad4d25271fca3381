//! Replies → what of the counts is done, refused, or in doubt.

use std::collections::VecDeque;
use std::time::Instant;

use super::{
    Batch, Counts, FORBIDDEN_PATIENCE, FORBIDDEN_PAUSE, Fence, Flight, Permission, REFUSED_PAUSE,
    Trouble, ghosts,
};
use crate::record::{Count, CountKind};
use crate::sink::refusal::{Refusal, classify};
use crate::sink::resp::Reply;
use crate::sink::stream::Doubt;

impl Counts {
    /// Takes the next reply of the connection.
    pub fn reply(&mut self, reply: &Reply<'_>, now: Instant) -> Vec<Trouble> {
        self.heard = Some(now);
        let mut troubles = Vec::new();
        if let Reply::Error(error) = reply
            && matches!(classify(error), Refusal::Connection | Refusal::Credentials)
        {
            let error = String::from_utf8_lossy(error).into_owned();
            return vec![Trouble::Hangup { error }];
        }
        self.flight = match std::mem::replace(&mut self.flight, Flight::Nothing) {
            Flight::Nothing => Flight::Nothing,
            Flight::Naming { answered, own } => self.naming(reply, answered, own),
            Flight::Asking {
                kills,
                answered,
                refusal,
            } => {
                if answered + 1 < kills + 3 {
                    let refusal = match reply {
                        // A connection that is gone already is as good.
                        Reply::Error(error) if answered >= kills => {
                            refusal.or_else(|| Some(error.to_vec()))
                        }
                        _ => refusal,
                    };
                    Flight::Asking {
                        kills,
                        answered: answered + 1,
                        refusal,
                    }
                } else {
                    self.asked(reply, refusal, now, &mut troubles);
                    Flight::Nothing
                }
            }
            Flight::Fenced {
                batch,
                answered,
                refusal,
            } => {
                if answered < batch.counts.len() + 2 {
                    let refusal = match reply {
                        Reply::Error(error) => refusal.or_else(|| Some(error.to_vec())),
                        _ => refusal,
                    };
                    Flight::Fenced {
                        batch,
                        answered: answered + 1,
                        refusal,
                    }
                } else {
                    self.executed(batch, reply, refusal, now, &mut troubles);
                    Flight::Nothing
                }
            }
            Flight::Bare { sent, again } => self.bare(reply, sent, again, now, &mut troubles),
        };
        troubles
    }

    pub(super) fn naming(&mut self, reply: &Reply<'_>, answered: usize, own: i64) -> Flight {
        match (answered, reply) {
            (0, _) => Flight::Naming { answered: 1, own },
            (1, Reply::Integer(own)) => Flight::Naming {
                answered: 2,
                own: *own,
            },
            (1, _) => Flight::Naming { answered: 2, own },
            (_, reply) => {
                self.ghosts = match reply {
                    Reply::Text(list) if own != 0 => ghosts(list, &self.connection_name(), own),
                    _ => Vec::new(),
                };
                self.fence = Fence::Unknown;
                Flight::Nothing
            }
        }
    }

    /// The fence is known, or we may not ask.
    pub(super) fn asked(
        &mut self,
        reply: &Reply<'_>,
        refusal: Option<Vec<u8>>,
        now: Instant,
        troubles: &mut Vec<Trouble>,
    ) {
        let fence = match reply {
            Reply::Array(items) => match items.first() {
                Some(Reply::Text(number)) => std::str::from_utf8(number)
                    .ok()
                    .and_then(|number| number.parse().ok())
                    .unwrap_or(0),
                _ => 0,
            },
            Reply::Error(error) => {
                let error = refusal.unwrap_or_else(|| error.to_vec());
                self.fence = Fence::Unknown;
                self.refuse(&error, now, troubles);
                return;
            }
            Reply::Text(_) | Reply::Integer(_) | Reply::Nil => 0,
        };
        self.fence = Fence::Known;
        self.again.retain(|batch| batch.number > fence);
        let highest = self.again.back().map_or(0, |batch| batch.number);
        self.next = self.next.max(fence + 1).max(highest + 1);
    }

    /// `EXEC` was answered.
    pub(super) fn executed(
        &mut self,
        batch: Batch,
        reply: &Reply<'_>,
        refusal: Option<Vec<u8>>,
        now: Instant,
        troubles: &mut Vec<Trouble>,
    ) {
        match reply {
            Reply::Array(replies) => {
                for (count, reply) in batch.counts.iter().zip(replies.iter().skip(1)) {
                    if let Reply::Error(error) = reply {
                        troubles.push(Trouble::Count {
                            count: count.clone(),
                            error: String::from_utf8_lossy(error).into_owned(),
                        });
                    }
                }
                self.disk.stale = true;
                self.recent.push_back((now, batch));
                self.forget_safe();
            }
            Reply::Error(error) => {
                // Nothing was done.
                let error = refusal.unwrap_or_else(|| error.to_vec());
                self.again.push_front(batch);
                self.refuse(&error, now, troubles);
            }
            Reply::Text(_) | Reply::Integer(_) | Reply::Nil => {
                self.again.push_front(batch);
                self.refused_until = Some(now + REFUSED_PAUSE);
            }
        }
    }

    /// A transaction was refused as a whole.
    pub(super) fn refuse(&mut self, error: &[u8], now: Instant, troubles: &mut Vec<Trouble>) {
        match classify(error) {
            Refusal::Later | Refusal::Connection | Refusal::Credentials => {
                self.refused_until = Some(now + REFUSED_PAUSE);
            }
            Refusal::Forbidden
            | Refusal::WrongType
            | Refusal::IdTooSmall
            | Refusal::NoSuchKey
            | Refusal::NotAnInteger
            | Refusal::Never => {
                self.fence = Fence::Forbidden;
                let again = std::mem::take(&mut self.again);
                // What was acknowledged is believed to be there.
                let again = again
                    .into_iter()
                    .filter(|batch| batch.doubt != Doubt::Acknowledged);
                for batch in again.rev() {
                    for count in batch.counts.into_iter().rev() {
                        self.waiting.push_front(count);
                    }
                }
                if !std::mem::replace(&mut self.told_unfenced, true) {
                    let error = String::from_utf8_lossy(error).into_owned();
                    troubles.push(Trouble::Unfenced { error });
                }
            }
        }
    }

    /// Less than a minute has passed since a bare count was forbidden first.
    pub(super) fn is_patient(&mut self, now: Instant) -> bool {
        let since = *self.forbidden_since.get_or_insert(now);
        now.saturating_duration_since(since) < FORBIDDEN_PATIENCE
    }

    pub(super) fn bare(
        &mut self,
        reply: &Reply<'_>,
        mut sent: VecDeque<Count>,
        mut again: Vec<Count>,
        now: Instant,
        troubles: &mut Vec<Trouble>,
    ) -> Flight {
        if !matches!(reply, Reply::Error(_)) {
            self.forbidden_since = None;
        }
        if let (Some(count), Reply::Error(error)) = (sent.pop_front(), reply) {
            let many = matches!(count.what, CountKind::Increment(by) if by > 1);
            match classify(error) {
                Refusal::Later => {
                    self.refused_until = Some(now + REFUSED_PAUSE);
                    again.push(count);
                }
                Refusal::Forbidden if many => {
                    self.increment_by = Permission::Denied;
                    again.push(count);
                }
                // As a stream that refuses: rights may come back within a minute.
                Refusal::Forbidden if self.is_patient(now) => {
                    self.refused_until = Some(now + FORBIDDEN_PAUSE);
                    again.push(count);
                }
                Refusal::Forbidden
                | Refusal::Connection
                | Refusal::Credentials
                | Refusal::WrongType
                | Refusal::IdTooSmall
                | Refusal::NoSuchKey
                | Refusal::NotAnInteger
                | Refusal::Never => troubles.push(Trouble::Count {
                    count,
                    error: String::from_utf8_lossy(error).into_owned(),
                }),
            }
        }
        if !sent.is_empty() {
            return Flight::Bare { sent, again };
        }
        for count in again.into_iter().rev() {
            self.waiting.push_front(count);
        }
        Flight::Nothing
    }
}
