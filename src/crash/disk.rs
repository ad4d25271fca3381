//! work on crash records → its result, or that the disk stands still.
//!
//! Edge. A disk that hangs keeps whoever waits for it, without an error and without an end. So others wait, and nobody
//! for longer than [`LIMIT`]; while such work is not done nothing more is begun, and reports go on without the disk.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::timeout;

use super::store::Store;

/// As long as the journal's own.
const LIMIT: Duration = Duration::from_secs(10);

type Work = Box<dyn FnOnce(&Store) + Send>;

/// The records, by way of their disk.
#[derive(Clone, Debug)]
pub struct Disk {
    pub store: Store,
    limit: Duration,
    /// Lives as long as the work that was waited for in vain.
    stuck: Arc<Mutex<Weak<()>>>,
}

impl Disk {
    pub fn new(store: Store) -> Disk {
        Disk {
            store,
            limit: LIMIT,
            stuck: Arc::default(),
        }
    }

    /// # Errors
    /// Those of the work; `TimedOut` where the disk does not answer.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.run_or(work, |_| ()).await
    }

    /// The same; `too_late` comes after work that was done when nobody waited for it any more.
    ///
    /// # Errors
    /// As above.
    pub async fn run_or<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> io::Result<T> + Send + 'static,
        too_late: impl FnOnce(&Store) + Send + 'static,
    ) -> io::Result<T> {
        let result = Arc::new(Mutex::new(None));
        let place = result.clone();
        let work = move |store: &Store| {
            let done = work(store);
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        };
        self.wait(Box::new(work), Box::new(too_late)).await?;
        let mut result = result.lock().unwrap_or_else(PoisonError::into_inner);
        result.take().unwrap_or_else(|| Err(no_answer()))
    }

    /// Of one type for all: a task of its own for each would be 8 KB of code.
    async fn wait(&self, work: Work, too_late: Work) -> io::Result<()> {
        if self.stuck().upgrade().is_some() {
            return Err(no_answer());
        }
        let alive = Arc::new(());
        let watch = Arc::downgrade(&alive);
        let waits = Arc::new(AtomicBool::new(true));
        let waited_for = waits.clone();
        let store = self.store.clone();
        let work = tokio::task::spawn_blocking(move || {
            work(&store);
            if !waited_for.load(Ordering::Acquire) {
                too_late(&store);
            }
            drop(alive);
        });
        match timeout(self.limit, work).await {
            Ok(done) => done.map_err(io::Error::other),
            Err(_) => {
                waits.store(false, Ordering::Release);
                *self.stuck() = watch;
                Err(no_answer())
            }
        }
    }

    fn stuck(&self) -> MutexGuard<'_, Weak<()>> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer from the disk")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_a_disk_that_stands_still() {
        let store = Store::new(std::path::Path::new("/nowhere"), 1, 1);
        let mut disk = Disk::new(store);
        assert_eq!(disk.run(|_| Ok(7)).await.unwrap(), 7);
        let (go_on, wait) = mpsc::channel::<()>();
        let kind = |done: io::Result<()>| done.unwrap_err().kind();
        disk.limit = Duration::from_millis(20);
        let (undo, undone) = mpsc::channel::<()>();
        let work = move |_: &Store| {
            let _ = wait.recv();
            Ok(())
        };
        let held = disk.run_or(work, move |_| undo.send(()).unwrap_or_default());
        assert_eq!(kind(held.await), io::ErrorKind::TimedOut);
        assert_eq!(kind(disk.run(|_| Ok(())).await), io::ErrorKind::TimedOut);
        drop(go_on);
        undone.recv().expect("what came too late is undone");
        disk.limit = LIMIT;
        while disk.run(|_| Ok(())).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}
