//! Runs over real pipes: order, draining, surviving writers, back-pressure, pace.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jettison_agent::event::Event;
use jettison_agent::handoff::{Beat, BeatKind, Feed, LineOptions, MultiLine, Pipes, Tee};
use jettison_agent::logs;
use jettison_agent::record::{Count, CountKind, Record, Source, Streams, Trim};
use jettison_agent::service::{Exit, RunId, ServiceId, Signal};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::mpsc;

const RUN: RunId = RunId {
    service: ServiceId(1),
    number: 1,
};

const LIMIT: Duration = Duration::from_secs(20);

/// A run and the ends of all its channels.
struct House {
    feed: mpsc::Sender<Feed>,
    lines: mpsc::Receiver<Record>,
    beats: mpsc::Receiver<Beat>,
    inbox: mpsc::Receiver<Event>,
    streams: Arc<Streams>,
}

/// What the child holds.
struct Child {
    stdout: std::fs::File,
    stderr: std::fs::File,
}

fn pipe() -> (OwnedFd, std::fs::File) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    rustix::io::ioctl_fionbio(&read, true).unwrap();
    (read, write.into())
}

/// A house with room for so many records.
fn house(room: usize) -> House {
    let (feed, feeds) = mpsc::channel(16);
    let (to_lines, lines) = mpsc::channel(room);
    let (to_beats, beats) = mpsc::channel(64);
    let (to_inbox, inbox) = mpsc::channel(64);
    tokio::spawn(logs::run::run(feeds, to_lines, to_beats, to_inbox));
    House {
        feed,
        lines,
        beats,
        inbox,
        streams: Streams::new("lidar", Trim { max_len: 1000 }),
    }
}

impl House {
    async fn open(&self, max_line: usize) -> Child {
        let ((stdout, child_stdout), (stderr, child_stderr)) = (pipe(), pipe());
        let open = Feed::Open {
            awaited: None,
            run: RUN,
            streams: Arc::clone(&self.streams),
            pipes: Pipes { stdout, stderr },
            options: LineOptions {
                max_line,
                multi_line: MultiLine {
                    markers: true,
                    tracebacks: true,
                },
                tee: Tee::Off,
            },
            at_ms: 1_700_000_000_000,
        };
        self.feed.send(open).await.unwrap();
        Child {
            stdout: child_stdout,
            stderr: child_stderr,
        }
    }

    async fn end(&self, exit: Exit) {
        self.feed.send(Feed::End { run: RUN, exit }).await.unwrap();
    }

    /// The next messages, as `stdout:text`, `info:text` for an entry, `~` for a partial one.
    async fn next(&mut self) -> Vec<String> {
        let next = tokio::time::timeout(LIMIT, self.lines.recv());
        match next
            .await
            .expect("a record in time")
            .expect("an open channel")
        {
            Record::Lines(lines) => {
                let text = |span: &jettison_agent::record::Span| {
                    let bytes = &lines.chunk[span.start as usize..span.end as usize];
                    let more = if span.partial { "~" } else { "" };
                    let source = lines.source.as_str();
                    format!("{source}:{}{more}", String::from_utf8_lossy(bytes))
                };
                lines.spans.iter().map(text).collect()
            }
            Record::Entry(entry) => {
                let message = String::from_utf8_lossy(&entry.message);
                vec![format!("{}:{message}", entry.kind.as_str())]
            }
            Record::Count(Count { key, what, .. }) => vec![match what {
                CountKind::Increment(times) => format!("{key}+{times}"),
                CountKind::Set(digits) => format!("{key}={digits}"),
            }],
            Record::Gauges(_) => panic!("logs publish no gauges"),
        }
    }

    /// Messages up to and with the one that starts so.
    async fn until(&mut self, last: &str) -> Vec<String> {
        let mut seen = Vec::new();
        while !seen
            .last()
            .is_some_and(|message: &String| message.starts_with(last))
        {
            seen.extend(self.next().await);
        }
        seen
    }

    async fn drained(&mut self) {
        let event = tokio::time::timeout(LIMIT, self.inbox.recv());
        match event.await.expect("an event in time") {
            Some(Event::Drained { run }) => assert_eq!(run, RUN),
            other => panic!("{other:?}"),
        }
    }
}

/// The thread's result; others may run until then.
async fn ended<T: Send + 'static>(writer: std::thread::JoinHandle<T>) -> T {
    let join = tokio::task::spawn_blocking(move || writer.join().unwrap());
    tokio::time::timeout(LIMIT, join)
        .await
        .expect("the writer to end")
        .unwrap()
}

const END: &str = "info:{{__END_RUN_";

