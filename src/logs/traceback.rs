//! lines, now → tracebacks as one message each.
//!
//! A line that begins a trace (`shapes`) opens it. Lines that belong are held with it; lines in doubt are held beside
//! it, and belong once a later line does. The first line that does not belong ends the trace, as do [`PAUSE`] without
//! a line that belongs, too many lines in doubt, and the end of the source: then the trace is one message, as the
//! bytes were, and what was in doubt is lines again, in order. A trace of one line is that line.
//!
//! A trace that would exceed [`BLOCK_MAX`](super::join::BLOCK_MAX) is sent as far as it came, and what follows is
//! lines. When all that is held exceeds its bound ([`OpenBlocks`]), an open trace sends what is certain but its last
//! line as a partial piece.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entry::{Batch, trim_line};
use super::join::{OpenBlocks, trim_end};
use super::shapes::{Shape, Verdict};

/// A runtime prints its trace in one go: what has not come after this long does not belong.
pub const PAUSE: Duration = Duration::from_millis(200);

/// The same where the runtime looks up each line in debug information, of hundreds of megabytes perhaps.
pub const SLOW_PAUSE: Duration = Duration::from_secs(2);

/// Lines in doubt that are held at most: messages of more lines than this are rare.
const MOST_IN_DOUBT: usize = 32;

#[derive(Clone, Copy, Debug)]
pub enum In<'a> {
    /// A whole line, without its `\n`.
    Line(&'a [u8]),
    /// Something that is no line of a trace follows, or nothing at all.
    Other,
    /// Time passed.
    Tick,
}

/// Whether a line is held. One that is not is a message, after what `out` got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    Yes,
    No,
}

#[derive(Debug)]
pub struct Tracebacks {
    max_line: usize,
    max: usize,
    open_blocks: Arc<OpenBlocks>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    shape: Shape,
    /// Its lines, and those in doubt, a `\n` after each.
    bytes: Vec<u8>,
    /// Up to here they belong.
    certain: usize,
    /// Where the last line that belongs begins.
    last: usize,
    /// So many lines are in doubt.
    doubtful: usize,
    /// Sent before, in bytes.
    gone: usize,
    until: Instant,
}

impl Tracebacks {
    /// `max`: bytes of one trace.
    pub fn new(max_line: usize, max: usize, open_blocks: Arc<OpenBlocks>) -> Tracebacks {
        Tracebacks {
            max_line: max_line.max(1),
            max,
            open_blocks,
            open: None,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.open.is_none()
    }

    /// Whether braces in this line are a name's: Rust prints `{{closure}}` among its frames.
    pub fn is_frame(&self, line: &[u8]) -> bool {
        let open = self.open.as_ref();
        open.is_some_and(|open| open.shape.has_braces(line))
    }

    /// When to step with [`In::Tick`] at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.until)
    }

    pub fn step(&mut self, now: Instant, input: In<'_>, out: &mut Batch) -> Held {
        match input {
            In::Line(line) => self.line(now, line, out),
            In::Other => {
                self.release(out);
                Held::No
            }
            In::Tick => {
                if self.deadline().is_some_and(|until| until <= now) {
                    self.release(out);
                }
                Held::No
            }
        }
    }

    fn line(&mut self, now: Instant, line: &[u8], out: &mut Batch) -> Held {
        let Some(open) = &mut self.open else {
            return self.begin(now, line);
        };
        let verdict = open.shape.next(line);
        let fits = open.gone + open.bytes.len() + line.len() < self.max;
        match verdict {
            Verdict::Part if fits => open.until = now + pause(&open.shape),
            Verdict::Maybe if fits && open.doubtful < MOST_IN_DOUBT => open.doubtful += 1,
            Verdict::Part | Verdict::Maybe | Verdict::Foreign => {
                self.release(out);
                return self.begin(now, line);
            }
        }
        let begins = open.bytes.len();
        open.bytes.extend_from_slice(line);
        open.bytes.push(b'\n');
        if verdict == Verdict::Part {
            (open.last, open.certain, open.doubtful) = (begins, open.bytes.len(), 0);
        }
        if self.open_blocks.add(line.len() + 1) {
            self.spill(out);
        }
        Held::Yes
    }

    fn begin(&mut self, now: Instant, line: &[u8]) -> Held {
        let Some(shape) = Shape::begins(line).filter(|_| line.len() < self.max) else {
            return Held::No;
        };
        let mut bytes = line.to_vec();
        bytes.push(b'\n');
        if self.open_blocks.add(bytes.len()) {
            self.open_blocks.remove(bytes.len());
            return Held::No;
        }
        self.open = Some(Open {
            shape,
            certain: bytes.len(),
            bytes,
            last: 0,
            doubtful: 0,
            gone: 0,
            until: now + pause(&shape),
        });
        Held::Yes
    }

    /// Ends the trace: its message, then the lines that were in doubt.
    fn release(&mut self, out: &mut Batch) {
        let Some(open) = self.open.take() else {
            return;
        };
        self.open_blocks.remove(open.bytes.len());
        let (trace, doubtful) = open.bytes.split_at(open.certain);
        if open.gone == 0 && open.last == 0 {
            out.message(
                trim_line(trace.strip_suffix(b"\n").unwrap_or(trace)),
                self.max_line,
            );
        } else {
            out.block(trim_trace(trace));
        }
        for line in doubtful.split_inclusive(|byte| *byte == b'\n') {
            out.message(
                trim_line(line.strip_suffix(b"\n").unwrap_or(line)),
                self.max_line,
            );
        }
    }

    /// Sends what is certain but for the last line, which the last piece needs. Doubt is not worth the memory.
    fn spill(&mut self, out: &mut Batch) {
        let Some(open) = &mut self.open else { return };
        if open.doubtful > 0 {
            return self.release(out);
        }
        if open.last == 0 || trim_trace(&open.bytes[open.last..]).is_empty() {
            return;
        }
        out.piece(&open.bytes[..open.last], true);
        self.open_blocks.remove(open.last);
        open.bytes.drain(..open.last);
        open.gone += open.last;
        open.certain -= open.last;
        open.last = 0;
    }
}

fn pause(shape: &Shape) -> Duration {
    match shape.is_slow() {
        true => SLOW_PAUSE,
        false => PAUSE,
    }
}

impl Drop for Tracebacks {
    fn drop(&mut self) {
        let held = self.open.as_ref().map_or(0, |open| open.bytes.len());
        self.open_blocks.remove(held);
    }
}

/// Without blanks and line ends at the end.
fn trim_trace(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., b'\n' | b'\r'] = trim_end(bytes) {
        bytes = rest;
    }
    trim_end(bytes)
}
