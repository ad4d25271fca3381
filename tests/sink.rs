//! The sink against a real redis-server that misbehaves.
//!
//! Each test sends numbered lines and then counts what the stream holds: every line once, in
//! order, whatever happened in between.

#[path = "support/sink.rs"]
mod harness;
mod support;

use std::sync::Arc;
use std::time::Duration;

use harness::{Sink, numbered, settings, unbounded};
use jettison_agent::clock::now_ms;
use jettison_agent::config::{Redis, Secret};
use jettison_agent::record::{
    Count, CountKind, Entry, Gauge, Keep, Record, StreamKind, Streams, Trim,
};
use support::{RedisServer, entries, eventually, messages};

/// Sends `count` numbered lines in chunks of `chunk`, calling `between` after each chunk.
fn send_numbered(
    sink: &Sink,
    streams: &Arc<Streams>,
    count: usize,
    chunk: usize,
    mut between: impl FnMut(usize),
) {
    let texts = numbered(count);
    for (index, texts) in texts.chunks(chunk).enumerate() {
        sink.lines(streams, texts.to_vec());
        between(index);
    }
}

fn assert_exactly_once(server: &RedisServer, key: &str, count: usize) {
    let got = messages(&mut server.client(1), key);
    let wanted = numbered(count);
    assert_eq!(got.len(), wanted.len(), "lines in {key}");
    if let Some(at) = (0..count).find(|at| got[*at] != wanted[*at]) {
        panic!("{key} differs at {at}: {} for {}", got[at], wanted[at]);
    }
}

/// Waits until a stream has `count` entries.
fn holds(server: &RedisServer, key: &str, count: usize) {
    let mut client = server.client(1);
    eventually(&format!("{key} holds {count}"), || {
        redis::cmd("XLEN").arg(key).query::<usize>(&mut client) == Ok(count)
    });
}

#[test]
fn lines_arrive_in_order_with_ids_of_their_time() {
    let server = RedisServer::start(&[]);
    let streams = unbounded("plain");
    let sink = Sink::start(settings(&server), 8 << 20);
    let before = now_ms();
    send_numbered(&sink, &streams, 5_000, 700, |_| {});
    assert_eq!(sink.finish(), 0);
    assert_exactly_once(&server, "logs:app:plain:info", 5_000);
    let all = entries(&mut server.client(1), "logs:app:plain:info");
    for entry in &all {
        assert!(entry.ms() >= before && entry.ms() <= now_ms(), "{entry:?}");
        assert!(entry.id.ends_with("000"), "steps of 1,000: {}", entry.id);
        assert_eq!(entry.fields.len(), 2, "message and source: {entry:?}");
    }
}

#[test]
fn connections_killed_while_lines_flow() {
    let server = RedisServer::start(&[]);
    let streams = unbounded("killed");
    let sink = Sink::start(settings(&server), 64 << 20);
    let mut killer = server.client(0);
    send_numbered(&sink, &streams, 60_000, 100, |index| {
        if index % 40 == 20 {
            let _: redis::RedisResult<i64> = redis::cmd("CLIENT")
                .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
                .query(&mut killer);
        }
    });
    assert_eq!(sink.finish(), 0);
    assert_exactly_once(&server, "logs:app:killed:info", 60_000);
}

#[test]
fn a_frozen_server_loses_and_doubles_nothing() {
    let server = RedisServer::start(&[]);
    let streams = unbounded("frozen");
    let sink = Sink::start(settings(&server), 64 << 20);
    send_numbered(&sink, &streams, 20_000, 100, |index| {
        if index == 50 {
            server.signal(libc::SIGSTOP);
        }
        if index == 150 {
            // Longer than the sink waits for an answer: it gives the connection up, and the
            // server, once thawed, still finds the old connection's commands.
            std::thread::sleep(Duration::from_millis(10_500));
            server.signal(libc::SIGCONT);
        }
    });
    assert_eq!(sink.finish(), 0);
    assert_exactly_once(&server, "logs:app:frozen:info", 20_000);
}

