//! the fleet's state → sd_notify messages to the agent's own manager.
//!
//! sd_notify(3): datagrams to `$NOTIFY_SOCKET`, a path or (with `@`) an abstract name.
//! Nothing here waits or fails: a manager that does not listen is told nothing.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use tracing::{error, warn};

use super::fleet::Fleet;
use crate::handoff::State;

/// After the last service is down: crashes that are still being analysed, Redis, the journal.
const GOODBYE: Duration = Duration::from_secs(20);

/// What the manager was told, and how it is reached.
pub struct Notify {
    manager: Option<(UnixDatagram, SocketAddr)>,
    /// Half the watchdog's interval, and when it is next due.
    watchdog: Option<(Duration, Instant)>,
    ready: bool,
    stopping: bool,
    /// The watchdog is not fed at present.
    starved: bool,
    status: String,
}

impl Notify {
    /// From `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`; silent where they are not set.
    pub fn from_environment() -> Notify {
        let manager = match std::env::var_os("NOTIFY_SOCKET") {
            Some(name) if !name.is_empty() => match connect(name.as_bytes()) {
                Ok(manager) => Some(manager),
                Err(error) => {
                    warn!("NOTIFY_SOCKET {}: {error}", name.display());
                    None
                }
            },
            Some(_) | None => None,
        };
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let own = u64::from(std::process::id());
        let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == own);
        let watchdog = number("WATCHDOG_USEC")
            .filter(|usec| *usec > 0 && meant && manager.is_some())
            .map(|usec| (Duration::from_micros(usec) / 2, Instant::now()));
        Notify {
            manager,
            watchdog,
            ready: false,
            stopping: false,
            starved: false,
            status: String::new(),
        }
    }

    /// When the watchdog wants to hear of us.
    pub fn deadline(&self) -> Option<Instant> {
        self.watchdog.map(|(_, due)| due)
    }

    /// Tells what is new: that the first starts were made, how the services stand, that all
    /// is being stopped; and that we live.
    /// The watchdog is only fed while the thread that starts and reaps comes round as well: `comes_round` says so.
    pub fn tell(&mut self, fleet: &Fleet, comes_round: impl Fn() -> bool) {
        if self.manager.is_none() {
            return;
        }
        let mut message = String::new();
        let first_starts_made = fleet
            .units()
            .all(|unit| *unit.machine.state() != super::machine::State::Spawning);
        if !self.ready && first_starts_made {
            self.ready = true;
            message.push_str("READY=1\n");
        }
        if !self.stopping && fleet.is_leaving() {
            self.stopping = true;
            // The manager's own patience may be shorter than what the services were promised.
            let usec = (fleet.shutdown_timeout() + GOODBYE).as_micros();
            message.push_str(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={usec}\n"));
        }
        let status = summary(fleet);
        if self.ready && status != self.status {
            message.push_str(&format!("STATUS={status}\n"));
            self.status = status;
        }
        let now = Instant::now();
        if let Some((half, due)) = &mut self.watchdog
            && *due <= now
        {
            *due = now + *half;
            let starved = !comes_round();
            if !starved {
                message.push_str("WATCHDOG=1\n");
            } else if !self.starved {
                error!("the thread that starts and reaps hangs: the watchdog is not fed");
            }
            self.starved = starved;
        }
        self.send(&message);
    }

    /// A reload begins, and is over with the next `READY=1`: `Type=notify-reload` of
    /// systemd.service(5).
    pub fn reloading(&mut self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let usec = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={usec}\n"));
        self.ready = false;
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.manager
            && !message.is_empty()
        {
            // Non-blocking: a full queue loses a status, and the next one follows.
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }
}

fn connect(name: &[u8]) -> std::io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

/// `3 of 5 services are ready; failed: lidar`. Shown by `systemctl status`.
fn summary(fleet: &Fleet) -> String {
    let mut total = 0;
    let mut ready = 0;
    let mut failed = Vec::new();
    for unit in fleet.units() {
        total += 1;
        match unit.machine.shown() {
            State::Ready | State::Done => ready += 1,
            State::Failed => failed.push(unit.machine.service().name.as_str()),
            State::Waiting
            | State::Starting
            | State::Stopping
            | State::Stopped
            | State::Backoff => {}
        }
    }
    if total == 0 {
        return "no service yet".to_owned();
    }
    let mut text = format!("{ready} of {total} services are ready");
    if !failed.is_empty() {
        text.push_str(&format!("; failed: {}", failed.join(", ")));
    }
    text
}
