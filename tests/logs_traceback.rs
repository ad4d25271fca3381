//! Tracebacks on their way through the line reader: what real runtimes printed is one message each, and what streams
//! through in chunks cut anywhere is what a naive model makes of the whole input.
//!
//! `tests/tracebacks/` holds what CPython 3.11, OpenJDK 17, Go 1.19, Rust 1.9x, gcc 12's sanitizers and libstdc++
//! printed when programs died (`glibc_old` is the form of glibc before 2.26).

use std::sync::Arc;
use std::time::{Duration, Instant};

use jettison_agent::handoff::MultiLine;
use jettison_agent::logs::entry::{Assembler, Batch};
use jettison_agent::logs::join::{Joiner, OpenBlocks};
use jettison_agent::logs::shapes::{Shape, Verdict};
use jettison_agent::logs::traceback::{PAUSE, Tracebacks};

/// Message and whether it is partial.
type Seen = Vec<(String, bool)>;

/// SplitMix64: the same cases every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }

    fn cut<'a>(&mut self, mut input: &'a [u8], longest: usize) -> Vec<&'a [u8]> {
        let mut chunks = Vec::new();
        while !input.is_empty() {
            let (chunk, rest) = input.split_at((1 + self.below(longest)).min(input.len()));
            chunks.push(chunk);
            input = rest;
        }
        chunks
    }
}

const MAX_LINE: usize = 4096;
const BOTH: MultiLine = MultiLine {
    markers: true,
    tracebacks: true,
};

fn texts(batch: &Batch, spans: &[jettison_agent::record::Span]) -> Seen {
    let text = |span: &jettison_agent::record::Span| {
        let bytes = &batch.chunk[span.start as usize..span.end as usize];
        (String::from_utf8_lossy(bytes).into_owned(), span.partial)
    };
    spans.iter().map(text).collect()
}

/// Messages, and the lines as they were read.
fn read(mut assembler: Assembler, chunks: &[&[u8]]) -> (Seen, Vec<String>) {
    let now = Instant::now();
    let (mut seen, mut lines) = (Vec::new(), Vec::new());
    let mut take = |batch: Batch| {
        let read = texts(&batch, batch.read.as_ref().unwrap_or(&batch.spans));
        lines.extend(read.into_iter().map(|(line, _)| line));
        seen.extend(texts(&batch, &batch.spans));
    };
    for chunk in chunks {
        let mut batch = Batch::default();
        assembler.push(now, chunk, &mut batch);
        take(batch);
    }
    let mut batch = Batch::default();
    assembler.finish(now, &mut batch);
    take(batch);
    (seen, lines)
}

fn joining() -> Assembler {
    Assembler::new(MAX_LINE, BOTH, &OpenBlocks::bounded(usize::MAX))
}

fn plain() -> Assembler {
    let multi_line = MultiLine::default();
    Assembler::new(MAX_LINE, multi_line, &OpenBlocks::bounded(usize::MAX))
}

fn messages(input: &str) -> Vec<String> {
    let (seen, _) = read(joining(), &[input.as_bytes()]);
    seen.into_iter().map(|(text, _)| text).collect()
}

/// Name and text of what runtimes printed.
fn printed() -> Vec<(String, String)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tracebacks");
    let mut all: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| {
            let path = file.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    all.sort();
    assert!(all.len() >= 28, "{}", all.len());
    all
}

/// How many messages each of these is, where it is not one: several traces, or a last word that is no part.
fn expected(name: &str) -> usize {
    match name {
        // A broken log call; then the line of the log and a traceback.
        "python_logging" => 3,
        // Two threads' traces.
        "java_thr" => 2,
        // A panic, another while it unwinds, and the one about that.
        "rust_drop" => 3,
        // "reported 1 warnings"
        "tsan_race" => 2,
        // A message of two lines that nothing follows.
        "cxx_what" => 2,
        _ => 1,
    }
}

