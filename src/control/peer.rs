//! a connection → who is at its other end, and whether anyone still is.

use std::io;
use std::os::fd::AsRawFd;

use tokio::net::UnixStream;

/// Who may do more than probe, besides root.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub agent_uid: u32,
    /// The socket's group.
    pub group: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// May only probe.
    Stranger {
        uid: u32,
    },
    Operator,
}

/// Who connected: SO_PEERCRED and SO_PEERGROUPS, as they were at connect(2) (unix(7)).
pub fn authority(stream: &UnixStream, access: Access) -> io::Result<Authority> {
    let peer = stream.peer_cred()?;
    let uid = peer.uid();
    if uid == 0 || uid == access.agent_uid {
        return Ok(Authority::Operator);
    }
    if let Some(group) = access.group
        && (peer.gid() == group || peer_groups(stream)?.contains(&group))
    {
        return Ok(Authority::Operator);
    }
    Ok(Authority::Stranger { uid })
}

/// The supplementary groups. The kernel says with ERANGE how much room they need.
fn peer_groups(stream: &UnixStream) -> io::Result<Vec<libc::gid_t>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut bytes = size_of_val(groups.as_slice()) as libc::socklen_t;
        // SAFETY: the kernel writes at most `bytes` bytes into `groups`, which is that long,
        // and says in `bytes` how many it wrote or would have written.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut bytes,
            )
        };
        let count = bytes as usize / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// Closed in both directions (POLLHUP, poll(2)); half closed still wants its answer.
pub fn has_left(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&now)).is_ok()
        && polled[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::ERR)
}
