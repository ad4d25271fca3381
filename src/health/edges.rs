//! What sensors say, one after the other → what began, ended or happened.
//!
//! Of a counter only its rise is told; of a state its change, and at the first sight that it
//! is on. A sensor that cannot be read changes nothing: its last word stands.

use std::collections::{BTreeMap, BTreeSet};

use crate::record::DeviceEvent;

/// One reading that may be an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// Over-current events so far.
    Counter(&'a str, i64),
    /// The state of a cooling device.
    Cooling(&'a str, i64),
    /// Whether a rail is over its limit.
    Rail(&'a str, bool),
    PowerMode(&'a str),
}

#[derive(Debug, Default)]
pub struct Edges {
    counters: BTreeMap<String, i64>,
    throttling: BTreeSet<String>,
    over: BTreeSet<String>,
    mode: Option<String>,
}

impl Edges {
    pub fn see(&mut self, seen: Seen) -> Option<DeviceEvent> {
        match seen {
            Seen::Counter(name, value) => {
                let before = self.counters.insert(name.to_owned(), value)?;
                // A lower one begins anew: its driver was loaded again.
                (value > before).then(|| DeviceEvent::OverCurrent {
                    counter: name.to_owned(),
                    count: value - before,
                })
            }
            Seen::Cooling(name, state) => {
                changed(&mut self.throttling, name, state > 0).then(|| DeviceEvent::Throttling {
                    device: name.to_owned(),
                    state,
                })
            }
            Seen::Rail(name, over) => {
                changed(&mut self.over, name, over).then(|| DeviceEvent::Rail {
                    rail: name.to_owned(),
                    over,
                })
            }
            Seen::PowerMode(mode) => {
                let before = self.mode.replace(mode.to_owned())?;
                (before != mode).then(|| DeviceEvent::PowerMode {
                    from: before,
                    to: mode.to_owned(),
                })
            }
        }
    }
}

fn changed(on: &mut BTreeSet<String>, name: &str, is_on: bool) -> bool {
    match is_on {
        true => !on.contains(name) && on.insert(name.to_owned()),
        false => on.remove(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_told() {
        let mut edges = Edges::default();
        assert_eq!(edges.see(Seen::Counter("oc1", 3)), None, "where it stood");
        assert_eq!(edges.see(Seen::Counter("oc1", 3)), None);
        let rose = DeviceEvent::OverCurrent {
            counter: "oc1".to_owned(),
            count: 2,
        };
        assert_eq!(edges.see(Seen::Counter("oc1", 5)), Some(rose));
        assert_eq!(edges.see(Seen::Counter("oc1", 0)), None);
        let throttling = |state| {
            Some(DeviceEvent::Throttling {
                device: "gpu".to_owned(),
                state,
            })
        };
        assert_eq!(edges.see(Seen::Cooling("gpu", 0)), None);
        assert_eq!(edges.see(Seen::Cooling("gpu", 2)), throttling(2));
        assert_eq!(edges.see(Seen::Cooling("gpu", 3)), None);
        assert_eq!(edges.see(Seen::Cooling("gpu", 0)), throttling(0));
        assert!(edges.see(Seen::Rail("VDD_IN", true)).is_some());
        assert_eq!(edges.see(Seen::Rail("VDD_IN", true)), None);
        assert!(edges.see(Seen::Rail("VDD_IN", false)).is_some());
        assert_eq!(edges.see(Seen::PowerMode("15W")), None);
        assert!(edges.see(Seen::PowerMode("MAXN")).is_some());
    }
}
