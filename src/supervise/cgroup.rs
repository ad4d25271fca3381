//! the kernel's tree of control groups → one group for each service, and its end as a whole.
//!
//! Only where a cgroup v2 tree (also the unified mount of a hybrid system) may be written
//! below our own group; elsewhere (an unprivileged container) there simply are no groups, and
//! `tree` finds what a service left. A group bears the mark of the agent that made it: what a
//! killed agent left is ended before anything is started, and nobody else's group is touched.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, XattrFlags, getxattr, setxattr};
use tracing::{info, warn};

use super::child::Group;
use super::quota::{self, Part, Quotas};
use super::tree;
use crate::config::Service;
use crate::service::Pid;

/// The extended attribute by which a group is known to be an agent's (kernel 5.7).
const MARK: &str = "user.agent";
/// How long what a killed agent left may take to die.
const LEFT_LIMIT: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(2);

/// Our own group, as far as groups can be made in it.
pub struct Cgroups {
    own: Option<PathBuf>,
    quotas: Quotas,
    marked: Marked,
    pid: Pid,
    /// Kills for want of memory that are known, anywhere below us.
    oom_kills: u64,
    /// What limits have no effect here: each is told once.
    told: HashSet<String>,
}

/// The mark by which groups are known to be ours.
pub struct Marked(String);

/// One service's groups, for one run.
pub struct Place {
    /// Where it can be ended as a whole.
    whole: Option<Whole>,
    /// Groups of single controllers.
    parts: Vec<Part>,
    /// Kills for want of memory before this run; `None` where they are not counted for it.
    oom_kills: Option<u64>,
}

struct Whole {
    path: PathBuf,
    folder: OwnedFd,
    /// Nothing in it has been killed yet. Linux 6.18 kills at once what is born (CLONE_INTO_CGROUP) in a group in
    /// which that was ever done; who moves there lives.
    unhurt: Cell<bool>,
    /// Writing `0` moves who writes.
    procs: File,
}

impl Cgroups {
    /// Finds our own group, and ends what agents that are no more left in it.
    pub fn find(pid: Pid) -> Cgroups {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (groups, mounts) = (read("/proc/self/cgroup"), read("/proc/self/mountinfo"));
        let own = own_group(&groups, &mounts);
        let mut cgroups = Cgroups {
            quotas: Quotas::find(own.as_deref(), &groups, &mounts),
            own,
            marked: Marked(mark_of(pid).unwrap_or_default()),
            pid,
            oom_kills: 0,
            told: HashSet::new(),
        };
        cgroups.end_leftovers();
        cgroups.oom_killed(None);
        cgroups
    }

    fn end_leftovers(&self) {
        let trees = self.own.as_deref().into_iter().chain(self.quotas.trees());
        let entries = trees.filter_map(|tree| fs::read_dir(tree).ok());
        for entry in entries.flatten().flatten() {
            let path = entry.path();
            let Some(mark) = mark_at(&path).filter(|mark| is_orphan(mark)) else {
                continue;
            };
            let name = entry.file_name();
            let name = name.display();
            if is_populated(&path) {
                info!("ending what agent {mark} left in {name}");
            }
            kill(&path);
            let until = Instant::now() + LEFT_LIMIT;
            while is_populated(&path) && Instant::now() < until {
                std::thread::sleep(PAUSE);
            }
            // Another agent that starts at this moment ends the same leftovers.
            if let Err(error) = fs::remove_dir(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                warn!("what an earlier agent left in {name} is still there: {error}");
            }
        }
    }

    /// The service's own groups, made where there are none; `None` where there can be none.
    pub fn place(&mut self, service: &Service) -> Option<Place> {
        let name = &service.name;
        // The second where another agent has a service of that name.
        let names = [name.to_string(), format!("{name}@{}", self.pid)];
        let own = self.own.as_deref();
        let path = own.and_then(|own| self.marked.folder(own, &names));
        let whole = path.and_then(|(path, new)| {
            let procs = File::options().write(true).open(path.join("cgroup.procs"));
            let procs = procs.ok()?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let folder = rustix::fs::open(&path, flags, Mode::empty()).ok()?;
            Some(Whole {
                path,
                folder,
                unhurt: Cell::new(new),
                procs,
            })
        });
        let group = whole.as_ref().map(|whole| whole.path.as_path());
        let resources = &service.process.resources;
        let (parts, lacking) = self.quotas.set(resources, group, &self.marked, &names);
        for sentence in lacking {
            if self.told.insert(format!("{name} {sentence}")) {
                warn!(service = %name, "{sentence}");
            }
        }
        let mut place = Place {
            whole,
            parts,
            oom_kills: None,
        };
        place.oom_kills = place.count_oom_kills();
        (place.whole.is_some() || !place.parts.is_empty()).then_some(place)
    }

    /// Whether the kernel's OOM killer has ended anything of the run, as far as that can be told: where its group has
    /// no memory controller, anything below us, or on this machine, since this was last asked.
    pub fn oom_killed(&mut self, place: Option<&Place>) -> bool {
        let own = self.own.as_deref().and_then(quota::oom_kills);
        let count = own.or_else(quota::oom_kills_anywhere).unwrap_or(0);
        let before = std::mem::replace(&mut self.oom_kills, count);
        let of_run = place.and_then(|place| Some((place.oom_kills?, place.count_oom_kills()?)));
        match of_run {
            Some((before, now)) => now > before,
            None => count > before,
        }
    }
}

