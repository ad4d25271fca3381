//! Lines with markers and blocks in them → messages.
//!
//! Per physical line: markers are cut first, then `>>|` opens a block and `|<<` closes it.
//! What stands between is one message, its line ends kept as `\n` and its outer blanks
//! trimmed. What stands before `>>|` and after `|<<` are messages of their own, and the
//! latter may open the next block; a `>>|` inside a block sends that block and opens another;
//! a `|<<` outside a block only separates. A line that held nothing but markers leaves no
//! empty line in a block.
//!
//! A line longer than `max_line` arrives in fragments and leaves in pieces. Everything that
//! concerns the line as a whole (a marker or a token cut by a border, trailing blanks, whether
//! there is anything to send) is held back until it is certain: at most `max_line`, a marker's
//! length and [`HELD_BLANKS`] bytes.
//!
//! A block that exceeds [`BLOCK_MAX`] is sent without the line that would not fit, and is
//! closed: a forgotten `|<<` costs one odd entry, not every line that follows. When all open
//! blocks together exceed their bound ([`OpenBlocks`]), the one that grows sends what it holds
//! as a partial piece, all but the end that may be trimmed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memchr::memmem;

use super::entry::Batch;
use super::marker::{self, Rest};
use super::split::{End, KEPT_CAPACITY};

/// Bytes of a block, line ends included.
pub const BLOCK_MAX: usize = 10 * 1024 * 1024;

/// Bytes of blanks at a line's end that are held back because they may be trimmed. A line
/// with more of them in a row gets them sent, as bytes like any others.
pub const HELD_BLANKS: usize = 1024 * 1024;

const OPEN: &[u8] = b">>|";
const CLOSE: &[u8] = b"|<<";

/// What all open blocks of the agent may hold together.
#[derive(Debug)]
pub struct OpenBlocks {
    /// Bytes.
    bound: usize,
    held: AtomicUsize,
}

impl OpenBlocks {
    pub fn bounded(bound: usize) -> Arc<OpenBlocks> {
        Arc::new(OpenBlocks {
            bound,
            held: AtomicUsize::new(0),
        })
    }

    /// Holds more; whether that is too much.
    pub(super) fn add(&self, bytes: usize) -> bool {
        self.held.fetch_add(bytes, Ordering::Relaxed) + bytes > self.bound
    }

    pub(super) fn remove(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What `>>|` and `|<<` are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    Joined,
    /// Bytes like any others.
    Text,
}

#[derive(Debug)]
pub struct Joiner {
    max_line: usize,
    block_max: usize,
    open_blocks: Arc<OpenBlocks>,
    blocks: Blocks,
    /// The current line, cleaned. Offsets into it: `done` <= `searched` <= `settled`.
    text: Vec<u8>,
    /// Sent or in the block before this.
    done: usize,
    /// No token begins before this, except such as are dealt with.
    searched: usize,
    /// No marker is, and none will come to be, before this.
    settled: usize,
    /// More blanks than are held back were sent: what follows them is sent too, even if blank.
    forced: bool,
    /// The line held a marker.
    marked: bool,
    /// Fragments of the line were seen.
    within: bool,
    block: Option<Block>,
}

#[derive(Debug, Default)]
struct Block {
    bytes: Vec<u8>,
    /// Where the current line begins in `bytes`.
    line: usize,
    /// The block began in a line before the current one.
    whole_line: bool,
    /// Bytes that it held and holds no more: leading blanks, and what was sent.
    gone: usize,
    /// Pieces of it were sent.
    partial: bool,
    /// Bytes that count in [`OpenBlocks`].
    counted: usize,
}

impl Joiner {
    pub fn new(max_line: usize, open_blocks: Arc<OpenBlocks>) -> Joiner {
        Joiner::with_block_max(max_line, BLOCK_MAX, open_blocks)
    }

    /// With another limit for blocks.
    pub fn with_block_max(
        max_line: usize,
        block_max: usize,
        open_blocks: Arc<OpenBlocks>,
    ) -> Joiner {
        Joiner {
            max_line: max_line.max(1),
            block_max,
            open_blocks,
            blocks: Blocks::Joined,
            text: Vec::new(),
            done: 0,
            searched: 0,
            settled: 0,
            forced: false,
            marked: false,
            within: false,
            block: None,
        }
    }

    pub fn treating(mut self, blocks: Blocks) -> Joiner {
        self.blocks = blocks;
        self
    }

    /// Nothing is open: a line without `{{`, `>>|` and `|<<` is a message as it stands.
    pub fn is_idle(&self) -> bool {
        self.block.is_none() && !self.within
    }

