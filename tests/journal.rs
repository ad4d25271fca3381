//! What the agent has read survives it: SIGKILL, a full disk, a disk that cannot be written.
//!
//! The real agent, with a service that counts, against a real redis-server that comes and
//! goes. Every line once, in order, and every run closed.

#[path = "support/agent.rs"]
mod agent;
mod support;

use std::time::Duration;

use agent::{Agent, head};
use support::{RedisServer, Scratch, entries, eventually, messages, within};

/// A service that prints `from` to `to`, then sleeps.
fn counter(name: &str, from: u64, to: u64, pause: &str) -> String {
    let script = format!(
        "i={from}; while [ $i -le {to} ]; do echo $i; i=$((i+1)); {pause} done; exec sleep 1000"
    );
    format!("\n[service.{name}]\nexecutable = \"/bin/sh\"\nargs = [\"-c\", '''{script}''']\n")
}

fn lines(server: &RedisServer, name: &str) -> Vec<String> {
    let key = format!("logs:app:{name}:info");
    messages(&mut server.client(1), &key)
        .into_iter()
        .filter(|message| !message.starts_with("{{__"))
        .collect()
}

fn numbers(from: u64, to: u64) -> Vec<String> {
    (from..=to).map(|number| number.to_string()).collect()
}

/// The agent's folder outlives it here.
fn next_life(folder: &Scratch, server: &RedisServer, services: &str) -> Agent {
    let other = match services {
        "" => "[service.other]\nexecutable = \"/bin/sleep\"\nargs = [\"1000\"]\n",
        services => services,
    };
    let text = format!("{}max_len = 0\n{other}", head(folder, Some(server)));
    Agent::start_beside(folder, &text)
}

fn spooled(agent: &Agent) -> u64 {
    agent.status()["agent"]["redis"]["spooled_lines"]
        .as_u64()
        .unwrap_or(0)
}

fn segments(folder: &Scratch) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(folder.join("spool")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(".seg"))
        .filter_map(|entry| entry.metadata().ok())
        .map(|data| data.len())
        .collect()
}

#[test]
fn lines_survive_the_agents_death_and_its_run_is_closed() {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let folder = Scratch::new("killed");
    let mut agent = next_life(&folder, &server, &counter("talk", 1, 3_000, ""));
    eventually("all lines wait", || spooled(&agent) >= 3_000);
    eventually("they are on the disk", || {
        segments(&folder).iter().sum::<u64>() > 10_000
    });
    // On the disk after one second at the latest.
    std::thread::sleep(Duration::from_millis(1_000));
    agent.signal(libc::SIGKILL);
    agent.wait();
    server.up();
    let mut agent = next_life(&folder, &server, &counter("talk", 3_001, 3_100, ""));
    eventually("the next life's lines", || {
        lines(&server, "talk").len() >= 3_100
    });
    assert_eq!(lines(&server, "talk"), numbers(1, 3_100));
    for kind in ["info", "status"] {
        let key = format!("logs:app:talk:{kind}");
        let marks: Vec<String> = messages(&mut server.client(1), &key)
            .into_iter()
            .filter(|message| message.starts_with("{{__"))
            .collect();
        assert_eq!(marks.len(), 3, "{kind}: {marks:?}");
        assert!(marks[0].starts_with("{{__NEW_RUN_"), "{marks:?}");
        assert!(marks[1].starts_with("{{__END_RUN_") && marks[1].ends_with("_exit_-1}}"));
        assert!(marks[2].starts_with("{{__NEW_RUN_"), "{marks:?}");
    }
    eventually("the journal is empty", || segments(&folder).is_empty());
    assert_eq!(agent.stop().code(), Some(0));
    // An ordered end leaves nothing open.
    let mut agent = next_life(&folder, &server, "");
    agent.wait_for("other", "ready");
    assert_eq!(agent.stop().code(), Some(0));
    let ends = messages(&mut server.client(1), "logs:app:talk:info")
        .iter()
        .filter(|message| message.contains("_exit_-1"))
        .count();
    assert_eq!(ends, 1);
}

/// Whatever reader of Redis sees a run begin will see it end, also where the agent was killed
/// in the same moment.
#[test]
fn a_run_whose_marker_is_in_redis_is_closed() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("closed");
    let info = "logs:app:quiet:info";
    let mut client = server.client(1);
    let begins = |client: &mut redis::Connection, key: &str| {
        let all = messages(client, key);
        all.iter()
            .filter(|line| line.starts_with("{{__NEW_RUN_"))
            .count()
    };
    for life in 0..24 {
        // Both streams' markers take turns in being the one that is seen.
        let seen = ["logs:app:quiet:status", info][life % 2];
        let before = begins(&mut client, seen);
        let mut agent = next_life(&folder, &server, &counter("quiet", 1, 3, ""));
        eventually("the marker is in Redis", || {
            begins(&mut client, seen) > before
        });
        agent.signal(libc::SIGKILL);
        agent.wait();
        let mut agent = next_life(&folder, &server, "");
        eventually("the run is closed", || {
            messages(&mut client, seen)
                .last()
                .is_some_and(|last| last.ends_with("_exit_-1}}"))
        });
        agent.signal(libc::SIGKILL);
        agent.wait();
    }
    // Each of them once, and nothing was written for entries that Redis acknowledged at once.
    let mut agent = next_life(&folder, &server, "");
    agent.wait_for("other", "ready");
    assert_eq!(agent.stop().code(), Some(0));
    assert!(segments(&folder).is_empty());
}

