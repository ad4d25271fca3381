//! what operators ask, a signal for the application, a changed file → the fleet, or an answer at once.

use std::time::Instant;

use tracing::{error, info};

use super::Shell;
use crate::config::{Agent, Config};
use crate::event::{AgentSignal, Event};
use crate::request::{Reply, Request, RequestId};
use crate::service::Signal;
use crate::supervise::fleet::{self, Ask};
use crate::supervise::reap::Order;
use crate::supervise::status::{self, Question};
use crate::supervise::{chart, share};

impl Shell {
    /// A signal that is the application's. TERM also begins the end, so that an application
    /// that ignores it ends all the same; INT does where there is nobody to send it to.
    pub(super) fn forward(&mut self, signal: Signal) -> Option<i32> {
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

    pub(super) fn request(&mut self, id: RequestId, request: Request) -> Option<i32> {
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
    pub(super) fn reload(&mut self, asked: Option<RequestId>) -> Option<i32> {
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
    pub(super) fn plan(&self, new: &Config) -> serde_json::Value {
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
}
