//! the kernel's core_pattern → whether it hands crashes to this very agent.
//!
//! It does where it names our own program, waits for it (`core_pipe_limit`), and the handler would look for an agent
//! where this one listens. In a container the pattern is the host's, and its handler knows nothing of us: only the
//! initial process namespace counts (its inode is fixed, `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

const PATTERN: &str = "/proc/sys/kernel/core_pattern";
const LIMIT: &str = "/proc/sys/kernel/core_pipe_limit";
const OWN_NAMESPACE: &str = "/proc/self/ns/pid";
const INITIAL_NAMESPACE: u64 = 0xefff_fffc;

/// Where a handler that was given this configuration looks for the agent.
pub type SocketsOf = fn(Option<&Path>) -> Vec<PathBuf>;

/// Asked before every start of a service: others change the pattern too (apport, systemd-coredump).
#[derive(Default)]
pub struct Ownership {
    /// Where this agent listens, once it does; with the way to find out where the handler looks.
    listens: Option<(Arc<OnceLock<PathBuf>>, SocketsOf)>,
    /// What was found out about the pattern that was there the last time.
    known: Option<(String, bool)>,
}

impl Ownership {
    pub fn of(listens: Arc<OnceLock<PathBuf>>, sockets_of: SocketsOf) -> Ownership {
        Ownership {
            listens: Some((listens, sockets_of)),
            known: None,
        }
    }

    pub fn is_ours(&mut self) -> bool {
        let Some((listens, sockets_of)) = &self.listens else {
            return false;
        };
        let Some(socket) = listens.get() else {
            return false;
        };
        let pattern = fs::read_to_string(PATTERN).unwrap_or_default();
        if let Some((known, ours)) = &self.known
            && *known == pattern
        {
            return *ours;
        }
        let (program, config) = match words(&pattern) {
            Some(words) => words,
            None => return false,
        };
        let waits = fs::read_to_string(LIMIT).is_ok_and(|text| text.trim() != "0");
        let ours = waits
            && is_initial()
            && is_own_program(Path::new(program))
            && sockets_of(config).contains(socket);
        self.known = Some((pattern, ours));
        ours
    }
}

/// The program of `|PROGRAM core …`, and the configuration that it is given.
fn words(pattern: &str) -> Option<(&str, Option<&Path>)> {
    let mut words = pattern.trim().strip_prefix('|')?.split_ascii_whitespace();
    let program = words.next()?;
    if words.next() != Some("core") {
        return None;
    }
    let config = words.find_map(|word| word.strip_prefix("--config="));
    Some((program, config.map(Path::new)))
}

fn is_initial() -> bool {
    fs::metadata(OWN_NAMESPACE).is_ok_and(|found| found.ino() == INITIAL_NAMESPACE)
}

fn is_own_program(path: &Path) -> bool {
    match (fs::metadata(path), fs::metadata("/proc/self/exe")) {
        (Ok(one), Ok(own)) => (one.dev(), one.ino()) == (own.dev(), own.ino()),
        (_, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pipe_to_the_verb_counts() {
        let ours = "|/usr/local/bin/agent core --pid=%P --config=/etc/x.toml --time=%t\n";
        assert_eq!(
            words(ours),
            Some(("/usr/local/bin/agent", Some(Path::new("/etc/x.toml"))))
        );
        assert_eq!(
            words("|/bin/agent core --pid=%P"),
            Some(("/bin/agent", None))
        );
        for other in [
            "core",
            "",
            "|/usr/share/apport/apport -p%p",
            "|/bin/agent",
            "/x/agent core",
        ] {
            assert_eq!(words(other), None, "{other}");
        }
    }

    #[test]
    fn nobody_who_does_not_listen_is_handed_anything() {
        assert!(!Ownership::default().is_ours());
        let nowhere = Arc::new(OnceLock::new());
        assert!(!Ownership::of(nowhere, |_| Vec::new()).is_ours());
    }
}
