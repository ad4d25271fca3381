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
//! closed: a forgotten `|<<` costs one odd entry, not every line that follows.

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

#[derive(Debug)]
pub struct Joiner {
    max_line: usize,
    block_max: usize,
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
}

impl Joiner {
    pub fn new(max_line: usize) -> Joiner {
        Joiner::with_block_max(max_line, BLOCK_MAX)
    }

    /// With another limit for blocks.
    pub fn with_block_max(max_line: usize, block_max: usize) -> Joiner {
        Joiner {
            max_line: max_line.max(1),
            block_max,
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
        if block.bytes.len() + bytes.len() <= self.block_max {
            block.bytes.extend_from_slice(bytes);
            self.done = at;
            return;
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

    /// Sends the open block, if there is one.
    fn close(&mut self, out: &mut Batch) {
        if let Some(block) = self.block.take() {
            out.block(&block.bytes);
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

impl Block {
    /// Ends the current line; false when the line end does not fit any more.
    fn end_line(&mut self, marked: bool, max: usize) -> bool {
        if self.bytes[self.line..].ends_with(b"\r") {
            self.bytes.pop();
        }
        let whole_line = std::mem::replace(&mut self.whole_line, true);
        if marked && whole_line && trim_end(&self.bytes[self.line..]).is_empty() {
            self.bytes.truncate(self.line);
            return true;
        }
        if self.bytes.len() == max {
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

/// Without blanks and line ends at both ends.
pub fn trim_block(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t' | b'\r' | b'\n'] = bytes {
        bytes = rest;
    }
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
        let mut joiner = Joiner::with_block_max(max_line, block_max);
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
        assert_eq!(messages(&[">>|a\r", "b\r", "|<<\r"]), ["a\nb"]);
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
