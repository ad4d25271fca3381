//! dying processes → records on disk, entries of the `crash` stream, answers about stacks.
//!
//! One analysis after the other, each in a child of ourselves with limits of its own: what it reads comes from a
//! program that went wrong. Evidence first: the core file is on disk before the analysis begins, and one that fails
//! still leaves a minimal entry. Nothing waits for this line but the very end of the agent, and that not for long.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::clock;
use crate::config;
use crate::handoff::{Audience, Board, Cause, CoreFile, Dying, StartHelper, Unfinished};
use crate::record::{Entry, Record, StreamKind};
use crate::request::{Reply, RequestId};
use crate::service::Signal;

use super::disk::Disk;
use super::examiner::{self, Examiner};
use super::keeper::{Ending, Keeper, too_late};
use super::known::Known;
use super::last_words::{self, End};
use super::report::{self, Kind, Report};
use super::store::{self, Seen, Store};
use super::{signals, text};

pub struct Hands {
    pub dying: mpsc::Receiver<Dying>,
    pub words: mpsc::Sender<Record>,
    pub replies: mpsc::Sender<(RequestId, Reply)>,
    pub start: StartHelper,
}

pub struct Settings {
    pub state_dir: PathBuf,
    pub crash: config::Crash,
}

/// Crashes that wait on disk for their analysis.
const MOST_QUEUED: usize = 256;
/// For the last analyses when everything else has ended and waits for them.
const LAST_LIMIT: Duration = Duration::from_secs(6);
/// In the stream; the whole is on disk.
const MOST_IN_STREAM: usize = 1 << 20;
const THREADS_IN_STREAM: usize = 16;
const MOST_TEXT: usize = 64 << 10;
/// A line that was written before the crash was read at most this much later, on a busy machine.
const LOG_DELAY_MS: u64 = 1000;
/// What hangs is not dead yet, and may speak again when it is told to stop.
const HANG_DELAY_MS: u64 = 100;
/// What a runtime said when it gave up was read at most this long before: its core may take a while to write.
const LAST_WORDS_MS: u64 = 2000;

/// Until nobody hands anything on any more.
pub async fn run(settings: Settings, hands: Hands) {
    let Hands {
        dying,
        words,
        replies,
        start,
    } = hands;
    let Settings { state_dir, crash } = settings;
    let (queue, mut queued) = mpsc::channel::<Dying>(MOST_QUEUED);
    let keeper = Keeper {
        disk: Disk::new(Store::new(&state_dir, crash.keep, crash.max_size)),
        keep: crash.keep > 0,
        known: Arc::default(),
        ending: Ending::default(),
    };
    let mut line = Line {
        disk: keeper.disk.clone(),
        keep: keeper.keep,
        known: keeper.known.clone(),
        ending: keeper.ending.clone(),
        examiner: Examiner {
            start,
            debug_dirs: crash.debug_dirs,
        },
        words,
        told_unsaved: false,
    };
    let work = async move {
        while let Some(dying) = queued.recv().await {
            match dying.cause {
                Cause::Asked(id) => {
                    let reply = line.stacks(dying).await;
                    let _ = replies.send((id, reply)).await;
                }
                Cause::Crash | Cause::Hang => line.crash(dying).await,
            }
        }
    };
    tokio::join!(keeper.run(dying, queue), work);
}

struct Line {
    disk: Disk,
    /// Records are kept on disk.
    keep: bool,
    examiner: Examiner,
    known: Arc<Mutex<Known>>,
    ending: Ending,
    words: mpsc::Sender<Record>,
    /// That records cannot be saved has been told.
    told_unsaved: bool,
}

/// What the report tells of the service's last lines: those before the crash.
pub(super) fn last_words_of(dying: &Dying) -> Unfinished {
    if let Some(before) = &dying.unfinished {
        return before.clone();
    }
    let (recent, at_ms) = (&dying.streams.recent, dying.snapshot.at_ms);
    let until = match dying.cause {
        Cause::Crash => recent.end_of(at_ms, LOG_DELAY_MS),
        Cause::Hang | Cause::Asked(_) => recent.end_of(at_ms, HANG_DELAY_MS),
    };
    let from = at_ms.saturating_sub(LAST_WORDS_MS);
    let last = recent.between(from, until);
    let end = dying.snapshot.signal.map_or(End::Fault, end);
    Unfinished {
        log: recent.until(until),
        message: last_words::find(&last, end)
            .or_else(|| last_words::find(&recent.words_between(from, until), end)),
    }
}

/// Whether a program died by its own hand.
fn end(signal: Signal) -> End {
    match signal.0 {
        // SIGILL, SIGTRAP, SIGABRT: what abort() and its like end with.
        4..=6 => End::GaveUp,
        _ => End::Fault,
    }
}

