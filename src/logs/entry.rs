//! What was read → messages in one shared chunk, and what markers said.
//!
//! The usual chunk holds no marker and no block: it is copied once, and every line is a span
//! of that copy. Only a chunk with `{{`, `>>|` or `|<<` in it, or in an open block, has its
//! messages copied one by one into a second chunk. Either way there is one allocation for all
//! messages of a read.

use std::sync::Arc;
use std::time::Instant;

use memchr::{memchr_iter, memmem};

use super::join::{BLOCK_MAX, Blocks, Joiner, OpenBlocks, trim_end};
use super::marker::Marks;
use super::shapes;
use super::split::{End, Part, Splitter};
use super::traceback::{Held, In, Tracebacks};
use crate::handoff::MultiLine;
use crate::record::Span;

/// One read's messages.
#[derive(Debug, Default)]
pub struct Batch {
    pub chunk: Vec<u8>,
    /// Slices of `chunk`, in order.
    pub spans: Vec<Span>,
    pub marks: Marks,
    /// The lines as they were read, also slices of `chunk`, where tracebacks are held or joined.
    pub read: Option<Vec<Span>>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty() && self.marks.is_empty()
    }

    /// A message, in pieces of `max_line` where it is longer; nothing where it is empty.
    pub fn message(&mut self, bytes: &[u8], max_line: usize) {
        let start = self.chunk.len();
        self.chunk.extend_from_slice(bytes);
        self.lend(start, self.chunk.len(), max_line);
    }

    /// A block, as one message however long.
    pub fn block(&mut self, bytes: &[u8]) {
        self.message(bytes, bytes.len());
    }

    pub fn piece(&mut self, bytes: &[u8], partial: bool) {
        let start = self.chunk.len();
        self.chunk.extend_from_slice(bytes);
        self.span(start, self.chunk.len(), partial);
    }

    /// From here on messages and lines as read are told apart.
    fn tell_apart(&mut self) -> &mut Vec<Span> {
        self.read.get_or_insert_with(|| self.spans.clone())
    }

    /// A line as it was read, whether it is held or not.
    fn was_read(&mut self, line: &[u8]) {
        if line.is_empty() {
            return;
        }
        let start = self.chunk.len() as u32;
        self.chunk.extend_from_slice(line);
        let end = self.chunk.len() as u32;
        self.tell_apart().push(Span {
            start,
            end,
            partial: false,
        });
    }

    /// The messages from `first` on are what was read.
    fn are_as_read(&mut self, first: usize) {
        if let Some(read) = &mut self.read {
            read.extend_from_slice(&self.spans[first..]);
        }
    }

    /// The spans of a message that lies in the chunk already.
    fn lend(&mut self, mut start: usize, end: usize, max_line: usize) {
        while end - start > max_line {
            self.span(start, start + max_line, true);
            start += max_line;
        }
        if end > start {
            self.span(start, end, false);
        }
    }

    fn span(&mut self, start: usize, end: usize, partial: bool) {
        // A chunk is a read and at most one block: far below 4 GiB.
        let (start, end) = (start as u32, end as u32);
        self.spans.push(Span {
            start,
            end,
            partial,
        });
    }
}

/// One source of one run.
#[derive(Debug)]
pub struct Assembler {
    splitter: Splitter,
    lines: LineReader,
}

#[derive(Debug)]
struct LineReader {
    max_line: usize,
    joiner: Joiner,
    /// `None` where they are not asked for.
    tracebacks: Option<Tracebacks>,
    /// Messages of the last chunk: how many to expect of the next.
    expected: usize,
}

impl Assembler {
    pub fn new(max_line: usize, multi_line: MultiLine, open_blocks: &Arc<OpenBlocks>) -> Assembler {
        let joiner = Joiner::new(max_line, Arc::clone(open_blocks));
        let tracebacks = multi_line
            .tracebacks
            .then(|| Tracebacks::new(max_line, BLOCK_MAX, Arc::clone(open_blocks)));
        let blocks = match multi_line.markers {
            true => Blocks::Joined,
            false => Blocks::Text,
        };
        Assembler::with(max_line, joiner.treating(blocks), tracebacks)
    }

