//! a terminal → keys; rows → a terminal, which is left as it was found.
//!
//! The alternate screen and raw input (termios(3); ECMA-48 and xterm's private modes). However the program is asked to
//! end (q, Ctrl-C, TERM, HUP) the terminal gets its own back; Ctrl-Z gives it back until the program goes on.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGWINCH};

use super::screen::Size;

/// Alternate screen, no cursor, no wrapping.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

pub struct Terminal {
    /// How stdin was, where it is a terminal.
    found: Option<Termios>,
    ended: Arc<AtomicBool>,
    /// Wakes the wait at every signal.
    woken: UnixStream,
    /// stdin has no more to say.
    deaf: bool,
    /// Read, and not understood yet: a fast hand types ahead.
    typed: Vec<u8>,
}

/// Ends the process when nobody reads its stdout any more (`agent events -f | head -1`): what waits for the next event
/// would learn that only then.
pub fn end_with_the_reader() {
    let watch = || {
        let stdout = io::stdout();
        loop {
            // Of a pipe or a socket; others never report it. POLLERR and POLLHUP come unasked.
            let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
            match poll(&mut polled, None) {
                Ok(_) if !polled[0].revents().is_empty() => std::process::exit(0),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    };
    // Without a thread it ends later.
    let _ = std::thread::Builder::new()
        .name("reader".to_owned())
        .spawn(watch);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    Key(char),
    Up,
    Down,
    PageUp,
    PageDown,
    Leave,
    Pause,
    /// The time is over, or the screen has another size.
    Nothing,
}

impl Terminal {
    pub fn open() -> io::Result<Terminal> {
        let (woken, wake) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&ended))?;
        }
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGWINCH, SIGCONT] {
            signal_hook::low_level::pipe::register(signal, wake.try_clone()?)?;
        }
        let stdin = io::stdin();
        let found = match stdin.is_terminal() {
            true => Some(tcgetattr(&stdin)?),
            false => None,
        };
        let terminal = Terminal {
            deaf: found.is_none(),
            found,
            ended,
            woken,
            typed: Vec::new(),
        };
        terminal.enter()?;
        Ok(terminal)
    }

    fn enter(&self) -> io::Result<()> {
        if let Some(found) = &self.found {
            let mut raw = found.clone();
            raw.make_raw();
            tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        }
        write(ENTER)
    }

    fn leave(&self) {
        // A terminal that is gone needs nothing back.
        let _ = write(LEAVE);
        if let Some(found) = &self.found {
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, found);
        }
    }

    /// 80 by 24 where the terminal does not say.
    pub fn size(&self) -> Size {
        let size = tcgetwinsize(io::stdout()).ok();
        let size = size.filter(|size| size.ws_col > 0 && size.ws_row > 0);
        Size {
            columns: size.map_or(80, |size| size.ws_col.into()),
            rows: size.map_or(24, |size| size.ws_row.into()),
        }
    }

    /// In one write, so that nobody sees half a screen.
    pub fn draw(&self, rows: &[String]) -> io::Result<()> {
        let mut text = String::from("\x1b[?2026h\x1b[H");
        for (index, row) in rows.iter().enumerate() {
            if index > 0 {
                text.push_str("\r\n");
            }
            // Before the text: after a full row the cursor still stands on its last cell.
            text.push_str("\x1b[2K");
            text.push_str(row);
        }
        text.push_str("\x1b[?2026l");
        write(&text)
    }

    /// Stops this program as Ctrl-Z does, and returns when it goes on.
    pub fn pause(&self) -> io::Result<()> {
        self.leave();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TSTP)?;
        self.enter()
    }

    pub fn wait(&mut self, until: Instant) -> Input {
        loop {
            if self.ended.load(Ordering::Relaxed) {
                return Input::Leave;
            }
            if let Some(input) = self.key() {
                return input;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Input::Nothing;
            }
            let (stdin, mut ready) = (io::stdin(), false);
            {
                let mut polled = vec![PollFd::new(&self.woken, PollFlags::IN)];
                if !self.deaf {
                    polled.push(PollFd::new(&stdin, PollFlags::IN));
                }
                // EINTR: the pipe has a byte by now.
                if poll(&mut polled, Some(&timespec(left))).is_ok() {
                    ready = polled
                        .get(1)
                        .is_some_and(|stdin| !stdin.revents().is_empty());
                }
            }
            let mut woken = [0; 64];
            if matches!(self.woken.read(&mut woken), Ok(1..)) {
                match self.ended.load(Ordering::Relaxed) {
                    true => return Input::Leave,
                    false => return Input::Nothing,
                }
            }
            if ready {
                self.listen();
            }
        }
    }

    fn listen(&mut self) {
        let mut bytes = [0; 64];
        match rustix::io::read(io::stdin(), &mut bytes) {
            Ok(0) | Err(rustix::io::Errno::IO) => self.deaf = true,
            Ok(length) => self.typed.extend_from_slice(&bytes[..length]),
            Err(_) => {}
        }
    }

    /// The next key that means something.
    fn key(&mut self) -> Option<Input> {
        while !self.typed.is_empty() {
            let (input, length) = parse(&self.typed);
            self.typed.drain(..length.min(self.typed.len()));
            if input.is_some() {
                return input;
            }
        }
        None
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The first key, and its bytes. An escape sequence comes in one piece.
fn parse(bytes: &[u8]) -> (Option<Input>, usize) {
    match bytes {
        [3 | 4, ..] => (Some(Input::Leave), 1),
        [26, ..] => (Some(Input::Pause), 1),
        [27, b'[' | b'O', b'A', ..] => (Some(Input::Up), 3),
        [27, b'[' | b'O', b'B', ..] => (Some(Input::Down), 3),
        [27, b'[', b'5', b'~', ..] => (Some(Input::PageUp), 4),
        [27, b'[', b'6', b'~', ..] => (Some(Input::PageDown), 4),
        [27, b'[', rest @ ..] => {
            // Up to its final byte (ECMA-48, 5.4).
            let end = rest.iter().position(|byte| (0x40..0x7f).contains(byte));
            (None, end.map_or(bytes.len(), |end| end + 3))
        }
        [27, ..] => (None, 2),
        [b'q' | b'Q', ..] => (Some(Input::Leave), 1),
        [byte @ b' '..=b'~', ..] => (Some(Input::Key(char::from(*byte))), 1),
        _ => (None, 1),
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let all = |mut bytes: &[u8]| {
            let mut inputs = Vec::new();
            while !bytes.is_empty() {
                let (input, length) = parse(bytes);
                inputs.extend(input);
                bytes = bytes.get(length..).unwrap_or_default();
            }
            inputs
        };
        let typed = b"c\x1b[A\x1b[6~\x1b[1;5Z\xc3\xa9\x1bxm\x1a\x03";
        let expected = [
            Input::Key('c'),
            Input::Up,
            Input::PageDown,
            Input::Key('m'),
            Input::Pause,
            Input::Leave,
        ];
        assert_eq!(all(typed), expected);
        for other in [&b""[..], b"\x1b", b"\x1b[", b"\x1b[Z", b"\xff\xfe"] {
            assert!(all(other).is_empty(), "{other:?}");
        }
    }
}
