//! A damaged journal: whatever happened to its files, the start ends, nothing panics, and what
//! is whole is delivered once, in order.
//!
//! A real journal is written by a sink whose Redis is away; then its files are cut, flipped,
//! doubled, emptied, taken away or mixed with foreign ones, as a seed says; then another sink
//! delivers what is left. The model reads the frames by itself, from the format's description.

#[path = "support/sink.rs"]
mod harness;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use harness::{Sink, settings, unbounded};
use jettison_agent::config::{Endpoint, Overflow, Redis, Spool};
use support::{RedisServer, Scratch, messages, within};

const STREAMS: [&str; 3] = ["one", "two", "three"];
const CHUNKS: usize = 60;
const CHUNK: usize = 40;

struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }
}

fn spool() -> Spool {
    Spool {
        memory: 64 << 10,
        disk: 4 << 20,
        overflow: Overflow::DropOldest,
    }
}

/// Lines in several segments: each says its stream and its number.
fn write_journal(folder: &Path) {
    let redis = Redis {
        endpoint: Endpoint::Unix(folder.join("no-redis")),
        ..nowhere()
    };
    let mut sink = Sink::with(redis, spool(), Some(folder.join("spool")));
    let streams = STREAMS.map(unbounded);
    let mut sent = 0;
    for chunk in 0..CHUNKS {
        for (stream, name) in streams.iter().zip(STREAMS) {
            let first = chunk * CHUNK;
            let texts = (first..first + CHUNK)
                .map(|number| format!("{name} {number} {}", "x".repeat(number % 400)));
            sink.lines(stream, texts);
            sent += CHUNK as u64;
        }
    }
    sink.wait("all lines", |gauge| gauge.spooled_lines >= sent);
    assert_eq!(sink.finish(), 0);
}

fn nowhere() -> Redis {
    Redis {
        max_len: 0,
        ..Redis::default()
    }
}

fn segments(folder: &Path) -> BTreeMap<u64, Vec<u8>> {
    std::fs::read_dir(folder.join("spool"))
        .expect("a folder")
        .filter_map(|entry| {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_suffix(".seg")?.parse().ok()?;
            Some((number, std::fs::read(entry.path()).ok()?))
        })
        .collect()
}

/// Bit by bit, as RFC 1952 has it.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(sum & 1))
        })
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The lines in what is whole at the beginning of a segment, by stream.
fn whole(segment: &[u8]) -> Option<Vec<String>> {
    let mut rest = segment.strip_prefix(b"agentj1\n")?;
    let mut lines = Vec::new();
    while let (Some(length), Some(sum)) = (u32_at(rest, 0), u32_at(rest, 4)) {
        let Some(payload) = rest.get(8..8 + length as usize) else {
            break;
        };
        if length == 0 || crc(payload) != sum {
            break;
        }
        rest = &rest[8 + length as usize..];
        // kind, tag, order, milliseconds, count, lengths, texts
        if payload[0] == 2 {
            let count = u32_at(payload, 21).expect("a count") as usize;
            let mut text = 25 + 4 * count;
            for index in 0..count {
                let length = u32_at(payload, 25 + 4 * index).expect("a length") as usize;
                let line = &payload[text..text + length];
                lines.push(String::from_utf8(line.to_vec()).expect("text"));
                text += length;
            }
        }
    }
    Some(lines)
}

