//! The sink against a real redis-server that misbehaves.
//!
//! Each test sends numbered lines and then counts what the stream holds: every line once, in
//! order, whatever happened in between.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jettison_agent::clock::now_ms;
use jettison_agent::config::{Endpoint, Redis, Secret, Spool};
use jettison_agent::event::Event;
use jettison_agent::handoff::SinkGauge;
use jettison_agent::record::{
    Count, CountKind, Entry, Gauge, Lines, Record, Source, Span, StreamKind, Streams, Trim,
};
use jettison_agent::sink;
use support::{RedisServer, entries, eventually, messages};
use tokio::sync::{mpsc, watch};

/// A sink on a thread of its own, with the ends of its channels.
struct Sink {
    lines: Option<mpsc::Sender<Record>>,
    words: Option<mpsc::Sender<Record>>,
    gauge: watch::Receiver<SinkGauge>,
    thread: Option<std::thread::JoinHandle<u64>>,
    _inbox: mpsc::Receiver<Event>,
}

impl Sink {
    fn start(redis: Redis, memory: u64) -> Sink {
        let (lines, lines_out) = mpsc::channel(16);
        let (words, words_out) = mpsc::channel(1024);
        let (inbox_in, inbox) = mpsc::channel(1024);
        let (gauge_in, gauge) = watch::channel(SinkGauge::default());
        let thread = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(sink::run::run(
                    redis,
                    Spool { memory },
                    lines_out,
                    words_out,
                    inbox_in,
                    gauge_in,
                ))
        });
        Sink {
            lines: Some(lines),
            words: Some(words),
            gauge,
            thread: Some(thread),
            _inbox: inbox,
        }
    }

    fn lines(&self, streams: &Arc<Streams>, texts: impl IntoIterator<Item = String>) {
        let mut chunk = Vec::new();
        let mut spans = Vec::new();
        for text in texts {
            let start = chunk.len() as u32;
            chunk.extend_from_slice(text.as_bytes());
            spans.push(Span {
                start,
                end: chunk.len() as u32,
                partial: false,
            });
        }
        let lines = Lines {
            streams: Arc::clone(streams),
            source: Source::Stdout,
            read_ms: now_ms(),
            chunk: Bytes::from(chunk),
            spans,
        };
        self.lines
            .as_ref()
            .expect("open")
            .blocking_send(Record::Lines(lines))
            .expect("the sink receives");
    }

    fn word(&self, record: Record) {
        self.words
            .as_ref()
            .expect("open")
            .blocking_send(record)
            .expect("the sink receives");
    }

    fn wait(&mut self, what: &str, condition: impl Fn(&SinkGauge) -> bool) {
        let gauge = &self.gauge;
        eventually(what, || condition(&gauge.borrow()));
    }

    /// Closes the lanes; how many entries were not delivered.
    fn finish(mut self) -> u64 {
        self.lines = None;
        self.words = None;
        self.thread
            .take()
            .expect("not finished twice")
            .join()
            .expect("the sink does not panic")
    }
}

fn settings(server: &RedisServer) -> Redis {
    Redis {
        endpoint: Endpoint::Unix(server.socket()),
        username: String::new(),
        password: None,
        log_db: 1,
        value_db: 2,
        key_prefix: String::new(),
        value_expiry: Duration::from_secs(15),
        max_len: 0,
    }
}

fn unbounded(name: &str) -> Arc<Streams> {
    Streams::new(name, Trim { max_len: 0 })
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("line {number}")).collect()
}

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
            fields: vec![
                ("state".into(), "ready".to_owned()),
                ("pid".into(), "17".to_owned()),
            ],
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
