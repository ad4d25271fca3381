//! Chunks of bytes cut anywhere → whole physical lines, many at a time.
//!
//! A line that is cut by the end of a chunk is carried to the next one, up to `max_line`
//! bytes; a longer one is handed on in fragments as they come, so that any amount of bytes
//! without a newline flows in bounded memory. Bytes are never looked at, only searched for
//! `\n` (0x0A); whole lines are lent, not copied.

use memchr::{memchr, memrchr};

/// A carried line's buffer is given back when it is empty and larger than this (bytes): a
/// silent service must not hold what its longest line needed.
pub const KEPT_CAPACITY: usize = 4096;

/// What a chunk was cut into.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Whole lines: `head` then `body`, which ends in `\n`. `head` is the carried beginning of
    /// the first line, often empty.
    Lines { head: &'a [u8], body: &'a [u8] },
    /// A fragment of a line that is longer than `max_line`, or the last one without a `\n`.
    Fragment { bytes: &'a [u8], end: End },
}

/// How a line or a fragment of it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// More of the line follows.
    More,
    /// `\n` ended it (and is not among the bytes).
    Newline,
    /// The pipe closed.
    Eof,
}

#[derive(Debug)]
pub struct Splitter {
    /// The beginning of a line whose end has not been read: at most `max_line` bytes.
    carry: Vec<u8>,
    /// Within a line of which fragments have been handed on; `carry` is empty.
    within: bool,
    max_line: usize,
}

impl Splitter {
    pub fn new(max_line: usize) -> Splitter {
        Splitter {
            carry: Vec::new(),
            within: false,
            max_line,
        }
    }

    /// One chunk, as it was read.
    pub fn push(&mut self, mut data: &[u8], mut take: impl FnMut(Part<'_>)) {
        if self.within {
            match memchr(b'\n', data) {
                None => {
                    let end = End::More;
                    return take(Part::Fragment { bytes: data, end });
                }
                Some(at) => {
                    let (bytes, end) = (&data[..at], End::Newline);
                    take(Part::Fragment { bytes, end });
                    self.within = false;
                    data = &data[at + 1..];
                }
            }
        }
        if let Some(last) = memrchr(b'\n', data) {
            let body = &data[..=last];
            let head = &self.carry[..];
            take(Part::Lines { head, body });
            self.carry.clear();
            data = &data[last + 1..];
        }
        self.hold(data, take);
    }

    /// The pipe closed, or will not be waited for: what is carried is a line.
    pub fn finish(&mut self, mut take: impl FnMut(Part<'_>)) {
        if self.within || !self.carry.is_empty() {
            let (bytes, end) = (&self.carry[..], End::Eof);
            take(Part::Fragment { bytes, end });
        }
        self.carry = Vec::new();
        self.within = false;
    }

    /// Keeps the beginning of a line, or hands it on when it is too long to be kept.
    fn hold(&mut self, data: &[u8], mut take: impl FnMut(Part<'_>)) {
        if self.carry.len() + data.len() <= self.max_line {
            if self.carry.is_empty() && self.carry.capacity() > KEPT_CAPACITY {
                self.carry = Vec::new();
            }
            return self.carry.extend_from_slice(data);
        }
        for bytes in [&self.carry[..], data] {
            let end = End::More;
            take(Part::Fragment { bytes, end });
        }
        self.carry = Vec::new();
        self.within = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that was handed on, as text: lines as they are, fragments in brackets.
    fn cut(max_line: usize, chunks: &[&str]) -> String {
        let mut splitter = Splitter::new(max_line);
        let mut seen = String::new();
        let mut take = |part: Part<'_>| {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            match part {
                Part::Lines { head, body } => seen += &(text(head) + &text(body)),
                Part::Fragment { bytes, end } => {
                    seen += &match end {
                        End::More => format!("[{}~]", text(bytes)),
                        End::Newline => format!("[{}$]", text(bytes)),
                        End::Eof => format!("[{}.]", text(bytes)),
                    };
                }
            }
        };
        for chunk in chunks {
            splitter.push(chunk.as_bytes(), &mut take);
        }
        splitter.finish(&mut take);
        seen
    }

    #[test]
    fn lines_come_whole_wherever_chunks_end() {
        assert_eq!(
            cut(9, &["one\ntw", "o\n", "\nthree"]),
            "one\ntwo\n\n[three.]"
        );
        assert_eq!(cut(9, &["a\n"]), "a\n");
        assert_eq!(cut(9, &[]), "");
    }

    #[test]
    fn only_what_exceeds_the_limit_comes_in_fragments() {
        assert_eq!(cut(4, &["abcd", "\n"]), "abcd\n");
        assert_eq!(cut(4, &["abcd", "e", "f\ng"]), "[abcd~][e~][f$][g.]");
        assert_eq!(cut(4, &["abcde"]), "[~][abcde~][.]");
    }
}
