//! Messages → the agent's own stdout, without ever waiting for it.
//!
//! A terminal or a pipe that nobody reads must not hold up the runtime, so a thread of its own
//! writes, fed through a bounded channel: what does not fit is dropped, counted, and told once.
//! The thread exists only where a service is configured with `tee`. Making stdout non-blocking
//! instead would change it for everyone who shares it.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::warn;

use crate::handoff;
use crate::record::Lines;

/// Chunks that may wait: each is at most a read, 64 KiB, or one block.
const WAITING: usize = 64;

/// How long the end of the agent waits for stdout.
const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct Tee {
    chunks: SyncSender<Vec<u8>>,
    written: oneshot::Receiver<()>,
    dropped: AtomicU64,
}

impl Tee {
    /// Starts the writer; `None` where there can be no thread.
    pub fn start() -> Option<Tee> {
        let (chunks, waiting) = sync_channel(WAITING);
        let (done, written) = oneshot::channel();
        let thread = std::thread::Builder::new().name("tee".to_owned());
        match thread.spawn(move || write_all(&waiting, done)) {
            Ok(_) => Some(Tee {
                chunks,
                written,
                dropped: AtomicU64::new(0),
            }),
            Err(error) => {
                warn!("cannot copy lines to stdout: no thread for it: {error}");
                None
            }
        }
    }

    /// Copies the messages, or drops them where stdout is too slow.
    pub fn copy(&self, lines: &Lines, tee: handoff::Tee) {
        let label = match tee {
            handoff::Tee::Off => return,
            handoff::Tee::Plain => String::new(),
            handoff::Tee::Labelled => format!("{} | ", lines.streams.name()),
        };
        match self.chunks.try_send(text(lines, label.as_bytes())) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                let count = lines.spans.len() as u64;
                if self.dropped.fetch_add(count, Ordering::Relaxed) == 0 {
                    warn!("stdout is too slow for the copied lines: some are missing there");
                }
            }
        }
    }

    /// Waits a little until what was copied is written.
    pub async fn finish(self) {
        drop(self.chunks);
        if tokio::time::timeout(PATIENCE, self.written).await.is_err() {
            warn!("stdout does not take the last copied lines");
        }
        let dropped = self.dropped.into_inner();
        if dropped > 0 {
            warn!("{dropped} lines were not copied to stdout");
        }
    }
}

/// The messages as text: a label before and a line end after each line. The pieces of a long
/// line are put together again as far as they came in one read: between two, others write.
fn text(lines: &Lines, label: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(lines.chunk.len() + lines.spans.len() * (1 + label.len()));
    let mut begins = true;
    for span in &lines.spans {
        let Some(message) = lines.chunk.get(span.start as usize..span.end as usize) else {
            continue;
        };
        for line in message.split_inclusive(|byte| *byte == b'\n') {
            if begins {
                text.extend_from_slice(label);
            }
            text.extend_from_slice(line);
            begins = line.ends_with(b"\n");
        }
        if !span.partial && !begins {
            text.push(b'\n');
            begins = true;
        }
    }
    if !begins {
        text.push(b'\n');
    }
    text
}

/// The thread. A stdout that fails (closed, disk full) takes no more; the lines are in Redis.
fn write_all(waiting: &Receiver<Vec<u8>>, done: oneshot::Sender<()>) {
    let mut failed = false;
    for chunk in waiting {
        if !failed && let Err(error) = std::io::stdout().lock().write_all(&chunk) {
            warn!("cannot copy lines to stdout: {error}");
            failed = true;
        }
    }
    let _ = done.send(());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Source, Span, Streams, Trim};
    use bytes::Bytes;

    #[test]
    fn every_line_has_its_label_and_its_end() {
        let span = |start, end, partial| Span {
            start,
            end,
            partial,
        };
        let mut lines = Lines {
            streams: Streams::new("lidar", Trim { max_len: 0 }),
            source: Source::Stdout,
            read_ms: 0,
            chunk: Bytes::from_static(b"one\ntwo\nlong"),
            spans: vec![
                span(0, 3, false),
                span(0, 7, false),
                span(8, 10, true),
                span(10, 12, false),
            ],
        };
        assert_eq!(text(&lines, b""), b"one\none\ntwo\nlong\n");
        let labelled = "l | one\nl | one\nl | two\nl | long\n";
        assert_eq!(String::from_utf8_lossy(&text(&lines, b"l | ")), labelled);
        lines.spans.pop();
        assert!(text(&lines, b"").ends_with(b"two\nlo\n"));
    }
}
