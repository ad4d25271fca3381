//! dying processes → records on disk, entries of the `crash` stream, answers about stacks.
//!
//! One analysis after the other, each in a child of ourselves with limits of its own: what it reads comes from a
//! program that went wrong. Evidence first: the core file is on disk before the analysis begins, and one that fails
//! still leaves a minimal entry. Nothing waits for this line but the very end of the agent, and that not for long.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::clock;
use crate::config;
use crate::handoff::{Dying, Helper, HelperEvent, Pipes, StartHelper};
use crate::record::{Entry, Record, StreamKind};
use crate::request::{Reply, RequestId};
use crate::service::Exit;

use super::report::{self, Kind, Report};
use super::store::{self, Store};
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

/// An analysis takes a tenth of a second; huge debug information some seconds.
const ANALYSIS_LIMIT: Duration = Duration::from_secs(30);
/// The same when everything else has ended and waits for it.
const LAST_LIMIT: Duration = Duration::from_secs(6);
/// Bytes of one report.
const MOST_REPORT: usize = 64 << 20;
/// In the stream; the whole is on disk.
const MOST_IN_STREAM: usize = 1 << 20;
const THREADS_IN_STREAM: usize = 16;
const MOST_TEXT: usize = 64 << 10;
/// Repeats of one signature that are reported in full within [`RATE_INTERVAL`].
const RATE: usize = 10;
const RATE_INTERVAL: Duration = Duration::from_secs(60);
/// Places that are remembered.
const MOST_SITES: usize = 1000;
/// A line that was written before the crash was read at most this much later.
const LOG_DELAY_MS: u64 = 100;

/// Until nobody hands anything on any more.
pub async fn run(settings: Settings, hands: Hands) {
    let Hands {
        dying,
        words,
        replies,
        start,
    } = hands;
    let Settings { state_dir, crash } = settings;
    let mut line = Line {
        store: Store::new(&state_dir, crash.keep, crash.max_size),
        crash,
        dying,
        words,
        start,
        told_unsaved: false,
        sites: HashMap::new(),
        told: HashMap::new(),
    };
    while let Some(dying) = line.dying.recv().await {
        match dying.asked {
            Some(id) => {
                let reply = line.stacks(dying).await;
                let _ = replies.send((id, reply)).await;
            }
            None => line.crash(dying).await,
        }
    }
}

struct Line {
    store: Store,
    crash: config::Crash,
    dying: mpsc::Receiver<Dying>,
    words: mpsc::Sender<Record>,
    start: StartHelper,
    /// That records cannot be saved has been told.
    told_unsaved: bool,
    /// The signature that a place had the last time.
    sites: HashMap<String, String>,
    /// When each signature was reported in full.
    told: HashMap<String, VecDeque<Instant>>,
}

/// Where the analysis finds the core file.
enum Place {
    Stored(PathBuf),
    /// The folder cannot be written: in memory.
    Memory(std::os::fd::OwnedFd),
}

impl Line {
    async fn crash(&mut self, mut dying: Dying) {
        let now = Instant::now();
        let time = clock::utc(dying.snapshot.at_ms);
        let site = std::mem::take(&mut dying.snapshot.site);
        if let Some(signature) = self.sites.get(&site)
            && self.is_often(signature, now)
        {
            let seen = self.store.count(signature, &time);
            info!(service = %dying.service, "the same crash again, {} times now: counted only", seen.count);
            return;
        }
        let core = std::mem::take(&mut dying.snapshot.core);
        let mut report = match self.analysed(&dying, core, Kind::Crash).await {
            Ok(report) => report,
            Err(why) => {
                warn!(service = %dying.service, "{} was not analysed: {why}", dying.crash_id);
                minimal(&dying, &time, &why)
            }
        };
        if let Some(trouble) = &dying.snapshot.trouble {
            report.notes.push(format!("captured in part: {trouble}"));
        }
        report.log = dying
            .streams
            .recent
            .until(dying.snapshot.at_ms + LOG_DELAY_MS);
        if let Some(signature) = report.signature.clone() {
            if self.sites.len() >= MOST_SITES {
                self.sites.clear();
            }
            self.sites.insert(site, signature.clone());
            let seen = self.store.count(&signature, &time);
            report.seen = serde_json::to_value(seen).ok();
            self.told.entry(signature).or_default().push_back(now);
        }
        self.tell(dying, report).await;
    }

