//! The line reader against a naive model that sees the whole input at once.
//!
//! The model is written from the contract, with string operations and a regular shape:
//! whole line → markers out → blocks → trimmed → cut into pieces. The reader gets the same
//! bytes in chunks cut anywhere.

use std::time::Instant;

use jettison_agent::logs::entry::{Assembler, Batch};
use jettison_agent::logs::join::{Joiner, OpenBlocks};
use jettison_agent::record::CountKind;

/// What a reader of the stream sees: message and whether it is partial.
type Seen = Vec<(Vec<u8>, bool)>;

/// SplitMix64: the same cases every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

// The model.

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// Every place is tried; a marker is eaten whole.
fn without_markers(line: &[u8], marks: &mut Vec<(String, Option<String>)>) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut rest = line;
    'next: while !rest.is_empty() {
        if rest.starts_with(b"{{")
            && let Some(end) = find(rest, b"}}")
        {
            let inner = &rest[2..end];
            let mut halves = inner.splitn(2, |byte| *byte == b':');
            let key = halves.next().unwrap_or_default();
            let digits = halves.next();
            let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
            if !key.is_empty()
                && key.iter().all(word)
                && digits.unwrap_or_default().iter().all(u8::is_ascii_digit)
            {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                marks.push((text(key), digits.filter(|d| !d.is_empty()).map(text)));
                rest = &rest[end + 2..];
                continue 'next;
            }
        }
        kept.push(rest[0]);
        rest = &rest[1..];
    }
    kept
}

fn strip_end(mut text: &[u8], blanks: &[u8]) -> Vec<u8> {
    while text.last().is_some_and(|last| blanks.contains(last)) {
        text = &text[..text.len() - 1];
    }
    text.to_vec()
}

struct Model {
    max_line: usize,
    block_max: usize,
    block: Option<Vec<u8>>,
    seen: Seen,
    marks: Vec<(String, Option<String>)>,
}

impl Model {
    fn message(&mut self, text: &[u8]) {
        let text = strip_end(text, b" \t");
        let pieces: Vec<_> = text.chunks(self.max_line).collect();
        for (index, piece) in pieces.iter().enumerate() {
            self.seen.push((piece.to_vec(), index + 1 < pieces.len()));
        }
    }

    fn send_block(&mut self, block: &[u8]) {
        let end = strip_end(block, b" \t\r\n");
        let blank = |byte: &&u8| b" \t\r\n".contains(*byte);
        let start = end.iter().take_while(blank).count();
        if end.len() > start {
            self.seen.push((end[start..].to_vec(), false));
        }
    }

    /// One physical line; `newline` unless the input ended first.
    fn line(&mut self, line: &[u8], newline: bool) {
        let before = self.marks.len();
        let cleaned = without_markers(line, &mut self.marks);
        let marked = self.marks.len() > before;
        let without_cr = |text: &[u8]| match text {
            [rest @ .., b'\r'] if newline => rest.to_vec(),
            text => text.to_vec(),
        };
        let mut rest = cleaned.as_slice();
        let mut token_seen = false;
        // The part of the line that is in the block, once it is known to fit.
        loop {
            let open = find(rest, b">>|");
            let close = find(rest, b"|<<");
            let token = match (open, close) {
                (Some(open), Some(close)) => Some(open.min(close)),
                (open, close) => open.or(close),
            };
            let until = token.unwrap_or(rest.len());
            if let Some(block) = &self.block
                && block.len() + until > self.block_max
            {
                let block = self.block.take().unwrap_or_default();
                self.send_block(&block);
                continue;
            }
            let Some(at) = token else { break };
            match self.block.take() {
                Some(mut block) => {
                    block.extend_from_slice(&rest[..at]);
                    self.send_block(&block);
                }
                None => self.message(&rest[..at]),
            }
            if rest[at] == b'>' {
                self.block = Some(Vec::new());
            }
            rest = &rest[at + 3..];
            token_seen = true;
        }
        let line = without_cr(rest);
        match &mut self.block {
            Some(block) => {
                let only_marker = marked && !token_seen && strip_end(&line, b" \t").is_empty();
                if !only_marker {
                    // Inner line ends are kept as they are.
                    block.extend_from_slice(rest);
                    if newline && block.len() < self.block_max {
                        block.push(b'\n');
                    } else if newline {
                        let block = self.block.take().unwrap_or_default();
                        self.send_block(&block);
                    }
                }
            }
            None => self.message(&line),
        }
    }