#[test]
fn what_runtimes_printed_is_one_message_each_wherever_chunks_end() {
    for (name, text) in printed() {
        let input = format!("a line before\n{text}a line after\n");
        for case in 0..12 {
            let random = &mut Random(case);
            let longest = [1, 7, 60, 100_000][random.below(4)];
            let (seen, lines) = read(joining(), &random.cut(input.as_bytes(), longest));
            let seen: Vec<_> = seen.into_iter().map(|(text, _)| text).collect();
            assert_eq!(seen.len(), 2 + expected(&name), "{name}: {seen:#?}");
            assert_eq!(seen[0], "a line before", "{name}");
            assert_eq!(seen[seen.len() - 1], "a line after", "{name}");
            if expected(&name) == 1 {
                assert_eq!(seen[1], text.trim_matches('\n'), "{name}");
            }
            let as_read = input.lines().filter(|line| !line.trim().is_empty());
            let as_read: Vec<_> = as_read.map(str::trim_end).collect();
            assert_eq!(lines, as_read, "{name}");
        }
    }
}

#[test]
fn one_after_the_other_they_stay_apart() {
    let mut expected_messages = 0;
    let mut input = String::new();
    for (name, text) in printed() {
        expected_messages += 1 + expected(&name);
        input += &format!("{text}-- {name}\n");
    }
    let found = messages(&input);
    let names = found.iter().filter(|m| m.starts_with("-- ")).count();
    assert_eq!(
        (names, found.len()),
        (printed().len(), expected_messages),
        "{found:#?}"
    );
}

#[test]
fn a_line_that_only_looks_like_a_beginning_is_a_line() {
    let lines = "panic: not really\nTraceback (most recent call last):\nand on\nthread 'x' panicked at here:\n\
                 Caused by: a cold\ncom.acme.Error: no frame\n=====================\nfatal error: none\n\
                 a.c:1:2: runtime error: odd\nException in thread \"a\" said\n*** hello\ngoroutine 1 [x]:\n\
                 f(1)\nThread 0x1 (most recent call first):\nnothing\n";
    let expected: Vec<_> = lines
        .lines()
        .filter(|l| *l != "Caused by: a cold")
        .collect();
    // The message of a panic is whatever follows its first line.
    let mut found = messages(lines);
    assert_eq!(
        found.remove(3),
        "thread 'x' panicked at here:\nCaused by: a cold"
    );
    let mut expected: Vec<_> = expected.into_iter().map(str::to_owned).collect();
    expected.remove(3);
    assert_eq!(found, expected);
}

#[test]
fn markers_within_a_trace_do_not_disturb_it_and_blocks_end_it() {
    let trace = "Traceback (most recent call last):\n  File \"a\", line 1\n{{beats}}\nValueError: {{errors}}x\nrest\n";
    assert_eq!(
        messages(trace),
        [
            "Traceback (most recent call last):\n  File \"a\", line 1\nValueError: x",
            "rest"
        ]
    );
    let blocks = "Traceback (most recent call last):\n  File \"a\", line 1\n>>|\nTraceback (most recent call last):\n  \
                  x\n|<<\nrest";
    assert_eq!(
        messages(blocks),
        [
            "Traceback (most recent call last):\n  File \"a\", line 1",
            "Traceback (most recent call last):\n  x",
            "rest"
        ]
    );
}

#[test]
fn without_markers_blocks_are_bytes() {
    let multi_line = MultiLine {
        markers: false,
        tracebacks: true,
    };
    let assembler = Assembler::new(MAX_LINE, multi_line, &OpenBlocks::bounded(usize::MAX));
    let (seen, _) = read(assembler, &[b"a >>| b\nc |<<{{k}} d\n"]);
    let seen: Vec<_> = seen.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!(seen, ["a >>| b", "c |<< d"]);
}

#[test]
fn a_trace_is_sent_when_its_next_line_does_not_come() {
    let mut assembler = joining();
    let start = Instant::now();
    let mut push = |after: Duration, text: &str| {
        let mut batch = Batch::default();
        assembler.push(start + after, text.as_bytes(), &mut batch);
        assembler.tick(start + after, &mut batch);
        let seen: Vec<_> = texts(&batch, &batch.spans)
            .into_iter()
            .map(|(t, _)| t)
            .collect();
        (seen, assembler.deadline())
    };
    let ms = Duration::from_millis;
    let none: Vec<String> = Vec::new();
    assert_eq!(push(ms(0), "x\n"), (vec!["x".to_owned()], None));
    let head = "Traceback (most recent call last):\n  File \"a\", line 1\n";
    assert_eq!(
        push(ms(10), head),
        (none.clone(), Some(start + ms(10) + PAUSE))
    );
    // What belongs extends the time, what is in doubt does not.
    assert_eq!(
        push(ms(150), "E: x\n"),
        (none.clone(), Some(start + ms(150) + PAUSE))
    );
    assert_eq!(
        push(ms(300), "doubtful\n"),
        (none, Some(start + ms(150) + PAUSE))
    );
    let trace = "Traceback (most recent call last):\n  File \"a\", line 1\nE: x";
    let sent = vec![trace.to_owned(), "doubtful".to_owned()];
    assert_eq!(push(ms(150) + PAUSE, ""), (sent, None));
}