    async fn tell(&mut self, dying: Dying, report: Report) {
        let (store, id) = (self.store.clone(), dying.crash_id.clone());
        let made = tokio::task::spawn_blocking(move || {
            let json = serde_json::to_vec(&report).unwrap_or_default();
            let text = text::render(&report);
            let saved = store
                .save(&id, store::REPORT, &json)
                .and_then(|_| store.save(&id, store::TEXT, text.as_bytes()));
            store.sweep(&id);
            let (json, text) = for_stream(report, json, text);
            (saved, json, text)
        });
        let Ok((saved, json, text)) = made.await else {
            return;
        };
        if let Err(error) = saved {
            self.tell_unsaved(&error);
        }
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
        let core = std::mem::take(&mut dying.snapshot.core);
        match self.analysed(&dying, core, Kind::Stacks).await {
            Ok(report) => {
                let text = text::render(&report);
                Reply::done(serde_json::json!({ "report": report, "text": text }))
            }
            Err(why) => Reply::refused(format!("the stacks were not analysed: {why}")),
        }
    }

    /// Whether a signature was reported in full as often as it may be.
    fn is_often(&self, signature: &str, now: Instant) -> bool {
        let told = self.told.get(signature).into_iter().flatten();
        let recently = |at: &&Instant| now.duration_since(**at) < RATE_INTERVAL;
        told.filter(recently).count() >= RATE
    }

    async fn analysed(
        &mut self,
        dying: &Dying,
        core: Vec<u8>,
        kind: Kind,
    ) -> Result<Report, String> {
        if core.is_empty() {
            return Err("there is no copy of the process".to_owned());
        }
        self.told.retain(|_, at| {
            at.retain(|at| at.elapsed() < RATE_INTERVAL);
            !at.is_empty()
        });
        let place = self.place(&dying.crash_id, core, kind).await?;
        let path = match &place {
            Place::Stored(path) => path.display().to_string(),
            Place::Memory(fd) => {
                use std::os::fd::AsRawFd;
                let own = rustix::process::getpid().as_raw_nonzero();
                format!("/proc/{own}/fd/{}", fd.as_raw_fd())
            }
        };
        let args = self.arguments(dying, kind);
        let mut first = args.clone();
        first.push(path.clone());
        match self.analyse(first).await {
            Ok(report) => Ok(report),
            Err(why) => {
                // What ran into its limits may do with less.
                let mut second = args;
                second.extend(["--symbol-tables-only".to_owned(), path]);
                let mut report = self.analyse(second).await?;
                report
                    .notes
                    .push(format!("only symbol tables were used: {why}"));
                Ok(report)
            }
        }
    }

    fn arguments(&self, dying: &Dying, kind: Kind) -> Vec<String> {
        let kind = match kind {
            Kind::Crash => "crash",
            Kind::Hang => "hang",
            Kind::Stacks => "stacks",
        };
        let time = clock::utc(dying.snapshot.at_ms);
        let mut args: Vec<String> = ["symbolize", "--json", "--limits", "--kind", kind]
            .map(str::to_owned)
            .into();
        args.extend(["--service".to_owned(), dying.service.to_string()]);
        args.extend(["--time".to_owned(), time]);
        if dying.asked.is_none() {
            args.extend(["--crash-id".to_owned(), dying.crash_id.clone()]);
        }
        for folder in &self.crash.debug_dirs {
            args.extend(["--debug-dir".to_owned(), folder.display().to_string()]);
        }
        args
    }

    async fn place(&mut self, id: &str, core: Vec<u8>, kind: Kind) -> Result<Place, String> {
        let (store, id) = (self.store.clone(), id.to_owned());
        let kept = kind == Kind::Crash && self.crash.keep > 0;
        let placed = tokio::task::spawn_blocking(move || {
            let saved = match kept {
                true => store.save(&id, store::CORE, &core).map(Place::Stored),
                false => Err(io::ErrorKind::Unsupported.into()),
            };
            match saved {
                Ok(place) => (Ok(place), None),
                Err(error) => (in_memory(&core), Some(error)),
            }
        });
        let (place, error) = placed.await.map_err(|error| error.to_string())?;
        if let Some(error) = error.filter(|_| kept) {
            self.tell_unsaved(&error);
        }
        place.map_err(|error| format!("no room for the core file: {error}"))
    }

