//! Many crashes, many threads, much memory: nothing grows, and what is told is bounded.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/crashes.rs"]
mod crashes;
mod support;

use std::time::Duration;

use agent::Agent;
use crashes::{c, events, functions_of, of, record, reported, service};
use serde_json::Value;
use support::{RedisServer, Scratch, eventually, within};

fn records(agent: &Agent) -> usize {
    let records = std::fs::read_dir(agent.folder.join("crashes"));
    let records = records.into_iter().flatten().flatten();
    records.filter(|record| record.path().is_dir()).count()
}

/// How often all signatures together were seen.
fn seen(agent: &Agent) -> u64 {
    let text = std::fs::read(agent.folder.join("crashes/seen.json")).unwrap_or_default();
    let all: Value = serde_json::from_slice(&text).unwrap_or_default();
    let counts = all.as_object().into_iter().flatten();
    counts.filter_map(|(_, seen)| seen["count"].as_u64()).sum()
}

const NULL: &str = r#"
static int inner(volatile int *where) { return *where; }
int main(void) { return inner(0); }
"#;

/// All of one C library's way to end: only what called it differs.
const ABORT: &str = r#"
#include <stdlib.h>
#include <string.h>
static void one(void) { abort(); }
static void other(void) { abort(); }
int main(int n, char **v) { if (!strcmp(v[1], "one")) one(); other(); }
"#;

#[test]
fn fifty_services_at_once_are_each_reported() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("crowd");
    let program = c(&programs, "null", NULL);
    let text: String = (0..50)
        .map(|n| service(&format!("s{n}"), &program, ""))
        .collect();
    let agent = Agent::start(Some(&server), &text);
    within(Duration::from_secs(90), "all are counted", || {
        seen(&agent) == 50
    });
    // The same crash of another service is news.
    for n in 0..50 {
        eventually("each service's crash is reported", || {
            of(&server, &format!("s{n}"), "crash").len() == 1
        });
    }
    // The first word is said of every one.
    for n in 0..50 {
        let name = format!("s{n}");
        agent.wait_for(&name, "failed");
        assert!(agent.service(&name)["crash_id"].is_string(), "{name}");
        let events = events(&server, &name);
        let crashes = events.iter().filter(|event| *event == "crash");
        assert_eq!(crashes.count(), 1, "{name}");
    }
    assert!(records(&agent) <= 16);
}

#[test]
fn one_place_of_the_library_is_not_one_crash() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("crowd");
    let program = c(&programs, "abort", ABORT);
    let service = |name: &str, mode: &str, restart: &str| {
        format!(
            "\n[service.{name}]\nexecutable = {program:?}\nargs = [{mode:?}]\nrestart = \"{restart}\"\n\
             backoff = {{ initial = \"50ms\", max = \"50ms\" }}\nstart_limit = {{ burst = 0 }}\n"
        )
    };
    let text = service("often", "one", "always") + &service("rare", "other", "never");
    let agent = Agent::start(Some(&server), &text);
    within(Duration::from_secs(90), "it is reported no more", || {
        seen(&agent) > 20
    });
    assert!(agent.ask(&["stop", "often"]).status.success());
    // All that waits is worked off: what comes next is not one of too many at once.
    let runs = agent.service("often")["restarts"].as_u64().unwrap_or(0) + 1;
    within(Duration::from_secs(60), "all are counted", || {
        seen(&agent) >= runs
    });
    let often = of(&server, "often", "crash").len();
    assert!((10..=20).contains(&often), "{often} reports");
    let first = of(&server, "rare", "crash").len();
    assert!(agent.ask(&["start", "rare"]).status.code().is_some());
    eventually("the other one is reported as well", || {
        of(&server, "rare", "crash").len() > first
    });
    let entry = of(&server, "rare", "crash").pop().expect("a report");
    assert!(entry.message().contains("other ()"), "{}", entry.message());
}

const THREADS: &str = r#"
#include <pthread.h>
#include <unistd.h>
static pthread_barrier_t all;
static void *idle(void *x) { pthread_barrier_wait(&all); for (;;) pause(); return x; }
static int divide(int by) { return 100 / by; }
int main(int n, char **v) {
  pthread_t t; pthread_attr_t a; pthread_attr_init(&a); pthread_attr_setstacksize(&a, 65536);
  pthread_barrier_init(&all, 0, COUNT);
  for (int i = 1; i < COUNT; i++) pthread_create(&t, &a, idle, 0);
  pthread_barrier_wait(&all);
  return divide(n - 1);
}
"#;

/// Threads that are told of in the record, and those of which is said why not.
fn told_of(threads: usize) -> (usize, String) {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("crowd");
    let source = THREADS.replace("COUNT", &threads.to_string());
    let program = c(&programs, "threads", &source);
    let agent = Agent::start(Some(&server), &service("many", &program, ""));
    let report = reported(&server, "many");
    assert_eq!(report["threads"][0]["frames"][0]["function"], "divide");
    // The stream has the first ones, the record has all.
    let record = record(&agent, &report);
    let whole = std::fs::read(record.join("report.json")).expect("a report");
    let whole: Value = serde_json::from_slice(&whole).expect("JSON");
    let core = std::fs::metadata(record.join("core"))
        .expect("a core file")
        .len();
    assert!(core < threads as u64 * (32 << 10), "{core} bytes");
    let shown = whole["threads"].as_array().map_or(0, Vec::len);
    (shown, whole["notes"].to_string())
}

