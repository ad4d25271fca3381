//! a process that was copied → a word about it at once, and the copy handed to the analysis.
//!
//! The supervisor's whole part in a crash: it gives the identifier, remembers the latest one of each service, and goes
//! on. Nothing here can hold up a restart.

use std::hash::{BuildHasher, Hasher, RandomState};

use tracing::{error, warn};

use super::reap::Order;
use super::run::Shell;
use crate::clock;
use crate::handoff::{Dying, Snapshot};
use crate::record::{Entry, StatusEvent};
use crate::request::{Reply, RequestId};
use crate::service::{RunId, ServiceName, Signal};

/// Copies that wait for the analysis keep their memory up to here; later ones are reported without.
const WAITING: usize = 8;

impl Shell {
    pub(super) fn crashed(&mut self, run: RunId, snapshot: Box<Snapshot>) {
        let Some(unit) = self.fleet.unit(run.service) else {
            return;
        };
        let service = unit.machine.service().name.clone();
        let streams = unit.streams.clone();
        let crash_id = crash_id(&service, &snapshot);
        let signal = snapshot.signal.unwrap_or(Signal::ABRT);
        error!(service = %service, "crashed with {signal} ({crash_id})");
        if let Some(trouble) = &snapshot.trouble {
            warn!(service = %service, "the crash was captured in part: {trouble}");
        }
        let word = StatusEvent::Crash {
            signal,
            crash_id: crash_id.clone(),
        };
        let entry = Entry::status(&streams, snapshot.at_ms, &word);
        self.happened(run.service, "crash", &entry);
        self.say(entry);
        self.crash_ids.insert(run.service, crash_id.clone());
        self.hand_on(Dying {
            service,
            streams,
            crash_id,
            snapshot,
            asked: None,
        });
        self.stand(run.service);
    }

    /// The answer to whoever asked for stacks comes from the analysis.
    pub(super) fn copied(
        &mut self,
        id: RequestId,
        run: RunId,
        result: Result<Box<Snapshot>, String>,
    ) {
        let snapshot = match result {
            Ok(snapshot) => snapshot,
            Err(why) => return self.replies.send((id, Reply::refused(why))),
        };
        let Some(unit) = self.fleet.unit(run.service) else {
            return self.replies.send((id, Reply::refused("it is gone")));
        };
        let service = unit.machine.service().name.clone();
        let dying = Dying {
            crash_id: crash_id(&service, &snapshot),
            streams: unit.streams.clone(),
            service,
            snapshot,
            asked: Some(id),
        };
        self.hand_on(dying);
    }

    /// The latest crash of each service that had one.
    pub(super) fn with_crash_ids(&self, mut document: serde_json::Value) -> serde_json::Value {
        let services = document["services"].as_array_mut();
        for service in services.into_iter().flatten() {
            let unit = service["name"]
                .as_str()
                .and_then(|name| self.fleet.named(name));
            let id = unit.and_then(|unit| self.crash_ids.get(&unit.machine.run().service));
            if let Some(id) = id {
                service["crash_id"] = id.as_str().into();
            }
        }
        document
    }

    fn hand_on(&mut self, mut dying: Dying) {
        if self.dying.waiting() >= WAITING {
            dying.snapshot.core = Vec::new();
            dying.snapshot.trouble = Some("too many crashes at once".to_owned());
        }
        self.dying.send(dying);
    }

    /// An order about the process of a service that runs.
    pub(super) fn order_about(
        &mut self,
        id: RequestId,
        service: &str,
        order: impl Fn(RequestId, RunId) -> Order,
    ) {
        match self.fleet.named(service) {
            Some(unit) if unit.machine.life().is_some() => {
                self.orders.give(order(id, unit.machine.run()));
            }
            Some(_) => {
                let reply = Reply::refused(format!("{service} is not running"));
                self.replies.send((id, reply));
            }
            None => {
                let reply = Reply::refused(format!("no service {service:?}"));
                self.replies.send((id, reply));
            }
        }
    }
}

/// `20261122T103000Z-lidar-4242-9f3c`: sorts by time, and is a file name.
fn crash_id(service: &ServiceName, snapshot: &Snapshot) -> String {
    let time = clock::utc(snapshot.at_ms);
    let time: String = time
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric())
        .collect();
    // Seeded by the system's randomness (HashMap's own); only two crashes in one second need it.
    let random = RandomState::new().build_hasher().finish() & 0xffff;
    format!("{time}Z-{service}-{}-{random:04x}", snapshot.pid)
}
