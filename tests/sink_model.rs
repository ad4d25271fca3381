//! Backlog and delivery against a Redis of our own making, in virtual time.
//!
//! Thousands of random histories: commands arrive in part, replies are lost, connections end
//! while the server still finds their commands later, the server refuses, forgets its last
//! second, and others write to the stream. At the end every line stands in the stream once,
//! and in order where nothing was refused or foreign.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jettison_agent::record::{Lines, Source, Span, Streams, Trim};
use jettison_agent::sink::backlog::Backlog;
use jettison_agent::sink::delivery::Delivery;
use jettison_agent::sink::id::EntryId;
use jettison_agent::sink::resp::{Reply, bulk_string, parse};

struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below.max(1)
    }

    fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
}

/// One stream, as Redis keeps it.
#[derive(Clone, Default)]
struct Model {
    exists: bool,
    last: EntryId,
    added: u64,
    entries: Vec<(EntryId, Vec<Vec<u8>>)>,
}

impl Model {
    fn execute(&mut self, words: &[Vec<u8>], refuses: bool, out: &mut Vec<u8>) {
        match words[0].as_slice() {
            b"XINFO" if !self.exists => out.extend_from_slice(b"-ERR no such key\r\n"),
            b"XINFO" => {
                let first = self.entries.first().map_or(EntryId::ZERO, |(id, _)| *id);
                out.extend_from_slice(
                    format!(
                        "*8\r\n+length\r\n:{}\r\n+last-generated-id\r\n+{}\r\n+entries-added\r\n:{}\r\n+first-entry\r\n*2\r\n+{}\r\n*0\r\n",
                        self.entries.len(), self.last, self.added, first
                    )
                    .as_bytes(),
                );
            }
            b"XRANGE" => {
                let id = |at: usize| EntryId::parse(&words[at]).expect("an ID");
                let (low, high) = (id(2), id(3));
                let count: usize = String::from_utf8_lossy(&words[5]).parse().expect("a count");
                let found: Vec<_> = self
                    .entries
                    .iter()
                    .filter(|(id, _)| *id >= low && *id <= high)
                    .take(count)
                    .collect();
                out.extend_from_slice(format!("*{}\r\n", found.len()).as_bytes());
                for (id, fields) in found {
                    out.extend_from_slice(
                        format!("*2\r\n+{id}\r\n*{}\r\n", fields.len()).as_bytes(),
                    );
                    for field in fields {
                        bulk_string(out, field);
                    }
                }
            }
            b"XADD" if refuses => out.extend_from_slice(b"-OOM no\r\n"),
            b"XADD" => {
                let id = EntryId::parse(&words[2]).expect("an ID");
                if id <= self.last {
                    out.extend_from_slice(b"-ERR The ID specified in XADD is equal or smaller than the target stream top item\r\n");
                    return;
                }
                self.exists = true;
                self.last = id;
                self.added += 1;
                self.entries.push((id, words[3..].to_vec()));
                out.extend_from_slice(format!("+{id}\r\n").as_bytes());
            }
            _ => out.extend_from_slice(b"+PONG\r\n"),
        }
    }
}

/// Takes whole commands from the front.
fn next_command(bytes: &mut Vec<u8>) -> Option<Vec<Vec<u8>>> {
    let (words, used) = match parse(bytes).expect("well formed") {
        Some((Reply::Array(items), used)) => {
            let words = items
                .iter()
                .map(|item| match item {
                    Reply::Text(text) => text.to_vec(),
                    other => panic!("{other:?}"),
                })
                .collect();
            (words, used)
        }
        Some(other) => panic!("{other:?}"),
        None => return None,
    };
    bytes.drain(..used);
    Some(words)
}

struct History {
    random: Random,
    now: Duration,
    start: Instant,
    model: Model,
    /// What the server would come back with, and from when it is.
    saved: VecDeque<(Duration, Model)>,
    delivery: Delivery,
    streams: Arc<Streams>,
    sent: usize,
    /// Commands on their way, replies on their way.
    requests: Vec<u8>,
    replies: Vec<u8>,
    connected: bool,
    /// Commands in connections that we left.
    ghosts: Vec<Vec<u8>>,
    refuses: bool,
    kept_order: bool,
}

impl History {
    fn new(seed: u64) -> History {
        let streams = Streams::new("m", Trim { max_len: 0 });
        History {
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now: Duration::from_secs(10),
            start: Instant::now(),
            model: Model::default(),
            saved: VecDeque::new(),
            delivery: Delivery::new(Backlog::new("", 64 << 20)),
            streams,
            sent: 0,
            requests: Vec::new(),
            replies: Vec::new(),
            connected: false,
            ghosts: Vec::new(),
            refuses: false,
            kept_order: true,
        }
    }

    fn at(&self) -> Instant {
        self.start + self.now
    }

    fn push(&mut self) {
        let count = 1 + self.random.below(300) as usize;
        let mut chunk = Vec::new();
        let mut spans = Vec::new();
        for number in self.sent..self.sent + count {
            let start = chunk.len() as u32;
            chunk.extend_from_slice(number.to_string().as_bytes());
            let end = chunk.len() as u32;
            spans.push(Span {
                start,
                end,
                partial: false,
            });
        }
        self.sent += count;
        // The clock steps back and forth.
        let step = [0, 0, 0, 0, 5_000_000][self.random.below(5) as usize];
        let lines = Lines {
            streams: Arc::clone(&self.streams),
            source: Source::Stdout,
            read_ms: 1_000_000 + self.now.as_millis() as u64 - step.min(900_000),
            chunk: Bytes::from(chunk),
            spans,
        };
        let at = self.at();
        self.delivery.backlog.push_lines(lines, at);
    }

