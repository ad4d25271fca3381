//! What was read → messages in one shared chunk, and what markers said.
//!
//! The usual chunk holds no marker and no block: it is copied once, and every line is a span
//! of that copy. Only a chunk with `{{`, `>>|` or `|<<` in it, or in an open block, has its
//! messages copied one by one into a second chunk. Either way there is one allocation for all
//! messages of a read.

use std::sync::Arc;

use memchr::{memchr_iter, memmem};

use super::join::{Joiner, OpenBlocks, trim_end};
use super::marker::Marks;
use super::split::{End, Part, Splitter};
use crate::record::Span;

/// One read's messages.
#[derive(Debug, Default)]
pub struct Batch {
    pub chunk: Vec<u8>,
    /// Slices of `chunk`, in order.
    pub spans: Vec<Span>,
    pub marks: Marks,
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
    /// Messages of the last chunk: how many to expect of the next.
    expected: usize,
}

impl Assembler {
    pub fn new(max_line: usize, open_blocks: &Arc<OpenBlocks>) -> Assembler {
        let joiner = Joiner::new(max_line, Arc::clone(open_blocks));
        Assembler::with_joiner(max_line, joiner)
    }

    /// With a joiner of other limits.
    pub fn with_joiner(max_line: usize, joiner: Joiner) -> Assembler {
        let max_line = max_line.max(1);
        Assembler {
            splitter: Splitter::new(max_line),
            lines: LineReader {
                max_line,
                joiner,
                expected: 0,
            },
        }
    }

    /// What was read, cut anywhere.
    pub fn push(&mut self, data: &[u8], out: &mut Batch) {
        let lines = &mut self.lines;
        self.splitter.push(data, |part| lines.part(part, out));
    }

    /// What is left of lines and blocks: the pipe closed, or its run ended.
    pub fn finish(&mut self, out: &mut Batch) {
        let lines = &mut self.lines;
        self.splitter.finish(|part| lines.part(part, out));
        self.lines.joiner.finish(out);
    }
}

impl LineReader {
    fn part(&mut self, part: Part<'_>, out: &mut Batch) {
        match part {
            Part::Fragment { bytes, end } => self.joiner.line(bytes, end, out),
            Part::Lines { head, body } => {
                let start = out.chunk.len();
                out.chunk.reserve_exact(head.len() + body.len());
                out.chunk.extend_from_slice(head);
                out.chunk.extend_from_slice(body);
                if self.joiner.is_idle() && !has_special(&out.chunk[start..]) {
                    self.plain(start, out);
                } else {
                    let raw = out.chunk.split_off(start);
                    self.special(&raw, out);
                }
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
}

/// A whole line without its line end (the `\n` is gone already) and trailing blanks.
fn trim_line(line: &[u8]) -> &[u8] {
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