#[tokio::test]
async fn a_run_is_framed_by_its_markers() {
    let mut house = house(64);
    let mut child = house.open(1000).await;
    child
        .stdout
        .write_all(b"one\n  two \r\n\n{{beats}}\nlast")
        .unwrap();
    drop(child);
    house.end(Exit::Signal(Signal(11))).await;
    let seen = house.until(END).await;
    house.drained().await;
    let frame = |message: &str| message.starts_with("info:{{__NEW_RUN_20");
    assert!(frame(&seen[0]), "{seen:?}");
    assert!(seen.last().unwrap().ends_with("_exit_139}}"), "{seen:?}");
    let messages: Vec<_> = seen[1..seen.len() - 1].iter().map(String::as_str).collect();
    let mut sorted = messages.clone();
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        ["beats+1", "stdout:  two", "stdout:last", "stdout:one"]
    );
    assert!(messages.ends_with(&["stdout:last"]), "{messages:?}");
    assert_eq!(house.streams.tally.lines(), 3);
}

#[tokio::test]
async fn a_run_that_never_was_has_both_markers() {
    let mut house = house(64);
    let exit = Exit::NotStarted { found: false };
    let streams = Arc::clone(&house.streams);
    let never = Feed::NeverRan {
        run: RUN,
        streams,
        exit,
        at_ms: 0,
    };
    house.feed.send(never).await.unwrap();
    assert!(house.next().await[0].starts_with("info:{{__NEW_RUN_"));
    assert!(house.next().await[0].ends_with("_exit_127}}"));
    house.drained().await;
}

#[tokio::test]
async fn a_survivor_delays_the_end_by_half_a_second_and_is_still_heard() {
    let mut house = house(64);
    let mut child = house.open(1000).await;
    child.stdout.write_all(b"unfinished").unwrap();
    house.until("info:{{__NEW_RUN_").await;
    let begun = Instant::now();
    house.end(Exit::Code(0)).await;
    assert_eq!(house.until(END).await[0], "stdout:unfinished");
    house.drained().await;
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(490) && took < Duration::from_millis(900),
        "what it still writes belongs to the run for half a second: {took:?}"
    );
    child.stderr.write_all(b"from the grave\n").unwrap();
    assert_eq!(house.next().await, ["stderr:from the grave"]);
}

#[tokio::test]
async fn a_survivor_that_never_stops_writing_is_cut_off_after_half_a_second() {
    let mut house = house(64);
    let mut child = house.open(1000).await;
    let writer = std::thread::spawn(move || while child.stdout.write_all(b"noise\n").is_ok() {});
    house.until("stdout:noise").await;
    let begun = Instant::now();
    house.end(Exit::Code(0)).await;
    house.until(END).await;
    house.drained().await;
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    house.until("stdout:noise").await;
    drop(house);
    ended(writer).await;
}

#[tokio::test]
async fn both_sources_have_blocks_of_their_own() {
    let mut house = house(64);
    let mut child = house.open(1000).await;
    house.until("info:").await;
    child.stdout.write_all(b">>|start\n").unwrap();
    child.stderr.write_all(b"intruder\n").unwrap();
    assert_eq!(house.next().await, ["stderr:intruder"]);
    child.stdout.write_all(b"end|<<after\n>>|open").unwrap();
    assert_eq!(house.next().await, ["stdout:start\nend", "stdout:after"]);
    drop(child);
    assert_eq!(house.next().await, ["stdout:open"]);
}

#[tokio::test]
async fn a_sink_that_takes_nothing_stops_the_child_and_loses_nothing() {
    let mut house = house(1);
    let mut child = house.open(1000).await;
    let (counted, mut written) = tokio::sync::watch::channel(0_u64);
    let writer = std::thread::spawn(move || {
        for number in 0..100_000_u64 {
            writeln!(child.stdout, "line {number}").unwrap();
            counted.send_replace(number);
        }
    });
    // Until the child writes no more.
    loop {
        let moved = written.changed();
        if tokio::time::timeout(Duration::from_millis(300), moved)
            .await
            .is_err()
        {
            break;
        }
    }
    assert!(*written.borrow() < 90_000, "nothing held the child up");
    let mut expected = 0;
    house.until("info:").await;
    while expected < 100_000 {
        for message in house.next().await {
            assert_eq!(message, format!("stdout:line {expected}"));
            expected += 1;
        }
    }
    ended(writer).await;
}

#[tokio::test]
async fn what_was_written_before_the_exit_is_never_cut_however_long_nobody_takes_it() {
    let mut house = house(1);
    let mut child = house.open(1 << 18).await;
    // Fits into the pipe, in more than one read, none of which ends with a line.
    rustix::pipe::fcntl_setpipe_size(&child.stdout, 1 << 20).unwrap();
    let line = "x".repeat(99_999);
    for _ in 0..9 {
        writeln!(child.stdout, "{line}").unwrap();
    }
    drop(child);
    house.end(Exit::Code(0)).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let seen = house.until("info:{{__END_RUN").await;
    assert_eq!(seen.len(), 11, "markers and nine lines");
    assert!(
        seen[1..10]
            .iter()
            .all(|seen| seen.len() == "stdout:".len() + line.len())
    );
    house.drained().await;
}

