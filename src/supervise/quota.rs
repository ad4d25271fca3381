//! what a service may take as a whole → the control files of its groups.
//!
//! On a unified tree a controller works below our own group only once it is enabled there, which the kernel refuses
//! while processes live in that very group (cgroups(7), "no internal processes"): then they move into a leaf of their
//! own first. On a hybrid system each controller is a tree of its own, where a group for the service is made beside.
//! What cannot be had is told, and the service runs without it.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use super::cgroup::Marked;
use super::tree::Census;
use crate::config::Resources;

/// What the kernel divides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    Memory,
    Cpu,
    Pids,
}

impl Controller {
    const ALL: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

    fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Cpu => "cpu",
            Controller::Pids => "pids",
        }
    }

    fn wanted(self, resources: &Resources) -> bool {
        let Resources {
            memory_max,
            memory_high,
            cpu_max,
            cpu_weight,
            pids_max,
        } = resources;
        match self {
            Controller::Memory => memory_max.is_some() || memory_high.is_some(),
            Controller::Cpu => cpu_max.is_some() || cpu_weight.is_some(),
            Controller::Pids => pids_max.is_some(),
        }
    }
}

/// Microseconds over which CPU time is counted; the kernel's own default.
const PERIOD: u64 = 100_000;
/// The leaf into which our own processes move. No service has this name.
const OWN_LEAF: &str = "@agent";

/// A key, the file that it stands in, and what is written there.
type Setting = (&'static str, &'static str, String);

fn unified(controller: Controller, resources: &Resources) -> Vec<Setting> {
    let bytes = |limit: Option<u64>| limit.map_or("max".to_owned(), |limit| limit.to_string());
    let weight = resources.cpu_weight.unwrap_or(100).to_string();
    let quota = resources
        .cpu_max
        .map_or("max".to_owned(), |percent| quota(percent).to_string());
    match controller {
        Controller::Memory => vec![
            ("memory_high", "memory.high", bytes(resources.memory_high)),
            ("memory_max", "memory.max", bytes(resources.memory_max)),
        ],
        Controller::Cpu => vec![
            ("cpu_max", "cpu.max", format!("{quota} {PERIOD}")),
            ("cpu_weight", "cpu.weight", weight),
        ],
        Controller::Pids => vec![("pids_max", "pids.max", bytes(resources.pids_max))],
    }
}

/// The files of cgroup v1 (Documentation/admin-guide/cgroup-v1). Only what is asked for: there is no `memory.high`.
fn separate(controller: Controller, resources: &Resources) -> Vec<Setting> {
    let mut out = Vec::new();
    let mut add = |key, file, value: Option<u64>| {
        out.extend(value.map(|value| (key, file, value.to_string())));
    };
    match controller {
        Controller::Memory => {
            add("memory_max", "memory.limit_in_bytes", resources.memory_max);
            add("memory_high", "memory.high", resources.memory_high);
        }
        Controller::Cpu => {
            add("cpu_max", "cpu.cfs_quota_us", resources.cpu_max.map(quota));
            // 1024 shares are what weight 100 is.
            let shares = |weight: u32| (u64::from(weight) * 1024 / 100).max(2);
            add("cpu_weight", "cpu.shares", resources.cpu_weight.map(shares));
        }
        Controller::Pids => add("pids_max", "pids.max", resources.pids_max),
    }
    out
}

fn quota(percent: u32) -> u64 {
    u64::from(percent) * PERIOD / 100
}

/// Our own groups, as far as they have controllers.
#[derive(Debug, Default)]
pub struct Quotas {
    unified: Option<PathBuf>,
    separate: Vec<(Controller, PathBuf)>,
}

/// A service's group in a controller's own tree.
pub struct Part {
    path: PathBuf,
    procs: File,
}

