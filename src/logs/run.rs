//! Runs with their pipes → records, beats, and the word that a run's output is complete.
//!
//! One task per run reads both of its pipes, until both are closed: also after the run's end,
//! when something that it started survives and still writes. What comes goes through
//! `lines` and waits there for room, so that a sink that takes no more stops the reading, and
//! at last the child, as any pipe would.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, warn};

use super::entry::{Assembler, Batch};
use super::join::OpenBlocks;
use super::marker;
use super::pace::{Next, Pace};
use super::pipe::{Brought, Pipe};
use super::tee::Tee;
use crate::clock::{local_stamp, now_ms};
use crate::event::Event;
use crate::handoff::{self, Beat, Feed, LineOptions, Pipes};
use crate::record::{
    Count, Entry, Lines, Record, Source, StreamKind, Streams, end_run_marker, new_run_marker,
};
use crate::service::{Exit, RunId};

/// How long is waited at most for what helpers behind an ended process still say (CONTRACTS
/// section 3).
const DRAIN: Duration = Duration::from_millis(500);

/// Where everything goes.
#[derive(Clone, Debug)]
struct Outlets {
    lines: mpsc::Sender<Record>,
    beats: mpsc::Sender<Beat>,
    inbox: mpsc::Sender<Event>,
}

/// The sink is gone: there is nobody left to read for.
#[derive(Debug)]
struct Closed;

impl<T> From<mpsc::error::SendError<T>> for Closed {
    fn from(_: mpsc::error::SendError<T>) -> Closed {
        Closed
    }
}

/// Bytes that open blocks may hold together where nothing else is said: the default of
/// `[spool] memory`.
const OPEN_BLOCKS: usize = 8 * 1024 * 1024;

/// Serves every run until `feed` closes; what is open then is read until it is empty.
pub async fn run(
    feed: mpsc::Receiver<Feed>,
    lines: mpsc::Sender<Record>,
    beats: mpsc::Sender<Beat>,
    inbox: mpsc::Sender<Event>,
) {
    run_bounded(OPEN_BLOCKS, feed, lines, beats, inbox).await;
}

/// The same, with another bound for the bytes of all open blocks.
pub async fn run_bounded(
    open_blocks: usize,
    mut feed: mpsc::Receiver<Feed>,
    lines: mpsc::Sender<Record>,
    beats: mpsc::Sender<Beat>,
    inbox: mpsc::Sender<Event>,
) {
    let outlets = Outlets {
        lines,
        beats,
        inbox,
    };
    let shared = Shared {
        origin: Instant::now(),
        open_blocks: OpenBlocks::bounded(open_blocks),
        outlets: outlets.clone(),
    };
    let mut runs: HashMap<RunId, Ears> = HashMap::new();
    let mut tasks: JoinSet<RunId> = JoinSet::new();
    let mut tee: Option<Arc<Tee>> = None;
    loop {
        tokio::select! {
            next = feed.recv() => match next {
                None => break,
                Some(Feed::Open { run, streams, pipes, options, awaited, at_ms }) => {
                    if options.tee != handoff::Tee::Off && tee.is_none() {
                        tee = Tee::start().map(Arc::new);
                    }
                    let (end, ended) = mpsc::channel(1);
                    streams.recent.begin(at_ms);
                    let (into, streams) = watch::channel(streams);
                    runs.insert(run, Ears { end, into });
                    let mut task = Task::new(run, streams, pipes, options, tee.clone(), &shared);
                    task.outlet.awaited = awaited.map(|line| (run, line));
                    tasks.spawn(async move {
                        let _ = task.serve(at_ms, ended).await;
                        run
                    });
                }
                Some(Feed::End { run, exit }) => match runs.get(&run) {
                    // Ended a second time: there is nothing to add.
                    Some(ears) => drop(ears.end.try_send(exit)),
                    None => {
                        error!("the output of {run:?} ended before it began");
                        let _ = outlets.inbox.send(Event::Drained { run }).await;
                    }
                },
                Some(Feed::Trim { run, streams }) => {
                    if let Some(ears) = runs.get(&run) {
                        ears.into.send_replace(streams);
                    }
                }
                Some(Feed::NeverRan { run, streams, exit, at_ms }) => {
                    let outlets = outlets.clone();
                    tasks.spawn(async move {
                        let _ = never_ran(run, &streams, exit, at_ms, &outlets).await;
                        run
                    });
                }
            },
            Some(done) = tasks.join_next(), if !tasks.is_empty() => forget(&mut runs, done),
        }
    }
    runs.clear();
    while let Some(done) = tasks.join_next().await {
        forget(&mut runs, done);
    }
    if let Some(tee) = tee.and_then(Arc::into_inner) {
        tee.finish().await;
    }
}

