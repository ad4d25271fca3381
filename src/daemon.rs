//! configuration → a running agent → exit code: wiring only.
//!
//! Creates every channel of the house, starts every loop, and ends them in order: first the
//! supervisor (all services are down by then), then what services still had to say, then the
//! sink once it has delivered it. No decision is made here.
//!
//! Three threads: the main thread forks, waits and kills (`supervise::reap`); this runtime
//! does everything else; the journal gets one of its own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::config::{self, Config, Identity};
use crate::control::bind::{self, BindError, Bound, Place};
use crate::control::peer::Access;
use crate::control::server;
use crate::crash::capture::Ptrace;
use crate::crash::kernel::Ownership;
use crate::event::Event;
use crate::handoff::{HealthGauge, SinkGauge};
use crate::health::check::Means;
use crate::health::device::Device;
use crate::health::keeper::Keeper;
use crate::health::run::Found;
use crate::record::{Record, Trim};
use crate::sink::backlog::Unwritten;
use crate::sink::run::Farewell;
use crate::supervise::accounts;
use crate::supervise::reap::{self, Order, Orders};
use crate::supervise::run::{Hands, Manner};
use crate::{crash, health, logs, signals, sink, slim, supervise};

/// Events that may wait for the supervisor, which waits for nothing else.
const INBOX: usize = 4096;
/// Folder of the journal below the state folder.
pub const SPOOL: &str = "spool";
/// Chunks of lines that may wait for the sink beside its own bound: small, because their
/// memory is counted nowhere else.
const LINES: usize = 8;
/// Life-cycle entries and values that may wait for the sink, which always receives.
const WORDS: usize = 4096;

/// Copies of dying processes, megabytes each.
const DYING: usize = 2;
/// A crash that ends the agent is worth waiting for.
const LAST_CRASHES: Duration = Duration::from_secs(15);

/// Where records end.
pub enum Outlet {
    Redis,
    /// There is none: the demonstration shows them instead.
    Shown(fn(&Record)),
}

