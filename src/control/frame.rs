//! bytes → lines → requests; replies → bytes.
//!
//! One JSON object per line each way. Never holds more than `limit` bytes of an unfinished
//! line, wherever the pieces are cut: a longer line is told once and skipped to its end, so
//! the next line is understood again. Hostile bytes give an error in the protocol's own
//! form, never anything else.

use crate::request::{Reply, Request};

/// Bytes of the longest request line. Names of every service of a large fleet fit.
pub const MAX_REQUEST: usize = 64 * 1024;

/// Bytes of the longest reply line that a client takes: a status of thousands of services.
pub const MAX_REPLY: usize = 16 * 1024 * 1024;

/// Cuts a stream of bytes into lines.
#[derive(Debug)]
pub struct Frames {
    limit: usize,
    buffer: Vec<u8>,
    /// `buffer[..start]` has been handed out.
    start: usize,
    /// `buffer[start..scanned]` holds no line end.
    scanned: usize,
    /// The rest of a line that was too long.
    skipping: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A line without its end; never blank.
    Line(Vec<u8>),
    /// A line began that is longer than the limit.
    TooLong,
}

impl Frames {
    /// `limit` in bytes, without the line end.
    pub fn new(limit: usize) -> Frames {
        Frames {
            limit,
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            skipping: false,
        }
    }

    /// What was read. Take every frame out before the next piece is added: that is what
    /// keeps the memory bounded.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete line.
    pub fn take(&mut self) -> Option<Frame> {
        loop {
            let end = memchr::memchr(b'\n', &self.buffer[self.scanned..])
                .map(|offset| self.scanned + offset);
            let length = end.unwrap_or(self.buffer.len()) - self.start;
            let was_skipping = self.skipping;
            if was_skipping || length > self.limit {
                self.skipping = end.is_none();
                self.advance(end.map_or(self.buffer.len(), |end| end + 1));
                if !was_skipping {
                    return Some(Frame::TooLong);
                }
                if self.skipping {
                    return None;
                }
                continue;
            }
            let Some(end) = end else {
                self.scanned = self.buffer.len();
                return None;
            };
            let line = self.buffer[self.start..end].trim_ascii().to_vec();
            self.advance(end + 1);
            if !line.is_empty() {
                return Some(Frame::Line(line));
            }
        }
    }

    fn advance(&mut self, to: usize) {
        self.start = to;
        self.scanned = to;
        if self.start == self.buffer.len() {
            // An idle connection holds no memory.
            self.buffer = Vec::new();
            self.start = 0;
            self.scanned = 0;
        }
    }
}

/// A line as a request, or what is wrong with it, for the one who sent it.
pub fn request(line: &[u8]) -> Result<Request, String> {
    serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))
}

/// A line as a reply, or what is wrong with it.
pub fn reply(line: &[u8]) -> Result<Reply, String> {
    serde_json::from_slice(line).map_err(|error| format!("not a reply: {error}"))
}

pub fn too_long() -> Reply {
    Reply::refused(format!("a request is at most {MAX_REQUEST} bytes long"))
}

/// One line, its end included.
pub fn line(value: &impl serde::Serialize) -> Vec<u8> {
    // Requests and replies are plain data with text keys: they always have a JSON form.
    // Were it ever otherwise, the client is told instead of left waiting.
    let mut line = serde_json::to_vec(value)
        .unwrap_or_else(|_| br#"{"ok":false,"error":"the answer has no JSON form"}"#.to_vec());
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(frames: &mut Frames) -> Vec<Frame> {
        std::iter::from_fn(|| frames.take()).collect()
    }

    fn lines(texts: &[&str]) -> Vec<Frame> {
        texts
            .iter()
            .map(|text| match *text {
                "!" => Frame::TooLong,
                text => Frame::Line(text.as_bytes().to_vec()),
            })
            .collect()
    }

    #[test]
    fn every_cut_gives_the_same_frames() {
        let input =
            b"one\r\n\n  \ntwo\n0123456789\n0123456789abcdef\nthree\n0123456789a\n\nfour\nfiv";
        let expected = lines(&["one", "two", "0123456789", "!", "three", "!", "four"]);
        for first in 0..input.len() {
            for second in first..input.len() {
                let mut frames = Frames::new(10);
                let mut got = Vec::new();
                for piece in [&input[..first], &input[first..second], &input[second..]] {
                    frames.push(piece);
                    got.extend(all(&mut frames));
                    assert!(frames.buffer.len() - frames.start <= 10);
                }
                assert_eq!(got, expected, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn an_endless_line_costs_no_memory_and_is_told_once() {
        let mut frames = Frames::new(100);
        let mut told = 0;
        for _ in 0..10_000 {
            frames.push(&[b'x'; 64]);
            told += all(&mut frames).len();
            assert!(frames.buffer.capacity() <= 1024);
        }
        assert_eq!(told, 1);
        frames.push(b"\n{}\n");
        assert_eq!(all(&mut frames), lines(&["{}"]));
    }

    #[test]
    fn what_is_no_request_is_said_in_words() {
        for text in [
            &b"{"[..],
            b"[]",
            b"null",
            b"{\"verb\":\"dance\"}",
            b"{\"verb\":7}",
            b"{\"verb\":\"start\"}",
            b"\xff\xfe",
            b"{\"verb\":\"status\",\"services\":[\"\\ud800\"]}",
        ] {
            let error = request(text).expect_err("not a request");
            assert!(error.starts_with("not a request: "), "{error}");
            assert!(!error.contains('\n'));
        }
        let deep = [b'['; 60_000];
        assert!(request(&deep).is_err());
        assert!(request(b"{\"verb\":\"status\"}").is_ok());
    }

    #[test]
    fn a_reply_survives_the_wire() {
        let said = Reply::done(serde_json::json!({"a": ["b\nc", 1]}));
        let line = line(&said);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(reply(line.trim_ascii_end()), Ok(said));
    }
}