#[tokio::test]
async fn a_gigantic_line_flows_in_pieces() {
    let mut house = house(64);
    let mut child = house.open(64 * 1024).await;
    let writer = std::thread::spawn(move || {
        for _ in 0..300 {
            child.stdout.write_all(&[b'x'; 128 * 1024]).unwrap();
        }
        child.stdout.write_all(b"\t \r\nnext\n").unwrap();
    });
    house.until("info:").await;
    let (mut bytes, mut whole) = (0, 0);
    loop {
        for message in house.next().await {
            if message == "stdout:next" {
                assert_eq!((bytes, whole), (300 * 128 * 1024, 1));
                return ended(writer).await;
            }
            bytes += message.matches('x').count();
            whole += usize::from(!message.ends_with('~'));
        }
    }
}

#[tokio::test]
async fn markers_count_and_beat() {
    let mut house = house(64);
    let mut child = house.open(1000).await;
    house.until("info:").await;
    let beats = "{{__healthpool__api_init:1500}}\n{{__healthpool__api_beats}}\n".to_owned()
        + "x{{__healthpool__api_beats}}\n{{n:007}}{{n}}\n";
    child.stdout.write_all(beats.as_bytes()).unwrap();
    assert_eq!(house.next().await, ["stdout:x"]);
    assert_eq!(house.next().await, ["__healthpool__api_init=1500"]);
    assert_eq!(house.next().await, ["__healthpool__api_beats+2"]);
    assert_eq!(house.next().await, ["n=007"]);
    assert_eq!(house.next().await, ["n+1"]);
    let init = house.beats.recv().await.unwrap();
    assert_eq!(
        (init.category.as_str(), &*init.stream_name),
        ("api", "lidar")
    );
    assert_eq!(house.beats.recv().await.unwrap().what, BeatKind::Beats(2));
}

#[tokio::test]
async fn a_trace_whose_next_line_does_not_come_is_sent_soon_and_the_other_source_is_not_held() {
    let mut house = house(64);
    let mut child = house.open(1000).await;
    house.until("info:").await;
    let trace = "Traceback (most recent call last):\n  File \"a\", line 1\nE: x";
    writeln!(child.stderr, "{trace}").unwrap();
    writeln!(child.stdout, "{trace}").unwrap();
    writeln!(child.stdout, "on").unwrap();
    assert_eq!(
        house.until("stdout:on").await,
        [format!("stdout:{trace}"), "stdout:on".into()]
    );
    assert_eq!(house.next().await, [format!("stderr:{trace}")]);
    // What an ended run still held is sent before the end marker.
    writeln!(child.stderr, "{trace}").unwrap();
    drop(child);
    house.end(Exit::Code(1)).await;
    assert_eq!(house.next().await, [format!("stderr:{trace}")]);
    assert!(house.next().await[0].starts_with("info:{{__END_RUN"));
}

#[tokio::test]
async fn slow_lines_travel_together_and_arrive_soon() {
    let mut house = house(64);
    let mut child = house.open(1000).await;
    house.until("info:").await;
    let writer = std::thread::spawn(move || {
        let begun = Instant::now();
        for number in 0..1000 {
            let at = begun + Duration::from_millis(number);
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            let now = begun.elapsed().as_micros();
            writeln!(child.stdout, "{now}").unwrap();
        }
        begun
    });
    let mut arrivals = Vec::new();
    let mut records = 0;
    while arrivals.len() < 1000 {
        let messages = house.next().await;
        let now = Instant::now();
        records += 1;
        for message in messages {
            let written: u64 = message.trim_start_matches("stdout:").parse().unwrap();
            arrivals.push((now, Duration::from_micros(written)));
        }
    }
    let begun = ended(writer).await;
    let late = |(now, written): &(Instant, Duration)| now.duration_since(begun + *written);
    let mut delays: Vec<_> = arrivals.iter().map(late).collect();
    delays.sort_unstable();
    // Generous: the machine may be busy. What the pace promises is tested without a clock.
    assert!(delays[500] < Duration::from_millis(20), "{:?}", delays[500]);
    assert!(records < 600, "{records} reads for 1000 lines");
    println!(
        "delay p50 {:?} p99 {:?}, {records} reads",
        delays[500], delays[990]
    );
}

#[tokio::test]
async fn stdout_and_stderr_are_told_apart() {
    let mut house = house(64);
    let mut child = house.open(1000).await;
    house.until("info:").await;
    child.stderr.write_all(b"e\n").unwrap();
    match house.lines.recv().await {
        Some(Record::Lines(lines)) => assert_eq!(lines.source, Source::Stderr),
        other => panic!("{other:?}"),
    }
}
