//! signals to the agent → Event.
//!
//! For an agent, whatever an engine, a terminal or a machine ends things by asks for a shutdown (TERM, INT, QUIT, PWR, and
//! SIGRTMIN+3, systemd's halt), HUP for a reload. PIPE is ignored, and so are USR1, USR2 and ALRM, which would end a
//! process that says nothing about them. As PID 1 the kernel delivers only what has a handler: these have.
//!
//! For a wrapped application every signal that somebody sends is handed on, also those that
//! tell of faults, of a terminal or of a closed pipe; where the kernel raises one of these
//! because of what we did ourselves, it means us. A signal that was ignored when we were
//! started stays so (nohup, a script's `&`): whoever did that meant the application.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use tokio::io::AsyncReadExt;
use tokio::sync::mpsc::Sender;
use tracing::warn;

use crate::event::{AgentSignal, Event};
use crate::service::Signal;

/// Begins to hand signals to `inbox`, from a task of the present tokio runtime.
///
/// # Errors
/// No descriptor to be had, or no handler allowed.
pub fn forward(inbox: Sender<Event>) -> io::Result<()> {
    let halt = libc::SIGRTMIN() + 3;
    let shutdown = listen(&[
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGPWR,
        halt,
    ])?;
    let reload = listen(&[libc::SIGHUP])?;
    for ignored in [libc::SIGPIPE, libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM] {
        // SAFETY: SIG_IGN touches nothing; nobody else handles these.
        unsafe { libc::signal(ignored, libc::SIG_IGN) };
    }
    tokio::spawn(hand_on(shutdown, AgentSignal::Shutdown, inbox.clone()));
    tokio::spawn(hand_on(reload, AgentSignal::Reload, inbox));
    Ok(())
}

/// Begins to hand every signal that may be the application's to `inbox`.
///
/// # Errors
/// As [`forward`].
pub fn forward_all(inbox: Sender<Event>) -> io::Result<()> {
    let (read, write) = UnixStream::pair()?;
    write.set_nonblocking(true)?;
    let write = std::sync::Arc::new(write);
    // The runtime of the language itself ignores PIPE.
    let ours = |signal: libc::c_int| is_ignored(signal) && signal != libc::SIGPIPE;
    for signal in forwardable().filter(|signal| !ours(*signal)) {
        let write = std::sync::Arc::clone(&write);
        // A signal number fits a byte: they end at 64.
        let byte = signal as u8;
        let tell = move |info: &libc::siginfo_t| {
            if PROVOKED.contains(&signal) && !is_sent(info) {
                return provoked(signal);
            }
            // SAFETY: send(2) is async-signal-safe; the descriptor lives as long as the
            // handler. A full pipe loses a signal as the kernel would merge it.
            unsafe {
                libc::send(
                    write.as_raw_fd(),
                    (&raw const byte).cast(),
                    1,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                );
            }
        };
        // SAFETY: the action does nothing but that, and after a fault of ours never returns
        // to where it happened.
        unsafe { signal_hook_registry::register_unchecked(signal, tell)? };
    }
    read.set_nonblocking(true)?;
    let mut read = tokio::net::UnixStream::from_std(read)?;
    tokio::spawn(async move {
        loop {
            let signal = match read.read_u8().await {
                Ok(signal) => Signal(i32::from(signal)),
                Err(error) => return warn!("signals are no longer heard: {error}"),
            };
            let event = Event::Signal(AgentSignal::Forward(signal));
            if inbox.send(event).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Whether a process sent it (sigaction(2): `si_code` of kill, sigqueue, tgkill), and not we
/// ourselves.
fn is_sent(info: &libc::siginfo_t) -> bool {
    // The kernel raises PIPE in the writer's own name.
    // SAFETY: these codes come with a sender.
    info.si_code <= 0 && unsafe { info.si_pid() } != std::process::id() as libc::pid_t
}

/// What the kernel raises because of what a process does itself.
const PROVOKED: &[libc::c_int] = &[
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGPIPE,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// We did that: what happens without a handler happens.
fn provoked(signal: libc::c_int) {
    // A write to a closed pipe says so too.
    if signal != libc::SIGPIPE {
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
}

/// All but what no handler may catch, and what tells of our own children. The C library keeps
/// the real-time ones below SIGRTMIN for itself.
fn forwardable() -> impl Iterator<Item = libc::c_int> {
    const OURS: &[libc::c_int] = &[libc::SIGKILL, libc::SIGSTOP, libc::SIGCHLD];
    (1..=31)
        .filter(|signal| !OURS.contains(signal))
        .chain(libc::SIGRTMIN()..=libc::SIGRTMAX())
}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: only asks; writes the struct it is given.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
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
