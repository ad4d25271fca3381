//! orders → files under `<state_dir>/spool`, on a thread of its own.
//!
//! What is written is in the page cache when it is answered, and on the disk a second later;
//! IDs that are about to be used are on the disk when that is answered.
//! Everything is appended to segments ([`super::segment`]); what is in them is known to the
//! [`Ledger`], which says when one may go. Beside them stand three small files, each replaced
//! as a whole: `id` (our name for the counters' fence), `counts`, `runs`.
//!
//! The thread waits for the disk so that the runtime never has to. What the disk refuses is
//! answered as refused; the sink then keeps it in memory.

mod recall;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::claims::Claims;
use super::ledger::{Drop, Extent, Ledger, Relief};
use super::orders::{Order, Outcome, Recovered, RecoveredCounts, Shelved, Told};
use super::segment::{self, Claim, Item, MAGIC, Tag};
use crate::config::Overflow;
use crate::record::{StreamKind, Streams};

/// How long written bytes may stay in the page cache.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Orders that may wait for the disk.
const ORDERS: usize = 64;
/// The note of open runs that the disk may not have yet.
const UNSYNCED_RUNS: &str = "runs.unsynced";

/// The sink's ends.
pub struct Ends {
    pub orders: SyncSender<Order>,
    pub told: mpsc::Receiver<Told>,
    /// Why there is no journal, where there is none.
    pub recovered: oneshot::Receiver<Result<Recovered, String>>,
    pub counts: oneshot::Receiver<RecoveredCounts>,
    /// The answers to `Order::Counts`.
    pub noted: mpsc::Receiver<Outcome>,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub folder: PathBuf,
    /// Bytes; 0: nothing but the small files.
    pub bound: u64,
    pub overflow: Overflow,
}

/// Starts the thread. It ends when every sender of orders is dropped.
///
/// # Errors
/// No thread could be started.
pub fn start(settings: Settings) -> io::Result<Ends> {
    let (orders, orders_out) = sync_channel(ORDERS);
    let (told_in, told) = mpsc::channel(ORDERS);
    let (recovered_in, recovered) = oneshot::channel();
    let (counts_in, counts) = oneshot::channel();
    let (noted_in, noted) = mpsc::channel(4);
    std::thread::Builder::new()
        .name("journal".to_owned())
        .spawn(move || match Journal::open(settings) {
            Ok((mut journal, left, counts)) => {
                let _ = counts_in.send(counts);
                let _ = recovered_in.send(Ok(left));
                journal.serve(&orders_out, &told_in, &noted_in);
            }
            Err(error) => {
                let _ = recovered_in.send(Err(error));
            }
        })?;
    Ok(Ends {
        orders,
        told,
        recovered,
        counts,
        noted,
    })
}

struct Journal {
    settings: Settings,
    ledger: Ledger,
    streams: HashMap<Tag, (Arc<Streams>, StreamKind)>,
    claims: HashMap<Tag, Claims>,
    head: Option<Head>,
    /// Of the next segment.
    number: u64,
    /// The segment that was read last.
    cache: Option<(u64, Vec<u8>)>,
    /// When the oldest byte that is only in the page cache was written.
    dirty: Option<Instant>,
    /// The note of open runs that is only in the page cache.
    unsynced_runs: Option<File>,
    /// They could not be noted, which was said.
    runs_refused: bool,
    /// Held for as long as we live.
    _lock: File,
}

/// The segment that is being written.
struct Head {
    number: u64,
    file: File,
    size: u64,
    named: HashSet<Tag>,
}

impl Journal {
    fn open(settings: Settings) -> Result<(Journal, Recovered, RecoveredCounts), String> {
        let folder = settings.folder.clone();
        let says = |what: &str| {
            let text = format!("cannot {what} {}", folder.display());
            move |error: io::Error| format!("{text}: {error}")
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(says("make"))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(folder.join("lock"))
            .map_err(says("write to"))?;
        let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::flock(&lock, exclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => {
                format!("{} is in use by another agent", folder.display())
            }
            error => says("lock")(error.into()),
        })?;
        let mut journal = Journal {
            settings,
            ledger: Ledger::default(),
            streams: HashMap::new(),
            claims: HashMap::new(),
            head: None,
            number: 1,
            cache: None,
            dirty: None,
            unsynced_runs: None,
            runs_refused: false,
            _lock: lock,
        };
        let mut left = journal.recover().map_err(says("read"))?;
        left.runs = journal.noted_runs();
        let counts = RecoveredCounts {
            id: journal.id().map_err(says("write to"))?,
            counts: fs::read(folder.join("counts")).unwrap_or_default(),
        };
        Ok((journal, left, counts))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.settings.folder.join(format!("{number:010}.seg"))
    }

