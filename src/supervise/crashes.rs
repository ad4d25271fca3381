//! a process that was copied → a word about it at once, and the copy handed to the analysis.
//!
//! The supervisor's whole part in a crash: it finds whose it was, gives the identifier, remembers the latest one of each
//! service, and goes on. Nothing here can hold up a restart. Copies come from the tracer, or from the kernel's handler
//! (`agent core`), which catches also what is no service: that is kept and told under the program's name.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tracing::{debug, error, warn};

use super::reap::Order;
use super::run::Shell;
use crate::crash_id::crash_id;
use crate::handoff::{Audience, Cause, CoreFile, Dying, Leads, Snapshot, Unfinished};
use crate::record::{Entry, StatusEvent, Streams};
use crate::request::{CopyPlace, KernelCopy, Reply, RequestId};
use crate::service::{Pid, RunId, ServiceId, ServiceName, Signal};

/// Bytes of copies that wait for the analysis; later ones are reported without.
const WAITING: usize = 64 << 20;
/// The same as their number: others are held by the kernel's handlers' making.
const MOST_WAITING: usize = 256;
/// Programs beside the services that have a stream of their own.
const STRANGERS: usize = 64;
/// Copies of the kernel's handlers that are known again.
const REMEMBERED: usize = 64;

/// What the supervisor remembers of crashes.
#[derive(Default)]
pub(super) struct Crashes {
    /// The latest of each service.
    latest: HashMap<ServiceId, String>,
    strangers: HashMap<ServiceName, Arc<Streams>>,
    /// What handlers asked last, and how it was called: one that got no answer in time asks again.
    answered: VecDeque<(Pid, u64, String)>,
}

impl Crashes {
    pub(super) fn latest(&self, service: ServiceId) -> Option<&String> {
        self.latest.get(&service)
    }

    fn answer_to(&self, copy: &KernelCopy) -> Option<String> {
        let same = |(pid, at_ms, _): &&(Pid, u64, String)| (*pid, *at_ms) == (copy.pid, copy.at_ms);
        self.answered.iter().find(same).map(|(_, _, id)| id.clone())
    }

    fn remember(&mut self, copy: &KernelCopy, id: &str) {
        if self.answered.len() >= REMEMBERED {
            self.answered.pop_front();
        }
        self.answered
            .push_back((copy.pid, copy.at_ms, id.to_owned()));
    }
}

/// What an earlier agent knew of a crash.
struct Told {
    hang: bool,
    private: bool,
    device: BTreeMap<String, String>,
    unfinished: Unfinished,
}

impl Shell {
    pub(super) fn crashed(&mut self, run: RunId, snapshot: Box<Snapshot>) {
        if let Some(unit) = self.fleet.unit(run.service) {
            let name = unit.machine.service().name.clone();
            let id = crash_id(snapshot.at_ms, &name, snapshot.pid);
            self.crashed_as(run.service, id, snapshot);
        }
    }

    fn crashed_as(&mut self, id: ServiceId, crash_id: String, snapshot: Box<Snapshot>) {
        let Some(unit) = self.fleet.unit(id) else {
            return;
        };
        let service = unit.machine.service().name.clone();
        let streams = unit.streams.clone();
        let signal = snapshot.signal.unwrap_or(Signal::ABRT);
        error!(service = %service, "crashed with {signal} ({crash_id})");
        debug!(service = %service, "it was held for {:?}", snapshot.held);
        tell_trouble(&service, &snapshot);
        let word = StatusEvent::Crash {
            signal,
            crash_id: crash_id.clone(),
        };
        let entry = Entry::status(&streams, snapshot.at_ms, &word);
        self.happened(id, "crash", &entry);
        self.say(entry);
        self.crashes.latest.insert(id, crash_id.clone());
        self.hand_on(Dying {
            service,
            streams,
            crash_id,
            snapshot,
            cause: Cause::Crash,
            device: self.board(),
            audience: Audience::Stream,
            unfinished: None,
        });
        self.stand(id);
    }

