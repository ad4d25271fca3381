//! Standings and beats → gauges for the sink and for `status`.
//!
//! One tick a second is the only thing that wakes an idle agent. What changes in between
//! (a start, an end) is told at once. While the sink takes nothing, changes are not queued
//! but kept as what they are: the difference to what was told.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::error::SendError;
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::warn;

use super::book::{Book, CATEGORY, Heard, POOLS};
use super::check::Means;
use super::checks::{Checks, Fed};
use super::device::Device;
use super::keeper::Keeper;
use super::kept::Beats;
use super::sample::{Sampler, Units};
use crate::clock::now_ms;
use crate::config;
use crate::event::Event;
use crate::handoff::{Beat, HealthGauge, ServiceGauge, Standing};
use crate::record::{Entry, Record, StreamKind, Streams};
use crate::service::{Pid, ServiceName};

const TICK: Duration = Duration::from_secs(1);

/// Beats taken in one turn.
const BEATS: usize = 256;

/// Serves until `standings` closes.
pub async fn run(
    settings: &config::Health,
    standings: mpsc::Receiver<Standing>,
    beats: mpsc::Receiver<Beat>,
    words: mpsc::Sender<Record>,
    gauge: watch::Sender<HealthGauge>,
) {
    let means = Means {
        inbox: mpsc::channel(1).0,
        redis: None,
        key_prefix: String::new(),
    };
    let found = Found {
        device: None,
        keeper: None,
    };
    run_with(settings, found, means, standings, beats, words, gauge).await;
}

/// What there is on this machine.
pub struct Found {
    /// The board's sensors.
    pub device: Option<Device>,
    /// Where beats outlive us, and those that the last agent left there.
    pub keeper: Option<(Keeper, Beats)>,
}

