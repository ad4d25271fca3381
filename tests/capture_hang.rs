//! A service that hangs leaves what it did, and every report what the board felt.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/crashes.rs"]
mod crashes;
mod support;

use std::path::Path;

use agent::Agent;
use crashes::{c, events, functions_of, of, record, reported};
use serde_json::Value;
use support::{RedisServer, Scratch, eventually};

/// Says once that it is ready, and then nothing any more: two threads wait for each other.
const STUCK: &str = r#"
#define _GNU_SOURCE
#include <stddef.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER, two = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t both;
static const char *file;
/// Both are in it by now: whoever looks finds them there, however busy the machine is.
static void ready(void) {
  struct sockaddr_un to = { AF_UNIX }; const char *path = getenv("NOTIFY_SOCKET");
  if (file) fclose(fopen(file, "w"));
  if (!path) return;
  strcpy(to.sun_path, path); if (*path == '@') to.sun_path[0] = 0;
  int s = socket(AF_UNIX, SOCK_DGRAM, 0);
  sendto(s, "READY=1", 7, 0, (void *)&to, offsetof(struct sockaddr_un, sun_path) + strlen(path));
}
static void take(pthread_mutex_t *a, pthread_mutex_t *b) {
  pthread_mutex_lock(a); pthread_barrier_wait(&both);
  if (a == &one) ready();
  pthread_mutex_lock(b);
}
static void *second(void *x) { take(&two, &one); return x; }
int main(int n, char **v) {
  pthread_t t; pthread_barrier_init(&both, 0, 2); file = v[1];
  pthread_create(&t, 0, second, 0); pthread_setname_np(t, "second");
  printf("going to hang\n"); fflush(stdout);
  take(&one, &two);
}
"#;

fn is_a_report_of_the_hang(report: &Value) {
    assert_eq!(report["kind"], "hang");
    assert!(report.get("signal").is_none(), "{report:#}");
    assert_eq!(report["log"][0], "going to hang");
    let threads = report["threads"].as_array().cloned().unwrap_or_default();
    assert_eq!(threads.len(), 2, "{report:#}");
    for thread in &threads {
        assert!(
            functions_of(thread).contains(&"take".to_owned()),
            "{report:#}"
        );
        assert_eq!(thread["crashed"], false);
    }
    assert!(functions_of(&threads[0]).contains(&"main".to_owned()));
    assert_eq!(threads[1]["name"], "second");
    assert_eq!(report["seen"]["count"], 1);
}

#[test]
fn what_misses_its_watchdog_leaves_its_stacks() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("hang");
    let program = c(&programs, "stuck", STUCK);
    let text = format!(
        "\n[service.dog]\nexecutable = {program:?}\ntype = \"notify\"\nwatchdog = \"500ms\"\nrestart = \"never\"\n"
    );
    let agent = Agent::start(Some(&server), &text);
    agent.wait_for("dog", "failed");
    assert_eq!(agent.service("dog")["exit"], 137);
    let report = reported(&server, "dog");
    is_a_report_of_the_hang(&report);
    assert_eq!(agent.service("dog")["crash_id"], report["crash_id"]);
    let record = record(&agent, &report);
    assert!(record.join("core").exists() && record.join("report.txt").exists());
    // A hang is no crash: `status` tells how it ended.
    let events = events(&server, "dog");
    assert!(!events.contains(&"crash".to_owned()), "{events:?}");
}

#[test]
fn what_fails_its_check_leaves_its_stacks_before_it_is_stopped() {
    let server = RedisServer::start(&[]);
    let programs = Scratch::new("hang");
    let program = c(&programs, "stuck", STUCK);
    let service = |name: &str, more: &str| {
        let hangs = programs.join(name);
        format!(
            "\n[service.{name}]\nexecutable = {program:?}\nargs = [{hangs:?}]\nrestart = \"never\"\n{more}\n\
             [[service.{name}.check]]\nname = \"c\"\nexec = [\"/bin/sh\", \"-c\", \"! test -e {0}\"]\n\
             interval = \"200ms\"\nfailures = 2\naction = \"restart\"\n",
            hangs.display()
        )
    };
    let text = [service("sick", ""), service("untraced", "crash = \"off\"")].concat();
    let agent = Agent::start(Some(&server), &text);
    agent.wait_for("sick", "failed");
    agent.wait_for("untraced", "failed");
    // It still obeys.
    assert_eq!(agent.service("sick")["exit"], 143);
    is_a_report_of_the_hang(&reported(&server, "sick"));
    assert!(of(&server, "untraced", "crash").is_empty());
}

#[test]
fn the_boards_sensors_at_that_moment() {
    let server = RedisServer::start(&[]);
    let text =
        "\n[service.rest]\nexecutable = \"/bin/sleep\"\nargs = [\"1000\"]\nrestart = \"never\"\n";
    let agent = Agent::start(Some(&server), text);
    agent.wait_for("rest", "ready");
    eventually("the board is known", || {
        let keys: Vec<String> = redis::cmd("KEYS")
            .arg("agent:device:*")
            .query(&mut server.client(2))
            .expect("keys");
        !keys.is_empty()
    });
    assert!(agent.ask(&["signal", "SEGV", "rest"]).status.success());
    let report = reported(&server, "rest");
    assert_eq!(report["kind"], "crash");
    let device = &report["device"];
    assert!(
        device["memory_total_bytes"].as_u64() > Some(1 << 20),
        "{device:#}"
    );
    assert!(device["boot_id"].is_string(), "{device:#}");
    // Raised by another process: who sent it is told.
    assert_eq!(report["signal"]["sender"], agent.pid());
    assert!(Path::new("/bin/sleep").exists());
}
