//! old configuration, new configuration → what a reload would change.
//!
//! Every field of a service is either policy, which the supervisor may take over while the
//! process runs, or part of what the process was started with. The structs are taken apart
//! in full, so that a new field cannot be forgotten here: it does not compile.

use std::collections::BTreeMap;
use std::fmt;

use super::lifecycle::Lifecycle;
use super::{Agent, Config, Health, Process, Redis, Resources, Service, Spool};
use crate::service::ServiceName;

/// What a changed field asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it holds from now on.
    Live,
    /// The service must be started again.
    Restart,
    /// It holds when the agent itself is started again.
    AgentRestart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// As written in a file: `stop`, `redis.max_len`.
    pub key: &'static str,
    pub effect: Effect,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub name: ServiceName,
    pub fields: Vec<Field>,
}

/// Each service of either configuration stands in exactly one of the first five.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub unchanged: Vec<ServiceName>,
    /// Policy only: the process runs on.
    pub live: Vec<Changed>,
    pub restart: Vec<Changed>,
    pub added: Vec<ServiceName>,
    pub removed: Vec<ServiceName>,
    /// Beside the services.
    pub settings: Vec<Field>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
            && self.restart.is_empty()
            && self.added.is_empty()
            && self.removed.is_empty()
            && self.settings.is_empty()
    }
}

/// In the order of the new configuration; removed ones in that of the old.
pub fn plan(old: &Config, new: &Config) -> Plan {
    let before: BTreeMap<&str, &Service> = by_name(old);
    let after: BTreeMap<&str, &Service> = by_name(new);
    let mut plan = Plan {
        settings: settings(old, new),
        ..Plan::default()
    };
    for service in &new.services {
        let name = service.name.clone();
        let Some(was) = before.get(name.as_str()) else {
            plan.added.push(name);
            continue;
        };
        let fields = fields(was, service);
        if fields.is_empty() {
            plan.unchanged.push(name);
        } else if fields.iter().all(|field| field.effect == Effect::Live) {
            plan.live.push(Changed { name, fields });
        } else {
            plan.restart.push(Changed { name, fields });
        }
    }
    let gone = |service: &&std::sync::Arc<Service>| !after.contains_key(service.name.as_str());
    let removed = old.services.iter().filter(gone);
    plan.removed = removed.map(|service| service.name.clone()).collect();
    plan
}

fn by_name(config: &Config) -> BTreeMap<&str, &Service> {
    let services = config.services.iter();
    services.map(|s| (s.name.as_str(), s.as_ref())).collect()
}

