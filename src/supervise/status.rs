//! fleet, gauges, now → the status document and the probe's answer.
//!
//! CONTRACTS section 8 (`agent status --json`) and 6.4 (`agent --probe`). The truth about
//! services is the fleet's; what costs a look at /proc or at Redis comes from the gauges.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use super::fleet::{Fleet, Unit};
use crate::handoff::{HealthGauge, ServiceGauge, SinkGauge, State};
use crate::request::ProbeAnswer;
use crate::service::{Exit, Pid};

/// What the agent knows of itself.
#[derive(Clone, Debug)]
pub struct Own {
    pub pid: Pid,
    pub since: Instant,
    pub state_dir: PathBuf,
    /// What it was configured by; none for a command.
    pub config: Option<PathBuf>,
    /// Without a secret; empty where there is none.
    pub redis_url: String,
}

/// The document, with the named services only; with all where none is named.
///
/// # Errors
/// A name that no service has.
pub fn document(
    fleet: &Fleet,
    own: &Own,
    sink: &SinkGauge,
    health: &HealthGauge,
    names: &[String],
    now: Instant,
) -> Result<Value, String> {
    let units: Vec<&Unit> = if names.is_empty() {
        fleet.units().collect()
    } else {
        names
            .iter()
            .map(|name| {
                fleet
                    .named(name)
                    .ok_or_else(|| format!("no service {name:?}"))
            })
            .collect::<Result<_, _>>()?
    };
    let services: Vec<Value> = units
        .into_iter()
        .map(|unit| {
            let gauge = health.services.get(&unit.machine.service().name);
            service(unit, gauge, now)
        })
        .collect();
    Ok(json!({
        "agent": {
            "version": env!("CARGO_PKG_VERSION"),
            "pid": own.pid,
            "uptime_ms": millis(own.since, now),
            "state_dir": own.state_dir.to_string_lossy(),
            "config": own.config.as_ref().map(|path| path.to_string_lossy()),
            "redis": {
                "url": own.redis_url,
                "state": sink.state,
                "spooled_lines": sink.spooled_lines,
                "spooled_bytes": sink.spooled_bytes,
                "dropped": sink.dropped,
            },
        },
        "device": device(health),
        "services": services,
    }))
}

/// Numbers where the sensors' words are some.
fn device(health: &HealthGauge) -> Value {
    let value = |text: &String| match (text.parse::<i64>(), text.parse::<f64>()) {
        (Ok(whole), _) => json!(whole),
        (Err(_), Ok(number)) if number.is_finite() => json!(number),
        (Err(_), _) => json!(text),
    };
    let fields = health.device.iter();
    fields
        .map(|(name, text)| (name.to_string(), value(text)))
        .collect()
}

fn service(unit: &Unit, gauge: Option<&ServiceGauge>, now: Instant) -> Value {
    let machine = &unit.machine;
    let life = machine.life();
    let mut value = json!({
        "name": machine.service().name.as_str(),
        "state": machine.shown().as_str(),
        "pid": life.map(|life| life.pid),
        "restarts": machine.restarts(),
        "exit": machine.exit().map(Exit::code),
        "uptime_ms": life.map_or(0, |life| millis(life.since, now)),
        "cpu_percent": gauge.map_or(0.0, |gauge| gauge.cpu_percent),
        "rss_bytes": gauge.map_or(0, |gauge| gauge.rss_bytes),
        "threads": gauge.map_or(0, |gauge| gauge.threads),
        "fds": gauge.map_or(0, |gauge| gauge.fds),
        "lines": unit.streams.tally.lines(),
        "bytes": unit.streams.tally.bytes(),
        "dropped": unit.streams.tally.dropped(),
        "health": gauge.map(|gauge| &gauge.health).cloned().unwrap_or_default(),
        "caps": gauge.map(|gauge| &gauge.caps).cloned().unwrap_or_default(),
    });
    if !machine.said().is_empty() {
        value["said"] = machine.said().into();
    }
    let checks = &machine.service().checks;
    if !checks.is_empty() {
        let verdict = |name: &String| match unit.unhealthy.contains(name) {
            true => "unhealthy",
            false => "healthy",
        };
        value["checks"] = checks
            .iter()
            .map(|check| (check.name.clone(), json!(verdict(&check.name))))
            .collect();
    }
    if let Some(reason) = machine.reason() {
        value["reason"] = reason.into();
    } else if let Some(check) = unit.unhealthy.first() {
        value["reason"] = format!("unhealthy by its check {check}").into();
    }
    value
}

fn millis(since: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(since).as_millis() as u64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    Live,
    Ready,
}

