//! processes → their share of the machine's memory, on request.
//!
//! The proportional set size counts a page that n processes share as an n-th of it in each (proc_pid_smaps_rollup(5)).
//! The kernel walks the whole address space for it: milliseconds for a big process, so it is asked for by an
//! operator and never by a clock, and away from the loop that supervises.

use serde_json::Value;

/// Adds `pss_bytes` to every service of a status document; none where the process may not be looked at.
pub fn add(document: &mut Value) {
    let services = document["services"].as_array_mut();
    for service in services.into_iter().flatten() {
        let bytes = service["pid"].as_i64().and_then(pss_bytes);
        service["pss_bytes"] = bytes.into();
    }
}

fn pss_bytes(pid: i64) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_process_that_is_there_and_one_that_is_not() {
        let own = std::process::id();
        let mut document = json!({"services": [{"pid": own}, {"pid": null}, {"pid": 0}]});
        add(&mut document);
        assert!(document["services"][0]["pss_bytes"].as_u64() > Some(100_000));
        assert_eq!(document["services"][1]["pss_bytes"], Value::Null);
        assert_eq!(document["services"][2]["pss_bytes"], Value::Null);
    }
}