    fn run(max_line: usize, block_max: usize, input: &[u8]) -> Model {
        let mut model = Model {
            max_line,
            block_max,
            block: None,
            seen: Vec::new(),
            marks: Vec::new(),
        };
        let mut lines: Vec<_> = input.split(|byte| *byte == b'\n').collect();
        let last = lines.pop().unwrap_or_default();
        for line in lines {
            model.line(line, true);
        }
        if !last.is_empty() {
            model.line(last, false);
        }
        if let Some(block) = model.block.take() {
            model.send_block(&block);
        }
        model
    }
}

// The reader.

struct Read {
    seen: Seen,
    marks: Vec<(String, CountKind)>,
}

fn read(max_line: usize, block_max: usize, open_bound: usize, chunks: &[&[u8]]) -> Read {
    let open_blocks = OpenBlocks::bounded(open_bound);
    let joiner = Joiner::with_block_max(max_line, block_max, open_blocks);
    let now = Instant::now();
    let mut assembler = Assembler::with(max_line, joiner, None);
    let mut all = Read {
        seen: Vec::new(),
        marks: Vec::new(),
    };
    let mut collect = |mut batch: Batch| {
        for span in &batch.spans {
            let bytes = &batch.chunk[span.start as usize..span.end as usize];
            all.seen.push((bytes.to_vec(), span.partial));
        }
        all.marks.extend(batch.marks.take());
    };
    for chunk in chunks {
        let mut batch = Batch::default();
        assembler.push(now, chunk, &mut batch);
        collect(batch);
    }
    let mut batch = Batch::default();
    assembler.finish(now, &mut batch);
    collect(batch);
    all
}

/// Counters after all marks, as Redis would hold them.
fn counted(marks: impl Iterator<Item = (String, CountKind)>) -> Vec<(String, String)> {
    let mut values = std::collections::BTreeMap::<String, String>::new();
    for (key, what) in marks {
        let value = values.entry(key).or_insert_with(|| "0".to_owned());
        match what {
            CountKind::Increment(times) => {
                // A number too large for Redis stays.
                if let Ok(number) = value.parse::<i64>() {
                    *value = (number + times as i64).to_string();
                }
            }
            CountKind::Set(digits) => *value = digits,
        }
    }
    values.into_iter().collect()
}

fn show(seen: &Seen) -> Vec<String> {
    let text = |(bytes, partial): &(Vec<u8>, bool)| {
        format!(
            "{:?}{}",
            String::from_utf8_lossy(bytes),
            if *partial { "~" } else { "" }
        )
    };
    seen.iter().map(text).collect()
}

fn compare(case: u64, max_line: usize, block_max: usize, input: &[u8], chunks: &[&[u8]]) {
    let model = Model::run(max_line, block_max, input);
    let read = read(max_line, block_max, usize::MAX, chunks);
    let context = || {
        format!(
            "case {case}, max_line {max_line}, block_max {block_max}\ninput {:?}\nchunks {:?}",
            String::from_utf8_lossy(input),
            chunks.iter().map(|chunk| chunk.len()).collect::<Vec<_>>()
        )
    };
    assert_eq!(show(&model.seen), show(&read.seen), "{}", context());
    assert_eq!(model.seen, read.seen, "{}", context());
    let expected = model.marks.into_iter().map(|(key, digits)| {
        let what = digits.map_or(CountKind::Increment(1), CountKind::Set);
        (key, what)
    });
    assert_eq!(
        counted(expected),
        counted(read.marks.into_iter()),
        "{}",
        context()
    );
}

const WORDS: &[&[u8]] = &[
    b"\n",
    b"\n",
    b"\r\n",
    b"\r",
    b" ",
    b"\t",
    b"   ",
    b"a",
    b"bc",
    b"0123456789",
    b">>|",
    b"|<<",
    b">",
    b">>",
    b"|",
    b"<",
    b"|<",
    b"{",
    b"}",
    b"{{",
    b"}}",
    b"{{k}}",
    b"{{k:}}",
    b"{{v:007}}",
    b"{{v:3}}",
    b"{{neg:-5}}",
    b"{{a{{b}}}}",
    b"\0",
    b"\xff\xc3",
    "é".as_bytes(),
    b":",
    b"{{k:9",
];

