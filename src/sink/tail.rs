//! streams in Redis, and the journal → the last lines, and those that follow: `agent logs`.
//!
//! Where Redis answers its streams are read; what is still in the journal and not there comes
//! behind it. Where Redis is away the journal is all that can be seen from outside of the
//! agent: what has waited for less than a second is not in it yet. While following, lines that
//! were shown from the journal are not shown again when Redis gets them.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::id::EntryId;
use super::lookup::entry_id;
pub use super::peek::Line;
use super::peek::{Part, Peek, Shelved};
use super::redis::{Wire, connect};
use super::resp::{Reply, command, parse};
use super::stream::Stream;
use crate::config::{Endpoint, Redis};
use crate::record::{Source, StreamKind, Streams, Trim};

/// How long Redis may take for anything before it counts as away.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks while following.
const PAUSE: Duration = Duration::from_millis(200);
/// Entries of one reply.
const PAGE: usize = 1000;
/// Lines shown from the journal that are remembered until Redis has them.
const AHEAD: usize = 100_000;

/// What to show.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Names of streams.
    pub streams: Vec<String>,
    pub source: Option<Source>,
    /// Lines of the past.
    pub last: usize,
    pub follow: bool,
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places {
    pub redis: Redis,
    /// Folders of journals; those that do not exist hold nothing.
    pub journals: Vec<PathBuf>,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Everything,
    /// Redis is away: only what the journal holds was shown. Says why.
    JournalOnly(String),
    /// Nobody reads what is shown.
    NobodyListens,
}

/// Shows lines; `says` is for what is not a line. Following never ends by itself.
///
/// # Errors
/// The runtime cannot be started.
pub fn run(
    places: &Places,
    wanted: &Wanted,
    show: &mut dyn FnMut(&Line) -> io::Result<()>,
    says: &mut dyn FnMut(&str),
) -> io::Result<Told> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(Tail::new(places, wanted).run(show, says)))
}

struct Tail<'a> {
    places: &'a Places,
    wanted: &'a Wanted,
    streams: Vec<Followed>,
    journals: Vec<Journal>,
    wire: Option<Talk>,
    /// Why Redis was away last.
    away: Option<String>,
}

struct Followed {
    name: String,
    key: String,
    last: EntryId,
    /// Shown from the journal, and not seen in Redis yet.
    ahead: VecDeque<u64>,
}