impl Marked {
    /// A folder of the first of these names that is ours or can be made, and whether it is new.
    pub fn folder(&self, tree: &Path, names: &[String]) -> Option<(PathBuf, bool)> {
        names.iter().find_map(|name| {
            let path = tree.join(name);
            match fs::create_dir(&path) {
                Ok(()) => {
                    let mark = self.0.as_bytes();
                    if setxattr(&path, MARK, mark, XattrFlags::empty()).is_err() {
                        // A group that nobody could tell from a stranger's.
                        let _ = fs::remove_dir(&path);
                        return None;
                    }
                    Some((path, true))
                }
                Err(_) => (mark_at(&path).as_ref() == Some(&self.0)).then_some((path, false)),
            }
        })
    }
}

impl Place {
    /// For the child, to be born in or to move to.
    pub fn group(&self) -> Option<Group> {
        self.whole.as_ref().map(|whole| Group {
            folder: whole.unhurt.get().then(|| whole.folder.as_raw_fd()),
            procs: whole.procs.as_raw_fd(),
        })
    }

    /// For the child: `0` written to each moves it in.
    pub fn doors(&self) -> Vec<RawFd> {
        self.parts.iter().map(Part::door).collect()
    }

    /// SIGKILL to everybody in it, also to who is being forked; whether anybody is left.
    pub fn kill(&self) -> bool {
        let Some(whole) = &self.whole else {
            return false;
        };
        if !is_populated(&whole.path) {
            return false;
        }
        whole.unhurt.set(false);
        kill(&whole.path);
        is_populated(&whole.path)
    }

    fn count_oom_kills(&self) -> Option<u64> {
        let whole = self.whole.iter().map(|whole| whole.path.as_path());
        let parts = self.parts.iter().map(Part::path);
        whole.chain(parts).find_map(quota::oom_kills)
    }
}

impl Drop for Whole {
    /// Refused while somebody is in it: the next run, or the next agent, finds it again.
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

fn kill(group: &Path) {
    if let Ok(mut file) = File::options().write(true).open(group.join("cgroup.kill")) {
        let _ = file.write_all(b"1");
        return;
    }
    // Before Linux 5.14, and in the tree of a single controller. Who forks meanwhile is `tree`'s to find.
    let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let stats = procs
        .lines()
        .filter_map(|pid| tree::stat(pid.parse().ok()?));
    stats.for_each(|stat| tree::kill(stat.id));
}

fn is_populated(group: &Path) -> bool {
    match fs::read_to_string(group.join("cgroup.events")) {
        Ok(text) => text.lines().any(|line| line == "populated 1"),
        Err(_) => {
            fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|procs| !procs.is_empty())
        }
    }
}

/// `namespace:pid:start`: which process, in whose numbers.
fn mark_of(pid: Pid) -> Option<String> {
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    let started = tree::stat(pid)?.id.started;
    Some(format!("{}/{pid}/{started}", namespace.display()))
}

fn mark_at(group: &Path) -> Option<String> {
    let mut value = [0u8; 128];
    let length = getxattr(group, MARK, &mut value[..]).ok()?;
    String::from_utf8(value[..length].to_vec()).ok()
}

/// Whether the agent that made the mark is no more. Of another namespace nothing is known.
fn is_orphan(mark: &str) -> bool {
    let mut parts = mark.rsplitn(3, '/');
    let (Some(_), Some(pid), Some(namespace)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let own = fs::read_link("/proc/self/ns/pid");
    let same = own.is_ok_and(|own| own.as_os_str() == namespace);
    let lives = pid.parse().ok().and_then(mark_of);
    same && lives.as_deref() != Some(mark)
}

/// The folder of our own group: cgroups(7), and proc(5) for both texts.
fn own_group(groups: &str, mounts: &str) -> Option<PathBuf> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    // Outside of what this namespace shows.
    if path.contains("..") {
        return None;
    }
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        if !kind.starts_with("cgroup2 ") {
            return None;
        }
        below(mount, path)
    })
}

/// Where a group's folder lies, by what mountinfo says of its tree before the ` - `.
pub fn below(mount: &str, path: &str) -> Option<PathBuf> {
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let below = Path::new(path).strip_prefix(root).ok()?;
    Some(Path::new(point).join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_group_is_found_on_every_kind_of_system() {
        let unified = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        let hybrid = "30 29 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      31 29 0:28 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 none rw\n";
        let container = "40 30 0:26 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        for (groups, mounts, expected) in [
            (
                "0::/system.slice/agent.service\n",
                unified,
                Some("/sys/fs/cgroup/system.slice/agent.service"),
            ),
            ("0::/\n", unified, Some("/sys/fs/cgroup/")),
            (
                "4:memory:/x\n0::/\n",
                hybrid,
                Some("/sys/fs/cgroup/unified/"),
            ),
            ("0::/docker/ab\n", container, Some("/sys/fs/cgroup/")),
            ("0::/elsewhere\n", container, None),
            ("0::/../..\n", unified, None),
            ("4:memory:/x\n", hybrid, None),
            ("0::/\n", "", None),
        ] {
            let found = own_group(groups, mounts);
            assert_eq!(found.as_deref(), expected.map(Path::new), "{groups}");
        }
    }

    #[test]
    fn whose_group_it_is() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let mark = mark_of(own).expect("we live");
        assert!(!is_orphan(&mark));
        assert!(is_orphan(&format!("{mark}0")));
        assert!(!is_orphan(&mark.replace("pid:[", "pid:[1")));
        assert!(!is_orphan("nonsense"));
    }
}
