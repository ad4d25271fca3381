//! a run that begins → its notification socket, its readiness probe, and what they say.
//!
//! One task per run that has anything to be watched for; it ends with the run. Probes wait
//! for nothing but their own answer, and are asked again after a pause that grows: what
//! comes up fast is seen fast, what comes up slowly costs nothing.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::notice::Notice;
use super::notified::{self, Ear};
use super::prepare::Handed;
use super::probe::{self, Keys};
use super::reap::{Order, Orders};
use super::tasks::{Command, Output};
use crate::config::Service;
use crate::config::lifecycle::ReadyBy;
use crate::handoff::{CommandWord, Teller};
use crate::service::{Pid, RunId};

/// What a watcher has seen.
#[derive(Debug)]
pub enum Seen {
    Ready(RunId),
    Notice(RunId, Notice),
}

/// One probe, from question to answer.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// Between two probes: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// All runs that are watched.
pub struct Watches {
    seen: mpsc::Sender<Seen>,
    orders: Orders,
    keys: Keys,
    runs: HashMap<RunId, Watched>,
}

#[derive(Default)]
struct Watched {
    ear: Option<Ear>,
    ready_pipe: Option<OwnedFd>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Watches {
    pub fn new(orders: Orders, keys: Keys) -> (Watches, mpsc::Receiver<Seen>) {
        let (seen, out) = mpsc::channel(64);
        let watches = Watches {
            seen,
            orders,
            keys,
            runs: HashMap::new(),
        };
        (watches, out)
    }

    /// Before its process is started. What cannot be had is told, and the run goes without.
    pub fn open(&mut self, run: RunId, service: &Service) -> Handed {
        let mut handed = Handed::default();
        let mut watched = Watched::default();
        if service.lifecycle.notifies() {
            match Ear::open() {
                Ok(ear) => {
                    handed.notify_socket = Some(ear.name().to_owned());
                    watched.ear = Some(ear);
                }
                Err(error) => warn!(service = %service.name, "no notification socket: {error}"),
            }
        }
        let by = service.lifecycle.ready.as_ref().map(|ready| &ready.by);
        if let Some(ReadyBy::Fd(number)) = by {
            match pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) {
                Ok((read, write)) => {
                    // The service's end blocks, as any descriptor that it is handed.
                    let _ = rustix::fs::fcntl_setfl(&write, rustix::fs::OFlags::empty());
                    handed.ready_fd = place(write, *number).map(|fd| (Arc::new(fd), *number));
                    watched.ready_pipe = Some(read);
                }
                Err(errno) => warn!(service = %service.name, "no pipe for readiness: {errno}"),
            }
        }
        self.runs.insert(run, watched);
        handed
    }

    /// Its process runs.
    pub fn begin(&mut self, run: RunId, pid: Pid, service: &Arc<Service>) {
        let Some(watched) = self.runs.get_mut(&run) else {
            return;
        };
        let seen = self.seen.clone();
        if let Some(ear) = watched.ear.take() {
            let name = service.name.clone();
            let task = notified::listen(ear, run, pid, name, seen.clone());
            watched.tasks.push(tokio::spawn(task));
        }
        let Some(ready) = &service.lifecycle.ready else {
            return;
        };
        let task = match &ready.by {
            // Said by the socket, or by the lines.
            ReadyBy::Notify | ReadyBy::Log(_) => return,
            ReadyBy::Fd(_) => match watched.ready_pipe.take() {
                Some(pipe) => tokio::spawn(read_line(pipe, run, seen)),
                None => return,
            },
            ReadyBy::Tcp(at) => {
                let at = at.clone();
                tokio::spawn(ask(run, seen, async move || probe::tcp(&at).await))
            }
            ReadyBy::Http { at, path } => {
                let (at, path) = (at.clone(), path.clone());
                tokio::spawn(ask(run, seen, async move || probe::http(&at, &path).await))
            }
            ReadyBy::Redis(key) => {
                let (keys, key) = (self.keys.clone(), key.clone());
                tokio::spawn(ask(run, seen, async move || keys.is_set(&key).await))
            }
            ReadyBy::Exec(argv) => {
                let (orders, argv) = (self.orders.clone(), argv.clone());
                let service = Arc::clone(service);
                let exec = async move || succeeds(&orders, &service, &argv).await;
                tokio::spawn(ask(run, seen, exec))
            }
        };
        watched.tasks.push(task);
    }

    /// It is ready or ends: no more probes. What it says of itself is heard until it is over.
    pub fn over(&mut self, run: RunId) {
        self.runs.remove(&run);
    }
}

/// Out of the way of what the child puts into its place.
fn place(fd: OwnedFd, number: i32) -> Option<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(&fd, number + 1).ok()
}

/// Until the probe succeeds.
async fn ask(run: RunId, seen: mpsc::Sender<Seen>, probe: impl AsyncFn() -> bool) {
    let mut pause = FIRST_PAUSE;
    loop {
        if let Ok(true) = tokio::time::timeout(PROBE_LIMIT, probe()).await {
            let _ = seen.send(Seen::Ready(run)).await;
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// s6's protocol: a line end on the descriptor says ready; without one its end says nothing.
async fn read_line(pipe: OwnedFd, run: RunId, seen: mpsc::Sender<Seen>) {
    let Ok(mut pipe) = Receiver::from_owned_fd(pipe) else {
        return;
    };
    let mut bytes = [0u8; 256];
    while let Ok(count) = pipe.read(&mut bytes).await {
        if bytes[..count].contains(&b'\n') {
            let _ = seen.send(Seen::Ready(run)).await;
            return;
        }
        if count == 0 {
            return;
        }
    }
}

/// Whether a command of the service's succeeds, run by the main thread.
async fn succeeds(orders: &Orders, service: &Arc<Service>, argv: &[String]) -> bool {
    let (answer, answered) = oneshot::channel();
    let mut answer = Some(answer);
    let tell = move |word| {
        let passed = match word {
            CommandWord::Started(_) => return,
            CommandWord::NotStarted(why) => {
                debug!("readiness: {why}");
                false
            }
            CommandWord::Ended { exit, overdue } => exit.is_success() && !overdue,
        };
        // Nobody waits where the run is over.
        let _ = answer.take().map(|answer| answer.send(passed));
    };
    orders.give(Order::Command(Command {
        service: Arc::clone(service),
        words: argv.to_vec(),
        output: Output::Unheard,
        limit: PROBE_LIMIT,
        tell: Teller(Box::new(tell)),
    }));
    answered.await.unwrap_or(false)
}