/// What a run's task hears.
struct Ears {
    /// How its process ended.
    end: mpsc::Sender<Exit>,
    /// Where its lines go.
    into: watch::Sender<Arc<Streams>>,
}

fn forget(runs: &mut HashMap<RunId, Ears>, done: Result<RunId, tokio::task::JoinError>) {
    match done {
        Ok(run) => drop(runs.remove(&run)),
        Err(failure) => error!("reading a service's output failed: {failure}"),
    }
}

/// A run that never had a process: both of its markers, and it is over.
async fn never_ran(
    run: RunId,
    streams: &Arc<Streams>,
    exit: Exit,
    at_ms: u64,
    outlets: &Outlets,
) -> Result<(), Closed> {
    outlets.lines.send(begins(streams, at_ms)).await?;
    outlets.lines.send(ends(streams, now_ms(), exit)).await?;
    outlets.inbox.send(Event::Drained { run }).await?;
    Ok(())
}

fn begins(streams: &Arc<Streams>, at_ms: u64) -> Record {
    let marker = new_run_marker(&local_stamp(at_ms));
    Record::Entry(Entry::plain(streams, StreamKind::Info, at_ms, marker))
}

fn ends(streams: &Arc<Streams>, at_ms: u64, exit: Exit) -> Record {
    let marker = end_run_marker(&local_stamp(at_ms), exit.code());
    Record::Entry(Entry::plain(streams, StreamKind::Info, at_ms, marker))
}

/// What all runs share.
struct Shared {
    /// Where the grid of pauses begins.
    origin: Instant,
    open_blocks: Arc<OpenBlocks>,
    outlets: Outlets,
}

/// One run.
struct Task {
    run: RunId,
    stdout: Side,
    stderr: Side,
    outlet: LineOutlet,
}

/// Where one run's messages go.
struct LineOutlet {
    /// The line that says that the run is ready, until it came.
    awaited: Option<(RunId, regex_lite::Regex)>,
    streams: watch::Receiver<Arc<Streams>>,
    tee_form: handoff::Tee,
    tee: Option<Arc<Tee>>,
    outlets: Outlets,
}

/// One of its pipes.
struct Side {
    source: Source,
    /// `None` when it is closed.
    pipe: Option<Pipe>,
    assembler: Assembler,
    pace: Pace,
    /// When to read next; `None` while the pipe is empty.
    due: Option<Instant>,
}

impl Task {
    fn new(
        run: RunId,
        streams: watch::Receiver<Arc<Streams>>,
        pipes: Pipes,
        options: LineOptions,
        tee: Option<Arc<Tee>>,
        shared: &Shared,
    ) -> Task {
        let side = |source, fd| {
            let (pipe, now) = (Pipe::new(fd), Instant::now());
            Side {
                source,
                pace: Pace::new(shared.origin, now, pipe.capacity()),
                pipe: Some(pipe),
                assembler: Assembler::new(
                    options.max_line,
                    options.multi_line,
                    &shared.open_blocks,
                ),
                due: None,
            }
        };
        Task {
            run,
            stdout: side(Source::Stdout, pipes.stdout),
            stderr: side(Source::Stderr, pipes.stderr),
            outlet: LineOutlet {
                awaited: None,
                streams,
                tee_form: options.tee,
                tee,
                outlets: shared.outlets.clone(),
            },
        }
    }

