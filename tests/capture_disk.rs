//! Crashes while the disk hangs, and before the power goes.
//!
//! Needs root and loop devices; says so where it has neither.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/crashes.rs"]
mod crashes;
#[path = "support/disk.rs"]
mod disk;
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use agent::Agent;
use crashes::{assert_top, c, document, of};
use disk::{Disk, can_mount};
use support::{RedisServer, Scratch, eventually, within};

const CRASHES: &str = r#"
static int inner(volatile int *where) { return *where; }
static int outer(volatile int *where) { return inner(where); }
int main(void) { return outer(0); }
"#;

/// The service crashes when it is started, and is not started by itself.
fn start(folder: &Scratch, disk: &Disk, server: &RedisServer, program: &Path) -> Agent {
    let text = format!(
        "[agent]\nruntime_dir = {:?}\nstate_dir = {:?}\nmaintenance = true\n\
         [redis]\nurl = \"unix://{}\"\n\
         [service.falls]\nexecutable = {program:?}\nrestart = \"never\"\n",
        folder.path(),
        disk.mount,
        server.socket().display()
    );
    Agent::start_beside(folder, &text)
}

fn records(state: &Path) -> Vec<(String, Vec<String>)> {
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names
    };
    let crashes = state.join("crashes");
    names(&crashes)
        .into_iter()
        .filter(|name| crashes.join(name).is_dir())
        .map(|name| (name.clone(), names(&crashes.join(name))))
        .collect()
}

#[test]
fn a_disk_that_hangs_holds_no_report_back() {
    if !can_mount() {
        return;
    }
    let server = RedisServer::start(&[]);
    let (folder, programs) = (Scratch::new("hung"), Scratch::new("hung-programs"));
    let program = c(&programs, "falls", CRASHES);
    let mut disk = Disk::new(&folder);
    let mut agent = start(&folder, &disk, &server, &program);
    disk.freeze();
    let _ = agent.ask(&["start", "falls"]);
    let reports = || of(&server, "falls", "crash");
    let since = Instant::now();
    let mut slowest = Duration::ZERO;
    within(
        Duration::from_secs(60),
        "it is reported without the disk",
        || {
            let asked = Instant::now();
            let _ = agent.service("falls");
            slowest = slowest.max(asked.elapsed());
            !reports().is_empty()
        },
    );
    assert!(
        since.elapsed() > Duration::from_secs(5),
        "the disk did not hang"
    );
    assert!(
        slowest < Duration::from_secs(5),
        "the agent stood still for {slowest:?}"
    );
    assert_top(&document(&reports()[0]), &["inner", "outer", "main"]);
    // The second one does not wait for the disk any more.
    let _ = agent.ask(&["start", "falls"]);
    within(Duration::from_secs(8), "the next one at once", || {
        reports().len() == 2
    });
    disk.thaw();
    eventually("what came too late is undone", || {
        records(&disk.mount).is_empty()
    });
    let _ = agent.ask(&["start", "falls"]);
    let whole = ["core", "report.json", "report.txt"].map(str::to_owned);
    eventually("the disk is used again", || {
        records(&disk.mount)
            .iter()
            .any(|(_, files)| *files == whole)
    });
    assert_eq!(agent.stop().code(), Some(0));
    // Nothing is left that the next agent would tell once more.
    let next = start(&folder, &disk, &server, &program);
    eventually("the next one has looked", || {
        next.log().contains("connected to Redis")
    });
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(reports().len(), 3, "{}", next.log());
}

#[test]
fn a_record_outlives_the_power() {
    if !can_mount() {
        return;
    }
    let server = RedisServer::start(&[]);
    let (folder, programs) = (Scratch::new("power"), Scratch::new("power-programs"));
    let program = c(&programs, "falls", CRASHES);
    let disk = Disk::new(&folder);
    let agent = start(&folder, &disk, &server, &program);
    let _ = agent.ask(&["start", "falls"]);
    eventually("it is reported", || {
        !of(&server, "falls", "crash").is_empty()
    });
    let id = of(&server, "falls", "crash")[0]
        .field("crash_id")
        .expect("an identifier");
    // As long as it takes to reach for the plug, and shorter than any file system writes back by itself (5 s).
    std::thread::sleep(Duration::from_secs(1));
    let image = disk.snapshot(&folder, 0);
    let elsewhere = Scratch::new("power-after");
    let after = Disk::mounted(&elsewhere, image);
    let record = after.mount.join("crashes").join(id);
    for (file, least) in [("report.json", 500), ("report.txt", 100), ("core", 8192)] {
        let size = std::fs::metadata(record.join(file)).map_or(0, |about| about.len());
        assert!(size >= least, "{file} has {size} bytes");
    }
    let report = std::fs::read(record.join("report.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    assert_top(&report, &["inner", "outer", "main"]);
}
