//! One end of a pipe → bytes.
//!
//! Reads go into one buffer that all services share (they are read by one thread, one after
//! the other), so a silent service holds none. The descriptor is registered with the runtime
//! only while it is empty: during a pause a busy child's writes wake nobody.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;
use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Bytes: what a pipe holds by default (pipe(7)).
const READ_SIZE: usize = 64 * 1024;

/// Bytes. Half a megabyte is 5 ms of 100 MB/s.
const LARGE_PIPE: usize = 1024 * 1024;

/// Pipes that may be large at one time. All pipes of a user share 64 MiB (pipe(7)); beyond
/// it everybody's new pipes hold only two pages.
const LARGE_PIPES: usize = 24;

static LARGE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What a read brought.
#[derive(Debug)]
pub enum Brought {
    /// This many bytes were handed on.
    Bytes(usize),
    /// Nothing for now.
    Empty,
    /// All writers are gone.
    Eof,
}

#[derive(Debug)]
pub struct Pipe {
    // Dropped before the descriptor: it takes it out of the runtime's epoll.
    waiting: Option<AsyncFd<RawFd>>,
    fd: OwnedFd,
    large: bool,
}

impl Pipe {
    pub fn new(fd: OwnedFd) -> Pipe {
        Pipe {
            waiting: None,
            fd,
            large: false,
        }
    }

    /// Bytes that wait in it (FIONREAD).
    pub fn holds(&self) -> usize {
        let bytes = rustix::io::ioctl_fionread(&self.fd).unwrap_or(0);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Bytes that the pipe can hold; the default where it is no pipe.
    pub fn capacity(&self) -> usize {
        fcntl_getpipe_size(&self.fd).unwrap_or(READ_SIZE)
    }

    /// One read, lent to `take`.
    pub fn read(&mut self, take: impl FnOnce(&[u8])) -> io::Result<Brought> {
        self.waiting = None;
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(READ_SIZE, 0);
            loop {
                return match rustix::io::read(&self.fd, &mut buffer[..]) {
                    // A pseudo-terminal says EIO when its other side is closed.
                    Ok(0) | Err(Errno::IO) => Ok(Brought::Eof),
                    Ok(length) => {
                        take(&buffer[..length]);
                        Ok(Brought::Bytes(length))
                    }
                    Err(Errno::AGAIN) => Ok(Brought::Empty),
                    Err(Errno::INTR) => continue,
                    Err(errno) => Err(errno.into()),
                };
            }
        })
    }

    /// The child filled its pipe: gives it a larger one, once. The new capacity where it has
    /// changed.
    pub fn enlarge(&mut self) -> Option<usize> {
        if self.large || LARGE.fetch_add(1, Ordering::Relaxed) >= LARGE_PIPES {
            if !self.large {
                LARGE.fetch_sub(1, Ordering::Relaxed);
            }
            return None;
        }
        self.large = true;
        // Refused beyond the user's share: then the pauses are shorter.
        fcntl_setpipe_size(self.fd.as_fd(), LARGE_PIPE).ok()
    }

    /// Waits until there is something to read, or all writers are gone.
    pub async fn readable(&mut self) -> io::Result<()> {
        let waiting = match &mut self.waiting {
            Some(waiting) => waiting,
            none => {
                let fd = self.fd.as_raw_fd();
                // SAFETY: the descriptor stays open for as long as it is registered: `fd` is
                // dropped after `waiting`, and never replaced. A plain number always gives
                // the same one.
                let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
                none.insert(registered.map_err(|failure| failure.into_parts().1)?)
            }
        };
        waiting.readable().await.map(|_| ())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if self.large {
            LARGE.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
