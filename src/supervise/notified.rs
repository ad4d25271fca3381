//! a run's NOTIFY_SOCKET → what the service says about itself.
//!
//! An abstract socket (unix(7)) for each run: no file, so it works in a root that cannot be
//! written, and for any user; nothing of an earlier run can be mistaken for this one's. The
//! kernel says who sends (SO_PASSCRED), and only the run's own processes are heard.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, recvmsg, socket_with, sockopt,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc::Sender;
use tracing::warn;

use super::notice::{self, Notice};
use super::tree;
use super::watch::Seen;
use crate::service::{Pid, RunId, ServiceName};

pub struct Ear {
    socket: OwnedFd,
    name: String,
}

/// Bytes of a datagram; systemd takes as much.
const DATAGRAM: usize = 4096;

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Ear {
    /// # Errors
    /// No descriptor, or no abstract name, is to be had.
    pub fn open() -> io::Result<Ear> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        sockopt::set_socket_passcred(&socket, true)?;
        let own = rustix::process::getpid().as_raw_nonzero();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Other agents may live in the same network namespace, and know each other's pids
        // by other numbers.
        let tick = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_nsec;
        let name = format!("agent/{own}/{number}/{tick:x}");
        bind(
            &socket,
            &SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        )?;
        Ok(Ear {
            socket,
            name: format!("@{name}"),
        })
    }

    /// As `NOTIFY_SOCKET` has it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// For as long as the run lasts.
pub async fn listen(ear: Ear, run: RunId, mut main: Pid, service: ServiceName, seen: Sender<Seen>) {
    let socket = match UnixDatagram::from_std(ear.socket.into()) {
        Ok(socket) => socket,
        Err(error) => return warn!(service = %service, "notifications are not heard: {error}"),
    };
    let own_uid = tree::uid(main);
    let mut told = false;
    loop {
        let receive = || receive(&socket).map_err(io::Error::from);
        let (bytes, sender) = match socket.async_io(Interest::READABLE, receive).await {
            Ok(received) => received,
            Err(error) => return warn!(service = %service, "notifications are not heard: {error}"),
        };
        let Some((pid, uid)) = sender else { continue };
        if !tree::belongs(pid, main, service.as_str(), own_uid == Some(uid)) {
            if !told {
                told = true;
                warn!(service = %service, "process {pid} is not the service's and is not heard");
            }
            continue;
        }
        for notice in notice::parse(&bytes) {
            if let Notice::MainPid(new) = notice {
                if new == main || !tree::belongs(new, main, service.as_str(), false) {
                    continue;
                }
                main = new;
            }
            if seen.send(Seen::Notice(run, notice)).await.is_err() {
                return;
            }
        }
    }
}

type Received = (Vec<u8>, Option<(Pid, u32)>);

/// Descriptors that come along are closed on return, after the message was read: that is
/// what a sender of `BARRIER=1` waits for.
fn receive(socket: &UnixDatagram) -> Result<Received, rustix::io::Errno> {
    let mut bytes = vec![0u8; DATAGRAM];
    let mut space =
        [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = {
        let mut parts = [io::IoSliceMut::new(&mut bytes)];
        recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?
    };
    bytes.truncate(received.bytes);
    let sender = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(who) => {
            Some((who.pid.as_raw_nonzero().get(), who.uid.as_raw()))
        }
        _ => None,
    });
    Ok((bytes, sender))
}
