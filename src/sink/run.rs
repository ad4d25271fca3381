//! outbox → backlog → Redis: the sink's first loop, and how both begin.
//!
//! One connection carries the streams, a second one values and health (value_loop.rs). Both loops receive records all the time, also while they
//! connect: the sink makes nobody wait but the readers of pipes, and those only while Redis
//! acknowledges ([`Intake`]).

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::backlog::{Backlog, Purpose, Unwritten};
use super::delivery::{Delivery, Hangup, Notice};
use super::desk::Desk;
use super::link::{Link, Voice};
use super::redis::Wire;
use super::session::Session;
use super::spool::WhenFull;
use super::value_loop::ValueLoop;
use super::values::Values;
use crate::clock::now_ms;
use crate::config::{self, Endpoint};
use crate::event::Event;
use crate::handoff::SinkGauge;
use crate::record::Record;

/// What the sink still does after the last record was sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Farewell {
    /// How long it waits for Redis.
    pub patience: Duration,
    pub pools: LastPools,
}

/// What becomes of the pools' last values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastPools {
    /// They vanish with their agent.
    Expire,
    /// They stand until the next start: a wrapped application is expected to end.
    Stay,
}

/// Of an agent that supervises: stopping a board must not take long.
pub const FAREWELL: Farewell = Farewell {
    patience: Duration::from_secs(2),
    pools: LastPools::Expire,
};
/// How often the gauge follows at most.
const GAUGE_EVERY: Duration = Duration::from_millis(200);
/// Bytes that may wait for the socket before no further batch is encoded.
const UNWRITTEN: usize = 128 << 10;

/// What the sink is made from.
pub struct Settings {
    pub redis: config::Redis,
    pub spool: config::Spool,
    /// Where the journal is; `None` where there is no place for one.
    pub folder: Option<PathBuf>,
    pub farewell: Farewell,
}

/// Runs until both lanes are closed and everything is delivered, or the
/// farewell's patience has passed.
/// Returns what was neither delivered nor left to the journal.
///
/// `lines` is the lane of what services write: not received from while the backlog is full
/// and Redis acknowledges, so that the pipes fill. `words` is everybody else's, and always
/// received from.
pub async fn run(
    settings: Settings,
    lines: mpsc::Receiver<Record>,
    words: mpsc::Receiver<Record>,
    inbox: mpsc::Sender<Event>,
    gauge: watch::Sender<SinkGauge>,
) -> Unwritten {
    let Settings {
        redis,
        spool,
        folder,
        farewell,
    } = settings;
    let bound = usize::try_from(spool.memory).unwrap_or(usize::MAX);
    let mut delivery = Delivery::new(Backlog::new(&redis.key_prefix, bound));
    let (spool, farewell) = match redis.endpoint {
        // Nothing will ever take what is kept: the oldest go, and the end waits for nobody.
        Endpoint::None => {
            delivery.backlog.serve(Purpose::Store);
            let overflow = config::Overflow::DropOldest;
            let patience = Duration::ZERO;
            (
                config::Spool { overflow, ..spool },
                Farewell {
                    patience,
                    ..farewell
                },
            )
        }
        Endpoint::Tcp { .. } | Endpoint::Unix(_) => (spool, farewell),
    };
    let (mut desk, counts) = Desk::open(&spool, folder, &mut delivery).await;
    let (to_values, from_streams) = mpsc::channel(256);
    let (to_streams, errata) = mpsc::channel(64);
    let mut values = Values::new(&redis.key_prefix, &counts.id, redis.value_expiry);
    values
        .counts
        .revive(&counts.counts, std::time::Instant::now());
    let values = ValueLoop {
        values,
        records: Some(from_streams),
        errata: to_streams,
        farewell,
        closing: None,
        notebook: desk.notebook(),
    };
    let value_link = Link::new(redis.clone(), redis.value_db, Voice::Silent);
    let streams = StreamLoop {
        delivery,
        desk,
        intake: Intake {
            lines: Some(lines),
            words: Some(words),
            errata,
        },
        to_values: Some(to_values),
        gauge: gauge.clone(),
        gauged: Instant::now(),
        behind: false,
        farewell,
        closing: None,
        follows: match redis.sentinel {
            None => Follows::Settings,
            Some(_) => Follows::Sentinels,
        },
    };
    let log_db = redis.log_db;
    let stream_link = Link::new(redis, log_db, Voice::Speaks { inbox, gauge });
    let (desk, ()) = tokio::join!(streams.run(stream_link), values.run(value_link));
    desk.close().await
}

/// Where records come from.
struct Intake {
    lines: Option<mpsc::Receiver<Record>>,
    words: Option<mpsc::Receiver<Record>>,
    errata: mpsc::Receiver<Record>,
}