/// Both are 300 frames deep: the first thread crashes with 40 KiB frames (12 MiB in all), another waits with 4 KiB ones.
const DEEP: &str = r#"
#include <pthread.h>
#include <unistd.h>
static pthread_barrier_t both;
static int waits(int n) { volatile char room[4096]; room[0] = n; if (!n) { pthread_barrier_wait(&both); pause(); } else waits(n - 1); return room[0]; }
static int falls(int n) { volatile char room[40960]; room[0] = n; if (!n) return *(volatile int *)0; falls(n - 1); return room[0]; }
static void *other(void *x) { waits(300); return x; }
static void *first(void *x) { pthread_barrier_wait(&both); falls(300); return x; }
int main(void) {
  pthread_t t; pthread_attr_t a; pthread_attr_init(&a); pthread_attr_setstacksize(&a, 24 << 20);
  pthread_barrier_init(&both, 0, 2);
  pthread_create(&t, 0, other, 0); pthread_create(&t, &a, first, 0);
  return pthread_join(t, 0);
}
"#;

#[test]
fn deep_stacks_are_told_up_to_their_thread() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("crowd");
    let program = c(&programs, "deep", DEEP);
    let agent = Agent::start(Some(&server), &service("deep", &program, ""));
    let report = reported(&server, "deep");
    let whole = std::fs::read(record(&agent, &report).join("report.json")).expect("a report");
    let whole: Value = serde_json::from_slice(&whole).expect("JSON");
    let threads = whole["threads"].as_array().expect("threads");
    for (inner, outer) in [("falls", "first"), ("waits", "other")] {
        let functions = threads
            .iter()
            .map(functions_of)
            .find(|f| f.iter().any(|function| function == inner));
        let functions = functions.unwrap_or_else(|| panic!("no thread in {inner}"));
        let outermost = &functions[functions.len() - 32.min(functions.len())..];
        assert!(
            outermost.iter().any(|function| function == outer),
            "{outermost:?}"
        );
    }
}

/// On a busy machine some do not stop in time: the process is not held any longer for them, and that is said.
fn moving(notes: &str) -> usize {
    let number = notes
        .split_once(" threads did not stop")
        .and_then(|(before, _)| before.rsplit(|c: char| !c.is_ascii_digit()).next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[test]
fn a_thousand_threads() {
    let (shown, notes) = told_of(1000);
    assert_eq!(shown + moving(&notes), 1000, "{notes}");
}

#[test]
fn thousands_of_threads_are_bounded_and_told() {
    let (shown, notes) = told_of(5000);
    let stopped = 5000 - moving(&notes);
    assert_eq!(shown, stopped.min(4096), "{notes}");
    let told = notes.contains(&format!("only 4096 of {stopped} threads are shown"));
    assert_eq!(told, stopped > 4096, "{notes}");
}

const BIG: &str = r#"
#include <stdlib.h>
#include <string.h>
int main(void) { size_t size = 1ul << 30; char *all = malloc(size); memset(all, 1, size); return *(volatile int *)0; }
"#;

#[test]
#[ignore = "a gibibyte of memory"]
fn a_gibibyte_of_memory_makes_no_difference() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("crowd");
    let program = c(&programs, "big", BIG);
    let agent = Agent::start(Some(&server), &service("big", &program, ""));
    let report = reported(&server, "big");
    let core = record(&agent, &report).join("core");
    let size = std::fs::metadata(core).expect("a core file").len();
    assert!(size < 4 << 20, "{size} bytes");
}

#[test]
#[ignore = "ten thousand crashes: a minute or two"]
fn ten_thousand_crashes_leave_nothing_behind() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("crowd");
    let program = c(&programs, "null", NULL);
    let text = format!(
        "\n[service.loop]\nexecutable = {program:?}\nbackoff = {{ initial = \"1ms\", max = \"1ms\" }}\n\
         start_limit = {{ burst = 0 }}\n"
    );
    let agent = Agent::start(Some(&server), &text);
    let restarts = || agent.service("loop")["restarts"].as_u64().unwrap_or(0);
    let memory = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        line.and_then(|l| l.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    };
    let fds = || std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).map_or(0, Iterator::count);
    within(Duration::from_secs(120), "a thousand", || restarts() > 1000);
    let before = memory();
    for thousands in 2..=10 {
        within(Duration::from_secs(120), "a thousand more", || {
            restarts() > thousands * 1000
        });
        println!("RssAnon {} KiB after {thousands},000", memory());
    }
    assert!(agent.ask(&["stop", "loop"]).status.success());
    let after = memory();
    println!(
        "RssAnon {before} KiB after 1,000, {after} KiB after 10,000 crashes; {} descriptors",
        fds()
    );
    assert!(after < before + 4096, "{before} KiB, then {after} KiB");
    eventually("no descriptor is left open", || fds() < 40);
    let children = format!("/proc/{0}/task/{0}/children", agent.pid());
    eventually("no child is left", || {
        std::fs::read_to_string(&children).is_ok_and(|text| text.trim().is_empty())
    });
}