/// How the agent appears: as itself, or as the wrapper of one application.
pub struct Guise {
    /// The control socket is `<socket>.sock`.
    pub socket: String,
    /// Its second name.
    pub alias: Option<&'static str>,
    pub manner: Manner,
    pub farewell: Farewell,
    /// Hears what happens, as it happens.
    pub told: Box<dyn FnMut(News<'_>) + Send>,
}

/// What a guise may want to tell in its own words.
pub enum News<'g> {
    /// Delivery stands otherwise than before.
    Redis(&'g SinkGauge),
    /// The supervisor has ended, with this exit code; delivery goes on.
    Ended(i32),
    /// Delivery has ended too.
    Over,
}

impl Guise {
    pub fn agent() -> Guise {
        Guise {
            socket: "agent".to_owned(),
            alias: None,
            manner: Manner::Agent,
            farewell: sink::run::FAREWELL,
            told: Box::new(|_| {}),
        }
    }
}

/// Runs the agent until it is told to end, or its `main` service does. Returns the exit code.
///
/// Must be called on the main thread, before any other thread exists.
pub fn run(config: Config, reload: Reload, outlet: Outlet) -> i32 {
    run_as(Guise::agent(), config, reload, outlet)
}

/// [`run`] in another guise.
pub fn run_as(guise: Guise, config: Config, reload: Reload, outlet: Outlet) -> i32 {
    let (orders, mut reaper) = match reap::channel() {
        Ok(channel) => channel,
        Err(error) => {
            tracing::error!("cannot prepare for child processes: {error}");
            return 1;
        }
    };
    let listens = Arc::new(OnceLock::new());
    let kernel = Ownership::of(listens.clone(), handler_sockets);
    reaper.trace_with(Box::new(Ptrace::beside(kernel)));
    let (inbox_in, inbox) = mpsc::channel(INBOX);
    let house = House {
        config,
        reload,
        outlet,
        guise,
        orders: orders.clone(),
        inbox_in: inbox_in.clone(),
        inbox,
        listens,
    };
    let thread = std::thread::Builder::new()
        .name("agent".to_owned())
        .spawn(move || {
            let code = house.live();
            orders.give(Order::Quit);
            code
        });
    match thread {
        Ok(thread) => {
            reaper.run(inbox_in);
            thread.join().unwrap_or(1)
        }
        Err(error) => {
            tracing::error!("cannot start a thread: {error}");
            1
        }
    }
}

/// Loads the configuration anew, or says in words why that cannot be.
pub type Reload = Box<dyn Fn() -> Result<Config, String> + Send>;

/// The control socket and its second name.
struct Places {
    bound: Option<Bound>,
    alias: Option<Place>,
}

/// In the runtime folder or, where that cannot be, in a place of our own.
fn place(config: &Config, guise: &Guise) -> Result<Places, BindError> {
    let group = config.agent.group.as_deref().and_then(|name| {
        let found = group_id(name);
        if found.is_none() {
            tracing::warn!("unknown group {name}: the control socket stays root's");
        }
        found
    });
    let folders = [
        config.agent.runtime_dir.clone(),
        crate::control::client::temporary_folder(),
    ];
    let mut places = Places {
        bound: None,
        alias: None,
    };
    for folder in &folders {
        match bind::bind(folder, &guise.socket, group) {
            Ok(bound) => {
                places.alias = guise.alias.and_then(|name| second(&bound.place, name));
                places.bound = Some(bound);
                return Ok(places);
            }
            Err(another @ BindError::Another { .. }) => match guise.manner {
                Manner::Agent => return Err(another),
                // Two applications of one stream were always allowed.
                Manner::Wrapp => {
                    tracing::warn!("{another}: running without a control socket");
                    return Ok(places);
                }
            },
            Err(unusable @ BindError::Unusable { .. }) => match guise.manner {
                Manner::Agent => {
                    tracing::warn!("no control socket in {}: {unusable}", folder.display());
                }
                Manner::Wrapp => {
                    tracing::info!("no control socket in {}: {unusable}", folder.display());
                }
            },
        }
    }
    tracing::warn!("running without a control socket: agent status and --probe find nobody");
    Ok(places)
}

fn second(place: &Place, name: &str) -> Option<Place> {
    bind::alias(place, name)
        .inspect_err(|error| tracing::info!("no second name for the control socket: {error}"))
        .ok()
}

/// By name or number.
fn group_id(name: &str) -> Option<u32> {
    let file = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let who = match name.parse() {
        Ok(number) => Identity::Id(number),
        Err(_) => Identity::Name(name.to_owned()),
    };
    accounts::find_group(&file, &who)
}

/// Everything that lives on the second thread.
struct House {
    config: Config,
    reload: Reload,
    outlet: Outlet,
    guise: Guise,
    orders: Orders,
    inbox_in: mpsc::Sender<Event>,
    inbox: mpsc::Receiver<Event>,
    /// Told where, once it does.
    listens: Arc<OnceLock<PathBuf>>,
}

impl House {
    fn live(self) -> i32 {
        match tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        {
            Ok(runtime) => {
                let code = runtime.block_on(self.run());
                // A name lookup may hang in a thread; nothing waits for it.
                runtime.shutdown_background();
                code
            }
            Err(error) => {
                tracing::error!("cannot start the runtime: {error}");
                1
            }
        }
    }