#[test]
fn what_a_killed_server_forgot_is_sent_again() {
    let mut server = RedisServer::start(&[]);
    let streams = unbounded("forgot");
    let sink = Sink::start(settings(&server), 64 << 20);
    send_numbered(&sink, &streams, 3_000, 100, |index| {
        if index == 10 {
            redis::cmd("SAVE")
                .exec(&mut server.client(0))
                .expect("SAVE");
        }
    });
    holds(&server, "logs:app:forgot:info", 3_000);
    // It comes back with the snapshot: a part of the stream, whose end is lost.
    server.kill();
    server.up();
    holds(&server, "logs:app:forgot:info", 3_000);
    assert_exactly_once(&server, "logs:app:forgot:info", 3_000);
    // And now with nothing.
    std::fs::remove_file(server.data()).expect("a snapshot");
    server.kill();
    server.up();
    holds(&server, "logs:app:forgot:info", 3_000);
    assert_eq!(sink.finish(), 0);
    assert_exactly_once(&server, "logs:app:forgot:info", 3_000);
}

#[test]
fn what_redis_had_long_enough_is_not_brought_back() {
    let server = RedisServer::start(&[]);
    let streams = unbounded("deleted");
    let mut sink = Sink::start(settings(&server), 8 << 20);
    send_numbered(&sink, &streams, 100, 100, |_| {});
    let mut client = server.client(1);
    let pings = |client: &mut redis::Connection| -> u64 {
        let stats: String = redis::cmd("INFO")
            .arg("commandstats")
            .query(client)
            .expect("INFO");
        u64::from(stats.contains("cmdstat_ping"))
    };
    eventually("the sink has asked once more", || pings(&mut client) > 0);
    redis::cmd("DEL")
        .arg("logs:app:deleted:info")
        .exec(&mut client)
        .expect("DEL");
    redis::cmd("CLIENT")
        .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
        .exec(&mut client)
        .expect("CLIENT KILL");
    sink.wait("connection lost", |gauge| !gauge.connected);
    sink.lines(&streams, ["new".to_owned()]);
    assert_eq!(sink.finish(), 0);
    assert_eq!(messages(&mut client, "logs:app:deleted:info"), ["new"]);
}

#[test]
fn trimmed_entries_are_not_taken_for_lost() {
    let server = RedisServer::start(&["--stream-node-max-entries", "10"]);
    let streams = Streams::new("short", Trim { max_len: 50 });
    let sink = Sink::start(settings(&server), 64 << 20);
    let mut killer = server.client(1);
    send_numbered(&sink, &streams, 20_000, 100, |index| {
        if index % 20 == 10 {
            let _: redis::RedisResult<i64> = redis::cmd("CLIENT")
                .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
                .query(&mut killer);
        }
    });
    assert_eq!(sink.finish(), 0);
    let got = messages(&mut killer, "logs:app:short:info");
    assert_eq!(got, numbered(20_000)[20_000 - got.len()..]);
    assert!(got.len() >= 50, "{}", got.len());
}

#[test]
fn exact_length_and_age() {
    let server = RedisServer::start(&[]);
    let exact = Keep {
        exact: true,
        ..Keep::default()
    };
    let aged = Keep {
        max_age_ms: 400,
        exact: true,
    };
    let short = Streams::keeping("exact", Trim { max_len: 17 }, exact);
    let young = Streams::keeping("aged", Trim { max_len: 0 }, aged);
    let sink = Sink::start(settings(&server), 8 << 20);
    send_numbered(&sink, &short, 1_000, 10, |_| {});
    send_numbered(&sink, &young, 100, 1, |_| {
        std::thread::sleep(Duration::from_millis(10));
    });
    assert_eq!(sink.finish(), 0);
    let mut client = server.client(1);
    let got = messages(&mut client, "logs:app:exact:info");
    assert_eq!(got, numbered(1_000)[983..]);
    let all = entries(&mut client, "logs:app:aged:info");
    let (first, last) = (all[0].ms(), all[all.len() - 1].ms());
    assert!(last - first <= 400, "{first} to {last}");
    assert!(all.len() < 60 && all[all.len() - 1].message() == "line 99");
}