/// And one whose end is in Redis is not ended once more, also where the agent was killed in the
/// moment in which it got the answer.
#[test]
fn a_run_whose_end_is_in_redis_is_ended_once() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("ended");
    let mut client = server.client(1);
    let quick =
        "[service.quick]\nexecutable = \"/bin/echo\"\nargs = [\"x\"]\nrestart = \"never\"\n";
    for life in 0..16 {
        let seen = ["logs:app:quick:status", "logs:app:quick:info"][life % 2];
        // What is there already is of earlier lives.
        let mut last = entries(&mut client, seen)
            .pop()
            .map_or("0".to_owned(), |entry| entry.id);
        type Entries = Vec<(String, Vec<String>)>;
        let mut read = |block: &str| -> Vec<String> {
            let read: Option<Vec<(String, Entries)>> = redis::cmd("XREAD")
                .arg(&["BLOCK", block, "STREAMS", seen, &last])
                .query(&mut client)
                .expect("XREAD");
            let read = read.unwrap_or_default().into_iter();
            read.flat_map(|(_, entries)| entries)
                .map(|(id, fields)| {
                    last = id;
                    fields[1].clone()
                })
                .collect()
        };
        let mut agent = next_life(&folder, &server, quick);
        // Without a pause between the moment in which Redis has it and the kill.
        eventually("the end is in Redis", || {
            let read = read("10000");
            read.iter().any(|line| line.ends_with("_exit_0}}"))
        });
        agent.signal(libc::SIGKILL);
        agent.wait();
        // What the next life has to say about it comes before its own end.
        let mut agent = next_life(&folder, &server, "");
        agent.wait_for("other", "ready");
        assert_eq!(agent.stop().code(), Some(0));
        let more = read("1");
        assert!(
            !more.iter().any(|line| line.starts_with("{{__END_RUN_")),
            "life {life}, {seen}: {more:?}"
        );
    }
}

#[test]
fn killed_again_and_again_while_it_delivers() {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let folder = Scratch::new("again");
    let count = 60_000;
    let mut agent = next_life(
        &folder,
        &server,
        &format!(
            "\n[service.seq]\nexecutable = \"/usr/bin/seq\"\nargs = [\"{count}\"]\nrestart = \"never\"\n"
        ),
    );
    eventually("all lines wait", || spooled(&agent) >= count);
    std::thread::sleep(Duration::from_millis(1_100));
    agent.signal(libc::SIGKILL);
    agent.wait();
    server.up();
    // Lives that end somewhere in the middle of the delivery.
    for life in 0..12u64 {
        let mut agent = next_life(&folder, &server, "");
        let before = lines(&server, "seq").len();
        let wanted = (before + 3_000 + 977 * life as usize % 4_000).min(count as usize);
        within(Duration::from_secs(30), "some are delivered", || {
            let mut client = server.client(1);
            redis::cmd("XLEN")
                .arg("logs:app:seq:info")
                .query::<usize>(&mut client)
                .is_ok_and(|length| length >= wanted)
        });
        agent.signal(libc::SIGKILL);
        agent.wait();
    }
    let mut agent = next_life(&folder, &server, "");
    eventually("everything is delivered", || spooled(&agent) == 0);
    assert_eq!(agent.stop().code(), Some(0));
    let got = lines(&server, "seq");
    let wanted = numbers(1, count);
    assert_eq!(got.len(), wanted.len());
    assert!(got == wanted, "in order");
}