    /// From the start marker to the last byte of the last writer.
    async fn serve(mut self, at_ms: u64, mut ended: mpsc::Receiver<Exit>) -> Result<(), Closed> {
        let streams = self.outlet.streams();
        let lines = self.outlet.outlets.lines.clone();
        lines.send(begins(&streams, at_ms)).await?;
        let mut over = false;
        while !(over && self.is_closed()) {
            match self.wait(&mut ended).await {
                Woken::Due => self.read().await?,
                Woken::Ended(exit) => {
                    self.drain().await?;
                    let streams = self.outlet.streams();
                    lines.send(ends(&streams, now_ms(), exit)).await?;
                    let drained = Event::Drained { run: self.run };
                    self.outlet.outlets.inbox.send(drained).await?;
                    over = true;
                }
                // Nobody will tell the end any more: what is there, and no waiting for more.
                Woken::Abandoned => return self.drain().await,
            }
        }
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.stdout.pipe.is_none() && self.stderr.pipe.is_none()
    }

    /// Until it is time to read, or the run ended.
    async fn wait(&mut self, ended: &mut mpsc::Receiver<Exit>) -> Woken {
        let sides = [&self.stdout, &self.stderr];
        let due = sides
            .iter()
            .flat_map(|side| [side.due, side.assembler.deadline()])
            .flatten()
            .min();
        if due.is_some_and(|due| due <= Instant::now()) {
            // A fast child: everybody else gets a turn all the same.
            tokio::task::yield_now().await;
            return match ended.try_recv() {
                Ok(exit) => Woken::Ended(exit),
                Err(_) => Woken::Due,
            };
        }
        let pause = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            exit = ended.recv() => exit.map_or(Woken::Abandoned, Woken::Ended),
            () = pause => Woken::Due,
            () = self.stdout.readable() => Woken::Due,
            () = self.stderr.readable() => Woken::Due,
        }
    }

    /// One read of each pipe that is due, and what is held no longer.
    async fn read(&mut self) -> Result<(), Closed> {
        let now = Instant::now();
        for side in [&mut self.stdout, &mut self.stderr] {
            let held_too_long = side.assembler.deadline().is_some_and(|until| until <= now);
            if held_too_long || side.due.is_some_and(|due| due <= now) {
                // What is in the pipe came before the time was up.
                let mut batch = Batch::default();
                side.read(now, &mut batch);
                side.assembler.tick(now, &mut batch);
                self.outlet.send(side.source, batch).await?;
            }
        }
        Ok(())
    }

    /// Both pipes until their ends, or it takes too long; then what is left of lines and
    /// blocks. What was written before the exit is read however long that takes. An empty
    /// pipe is not at its end: a helper behind the process (a shell's `> >(tee log)`) may
    /// still hold the last lines.
    async fn drain(&mut self) -> Result<(), Closed> {
        let mut owed = self.stdout.holds() + self.stderr.holds();
        let mut deadline = Instant::now() + DRAIN;
        loop {
            let mut read = 0;
            for side in [&mut self.stdout, &mut self.stderr] {
                let mut batch = Batch::default();
                read += side.read(Instant::now(), &mut batch);
                side.due = None;
                let asked = Instant::now();
                self.outlet.send(side.source, batch).await?;
                // Waiting for room is not waiting for a helper.
                deadline += asked.elapsed();
            }
            owed = owed.saturating_sub(read);
            let over = self.stdout.pipe.is_none() && self.stderr.pipe.is_none();
            if over || (owed == 0 && Instant::now() >= deadline) {
                break;
            }
            if read > 0 {
                tokio::task::yield_now().await;
                continue;
            }
            owed = 0;
            tokio::select! {
                () = self.stdout.readable() => {}
                () = self.stderr.readable() => {}
                () = tokio::time::sleep_until(deadline.into()) => break,
            }
        }
        for side in [&mut self.stdout, &mut self.stderr] {
            let mut batch = Batch::default();
            side.assembler.finish(Instant::now(), &mut batch);
            self.outlet.send(side.source, batch).await?;
        }
        Ok(())
    }
}

enum Woken {
    Due,
    Ended(Exit),
    Abandoned,
}