impl Part {
    /// For the child: `0` written here moves it in.
    pub fn door(&self) -> RawFd {
        self.procs.as_raw_fd()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Part {
    /// Refused while somebody is in it: the next run, or the next agent, finds it again.
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

impl Quotas {
    /// `groups` and `mounts` are proc(5)'s `cgroup` and `mountinfo` of ourselves.
    pub fn find(unified: Option<&Path>, groups: &str, mounts: &str) -> Quotas {
        let separate = Controller::ALL.into_iter().filter_map(|controller| {
            let name = controller.name();
            let path = groups.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (names, path) = rest.split_once(':')?;
                names.split(',').any(|one| one == name).then_some(path)
            })?;
            let mount = mounts.lines().find_map(|line| {
                let (mount, kind) = line.split_once(" - cgroup ")?;
                let mut options = kind.rsplit(' ').next()?.split(',');
                options.any(|option| option == name).then_some(mount)
            })?;
            Some((controller, super::cgroup::below(mount, path)?))
        });
        Quotas {
            unified: unified.map(Path::to_owned),
            separate: separate.collect(),
        }
    }

    /// The trees that are not the unified one.
    pub fn trees(&self) -> impl Iterator<Item = &Path> {
        self.separate.iter().map(|(_, path)| path.as_path())
    }

    /// Sets what a service may take; beside the groups that it needs for that, a sentence for each key that has no
    /// effect here.
    pub fn set(
        &self,
        resources: &Resources,
        group: Option<&Path>,
        marked: &Marked,
        names: &[String],
    ) -> (Vec<Part>, Vec<String>) {
        let (mut parts, mut lacking) = (Vec::new(), Vec::new());
        for controller in Controller::ALL {
            if !controller.wanted(resources) {
                continue;
            }
            if let (Some(own), Some(group)) = (&self.unified, group)
                && enable(own, controller, marked)
            {
                write_all(group, &unified(controller, resources), &mut lacking);
                continue;
            }
            let tree = self.separate.iter().find(|(one, _)| *one == controller);
            let part = tree.and_then(|(_, tree)| {
                let (path, _) = marked.folder(tree, names)?;
                let procs = File::options().write(true).open(path.join("cgroup.procs"));
                Some(Part {
                    procs: procs.ok()?,
                    path,
                })
            });
            match part {
                Some(part) => {
                    write_all(&part.path, &separate(controller, resources), &mut lacking);
                    parts.push(part);
                }
                None => {
                    let name = controller.name();
                    for (key, _, _) in separate(controller, resources) {
                        lacking.push(format!(
                            "{key} has no effect: no {name} controller is delegated to the agent here"
                        ));
                    }
                }
            }
        }
        (parts, lacking)
    }
}

fn write_all(group: &Path, settings: &[Setting], lacking: &mut Vec<String>) {
    for (key, file, value) in settings {
        if let Err(error) = write(&group.join(file), value) {
            lacking.push(format!(
                "{key} has no effect: writing {value} to {file}: {error}"
            ));
        }
    }
}

/// Whether groups below `own` have the controller, enabled now where that was missing.
fn enable(own: &Path, controller: Controller, marked: &Marked) -> bool {
    let listed = |file: &str| {
        let text = fs::read_to_string(own.join(file)).unwrap_or_default();
        text.split_whitespace().any(|one| one == controller.name())
    };
    if listed("cgroup.subtree_control") {
        return true;
    }
    if !listed("cgroup.controllers") {
        return false;
    }
    let switch = own.join("cgroup.subtree_control");
    let word = format!("+{}", controller.name());
    write(&switch, &word).is_ok() || move_aside(own, marked) && write(&switch, &word).is_ok()
}

/// Our own processes out of our group into a leaf of it. Strangers are not moved: with them in it the group is not ours
/// to divide.
fn move_aside(own: &Path, marked: &Marked) -> bool {
    let us = rustix::process::getpid().as_raw_nonzero().get();
    let mut ours = Census::take().descendants(us);
    ours.push(us);
    let procs = || fs::read_to_string(own.join("cgroup.procs")).unwrap_or_default();
    let is_ours = |line: &str| line.parse().is_ok_and(|pid| ours.contains(&pid));
    if !procs().lines().all(is_ours) {
        return false;
    }
    let Some((leaf, _)) = marked.folder(own, &[OWN_LEAF.to_owned()]) else {
        return false;
    };
    for pid in procs().lines() {
        // One that has just ended.
        let _ = write(&leaf.join("cgroup.procs"), pid);
    }
    fs::read_to_string(own.join("cgroup.procs")).is_ok_and(|left| left.trim().is_empty())
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    File::options()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

/// How many processes of this group the OOM killer has ended; `None` where the kernel does not say.
pub fn oom_kills(group: &Path) -> Option<u64> {
    ["memory.events", "memory.oom_control"]
        .iter()
        .find_map(|file| counted(&fs::read_to_string(group.join(file)).ok()?))
}

/// The same of the whole machine.
pub fn oom_kills_anywhere() -> Option<u64> {
    counted(&fs::read_to_string("/proc/vmstat").ok()?)
}

/// `oom_kill N`, as all three files have it.
fn counted(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_where() {
        let resources = Resources {
            memory_max: Some(512 << 20),
            cpu_max: Some(150),
            cpu_weight: Some(200),
            ..Resources::default()
        };
        let flat = |of: fn(Controller, &Resources) -> Vec<Setting>| -> Vec<String> {
            Controller::ALL
                .into_iter()
                .flat_map(|controller| of(controller, &resources))
                .map(|(_, file, value)| format!("{file}={value}"))
                .collect()
        };
        assert_eq!(
            flat(unified),
            [
                "memory.high=max",
                "memory.max=536870912",
                "cpu.max=150000 100000",
                "cpu.weight=200",
                "pids.max=max"
            ]
        );
        assert_eq!(
            flat(separate),
            [
                "memory.limit_in_bytes=536870912",
                "cpu.cfs_quota_us=150000",
                "cpu.shares=2048"
            ]
        );
        assert_eq!(counted("low 0\noom 3\noom_kill 2\n"), Some(2));
        assert_eq!(
            counted("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
            Some(1)
        );
    }

    #[test]
    fn the_trees_of_a_hybrid_system() {
        let groups = "8:pids:/\n4:memory:/x/y\n3:cpu,cpuacct:/\n0::/\n";
        let mounts = "33 29 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      34 29 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      31 29 0:28 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n";
        let quotas = Quotas::find(None, groups, mounts);
        assert_eq!(
            quotas.separate,
            [
                (
                    Controller::Memory,
                    PathBuf::from("/sys/fs/cgroup/memory/x/y")
                ),
                (
                    Controller::Cpu,
                    PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/")
                ),
            ]
        );
    }
}
