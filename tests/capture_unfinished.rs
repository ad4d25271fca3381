//! An agent that ends before every crash is analysed: the next one does it.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/crashes.rs"]
mod crashes;
mod support;

use std::path::Path;
use std::time::Duration;

use agent::Agent;
use crashes::{assert_top, c, document, events, of, service};
use support::{RedisServer, Scratch, eventually, within};

const CRASHES: &str = r#"
#include <stdio.h>
static int inner(volatile int *where) { return *where; }
static int outer(volatile int *where) { return inner(where); }
int main(void) { fputs("the last line\n", stderr); return outer(0); }
"#;
const SERVICES: usize = 12;

fn names() -> impl Iterator<Item = String> {
    (0..SERVICES).map(|number| format!("s{number}"))
}

fn of_records(folder: &Path, file: &str) -> usize {
    let records = std::fs::read_dir(folder.join("crashes"));
    let records = records.into_iter().flatten().flatten();
    let files = records.map(|record| record.path().join(file));
    files.filter(|file| file.exists()).count()
}

/// Cores that are written to their end (elf(5)): an agent that is killed before leaves one that is cut off.
fn whole_cores(folder: &Path) -> usize {
    let records = std::fs::read_dir(folder.join("crashes"));
    let records = records.into_iter().flatten().flatten();
    let cores = records.filter_map(|record| std::fs::read(record.path().join("core")).ok());
    cores.filter(|core| is_whole(core).unwrap_or(false)).count()
}

fn is_whole(core: &[u8]) -> Option<bool> {
    let number = |at: usize| Some(u64::from_le_bytes(*core.get(at..)?.first_chunk()?));
    let headers = number(32)? as usize;
    let count = u16::from_le_bytes(*core.get(56..)?.first_chunk()?);
    for header in (0..usize::from(count)).map(|index| headers + 56 * index) {
        let end = number(header + 8)? + number(header + 32)?;
        if end > core.len() as u64 {
            return Some(false);
        }
    }
    Some(count > 0)
}

/// Ends the agent by `signal` once all have crashed and been written down, and starts another without them.
fn finished_by_the_next(signal: i32) {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("unfinished");
    let folder = Scratch::new("ua");
    let program = c(&programs, "crashes", CRASHES);
    let services: String = names().map(|name| service(&name, &program, "")).collect();
    let text = format!("{}{services}", agent::head(&folder, Some(&server)));
    let mut first = Agent::start_beside(&folder, &text);
    let all = |name: String| events(&server, &name).contains(&"crash".to_owned());
    within(Duration::from_secs(60), "all have crashed", || {
        names().all(all)
    });
    within(Duration::from_secs(60), "all are on disk", || {
        whole_cores(folder.path()) >= SERVICES
    });
    first.signal(signal);
    first.wait();
    let text = text.replacen("[agent]\n", "[agent]\nmaintenance = true\n", 1);
    let next = Agent::start_beside(&folder, &text);
    for name in names() {
        within(
            Duration::from_secs(60),
            &format!("{name} is reported"),
            || !of(&server, &name, "crash").is_empty(),
        );
    }
    eventually("nothing waits", || {
        of_records(folder.path(), "left.json") == 0
    });
    for name in names() {
        let entries = of(&server, &name, "crash");
        assert_eq!(entries.len(), 1, "{name}");
        let report = document(&entries[0]);
        assert_top(&report, &["inner", "outer", "main"]);
        assert_eq!(report["signal"]["name"], "SIGSEGV");
        assert_eq!(report["log"][0], "the last line", "{name}");
        let crashes = events(&server, &name);
        let crashes = crashes.iter().filter(|event| *event == "crash");
        assert_eq!(crashes.count(), 1, "{name} is told of once");
    }
    assert_eq!(of_records(folder.path(), "report.json"), SERVICES);
    assert_eq!(of_records(folder.path(), "core"), SERVICES);
    drop(next);
}

#[test]
fn what_a_killed_agent_had_not_analysed() {
    finished_by_the_next(libc::SIGKILL);
}

#[test]
fn what_was_not_analysed_before_an_ordered_end() {
    finished_by_the_next(libc::SIGTERM);
}