#[test]
fn away_at_the_start_then_there() {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let streams = unbounded("late");
    let mut sink = Sink::start(settings(&server), 8 << 20);
    send_numbered(&sink, &streams, 1_000, 100, |_| {});
    sink.wait("lines wait", |gauge| gauge.spooled_lines == 1_000);
    let read = now_ms();
    std::thread::sleep(Duration::from_millis(1_200));
    server.up();
    sink.wait("lines are delivered", |gauge| {
        gauge.connected && gauge.spooled_lines == 0
    });
    assert_eq!(sink.finish(), 0);
    assert_exactly_once(&server, "logs:app:late:info", 1_000);
    let all = entries(&mut server.client(1), "logs:app:late:info");
    assert!(
        all.iter().all(|entry| entry.ms() <= read),
        "IDs say when the line was read, not when Redis came back"
    );
}

#[test]
fn a_full_memory_drops_the_oldest_and_says_so() {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let streams = unbounded("flood");
    let mut sink = Sink::start(settings(&server), 100 << 10);
    sink.word(Record::Entry(Entry::plain(
        &streams,
        StreamKind::Status,
        now_ms(),
        "life",
    )));
    send_numbered(&sink, &streams, 20_000, 100, |_| {});
    sink.wait("something was dropped", |gauge| gauge.dropped > 10_000);
    server.up();
    sink.wait("the rest is delivered", |gauge| {
        gauge.connected && gauge.spooled_lines == 0
    });
    assert_eq!(sink.finish(), 0);
    let got = messages(&mut server.client(1), "logs:app:flood:info");
    assert_eq!(got.last().map(String::as_str), Some("line 19999"));
    let status = entries(&mut server.client(1), "logs:app:flood:status");
    assert_eq!(status[0].message(), "life", "life-cycle entries go last");
    let dropped: usize = status
        .iter()
        .filter(|entry| entry.field("event").as_deref() == Some("dropped"))
        .map(|entry| entry.field("count").expect("a count").parse::<usize>())
        .sum::<Result<_, _>>()
        .expect("numbers");
    assert_eq!(dropped + got.len(), 20_000, "every drop is counted");
    assert_eq!(streams.tally.dropped(), dropped as u64);
}

#[test]
fn one_stream_of_the_wrong_type_holds_up_no_other() {
    let server = RedisServer::start(&[]);
    let mut client = server.client(1);
    redis::cmd("SET")
        .arg("logs:app:bad:info")
        .arg("a string")
        .exec(&mut client)
        .expect("SET");
    let (bad, good) = (unbounded("bad"), unbounded("good"));
    let mut sink = Sink::start(settings(&server), 8 << 20);
    for text in numbered(2_000) {
        sink.lines(&bad, [text.clone()]);
        sink.lines(&good, [text]);
    }
    sink.wait("the good ones are through", |gauge| {
        gauge.spooled_lines == 2_000
    });
    assert_exactly_once(&server, "logs:app:good:info", 2_000);
    redis::cmd("DEL")
        .arg("logs:app:bad:info")
        .exec(&mut client)
        .expect("DEL");
    sink.wait("the other follows once it can", |gauge| {
        gauge.spooled_lines == 0
    });
    assert_exactly_once(&server, "logs:app:bad:info", 2_000);
    assert_eq!(sink.finish(), 0);
}

#[test]
fn a_server_out_of_memory_gets_the_lines_later() {
    let server = RedisServer::start(&[]);
    let mut client = server.client(1);
    let mut config = |name: &str, value: &str| {
        redis::cmd("CONFIG")
            .arg(&["SET", name, value])
            .exec(&mut client)
            .expect("CONFIG SET");
    };
    config("maxmemory-policy", "noeviction");
    let streams = unbounded("oom");
    let mut sink = Sink::start(settings(&server), 8 << 20);
    send_numbered(&sink, &streams, 4_000, 10, |index| {
        if index == 100 {
            config("maxmemory", "1");
        }
    });
    std::thread::sleep(Duration::from_millis(600));
    config("maxmemory", "0");
    sink.wait("all are through", |gauge| gauge.spooled_lines == 0);
    assert_eq!(sink.finish(), 0);
    let mut got = messages(&mut server.client(1), "logs:app:oom:info");
    let mut wanted = numbered(4_000);
    got.sort();
    wanted.sort();
    assert!(got == wanted, "each line once, maybe in another order");
}

