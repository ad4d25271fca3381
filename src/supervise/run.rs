//! Event → fleet → orders, feeds, standings, words, replies.
//!
//! One loop, which waits for its inbox, for the next deadline, and for nothing else. What a
//! neighbour cannot take at once waits in a lane of its own; only words have a bound, beyond
//! which they are counted as dropped.

mod acts;
mod requests;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::awaited::Awaited;
use super::chronicle::Chronicle;
use super::crashes::Crashes;
use super::fleet::{self, Fleet};
use super::lane::Lane;
use super::machine;
use super::notice::Notice;
use super::notify::Notify;
use super::probe::Keys;
use super::reap::{Order, Orders};
use super::status::Own;
use super::tasks::{Command, Output};
use super::watch::{Seen, Watches};
use crate::config::Config;
use crate::event::{AgentSignal, Event};
use crate::handoff::{AskRedis, Dying, Feed, HealthGauge, SinkGauge, Standing, State, Tee};
use crate::record::Record;
use crate::request::{Reply, RequestId};
use crate::service::{RunId, ServiceId};

/// For whom a signal to the agent is meant, and who reads the `error` streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// The agent's own services: `error` holds the agent's troubles with them.
    Agent,
    /// One wrapped application: `error` also holds its bad end, as it always did.
    Wrapp,
}

/// What the supervisor holds of its neighbours.
pub struct Hands {
    pub manner: Manner,
    pub inbox: mpsc::Receiver<Event>,
    pub orders: Orders,
    pub feed: mpsc::Sender<Feed>,
    pub standings: mpsc::Sender<Standing>,
    pub words: mpsc::Sender<Record>,
    pub dying: mpsc::Sender<Dying>,
    pub replies: mpsc::Sender<(RequestId, Reply)>,
    pub sink: watch::Receiver<SinkGauge>,
    pub health: watch::Receiver<HealthGauge>,
    pub reload: Load,
    /// For readiness by a key of Redis.
    pub redis: AskRedis,
}

/// Reads the configuration anew; the error is what `agent check` would say.
pub type Load = Box<dyn FnMut() -> Result<Config, String>>;

