//! Disks that hang, and disks that lose power: the real agent on a file system of its own.
//!
//! Needs root and loop devices; says so where it has neither.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/disk.rs"]
mod disk;
mod support;

use std::time::Duration;

use agent::Agent;
use disk::{Disk, can_mount};
use support::{RedisServer, Scratch, entries, eventually, messages};

fn start(folder: &Scratch, disk: &Disk, server: &RedisServer, services: &str) -> Agent {
    let text = format!(
        "[agent]\nruntime_dir = {:?}\nstate_dir = {:?}\n\
         [redis]\nurl = \"unix://{}\"\nmax_len = 0\n{services}",
        folder.path(),
        disk.mount,
        server.socket().display()
    );
    Agent::start_beside(folder, &text)
}

const OTHER: &str = "[service.other]\nexecutable = \"/bin/sleep\"\nargs = [\"1000\"]\n";

/// Prints numbers, `quick` of them at once and then one every 20 ms.
fn talker(quick: usize) -> String {
    let script =
        format!("seq {quick}; i={quick}; while :; do i=$((i+1)); echo $i; sleep 0.02; done");
    format!("[service.talk]\nexecutable = \"/bin/sh\"\nargs = [\"-c\", '{script}']\n")
}

fn lines(server: &RedisServer, name: &str) -> Vec<usize> {
    let key = format!("logs:app:{name}:info");
    messages(&mut server.client(1), &key)
        .iter()
        .filter(|message| !message.starts_with("{{__"))
        .map(|message| message.parse().expect("a number"))
        .collect()
}

fn newest(server: &RedisServer) -> usize {
    lines(server, "talk").last().copied().unwrap_or(0)
}

fn spooled(agent: &Agent) -> u64 {
    let status = agent.status();
    status["agent"]["redis"]["spooled_lines"]
        .as_u64()
        .unwrap_or(u64::MAX)
}

#[test]
fn a_disk_that_hangs_stops_neither_delivery_nor_services() {
    if !can_mount() {
        return;
    }
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("hangs");
    let mut disk = Disk::new(&folder);
    let services = format!("{}{OTHER}", talker(10));
    let mut agent = start(&folder, &disk, &server, &services);
    eventually("lines flow", || newest(&server) > 30);
    disk.freeze();
    // Long enough that the disk is wanted.
    server.signal(libc::SIGSTOP);
    std::thread::sleep(Duration::from_secs(2));
    server.signal(libc::SIGCONT);
    let then = newest(&server);
    eventually("they flow again", || newest(&server) > then + 100);
    // A new run of a service: its start is told, which the disk should note first.
    assert!(agent.ask(&["restart", "other"]).status.success());
    eventually("both runs are told", || {
        entries(&mut server.client(1), "logs:app:other:status")
            .iter()
            .filter(|entry| entry.message().starts_with("{{__NEW_RUN_"))
            .count()
            == 2
    });
    let log = agent.log();
    assert_eq!(
        log.matches("cannot be written: no answer").count(),
        1,
        "{log}"
    );
    disk.thaw();
    eventually("it is said", || {
        agent.log().contains("can be written again")
    });
    // And is used again.
    server.signal(libc::SIGSTOP);
    let segments = || {
        std::fs::read_dir(disk.mount.join("spool")).is_ok_and(|entries| {
            entries
                .flatten()
                .any(|entry| entry.file_name().to_string_lossy().ends_with(".seg"))
        })
    };
    eventually("lines are on the disk", segments);
    server.signal(libc::SIGCONT);
    eventually("all is delivered", || !segments());
    assert!(agent.ask(&["stop", "talk"]).status.success());
    assert_eq!(agent.stop().code(), Some(0));
    let got = lines(&server, "talk");
    assert_eq!(got, (1..=got.len()).collect::<Vec<_>>());
}

#[test]
fn what_a_hanging_disk_holds_back_comes_later_and_once() {
    if !can_mount() {
        return;
    }
    let mut server = RedisServer::start(&[]);
    server.kill();
    let folder = Scratch::new("holds");
    let mut disk = Disk::new(&folder);
    let services = format!("[spool]\nmemory = \"256KiB\"\n{}", talker(40_000));
    let mut agent = start(&folder, &disk, &server, &services);
    eventually("most are only on the disk", || {
        spooled(&agent) >= 40_100 && spooled(&agent) != u64::MAX
    });
    disk.freeze();
    server.up();
    eventually("what comes now does not wait for it", || {
        newest(&server) > 40_200
    });
    assert!(lines(&server, "talk").len() < 40_000);
    disk.thaw();
    eventually("the rest follows", || {
        lines(&server, "talk").len() > 40_200 && spooled(&agent) < 100
    });
    assert!(agent.ask(&["stop", "talk"]).status.success());
    assert_eq!(agent.stop().code(), Some(0));
    let mut got = lines(&server, "talk");
    got.sort_unstable();
    assert_eq!(got, (1..=got.len()).collect::<Vec<_>>());
}

/// IDs are on the disk before they are used: what Redis has is found there again, whatever the
/// power cut took.
#[test]
fn what_was_sent_before_a_power_cut_is_not_sent_again() {
    if !can_mount() {
        return;
    }
    let mut server = RedisServer::start(&[]);
    server.kill();
    let folder = Scratch::new("power");
    let mut disk = Disk::new(&folder);
    let count = 60_000;
    let services = format!(
        "[service.talk]\nexecutable = \"/usr/bin/seq\"\nargs = [\"{count}\"]\nrestart = \"never\"\n"
    );
    let mut agent = start(&folder, &disk, &server, &services);
    eventually("all lines wait", || {
        spooled(&agent) >= count && spooled(&agent) != u64::MAX
    });
    // On the disk, not only in the page cache.
    std::thread::sleep(Duration::from_millis(2_500));
    let mut client = None;
    for cut in 0..8 {
        if client.is_none() {
            server.up();
            client = Some(server.client(1));
        }
        let length = |client: &mut Option<redis::Connection>| -> usize {
            redis::cmd("XLEN")
                .arg("logs:app:talk:info")
                .query(client.as_mut().expect("connected"))
                .expect("XLEN")
        };
        let wanted = (length(&mut client) + 1_000 + 1_977 * cut % 5_000).min(count as usize);
        eventually("some are delivered", || length(&mut client) >= wanted);
        agent.freeze();
        let image = disk.snapshot(&folder, cut);
        agent.signal(libc::SIGKILL);
        agent.wait();
        drop(disk);
        disk = Disk::mounted(&folder, image);
        agent = start(&folder, &disk, &server, OTHER);
    }
    eventually("everything is delivered", || {
        lines(&server, "talk").len() >= count as usize && spooled(&agent) == 0
    });
    assert_eq!(agent.stop().code(), Some(0));
    let got = lines(&server, "talk");
    let wanted: Vec<usize> = (1..=count as usize).collect();
    assert_eq!(got.len(), wanted.len());
    assert!(got == wanted, "in order");
}