    /// It hangs, and is about to be ended: what it does is reported like a crash.
    pub(super) fn hung(&mut self, run: RunId, snapshot: Box<Snapshot>) {
        let Some(unit) = self.fleet.unit(run.service) else {
            return;
        };
        let service = unit.machine.service().name.clone();
        let streams = unit.streams.clone();
        let crash_id = crash_id(snapshot.at_ms, &service, snapshot.pid);
        warn!(service = %service, "what it did while it hung is kept ({crash_id})");
        tell_trouble(&service, &snapshot);
        self.crashes.latest.insert(run.service, crash_id.clone());
        self.hand_on(Dying {
            service,
            streams,
            crash_id,
            snapshot,
            cause: Cause::Hang,
            device: self.board(),
            audience: Audience::Stream,
            unfinished: None,
        });
        self.stand(run.service);
    }

    /// What the kernel's handler has copied; the answer lets it go.
    pub(super) fn copied_by_kernel(&mut self, copy: KernelCopy) -> Reply {
        if let Some(id) = self.crashes.answer_to(&copy) {
            return Reply::done(id.into());
        }
        let (core, leads) = match take(&copy.place) {
            Ok(taken) => taken,
            Err(why) => return Reply::refused(why),
        };
        let owner = self.owner(&copy);
        let name = match owner.and_then(|id| self.fleet.unit(id)) {
            Some(unit) => unit.machine.service().name.clone(),
            None => ServiceName::near(&copy.program),
        };
        let id = match &copy.place {
            CopyPlace::Kept(id) => id.clone(),
            CopyPlace::Held { .. } | CopyPlace::Nowhere => crash_id(copy.at_ms, &name, copy.pid),
        };
        self.crashes.remember(&copy, &id);
        let private = copy.private;
        let snapshot = Box::new(Snapshot {
            pid: copy.pid,
            signal: Some(Signal(copy.signal)).filter(|signal| signal.0 != 0),
            at_ms: copy.at_ms,
            site: copy.site,
            core,
            leads,
            held: Duration::ZERO,
            trouble: copy.trouble,
        });
        if copy.told {
            let told = Told {
                hang: copy.hang,
                private,
                device: copy.device,
                unfinished: Unfinished {
                    log: copy.log,
                    message: copy.message,
                },
            };
            self.finish_report(owner, name, id.clone(), snapshot, told);
            return Reply::done(id.into());
        }
        match owner {
            Some(owner) => self.crashed_as(owner, id.clone(), snapshot),
            None => self.stranger(name, id.clone(), snapshot, private),
        }
        Reply::done(id.into())
    }

    /// The service that a process belonged to: its main process or one below it, or what its environment or its group
    /// names.
    fn owner(&self, copy: &KernelCopy) -> Option<ServiceId> {
        let chain = || std::iter::once(&copy.pid).chain(&copy.ancestors);
        let by_process = chain().find_map(|pid| {
            let is_main = |unit: &&super::fleet::Unit| {
                unit.machine.life().is_some_and(|life| life.pid == *pid)
            };
            self.fleet.units().find(is_main)
        });
        // Another agent's services may be called the same. Of what was left it is not known who its parents were.
        let below_us = copy.ancestors.contains(&self.own.pid);
        let was_left = matches!(copy.place, CopyPlace::Kept(_));
        let by_name = || {
            let names = [copy.service.as_deref(), copy.group.as_deref()];
            let names = names.into_iter().flatten();
            names.filter_map(|name| self.fleet.named(name)).next()
        };
        let unit = by_process.or_else(|| (below_us || was_left).then(by_name).flatten());
        unit.map(|unit| unit.machine.run().service)
    }

    /// An earlier agent told of it, and ended before it was reported.
    fn finish_report(
        &mut self,
        owner: Option<ServiceId>,
        service: ServiceName,
        crash_id: String,
        snapshot: Box<Snapshot>,
        told: Told,
    ) {
        warn!(service = %service, "{crash_id} was not reported before the last end: it is now");
        let streams = match owner.and_then(|id| self.fleet.unit(id)) {
            Some(unit) => unit.streams.clone(),
            None => Streams::new(service.as_str(), trim_of(self.config.redis.max_len)),
        };
        if let Some(id) = owner {
            self.crashes.latest.insert(id, crash_id.clone());
        }
        let device = told.device.into_iter();
        self.hand_on(Dying {
            service,
            streams,
            crash_id,
            snapshot,
            cause: match told.hang {
                true => Cause::Hang,
                false => Cause::Crash,
            },
            device: Arc::new(device.map(|(name, value)| (name.into(), value)).collect()),
            audience: match told.private {
                true => Audience::Disk,
                false => Audience::Stream,
            },
            unfinished: Some(told.unfinished),
        });
        if let Some(id) = owner {
            self.stand(id);
        }
    }