/// The fields that differ.
fn different(fields: &[(bool, &'static str, Effect)]) -> Vec<Field> {
    fields
        .iter()
        .filter(|(same, _, _)| !same)
        .map(|(_, key, effect)| Field {
            key,
            effect: *effect,
        })
        .collect()
}

/// Whether the change reaches the process or its streams.
pub fn needs_restart(old: &Service, new: &Service) -> bool {
    let fields = fields(old, new);
    fields.iter().any(|field| field.effect == Effect::Restart)
}

fn fields(old: &Service, new: &Service) -> Vec<Field> {
    use Effect::{Live, Restart};
    let Service {
        name: _,
        executable,
        args,
        stream_name,
        kind,
        after,
        requires,
        critical,
        restart,
        on_failed,
        backoff,
        reset_after,
        start_limit,
        stop,
        lifecycle,
        process,
        max_line,
        multi_line,
        trim,
        capture,
        keep,
        pools,
        checks,
        debug,
    } = old;
    let delays = *backoff == new.backoff && *reset_after == new.reset_after;
    let mut changed = different(&[
        (*executable == new.executable, "executable", Restart),
        (*args == new.args, "args", Restart),
        (*stream_name == new.stream_name, "stream_name", Restart),
        (*kind == new.kind, "type", Restart),
        (*after == new.after, "after", Live),
        (*requires == new.requires, "requires", Live),
        (*critical == new.critical, "critical", Live),
        (*restart == new.restart, "restart", Live),
        (*on_failed == new.on_failed, "on_failed", Live),
        (delays, "backoff", Live),
        (*start_limit == new.start_limit, "start_limit", Live),
        (*stop == new.stop, "stop", Live),
        // A run's lines are cut as its start said.
        (*max_line == new.max_line, "max_line", Restart),
        (*multi_line == new.multi_line, "multi_line", Restart),
        (*trim == new.trim, "stream", Live),
        (*capture == new.capture, "crash", Restart),
        (*keep == new.keep, "stream", Live),
        (*pools == new.pools, "health", Live),
        (*checks == new.checks, "check", Live),
        (*debug == new.debug, "debug", Restart),
    ]);
    changed.extend(around(lifecycle, &new.lifecycle));
    changed.extend(started_with(process, &new.process));
    changed
}

fn around(old: &Lifecycle, new: &Lifecycle) -> Vec<Field> {
    use Effect::{Live, Restart};
    let Lifecycle {
        ready,
        watchdog,
        pre_start,
        post_stop,
    } = old;
    different(&[
        // What it hears of is made at its start.
        (*ready == new.ready, "ready", Restart),
        (*watchdog == new.watchdog, "watchdog", Restart),
        (*pre_start == new.pre_start, "pre_start", Live),
        (*post_stop == new.post_stop, "post_stop", Live),
    ])
}

fn started_with(old: &Process, new: &Process) -> Vec<Field> {
    use Effect::Restart;
    let Process {
        user,
        group,
        supplementary_groups: groups,
        working_directory: folder,
        environment,
        environment_files: files,
        clear_environment: clear,
        umask,
        limits,
        nice,
        cpu_affinity,
        scheduling,
        io_priority,
        oom_score_adj,
        no_new_privileges,
        capabilities,
        pty,
        resources,
    } = old;
    let no_new = *no_new_privileges == new.no_new_privileges;
    different(&[
        (*user == new.user, "user", Restart),
        (*group == new.group, "group", Restart),
        (
            *groups == new.supplementary_groups,
            "supplementary_groups",
            Restart,
        ),
        (
            *folder == new.working_directory,
            "working_directory",
            Restart,
        ),
        (*environment == new.environment, "environment", Restart),
        (*files == new.environment_files, "environment_file", Restart),
        (
            *clear == new.clear_environment,
            "clear_environment",
            Restart,
        ),
        (*umask == new.umask, "umask", Restart),
        (*limits == new.limits, "limits", Restart),
        (*nice == new.nice, "nice", Restart),
        (*cpu_affinity == new.cpu_affinity, "cpu_affinity", Restart),
        (*scheduling == new.scheduling, "scheduling", Restart),
        (*io_priority == new.io_priority, "io_priority", Restart),
        (
            *oom_score_adj == new.oom_score_adj,
            "oom_score_adj",
            Restart,
        ),
        (no_new, "no_new_privileges", Restart),
        (*capabilities == new.capabilities, "capabilities", Restart),
        (*pty == new.pty, "pty", Restart),
    ])
    .into_iter()
    .chain(taken(resources, &new.resources))
    .collect()
}

fn taken(old: &Resources, new: &Resources) -> Vec<Field> {
    use Effect::Restart;
    let Resources {
        memory_max,
        memory_high,
        cpu_max,
        cpu_weight,
        pids_max,
    } = old;
    different(&[
        (*memory_max == new.memory_max, "memory_max", Restart),
        (*memory_high == new.memory_high, "memory_high", Restart),
        (*cpu_max == new.cpu_max, "cpu_max", Restart),
        (*cpu_weight == new.cpu_weight, "cpu_weight", Restart),
        (*pids_max == new.pids_max, "pids_max", Restart),
    ])
}

fn settings(old: &Config, new: &Config) -> Vec<Field> {
    use Effect::{AgentRestart, Live};
    let Config {
        file: _,
        agent,
        redis,
        spool: Spool {
            memory,
            disk,
            overflow,
        },
        // Its tracing is each service's own.
        crash,
        health: Health { compute },
        services: _,
    } = old;
    let Agent {
        board,
        state_dir,
        runtime_dir,
        shutdown_timeout: timeout,
        main,
        tee,
        maintenance,
        group,
    } = agent;
    let Redis {
        endpoint,
        username,
        password,
        log_db,
        value_db,
        key_prefix,
        value_expiry,
        // Each service's own number says it.
        max_len: _,
        tls,
        sentinel,
    } = redis;
    let (to, there) = (&new.agent, &new.redis);
    let credentials = *username == there.username && *password == there.password;
    different(&[
        (*board == to.board, "agent.board", AgentRestart),
        (*state_dir == to.state_dir, "agent.state_dir", AgentRestart),
        (
            *runtime_dir == to.runtime_dir,
            "agent.runtime_dir",
            AgentRestart,
        ),
        (
            *timeout == to.shutdown_timeout,
            "agent.shutdown_timeout",
            Live,
        ),
        (*main == to.main, "agent.main", Live),
        (*tee == to.tee, "agent.tee", AgentRestart),
        (
            *maintenance == to.maintenance,
            "agent.maintenance",
            AgentRestart,
        ),
        (*group == to.group, "agent.group", AgentRestart),
        (*endpoint == there.endpoint, "redis.host", AgentRestart),
        (credentials, "redis.password", AgentRestart),
        (*log_db == there.log_db, "redis.log_db", AgentRestart),
        (*value_db == there.value_db, "redis.value_db", AgentRestart),
        (
            *key_prefix == there.key_prefix,
            "redis.key_prefix",
            AgentRestart,
        ),
        (crash.keep == new.crash.keep, "crash.keep", AgentRestart),
        (
            crash.max_size == new.crash.max_size,
            "crash.max_size",
            AgentRestart,
        ),
        (
            crash.debug_dirs == new.crash.debug_dirs,
            "crash.debug_dirs",
            AgentRestart,
        ),
        (*tls == there.tls, "redis.tls", AgentRestart),
        (*sentinel == there.sentinel, "redis.sentinel", AgentRestart),
        (*memory == new.spool.memory, "spool.memory", AgentRestart),
        (*disk == new.spool.disk, "spool.disk", AgentRestart),
        (
            *overflow == new.spool.overflow,
            "spool.overflow",
            AgentRestart,
        ),
        (
            *compute == new.health.compute,
            "health.compute",
            AgentRestart,
        ),
        (
            *value_expiry == there.value_expiry,
            "health.expiry",
            AgentRestart,
        ),
    ])
}

/// For `agent reload --dry-run`.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = |fields: &[Field]| {
            let keys: Vec<&str> = fields.iter().map(|field| field.key).collect();
            keys.join(", ")
        };
        for Changed { name, fields } in &self.restart {
            writeln!(f, "{name}: restart ({})", keys(fields))?;
        }
        for Changed { name, fields } in &self.live {
            writeln!(f, "{name}: changed without a restart ({})", keys(fields))?;
        }
        for name in &self.added {
            writeln!(f, "{name}: added")?;
        }
        for name in &self.removed {
            writeln!(f, "{name}: removed")?;
        }
        for Field { key, effect } in &self.settings {
            match effect {
                Effect::Live => writeln!(f, "{key}: changed")?,
                Effect::Restart | Effect::AgentRestart => {
                    writeln!(f, "{key}: holds once the agent is started again")?;
                }
            }
        }
        match self.unchanged.len() {
            0 if self.is_empty() => f.write_str("nothing changes"),
            1 => f.write_str("1 service unchanged"),
            count => write!(f, "{count} services unchanged"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Environment;
    use crate::config::check::parse;
    use crate::config::file::Syntax;

    fn config(text: &str) -> Config {
        let none = Environment::default();
        let loaded = parse(text.as_bytes(), Path::new("t"), Syntax::Toml, &none);
        loaded.unwrap().config
    }

    #[test]
    fn each_kind_of_change() {
        let old = config(
            "[service.a]\nexecutable = '/a'\n[service.b]\nexecutable = '/b'\n\
             [service.c]\nexecutable = '/c'\n[service.d]\nexecutable = '/d'\n",
        );
        let new = config(
            "[agent]\nshutdown_timeout = '5s'\n[redis]\nport = 1\n\
             [service.a]\nexecutable = '/a'\n\
             [service.b]\nexecutable = '/b'\nrestart = 'never'\nstop = { signal = 'INT' }\n\
             [service.c]\nexecutable = '/c'\nnice = 5\nrestart = 'never'\n\
             [service.e]\nexecutable = '/e'\n",
        );
        let plan = plan(&old, &new);
        assert_eq!(
            plan.to_string(),
            "c: restart (restart, nice)\n\
             b: changed without a restart (restart, stop)\n\
             e: added\n\
             d: removed\n\
             agent.shutdown_timeout: changed\n\
             redis.host: holds once the agent is started again\n\
             1 service unchanged"
        );
        assert_eq!(plan.unchanged[0].as_str(), "a");
    }

    #[test]
    fn the_same_is_no_change() {
        let text = "[service.a]\nexecutable = '/a'\n[service.b]\nexecutable = 'b'\n";
        let plan = plan(&config(text), &config(text));
        assert!(plan.is_empty());
        assert_eq!(plan.to_string(), "2 services unchanged");
        // The order of the file is no change either.
        let turned = "[service.b]\nexecutable = 'b'\n[service.a]\nexecutable = '/a'\n";
        assert!(super::plan(&config(text), &config(turned)).is_empty());
    }

    #[test]
    fn the_default_length_of_streams_reaches_services() {
        let text = "[service.a]\nexecutable = '/a'\n";
        let other = config(&format!("[redis]\nmax_len = 5\n{text}"));
        let plan = plan(&config(text), &other);
        assert_eq!(plan.live[0].fields[0].key, "stream");
    }
}
