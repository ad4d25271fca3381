//! signals to the agent → Event.
//!
//! TERM and INT ask for a shutdown, HUP for a reload. PIPE is ignored, and so are USR1 and
//! USR2, which would end a process that says nothing about them. As PID 1 the kernel
//! delivers only what has a handler: these have.

use std::io;
use std::os::unix::net::UnixStream;

use tokio::io::AsyncReadExt;
use tokio::sync::mpsc::Sender;
use tracing::warn;

use crate::event::{AgentSignal, Event};

/// Begins to hand signals to `inbox`, from a task of the present tokio runtime.
///
/// # Errors
/// No descriptor to be had, or no handler allowed.
pub fn forward(inbox: Sender<Event>) -> io::Result<()> {
    let shutdown = listen(&[libc::SIGTERM, libc::SIGINT])?;
    let reload = listen(&[libc::SIGHUP])?;
    for ignored in [libc::SIGPIPE, libc::SIGUSR1, libc::SIGUSR2] {
        // SAFETY: SIG_IGN touches nothing; nobody else handles these.
        unsafe { libc::signal(ignored, libc::SIG_IGN) };
    }
    tokio::spawn(hand_on(shutdown, AgentSignal::Shutdown, inbox.clone()));
    tokio::spawn(hand_on(reload, AgentSignal::Reload, inbox));
    Ok(())
}

/// One byte arrives per signal.
fn listen(signals: &[libc::c_int]) -> io::Result<tokio::net::UnixStream> {
    let (read, write) = UnixStream::pair()?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, write.try_clone()?)?;
    }
    read.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(read)
}

async fn hand_on(mut signals: tokio::net::UnixStream, meaning: AgentSignal, inbox: Sender<Event>) {
    loop {
        match signals.read_u8().await {
            Ok(_) => {
                if inbox.send(Event::Signal(meaning)).await.is_err() {
                    return;
                }
            }
            Err(error) => return warn!("signals are no longer heard: {error}"),
        }
    }
}