#[test]
fn where_debug_information_is_read_between_lines_more_time_is_given() {
    let mut assembler = joining();
    let start = Instant::now();
    let mut push = |after: Duration, text: &str| {
        let mut batch = Batch::default();
        assembler.push(start + after, text.as_bytes(), &mut batch);
        assembler.tick(start + after, &mut batch);
        batch.spans.len()
    };
    let ms = Duration::from_millis;
    assert_eq!(
        push(
            ms(0),
            "thread 'main' panicked at a.rs:1:1:\nm\nstack backtrace:\n"
        ),
        0
    );
    assert_eq!(push(ms(1900), "   0: f\n"), 0);
    assert_eq!(push(ms(3800), "note: more\n"), 0);
    assert_eq!(push(ms(3800) + PAUSE, ""), 1);
}

// A naive model: the whole input at once, the longest trace at each line.

fn trimmed(line: &str) -> &str {
    line.strip_suffix('\r')
        .unwrap_or(line)
        .trim_end_matches([' ', '\t'])
}

fn model(input: &str, max: usize) -> Vec<String> {
    let mut lines: Vec<_> = input.split('\n').collect();
    if lines.last() == Some(&"") {
        lines.pop();
    }
    let mut seen = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let mut end = at + 1;
        let first = lines[at];
        if let Some(mut shape) = Shape::begins(first.as_bytes()).filter(|_| first.len() < max) {
            let (mut doubtful, mut size) = (0, first.len() + 1);
            for (index, line) in lines.iter().enumerate().skip(at + 1) {
                let fits = size + line.len() < max;
                size += line.len() + 1;
                match shape.next(line.as_bytes()) {
                    Verdict::Part if fits => (end, doubtful) = (index + 1, 0),
                    Verdict::Maybe if fits && doubtful < 32 => doubtful += 1,
                    Verdict::Part | Verdict::Maybe | Verdict::Foreign => break,
                }
            }
        }
        let message = match end - at {
            1 => trimmed(lines[at]).to_owned(),
            _ => {
                let whole = lines[at..end].join("\n");
                whole.trim_end_matches([' ', '\t', '\r', '\n']).to_owned()
            }
        };
        if !message.is_empty() {
            seen.push(message);
        }
        at = end;
    }
    seen
}

const LINES: &[&str] = &[
    "",
    "",
    " ",
    "plain",
    "plain \t",
    "\tindented",
    "  indented\r",
    "Traceback (most recent call last):",
    "  File \"x.py\", line 3, in f\r",
    "ValueError: x",
    "During handling of the above exception, another exception occurred:",
    "Exception in thread \"main\" java.lang.Error: y",
    "java.io.IOException: z",
    "\tat a.B.c(B.java:4)",
    "\t... 3 more",
    "Caused by: java.lang.Error: w",
    "panic: p",
    "goroutine 1 [running]:",
    "main.main()",
    "\t/src/m.go:3 +0x1",
    "exit status 2",
    "thread 'main' panicked at src/main.rs:1:1:",
    "note: run with `RUST_BACKTRACE=1`",
    "stack backtrace:",
    "   0: f",
    "terminate called after throwing an instance of 'int'",
    "  what():  v",
    "==7==ERROR: AddressSanitizer: bad",
    "SUMMARY: AddressSanitizer: bad",
    "=================================================================",
    "==7==ABORTING",
    "Fatal Python error: Aborted",
    "Current thread 0x00007f00 (most recent call first):",
];