impl Line {
    async fn crash(&mut self, mut dying: Dying) {
        self.known().take_up(&dying.crash_id);
        let is_late = |since: &Instant| since.elapsed() >= LAST_LIMIT;
        if self.ending.get().is_some_and(is_late) && self.is_left(&dying) {
            info!(service = %dying.service, "{} is left to the next start", dying.crash_id);
            return;
        }
        let now = Instant::now();
        let time = clock::utc(dying.snapshot.at_ms);
        let site = std::mem::take(&mut dying.snapshot.site);
        let is_missing = matches!(dying.snapshot.core, CoreFile::Missing);
        let known = self.known().at(&dying.service, &site);
        let is_often = self.known().is_often_at(&dying.service, &site, now);
        if let Some(same) = known
            && (is_missing || is_often)
        {
            let is_kept = matches!(dying.snapshot.core, CoreFile::Kept);
            let seen = self.counted(&same.1, &time).await;
            if is_kept {
                self.removed(&dying.crash_id).await;
            }
            tell_of_one_more(&dying, seen);
            return;
        }
        let mut report = match self.analysed(&mut dying).await {
            Ok(report) => report,
            Err(_) if self.is_left(&dying) => {
                info!(service = %dying.service, "{} is left to the next start", dying.crash_id);
                return;
            }
            Err(why) => {
                warn!(service = %dying.service, "{} was not analysed: {why}", dying.crash_id);
                minimal(&dying, &time, &why)
            }
        };
        if let Some(trouble) = &dying.snapshot.trouble {
            let how = match is_missing {
                true => "not captured",
                false => "captured in part",
            };
            report.notes.push(format!("{how}: {trouble}"));
        }
        let Unfinished { log, message } = last_words_of(&dying);
        report.log = log;
        report.abort_message = report.abort_message.or(message);
        report.device = device(&dying.device);
        if let Some(signature) = report.signature.clone() {
            self.known().learn(&dying.service, site, &signature);
            let seen = self.counted(&signature, &time).await;
            let same = (dying.service.clone(), signature);
            if self.known().is_often(&same, now) {
                // By another way to the same place.
                self.removed(&dying.crash_id).await;
                tell_of_one_more(&dying, seen);
                return;
            }
            report.seen = seen.and_then(|seen| serde_json::to_value(seen).ok());
            self.known().told(same, now);
        } else {
            // Of what has no stack nothing tells one crash from another.
            let same = (dying.service.clone(), String::new());
            if self.known().is_often(&same, now) {
                self.removed(&dying.crash_id).await;
                info!(service = %dying.service, "one more crash without a stack: not recorded");
                return;
            }
            self.known().told(same, now);
        }
        self.tell(dying, report).await;
    }

    /// `None` where the disk does not say.
    async fn counted(&self, signature: &str, time: &str) -> Option<Seen> {
        let (signature, time) = (signature.to_owned(), time.to_owned());
        let counted = self
            .disk
            .run(move |store| Ok(store.count(&signature, &time)));
        counted.await.ok()
    }

    async fn removed(&self, id: &str) {
        self.disk.store.take_back(id);
        let own = id.to_owned();
        if let Err(error) = self.disk.run(move |store| store.remove(&own)).await {
            tracing::debug!("{id}: {error}");
        }
    }

    async fn tell(&mut self, dying: Dying, report: Report) {
        let Some(mut words) = rendered(report).await else {
            return;
        };
        let id = dying.crash_id.clone();
        let beside = (words.record.0.len() + words.record.1.len()) as u64;
        let cut = self.disk.run(move |store| Ok(store.fit(&id, beside)));
        if let Some(core) = cut.await.ok().flatten() {
            let id = &dying.crash_id;
            let most = self.disk.store.max_size();
            let note = format!(
                "its core file of {core} bytes is not kept: [crash] max_size is {most} bytes"
            );
            warn!("{id}: {note}");
            words.report.notes.push(note);
            let Some(again) = rendered(words.report).await else {
                return;
            };
            words = again;
        }
        let (id, record) = (dying.crash_id.clone(), words.record);
        let saved = self.disk.run(move |store| {
            let saved = store
                .save(&id, store::REPORT, &record.0)
                .and_then(|_| store.save(&id, store::TEXT, record.1.as_bytes()));
            store.settle(&id);
            store.sweep(&id);
            saved
        });
        let saved = saved.await;
        if let Err(error) = &saved {
            self.disk.store.take_back(&dying.crash_id);
            self.tell_unsaved(error);
        }
        let id = dying.crash_id.clone();
        match dying.audience {
            Audience::Stream => self.tell_stream(dying, words.stream).await,
            Audience::Disk => {}
        }
        if saved.is_ok()
            && let Err(error) = self.disk.run(move |store| store.sync(&id)).await
        {
            tracing::debug!("a crash record was not synced: {error}");
        }
    }