/// The critical services, or exactly the named ones.
pub fn probe(
    fleet: &Fleet,
    question: Question,
    sink: &SinkGauge,
    names: &[String],
    now: Instant,
) -> ProbeAnswer {
    let mut asked = Vec::new();
    for name in names {
        match fleet.named(name) {
            Some(unit) => asked.push(unit),
            None => return unhealthy(format!("no service {name:?}")),
        }
    }
    if names.is_empty() {
        asked.extend(fleet.units().filter(|unit| unit.machine.service().critical));
    }
    if let Some(trouble) = asked.iter().find_map(|unit| trouble(unit, now)) {
        return unhealthy(trouble);
    }
    if question == Question::Ready {
        if let Some(unit) = asked.iter().find(|unit| !is_ready(unit)) {
            let machine = &unit.machine;
            let state = machine.shown().in_words();
            return unhealthy(format!("{} is {state}", machine.service().name));
        }
        if !sink.is_well() {
            return unhealthy(format!("Redis: {}", sink.state));
        }
    }
    let word = match question {
        Question::Live => "live",
        Question::Ready => "ready",
    };
    let reason = match asked.len() {
        0 => word.to_owned(),
        1 => format!("{word}: {}", asked[0].machine.service().name),
        count => format!("{word}: {count} services"),
    };
    ProbeAnswer {
        healthy: true,
        reason,
    }
}

fn unhealthy(reason: String) -> ProbeAnswer {
    ProbeAnswer {
        healthy: false,
        reason,
    }
}

fn is_ready(unit: &Unit) -> bool {
    matches!(unit.machine.shown(), State::Ready | State::Done)
}

/// What keeps the service from being live.
fn trouble(unit: &Unit, now: Instant) -> Option<String> {
    let machine = &unit.machine;
    let name = &machine.service().name;
    if machine.has_failed() {
        let reason = machine.reason().unwrap_or_default();
        return Some(format!("{name} failed: {reason}"));
    }
    if machine.is_looping(now) {
        return Some(format!(
            "{name} fails again and again: {}",
            machine.last_end()
        ));
    }
    let check = unit.unhealthy.first()?;
    Some(format!("{name} is unhealthy by its check {check}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::config::Agent;
    use crate::service::{RunId, ServiceId};
    use crate::supervise::fleet::Input;
    use crate::supervise::machine;
    use crate::supervise::samples_for_tests::service;

    fn fleet(now: Instant) -> Fleet {
        let agent = Agent {
            board: String::new(),
            state_dir: "/".into(),
            runtime_dir: "/".into(),
            shutdown_timeout: Duration::from_secs(30),
            main: None,
            tee: false,
            maintenance: false,
            group: None,
        };
        let mut extra = service("extra");
        extra.critical = false;
        let mut fleet = Fleet::new(&agent, &[Arc::new(service("main")), Arc::new(extra)], now);
        fleet.step(now, Input::Time, &mut Vec::new());
        fleet
    }

    fn spawned(fleet: &mut Fleet, id: u32, now: Instant) {
        let service = ServiceId(id);
        let run = RunId { service, number: 1 };
        let input = machine::Input::Spawned { run, pid: 42 };
        fleet.step(now, Input::Of(service, input), &mut Vec::new());
    }

    #[test]
    fn live_and_ready_are_different_questions() {
        let now = Instant::now();
        let mut fleet = fleet(now);
        let mut sink = SinkGauge {
            state: "connecting".to_owned(),
            ..SinkGauge::default()
        };
        let ask = |fleet: &Fleet, question, sink: &SinkGauge, names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            probe(fleet, question, sink, &names, now)
        };
        assert!(ask(&fleet, Question::Live, &sink, &[]).healthy);
        assert_eq!(
            ask(&fleet, Question::Ready, &sink, &[]).reason,
            "main is starting"
        );
        spawned(&mut fleet, 0, now);
        assert_eq!(
            ask(&fleet, Question::Ready, &sink, &[]).reason,
            "Redis: connecting"
        );
        sink.connected = true;
        assert!(ask(&fleet, Question::Ready, &sink, &[]).healthy);
        // Not critical, but asked for by name.
        assert!(!ask(&fleet, Question::Ready, &sink, &["extra"]).healthy);
        assert_eq!(
            ask(&fleet, Question::Live, &sink, &["none"]).reason,
            "no service \"none\""
        );
        fleet.step(
            now,
            Input::Verdict {
                service: ServiceId(0),
                check: "port".to_owned(),
                healthy: false,
                restart: false,
            },
            &mut Vec::new(),
        );
        let answer = ask(&fleet, Question::Live, &sink, &[]);
        assert_eq!(answer.reason, "main is unhealthy by its check port");
    }

    #[test]
    fn the_document_is_the_contracts() {
        let now = Instant::now();
        let mut fleet = fleet(now);
        spawned(&mut fleet, 0, now);
        let own = Own {
            pid: 1,
            since: now,
            state_dir: "/x".into(),
            config: None,
            redis_url: "redis://robot:6379".to_owned(),
        };
        let later = now + Duration::from_millis(1500);
        let (sink, health) = (SinkGauge::default(), HealthGauge::default());
        let names = ["main".to_owned()];
        let document = document(&fleet, &own, &sink, &health, &names, later).expect("known");
        assert_eq!(document["agent"]["uptime_ms"], 1500);
        assert_eq!(document["agent"]["state_dir"], "/x");
        assert_eq!(document["agent"]["config"], Value::Null);
        assert_eq!(document["agent"]["redis"]["url"], "redis://robot:6379");
        let service = &document["services"][0];
        assert_eq!(service["name"], "main");
        assert_eq!(service["state"], "ready");
        assert_eq!(service["pid"], 42);
        assert_eq!(service["exit"], Value::Null);
        assert_eq!(service["uptime_ms"], 1500);
        assert!(document["services"][1].is_null());
    }
}