    fn tell_unsaved(&mut self, error: &io::Error) {
        if !self.told_unsaved && self.crash.keep > 0 {
            self.told_unsaved = true;
            warn!("crash records cannot be kept on disk: {error}");
        }
    }

    async fn analyse(&self, args: Vec<String>) -> Result<Report, String> {
        let (started_in, started) = oneshot::channel();
        let (ended_in, ended) = oneshot::channel();
        let (mut started_in, mut ended_in) = (Some(started_in), Some(ended_in));
        let tell = move |event| match event {
            HelperEvent::Started(pipes) => {
                started_in.take().map(|to| to.send(Ok(pipes)));
            }
            HelperEvent::Failed(failure) => {
                started_in.take().map(|to| to.send(Err(failure)));
            }
            HelperEvent::Ended(exit) => {
                ended_in.take().map(|to| to.send(exit));
            }
        };
        (self.start)(Helper {
            executable: "/proc/self/exe".to_owned(),
            args,
            nice: 10,
            limit: ANALYSIS_LIMIT,
            tell: Box::new(tell),
        });
        let whole = async {
            let pipes = match started.await {
                Ok(Ok(pipes)) => pipes,
                Ok(Err(failure)) => return Err(failure.to_string()),
                Err(_) => return Err("the agent is ending".to_owned()),
            };
            let (output, complaint) = read(pipes).await.map_err(|error| error.to_string())?;
            match ended.await {
                Ok(Exit::Code(0)) => {
                    serde_json::from_slice(&output).map_err(|error| error.to_string())
                }
                Ok(Exit::Signal(signal)) => Err(format!("the analysis was ended by {signal}")),
                Ok(exit) => Err(match complaint.lines().next_back() {
                    Some(line) => line.to_owned(),
                    None => format!("the analysis exited with code {}", exit.code()),
                }),
                Err(_) => Err("the agent is ending".to_owned()),
            }
        };
        tokio::select! {
            result = whole => result,
            () = self.too_late() => Err("the agent is ending".to_owned()),
        }
    }

    /// When the supervisor has ended, everybody waits for this line.
    async fn too_late(&self) {
        while !self.dying.is_closed() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        tokio::time::sleep(LAST_LIMIT).await;
    }
}

/// A file without a name, which `/proc` makes readable to the analysis.
fn in_memory(core: &[u8]) -> io::Result<Place> {
    let fd = rustix::fs::memfd_create("core", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut rest = core;
    while !rest.is_empty() {
        let written = rustix::io::write(&fd, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(Place::Memory(fd))
}

/// Both outputs to their ends.
async fn read(pipes: Pipes) -> io::Result<(Vec<u8>, String)> {
    let stdout = pipe::Receiver::from_owned_fd(pipes.stdout)?;
    let stderr = pipe::Receiver::from_owned_fd(pipes.stderr)?;
    let (mut output, mut complaint) = (Vec::new(), Vec::new());
    let (mut stdout, mut stderr) = (
        stdout.take(MOST_REPORT as u64),
        stderr.take(MOST_TEXT as u64),
    );
    let (read, _) = tokio::join!(
        stdout.read_to_end(&mut output),
        stderr.read_to_end(&mut complaint)
    );
    read?;
    Ok((output, String::from_utf8_lossy(&complaint).into_owned()))
}

/// What is known without an analysis.
fn minimal(dying: &Dying, time: &str, why: &str) -> Report {
    let snapshot = &dying.snapshot;
    Report {
        schema: report::SCHEMA,
        kind: Kind::Crash,
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

/// A stream's entry has its bounds.
fn for_stream(mut report: Report, json: Vec<u8>, text: String) -> (Vec<u8>, String) {
    let text = if text.len() > MOST_TEXT {
        text::render_short(&report)
    } else {
        text
    };
    if json.len() <= MOST_IN_STREAM {
        return (json, text);
    }
    let all = report.threads.len();
    report.threads.truncate(THREADS_IN_STREAM);
    report.notes.push(format!(
        "{} of {all} threads; the record on disk has all",
        report.threads.len()
    ));
    (serde_json::to_vec(&report).unwrap_or_default(), text)
}
