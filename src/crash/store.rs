//! crash records → `state_dir/crashes/<crash_id>/{core,report.json,report.txt}`, within quotas, and back.
//!
//! Files are of mode 0600 in folders of mode 0700: memory of a service may hold secrets. The oldest go first; the one
//! that was written last stays in any case. How often a signature was seen is kept beside them and outlives them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

const FOLDER: &str = "crashes";
const SEEN: &str = "seen.json";
/// Signatures that are counted; the one that was seen longest ago goes first.
const MOST_SIGNATURES: usize = 1000;

pub const CORE: &str = "core";
pub const REPORT: &str = "report.json";
pub const TEXT: &str = "report.txt";
/// What the kernel's handler or an agent knew of a process that is not analysed yet.
pub const LEFT: &str = "left.json";
/// Beside it: its program, where the path does not lead to it any more.
pub const EXECUTABLE: &str = "executable";

/// How often the same crash has happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub count: u64,
    /// RFC 3339, UTC.
    pub first: String,
    pub last: String,
}

#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    keep: usize,
    /// Bytes.
    max_size: u64,
    /// Records that wait for their analysis, and the bytes of their cores.
    waiting: Arc<Mutex<HashMap<String, u64>>>,
}

impl Store {
    /// Nothing is made before the first crash.
    pub fn new(state_dir: &Path, keep: usize, max_size: u64) -> Store {
        Store {
            folder: state_dir.join(FOLDER),
            keep,
            max_size,
            waiting: Arc::default(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A record that waits for its analysis is safe from [`Store::sweep`] from now on. `false` where those that wait
    /// would be too many.
    pub fn put_off(&self, id: &str, core_bytes: u64) -> bool {
        let mut waiting = self.waiting();
        let all: u64 = waiting.values().sum();
        let has_room = all.saturating_add(core_bytes) <= self.max_size && waiting.len() < self.keep;
        if has_room {
            waiting.insert(id.to_owned(), core_bytes);
        }
        has_room
    }

    /// It waits no more.
    pub fn take_back(&self, id: &str) {
        self.waiting().remove(id);
    }

    fn record(&self, id: &str) -> PathBuf {
        self.folder.join(id)
    }

    /// Writes one file of a record; returns its path.
    ///
    /// # Errors
    /// The folder or the file cannot be written.
    pub fn save(&self, id: &str, name: &str, content: &[u8]) -> io::Result<PathBuf> {
        let folder = self.record(id);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        let path = folder.join(name);
        private(&path)?.write_all(content)?;
        Ok(path)
    }

    /// The same from another file's beginning.
    ///
    /// # Errors
    /// Either file.
    pub fn save_from(&self, id: &str, name: &str, mut from: &File) -> io::Result<PathBuf> {
        let path = self.save(id, name, b"")?;
        from.rewind()?;
        io::copy(&mut from, &mut OpenOptions::new().write(true).open(&path)?)?;
        Ok(path)
    }

    /// Removes the core of a record that would be bigger with it than all may be together; `beside` are the bytes of
    /// its other files. Returns the core's size.
    pub fn fit(&self, id: &str, beside: u64) -> Option<u64> {
        let path = self.path(id, CORE);
        let size = fs::metadata(&path).ok()?.len();
        if size.saturating_add(beside) <= self.max_size {
            return None;
        }
        fs::remove_file(&path).ok().map(|()| size)
    }

    /// Bytes of all records together.
    pub fn max_size(&self) -> u64 {
        self.max_size
    }

    /// A record that nobody needs.
    ///
    /// # Errors
    /// It is there, and cannot be removed.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        self.take_back(id);
        match fs::remove_dir_all(self.record(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Where a file of a record is, whether or not it is there.
    pub fn path(&self, id: &str, name: &str) -> PathBuf {
        self.record(id).join(name)
    }

    /// A record that was left is an ordinary one from now on.
    pub fn settle(&self, id: &str) {
        self.take_back(id);
        for name in [LEFT, EXECUTABLE] {
            let _ = fs::remove_file(self.path(id, name));
        }
    }

    /// On the disk for good: who finds a robot standing still pulls the plug.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn sync(&self, id: &str) -> io::Result<()> {
        let record = self.record(id);
        let files = fs::read_dir(&record)?.flatten().map(|entry| entry.path());
        for path in files.chain([record.clone(), self.folder.clone()]) {
            File::open(path)?.sync_all()?;
        }
        Ok(())
    }

    /// Gives what root has written to whom the state folder belongs: its agent is to read it.
    pub fn hand_over(&self, id: &str) {
        let Some(owner) = self.folder.parent().and_then(|dir| fs::metadata(dir).ok()) else {
            return;
        };
        let record = self.record(id);
        let files = fs::read_dir(&record).into_iter().flatten().flatten();
        let files = files.map(|entry| entry.path());
        for path in files.chain([record.clone(), self.folder.clone()]) {
            let _ = lchown(path, Some(owner.uid()), Some(owner.gid()));
        }
    }

    /// Removes records beyond the quotas: of what has happened again since, then the oldest; `latest` stays. A service
    /// that crashes in a loop does not take the others' records with it.
    pub fn sweep(&self, latest: &str) {
        let mut records = ids(&self.folder);
        records.reverse();
        if let Some(at) = records.iter().position(|id| id == latest) {
            let latest = records.remove(at);
            records.insert(0, latest);
        }
        let waiting = self.waiting();
        records.retain(|id| !waiting.contains_key(id));
        let mut bytes: u64 = waiting.values().sum();
        let keep = self.keep.saturating_sub(waiting.len());
        drop(waiting);
        let sizes = records.iter().map(|id| size(&self.record(id)));
        if records.len() > keep || bytes + sizes.sum::<u64>() > self.max_size {
            let mut newest = HashSet::new();
            let (once, again): (Vec<_>, Vec<_>) = records
                .into_iter()
                .partition(|id| self.place(id).is_none_or(|place| newest.insert(place)));
            records = [once, again].concat();
        }
        for (index, id) in records.iter().enumerate() {
            let folder = self.record(id);
            bytes += size(&folder);
            if (index >= keep || bytes > self.max_size) && (id != latest || self.keep == 0) {
                let _ = fs::remove_dir_all(&folder);
            }
        }
    }

    /// Whose crash it was, and where; `None` where that is not known.
    fn place(&self, id: &str) -> Option<Place> {
        let report = fs::read(self.path(id, REPORT)).ok()?;
        let place: Place = serde_json::from_slice(&report).ok()?;
        place.signature.is_some().then_some(place)
    }

    /// Counts one more crash of that signature.
    pub fn count(&self, signature: &str, time: &str) -> Seen {
        let path = self.folder.join(SEEN);
        let mut all = counts(&self.folder);
        let seen = all.entry(signature.to_owned()).or_default();
        seen.count += 1;
        if seen.first.is_empty() {
            seen.first = time.to_owned();
        }
        seen.last = time.to_owned();
        let seen = seen.clone();
        while all.len() > MOST_SIGNATURES {
            let oldest = all.iter().min_by(|a, b| a.1.last.cmp(&b.1.last));
            let Some(oldest) = oldest.map(|(signature, _)| signature.clone()) else {
                break;
            };
            all.remove(&oldest);
        }
        // Renamed over the old one, so that it is never half there.
        let new = self.folder.join(format!(".{SEEN}"));
        let written = serde_json::to_vec(&all)
            .map_err(io::Error::other)
            .and_then(|bytes| private(&new)?.write_all(&bytes));
        if written.is_ok() {
            let _ = fs::rename(&new, &path);
        }
        seen
    }
}

/// Of a report, what tells one crash from another.
#[derive(PartialEq, Eq, Hash, Deserialize)]
struct Place {
    service: Option<String>,
    signature: Option<String>,
}

fn counts(folder: &Path) -> BTreeMap<String, Seen> {
    let bytes = fs::read(folder.join(SEEN)).ok();
    let counts = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    counts.unwrap_or_default()
}

/// How often each signature was seen, by what lies below a state folder.
pub fn seen(state_dir: &Path) -> BTreeMap<String, Seen> {
    counts(&state_dir.join(FOLDER))
}

fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

fn size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
        .sum()
}

/// The records' identifiers, oldest first: they begin with the time.
fn ids(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut ids: Vec<String> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            entry.file_type().ok().filter(fs::FileType::is_dir)?;
            entry.file_name().into_string().ok()
        })
        .collect();
    ids.sort_unstable();
    ids
}

/// The records below a state folder, oldest first: identifier and folder.
///
/// # Errors
/// The folder is there and cannot be read.
pub fn records(state_dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let folder = state_dir.join(FOLDER);
    match fs::read_dir(&folder) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let record = |id: String| {
        let path = folder.join(&id);
        (id, path)
    };
    Ok(ids(&folder).into_iter().map(record).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let name = format!("agent-store-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&path);
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_oldest_go_first_and_the_latest_stays() {
        let scratch = Scratch::new("quota");
        let store = Store::new(&scratch.0, 3, 250);
        for id in ["3", "1", "2", "4"] {
            store.save(id, CORE, &[0; 80]).unwrap();
        }
        store.sweep("4");
        let left = |state: &Path| -> Vec<String> {
            records(state)
                .unwrap()
                .into_iter()
                .map(|(id, _)| id)
                .collect()
        };
        assert_eq!(left(&scratch.0), ["2", "3", "4"]);
        // A clock that went back: its record is the latest all the same.
        store.save("0", CORE, &[0; 200]).unwrap();
        store.sweep("0");
        assert_eq!(left(&scratch.0), ["0"]);
        let folder = fs::metadata(scratch.0.join("crashes/0")).unwrap();
        let file = fs::metadata(scratch.0.join("crashes/0/core")).unwrap();
        assert_eq!(folder.permissions().mode() & 0o777, 0o700);
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn repeats_go_before_what_happened_once() {
        let scratch = Scratch::new("repeats");
        let store = Store::new(&scratch.0, 3, 1 << 20);
        let of = |id: &str, service: &str, signature: &str| {
            let report = format!(r#"{{"service":"{service}","signature":"{signature}","pid":7}}"#);
            store.save(id, REPORT, report.as_bytes()).unwrap();
            store.sweep(id);
        };
        of("1", "rare", "a");
        store.save("2", TEXT, b"of what nothing is known").unwrap();
        for id in ["3", "4", "5", "6"] {
            of(id, "loop", "b");
        }
        assert_eq!(ids(&scratch.0.join(FOLDER)), ["1", "2", "6"]);
        // The same place of another service is another crash.
        of("7", "rare", "b");
        assert_eq!(ids(&scratch.0.join(FOLDER)), ["2", "6", "7"]);
    }

    #[test]
    fn what_waits_stays_and_counts() {
        let scratch = Scratch::new("waits");
        let store = Store::new(&scratch.0, 3, 250);
        for id in ["1", "2", "3", "4"] {
            store.save(id, CORE, &[0; 60]).unwrap();
        }
        assert!(store.put_off("1", 60));
        assert!(!store.put_off("9", 200), "too many bytes");
        store.sweep("4");
        let ids = || ids(&scratch.0.join(FOLDER));
        assert_eq!(ids(), ["1", "3", "4"]);
        store.settle("1");
        store.sweep("4");
        store.save("5", CORE, &[0; 60]).unwrap();
        store.sweep("5");
        assert_eq!(ids(), ["3", "4", "5"]);
        let all_wait = ["a", "b", "c", "d"].map(|id| store.put_off(id, 1));
        assert_eq!(all_wait, [true, true, true, false]);
    }

    #[test]
    fn a_core_that_is_too_big_goes_and_the_rest_stays() {
        let scratch = Scratch::new("fit");
        let store = Store::new(&scratch.0, 3, 250);
        store.save("1", CORE, &[0; 200]).unwrap();
        assert_eq!(store.fit("1", 50), None);
        assert_eq!(store.fit("1", 51), Some(200));
        assert!(!store.path("1", CORE).exists());
        assert_eq!(store.fit("1", 51), None);
    }

    #[test]
    fn a_signature_is_counted_over_restarts() {
        let scratch = Scratch::new("seen");
        let store = Store::new(&scratch.0, 3, 250);
        store.save("1", TEXT, b"x").unwrap();
        store.count("abc", "2026-01-01T00:00:00Z");
        let again = Store::new(&scratch.0, 3, 250).count("abc", "2026-01-02T00:00:00Z");
        assert_eq!(again.count, 2);
        assert_eq!(again.first, "2026-01-01T00:00:00Z");
        assert_eq!(again.last, "2026-01-02T00:00:00Z");
    }
}