    /// No service of ours.
    fn stranger(&mut self, name: ServiceName, id: String, snapshot: Box<Snapshot>, private: bool) {
        let signal = snapshot.signal.unwrap_or(Signal::ABRT);
        error!("{name}, which is no service, crashed with {signal} ({id})");
        tell_trouble(&name, &snapshot);
        let strangers = &mut self.crashes.strangers;
        let is_new = !strangers.contains_key(&name);
        let audience = match private || is_new && strangers.len() >= STRANGERS {
            true => Audience::Disk,
            false => Audience::Stream,
        };
        let trim = self.config.redis.max_len;
        let streams = match (is_new, audience) {
            (true, Audience::Disk) => Streams::new(name.as_str(), trim_of(trim)),
            (_, _) => Arc::clone(
                strangers
                    .entry(name.clone())
                    .or_insert_with(|| Streams::new(name.as_str(), trim_of(trim))),
            ),
        };
        self.hand_on(Dying {
            service: name,
            streams,
            crash_id: id,
            snapshot,
            cause: Cause::Crash,
            device: self.board(),
            audience,
            unfinished: None,
        });
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
            crash_id: crash_id(snapshot.at_ms, &service, snapshot.pid),
            streams: unit.streams.clone(),
            service,
            snapshot,
            cause: Cause::Asked(id),
            device: self.board(),
            audience: Audience::Disk,
            unfinished: None,
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
            let id = unit.and_then(|unit| self.crashes.latest(unit.machine.run().service));
            if let Some(id) = id {
                service["crash_id"] = id.as_str().into();
            }
        }
        document
    }

    fn hand_on(&mut self, mut dying: Dying) {
        let weight = self.dying.sum(|waiting| waiting.snapshot.core.weight());
        let is_kept = matches!(dying.snapshot.core, CoreFile::Kept);
        if !is_kept && (weight >= WAITING || self.dying.waiting() >= MOST_WAITING) {
            dying.snapshot.core = CoreFile::Missing;
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

fn tell_trouble(service: &ServiceName, snapshot: &Snapshot) {
    if let Some(trouble) = &snapshot.trouble {
        warn!(service = %service, "the process was captured in part: {trouble}");
    }
}

fn trim_of(max_len: u64) -> crate::record::Trim {
    crate::record::Trim { max_len }
}

/// Opens what a handler holds: it may go then. The error is a sentence.
fn take(place: &CopyPlace) -> Result<(CoreFile, Leads), String> {
    let (by, core, executable, root) = match place {
        CopyPlace::Nowhere => return Ok((CoreFile::Missing, Leads::default())),
        CopyPlace::Kept(_) => return Ok((CoreFile::Kept, Leads::default())),
        CopyPlace::Held {
            by,
            core,
            executable,
            root,
        } => (by, *core, *executable, *root),
    };
    let path = |fd: i32| PathBuf::from(format!("/proc/{by}/fd/{fd}"));
    // Not blocking: whoever may ask for anything may name anything.
    let open = |fd: i32, flags: OFlags| -> std::io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(rustix::fs::open(path(fd), flags, Mode::empty())?)
    };
    let failed = |error: std::io::Error| format!("what process {by} holds: {error}");
    let core = File::from(open(core, OFlags::RDONLY).map_err(failed)?);
    let about = core.metadata().map_err(failed)?;
    if !about.is_file() || about.len() > MOST_CORE {
        return Err(format!("what process {by} holds is no small core file"));
    }
    let core = match about.len() {
        0 => CoreFile::Missing,
        _ => CoreFile::Open(core.into()),
    };
    let root = root.and_then(|(root, namespace)| {
        let namespace = open(namespace, OFlags::RDONLY).ok()?;
        // Ours too: services share what systemd made for the agent.
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|about| about.st_ino).ok();
        let own = rustix::fs::stat("/proc/self/ns/mnt").map(|about| about.st_ino);
        if inode(&namespace) == own.ok() {
            return None;
        }
        Some((
            open(root, OFlags::PATH | OFlags::DIRECTORY).ok()?,
            namespace,
        ))
    });
    let executable = executable.and_then(|fd| open(fd, OFlags::RDONLY).ok());
    Ok((core, Leads { executable, root }))
}

/// More than a capture makes.
const MOST_CORE: u64 = 256 << 20;
