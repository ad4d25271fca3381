//! A sink of its own thread, as the daemon would run it.

#![allow(dead_code)] // each test binary uses its part

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use jettison_agent::clock::now_ms;
use jettison_agent::config::{Endpoint, Overflow, Redis, Spool};
use jettison_agent::event::Event;
use jettison_agent::handoff::SinkGauge;
use jettison_agent::record::{Lines, Record, Source, Span, Streams, Trim};
use jettison_agent::sink;
use jettison_agent::sink::backlog::Unwritten;
use tokio::sync::{mpsc, watch};

use crate::support::{RedisServer, eventually};

/// A sink on a thread of its own, with the ends of its channels.
pub struct Sink {
    lines: Option<mpsc::Sender<Record>>,
    words: Option<mpsc::Sender<Record>>,
    pub gauge: watch::Receiver<SinkGauge>,
    thread: Option<std::thread::JoinHandle<Unwritten>>,
    _inbox: mpsc::Receiver<Event>,
}

impl Sink {
    pub fn start(redis: Redis, memory: u64) -> Sink {
        let spool = Spool {
            memory,
            disk: 0,
            overflow: Overflow::DropOldest,
        };
        Sink::with(redis, spool, None)
    }

    pub fn with(redis: Redis, spool: Spool, folder: Option<PathBuf>) -> Sink {
        let settings = sink::run::Settings {
            redis,
            spool,
            folder,
            farewell: sink::run::FAREWELL,
        };
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
                    settings, lines_out, words_out, inbox_in, gauge_in,
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

    pub fn lines(&self, streams: &Arc<Streams>, texts: impl IntoIterator<Item = String>) {
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

    pub fn word(&self, record: Record) {
        self.words
            .as_ref()
            .expect("open")
            .blocking_send(record)
            .expect("the sink receives");
    }

    pub fn wait(&mut self, what: &str, condition: impl Fn(&SinkGauge) -> bool) {
        let gauge = &self.gauge;
        eventually(what, || condition(&gauge.borrow()));
    }

    /// Closes the lanes; how many lines and entries were not delivered.
    pub fn finish(mut self) -> u64 {
        self.lines = None;
        self.words = None;
        let thread = self.thread.take().expect("not finished twice");
        let lost = thread.join().expect("the sink does not panic");
        lost.lines + lost.entries
    }
}

pub fn settings(server: &RedisServer) -> Redis {
    Redis {
        endpoint: Endpoint::Unix(server.socket()),
        username: String::new(),
        password: None,
        log_db: 1,
        value_db: 2,
        key_prefix: String::new(),
        value_expiry: std::time::Duration::from_secs(15),
        max_len: 0,
        tls: None,
        sentinel: None,
    }
}

pub fn unbounded(name: &str) -> Arc<Streams> {
    Streams::new(name, Trim { max_len: 0 })
}

pub fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("line {number}")).collect()
}
