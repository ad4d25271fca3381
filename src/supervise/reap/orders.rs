//! orders → a queue, and a bell for the main thread.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::config::Service;
use crate::handoff::Helper;
use crate::request::RequestId;
use crate::service::{Pid, RunId, Signal};
use crate::supervise::prepare::Handed;
use crate::supervise::tasks::Command;

#[derive(Debug)]
pub enum Order {
    /// Start a process. Answered by `Spawned` or `SpawnFailed`.
    Spawn {
        run: RunId,
        service: Arc<Service>,
        handed: Handed,
    },
    /// To the main process, if it lives.
    Signal { run: RunId, signal: Signal },
    /// SIGKILL to everything the run started, again until nothing is left. Answered, once
    /// the main process has been reaped, by `TreeGone`.
    KillTree { run: RunId },
    /// Start a process of the agent's own.
    Help(Helper),
    /// Copy a running process. Answered by `Stacks`.
    Copy { id: RequestId, run: RunId },
    /// Trace the run no more. Answered by `Detached`.
    Detach { id: RequestId, run: RunId },
    /// Copy the process of a run that hangs, before it is ended. Answered by `Hung`, or not.
    Hung { run: RunId },
    /// Another process of the run is its main one from now on.
    MainPid { run: RunId, pid: Pid },
    /// Run a command of a service's beside the service. Answered through its teller.
    Command(Command),
    /// Stop every main process, then this process: SIGCONT to it goes to them as well.
    Pause,
    /// End the loop; whatever still lives is killed.
    Quit,
}

/// Where orders are left for the main thread. Cheap to clone, never blocks.
#[derive(Clone)]
pub struct Orders {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    queue: Mutex<VecDeque<Order>>,
    pub bell: OwnedFd,
    /// Signs of life asked of the main thread, and what it had heard of them when it last looked.
    asked: AtomicU64,
    shown: AtomicU64,
}

impl Orders {
    pub fn give(&self, order: Order) {
        self.shared
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(order);
        self.ring();
    }

    /// Whether the main thread has come round since this was last asked; it is asked for the next time.
    pub fn comes_round(&self) -> bool {
        let Shared { asked, shown, .. } = &*self.shared;
        let alive = shown.load(Ordering::Acquire) == asked.load(Ordering::Acquire);
        if alive {
            asked.fetch_add(1, Ordering::AcqRel);
        }
        self.ring();
        alive
    }

    fn ring(&self) {
        // The counter only fills up when it is rung 2^64 times unheard.
        let _ = rustix::io::write(&self.shared.bell, &1u64.to_ne_bytes());
    }
}

/// The queue, empty, and its bell.
pub(super) fn queue() -> io::Result<Orders> {
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    Ok(Orders {
        shared: Arc::new(Shared {
            queue: Mutex::new(VecDeque::new()),
            bell,
            asked: AtomicU64::new(0),
            shown: AtomicU64::new(0),
        }),
    })
}

impl Shared {
    /// The next one in turn.
    pub fn next(&self) -> Option<Order> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.pop_front()
    }

    /// A sign of life, for who asked.
    pub fn show(&self) {
        let Shared { asked, shown, .. } = self;
        shown.store(asked.load(Ordering::Acquire), Ordering::Release);
    }
}