    /// With a joiner and a collector of tracebacks of other limits.
    pub fn with(max_line: usize, joiner: Joiner, tracebacks: Option<Tracebacks>) -> Assembler {
        let max_line = max_line.max(1);
        Assembler {
            splitter: Splitter::new(max_line),
            lines: LineReader {
                max_line,
                joiner,
                tracebacks,
                expected: 0,
            },
        }
    }

    /// What was read, cut anywhere.
    pub fn push(&mut self, now: Instant, data: &[u8], out: &mut Batch) {
        let lines = &mut self.lines;
        self.splitter.push(data, |part| lines.part(now, part, out));
    }

    /// When to [`Assembler::tick`] at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.lines.tracebacks.as_ref()?.deadline()
    }

    /// Nothing was read until now.
    pub fn tick(&mut self, now: Instant, out: &mut Batch) {
        self.lines.traceback(now, In::Tick, out);
    }

    /// What is left of lines, tracebacks and blocks: the pipe closed, or its run ended.
    pub fn finish(&mut self, now: Instant, out: &mut Batch) {
        let lines = &mut self.lines;
        self.splitter.finish(|part| lines.part(now, part, out));
        self.lines.traceback(now, In::Other, out);
        let first = out.spans.len();
        self.lines.joiner.finish(out);
        out.are_as_read(first);
    }
}

impl LineReader {
    fn part(&mut self, now: Instant, part: Part<'_>, out: &mut Batch) {
        match part {
            Part::Fragment { bytes, end } => self.fragment(now, bytes, end, out),
            Part::Lines { head, body } => {
                let start = out.chunk.len();
                out.chunk.reserve_exact(head.len() + body.len());
                out.chunk.extend_from_slice(head);
                out.chunk.extend_from_slice(body);
                let first = out.spans.len();
                if self.has_trace(&out.chunk[start..]) {
                    let raw = out.chunk.split_off(start);
                    return self.traced(now, &raw, out);
                }
                if self.joiner.is_idle() && !has_special(&out.chunk[start..]) {
                    self.plain(start, out);
                } else {
                    let raw = out.chunk.split_off(start);
                    self.special(&raw, out);
                }
                out.are_as_read(first);
            }
        }
    }

    /// Whether whole lines go through the collector of tracebacks.
    fn has_trace(&self, bytes: &[u8]) -> bool {
        let tracebacks = self.tracebacks.as_ref();
        tracebacks.is_some_and(|t| !t.is_idle() || shapes::any_begins(bytes))
    }

    fn traceback(&mut self, now: Instant, input: In<'_>, out: &mut Batch) -> Held {
        let Some(tracebacks) = &mut self.tracebacks else {
            return Held::No;
        };
        if !tracebacks.is_idle() {
            out.tell_apart();
        }
        tracebacks.step(now, input, out)
    }

    /// A piece of a line that is too long, or the last one without an end: that may be a trace's.
    fn fragment(&mut self, now: Instant, bytes: &[u8], end: End, out: &mut Batch) {
        let is_whole = end == End::Eof && self.joiner.is_idle() && !has_special(bytes);
        let input = match is_whole && !bytes.ends_with(b"\r") {
            true => In::Line(bytes),
            false => In::Other,
        };
        match self.traceback(now, input, out) {
            Held::Yes => out.was_read(bytes),
            Held::No => {
                let first = out.spans.len();
                self.joiner.line(bytes, end, out);
                out.are_as_read(first);
            }
        }
    }

    /// Lines that are messages as they stand in the chunk from `start` on.
    fn plain(&mut self, start: usize, out: &mut Batch) {
        let before = out.spans.len();
        out.spans.reserve(self.expected);
        let chunk = std::mem::take(&mut out.chunk);
        let mut from = start;
        for end in memchr_iter(b'\n', &chunk[start..]) {
            let end = start + end;
            let line = trim_line(&chunk[from..end]);
            out.lend(from, from + line.len(), self.max_line);
            from = end + 1;
        }
        out.chunk = chunk;
        // A little more than the last time: the lengths of lines vary.
        let seen = out.spans.len() - before;
        self.expected = seen + seen / 8;
    }