fn random_text(random: &mut Random) -> String {
    let favourites: Vec<_> = (0..1 + random.below(6))
        .map(|_| LINES[random.below(LINES.len())])
        .collect();
    let mut input = String::new();
    for _ in 0..random.below(60) {
        input += match random.below(3) {
            0 => LINES[random.below(LINES.len())],
            _ => favourites[random.below(favourites.len())],
        };
        input.push('\n');
    }
    if random.below(4) == 0 && input.ends_with('\n') {
        input.pop();
    }
    input
}

/// A carriage return at the very end of the input is a byte: there is no line end.
fn ends_oddly(input: &str) -> bool {
    input.ends_with('\r')
}

#[test]
fn chunks_cut_anywhere_give_what_the_model_gives() {
    for case in 0..6_000 {
        let random = &mut Random(case);
        let input = random_text(random);
        if ends_oddly(&input) {
            continue;
        }
        let max = [40, 120, 1_000_000][random.below(3)];
        let longest = [1, 9, 80, 5000][random.below(4)];
        let chunks = random.cut(input.as_bytes(), longest);
        let open_blocks = OpenBlocks::bounded(usize::MAX);
        let tracebacks = Tracebacks::new(MAX_LINE, max, Arc::clone(&open_blocks));
        let joiner = Joiner::new(MAX_LINE, open_blocks);
        let (seen, _) = read(Assembler::with(MAX_LINE, joiner, Some(tracebacks)), &chunks);
        let seen: Vec<_> = seen.into_iter().map(|(text, _)| text).collect();
        assert_eq!(
            seen,
            model(&input, max),
            "case {case}, max {max}: {input:?}"
        );
    }
}

#[test]
fn lines_of_which_none_begins_a_trace_are_what_they_are_without() {
    for case in 0..2_000 {
        let random = &mut Random(case);
        let text = random_text(random);
        let lines = text
            .split_inclusive('\n')
            .filter(|line| Shape::begins(line.as_bytes()).is_none());
        let mut input: String = lines.collect();
        if random.below(2) == 0 {
            input += "{{k}} >>| a\nb |<< c\n";
        }
        let longest = [1, 9, 5000][random.below(3)];
        let chunks = random.cut(input.as_bytes(), longest);
        assert_eq!(
            read(joining(), &chunks),
            read(plain(), &chunks),
            "case {case}: {input:?}"
        );
    }
}

#[test]
fn nothing_is_lost_and_pieces_make_the_whole_when_too_much_is_held() {
    for case in 0..4_000 {
        let random = &mut Random(case);
        let input = random_text(random);
        let chunks = random.cut(input.as_bytes(), 200);
        let open_blocks = OpenBlocks::bounded(random.below(300));
        let (seen, _) = read(Assembler::new(MAX_LINE, BOTH, &open_blocks), &chunks);
        assert!(
            seen.last().is_none_or(|(_, partial)| !partial),
            "case {case}: {seen:?}"
        );
        let solid = |text: &str| text.split_whitespace().collect::<String>();
        let together: String = seen.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(solid(&together), solid(&input), "case {case}");
        // Pieces are of one trace: put together they are what the unbounded reader gave, or lines of it.
        let mut whole = vec![String::new()];
        for (text, partial) in &seen {
            whole.last_mut().unwrap().push_str(text);
            if !partial {
                whole.push(String::new());
            }
        }
        let unbounded = messages(&input).join("\n");
        for message in whole.iter().filter(|message| !message.is_empty()) {
            assert!(
                solid(&unbounded).contains(&solid(message)),
                "case {case}: {message:?}"
            );
        }
    }
}

#[test]
fn what_is_held_is_given_back() {
    let open_blocks = OpenBlocks::bounded(1000);
    let trace = "Traceback (most recent call last):\n  File \"a\", line 1\n";
    for end in ["", "E: x\n", "E: x\nrest\n"] {
        for _ in 0..100 {
            let mut assembler = Assembler::new(MAX_LINE, BOTH, &open_blocks);
            let mut batch = Batch::default();
            assembler.push(
                Instant::now(),
                (trace.to_owned() + end).as_bytes(),
                &mut batch,
            );
            // Dropped while it holds.
        }
    }
    let assembler = Assembler::new(MAX_LINE, BOTH, &open_blocks);
    let (seen, _) = read(assembler, &[trace.as_bytes(), b"E: x\n"]);
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(!seen[0].1);
}