/// Supervises until everything is over.
///
/// Returns the agent's exit code: 0 after an ordered shutdown, or that of `main`, or of the
/// service that ended the agent.
pub async fn run(config: Config, hands: Hands) -> i32 {
    let now = Instant::now();
    let fleet = Fleet::new(&config.agent, &config.services, now);
    let Hands {
        manner,
        mut inbox,
        orders,
        feed,
        standings,
        words,
        dying,
        replies,
        sink,
        health,
        reload,
        redis,
    } = hands;
    let keys = Keys {
        ask: redis,
        prefix: config.redis.key_prefix.clone(),
    };
    let (watches, mut seen) = Watches::new(orders.clone(), keys);
    let mut shell = Shell {
        watches,
        manner,
        tee: match (config.agent.tee, config.services.len()) {
            (false, _) => Tee::Off,
            (true, 0 | 1) => Tee::Plain,
            (true, _) => Tee::Labelled,
        },
        own: Own {
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            since: now,
            state_dir: config.agent.state_dir.clone(),
            config: config.file.clone(),
            redis_url: config.redis.shown_url(),
        },
        fleet,
        orders,
        feed: Lane::new(feed),
        standings: Lane::new(standings),
        words: Lane::new(words),
        dying: Lane::new(dying),
        crashes: Crashes::default(),
        replies: Lane::new(replies),
        sink,
        health,
        reload,
        config,
        notify: Notify::from_environment(),
        opened: HashSet::new(),
        since: HashMap::new(),
        chronicle: Chronicle::default(),
        awaited: Awaited::default(),
    };
    let mut code = shell.step(fleet::Input::Time);
    while code.is_none() {
        shell.tell_waiting();
        let deadline = shell.deadline();
        tokio::select! {
            // What has happened comes before what is merely late.
            biased;
            event = inbox.recv() => {
                code = match event {
                    Some(event) => shell.hear(event),
                    None => Some(0),
                };
            }
            Some(seen) = seen.recv() => code = shell.see(seen),
            () = shell.feed.flush() => {}
            () = shell.standings.flush() => {}
            () = shell.words.flush() => {}
            () = shell.replies.flush() => {}
            () = shell.dying.flush() => {}
            () = until(deadline) => code = shell.step(fleet::Input::Time),
        }
    }
    shell.tell_waiting();
    shell.tell_the_end(&mut inbox).await;
    shell.finish().await;
    code.unwrap_or(0)
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Words that wait while the outbox takes none.
const WORDS_LIMIT: usize = 4096;
/// The last words and answers are given that long to leave.
const FINISH: Duration = Duration::from_millis(500);

/// The fleet, with hands.
pub(super) struct Shell {
    manner: Manner,
    pub(super) fleet: Fleet,
    pub(super) orders: Orders,
    watches: Watches,
    feed: Lane<Feed>,
    standings: Lane<Standing>,
    words: Lane<Record>,
    pub(super) dying: Lane<Dying>,
    pub(super) replies: Lane<(RequestId, Reply)>,
    pub(super) crashes: Crashes,
    sink: watch::Receiver<SinkGauge>,
    health: watch::Receiver<HealthGauge>,
    reload: Load,
    /// What is in force; of a reload, only the parts that a running agent can take.
    pub(super) config: Config,
    notify: Notify,
    tee: Tee,
    pub(super) own: Own,
    /// Runs whose output was opened before their main process lived.
    opened: HashSet<RunId>,
    /// The state that was last told of each service, and since when (Unix milliseconds).
    since: HashMap<ServiceId, (State, u64)>,
    /// What happened last.
    pub(super) chronicle: Chronicle,
    /// Who waits for a state.
    pub(super) awaited: Awaited,
}

impl Shell {
    fn deadline(&self) -> Option<Instant> {
        self.fleet
            .deadline()
            .into_iter()
            .chain(self.notify.deadline())
            .chain(self.chronicle.deadline())
            .chain(self.awaited.deadline())
            .min()
    }

    /// The exit code, once all is over.
    fn hear(&mut self, event: Event) -> Option<i32> {
        use machine::Input;
        let of = |run: RunId, input| fleet::Input::Of(run.service, input);
        let input = match event {
            Event::Opened { run, pipes } => {
                self.open(run, pipes);
                self.opened.insert(run);
                return None;
            }
            Event::Spawned { run, pid, pipes } => {
                if let Some(pipes) = pipes {
                    self.open(run, pipes);
                }
                self.opened.remove(&run);
                if let Some(unit) = self.fleet.unit(run.service) {
                    self.watches.begin(run, pid, unit.machine.service());
                }
                of(run, Input::Spawned { run, pid })
            }
            Event::OutOfMemory { run } => of(run, Input::OutOfMemory { run }),
            Event::SpawnFailed { run, failure } => of(run, Input::SpawnFailed { run, failure }),
            Event::Exited { run, exit } => of(run, Input::Exited { run, exit }),
            Event::Crashed { run, snapshot } => {
                self.crashed(run, snapshot);
                return None;
            }
            Event::Hung { run, snapshot } => {
                self.hung(run, snapshot);
                return None;
            }
            Event::Left(copy) => {
                self.copied_by_kernel(*copy);
                return None;
            }
            Event::Stacks { id, run, result } => {
                self.copied(id, run, result);
                return None;
            }
            Event::Detached { id, result } => {
                let reply = match result {
                    Ok(()) => Reply::done(serde_json::Value::Null),
                    Err(why) => Reply::refused(why),
                };
                self.replies.send((id, reply));
                return None;
            }
            Event::TreeGone { run } => of(run, Input::TreeGone { run }),
            Event::Drained { run } => of(run, Input::Drained { run }),
            Event::Ready { run } => of(run, Input::Ready { run }),
            Event::Verdict {
                service,
                check,
                healthy,
                restart,
            } => fleet::Input::Verdict {
                service,
                check,
                healthy,
                restart,
            },
            Event::Command {
                service,
                words,
                limit,
                tell,
            } => {
                // Where the service is gone, so is who asked.
                if let Some(unit) = self.fleet.unit(service) {
                    let service = unit.machine.service().clone();
                    self.orders.give(Order::Command(Command {
                        service,
                        words,
                        output: Output::Heard,
                        limit,
                        tell,
                    }));
                }
                return None;
            }
            Event::Pools { service, edges } => {
                self.pools(service, &edges);
                return None;
            }
            Event::Board(entry) => {
                self.of_board(&entry);
                return None;
            }
            // The sink's gauge says the same to whoever asks.
            Event::Redis { connected } => {
                self.redis(connected);
                fleet::Input::Time
            }
            Event::Request { id, request } => return self.request(id, request),
            Event::Signal(AgentSignal::Shutdown) => {
                match self.fleet.is_leaving() {
                    false => {
                        info!("shutting down");
                        self.leaving();
                    }
                    true => info!("asked again: killing what is left"),
                }
                fleet::Input::Shutdown
            }
            Event::Signal(AgentSignal::Forward(signal)) => return self.forward(signal),
            Event::Signal(AgentSignal::Reload) => return self.reload(None),
        };
        self.step(input)
    }

    /// What a watcher saw.
    fn see(&mut self, seen: Seen) -> Option<i32> {
        use machine::Input;
        let (run, input) = match seen {
            Seen::Ready(run) => (run, Input::Ready { run }),
            Seen::Notice(run, notice) => {
                if let Notice::MainPid(pid) = notice {
                    self.orders.give(Order::MainPid { run, pid });
                }
                (run, Input::Notice { run, notice })
            }
        };
        self.step(fleet::Input::Of(run.service, input))
    }

    fn step(&mut self, input: fleet::Input) -> Option<i32> {
        let mut out = Vec::new();
        self.fleet.step(Instant::now(), input, &mut out);
        self.carry_out(out)
    }

    /// The exit code, once all is over.
    fn carry_out(&mut self, out: Vec<fleet::Out>) -> Option<i32> {
        let mut code = None;
        for action in out {
            match action {
                fleet::Out::Of(id, action) => self.act(id, action),
                fleet::Out::Standing(id) => self.stand(id),
                fleet::Out::Reply(id, reply) => self.replies.send((id, reply)),
                fleet::Out::End(end) => code = Some(end),
            }
        }
        self.notify.tell(&self.fleet, || self.orders.comes_round());
        code
    }

    /// The last words, standings and answers leave.
    async fn finish(&mut self) {
        let lanes = async {
            self.words.finish().await;
            self.feed.finish().await;
            self.standings.finish().await;
            self.dying.finish().await;
            self.replies.finish().await;
        };
        if tokio::time::timeout(FINISH, lanes).await.is_err() {
            warn!("not everything could be told before the end");
        }
    }
}
