//! the fleet → who waits for whom, and what the last start took.
//!
//! The answer to `agent graph`. Of each service three moments are known: when it was wanted, when it began (all that it
//! waited for was there), and when it was ready or done. What it waited for last is what made it late: walking back
//! from whatever was ready last gives the critical path of the start.

use std::time::Instant;

use serde_json::{Value, json};

use super::fleet::{Fleet, Unit};
use super::order;
use crate::config::Kind;
use crate::handoff::State;
use crate::service::ServiceName;

/// Of a service's last start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    wanted: Option<Instant>,
    began: Option<Instant>,
    ready: Option<Instant>,
}

impl Times {
    /// The service stands elsewhere than before.
    pub fn moved(&mut self, before: Option<State>, state: State, now: Instant) {
        let is_new = before != Some(state);
        match state {
            State::Waiting if is_new => {
                *self = Times {
                    wanted: Some(now),
                    ..Times::default()
                };
            }
            State::Starting if is_new => {
                // A start of its own accord was wanted when it began.
                let waited = before.is_none() || before == Some(State::Waiting);
                let wanted = self.wanted.filter(|_| waited && self.began.is_none());
                *self = Times {
                    wanted: Some(wanted.unwrap_or(now)),
                    began: Some(now),
                    ready: None,
                };
            }
            State::Ready | State::Done if self.ready.is_none() => self.ready = Some(now),
            State::Waiting
            | State::Starting
            | State::Ready
            | State::Done
            | State::Stopping
            | State::Stopped
            | State::Backoff
            | State::Failed => {}
        }
    }
}

/// Every service in start order, and the names on the critical path, first to last.
pub fn document(fleet: &Fleet) -> Value {
    let units: Vec<&Unit> = fleet.in_order().collect();
    let path = critical(&units);
    let first = units.iter().filter_map(|unit| unit.times.wanted).min();
    let services: Vec<Value> = units.iter().map(|unit| row(unit, first)).collect();
    let total = path.last().and_then(|last| since(first, last.times.ready));
    json!({
        "services": services,
        "critical": path.iter().map(|unit| name(unit).as_str()).collect::<Vec<_>>(),
        "total_ms": total,
    })
}

fn row(unit: &Unit, first: Option<Instant>) -> Value {
    let service = unit.machine.service();
    let names =
        |names: &[ServiceName]| names.iter().map(ServiceName::to_string).collect::<Vec<_>>();
    let Times {
        wanted,
        began,
        ready,
    } = unit.times;
    json!({
        "name": service.name.as_str(),
        "type": match service.kind {
            Kind::Simple => "simple",
            Kind::Oneshot => "oneshot",
        },
        "state": unit.machine.shown().as_str(),
        "after": names(&service.after),
        "requires": names(&service.requires),
        "began_at_ms": since(first, began),
        "waited_ms": since(wanted, began),
        "took_ms": since(began, ready),
    })
}

fn since(from: Option<Instant>, to: Option<Instant>) -> Option<f64> {
    let time = to?.checked_duration_since(from?)?;
    Some((time.as_secs_f64() * 1e6).round() / 1e3)
}

fn name(unit: &Unit) -> &ServiceName {
    &unit.machine.service().name
}

/// From what was ready last back to what began by itself.
fn critical<'a>(units: &[&'a Unit]) -> Vec<&'a Unit> {
    let mut path = Vec::new();
    let mut at = units
        .iter()
        .filter(|unit| unit.times.ready.is_some())
        .max_by_key(|unit| unit.times.ready)
        .copied();
    while let Some(unit) = at {
        path.push(unit);
        let service = unit.machine.service();
        // Started again since, it was not what this one waited for.
        let in_time = |other: &&&Unit| match (other.times.ready, unit.times.began) {
            (Some(ready), Some(began)) => ready <= began,
            (_, _) => false,
        };
        at = units
            .iter()
            .filter(|other| order::before(service).any(|before| before == name(other)))
            .filter(in_time)
            .max_by_key(|other| other.times.ready)
            .copied()
            .filter(|other| !path.iter().any(|seen| std::ptr::eq(*seen, *other)));
    }
    path.reverse();
    path
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::config::Service;
    use crate::supervise::fleet::{Input, Out};
    use crate::supervise::machine;
    use crate::supervise::samples_for_tests::{agent, service};

    fn after(name: &str, others: &[&str]) -> Arc<Service> {
        let mut service = service(name);
        let names = others
            .iter()
            .filter_map(|other| ServiceName::new(other).ok());
        service.requires = names.collect();
        Arc::new(service)
    }

    /// Whatever is to be spawned is, so many milliseconds later; the slowest decides.
    #[test]
    fn the_chain_that_took_longest() {
        let services = [
            after("web", &["api", "cache"]),
            after("api", &["db"]),
            after("cache", &[]),
            after("db", &[]),
        ];
        let takes = |name: &str| {
            Duration::from_millis(match name {
                "db" => 300,
                "api" => 50,
                "cache" => 320,
                _ => 5,
            })
        };
        let start = Instant::now();
        let mut fleet = Fleet::new(&agent(), &services, start);
        let mut due = Vec::new();
        let mut out = Vec::new();
        let mut now = start;
        fleet.step(now, Input::Time, &mut out);
        loop {
            for action in out.drain(..) {
                if let Out::Of(id, machine::Out::Spawn(run)) = action {
                    let name = fleet.unit(id).map(|unit| name(unit).to_string());
                    due.push((now + takes(&name.unwrap_or_default()), id, run));
                }
            }
            due.sort_by_key(|(at, _, _)| *at);
            if due.is_empty() {
                break;
            }
            let (at, id, run) = due.remove(0);
            now = at;
            let spawned = machine::Input::Spawned { run, pid: 4 };
            fleet.step(now, Input::Of(id, spawned), &mut out);
        }
        let document = document(&fleet);
        assert_eq!(document["critical"], json!(["db", "api", "web"]));
        assert_eq!(document["total_ms"], json!(355.0));
        let row = |name: &str| {
            let rows = document["services"].as_array().cloned().unwrap_or_default();
            rows.into_iter()
                .find(|row| row["name"] == name)
                .unwrap_or_default()
        };
        assert_eq!(row("web")["waited_ms"], json!(350.0));
        assert_eq!(row("web")["took_ms"], json!(5.0));
        assert_eq!(row("cache")["began_at_ms"], json!(0.0));
        assert_eq!(row("api")["requires"], json!(["db"]));
    }
}