    /// One whole line, or the next fragment of one.
    pub fn line(&mut self, bytes: &[u8], end: End, out: &mut Batch) {
        self.text.extend_from_slice(bytes);
        let rest = match end {
            End::More => Rest::More,
            End::Newline | End::Eof => Rest::Nothing,
        };
        self.settled = marker::cut(&mut self.text, self.settled, rest, |key, digits| {
            self.marked = true;
            out.marks.add(key, digits);
        });
        self.tokens(out);
        match end {
            End::More => {
                self.within = true;
                // The last bytes may be the beginning of a token, or of the line's end `\r\n`.
                let certain = self.settled.saturating_sub(OPEN.len() - 1);
                self.searched = self.searched.max(certain);
                self.store(self.searched, out);
                self.pieces(out);
                self.forget_done();
            }
            End::Newline | End::Eof => self.end_line(end, out),
        }
    }

    /// No more lines come: an unfinished block is sent.
    pub fn finish(&mut self, out: &mut Batch) {
        if self.within {
            self.line(b"", End::Eof, out);
        }
        self.close(out);
        self.text = Vec::new();
    }

    /// Acts on every token of the settled text.
    fn tokens(&mut self, out: &mut Batch) {
        if self.blocks == Blocks::Text {
            return;
        }
        while let Some((offset, token)) = next_token(&self.text[self.searched..self.settled]) {
            self.searched += offset + token.len();
            self.store(self.searched - token.len(), out);
            match self.block {
                Some(_) => self.close(out),
                None => self.message(self.searched - token.len(), out),
            }
            if token == OPEN {
                self.block = Some(Block::default());
            }
            self.done = self.searched;
        }
    }

    /// Moves the text up to `at` into the block, where one is open. One that would exceed the
    /// limit is sent, and the current line becomes plain text again.
    fn store(&mut self, at: usize, out: &mut Batch) {
        let Some(block) = &mut self.block else {
            return;
        };
        let bytes = &self.text[self.done..at];
        if block.len() + bytes.len() <= self.block_max {
            block.bytes.extend_from_slice(bytes);
            self.done = at;
            return self.count(out);
        }
        let mut begun = block.bytes.split_off(block.line);
        self.close(out);
        let stored = begun.len();
        begun.extend_from_slice(&self.text[self.done..]);
        self.searched = self.searched - self.done + stored;
        self.settled = self.settled - self.done + stored;
        self.done = 0;
        self.text = begun;
    }

    /// Counts what the open block holds, and sends of it what is certain where all of them
    /// hold too much.
    fn count(&mut self, out: &mut Batch) {
        let Some(block) = &mut self.block else {
            return;
        };
        self.open_blocks.remove(block.counted);
        if self.open_blocks.add(block.bytes.len()) {
            self.open_blocks.remove(block.bytes.len());
            block.spill(out);
            self.open_blocks.add(block.bytes.len());
        }
        block.counted = block.bytes.len();
    }

    /// Sends the open block, if there is one.
    fn close(&mut self, out: &mut Batch) {
        if let Some(block) = self.block.take() {
            self.open_blocks.remove(block.counted);
            let bytes = trim_block_end(&block.bytes);
            out.block(if block.partial {
                bytes
            } else {
                trim_block_start(bytes)
            });
        }
    }

    /// Sends the text up to `at`: the end of one message.
    fn message(&mut self, at: usize, out: &mut Batch) {
        let bytes = &self.text[self.done..at];
        let trimmed = trim_end(bytes);
        let all_blank = trimmed.is_empty() && self.forced;
        out.message(if all_blank { bytes } else { trimmed }, self.max_line);
        self.done = at;
        self.forced = false;
    }

    /// Sends the pieces of a long line that are certain: something follows that is no blank.
    fn pieces(&mut self, out: &mut Batch) {
        if self.block.is_some() {
            return;
        }
        let mut end = trim_end(&self.text[..self.searched]).len().max(self.done);
        if self.searched - end > HELD_BLANKS {
            self.forced = true;
            end = self.searched;
        }
        while end - self.done > self.max_line {
            let piece = &self.text[self.done..self.done + self.max_line];
            out.piece(piece, true);
            self.done += self.max_line;
        }
    }

    fn forget_done(&mut self) {
        self.text.drain(..self.done);
        self.searched -= self.done;
        self.settled -= self.done;
        self.done = 0;
    }

    fn end_line(&mut self, end: End, out: &mut Batch) {
        self.store(self.text.len(), out);
        match &mut self.block {
            Some(block) => {
                if end == End::Newline && !block.end_line(self.marked, self.block_max) {
                    self.close(out);
                }
                self.count(out);
            }
            None => {
                let cr = end == End::Newline && self.text[self.done..].ends_with(b"\r");
                self.message(self.text.len() - usize::from(cr), out);
            }
        }
        self.text.clear();
        self.text.shrink_to(KEPT_CAPACITY);
        (self.done, self.searched, self.settled) = (0, 0, 0);
        (self.forced, self.marked, self.within) = (false, false, false);
    }
}

impl Drop for Joiner {
    fn drop(&mut self) {
        let counted = self.block.as_ref().map_or(0, |block| block.counted);
        self.open_blocks.remove(counted);
    }
}

impl Block {
    /// All that it ever held.
    fn len(&self) -> usize {
        self.gone + self.bytes.len()
    }

