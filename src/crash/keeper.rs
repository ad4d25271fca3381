//! crashes that wait for their analysis → on disk, with what else their reports need.
//!
//! Edge. An agent that ends meanwhile, by whatever means, leaves them to the next one ([`super::kernel::left`] finds
//! them). What nobody waits behind costs one write more than before; what would be counted only is not written.

use std::fs;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::handoff::{Audience, Cause, CoreFile, Dying, Unfinished};
use crate::request::{CopyPlace, KernelCopy};
use crate::service::Pid;

use super::disk::Disk;
use super::examiner::{self, Place};
use super::known::Known;
use super::run::last_words_of;
use super::store::{self, Store};

/// When nobody hands anything on any more.
pub type Ending = Arc<OnceLock<Instant>>;

pub struct Keeper {
    pub disk: Disk,
    /// Records are kept on disk.
    pub keep: bool,
    pub known: Arc<Mutex<Known>>,
    pub ending: Ending,
}

impl Keeper {
    /// Until nobody hands anything on any more.
    pub async fn run(self, mut dying: mpsc::Receiver<Dying>, queue: mpsc::Sender<Dying>) {
        while let Some(dying) = dying.recv().await {
            let kept = self.kept(dying).await;
            if queue.send(kept).await.is_err() {
                break;
            }
        }
        let _ = self.ending.set(Instant::now());
    }

    async fn kept(&self, mut dying: Dying) -> Dying {
        let is_news = || {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let (id, site) = (&dying.crash_id, &dying.snapshot.site);
            known.is_to_wait(id, &dying.service, site, Instant::now())
        };
        let is_record = matches!(dying.cause, Cause::Crash | Cause::Hang);
        let size = match &dying.snapshot.core {
            CoreFile::Missing => return dying,
            CoreFile::Bytes(bytes) => bytes.len() as u64,
            CoreFile::Open(fd) => rustix::fs::fstat(fd).map_or(0, |about| about.st_size as u64),
            CoreFile::Kept => 0,
        };
        let id = &dying.crash_id;
        if !self.keep || !is_record || !is_news() || !self.disk.store.put_off(id, size) {
            return dying;
        }
        let words = serde_json::to_vec(&left(&dying)).unwrap_or_default();
        let own = id.clone();
        // First: a core that is cut off is better than one of which nothing is known.
        let note = move |store: &Store| {
            store.sweep(&own);
            store.save(&own, store::LEFT, &words)
        };
        let own = id.clone();
        // It has been told by then: the next agent is not to do so again.
        let noted = self
            .disk
            .run_or(note, move |store| drop(store.remove(&own)));
        if let Err(error) = noted.await {
            tracing::debug!("{id}: {error}");
            return dying;
        }
        let core = std::mem::replace(&mut dying.snapshot.core, CoreFile::Missing);
        match examiner::place(&self.disk, id, core, true).await {
            Ok((Place::Stored(_), _)) => dying.snapshot.core = CoreFile::Kept,
            Ok((Place::Memory(fd), _)) => dying.snapshot.core = CoreFile::Open(fd),
            Err(error) => trouble(&mut dying, &error),
        }
        dying
    }
}

fn trouble(dying: &mut Dying, error: &std::io::Error) {
    let trouble = format!("no room for the core file: {error}");
    let before = dying.snapshot.trouble.take();
    dying.snapshot.trouble = Some(match before {
        Some(before) => format!("{before}, {trouble}"),
        None => trouble,
    });
}

/// What the next agent must be told.
fn left(dying: &Dying) -> KernelCopy {
    let snapshot = &dying.snapshot;
    let Unfinished { log, message } = last_words_of(dying);
    KernelCopy {
        pid: snapshot.pid,
        signal: snapshot.signal.map_or(0, |signal| signal.0),
        at_ms: snapshot.at_ms,
        site: snapshot.site.clone(),
        trouble: snapshot.trouble.clone(),
        program: dying.service.to_string(),
        service: Some(dying.service.to_string()),
        private: matches!(dying.audience, Audience::Disk),
        place: CopyPlace::Kept(dying.crash_id.clone()),
        told: true,
        hang: matches!(dying.cause, Cause::Hang),
        log,
        message,
        device: dying
            .device
            .iter()
            .map(|(name, value)| (name.to_string(), value.clone()))
            .collect(),
        by: started(own_pid()).map(|started| (own_pid(), started)),
        ..KernelCopy::default()
    }
}

/// Whether another agent that still runs is to finish it.
pub fn is_taken(copy: &KernelCopy) -> bool {
    let others = copy.by.filter(|(pid, _)| *pid != own_pid());
    others.is_some_and(|(pid, began)| started(pid) == Some(began))
}

fn own_pid() -> Pid {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Clock ticks from the machine's start to the process' (proc(5), `/proc/PID/stat`, field 22); `None` where it has
/// ended, also if nobody has noticed yet.
fn started(pid: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    match fields.next()? {
        "Z" | "X" | "x" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// Returns when what is not finished is left to the next agent.
pub async fn too_late(ending: &Ending, limit: Duration) {
    loop {
        match ending.get() {
            Some(since) if since.elapsed() >= limit => return,
            Some(since) => tokio::time::sleep(limit.saturating_sub(since.elapsed())).await,
            None => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_ended_finishes_nothing() {
        let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
        let copy = |by| KernelCopy {
            by,
            ..KernelCopy::default()
        };
        let began = started(parent).expect("a parent that runs");
        assert!(is_taken(&copy(Some((parent, began)))));
        // Another process of the same number, ourselves, and what no agent wrote.
        assert!(!is_taken(&copy(Some((parent, began + 1)))));
        assert!(!is_taken(&copy(
            started(own_pid()).map(|at| (own_pid(), at))
        )));
        assert!(!is_taken(&copy(None)));
    }
}
