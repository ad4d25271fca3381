//! targets on the command line, Redis → JSON on stdout and an exit code: `agent health`.
//!
//! The drop-in for `jettison_health` (CONTRACTS section 6.3): scripts read its JSON with jq
//! and branch on its exit code, so errors are JSON on stdout too. One answer, in at most
//! [`LIMIT`], whatever Redis, the network or a name server do.

pub mod answer;
pub mod args;
pub mod fetch;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use crate::config::Redis;
use answer::Problem;
use args::Asked;
use fetch::{Ask, Failure};

/// For everything: reading the password, connecting, asking.
pub const LIMIT: Duration = Duration::from_secs(5);

/// `args` without the program's name. `load` gives Redis as a configuration file says, or
/// without one as the environment does; otherwise the reason in words. `ask` asks it.
pub fn main(
    args: &[OsString],
    load: impl Fn(Option<&Path>) -> Result<Redis, String>,
    ask: &Ask,
) -> i32 {
    perform(args, load, ask, &mut io::stdout(), &mut io::stderr())
}

/// As [`main`], with the outputs given.
pub fn perform(
    args: &[OsString],
    load: impl Fn(Option<&Path>) -> Result<Redis, String>,
    ask: &Ask,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> i32 {
    let (config, words) = match args::flags(args) {
        Asked::Help => {
            let _ = err.write_all(args::USAGE.as_bytes());
            return 0;
        }
        Asked::Wrong(sentence) => {
            let _ = write!(err, "{sentence}\n{}", args::USAGE);
            return 2;
        }
        Asked::Query { config, words } => (config, words),
    };
    let answered = load(config.as_deref())
        .map_err(|details| Problem::new("Configuration error", details))
        .and_then(|redis| {
            let targets = args::targets(&words)?;
            fetch::pools(&redis, targets, LIMIT, ask).map_err(|failure| match failure {
                Failure::Credential(details) => Problem::new("Credential loading failed", details),
                Failure::Connection(details) => Problem::new("Redis connection failed", details),
            })
        });
    let (document, code) = match answered {
        Ok(pools) => {
            let complete = pools.values().all(answer::Pool::is_complete);
            (answer::document(&pools), if complete { 0 } else { 1 })
        }
        Err(problem) => (problem.document(), 1),
    };
    let told = out
        .write_all(document.as_bytes())
        .and_then(|()| out.flush());
    if told.is_ok() { code } else { 1 }
}