    /// Sends all but its end: the last piece must hold something, and may be trimmed.
    fn spill(&mut self, out: &mut Batch) {
        if !self.partial {
            let leading = self.bytes.len() - trim_block_start(&self.bytes).len();
            // Those of the current line may be all that it holds besides a marker.
            self.let_go(leading.min(self.line));
        }
        let certain = trim_block_end(&self.bytes).len().saturating_sub(1);
        if certain > 0 {
            let start = match self.partial {
                true => 0,
                false => self.bytes.len() - trim_block_start(&self.bytes).len(),
            };
            if start < certain {
                out.piece(&self.bytes[start..certain], true);
                self.partial = true;
                self.let_go(certain);
            }
        }
    }

    /// Forgets its first bytes.
    fn let_go(&mut self, bytes: usize) {
        self.bytes.drain(..bytes);
        self.line = self.line.saturating_sub(bytes);
        self.gone += bytes;
    }

    /// Ends the current line; false when the line end does not fit any more.
    fn end_line(&mut self, marked: bool, max: usize) -> bool {
        let whole_line = std::mem::replace(&mut self.whole_line, true);
        let text = &self.bytes[self.line..];
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if marked && whole_line && trim_end(text).is_empty() {
            self.bytes.truncate(self.line);
            return true;
        }
        if self.len() >= max {
            return false;
        }
        self.bytes.push(b'\n');
        self.line = self.bytes.len();
        true
    }
}

/// Without the spaces and tabs at its end.
pub fn trim_end(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// Without blanks and line ends at the end.
fn trim_block_end(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t' | b'\r' | b'\n'] = bytes {
        bytes = rest;
    }
    bytes
}

/// Without blanks and line ends at the beginning.
fn trim_block_start(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = bytes {
        bytes = rest;
    }
    bytes
}

/// The first token and where it begins.
fn next_token(text: &[u8]) -> Option<(usize, &'static [u8])> {
    let open = memmem::find(text, OPEN);
    // A `|<<` counts only before the next `>>|`; in `>>|<<` the first token wins.
    let until = open.map_or(text.len(), |at| at + 2);
    match (open, memmem::find(&text[..until], CLOSE)) {
        (_, Some(close)) => Some((close, CLOSE)),
        (Some(open), None) => Some((open, OPEN)),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages of these lines, pieces marked with a `~`.
    fn joined(max_line: usize, block_max: usize, lines: &[&str]) -> Vec<String> {
        let open_blocks = OpenBlocks::bounded(usize::MAX);
        let mut joiner = Joiner::with_block_max(max_line, block_max, open_blocks);
        let mut out = Batch::default();
        for line in lines {
            joiner.line(line.as_bytes(), End::Newline, &mut out);
        }
        joiner.finish(&mut out);
        out.spans
            .iter()
            .map(|span| {
                let bytes = &out.chunk[span.start as usize..span.end as usize];
                let more = if span.partial { "~" } else { "" };
                String::from_utf8_lossy(bytes).into_owned() + more
            })
            .collect()
    }

    fn messages(lines: &[&str]) -> Vec<String> {
        joined(1000, BLOCK_MAX, lines)
    }

    #[test]
    fn blocks_are_one_message() {
        assert_eq!(
            messages(&["a>>|b", "  c ", "", "d|<<e"]),
            ["a", "b\n  c \n\nd", "e"]
        );
        assert_eq!(messages(&[">>|x|<< tail"]), ["x", " tail"]);
        assert_eq!(messages(&["a|<<b>>|c"]), ["a", "b", "c"]);
        assert_eq!(
            messages(&[">>|one", ">>|two|<<>>|three"]),
            ["one", "two", "three"]
        );
        assert_eq!(messages(&[">>|", " \t", "|<<"]), Vec::<String>::new());
        assert_eq!(messages(&[">>|<<"]), ["<<"]);
        // Inner line ends are kept as they are.
        assert_eq!(messages(&[">>|a\r", "b\r", "|<<\r"]), ["a\r\nb"]);
    }

    #[test]
    fn markers_go_before_blocks_are_seen() {
        assert_eq!(
            messages(&[">{{a}}>|x", "{{b}} ", "{{c}}y|<<{{d}}"]),
            ["x\ny"]
        );
        assert_eq!(messages(&["a{{b}} \r", " {{c}}\r", " x"]), ["a", " x"]);
    }

    #[test]
    fn a_block_that_grows_too_large_is_sent_and_closed() {
        let lines = [">>|12345", "678", "9", "x|<<y"];
        assert_eq!(joined(99, 9, &lines), ["12345\n678", "9", "x", "y"]);
        assert_eq!(joined(99, 8, &lines), ["12345", "678", "9", "x", "y"]);
        assert_eq!(joined(3, 4, &[">>|12345 ", "|<<"]), ["123~", "45"]);
    }
}