fn cut<'a>(random: &mut Random, mut input: &'a [u8], longest: usize) -> Vec<&'a [u8]> {
    let mut chunks = Vec::new();
    while !input.is_empty() {
        let (chunk, rest) = input.split_at((1 + random.below(longest)).min(input.len()));
        chunks.push(chunk);
        input = rest;
    }
    chunks
}

#[test]
fn chunks_cut_anywhere_give_what_the_model_gives() {
    for case in 0..60_000 {
        let random = &mut Random(case);
        // Each case favours a few words, so that all kinds of neighbours meet.
        let favourites: Vec<_> = (0..1 + random.below(8))
            .map(|_| WORDS[random.below(WORDS.len())])
            .collect();
        let mut input = Vec::new();
        for _ in 0..random.below(40) {
            input.extend_from_slice(match random.below(4) {
                0 => WORDS[random.below(WORDS.len())],
                _ => favourites[random.below(favourites.len())],
            });
        }
        let max_line = [1, 2, 3, 5, 8, 13, 64][random.below(7)];
        let block_max = [4, 9, 20, 10_000][random.below(4)];
        let longest = [1, 2, 5, 30, 400][random.below(5)];
        let chunks = cut(random, &input, longest);
        compare(case, max_line, block_max, &input, &chunks);
    }
}

#[test]
fn plain_lines_in_big_chunks_give_what_the_model_gives() {
    for case in 0..300 {
        let random = &mut Random(case);
        let mut input = Vec::new();
        for _ in 0..random.below(2000) {
            input.resize(input.len() + random.below(120), b'a' + (case % 26) as u8);
            match random.below(200) {
                0 => input.extend_from_slice(b"{{beat}}\n"),
                1 => input.extend_from_slice(b">>|\n"),
                2..10 => input.extend_from_slice(b"|<<\n"),
                10..40 => input.extend_from_slice(b" \t\r\n"),
                _ => input.push(b'\n'),
            }
        }
        let chunks = cut(random, &input, 65_536);
        compare(case, 100, 10_000_000, &input, &chunks);
    }
}

/// Messages with their pieces put together, as a consumer would.
fn whole(seen: &Seen) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    let mut begun = Vec::new();
    for (bytes, partial) in seen {
        begun.extend_from_slice(bytes);
        if !partial {
            messages.push(std::mem::take(&mut begun));
        }
    }
    assert!(
        begun.is_empty(),
        "the last piece is never partial: {:?}",
        show(seen)
    );
    messages
}

#[test]
fn blocks_that_hold_too_much_together_go_out_in_pieces_and_lose_nothing() {
    let words: Vec<&[u8]> = [
        &b"\n"[..],
        b"\n",
        b">>|",
        b"|<<",
        b" ",
        b"\r\n",
        b"ab",
        b"{{k}}",
        b"\t",
        b"0123",
    ]
    .to_vec();
    for case in 0..40_000 {
        let random = &mut Random(case);
        let mut input = Vec::new();
        for _ in 0..random.below(40) {
            input.extend_from_slice(words[random.below(words.len())]);
        }
        let longest = [1, 5, 400][random.below(3)];
        let chunks = cut(random, &input, longest);
        let (max_line, block_max) = ([2, 64][random.below(2)], [30, 10_000][random.below(2)]);
        let model = Model::run(max_line, block_max, &input);
        let bounded = read(max_line, block_max, random.below(20), &chunks);
        let shown = String::from_utf8_lossy(&input);
        let together = |seen: &Seen| whole(seen).concat();
        if block_max == 10_000 {
            assert_eq!(
                whole(&model.seen),
                whole(&bounded.seen),
                "case {case}: {shown:?}"
            );
        } else {
            // A block that is closed for its size may end elsewhere; its bytes are all there.
            let solid = |bytes: Vec<u8>| {
                bytes
                    .into_iter()
                    .filter(|byte| !b" \t\r\n".contains(byte))
                    .collect::<Vec<_>>()
            };
            assert_eq!(
                solid(together(&model.seen)),
                solid(together(&bounded.seen)),
                "case {case}: {shown:?}"
            );
        }
    }
}