    async fn tell_stream(&self, dying: Dying, (json, text): (Vec<u8>, String)) {
        let signal = dying
            .snapshot
            .signal
            .map_or(String::new(), |s| s.to_string());
        let entry = Entry {
            streams: dying.streams,
            kind: StreamKind::Crash,
            at_ms: dying.snapshot.at_ms,
            message: Bytes::from(text),
            fields: vec![
                ("crash_id", Bytes::from(dying.crash_id)),
                ("signal", Bytes::from(signal)),
                ("report", Bytes::from(json)),
            ],
        };
        let _ = self.words.send(Record::Entry(entry)).await;
    }

    async fn stacks(&mut self, mut dying: Dying) -> Reply {
        match self.analysed(&mut dying).await {
            Ok(report) => {
                let text = text::render(&report);
                Reply::done(serde_json::json!({ "report": report, "text": text }))
            }
            Err(why) => Reply::refused(format!("the stacks were not analysed: {why}")),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the next agent will do it.
    fn is_left(&self, dying: &Dying) -> bool {
        let is_ending = self.ending.get().is_some();
        is_ending && self.disk.store.path(&dying.crash_id, store::LEFT).exists()
    }

    async fn analysed(&mut self, dying: &mut Dying) -> Result<Report, String> {
        self.known().forget_old(Instant::now());
        let core = std::mem::replace(&mut dying.snapshot.core, CoreFile::Missing);
        if let CoreFile::Missing = core {
            return Err("there is no copy of the process".to_owned());
        }
        let keep = match dying.cause {
            Cause::Crash | Cause::Hang => self.keep,
            Cause::Asked(_) => false,
        };
        let placed = examiner::place(&self.disk, &dying.crash_id, core, keep).await;
        let (place, unsaved) =
            placed.map_err(|error| format!("no room for the core file: {error}"))?;
        if let Some(error) = unsaved {
            self.tell_unsaved(&error);
        }
        self.examiner
            .examine(
                dying,
                &place,
                &self.disk.store,
                too_late(&self.ending, LAST_LIMIT),
            )
            .await
    }

    fn tell_unsaved(&mut self, error: &io::Error) {
        if !self.told_unsaved && self.keep {
            self.told_unsaved = true;
            warn!("crash records cannot be kept on disk: {error}");
        }
    }
}

/// Numbers as numbers; `None` where there are no sensors.
fn device(board: &Board) -> Option<serde_json::Value> {
    let value = |text: &String| match text.parse::<serde_json::Number>() {
        Ok(number) => serde_json::Value::Number(number),
        Err(_) => text.as_str().into(),
    };
    let fields: serde_json::Map<_, _> = board
        .iter()
        .map(|(name, text)| (name.to_string(), value(text)))
        .collect();
    (!fields.is_empty()).then(|| fields.into())
}

/// What is known without an analysis.
fn minimal(dying: &Dying, time: &str, why: &str) -> Report {
    let snapshot = &dying.snapshot;
    Report {
        schema: report::SCHEMA,
        kind: match dying.cause {
            Cause::Crash => Kind::Crash,
            Cause::Hang => Kind::Hang,
            Cause::Asked(_) => Kind::Stacks,
        },
        crash_id: Some(dying.crash_id.clone()),
        service: Some(dying.service.to_string()),
        pid: u32::try_from(snapshot.pid).ok(),
        time: Some(time.to_owned()),
        signal: snapshot.signal.map(|signal| report::Signal {
            number: signal.0,
            name: signals::name(signal.0),
            ..report::Signal::default()
        }),
        notes: vec![format!("not analysed: {why}")],
        ..Report::default()
    }
}

struct Rendered {
    report: Report,
    /// JSON and text, as they lie in the record.
    record: (Vec<u8>, String),
    /// The same within the bounds of an entry.
    stream: (Vec<u8>, String),
}

/// Some are megabytes long.
async fn rendered(report: Report) -> Option<Rendered> {
    let render = move || {
        let json = serde_json::to_vec(&report).unwrap_or_default();
        let record = (json, text::render(&report));
        Rendered {
            stream: for_stream(&report, &record),
            report,
            record,
        }
    };
    tokio::task::spawn_blocking(render).await.ok()
}

fn tell_of_one_more(dying: &Dying, seen: Option<Seen>) {
    let times = seen.map_or(String::new(), |seen| format!(", {} times now", seen.count));
    info!(service = %dying.service, "the same crash again{times}: counted only");
}

/// A stream's entry has its bounds.
fn for_stream(report: &Report, (json, text): &(Vec<u8>, String)) -> (Vec<u8>, String) {
    let text = match text.len() > MOST_TEXT {
        true => text::render_short(report),
        false => text.clone(),
    };
    if json.len() <= MOST_IN_STREAM {
        return (json.clone(), text);
    }
    let mut report = report.clone();
    let all = report.threads.len();
    report.threads.truncate(THREADS_IN_STREAM);
    report.notes.push(format!(
        "{} of {all} threads; the record on disk has all",
        report.threads.len()
    ));
    (serde_json::to_vec(&report).unwrap_or_default(), text)
}
