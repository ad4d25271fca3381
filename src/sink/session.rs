//! one connection: bytes out, replies in.
//!
//! Reads and writes as the socket allows, in turn, without ever waiting for one while the
//! other could go on. A peer that owes an answer and is silent for [`SILENCE`] is given up:
//! a half-open connection looks like nothing else.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::time::Instant;

use super::delivery::Hangup;
use super::redis::Wire;
use super::resp::{Reply, parse};

/// How long an answer may take: longer than a busy server's worst pause, shorter than an
/// operator's patience. After a reconnect nothing is sent twice, so too early costs little.
const SILENCE: Duration = Duration::from_secs(10);
/// Bytes of one read.
const READ: usize = 32 << 10;

pub struct Session {
    reader: ReadHalf<Box<dyn Wire>>,
    writer: WriteHalf<Box<dyn Wire>>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of `output` that are written.
    written: usize,
    heard: Instant,
}

impl Session {
    pub fn new(wire: Box<dyn Wire>) -> Session {
        let (reader, writer) = split(wire);
        Session {
            reader,
            writer,
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            heard: Instant::now(),
        }
    }

    /// Where to append commands.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Bytes that the socket has not taken yet.
    pub fn unwritten(&self) -> usize {
        self.output.len() - self.written
    }

    /// When the peer, which owes an answer, is given up.
    pub fn deadline(&self) -> Instant {
        self.heard + SILENCE
    }

    /// Nothing was owed until now.
    pub fn start_waiting(&mut self) {
        self.heard = Instant::now();
    }

    /// Moves some bytes; returns after each progress. Cancelling it loses nothing.
    pub async fn progress(&mut self) -> io::Result<()> {
        self.input.reserve(READ);
        let pending = self.output.get(self.written..).unwrap_or_default();
        tokio::select! {
            read = self.reader.read_buf(&mut self.input) => {
                if read? == 0 {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "Redis closed the connection",
                    ));
                }
                self.heard = Instant::now();
            }
            wrote = self.writer.write(pending), if !pending.is_empty() => {
                self.written += wrote?;
                if self.written == self.output.len() {
                    self.written = 0;
                    self.output.clear();
                    // One huge line must not hold its memory for ever.
                    self.output.shrink_to(256 << 10);
                }
            }
        }
        Ok(())
    }

    /// Hands every complete reply to `take`, with where to append further commands.
    pub fn replies(
        &mut self,
        mut take: impl FnMut(&Reply<'_>, &mut Vec<u8>) -> Result<(), Hangup>,
    ) -> Result<(), Hangup> {
        let mut used = 0;
        loop {
            match parse(self.input.get(used..).unwrap_or_default()) {
                Ok(Some((reply, length))) => {
                    used += length;
                    take(&reply, &mut self.output)?;
                }
                Ok(None) => break,
                Err(malformed) => return Err(Hangup(malformed.to_string())),
            }
        }
        self.input.drain(..used);
        if self.input.is_empty() {
            self.input.shrink_to(2 * READ);
        }
        Ok(())
    }
}