#[test]
fn a_full_disk_drops_the_oldest_of_the_loudest_and_counts_it() {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let folder = Scratch::new("full");
    let services = format!(
        "[spool]\nmemory = \"256KiB\"\ndisk = \"2MiB\"\n{}\n[service.loud]\nexecutable = \"/usr/bin/seq\"\nargs = [\"-f\", \"%.0f and some more text to make it longer\", \"200000\"]\nrestart = \"never\"\n",
        counter("calm", 1, 200, "sleep 0.01;"),
    );
    let mut agent = next_life(&folder, &server, &services);
    eventually("lines are dropped", || {
        agent.status()["agent"]["redis"]["dropped"].as_u64() > Some(100_000)
    });
    agent.wait_for("loud", "done");
    std::thread::sleep(Duration::from_millis(2_500));
    assert!(
        segments(&folder).iter().sum::<u64>() <= 2 << 20,
        "{:?}",
        segments(&folder)
    );
    server.up();
    within(Duration::from_secs(30), "the rest is delivered", || {
        spooled(&agent) == 0 && lines(&server, "calm").len() >= 200
    });
    assert_eq!(
        lines(&server, "calm"),
        numbers(1, 200),
        "the calm one lost nothing"
    );
    // What was lost last is told at the end at the latest.
    assert_eq!(agent.stop().code(), Some(0));
    let loud = lines(&server, "loud");
    let first: u64 = loud[0].split(' ').next().unwrap().parse().unwrap();
    assert_eq!(loud.last().unwrap().split(' ').next(), Some("200000"));
    let status = entries(&mut server.client(1), "logs:app:loud:status");
    let dropped: u64 = status
        .iter()
        .filter(|entry| entry.field("event").as_deref() == Some("dropped"))
        .map(|entry| entry.field("count").unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(
        dropped + loud.len() as u64,
        200_001 - 1 + u64::from(first > 1),
        "every drop is counted (the start marker too)"
    );
}

#[test]
fn a_disk_that_cannot_be_written_is_said_and_memory_does() {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let folder = Scratch::new("readonly");
    // A file where the folder should be: also root cannot write there.
    folder.file("spool", "in the way");
    let mut agent = next_life(&folder, &server, &counter("talk", 1, 500, ""));
    eventually("it is said", || agent.log().contains("kept in memory only"));
    eventually("lines wait", || spooled(&agent) >= 500);
    server.up();
    eventually("and are delivered", || lines(&server, "talk").len() == 500);
    assert_eq!(agent.log().matches("kept in memory only").count(), 1);
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn blocked_children_wait_and_lose_nothing() {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let folder = Scratch::new("block");
    let services = "[spool]\nmemory = \"128KiB\"\ndisk = \"512KiB\"\noverflow = \"block\"\n\
        [service.flood]\nexecutable = \"/usr/bin/seq\"\nargs = [\"400000\"]\nrestart = \"never\"\n";
    let mut agent = next_life(&folder, &server, services);
    let mut before = 0;
    eventually("the child waits", || {
        std::thread::sleep(Duration::from_millis(700));
        let now = spooled(&agent);
        let waits = now == before && now > 1_000;
        before = now;
        waits
    });
    assert_eq!(agent.service("flood")["state"], "ready");
    server.up();
    within(Duration::from_secs(60), "all is delivered", || {
        std::thread::sleep(Duration::from_millis(200));
        spooled(&agent) == 0 && agent.service("flood")["state"] == "done"
    });
    let (got, wanted) = (lines(&server, "flood"), numbers(1, 400_000));
    let differs = got
        .iter()
        .zip(&wanted)
        .position(|(got, wanted)| got != wanted);
    assert!(
        got == wanted,
        "{} lines, the first that differs: {differs:?}: {:?}",
        got.len(),
        differs.map(|at| &got[at.saturating_sub(2)..(at + 3).min(got.len())])
    );
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn counters_survive_the_agents_death_and_count_once() {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let folder = Scratch::new("counted");
    let services = "\n[service.marks]\nexecutable = \"/bin/sh\"\n\
        args = [\"-c\", 'for i in $(seq 500); do echo \"{{a}}{{b:$i}}{{b}}\"; done; exec sleep 1000']\n";
    let mut agent = next_life(&folder, &server, services);
    eventually("counts are noted", || folder.join("spool/counts").exists());
    std::thread::sleep(Duration::from_millis(1_500));
    agent.signal(libc::SIGKILL);
    agent.wait();
    server.up();
    for life in 0..6 {
        let mut agent = next_life(&folder, &server, "");
        if life > 0 {
            std::thread::sleep(Duration::from_millis(3 * life));
        }
        agent.signal(libc::SIGKILL);
        agent.wait();
    }
    let mut agent = next_life(&folder, &server, "");
    eventually("all is counted, and the note is gone", || {
        !folder.join("spool/counts").exists()
    });
    let mut client = server.client(2);
    for (key, wanted) in [("a", 500), ("b", 501)] {
        let value: u64 = redis::cmd("GET")
            .arg(format!("wrapp:marks:{key}"))
            .query(&mut client)
            .expect("a counter");
        assert_eq!(value, wanted, "{key}");
    }
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn a_frozen_redis_fills_the_disk_and_loses_nothing() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("frozen");
    // Many times what memory holds, over several segments, while nothing is acknowledged.
    let services = "[spool]\nmemory = \"1MiB\"\ndisk = \"64MiB\"\n\
        [service.flood]\nexecutable = \"/usr/bin/seq\"\nargs = [\"400000\"]\nrestart = \"never\"\n";
    server.signal(libc::SIGSTOP);
    let mut agent = next_life(&folder, &server, services);
    eventually("the child is not held up", || {
        agent.service("flood")["state"] == "done"
    });
    server.signal(libc::SIGCONT);
    within(Duration::from_secs(60), "all is delivered", || {
        spooled(&agent) == 0 && lines(&server, "flood").len() >= 400_000
    });
    assert!(lines(&server, "flood") == numbers(1, 400_000));
    assert_eq!(agent.service("flood")["dropped"], 0);
    assert_eq!(agent.status()["agent"]["redis"]["dropped"], 0);
    assert_eq!(agent.stop().code(), Some(0));
}