    /// Whole lines of which some are special: those go through the joiner.
    fn special(&mut self, raw: &[u8], out: &mut Batch) {
        let mut specials = Specials::new(raw);
        let mut from = 0;
        for end in memchr_iter(b'\n', raw) {
            let line = &raw[from..end];
            if self.joiner.is_idle() && specials.after(from) >= end {
                out.message(trim_line(line), self.max_line);
            } else {
                self.joiner.line(line, End::Newline, out);
            }
            from = end + 1;
        }
    }

    /// Whole lines among which are some of a trace, and maybe special ones. Markers alone do not disturb a trace.
    fn traced(&mut self, now: Instant, raw: &[u8], out: &mut Batch) {
        let mut specials = Specials::new(raw);
        let mut from = 0;
        for end in memchr_iter(b'\n', raw) {
            let line = &raw[from..end];
            let is_frame = self.tracebacks.as_ref().is_some_and(|t| t.is_frame(line));
            if self.joiner.is_idle() && (specials.after(from) >= end || is_frame) {
                self.whole_line(now, line, out);
            } else {
                let mut aside = Batch {
                    marks: std::mem::take(&mut out.marks),
                    ..Batch::default()
                };
                self.joiner.line(line, End::Newline, &mut aside);
                out.marks = std::mem::take(&mut aside.marks);
                self.around(now, &aside, out);
            }
            from = end + 1;
        }
    }

    fn whole_line(&mut self, now: Instant, line: &[u8], out: &mut Batch) {
        out.was_read(trim_line(line));
        if self.traceback(now, In::Line(line), out) == Held::No {
            out.message(trim_line(line), self.max_line);
        }
    }

    /// What came of a special line while a trace may be open.
    fn around(&mut self, now: Instant, aside: &Batch, out: &mut Batch) {
        let messages = aside.spans.iter();
        let mut texts = messages.map(|span| &aside.chunk[span.start as usize..span.end as usize]);
        match (&aside.spans[..], self.joiner.is_idle()) {
            ([], true) => {}
            ([one], true) if !one.partial && !aside.chunk.contains(&b'\n') => {
                self.whole_line(now, texts.next().unwrap_or_default(), out);
            }
            (spans, _) => {
                self.traceback(now, In::Other, out);
                for (span, text) in spans.iter().zip(texts) {
                    out.was_read(text);
                    out.piece(text, span.partial);
                }
            }
        }
    }
}

/// A whole line without its line end (the `\n` is gone already) and trailing blanks.
pub(super) fn trim_line(line: &[u8]) -> &[u8] {
    match line {
        // Most lines end in something else: one comparison.
        [.., last] if *last > b' ' => line,
        _ => trim_end(line.strip_suffix(b"\r").unwrap_or(line)),
    }
}

/// Whether there is a `{{`, `>>|` or `|<<`.
fn has_special(bytes: &[u8]) -> bool {
    let mut specials = SPECIALS.iter();
    specials.any(|special| memmem::find(bytes, special).is_some())
}

/// What makes a line special.
const SPECIALS: [&[u8]; 3] = [b"{{", b">>|", b"|<<"];

/// The places of specials in some bytes, asked for from front to back: each byte is searched
/// once for each of them.
struct Specials<'a> {
    bytes: &'a [u8],
    /// The next place of each, `bytes.len()` where there is none.
    next: [usize; 3],
}

impl<'a> Specials<'a> {
    fn new(bytes: &'a [u8]) -> Specials<'a> {
        let next = SPECIALS.map(|special| memmem::find(bytes, special).unwrap_or(bytes.len()));
        Specials { bytes, next }
    }

    /// The first one at or after `from`.
    fn after(&mut self, from: usize) -> usize {
        for (next, special) in self.next.iter_mut().zip(SPECIALS) {
            if *next < from {
                let offset = memmem::find(&self.bytes[from..], special);
                *next = offset.map_or(self.bytes.len(), |offset| from + offset);
            }
        }
        self.next.iter().copied().fold(self.bytes.len(), usize::min)
    }
}
