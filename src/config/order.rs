//! services with `after` and `requires` → the order of their starts, or a cycle.
//!
//! Stable: among services that may start, the one that stands first in the files starts
//! first. Names that are not there are passed over; `check` tells them. No recursion: a
//! chain may be as long as a file allows.

use std::collections::{BTreeSet, HashMap};

use super::Service;

/// For each service, in the order given, what must start before it (by index).
fn predecessors<'s>(services: impl Iterator<Item = &'s Service> + Clone) -> Vec<Vec<usize>> {
    let numbers: HashMap<&str, usize> = services
        .clone()
        .enumerate()
        .map(|(index, service)| (service.name.as_str(), index))
        .collect();
    services
        .map(|service| {
            let names = service.after.iter().chain(&service.requires);
            let found: BTreeSet<usize> = names
                .filter_map(|name| numbers.get(name.as_str()).copied())
                .collect();
            found.into_iter().collect()
        })
        .collect()
}

/// Indices in start order; or the members of a cycle, each `after` or `requires` the next,
/// and the last the first.
pub fn start_order<'s>(
    services: impl Iterator<Item = &'s Service> + Clone,
) -> Result<Vec<usize>, Vec<usize>> {
    let before = predecessors(services);
    let mut followers = vec![Vec::new(); before.len()];
    let mut missing: Vec<usize> = before.iter().map(Vec::len).collect();
    for (index, earlier) in before.iter().enumerate() {
        for other in earlier {
            followers[*other].push(index);
        }
    }
    let mut free: BTreeSet<usize> = (0..before.len()).filter(|i| missing[*i] == 0).collect();
    let mut order = Vec::with_capacity(before.len());
    while let Some(next) = free.pop_first() {
        order.push(next);
        for follower in &followers[next] {
            missing[*follower] -= 1;
            if missing[*follower] == 0 {
                free.insert(*follower);
            }
        }
    }
    match missing.iter().position(|count| *count > 0) {
        None => Ok(order),
        Some(stuck) => Err(cycle(&before, &missing, stuck)),
    }
}

/// Whatever is stuck waits for something stuck: following that leads into a cycle.
fn cycle(before: &[Vec<usize>], missing: &[usize], from: usize) -> Vec<usize> {
    let mut path = vec![from];
    let mut at = from;
    while let Some(next) = before[at].iter().copied().find(|i| missing[*i] > 0) {
        if let Some(start) = path.iter().position(|seen| *seen == next) {
            path.drain(..start);
            break;
        }
        path.push(next);
        at = next;
    }
    // Begins with the member that stands first in the files.
    let first = path.iter().enumerate().min_by_key(|(_, index)| **index);
    if let Some((turn, _)) = first {
        path.rotate_left(turn);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::service::plain;
    use crate::service::ServiceName;

    fn services(text: &[(&str, &[&str])]) -> Vec<Service> {
        let name = |n: &str| ServiceName::new(n).unwrap();
        text.iter()
            .map(|(own, after)| Service {
                after: after.iter().map(|n| name(n)).collect(),
                ..plain(name(own), "x".into(), Vec::new(), 0)
            })
            .collect()
    }

    fn order(text: &[(&str, &[&str])]) -> Result<String, String> {
        let services = services(text);
        let join = |order: Vec<usize>| {
            let names: Vec<&str> = order.iter().map(|i| services[*i].name.as_str()).collect();
            names.join(" ")
        };
        start_order(services.iter()).map(join).map_err(join)
    }

    #[test]
    fn dependencies_first_else_the_files_order() {
        assert_eq!(
            order(&[("c", &[]), ("a", &[]), ("b", &[])]),
            Ok("c a b".into())
        );
        assert_eq!(
            order(&[("a", &["c"]), ("b", &[]), ("c", &[])]),
            Ok("b c a".into())
        );
        assert_eq!(
            order(&[("a", &["b", "c"]), ("b", &["d"]), ("c", &["d"]), ("d", &[])]),
            Ok("d b c a".into())
        );
        assert_eq!(order(&[("a", &["nowhere"])]), Ok("a".into()));
        assert_eq!(order(&[]), Ok(String::new()));
    }

    #[test]
    fn cycles_are_walked_from_the_first_member() {
        assert_eq!(order(&[("a", &["a"])]), Err("a".into()));
        assert_eq!(
            order(&[("x", &["b"]), ("a", &["b"]), ("b", &["c"]), ("c", &["a"])]),
            Err("a b c".into())
        );
        // What only waits for a cycle is not in it.
        assert_eq!(
            order(&[("z", &["a"]), ("a", &["b"]), ("b", &["a"])]),
            Err("a b".into())
        );
    }

    #[test]
    fn a_very_long_chain() {
        let names: Vec<String> = (0..20_000).map(|n| format!("s{n}")).collect();
        let mut all: Vec<Service> = services(&[]);
        for (index, own) in names.iter().enumerate() {
            let after = names.get(index + 1).map(String::as_str);
            all.extend(services(&[(own, after.as_slice())]));
        }
        let order = start_order(all.iter()).unwrap();
        assert_eq!((order[0], order[19_999]), (19_999, 0));
    }
}
