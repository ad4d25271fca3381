//! The machine's core_pattern, borrowed under a lock and put back.

use std::fs::{self, File};

use crate::agent::AGENT;
use crate::support::Scratch;

const PATTERN: &str = "/proc/sys/kernel/core_pattern";
const LIMIT: &str = "/proc/sys/kernel/core_pipe_limit";
const LOCK: &str = "/tmp/core_pattern.lock";

/// The machine's pattern is ours until this is dropped.
pub struct Pattern {
    before: (String, String),
    _lock: File,
    folder: Scratch,
}

impl Pattern {
    /// `None` where it cannot be had. The handler is given the configuration of the agent in `folder`.
    pub fn take(folder: &Scratch) -> Option<Pattern> {
        let lock = File::create(LOCK).ok()?;
        lock.lock().expect("a lock");
        let before = fs::read_to_string(PATTERN).and_then(|a| Ok((a, fs::read_to_string(LIMIT)?)));
        let Ok(before) = before else {
            eprintln!("SKIPPED: {PATTERN} cannot be read");
            return None;
        };
        // The pattern has room for 127 characters: a short name for a long path.
        let names = Scratch::new("cp");
        let program = names.join("agent");
        std::os::unix::fs::symlink(AGENT, &program).expect("a link");
        let config = names.join("c");
        std::os::unix::fs::symlink(folder.join("agent.toml"), &config).expect("a link");
        let pattern = format!(
            "|{} core --pid=%P --tid=%I --signal=%s --dumpable=%d --config={}",
            program.display(),
            config.display()
        );
        assert!(pattern.len() < 127, "{pattern}");
        // Beyond the limit a crash is only logged, and others may crash on this machine at the same time.
        let set = fs::write(LIMIT, "64").and_then(|()| fs::write(PATTERN, &pattern));
        if let Err(error) = set {
            eprintln!("SKIPPED: {PATTERN} cannot be set ({error})");
            return None;
        }
        Some(Pattern {
            before,
            _lock: lock,
            folder: names,
        })
    }
}

impl Drop for Pattern {
    fn drop(&mut self) {
        // One that a killed run of this test left would help nobody.
        let left = self.before.0.contains("/agent core ") && self.before.0.contains("/tmp/");
        let pattern = if left { "core" } else { &self.before.0 };
        fs::write(PATTERN, pattern).expect("it was ours to set");
        fs::write(LIMIT, &self.before.1).expect("it was ours to set");
        assert!(self.folder.path().exists());
    }
}