/// The same, with checks, and the board's sensors with the same tick.
pub async fn run_with(
    settings: &config::Health,
    found: Found,
    means: Means,
    mut standings: mpsc::Receiver<Standing>,
    mut beats: mpsc::Receiver<Beat>,
    words: mpsc::Sender<Record>,
    gauge: watch::Sender<HealthGauge>,
) {
    let Found { mut device, keeper } = found;
    let (mut keeper, left) = keeper.unzip();
    let mut book = Book::new(settings.compute, left.unwrap_or_default());
    let inbox = means.inbox.clone();
    let mut refused: VecDeque<Entry> = VecDeque::new();
    let mut checks = Checks::new(means);
    let mut samplers = Samplers::new(Path::new("/proc"));
    let mut ticks = tokio::time::interval_at(Instant::now() + TICK, TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut some_beats = Vec::with_capacity(BEATS);
    let mut lost_beats = false;
    let mut room: Option<Room> = None;
    loop {
        let of_board = device.as_ref().is_some_and(Device::is_due);
        let due = book.is_due() || of_board || !refused.is_empty();
        if due && room.is_none() {
            room = Some(Box::pin(words.clone().reserve_owned()));
        }
        tokio::select! {
            biased;
            next = standings.recv() => match next {
                Some(standing) => {
                    let service = standing.service.clone();
                    let passing = checks.stand(now(), &standing);
                    book.stand(now(), standing);
                    book.passing(&service, passing);
                    samplers.sample(now(), &mut book, New::Only);
                    publish_gauge(&book, &gauge);
                }
                None => {
                    while let Ok(beat) = beats.try_recv() {
                        book.beat(now(), beat);
                    }
                    if let Some(keeper) = keeper {
                        keeper.end(book.beats()).await;
                    }
                    return last_words(&mut book, words, &inbox).await;
                }
            },
            permit = has_room(&mut room) => {
                room = None;
                match permit {
                    Ok(permit) => match refused.pop_front() {
                        Some(entry) => drop(permit.send(Record::Entry(entry))),
                        None => publish(&mut book, &mut device, permit, &inbox),
                    },
                    Err(_) => return,
                }
            }
            _ = ticks.tick() => {
                let now = now();
                samplers.sample(now, &mut book, New::AndKnown);
                book.tick(now);
                if let Some(keeper) = &mut keeper {
                    // Before they are told: who is killed counts on from what was seen.
                    keeper.keep(book.beats()).await;
                }
                for (service, edges) in book.edges() {
                    // An inbox that is full has worse to tell.
                    let _ = inbox.try_send(Event::Pools { service, edges });
                }
                if let Some(device) = &mut device {
                    device.tick(now_ms());
                    let board = Arc::new(device.board().clone());
                    gauge.send_modify(|gauge| gauge.device = board);
                }
                publish_gauge(&book, &gauge);
            }
            finding = checks.find() => {
                for fed in checks.take(now(), finding) {
                    match fed {
                        Fed::Beat { service, check } => book.passed(now(), &service, &check),
                        Fed::Passing { service, passing } => book.passing(&service, passing),
                    }
                }
            }
            _ = beats.recv_many(&mut some_beats, BEATS), if !beats.is_closed() || !beats.is_empty() => {
                for beat in some_beats.drain(..) {
                    let stream_name = beat.stream_name.clone();
                    match book.beat(now(), beat) {
                        Heard::Nobody if !lost_beats => {
                            lost_beats = true;
                            warn!("beats of {stream_name} belong to no service");
                        }
                        Heard::TooMany { service, streams, first: true } => {
                            refused.push_back(too_many(&service, &streams));
                        }
                        Heard::Pool | Heard::Nobody | Heard::TooMany { .. } => {}
                    }
                }
            }
        }
    }
}

/// A place in the queue of the sink: kept while other things happen, or a busy outbox would
/// never have room for us.
type Room = Pin<Box<dyn Future<Output = Result<OwnedPermit<Record>, SendError<()>>> + Send>>;

async fn has_room(room: &mut Option<Room>) -> Result<OwnedPermit<Record>, SendError<()>> {
    match room {
        Some(room) => room.await,
        None => std::future::pending().await,
    }
}

fn publish(
    book: &mut Book,
    device: &mut Option<Device>,
    permit: OwnedPermit<Record>,
    inbox: &mpsc::Sender<Event>,
) {
    let mut gauges = Vec::new();
    book.changes(&mut gauges);
    gauges.extend(device.as_mut().and_then(Device::take));
    if !gauges.is_empty() {
        permit.send(Record::Gauges(gauges));
    } else if let Some(event) = device.as_mut().and_then(Device::event) {
        // An inbox that is full has worse to tell.
        let _ = inbox.try_send(Event::Board(event.clone()));
        permit.send(Record::Entry(event));
    }
}

/// Told once of each service, in its `error` stream.
fn too_many(service: &ServiceName, streams: &Arc<Streams>) -> Entry {
    let what = format!(
        "Too many health pools: beyond {POOLS} of a service, or with a name of more than {CATEGORY} bytes, \
         its markers make no further pool."
    );
    warn!(%service, "{what}");
    Entry::plain(streams, StreamKind::Error, now_ms(), what)
}

/// What changed last (an end and its code) is told before the loop ends.
async fn last_words(book: &mut Book, words: mpsc::Sender<Record>, inbox: &mpsc::Sender<Event>) {
    if book.is_due()
        && let Ok(permit) = words.reserve_owned().await
    {
        publish(book, &mut None, permit, inbox);
    }
}

fn publish_gauge(book: &Book, gauge: &watch::Sender<HealthGauge>) {
    gauge.send_modify(|gauge| book.show(&mut gauge.services));
}

fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// Which processes to sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum New {
    Only,
    AndKnown,
}

/// The samplers of all processes.
struct Samplers {
    proc: PathBuf,
    units: Units,
    by_service: HashMap<ServiceName, (Pid, Sampler)>,
    /// Samplers made so far.
    made: u64,
}

impl Samplers {
    fn new(proc: &Path) -> Samplers {
        Samplers {
            proc: proc.to_owned(),
            units: Units::of_this_kernel(),
            by_service: HashMap::new(),
            made: 0,
        }
    }

    fn sample(&mut self, now: std::time::Instant, book: &mut Book, which: New) {
        let processes: Vec<_> = book
            .processes()
            .map(|(name, pid)| (name.clone(), pid))
            .collect();
        if processes.len() < self.by_service.len() {
            let lives = |name: &ServiceName| processes.iter().any(|(living, _)| living == name);
            self.by_service.retain(|name, _| lives(name));
        }
        for (name, pid) in processes {
            let known = self
                .by_service
                .get(&name)
                .is_some_and(|(known, _)| *known == pid);
            if known && which == New::Only {
                continue;
            }
            if !known {
                self.made += 1;
                let sampler = Sampler::new(&self.proc, pid, self.units, self.made);
                self.by_service.insert(name.clone(), (pid, sampler));
            }
            let Some((_, sampler)) = self.by_service.get_mut(&name) else {
                continue;
            };
            let usage = sampler.sample(now);
            let gauge = ServiceGauge {
                cpu_percent: usage.cpu_percent,
                rss_bytes: usage.rss_bytes,
                threads: usage.threads,
                fds: usage.fds,
                ..ServiceGauge::default()
            };
            book.uses(&name, gauge);
        }
    }
}