    async fn run(self) -> i32 {
        let (lines, lines_out) = mpsc::channel(LINES);
        let (words, words_out) = mpsc::channel(WORDS);
        let (feed, feed_out) = mpsc::channel(256);
        let (standings, standings_out) = mpsc::channel(256);
        let (beats, beats_out) = mpsc::channel(256);
        let (replies, replies_out) = mpsc::channel(256);
        let (sink_gauge, sink_seen) = watch::channel(SinkGauge::default());
        let (health_gauge, health_seen) = watch::channel(HealthGauge::default());
        let (dying, dying_out) = mpsc::channel(DYING);
        let settings = Settings::of(&self.config, self.guise.farewell);

        let inbox = self.inbox_in;
        let heard = match self.guise.manner {
            Manner::Agent => signals::forward(inbox.clone()),
            Manner::Wrapp => signals::forward_all(inbox.clone()),
        };
        if let Err(error) = heard {
            tracing::error!("signals to the agent cannot be heard: {error}");
        }
        // Who finds the socket may send signals: they are heard by now.
        let places = match place(&self.config, &self.guise) {
            Ok(places) => places,
            Err(error) => {
                tracing::error!("{error}");
                return 1;
            }
        };
        if let Some(bound) = &places.bound {
            // Set once, here.
            let _ = self.listens.set(bound.place.path().to_owned());
        }
        for copy in crash::kernel::left(&settings.crash.state_dir) {
            // More than the inbox holds are left for the next start.
            let _ = inbox.try_send(Event::Left(Box::new(copy)));
        }
        tokio::spawn(slim::later());
        let logs = tokio::spawn(logs::run::run_bounded(
            settings.open_blocks,
            feed_out,
            lines,
            beats,
            inbox.clone(),
        ));
        let orders = self.orders.clone();
        let crash = tokio::spawn(crash::run::run(
            settings.crash,
            crash::run::Hands {
                dying: dying_out,
                words: words.clone(),
                replies: replies.clone(),
                start: Box::new(move |helper| orders.give(Order::Help(helper))),
            },
        ));
        let health_words = words.clone();
        let asker = sink::ask::asker(settings.sink.redis.clone());
        let means = Means {
            inbox: inbox.clone(),
            redis: Some(asker.clone()),
            key_prefix: settings.sink.redis.key_prefix.clone(),
        };
        let health = tokio::spawn(async move {
            let keeper = Keeper::open(&settings.state_dir)
                .await
                .inspect_err(|error| {
                    let folder = settings.state_dir.display();
                    tracing::info!("beats of pools begin at 0, {folder} keeps none: {error}");
                })
                .ok();
            let found = Found {
                device: Some(Device::new(Path::new("/"), &settings.board, settings.trim)),
                keeper,
            };
            health::run::run_with(
                &settings.health,
                found,
                means,
                standings_out,
                beats_out,
                health_words,
                health_gauge,
            )
            .await;
        });
        let (socket, server) = match places.bound {
            Some(bound) => {
                let (listener, place) = (bound.listener, bound.place);
                (
                    Some(place),
                    serve(listener, settings.access, inbox.clone(), replies_out),
                )
            }
            None => (None, None),
        };
        let mut sink = match self.outlet {
            Outlet::Redis => tokio::spawn(sink::run::run(
                settings.sink,
                lines_out,
                words_out,
                inbox.clone(),
                sink_gauge,
            )),
            Outlet::Shown(show) => tokio::spawn(show_all(lines_out, words_out, show)),
        };
        drop(inbox);
        let mut gauge = sink_seen.clone();
        let mut told = self.guise.told;
        let hands = Hands {
            redis: asker,
            manner: self.guise.manner,
            inbox: self.inbox,
            orders: self.orders,
            feed,
            standings,
            words,
            dying,
            replies,
            sink: sink_seen,
            health: health_seen,
            reload: self.reload,
        };
        let supervised = supervise::run::run(self.config, hands);
        let code = hearing(supervised, &mut gauge, &mut told).await;
        told(News::Ended(code));

        // The supervisor dropped its ends: each loop below ends when it has done its part.
        let _ = logs.await;
        let _ = health.await;
        if tokio::time::timeout(LAST_CRASHES, crash).await.is_err() {
            tracing::warn!("the last crashes were not all analysed");
        }
        match hearing(&mut sink, &mut gauge, &mut told).await {
            Ok(Unwritten {
                lines: 0,
                entries: 0,
            })
            | Err(_) => {}
            Ok(Unwritten { lines, entries }) => {
                let lines = match lines {
                    1 => "1 line".to_owned(),
                    lines => format!("{lines} lines"),
                };
                tracing::warn!(
                    "Redis is away: {lines} and {entries} entries about runs could not be \
                     delivered and are lost"
                );
            }
        }
        told(News::Over);
        if let Some(server) = server {
            server.abort();
        }
        drop((socket, places.alias));
        code
    }
}

/// Waits for `what`, and tells meanwhile how delivery stands.
async fn hearing<T>(
    what: impl Future<Output = T>,
    gauge: &mut watch::Receiver<SinkGauge>,
    told: &mut (dyn FnMut(News<'_>) + Send),
) -> T {
    tokio::pin!(what);
    let mut open = true;
    loop {
        tokio::select! {
            // The last change comes with the end: it is told first.
            biased;
            changed = gauge.changed(), if open => match changed {
                Ok(()) => told(News::Redis(&gauge.borrow_and_update())),
                Err(_) => open = false,
            },
            outcome = &mut what => return outcome,
        }
    }
}

/// What the loops need of the configuration.
struct Settings {
    health: config::Health,
    state_dir: PathBuf,
    board: String,
    trim: Trim,
    /// Bytes of `>>|` blocks that are not closed yet.
    open_blocks: usize,
    sink: sink::run::Settings,
    crash: crash::run::Settings,
    access: Access,
}

impl Settings {
    fn of(config: &Config, farewell: Farewell) -> Settings {
        Settings {
            health: config.health.clone(),
            state_dir: config.agent.state_dir.clone(),
            board: match config.agent.board.as_str() {
                "" => rustix::system::uname()
                    .nodename()
                    .to_string_lossy()
                    .into_owned(),
                board => board.to_owned(),
            },
            trim: Trim {
                max_len: config.redis.max_len,
            },
            open_blocks: usize::try_from(config.spool.memory).unwrap_or(usize::MAX),
            crash: crash::run::Settings {
                state_dir: config.agent.state_dir.clone(),
                crash: config.crash.clone(),
            },
            sink: sink::run::Settings {
                redis: config.redis.clone(),
                spool: config.spool.clone(),
                folder: Some(config.agent.state_dir.join(SPOOL)),
                farewell,
            },
            access: Access {
                agent_uid: rustix::process::geteuid().as_raw(),
                group: config.agent.group.as_deref().and_then(group_id),
            },
        }
    }
}

fn serve(
    listener: std::os::unix::net::UnixListener,
    access: Access,
    inbox: mpsc::Sender<Event>,
    replies: mpsc::Receiver<(crate::request::RequestId, crate::request::Reply)>,
) -> Option<tokio::task::JoinHandle<()>> {
    match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => Some(tokio::spawn(server::run(listener, access, inbox, replies))),
        Err(error) => {
            tracing::error!("the control socket cannot be served: {error}");
            None
        }
    }
}

/// In place of the sink: nothing waits and nothing is kept.
async fn show_all(
    mut lines: mpsc::Receiver<Record>,
    mut words: mpsc::Receiver<Record>,
    show: fn(&Record),
) -> Unwritten {
    let (mut lines_open, mut words_open) = (true, true);
    while lines_open || words_open {
        tokio::select! {
            record = lines.recv(), if lines_open => match record {
                Some(record) => show(&record),
                None => lines_open = false,
            },
            record = words.recv(), if words_open => match record {
                Some(record) => show(&record),
                None => words_open = false,
            },
        }
    }
    Unwritten::default()
}

/// Where the kernel's handler looks for the agent: its environment is empty.
pub fn handler_sockets(config: Option<&Path>) -> Vec<PathBuf> {
    let usual = config.is_none().then(|| PathBuf::from(USUAL_SOCKET));
    let loaded = config::load::load(config, &config::Environment::default());
    let configured = loaded.map(|loaded| sockets_of(&loaded.config));
    let mut sockets: Vec<PathBuf> = usual
        .into_iter()
        .chain(configured.unwrap_or_default())
        .collect();
    sockets.dedup();
    sockets
}

const USUAL_SOCKET: &str = "/run/agent/agent.sock";

/// What it needs where no agent answers; without a configuration that can be read, the defaults.
pub fn handler_settings(config: Option<&Path>) -> crash::kernel::Settings {
    match config::load::load(config, &config::Environment::default()) {
        Ok(loaded) => crash::kernel::Settings {
            state_dir: loaded.config.agent.state_dir,
            keep: loaded.config.crash.keep,
            max_size: loaded.config.crash.max_size,
        },
        Err(_) => crash::kernel::Settings {
            state_dir: PathBuf::from(config::load::DEFAULT_STATE),
            keep: 16,
            max_size: 64 << 20,
        },
    }
}

/// Where an agent with this configuration listens, likeliest first.
pub fn sockets_of(config: &Config) -> Vec<PathBuf> {
    vec![config.agent.runtime_dir.join("agent.sock")]
}