#[test]
fn a_foreign_writer_from_the_future_is_tolerated() {
    let server = RedisServer::start(&[]);
    let mut client = server.client(1);
    let streams = unbounded("foreign");
    let sink = Sink::start(settings(&server), 8 << 20);
    send_numbered(&sink, &streams, 3_000, 10, |index| {
        if index % 50 == 25 {
            let id = format!("{}-7", now_ms() + index as u64 * 1_000);
            let _: redis::RedisResult<String> = redis::cmd("XADD")
                .arg("logs:app:foreign:info")
                .arg(&[&id, "message", "foreign"])
                .query(&mut client);
        }
    });
    assert_eq!(sink.finish(), 0);
    let all = entries(&mut client, "logs:app:foreign:info");
    let ours: Vec<String> = all
        .iter()
        .map(support::Entry::message)
        .filter(|message| message != "foreign")
        .collect();
    assert_eq!(ours, numbered(3_000));
    assert!(
        all.iter().any(|entry| entry.field("ts").is_some()),
        "an ID that is far from the line's time comes with the time itself"
    );
}

#[test]
fn the_small_acl_is_enough() {
    let server = RedisServer::start(&[]);
    redis::cmd("ACL")
        .arg(&["SETUSER", "robot", "on", ">secret", "resetchannels"])
        .arg(&["~logs:app:*", "~wrapp:*"])
        .arg(&["+hello", "+auth", "+ping", "+select", "+xadd", "+incr"])
        .arg(&["+set", "+client"])
        .exec(&mut server.client(0))
        .expect("ACL SETUSER");
    let streams = unbounded("small");
    let redis = Redis {
        username: "robot".to_owned(),
        password: Some(Secret::Inline("secret".to_owned())),
        ..settings(&server)
    };
    let sink = Sink::start(redis, 8 << 20);
    send_numbered(&sink, &streams, 500, 100, |_| {});
    for what in [
        CountKind::Increment(3),
        CountKind::Set("7".to_owned()),
        CountKind::Increment(2),
    ] {
        for key in ["frames", "other"] {
            sink.word(Record::Count(Count {
                streams: Arc::clone(&streams),
                key: key.to_owned(),
                what: what.clone(),
            }));
        }
    }
    sink.word(Record::Gauges(vec![Gauge::Integer {
        key: "small:__healthpool__process_health".to_owned(),
        value: 1,
    }]));
    assert_eq!(sink.finish(), 0);
    assert_exactly_once(&server, "logs:app:small:info", 500);
    for key in ["wrapp:small:frames", "wrapp:small:other"] {
        let value: String = redis::cmd("GET")
            .arg(key)
            .query(&mut server.client(2))
            .expect("GET");
        assert_eq!(value, "9", "{key}");
    }
}

#[test]
fn a_wrong_password_is_told_apart_and_a_rotated_one_is_read() {
    let server = RedisServer::start(&["--requirepass", "right"]);
    let folder = support::Scratch::new("secret");
    let file = folder.file("password", "wrong\n");
    let streams = unbounded("secret");
    let redis = Redis {
        password: Some(Secret::File(file)),
        ..settings(&server)
    };
    let mut sink = Sink::start(redis, 8 << 20);
    send_numbered(&sink, &streams, 10, 10, |_| {});
    sink.wait("the refusal is told", |gauge| {
        gauge.state == "credentials refused"
    });
    folder.file("password", "right\n");
    sink.wait("the new password is used", |gauge| {
        gauge.connected && gauge.spooled_lines == 0
    });
    assert_eq!(sink.finish(), 0);
    let mut client = server.client_as(1, "", "right");
    assert_eq!(messages(&mut client, "logs:app:secret:info").len(), 10);
}

/// A stream of increments and sets over `keys` keys, and what they must come to.
fn counts(sink: &Sink, streams: &Arc<Streams>, rounds: usize, mut between: impl FnMut(usize)) {
    for round in 0..rounds {
        for key in ["a", "b", "c"] {
            sink.word(Record::Count(Count {
                streams: Arc::clone(streams),
                key: key.to_owned(),
                what: CountKind::Increment(1),
            }));
        }
        // `d` is always set, then incremented.
        for what in [
            CountKind::Set((round * 10).to_string()),
            CountKind::Increment(7),
        ] {
            sink.word(Record::Count(Count {
                streams: Arc::clone(streams),
                key: "d".to_owned(),
                what,
            }));
        }
        between(round);
    }
}

