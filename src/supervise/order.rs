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