    /// Our name, made once.
    fn id(&self) -> io::Result<String> {
        let known = fs::read_to_string(self.settings.folder.join("id")).unwrap_or_default();
        let known = known.trim();
        if !known.is_empty() && known.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Ok(known.to_owned());
        }
        let id = random_id();
        self.replace("id", id.as_bytes())?;
        Ok(id)
    }

    /// Replaces a small file as a whole; removes it where there is nothing to say.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.settings.folder.join(name);
        if bytes.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let fresh = self.settings.folder.join(format!("{name}.new"));
        let mut file = create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&fresh, &path)?;
        self.sync_folder()
    }

    /// Notes which runs are open: survives us at once, and a power loss in a second. Until
    /// then the older note stays beside it, because a file that was renamed before its bytes
    /// were written may be empty after a power loss.
    fn note_runs(&mut self, text: &[u8]) -> io::Result<()> {
        let fresh = self.settings.folder.join("runs.new");
        let mut file = create(&fresh)?;
        file.write_all(text)?;
        fs::rename(&fresh, self.settings.folder.join(UNSYNCED_RUNS))?;
        self.unsynced_runs = Some(file);
        self.dirty.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn sync_runs(&mut self) -> io::Result<()> {
        match self.unsynced_runs.take() {
            Some(file) => {
                file.sync_data()?;
                let unsynced = self.settings.folder.join(UNSYNCED_RUNS);
                fs::rename(unsynced, self.settings.folder.join("runs"))?;
                self.sync_folder()
            }
            None => Ok(()),
        }
    }

    fn serve(
        &mut self,
        orders: &Receiver<Order>,
        told: &mpsc::Sender<Told>,
        noted: &mpsc::Sender<Outcome>,
    ) {
        loop {
            let order = match self.dirty {
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(since) => {
                    let due = since + SYNC_EVERY;
                    orders.recv_timeout(due.saturating_duration_since(Instant::now()))
                }
            };
            match order {
                Ok(Order::Counts(bytes)) => {
                    let outcome = match self.replace("counts", &bytes) {
                        Ok(()) => Outcome::Written,
                        Err(error) => Outcome::Failed(error.to_string()),
                    };
                    let _ = noted.blocking_send(outcome);
                }
                Ok(order) => self.obey(order, told),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self
                .dirty
                .is_some_and(|since| since.elapsed() >= SYNC_EVERY)
            {
                self.sync();
            }
        }
        self.sync();
    }

    fn sync_head(&self) -> io::Result<()> {
        match &self.head {
            Some(head) => head.file.sync_data(),
            None => Ok(()),
        }
    }

    /// A file's name is as safe as its folder is, not as its bytes are.
    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.settings.folder)?.sync_all()
    }

    fn sync(&mut self) {
        self.dirty = None;
        let head = self.sync_head();
        if let Err(error) = head.and(self.sync_runs()) {
            tracing::warn!("the journal does not reach the disk: {error}");
        }
    }

    fn obey(&mut self, order: Order, told: &mpsc::Sender<Told>) {
        let answer = |answer| drop(told.blocking_send(answer));
        match order {
            Order::Append(parcels) => {
                let mut drops = Vec::new();
                let outcome = self.append(&parcels, &mut drops);
                for drop in drops {
                    answer(Told::Dropped(drop));
                }
                answer(Told::Written(outcome));
            }
            Order::Claim(claims) => {
                let outcome = self.claim(&claims);
                answer(Told::Written(outcome));
            }
            Order::Done(floors) => self.done(&floors),
            Order::Read { tag, from, bytes } => {
                let (parcels, upto, read) = self.read(tag, from, bytes);
                answer(Told::Loaded {
                    tag,
                    parcels,
                    upto,
                    read,
                });
            }
            Order::Runs(note) => {
                let outcome = self.note_runs(&note.text);
                if let (Err(error), false) = (&outcome, self.runs_refused) {
                    tracing::warn!("which runs are open cannot be noted: {error}");
                }
                self.runs_refused = outcome.is_err();
                answer(Told::Noted(note.number));
            }
            // Answered elsewhere.
            Order::Counts(_) => {}
        }
    }

    fn append(&mut self, parcels: &[Shelved], drops: &mut Vec<Drop>) -> Outcome {
        for shelved in parcels {
            self.ledger.add_stream(shelved.tag, shelved.kind);
            // A reload may have changed the settings: the newest are written.
            let known = (Arc::clone(&shelved.streams), shelved.kind);
            self.streams.insert(shelved.tag, known);
        }
        let mut bytes = Vec::new();
        let mut extents = Vec::new();
        for Shelved { tag, parcel, .. } in parcels {
            let count = parcel.len() as u64;
            // First: an end that a power loss tore off must not take only the claim.
            if let Some(id) = parcel.claim() {
                let claim = Claim {
                    tag: *tag,
                    order: parcel.order(),
                    count,
                    id,
                };
                segment::claim(&mut bytes, &claim);
                self.remember(&claim);
            }
            let start = bytes.len();
            segment::parcel(&mut bytes, *tag, parcel);
            let length = (bytes.len() - start) as u64;
            extents.push((*tag, extent(parcel.order(), count, length, parcel.at_ms())));
        }
        match self.make_room(bytes.len() as u64, drops) {
            Outcome::Written => {}
            no_room => return no_room,
        }
        match self.write(&extents, &bytes) {
            Ok(()) => Outcome::Written,
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }

    fn remember(&mut self, claim: &Claim) {
        let floor = self.ledger.floor(claim.tag);
        let claims = self.claims.entry(claim.tag).or_default();
        claims.forget_below(floor);
        claims.add(claim.order, claim.count, claim.id);
    }

    /// On the disk when it is answered: what is sent next may reach a Redis that outlives a
    /// power loss of this machine.
    fn claim(&mut self, claims: &[Claim]) -> Outcome {
        let mut bytes = Vec::new();
        for claim in claims {
            segment::claim(&mut bytes, claim);
            self.remember(claim);
        }
        match self.write(&[], &bytes).and_then(|()| self.sync_head()) {
            Ok(()) => Outcome::Written,
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }

    fn done(&mut self, floors: &[(Tag, u64)]) {
        let mut bytes = Vec::new();
        for (tag, below) in floors {
            self.ledger.done(*tag, *below);
            segment::done(&mut bytes, *tag, *below);
            if let Some(claims) = self.claims.get_mut(tag) {
                claims.forget_below(*below);
            }
        }
        for number in self.ledger.dead() {
            self.delete(number);
        }
        // Where nothing is left there is nothing to say about it.
        if self.ledger.numbers().next().is_some()
            && let Err(error) = self.write(&[], &bytes)
        {
            tracing::debug!("the journal's cursor: {error}");
        }
    }

    /// Appends to the head, a new one where there is none or it is long enough: all of it or
    /// nothing.
    fn write(&mut self, extents: &[(Tag, Extent)], bytes: &[u8]) -> io::Result<()> {
        let long = (self.settings.bound / 32).clamp(64 << 10, 4 << 20);
        if self.head.as_ref().is_none_or(|head| head.size >= long) {
            self.rotate()?;
        }
        let Some(head) = &mut self.head else {
            return Err(io::Error::other("no segment"));
        };
        let mut names = Vec::new();
        let mut named = HashSet::new();
        for (tag, _) in extents {
            if !head.named.contains(tag)
                && named.insert(*tag)
                && let Some((streams, kind)) = self.streams.get(tag)
            {
                segment::stream(&mut names, *tag, streams, *kind);
            }
        }
        let written = head
            .file
            .write_all(&names)
            .and_then(|()| head.file.write_all(bytes));
        if let Err(error) = written {
            // Half of a frame would hide what comes after it.
            let _ = head.file.set_len(head.size);
            let _ = head.file.seek(SeekFrom::Start(head.size));
            return Err(error);
        }
        head.named.extend(named);
        head.size += (names.len() + bytes.len()) as u64;
        for (tag, extent) in extents {
            self.ledger.wrote(head.number, *tag, *extent);
        }
        self.ledger.resized(head.number, head.size);
        self.dirty.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Begins a segment: with every stream that has anything in the journal, its cursor and
    /// its claims, so that no older segment is needed to know them.
    fn rotate(&mut self) -> io::Result<()> {
        if self.dirty.is_some() {
            self.sync();
        }
        // What was read of the head is not all that it holds now.
        self.cache = None;
        self.head = None;
        let mut bytes = MAGIC.to_vec();
        let mut named = HashSet::new();
        for (tag, (streams, kind)) in &self.streams {
            if self.ledger.holds(*tag).0 == 0 {
                continue;
            }
            segment::stream(&mut bytes, *tag, streams, *kind);
            segment::done(&mut bytes, *tag, self.ledger.floor(*tag));
            for claim in self.claims.get(tag).into_iter().flat_map(|c| c.all(*tag)) {
                segment::claim(&mut bytes, &claim);
            }
            named.insert(*tag);
        }
        let number = self.number;
        let path = self.path(number);
        let mut file = create(&path)?;
        if let Err(error) = file.write_all(&bytes).and_then(|()| self.sync_folder()) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        self.number += 1;
        self.ledger.resized(number, bytes.len() as u64);
        self.head = Some(Head {
            number,
            file,
            size: bytes.len() as u64,
            named,
        });
        Ok(())
    }

    /// Until `wanted` bytes more fit into the bound.
    fn make_room(&mut self, wanted: u64, drops: &mut Vec<Drop>) -> Outcome {
        let mut sealed = false;
        while self.ledger.size() + wanted > self.settings.bound {
            if self.settings.overflow == Overflow::Block {
                return Outcome::Full;
            }
            // The head knows all claims, so that any other segment may go.
            if self.head.is_none()
                && let Err(error) = self.rotate()
            {
                return Outcome::Failed(error.to_string());
            }
            let head = self.head.as_ref().map_or(0, |head| head.number);
            match self.ledger.relieve(head) {
                Some(Relief::Delete(number)) => self.delete(number),
                Some(Relief::Dropped(drop)) => drops.push(drop),
                Some(Relief::Compact(number)) => {
                    if let Err(error) = self.compact(number) {
                        return Outcome::Failed(error.to_string());
                    }
                }
                // The head alone is too big: it becomes an old segment.
                None if self.ledger.numbers().count() == 1 && !sealed => {
                    self.head = None;
                    sealed = true;
                }
                None => return Outcome::Full,
            }
        }
        Outcome::Written
    }

    fn delete(&mut self, number: u64) {
        if self.head.as_ref().is_some_and(|head| head.number == number) {
            self.head = None;
        }
        if self
            .cache
            .as_ref()
            .is_some_and(|(cached, _)| *cached == number)
        {
            self.cache = None;
        }
        self.ledger.forget(number);
        if let Err(error) = fs::remove_file(self.path(number)) {
            tracing::warn!("a part of the journal cannot be deleted: {error}");
        }
    }

    /// Writes a segment anew with what lives in it.
    fn compact(&mut self, number: u64) -> io::Result<()> {
        let bytes = fs::read(self.path(number))?;
        let mut kept = MAGIC.to_vec();
        let mut extents = Vec::new();
        let mut at = MAGIC.len();
        while let Some((item, length)) = segment::next(bytes.get(at..).unwrap_or_default()) {
            let lives = match &item {
                Item::Stream { tag, .. } => self.ledger.holds(*tag).0 > 0,
                Item::Parcel {
                    tag,
                    order,
                    at_ms,
                    entries,
                    ..
                } => {
                    let lives = order + entries > self.ledger.floor(*tag);
                    if lives {
                        extents.push((*tag, extent(*order, *entries, length as u64, *at_ms)));
                    }
                    lives
                }
                // The head has them all.
                Item::Claim(_) | Item::Done { .. } => false,
            };
            if lives {
                kept.extend_from_slice(bytes.get(at..at + length).unwrap_or_default());
            }
            at += length;
        }
        let fresh = self.settings.folder.join("compact.new");
        let mut file = create(&fresh)?;
        file.write_all(&kept)?;
        file.sync_data()?;
        fs::rename(&fresh, self.path(number))?;
        self.cache = None;
        self.ledger.emptied(number);
        for (tag, extent) in extents {
            self.ledger.wrote(number, tag, extent);
        }
        self.ledger.resized(number, kept.len() as u64);
        self.sync_folder()
    }
}

fn extent(order: u64, entries: u64, bytes: u64, at_ms: u64) -> Extent {
    Extent {
        first: order,
        end: order + entries,
        entries,
        bytes,
        from_ms: at_ms,
        to_ms: at_ms,
    }
}

/// Hands every whole item of a segment to `take`; returns how many bytes are whole.
fn scan(bytes: &[u8], mut take: impl FnMut(Item<'_>, usize)) -> usize {
    if !bytes.starts_with(MAGIC) {
        return 0;
    }
    let mut at = MAGIC.len();
    while let Some((item, length)) = segment::next(bytes.get(at..).unwrap_or_default()) {
        take(item, length);
        at += length;
    }
    at
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// Names this agent where it has no place to remember its name.
pub fn random_id() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    let digits: String = kernel
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(16)
        .collect();
    if digits.is_empty() {
        format!("{:x}-{:x}", crate::clock::now_ms(), std::process::id())
    } else {
        digits
    }
}
