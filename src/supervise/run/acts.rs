//! what the fleet wants done → orders, feeds, words, standings.

use std::io::Write as _;
use std::sync::Arc;

use tracing::{error, info, warn};

use super::{Manner, Shell, WORDS_LIMIT};
use crate::clock;
use crate::config::lifecycle::ReadyBy;
use crate::handoff::{Board, Feed, LineOptions, Pipes, Standing};
use crate::record::{self, Entry, Record, StatusEvent, StreamKind, end_run_marker, new_run_marker};
use crate::service::{Exit, RunId, ServiceId, ServiceName};
use crate::supervise::fleet::Presence;
use crate::supervise::reap::Order;
use crate::supervise::{debugger, machine};

impl Shell {
    pub(super) fn act(&mut self, id: ServiceId, action: machine::Out) {
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
    pub(in crate::supervise) fn board(&self) -> Arc<Board> {
        self.health.borrow().device.clone()
    }

    pub(super) fn open(&mut self, run: RunId, pipes: Pipes) {
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

    pub(in crate::supervise) fn say(&mut self, entry: Entry) {
        if self.words.waiting() >= WORDS_LIMIT {
            entry.streams.tally.add_dropped(1);
            return;
        }
        self.words.send(Record::Entry(entry));
    }

    pub(in crate::supervise) fn stand(&mut self, id: ServiceId) {
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
}

/// What operators read in the agent's own output.
fn log(name: &ServiceName, event: &StatusEvent) {
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