fn assert_counted(server: &RedisServer, name: &str, rounds: usize) {
    let mut client = server.client(2);
    for key in ["a", "b", "c"] {
        let value: usize = redis::cmd("GET")
            .arg(format!("wrapp:{name}:{key}"))
            .query(&mut client)
            .expect("a counter");
        assert_eq!(value, rounds, "{key}");
    }
    let value: usize = redis::cmd("GET")
        .arg(format!("wrapp:{name}:d"))
        .query(&mut client)
        .expect("a counter");
    assert_eq!(value, (rounds - 1) * 10 + 7, "SET and INCR in order");
}

#[test]
fn counters_count_once_while_connections_are_killed() {
    let server = RedisServer::start(&[]);
    let streams = unbounded("counted");
    let sink = Sink::start(settings(&server), 8 << 20);
    let mut killer = server.client(0);
    counts(&sink, &streams, 6_000, |round| {
        if round % 300 == 150 {
            let _: redis::RedisResult<i64> = redis::cmd("CLIENT")
                .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
                .query(&mut killer);
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(sink.finish(), 0);
    assert_counted(&server, "counted", 6_000);
}

#[test]
fn counters_of_a_frozen_server_count_once() {
    let server = RedisServer::start(&[]);
    let streams = unbounded("thawed");
    let sink = Sink::start(settings(&server), 8 << 20);
    counts(&sink, &streams, 300, |round| {
        std::thread::sleep(Duration::from_millis(1));
        if round == 100 {
            server.signal(libc::SIGSTOP);
        }
        if round == 200 {
            // The sink gives the connection up; thawed, the server finds its commands.
            std::thread::sleep(Duration::from_millis(10_500));
            server.signal(libc::SIGCONT);
        }
    });
    assert_eq!(sink.finish(), 0);
    assert_counted(&server, "thawed", 300);
}

#[test]
fn counters_that_a_killed_server_forgot_are_counted_again() {
    let mut server = RedisServer::start(&[]);
    let streams = unbounded("recount");
    let sink = Sink::start(settings(&server), 8 << 20);
    counts(&sink, &streams, 200, |round| {
        if round == 100 {
            redis::cmd("SAVE")
                .exec(&mut server.client(0))
                .expect("SAVE");
        }
    });
    let counted = |server: &RedisServer| {
        let mut client = server.client(2);
        eventually("all is counted", || {
            redis::cmd("GET")
                .arg("wrapp:recount:d")
                .query::<Option<u64>>(&mut client)
                == Ok(Some(1_997))
        });
    };
    counted(&server);
    server.kill();
    server.up();
    counted(&server);
    assert_eq!(sink.finish(), 0);
    assert_counted(&server, "recount", 200);
}

#[test]
fn values_expire_with_the_agent_and_return_with_redis() {
    let mut server = RedisServer::start(&[]);
    let sink = Sink::start(settings(&server), 8 << 20);
    let gauges = vec![
        Gauge::Integer {
            key: "x:__healthpool__process_cap".to_owned(),
            value: 100,
        },
        Gauge::Hash {
            key: "agent:service:x".to_owned(),
            fields: vec![("state", "ready".to_owned()), ("pid", "17".to_owned())],
        },
    ];
    sink.word(Record::Gauges(gauges));
    for round in 0..2 {
        let mut client = server.client(2);
        eventually("the value is there", || {
            redis::cmd("GET")
                .arg("x:__healthpool__process_cap")
                .query::<Option<i64>>(&mut client)
                == Ok(Some(100))
        });
        let (state, ttl): (Option<String>, i64) = redis::pipe()
            .cmd("HGET")
            .arg(&["agent:service:x", "state"])
            .cmd("TTL")
            .arg("agent:service:x")
            .query(&mut client)
            .expect("a hash");
        assert_eq!(state.as_deref(), Some("ready"));
        assert!((1..=15).contains(&ttl), "expires: {ttl}");
        if round == 0 {
            server.kill();
            server.up();
        }
    }
    assert_eq!(sink.finish(), 0);
}