impl Side {
    /// Until an empty pipe is not empty any more; for ever where it is not waited for.
    async fn readable(&mut self) {
        match &mut self.pipe {
            Some(pipe) if self.due.is_none() => {
                if let Err(failure) = pipe.readable().await {
                    warn!("cannot wait for output: {failure}");
                    self.pipe = None;
                    return;
                }
                self.due = Some(Instant::now());
            }
            Some(_) | None => std::future::pending().await,
        }
    }

    /// Bytes that wait in the pipe.
    fn holds(&self) -> usize {
        self.pipe.as_ref().map_or(0, Pipe::holds)
    }

    /// One read; sets when to read next. Returns how many bytes came.
    fn read(&mut self, now: Instant, batch: &mut Batch) -> usize {
        let Some(pipe) = &mut self.pipe else {
            return 0;
        };
        let read = match pipe.read(|bytes| self.assembler.push(now, bytes, batch)) {
            Ok(Brought::Bytes(read)) => read,
            Ok(Brought::Empty) => 0,
            Ok(Brought::Eof) => return self.close(now, batch),
            Err(failure) => {
                warn!("cannot read {} any more: {failure}", self.source.as_str());
                return self.close(now, batch);
            }
        };
        self.due = match self.pace.step(now, read) {
            Next::At(due) => Some(due),
            Next::WhenReadable => None,
        };
        if self.pace.is_cramped()
            && let Some(capacity) = pipe.enlarge()
        {
            self.pace.enlarged(capacity);
        }
        read
    }

    fn close(&mut self, now: Instant, batch: &mut Batch) -> usize {
        self.assembler.finish(now, batch);
        self.pipe = None;
        self.due = None;
        0
    }
}

impl LineOutlet {
    /// Whether the line has come that says that the run is ready.
    async fn look_for_ready(&mut self, batch: &Batch) -> Result<(), Closed> {
        let Some((run, line)) = &self.awaited else {
            return Ok(());
        };
        let came = batch.spans.iter().any(|span| {
            let bytes = batch.chunk.get(span.start as usize..span.end as usize);
            let text = String::from_utf8_lossy(bytes.unwrap_or_default());
            line.is_match(&text)
        });
        if came {
            let ready = Event::Ready { run: *run };
            self.awaited = None;
            self.outlets.inbox.send(ready).await?;
        }
        Ok(())
    }

    fn streams(&self) -> Arc<Streams> {
        Arc::clone(&self.streams.borrow())
    }

    /// Sends one read's messages and marks, and waits for room.
    async fn send(&mut self, source: Source, mut batch: Batch) -> Result<(), Closed> {
        self.look_for_ready(&batch).await?;
        let counts = batch.marks.take();
        let streams = self.streams();
        let read = batch.read.as_ref().unwrap_or(&batch.spans).iter();
        let texts = read.map(|span| &batch.chunk[span.start as usize..span.end as usize]);
        if texts.len() > 0 {
            streams.recent.keep(now_ms(), texts);
        }
        if !batch.spans.is_empty() {
            let bytes = batch
                .spans
                .iter()
                .map(|span| u64::from(span.end - span.start));
            let tally = &streams.tally;
            tally.add_lines(batch.spans.len() as u64, bytes.sum());
            let lines = Lines {
                streams: Arc::clone(&streams),
                source,
                read_ms: now_ms(),
                chunk: Bytes::from(batch.chunk),
                spans: batch.spans,
            };
            if let Some(tee) = &self.tee {
                tee.copy(&lines, self.tee_form);
            }
            self.outlets.lines.send(Record::Lines(lines)).await?;
        }
        for (key, what) in counts {
            if let Some((category, kind)) = marker::beat(&key, &what) {
                let beat = Beat {
                    stream_name: Arc::clone(streams.name()),
                    category: category.to_owned(),
                    what: kind,
                };
                self.outlets.beats.send(beat).await?;
            }
            let count = Count {
                streams: Arc::clone(&streams),
                key,
                what,
            };
            self.outlets.lines.send(Record::Count(count)).await?;
        }
        Ok(())
    }
}
