//! a run that is over, /proc → everything that it started is ended.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;
use tracing::{info, warn};

use super::{Reaper, Run, tell};
use crate::event::Event;
use crate::service::{Pid, RunId};
use crate::supervise::cgroup::Place;
use crate::supervise::steps::Part;
use crate::supervise::tree::{self, Census, Identity};

/// The tree is being killed.
pub(super) struct Ending {
    pub again_at: Instant,
    /// When what is left is given up; counted from the reaping of the main process.
    pub until: Instant,
}

/// How long strays of a reaped run may take to die: shorter than the machine waits.
pub(super) const TREE_LIMIT: Duration = Duration::from_millis(500);

/// Between two looks at a tree that is being killed (its deaths are heard at once).
const TREE_PAUSE: Duration = Duration::from_millis(20);

/// The same while the main process itself does not die (it hangs in the kernel).
const STUCK_PAUSE: Duration = Duration::from_millis(500);

impl Reaper {
    /// One of those that are waited for may just have died: no need to wait for the pause.
    pub(super) fn hurry_trees(&mut self) {
        let now = Instant::now();
        let reaped = self.runs.values_mut().filter(|run| run.reaped);
        for ending in reaped.filter_map(|run| run.ending.as_mut()) {
            ending.again_at = now;
        }
    }

    pub(super) fn kill_tree(&mut self, run: RunId, inbox: &Sender<Event>) {
        match self.runs.get_mut(&run) {
            Some(entry) => entry.look_again(Instant::now()),
            // Ended before, or never started.
            None => tell(inbox, Event::TreeGone { run }),
        }
    }

    /// Another look at every tree whose time has come.
    pub(super) fn end_trees(&mut self, inbox: &Sender<Event>) {
        let now = Instant::now();
        let due: Vec<RunId> = self
            .runs
            .iter()
            .filter(|(_, run)| run.ending.as_ref().is_some_and(|e| e.again_at <= now))
            .map(|(id, _)| *id)
            .collect();
        if due.is_empty() {
            return;
        }
        let census = Census::take();
        for id in due {
            self.end_tree(id, &census, now, inbox);
        }
    }

    /// SIGKILL, once, to what a run left that never had a main process.
    pub(in crate::supervise) fn sweep(&mut self, run: RunId) {
        for id in self.strays(run, &Census::take()) {
            tree::kill(id);
        }
        let place = self
            .runs
            .get(&run)
            .and_then(|run| run.course.place.as_ref());
        place.map(Place::kill);
    }

    fn end_tree(&mut self, id: RunId, census: &Census, now: Instant, inbox: &Sender<Event>) {
        let strays = self.strays(id, census);
        let Some(run) = self.runs.get_mut(&id) else {
            return;
        };
        if !run.reaped {
            note_descendants(census, run);
            // SAFETY: kill(2) touches no memory. Not reaped, so the number is its own.
            unsafe { libc::kill(run.pid, libc::SIGKILL) };
        }
        let left: HashSet<Identity> = run
            .seen
            .iter()
            .copied()
            .filter(|id| tree::stat(id.pid).is_some_and(|now| now.id == *id && !now.dead))
            .chain(strays)
            .collect();
        for id in &left {
            tree::kill(*id);
        }
        let crowded = run.course.place.as_ref().is_some_and(Place::kill);
        let empty = left.is_empty() && !crowded;
        if run.reaped && (empty || run.ending.as_ref().is_some_and(|e| e.until <= now)) {
            if !left.is_empty() {
                let pids: Vec<Pid> = left.iter().map(|id| id.pid).collect();
                warn!(service = %run.name(), "still there after SIGKILL: {pids:?}");
            }
            if run.course.part == Part::Main && run.course.writers.is_some() {
                run.ending = None;
                return self.after(id, 0);
            }
            self.runs.remove(&id);
            tell(inbox, Event::TreeGone { run: id });
        } else if let Some(ending) = &mut run.ending {
            let pause = if run.reaped { TREE_PAUSE } else { STUCK_PAUSE };
            ending.again_at = now + pause;
        }
    }

    /// Live processes below adopted ones that are the run's. The adopted that are nobody's
    /// are told.
    fn strays(&mut self, id: RunId, census: &Census) -> Vec<Identity> {
        let Some(run) = self.runs.get(&id) else {
            return Vec::new();
        };
        let (mut found, mut hidden) = (Vec::new(), Vec::new());
        for child in census.children(self.own_pid) {
            let known = self.by_pid.contains_key(&child) || self.aside.contains_key(&child);
            if known {
                continue;
            }
            let Some(stat) = tree::stat(child).filter(|stat| !stat.dead) else {
                continue;
            };
            if self.heirlooms.contains(&stat.id) {
                continue;
            }
            // The main process' number may have gone to another service's.
            let reused = run.reaped && self.by_pid.contains_key(&run.pid);
            let kin = run.pid != 0 && !reused && (stat.session == run.pid || stat.group == run.pid);
            let named = tree::service_of(child);
            let named = named.as_deref();
            if kin || run.seen.contains(&stat.id) || named == Some(run.name().as_str()) {
                found.push(stat.id);
                let below = census.descendants(child);
                found.extend(below.into_iter().filter_map(tree::stat).map(|stat| stat.id));
            } else if !self.is_anyones(&stat, named) {
                hidden.push(stat.id);
            }
        }
        self.tell_hidden(&hidden);
        found
    }

    /// Whether another run could claim it.
    fn is_anyones(&self, stat: &tree::Stat, named: Option<&str>) -> bool {
        self.runs.values().any(|run| {
            stat.session == run.pid
                || stat.group == run.pid
                || run.seen.contains(&stat.id)
                || named == Some(run.name().as_str())
        })
    }

    fn tell_hidden(&mut self, hidden: &[Identity]) {
        self.told
            .retain(|id| tree::stat(id.pid).is_some_and(|now| now.id == *id));
        for id in hidden {
            if self.told.insert(*id) {
                let pid = id.pid;
                info!(
                    "process {pid} has left its service and hides whose it was: it is left alone"
                );
            }
        }
    }

    /// At the very end: nothing that was started outlives the agent.
    pub(super) fn kill_everything(&mut self) {
        let census = Census::take();
        let ids: Vec<Identity> = census
            .descendants(self.own_pid)
            .into_iter()
            .filter_map(tree::stat)
            .filter(|stat| !stat.dead && !self.heirlooms.contains(&stat.id))
            .map(|stat| stat.id)
            .collect();
        for id in ids {
            tree::kill(id);
        }
    }
}

pub(super) fn note_descendants(census: &Census, run: &mut Run) {
    run.seen
        .retain(|id| tree::stat(id.pid).is_some_and(|now| now.id == *id));
    let below = census.descendants(run.pid);
    run.seen
        .extend(below.into_iter().filter_map(tree::stat).map(|stat| stat.id));
}
