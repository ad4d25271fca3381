//! Event → fleet → orders, feeds, standings, words, replies.
//!
//! One loop, which waits for its inbox, for the next deadline, and for nothing else. What a
//! neighbour cannot take at once waits in a lane of its own; only words have a bound, beyond
//! which they are counted as dropped.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use super::awaited::Awaited;
use super::chart;
use super::chronicle::Chronicle;
use super::crashes::Crashes;
use super::debugger;
use super::fleet::{self, Ask, Fleet, Presence};
use super::lane::Lane;
use super::machine;
use super::notice::Notice;
use super::notify::Notify;
use super::probe::Keys;
use super::reap::{Order, Orders};
use super::share;
use super::status::{self, Own, Question};
use super::tasks::{Command, Output};
use super::watch::{Seen, Watches};
use crate::clock;
use crate::config::lifecycle::ReadyBy;
use crate::config::{Agent, Config};
use crate::event::{AgentSignal, Event};
use crate::handoff::{
    AskRedis, Board, Dying, Feed, HealthGauge, LineOptions, Pipes, SinkGauge, Standing, State, Tee,
};
use crate::record::{self, Entry, Record, StatusEvent, StreamKind, end_run_marker, new_run_marker};
use crate::request::{Reply, Request, RequestId};
use crate::service::{Exit, RunId, ServiceId, Signal};

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

    /// A signal that is the application's. TERM also begins the end, so that an application
    /// that ignores it ends all the same; INT does where there is nobody to send it to.
    fn forward(&mut self, signal: Signal) -> Option<i32> {
        let active = self.fleet.units().any(|unit| unit.machine.is_active());
        let ends = signal == Signal::TERM || signal == Signal::INT && !active;
        if ends && !self.fleet.is_leaving() {
            return self.step(fleet::Input::Shutdown);
        }
        if signal == Signal::TSTP {
            // A terminal's Ctrl-Z: the shell waits for the wrapper to stop as well.
            self.orders.give(Order::Pause);
            return None;
        }
        for unit in self.fleet.units() {
            let run = unit.machine.run();
            self.orders.give(Order::Signal { run, signal });
        }
        None
    }

    fn request(&mut self, id: RequestId, request: Request) -> Option<i32> {
        let ask = |what, services, wait| fleet::Input::Ask {
            id,
            what,
            services,
            wait,
        };
        let now = Instant::now();
        let reply = match request {
            Request::Start { services, wait } => {
                return self.step(ask(Ask::Start, services, wait));
            }
            Request::Stop { services, wait } => return self.step(ask(Ask::Stop, services, wait)),
            Request::Restart { services, wait } => {
                return self.step(ask(Ask::Restart, services, wait));
            }
            Request::Signal { signal, services } => match Signal::parse(&signal) {
                Some(signal) => return self.step(ask(Ask::Signal(signal), services, false)),
                None => Reply::refused(format!("no signal {signal:?}")),
            },
            Request::Shutdown => {
                self.replies
                    .send((id, Reply::done(serde_json::Value::Null)));
                return self.hear(Event::Signal(AgentSignal::Shutdown));
            }
            Request::Core(copy) => self.copied_by_kernel(*copy),
            Request::Stacks { service } => {
                self.order_about(id, &service, |id, run| Order::Copy { id, run });
                return None;
            }
            Request::Detach { service } => {
                self.order_about(id, &service, |id, run| Order::Detach { id, run });
                return None;
            }
            Request::Reload { dry_run: true, .. } => match (self.reload)() {
                Ok(new) => Reply::done(self.plan(&new)),
                Err(why) => Reply::refused(why),
            },
            Request::Reload { wait: true, .. } => return self.reload(Some(id)),
            Request::Reload { wait: false, .. } => {
                let over = self.reload(None);
                self.replies
                    .send((id, Reply::done(serde_json::Value::Null)));
                return over;
            }
            Request::Status { services, pss } => {
                let sink = self.sink.borrow().clone();
                let document = {
                    let health = self.health.borrow();
                    status::document(&self.fleet, &self.own, &sink, &health, &services, now)
                };
                match document.map(|document| self.with_crash_ids(document)) {
                    Ok(document) if pss => {
                        let replies = self.replies.channel();
                        tokio::task::spawn_blocking(move || {
                            let mut document = document;
                            share::add(&mut document);
                            // At the very end nobody listens.
                            let _ = replies.blocking_send((id, Reply::done(document)));
                        });
                        return None;
                    }
                    Ok(document) => Reply::done(document),
                    Err(why) => Reply::refused(why),
                }
            }
            Request::Graph => Reply::done(chart::document(&self.fleet)),
            Request::Events { after, wait: true } => {
                self.chronicle.follow(id, after, now);
                return None;
            }
            Request::Events { after, wait: false } => self.chronicle.after(after),
            Request::Wait {
                services,
                state,
                timeout_ms,
            } => {
                self.wait(id, &services, state, timeout_ms);
                return None;
            }
            Request::Probe { ready, services } => {
                let question = if ready {
                    Question::Ready
                } else {
                    Question::Live
                };
                let answer =
                    status::probe(&self.fleet, question, &self.sink.borrow(), &services, now);
                match serde_json::to_value(answer) {
                    Ok(answer) => Reply::done(answer),
                    Err(error) => Reply::refused(error.to_string()),
                }
            }
        };
        self.replies.send((id, reply));
        None
    }

    /// A configuration with an error changes nothing.
    fn reload(&mut self, asked: Option<RequestId>) -> Option<i32> {
        let new = match (self.reload)() {
            Ok(new) => new,
            Err(why) => {
                error!("the configuration was not reloaded: {why}");
                if let Some(id) = asked {
                    self.replies.send((id, Reply::refused(why)));
                }
                return None;
            }
        };
        let plan = self.plan(&new);
        info!("reloading the configuration: {plan}");
        self.notify.reloading();
        let asked = asked.map(|id| (id, plan));
        let mut out = Vec::new();
        self.fleet
            .reload(&new.agent, &new.services, asked, Instant::now(), &mut out);
        self.config.services = new.services;
        self.config.agent.main = new.agent.main;
        self.config.agent.shutdown_timeout = new.agent.shutdown_timeout;
        self.carry_out(out)
    }

    /// What a reload changes, and what it cannot change while the agent runs.
    fn plan(&self, new: &Config) -> serde_json::Value {
        let old = &self.config;
        let mut later = Vec::new();
        let live = Agent {
            main: new.agent.main.clone(),
            shutdown_timeout: new.agent.shutdown_timeout,
            ..old.agent.clone()
        };
        for (differs, table) in [
            (live != new.agent, "agent"),
            (old.redis != new.redis, "redis"),
            (old.spool != new.spool, "spool"),
            (old.health != new.health, "health"),
        ] {
            if differs {
                later.push(table);
            }
        }
        let mut plan = serde_json::json!(self.fleet.plan(&new.services));
        plan["after_agent_restart"] = later.into();
        plan
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

    fn act(&mut self, id: ServiceId, action: machine::Out) {
        use machine::Out;
        let Some(unit) = self.fleet.unit(id) else {
            return;
        };
        let streams = unit.streams.clone();
        let name = unit.machine.service().name.clone();
        let at_ms = clock::now_ms();
        let marker = |text| Entry::plain(&streams, StreamKind::Status, at_ms, text);
        match action {
            Out::Spawn(run) => {
                let service = unit.machine.service().clone();
                let handed = self.watches.open(run, &service);
                self.orders.give(Order::Spawn {
                    run,
                    service,
                    handed,
                });
            }
            Out::Signal(run, signal) => self.orders.give(Order::Signal { run, signal }),
            Out::KillTree(run) => self.orders.give(Order::KillTree { run }),
            Out::Hung(run) => self.orders.give(Order::Hung { run }),
            Out::Opened => {
                let debug = unit.machine.service().debug.clone();
                let executable = unit.machine.service().executable.clone();
                self.say(marker(new_run_marker(&clock::local_stamp(at_ms))));
                if let Some(debug) = debug {
                    let banner = debugger::banner(&debug, &executable);
                    self.say(Entry::plain(
                        &streams,
                        StreamKind::Status,
                        at_ms,
                        debugger::PAUSED,
                    ));
                    self.say(Entry::plain(
                        &streams,
                        StreamKind::Status,
                        at_ms,
                        banner.clone(),
                    ));
                    match self.manner {
                        // Nobody need read our stdout.
                        Manner::Wrapp => drop(writeln!(std::io::stdout(), "{banner}")),
                        Manner::Agent => info!(service = %name, "{}\n{banner}", debugger::PAUSED),
                    }
                }
            }
            Out::Say(event) => {
                // Of an application that runs once its exit says all, and the end marker is
                // its last word.
                if self.manner == Manner::Wrapp && matches!(event, StatusEvent::Failed { .. }) {
                    return;
                }
                log(&name, &event);
                let entry = Entry::status(&streams, at_ms, &event);
                self.happened(id, "", &entry);
                self.say(entry);
                if let (Manner::Wrapp, StatusEvent::Exit { exit, .. }) = (self.manner, &event)
                    && let Some(text) = record::bad_end(*exit)
                {
                    self.say(Entry::plain(&streams, StreamKind::Error, at_ms, text));
                }
            }
            Out::Trouble(what) => {
                error!(service = %name, "{what}");
                let entry = Entry::plain(&streams, StreamKind::Error, at_ms, what);
                self.happened(id, "error", &entry);
                self.say(entry);
            }
            Out::Trimmed(run) => self.feed.send(Feed::Trim { run, streams }),
            Out::Ended(run, exit) => {
                self.watches.over(run);
                self.feed.send(Feed::End { run, exit });
            }
            Out::NeverRan(run, exit) => {
                self.watches.over(run);
                self.feed.send(match self.opened.remove(&run) {
                    // What came before it has spoken.
                    true => Feed::End { run, exit },
                    false => Feed::NeverRan {
                        run,
                        streams,
                        exit,
                        at_ms,
                    },
                });
            }
            Out::Closed(exit) => {
                let stamp = clock::local_stamp(at_ms);
                self.say(marker(end_run_marker(&stamp, exit.code())));
            }
            Out::Overdue(left) => {
                let what = match (left.tree, left.output) {
                    (true, _) => "processes",
                    (false, _) => "output",
                };
                warn!(service = %name, "the run is over, but not all of its {what}");
            }
        }
    }

    /// What the board's sensors said last.
    pub(super) fn board(&self) -> Arc<Board> {
        self.health.borrow().device.clone()
    }

    fn open(&mut self, run: RunId, pipes: Pipes) {
        let Some(unit) = self.fleet.unit(run.service) else {
            return;
        };
        let readiness = unit.machine.service().lifecycle.ready.as_ref();
        let awaited = match readiness.map(|ready| &ready.by) {
            // The configuration was refused where it is not one.
            Some(ReadyBy::Log(pattern)) => regex_lite::Regex::new(pattern).ok(),
            Some(_) | None => None,
        };
        self.feed.send(Feed::Open {
            run,
            streams: unit.streams.clone(),
            pipes,
            awaited,
            options: LineOptions {
                max_line: unit.machine.service().max_line,
                multi_line: unit.machine.service().multi_line,
                tee: self.tee,
            },
            at_ms: clock::now_ms(),
        });
    }

    pub(super) fn say(&mut self, entry: Entry) {
        if self.words.waiting() >= WORDS_LIMIT {
            entry.streams.tally.add_dropped(1);
            return;
        }
        self.words.send(Record::Entry(entry));
    }

    pub(super) fn stand(&mut self, id: ServiceId) {
        let Some(unit) = self.fleet.unit(id) else {
            return;
        };
        let machine = &unit.machine;
        let state = machine.shown();
        let told = self.since.get(&id).copied();
        let since_ms = match told {
            Some((told, since_ms)) if told == state => since_ms,
            Some(_) | None => clock::now_ms(),
        };
        self.since.insert(id, (state, since_ms));
        let gone = unit.presence == Presence::Gone;
        let standing = Standing {
            id,
            service: machine.service().name.clone(),
            streams: unit.streams.clone(),
            state,
            pid: machine.life().map(|life| life.pid),
            restarts: machine.restarts(),
            exit: machine.exit().map(Exit::code),
            crash_id: self.crashes.latest(id).cloned(),
            since_ms,
            pools: machine.service().pools.clone(),
            checks: machine.service().checks.clone(),
            removed: gone,
        };
        match told.map(|(told, _)| told) {
            Some(told) if told == state => {}
            was => self.changed(id, was, state),
        }
        if gone {
            self.removed(id);
        }
        // Only the latest of each service is worth telling.
        self.standings
            .forget(|waiting| waiting.service == standing.service);
        self.standings.send(standing);
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

/// What operators read in the agent's own output.
fn log(name: &crate::service::ServiceName, event: &StatusEvent) {
    match event {
        StatusEvent::Start { pid } => info!(service = %name, "started with pid {pid}"),
        StatusEvent::Ready => info!(service = %name, "ready"),
        StatusEvent::Exit {
            exit,
            out_of_memory,
        } => {
            let why = if *out_of_memory {
                ": the kernel was out of memory"
            } else {
                ""
            };
            info!(service = %name, "exited with code {}{why}", exit.code());
        }
        StatusEvent::Restart { delay_ms } => info!(service = %name, "restarting in {delay_ms} ms"),
        StatusEvent::Stop { signal } => info!(service = %name, "stopping with {signal}"),
        StatusEvent::Failed { reason } => error!(service = %name, "failed: {reason}"),
        StatusEvent::Health { check, healthy } => match healthy {
            true => info!(service = %name, "check {check} is healthy"),
            false => warn!(service = %name, "check {check} is unhealthy"),
        },
        // Said by others.
        StatusEvent::Crash { .. } | StatusEvent::Dropped { .. } | StatusEvent::Reload { .. } => {}
    }
}