impl Intake {
    /// The next record; `None` when a lane has closed (ask again). Never returns while
    /// nothing can come.
    async fn receive(&mut self, lines_welcome: bool) -> Option<Record> {
        tokio::select! {
            biased;
            Some(record) = self.errata.recv() => Some(record),
            record = receive_from(&mut self.words), if self.words.is_some() => {
                if record.is_none() {
                    self.words = None;
                }
                record
            }
            record = receive_from(&mut self.lines), if lines_welcome && self.lines.is_some() => {
                if record.is_none() {
                    self.lines = None;
                }
                record
            }
            else => std::future::pending().await,
        }
    }

    fn is_closed(&self) -> bool {
        self.lines.is_none() && self.words.is_none()
    }
}

pub async fn receive_from(lane: &mut Option<mpsc::Receiver<Record>>) -> Option<Record> {
    match lane {
        Some(lane) => lane.recv().await,
        None => std::future::pending().await,
    }
}

/// Why a connection is given up that works.
pub const MOVED: &str = "the sentinels name another master";

/// Why serving a connection ended.
pub enum End {
    /// Everything is delivered, or there is no time left.
    Finished,
    Lost(String),
}

struct StreamLoop {
    delivery: Delivery,
    desk: Desk,
    intake: Intake,
    /// Closed when nothing more can come for the value loop.
    to_values: Option<mpsc::Sender<Record>>,
    gauge: watch::Sender<SinkGauge>,
    gauged: Instant,
    /// The gauge does not say what is.
    behind: bool,
    farewell: Farewell,
    /// When to stop waiting for Redis.
    closing: Option<Instant>,
    follows: Follows,
}

/// Who says where Redis is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follows {
    Settings,
    Sentinels,
}

impl StreamLoop {
    async fn run(mut self, mut link: Link) -> Desk {
        // What an earlier life left waits from the beginning.
        self.show(true);
        loop {
            let Some(wire) = self.until_connected(&mut link).await else {
                break;
            };
            self.delivery.connected();
            link.up().await;
            let end = self.serve(wire, &mut link).await;
            self.delivery.disconnected();
            match end {
                End::Finished => break,
                End::Lost(reason) => {
                    self.until_waited(link.down(&reason)).await;
                }
            }
        }
        self.desk.leave(&mut self.delivery).await;
        self.desk
    }

    /// Receives while connecting; `None` when there is nothing to connect for any more.
    async fn until_connected(&mut self, link: &mut Link) -> Option<Box<dyn Wire>> {
        self.until_waited(link.establish()).await
    }

    /// Receives until `event` has happened; `None` when everything is over.
    async fn until_waited<T>(&mut self, event: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(event);
        loop {
            if self.is_finished() {
                return None;
            }
            self.desk.attend(&mut self.delivery);
            let deadline = [
                self.closing,
                self.gauge_due(),
                self.desk.deadline(&self.delivery),
            ];
            let deadline = deadline.into_iter().flatten().min();
            let lines_welcome = self.lines_welcome();
            tokio::select! {
                outcome = &mut event => return Some(outcome),
                told = self.desk.told() => self.desk.take(told, &mut self.delivery),
                record = self.intake.receive(lines_welcome) => self.absorb(record).await,
                () = until(deadline) => self.show(false),
            }
        }
    }

    async fn serve(&mut self, wire: Box<dyn Wire>, link: &mut Link) -> End {
        let mut session = Session::new(wire);
        let mut proved = false;
        let moved = link.moved();
        tokio::pin!(moved);
        loop {
            if self.is_finished() {
                return End::Finished;
            }
            let owed = !self.delivery.is_idle();
            self.desk.attend(&mut self.delivery);
            if session.unwritten() < UNWRITTEN {
                let now = Instant::now();
                self.delivery
                    .fill(now.into_std(), now_ms(), session.output());
                if !owed {
                    session.start_waiting();
                }
            }
            if self.desk.clears_claims(&mut self.delivery) {
                continue;
            }
            let lines_welcome = self.lines_welcome();
            let deadline = self.deadline(&session, lines_welcome);
            tokio::select! {
                progress = session.progress() => {
                    if let Err(error) = progress {
                        return End::Lost(error.to_string());
                    }
                    if let Err(Hangup(reason)) = self.take_replies(&mut session) {
                        return End::Lost(reason);
                    }
                    if !proved {
                        proved = true;
                        link.proved();
                    }
                }
                told = self.desk.told() => self.desk.take(told, &mut self.delivery),
                record = self.intake.receive(lines_welcome) => self.absorb(record).await,
                () = &mut moved => return End::Lost(MOVED.to_owned()),
                () = until(deadline) => {
                    if !self.delivery.is_idle() && Instant::now() >= session.deadline() {
                        return End::Lost("no answer for 10 s".to_owned());
                    }
                }
            }
            self.show(false);
        }
    }

