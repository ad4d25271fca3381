//! a process that still is → descriptors that lead to its files when it is gone.
//!
//! A program that was replaced or deleted lives on in its inode, and a container's files in its mount namespace, for as
//! long as somebody holds them. Sources: proc(5), `/proc/PID/exe`, `/proc/PID/root`; namespaces(7).

use std::fs::{self, File, Metadata};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::handoff::Leads;
use crate::service::Pid;

const OWN_NAMESPACE: &str = "/proc/self/ns/mnt";

/// What may not be looked at is left out.
pub fn leads(pid: Pid) -> Leads {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    Leads {
        executable: executable(&folder),
        root: root(&folder),
    }
}

/// `None` where the path still leads to it.
fn executable(process: &Path) -> Option<OwnedFd> {
    let link = process.join("exe");
    let path = fs::read_link(&link).ok()?;
    let own = fs::metadata(&link).ok()?;
    let inside = process.join("root").join(path.strip_prefix("/").ok()?);
    let same = |path: &Path| fs::metadata(path).is_ok_and(|found| is_same(&found, &own));
    if same(&inside) || same(&path) {
        return None;
    }
    Some(File::open(&link).ok()?.into())
}

/// `None` where it is in our own mount namespace.
fn root(process: &Path) -> Option<(OwnedFd, OwnedFd)> {
    let link = process.join("ns/mnt");
    if is_same(
        &fs::metadata(&link).ok()?,
        &fs::metadata(OWN_NAMESPACE).ok()?,
    ) {
        return None;
    }
    let namespace = File::open(&link).ok()?.into();
    Some((folder(&process.join("root"))?, namespace))
}

fn folder(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}
