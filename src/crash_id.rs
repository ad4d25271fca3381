//! when, which service, which process → the name of a crash record.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::clock;
use crate::service::{Pid, ServiceName};

/// `20261122T103000Z-lidar-4242-9f3c`: sorts by time, and is a file name.
pub fn crash_id(at_ms: u64, service: &ServiceName, pid: Pid) -> String {
    let time = clock::utc(at_ms);
    let time: String = time
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric())
        .collect();
    // Seeded by the system's randomness (HashMap's own); only two crashes in one second need it.
    let random = RandomState::new().build_hasher().finish() & 0xffff;
    format!("{time}Z-{service}-{pid}-{random:04x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_with_the_time() {
        let name = ServiceName::new("lidar").expect("a name");
        let id = crash_id(1_763_807_400_123, &name, 4242);
        assert!(id.starts_with("20251122T103000Z-lidar-4242-"), "{id}");
    }
}