/// Damages a few files.
fn damage(folder: &Path, random: &mut Random) -> Vec<&'static str> {
    let spool = folder.join("spool");
    let mut done = Vec::new();
    for _ in 0..1 + random.below(4) {
        let found = segments(folder);
        let numbers: Vec<u64> = found.keys().copied().collect();
        if numbers.is_empty() {
            break;
        }
        let number = numbers[random.below(numbers.len())];
        let path = spool.join(format!("{number:010}.seg"));
        let mut bytes = found[&number].clone();
        let (what, bytes) = match random.below(9) {
            0 => {
                bytes.truncate(random.below(bytes.len() + 1));
                ("cut", Some(bytes))
            }
            1 if !bytes.is_empty() => {
                let bit = random.below(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
                ("a bit flipped", Some(bytes))
            }
            2 => ("taken away", None),
            3 => ("emptied", Some(Vec::new())),
            4 => {
                // What a file system may leave of a file whose end was never written.
                let keep = random.below(bytes.len() + 1);
                bytes[keep..].fill(0);
                ("zeros at the end", Some(bytes))
            }
            5 => {
                let copy = numbers.iter().max().expect("one") + 1;
                let path = spool.join(format!("{copy:010}.seg"));
                std::fs::write(path, &bytes).expect("a copy");
                ("doubled", Some(bytes))
            }
            6 => {
                let foreign = [
                    "notes.txt",
                    "x.seg",
                    "99999999999999999999999.seg",
                    "-1.seg",
                ];
                let name = foreign[random.below(foreign.len())];
                std::fs::write(spool.join(name), b"nothing of ours").expect("a file");
                ("a foreign file", Some(bytes))
            }
            7 => {
                let noise: Vec<u8> = (0..random.below(5_000))
                    .map(|_| random.below(256) as u8)
                    .collect();
                bytes.extend(noise);
                ("noise at the end", Some(bytes))
            }
            _ => {
                for name in ["id", "runs", "counts", "runs.unsynced"] {
                    let noise: Vec<u8> = (0..random.below(90))
                        .map(|_| random.below(256) as u8)
                        .collect();
                    std::fs::write(spool.join(name), noise).expect("a file");
                }
                ("small files overwritten", Some(bytes))
            }
        };
        done.push(what);
        match bytes {
            Some(bytes) => std::fs::write(path, bytes).expect("written"),
            None => std::fs::remove_file(path).expect("removed"),
        }
    }
    done
}

fn number(line: &str) -> usize {
    line.split(' ')
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number")
}

fn round(server: &RedisServer, seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let folder = Scratch::new("damage");
    write_journal(folder.path());
    let before = segments(folder.path());
    assert!(before.len() > 3, "{} segments", before.len());
    let done = damage(folder.path(), &mut random);
    let story = format!("seed {seed}: {done:?}");
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    for segment in segments(folder.path()).values() {
        wanted.extend(whole(segment).unwrap_or_default());
    }
    let mut client = server.client(1);
    redis::cmd("FLUSHALL").exec(&mut client).expect("flushed");
    let sink = Sink::with(settings(server), spool(), Some(folder.join("spool")));
    let gauge = sink.gauge.clone();
    within(Duration::from_secs(30), &story, || {
        let gauge = gauge.borrow();
        gauge.connected && gauge.spooled_lines == 0
    });
    assert_eq!(sink.finish(), 0, "{story}");
    let mut got = BTreeSet::new();
    for name in STREAMS {
        let lines = messages(&mut client, &format!("logs:app:{name}:info"));
        let numbers: Vec<usize> = lines.iter().map(|line| number(line)).collect();
        assert!(
            numbers.windows(2).all(|pair| pair[0] < pair[1]),
            "{story}: {name} once and in order"
        );
        got.extend(lines);
    }
    let missing: Vec<_> = wanted.difference(&got).take(3).collect();
    let invented: Vec<_> = got.difference(&wanted).take(3).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "{story}: {} of {} delivered; missing {missing:?}, invented {invented:?}",
        got.len(),
        wanted.len()
    );
}

#[test]
fn whatever_is_whole_is_delivered_once_and_in_order() {
    let server = RedisServer::start(&[]);
    // 51: a copy is all that is left of a segment, behind those that came after it.
    for seed in (1..9).chain([51]) {
        round(&server, seed);
    }
}

#[test]
#[ignore = "minutes: the same with other seeds"]
fn whatever_is_whole_with_many_seeds() {
    let server = RedisServer::start(&[]);
    for seed in 9..200 {
        round(&server, seed);
    }
}
