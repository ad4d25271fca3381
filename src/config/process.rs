//! a service's keys as typed → what its process starts with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::fields::{At, Fields, absolute, in_range};
use super::file::{Entry, Node, Value};
use super::found::Check;
use super::keys::Shape;
use super::kind::kind;
use super::{Identity, Limit, Process, Resources, kernel, units};

/// What the process starts with.
pub fn read(cx: &mut Check, fields: &Fields<'_>) -> Process {
    let capabilities = fields.texts("capabilities").map(|texts| {
        let numbers = texts
            .into_iter()
            .filter_map(|text| cx.accept(text.place, kernel::capability(text.value)));
        let mut numbers: Vec<u32> = numbers.collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    });
    Process {
        user: one(cx, fields, "user"),
        group: one(cx, fields, "group"),
        supplementary_groups: groups(cx, fields),
        working_directory: fields.absolute(cx, "working_directory"),
        environment: environment(cx, fields),
        environment_files: environment_files(cx, fields),
        clear_environment: fields.flag("clear_environment").unwrap_or(false),
        umask: fields.parsed(cx, "umask", units::umask),
        limits: limits(cx, fields),
        nice: fields.number(cx, "nice", -20..=19),
        cpu_affinity: fields.parsed(cx, "cpu_affinity", units::cpu_list),
        scheduling: fields.parsed(cx, "scheduling", units::scheduling),
        io_priority: fields.parsed(cx, "io_priority", units::io_priority),
        oom_score_adj: fields.number(cx, "oom_score_adj", -1000..=1000),
        no_new_privileges: fields.flag("no_new_privileges").unwrap_or(false),
        capabilities,
        pty: fields.flag("pty").unwrap_or(false),
        resources: resources(cx, fields),
    }
}

/// Less than this and no program can be started at all.
const LEAST_MEMORY: u64 = 64 << 10;
/// Percent of one CPU: more than any machine has.
const MOST_CPU: u32 = 100_000;

fn resources(cx: &mut Check, fields: &Fields<'_>) -> Resources {
    let out = Resources {
        memory_max: fields.size(cx, "memory_max", LEAST_MEMORY..=u64::MAX >> 1),
        memory_high: fields.size(cx, "memory_high", LEAST_MEMORY..=u64::MAX >> 1),
        cpu_max: fields.parsed(cx, "cpu_max", |text| units::percent(text, MOST_CPU)),
        cpu_weight: fields.number(cx, "cpu_weight", 1..=10_000),
        pids_max: fields.number(cx, "pids_max", 1..=1 << 22),
    };
    if let (Some(high), Some(max), Some(place)) = (
        out.memory_high,
        out.memory_max,
        fields.key_place("memory_high"),
    ) && high > max
    {
        let message = "`memory_high` is more than `memory_max`";
        cx.error(
            place,
            message,
            "the group is slowed down at `memory_high`, before `memory_max` ends it",
        );
    }
    out
}

fn one(cx: &mut Check, fields: &Fields<'_>, key: &str) -> Option<Identity> {
    identity(cx, key, fields.node(key)?)
}

/// An empty text is as absent.
fn identity(cx: &mut Check, key: &str, node: &Node) -> Option<Identity> {
    match &node.value {
        Value::Text(text) if text.is_empty() => None,
        Value::Text(text) => cx.accept(node.place, units::identity(text)),
        Value::Integer(id) => {
            // 2^32 - 1 means "no change" to setuid(2) and its kin.
            in_range(cx, node.place, key, *id, 0..=u32::MAX - 1).map(Identity::Id)
        }
        _ => None,
    }
}

fn groups(cx: &mut Check, fields: &Fields<'_>) -> Option<Vec<Identity>> {
    let key = "supplementary_groups";
    let Value::List(items) = &fields.node(key)?.value else {
        return None;
    };
    let groups = items.iter().filter_map(|item| identity(cx, key, item));
    Some(groups.collect())
}

fn environment(cx: &mut Check, fields: &Fields<'_>) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for Entry { key, place, node } in fields.names("environment") {
        if key.is_empty() || key.contains(['=', '\0']) {
            let message = "this cannot be the name of a variable";
            cx.error(
                *place,
                message,
                "names have no `=`, no NUL and are not empty",
            );
        } else if kind(cx, Shape::Text, node, key)
            && let Value::Text(text) = &node.value
        {
            out.insert(key.clone(), text.clone());
        }
    }
    out
}

fn environment_files(cx: &mut Check, fields: &Fields<'_>) -> Vec<PathBuf> {
    let texts: Vec<At<&str>> = fields.texts("environment_file").unwrap_or_default();
    texts
        .into_iter()
        .filter_map(|text| absolute(cx, "environment_file", text))
        .collect()
}

fn limits(cx: &mut Check, fields: &Fields<'_>) -> Vec<Limit> {
    let mut out: Vec<Limit> = Vec::new();
    for Entry { key, place, node } in fields.names("limits") {
        let Some((name, resource)) = cx.accept(*place, kernel::limit_name(key)) else {
            continue;
        };
        let value = match &node.value {
            Value::Text(text) => cx.accept(node.place, units::limit_value(text)),
            Value::Integer(number) => {
                in_range(cx, node.place, name, *number, 0..=u64::MAX).map(Some)
            }
            other => {
                let message = format!("`{name}` must be a number, not {}", other.what());
                cx.error(
                    node.place,
                    message,
                    "write a number, a size or \"unlimited\"",
                );
                None
            }
        };
        let Some(value) = value else { continue };
        if out.iter().any(|limit| limit.resource == resource) {
            let message = format!("the limit `{name}` stands twice");
            cx.error(*place, message, "keep one of them");
        }
        out.push(Limit {
            resource,
            name,
            value,
        });
    }
    out.sort_by_key(|limit| limit.resource);
    out
}
