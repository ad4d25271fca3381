//! services and what they are after or require → one start order.
//!
//! Stable: among services that may start together, the order of the files. The configuration
//! has no cycles (`config::check`); should one get here, its members come last and wait.

use std::collections::HashMap;

use crate::config::Service;
use crate::service::ServiceName;

/// What must be settled before the service begins.
pub fn before(service: &Service) -> impl Iterator<Item = &ServiceName> {
    service.requires.iter().chain(&service.after)
}

/// Indices of `services`, each behind everything it is after or requires.
pub fn start_order(services: &[&Service]) -> Vec<usize> {
    let place: HashMap<&ServiceName, usize> = services
        .iter()
        .enumerate()
        .map(|(index, service)| (&service.name, index))
        .collect();
    let mut placed = vec![false; services.len()];
    let mut order = Vec::with_capacity(services.len());
    loop {
        let length = order.len();
        for (index, service) in services.iter().enumerate() {
            let free = before(service)
                .filter_map(|name| place.get(name))
                .all(|&other| placed[other]);
            if !placed[index] && free {
                placed[index] = true;
                order.push(index);
            }
        }
        if order.len() == length {
            break;
        }
    }
    order.extend((0..services.len()).filter(|index| !placed[*index]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::samples_for_tests::service;

    fn order(services: &[(&str, &[&str])]) -> Vec<usize> {
        let services: Vec<Service> = services
            .iter()
            .map(|(name, after)| {
                let mut service = service(name);
                service.after = after
                    .iter()
                    .map(|name| ServiceName::new(name).expect("a name"))
                    .collect();
                service
            })
            .collect();
        start_order(&services.iter().collect::<Vec<_>>())
    }

    #[test]
    fn stable_and_behind_what_is_needed() {
        assert_eq!(order(&[("a", &[]), ("b", &[]), ("c", &[])]), [0, 1, 2]);
        assert_eq!(
            order(&[("a", &["c"]), ("b", &["a"]), ("c", &[])]),
            [2, 0, 1]
        );
        assert_eq!(order(&[("a", &["nobody"])]), [0]);
    }

    #[test]
    fn a_cycle_comes_last_and_is_not_lost() {
        assert_eq!(
            order(&[("a", &["b"]), ("b", &["a"]), ("c", &[])]),
            [2, 0, 1]
        );
    }
}