    fn take_replies(&mut self, session: &mut Session) -> Result<(), Hangup> {
        let now = std::time::Instant::now();
        let outcome = session.replies(|reply, out| self.delivery.reply(reply, now, out));
        for notice in self.delivery.notices() {
            tell(&notice);
            // A master that was demoted: the sentinels know the new one.
            if let (Notice::Refusing { error }, Follows::Sentinels) = (&notice, self.follows)
                && error.starts_with("READONLY")
            {
                return Err(Hangup(error.clone()));
            }
        }
        outcome
    }

    /// A full backlog holds the readers up while Redis acknowledges or the disk is about to
    /// take some; otherwise the oldest lines make room.
    fn lines_welcome(&self) -> bool {
        if !self.delivery.backlog.is_full() {
            return true;
        }
        let now = std::time::Instant::now();
        !self.delivery.is_acknowledging(now)
            && self.desk.when_full(now, &self.delivery) == WhenFull::Drop
    }

    fn deadline(&self, session: &Session, lines_welcome: bool) -> Option<Instant> {
        let retry = self.delivery.deadline().map(Instant::from_std);
        let silence = (!self.delivery.is_idle()).then(|| session.deadline());
        // Whether Redis still acknowledges is a question of time.
        let acknowledging = (!lines_welcome).then(|| Instant::now() + Duration::from_millis(200));
        [
            retry,
            silence,
            acknowledging,
            self.closing,
            self.gauge_due(),
            self.desk.deadline(&self.delivery),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    async fn absorb(&mut self, record: Option<Record>) {
        let now = std::time::Instant::now();
        let came = record.is_some();
        match record {
            Some(Record::Lines(lines)) => self.delivery.backlog.push_lines(lines, now),
            Some(Record::Entry(entry)) => self.delivery.backlog.push_entry(entry, now),
            Some(record @ (Record::Count(_) | Record::Gauges(_))) => {
                if let Some(values) = &self.to_values {
                    // The value loop always receives: this does not wait for Redis.
                    let _ = values.send(record).await;
                }
            }
            None => {}
        }
        // A lane that closed brought nothing: what is there is left to the disk.
        if came {
            self.make_room(now);
        }
        if self.intake.is_closed() && self.closing.is_none() {
            self.closing = Some(Instant::now() + self.farewell.patience);
            self.delivery.last_words();
            self.to_values = None;
        }
        self.show(false);
    }

    /// Memory holds no more than its bound: what the journal has is let go of first, and only
    /// the rest is lost.
    fn make_room(&mut self, now: std::time::Instant) {
        let backlog = &self.delivery.backlog;
        if backlog.is_overfull() || (backlog.is_full() && self.lines_welcome()) {
            self.delivery.backlog.put_away(now);
            self.delivery.backlog.shrink();
        }
    }

    fn is_finished(&mut self) -> bool {
        let Some(farewell) = self.closing else {
            return false;
        };
        let finished = self.delivery.backlog.is_empty() || Instant::now() >= farewell;
        if finished {
            self.show(true);
        }
        finished
    }

    /// When the gauge should follow although nothing happens.
    fn gauge_due(&self) -> Option<Instant> {
        self.behind.then(|| self.gauged + GAUGE_EVERY)
    }

    /// Lets the gauge follow: at once when nothing is left, else a few times a second.
    fn show(&mut self, at_once: bool) {
        // What waits for Redis: nothing, where there is none.
        let (bytes, entries) = match self.delivery.backlog.purpose() {
            Purpose::Delivery => self.delivery.backlog.held(),
            Purpose::Store => (0, 0),
        };
        let dropped = self.delivery.backlog.dropped();
        let (shown, shown_dropped) = {
            let gauge = self.gauge.borrow();
            (gauge.spooled_lines, gauge.dropped)
        };
        self.behind = entries != shown || dropped != shown_dropped;
        let emptied = entries == 0 && shown != 0;
        let due = self.gauged.elapsed() >= GAUGE_EVERY && self.behind;
        if at_once || emptied || due {
            self.gauged = Instant::now();
            self.behind = false;
            self.gauge.send_modify(|gauge| {
                gauge.spooled_lines = entries;
                gauge.spooled_bytes = bytes as u64;
                gauge.dropped = dropped;
            });
        }
    }
}

/// The sink's own words go to the log only: as records they would chase their own tail.
fn tell(notice: &Notice) {
    match notice {
        Notice::Refusing { error } => {
            tracing::warn!("Redis accepts nothing at the moment: {error}; lines wait");
        }
        Notice::Accepting => tracing::info!("Redis accepts again"),
        Notice::Stuck { key, error } => {
            tracing::warn!("stream {key} refuses: {error}; its lines wait for up to a minute");
        }
        Notice::GaveUp { key, count } => {
            tracing::error!("stream {key} has refused for a minute: dropped {count} entries");
        }
        Notice::ServerIds { key } => {
            tracing::warn!(
                "stream {key}: its last ID may not be asked for (XINFO), so Redis gives the \
                 IDs, and a line may stand twice after a lost connection"
            );
        }
    }
}

pub async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