impl<'a> Tail<'a> {
    fn new(places: &'a Places, wanted: &'a Wanted) -> Tail<'a> {
        let streams = wanted.streams.iter().map(|name| {
            let streams = Streams::new(name, Trim { max_len: 0 });
            Followed {
                name: name.clone(),
                key: Stream::new(&streams, StreamKind::Info, &places.redis.key_prefix).key,
                last: EntryId::ZERO,
                ahead: VecDeque::new(),
            }
        });
        Tail {
            places,
            wanted,
            streams: streams.collect(),
            journals: places.journals.iter().map(|at| Journal::new(at)).collect(),
            wire: None,
            away: None,
        }
    }

    async fn run(
        mut self,
        show: &mut dyn FnMut(&Line) -> io::Result<()>,
        says: &mut dyn FnMut(&str),
    ) -> Told {
        let mut lines = self.past().await;
        if let Some(away) = &self.away {
            says(&format!("{away}; showing what waits in the journal"));
        }
        loop {
            for line in &lines {
                if show(line).is_err() {
                    return Told::NobodyListens;
                }
            }
            if !self.wanted.follow {
                return match self.away {
                    Some(away) => Told::JournalOnly(away),
                    None => Told::Everything,
                };
            }
            tokio::time::sleep(PAUSE).await;
            let before = self.away.is_some();
            lines = self.news().await;
            match (&self.away, before) {
                (Some(away), false) => says(&format!("{away}; showing what waits in the journal")),
                (None, true) => says("Redis is back"),
                (Some(_), true) | (None, false) => {}
            }
        }
    }

    /// The last lines, oldest first.
    async fn past(&mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        let in_redis = match self.talk().await {
            Err(away) => Err(away),
            Ok(()) => self.past_of_redis(&mut lines).await,
        };
        if let Err(away) = in_redis {
            self.lost(away);
        }
        let shelved = self.shelved();
        self.add_shelved(shelved, &mut lines);
        // Stable: the lines of one moment stay in their order.
        lines.sort_by_key(|line| line.at_ms);
        let surplus = lines.len().saturating_sub(self.wanted.last);
        lines.drain(..surplus);
        lines
    }

    async fn past_of_redis(&mut self, lines: &mut Vec<Line>) -> Result<(), String> {
        let Some(wire) = &mut self.wire else {
            return Ok(());
        };
        for stream in &mut self.streams {
            let mut found = VecDeque::new();
            let mut end = "+".to_owned();
            loop {
                let missing = self.wanted.last.saturating_sub(found.len());
                let count = missing.clamp(1, PAGE);
                let count_text = count.to_string();
                let key = stream.key.as_bytes();
                let request: [&[u8]; 6] = [
                    b"XREVRANGE",
                    key,
                    end.as_bytes(),
                    b"-",
                    b"COUNT",
                    count_text.as_bytes(),
                ];
                let entries = wire.ask(&request, stream, self.wanted.source).await?;
                if end == "+"
                    && let Some((newest, _)) = entries.first()
                {
                    stream.last = *newest;
                }
                let Some((oldest, _)) = entries.last() else {
                    break;
                };
                end = format!("({oldest}");
                let full = entries.len() >= count;
                for line in entries.into_iter().filter_map(|(_, line)| line) {
                    if found.len() < self.wanted.last {
                        found.push_front(line);
                    }
                }
                if !full || found.len() >= self.wanted.last {
                    break;
                }
            }
            lines.extend(found);
        }
        Ok(())
    }

    /// What has come since.
    async fn news(&mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        let in_redis = match self.talk().await {
            Err(away) => Err(away),
            Ok(()) => self.news_of_redis(&mut lines).await,
        };
        match in_redis {
            Ok(()) => self.away = None,
            Err(away) => self.lost(away),
        }
        // What Redis has is seen before what the journal still holds of it.
        let shelved = self.shelved();
        self.add_shelved(shelved, &mut lines);
        lines
    }

    async fn news_of_redis(&mut self, lines: &mut Vec<Line>) -> Result<(), String> {
        let Some(wire) = &mut self.wire else {
            return Ok(());
        };
        for stream in &mut self.streams {
            loop {
                let start = format!("({}", stream.last);
                let count = PAGE.to_string();
                let key = stream.key.as_bytes();
                let request: [&[u8]; 6] = [
                    b"XRANGE",
                    key,
                    start.as_bytes(),
                    b"+",
                    b"COUNT",
                    count.as_bytes(),
                ];
                let entries = wire.ask(&request, stream, self.wanted.source).await?;
                let full = entries.len() >= PAGE;
                for (id, line) in entries {
                    stream.last = id;
                    if let Some(line) = line
                        && !stream.was_shown(&line)
                    {
                        lines.push(line);
                    }
                }
                if !full {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn talk(&mut self) -> Result<(), String> {
        if self.wire.is_some() || self.places.redis.endpoint == Endpoint::None {
            return Ok(());
        }
        let settings = &self.places.redis;
        let connected = timeout(PATIENCE, connect(settings, settings.log_db)).await;
        let wire = match connected {
            Ok(Ok(wire)) => wire,
            Ok(Err(away)) => return Err(away.text),
            Err(_) => {
                let endpoint = &settings.endpoint;
                return Err(format!("cannot reach Redis at {endpoint}: no answer"));
            }
        };
        self.wire = Some(Talk {
            wire,
            unread: Vec::new(),
        });
        Ok(())
    }

    fn lost(&mut self, away: String) {
        self.wire = None;
        self.away = Some(away);
    }

    /// What the journals hold that was not seen before, of the streams that are wanted.
    fn shelved(&mut self) -> Vec<(usize, Shelved)> {
        let mut found = Vec::new();
        for (index, journal) in self.journals.iter_mut().enumerate() {
            journal.read(&mut |shelved| found.push((index, shelved)));
        }
        found
    }

    fn add_shelved(&mut self, shelved: Vec<(usize, Shelved)>, lines: &mut Vec<Line>) {
        for (journal, shelved) in shelved {
            let line = &shelved.line;
            let wanted = self
                .wanted
                .source
                .is_none_or(|source| source == line.source);
            let stream = self
                .streams
                .iter_mut()
                .find(|stream| *stream.name == *line.stream);
            let (true, Some(stream), Some(journal)) = (wanted, stream, self.journals.get(journal))
            else {
                continue;
            };
            if !journal.peek.is_delivered(&shelved, stream.last) || self.wire.is_none() {
                stream.shown(line);
                lines.push(shelved.line);
            }
        }
    }
}

fn fingerprint(line: &Line) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&line.text, line.partial, line.source.as_str()).hash(&mut hasher);
    hasher.finish()
}

impl Followed {
    fn shown(&mut self, line: &Line) {
        self.ahead.push_back(fingerprint(line));
        if self.ahead.len() > AHEAD {
            self.ahead.pop_front();
        }
    }

    /// Lines come to Redis in the order in which they stood in the journal.
    fn was_shown(&mut self, line: &Line) -> bool {
        let wanted = fingerprint(line);
        let place = self.ahead.iter().position(|shown| *shown == wanted);
        if let Some(place) = place {
            self.ahead.drain(..=place);
        }
        place.is_some()
    }
}

/// A connection that asks one question at a time.
struct Talk {
    wire: Box<dyn Wire>,
    unread: Vec<u8>,
}

impl Talk {
    /// Entries with their IDs; `None` for those that are no lines, or of the other source.
    async fn ask(
        &mut self,
        request: &[&[u8]],
        stream: &Followed,
        source: Option<Source>,
    ) -> Result<Vec<(EntryId, Option<Line>)>, String> {
        let says = |error: io::Error| format!("lost Redis: {error}");
        let mut out = Vec::new();
        command(&mut out, request);
        self.wire.write_all(&out).await.map_err(says)?;
        loop {
            match parse(&self.unread) {
                Err(malformed) => return Err(format!("lost Redis: {malformed}")),
                Ok(Some((Reply::Error(error), _))) => {
                    let error = String::from_utf8_lossy(error);
                    return Err(format!("Redis refuses: {error}"));
                }
                Ok(Some((reply, used))) => {
                    let entries = entries(&reply, stream, source);
                    self.unread.drain(..used);
                    return Ok(entries);
                }
                Ok(None) => {}
            }
            let read = timeout(PATIENCE, self.wire.read_buf(&mut self.unread)).await;
            match read {
                Ok(Ok(0)) => return Err("lost Redis: the connection was closed".to_owned()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(says(error)),
                Err(_) => return Err("lost Redis: no answer".to_owned()),
            }
        }
    }
}

fn entries(
    reply: &Reply<'_>,
    stream: &Followed,
    source: Option<Source>,
) -> Vec<(EntryId, Option<Line>)> {
    let Reply::Array(rows) = reply else {
        return Vec::new();
    };
    rows.iter()
        .filter_map(|row| {
            let id = entry_id(row)?;
            let line = line_of(row, id, stream);
            let line = line.filter(|line| source.is_none_or(|source| source == line.source));
            Some((id, line))
        })
        .collect()
}

fn line_of(row: &Reply<'_>, id: EntryId, stream: &Followed) -> Option<Line> {
    let Reply::Array(parts) = row else {
        return None;
    };
    let Some(Reply::Array(fields)) = parts.get(1) else {
        return None;
    };
    let field = |wanted: &str| {
        fields.chunks_exact(2).find_map(|pair| match pair {
            [Reply::Text(name), Reply::Text(value)] if *name == wanted.as_bytes() => Some(*value),
            _ => None,
        })
    };
    // Markers have no source; what others write may have none either.
    let source = match field("source")? {
        b"stderr" => Source::Stderr,
        _ => Source::Stdout,
    };
    let ts = field("ts").and_then(|ts| std::str::from_utf8(ts).ok()?.parse().ok());
    Some(Line {
        stream: Arc::from(stream.name.as_str()),
        at_ms: ts.unwrap_or(id.ms),
        source,
        partial: field("partial") == Some(b"1"),
        text: field("message")?.to_vec(),
    })
}

/// One folder of segments, and how far it was read.
struct Journal {
    folder: PathBuf,
    peek: Peek,
    /// How far each segment was read. A segment that was written anew holds nothing new.
    read: HashMap<u64, u64>,
    /// The last one begins the next look.
    newest: u64,
}

impl Journal {
    fn new(folder: &Path) -> Journal {
        Journal {
            folder: folder.to_owned(),
            peek: Peek::default(),
            read: HashMap::new(),
            newest: 0,
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:010}.seg"))
    }

    fn read(&mut self, take: &mut dyn FnMut(Shelved)) {
        // An empty journal was begun anew by another life: nothing read so far counts.
        let newest = self.path(self.newest);
        let known = self.read.get(&self.newest).copied().unwrap_or(0);
        if self.newest > 0 && fs::metadata(newest).map_or(0, |data| data.len()) < known {
            *self = Journal::new(&self.folder);
        }
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        let mut numbers: Vec<u64> = entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                name.to_str()?.strip_suffix(".seg")?.parse().ok()
            })
            .filter(|number| *number >= self.newest)
            .collect();
        numbers.sort_unstable();
        for number in numbers {
            let path = self.path(number);
            let from = self.read.get(&number).copied().unwrap_or(0);
            let Ok(bytes) = read_from(&path, from) else {
                continue;
            };
            let part = match from {
                0 => Part::Beginning,
                _ => Part::Rest,
            };
            let whole = self.peek.read(&bytes, part, take);
            self.read.insert(number, from + whole as u64);
            self.newest = number;
        }
        self.read.retain(|number, _| *number >= self.newest);
    }
}

fn read_from(path: &Path, from: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