    fn connect(&mut self) {
        if !self.connected {
            self.connected = true;
            self.delivery.connected();
        }
    }

    fn disconnect(&mut self) {
        if self.connected {
            self.connected = false;
            self.delivery.disconnected();
            let requests = std::mem::take(&mut self.requests);
            // What was on its way is lost, cut, or found by the server later.
            match self.random.below(3) {
                0 => {}
                1 => self.ghosts.push(requests),
                _ => {
                    let cut = self.random.below(requests.len() as u64 + 1) as usize;
                    self.ghosts.push(requests[..cut].to_vec());
                }
            }
            self.replies.clear();
        }
    }

    fn serve(&mut self, commands: u64) {
        for _ in 0..commands {
            let Some(words) = next_command(&mut self.requests) else {
                return;
            };
            self.model.execute(&words, self.refuses, &mut self.replies);
        }
    }

    fn serve_ghost(&mut self) {
        if let Some(mut ghost) = self.ghosts.pop() {
            while let Some(words) = next_command(&mut ghost) {
                self.model.execute(&words, self.refuses, &mut Vec::new());
            }
        }
    }

    fn hear(&mut self, replies: u64) {
        for _ in 0..replies {
            let bytes = std::mem::take(&mut self.replies);
            let Some((reply, used)) = parse(&bytes).expect("well formed") else {
                self.replies = bytes;
                return;
            };
            let at = self.at();
            let heard = self.delivery.reply(&reply, at, &mut self.requests);
            assert_eq!(heard, Ok(()));
            self.replies = bytes[used..].to_vec();
        }
    }

    fn fill(&mut self) {
        if self.connected {
            let ms = 1_000_000 + self.now.as_millis() as u64;
            let at = self.at();
            self.delivery.fill(at, ms, &mut self.requests);
        }
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(self.random.below(40));
        match self.random.below(100) {
            0..25 => self.push(),
            25..50 => self.fill(),
            50..66 => {
                let count = self.random.below(200);
                self.serve(count);
            }
            66..82 => {
                let count = self.random.below(200);
                self.hear(count);
            }
            82..88 => self.connect(),
            88..91 => self.disconnect(),
            91..93 => self.serve_ghost(),
            93..95 => {
                self.refuses = self.random.one_in(3);
                self.kept_order &= !self.refuses;
            }
            95 => {
                // Somebody else writes, now and then into the future.
                let ms = 1_000_000 + self.now.as_millis() as u64 + self.random.below(3) * 400;
                let id = EntryId { ms, seq: 7 };
                if id > self.model.last {
                    self.model.exists = true;
                    self.model.last = id;
                    self.model.added += 1;
                    let fields = vec![b"message".to_vec(), b"foreign".to_vec()];
                    self.model.entries.push((id, fields));
                    self.kept_order = false;
                }
            }
            96 => {
                // Killed: it comes back with what it had up to a second ago, and its old
                // connections are gone.
                self.disconnect();
                self.ghosts.clear();
                let recent =
                    |(at, _): &&(Duration, Model)| self.now - *at <= Duration::from_secs(1);
                if let Some((_, saved)) = self.saved.iter().find(recent) {
                    self.model = saved.clone();
                    self.kept_order = false;
                }
                // What it has forgotten it never finds again.
                self.saved.clear();
            }
            _ => {
                self.saved.push_back((self.now, self.model.clone()));
                self.saved
                    .retain(|(at, _)| self.now - *at <= Duration::from_secs(1));
            }
        }
    }

    fn settle(&mut self) {
        self.refuses = false;
        while !self.ghosts.is_empty() {
            self.serve_ghost();
        }
        self.connect();
        for _ in 0..10_000 {
            self.now += Duration::from_millis(100);
            self.fill();
            self.serve(u64::MAX);
            self.hear(u64::MAX);
            if self.delivery.backlog.is_empty() && self.delivery.is_idle() {
                return;
            }
        }
        panic!("never settles: {:?}", self.delivery.backlog.held());
    }

    fn judge(&self, seed: u64) {
        let got: Vec<usize> = self
            .model
            .entries
            .iter()
            .filter_map(|(_, fields)| String::from_utf8_lossy(&fields[1]).parse().ok())
            .collect();
        let mut sorted = got.clone();
        sorted.sort_unstable();
        let wanted: Vec<usize> = (0..self.sent).collect();
        if sorted != wanted {
            let at = (0..self.sent).find(|at| sorted.get(*at) != Some(at));
            panic!(
                "seed {seed}: {} of {} entries, first difference {at:?}",
                got.len(),
                self.sent
            );
        }
        if self.kept_order {
            assert!(got == wanted, "seed {seed}: out of order");
        }
    }
}

fn histories(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut history = History::new(seed);
        for _ in 0..150 + seed % 400 {
            history.step();
        }
        history.settle();
        history.judge(seed);
    }
}

#[test]
fn each_line_once_whatever_happens() {
    histories(1..60);
}

#[test]
#[ignore = "a minute: many more histories"]
fn each_line_once_in_many_more_histories() {
    histories(60..2_000);
}
