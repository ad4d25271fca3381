//! a datagram on a service's NOTIFY_SOCKET → what the service says about itself.
//!
//! sd_notify(3): assignments, one per line. What is not known is passed over, as there.

use std::time::Duration;

use crate::service::Pid;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// `READY=1`; also the end of a reload.
    Ready,
    /// `RELOADING=1`.
    Reloading,
    /// `STOPPING=1`.
    Stopping,
    /// `STATUS=…`: for people.
    Status(String),
    /// `WATCHDOG=1`: it lives.
    Beat,
    /// `WATCHDOG=trigger`: it asks for what follows a missed one.
    Hung,
    /// `WATCHDOG_USEC=…`: another interval from now on.
    BeatEvery(Duration),
    /// `EXTEND_TIMEOUT_USEC=…`: what it is about takes that much longer, counted from now.
    Extend(Duration),
    /// `MAINPID=…`: this one is the service's main process from now on.
    MainPid(Pid),
}

/// Characters of a status that are kept.
const STATUS_LENGTH: usize = 200;

/// In the order in which they are to be heard: life and time first, then readiness.
pub fn parse(datagram: &[u8]) -> Vec<Notice> {
    let mut notices: Vec<Notice> = datagram
        .split(|&byte| byte == b'\n')
        .filter_map(assignment)
        .collect();
    // A process that is the main one only from here on may be the one that is ready.
    notices.sort_by_key(|notice| match notice {
        Notice::MainPid(_) => 0,
        Notice::BeatEvery(_) | Notice::Extend(_) => 1,
        Notice::Ready
        | Notice::Reloading
        | Notice::Stopping
        | Notice::Status(_)
        | Notice::Beat
        | Notice::Hung => 2,
    });
    notices
}

fn assignment(line: &[u8]) -> Option<Notice> {
    let line = String::from_utf8_lossy(line);
    let (key, value) = line.split_once('=')?;
    let usec = || value.parse().ok().map(Duration::from_micros);
    match (key, value) {
        ("READY", "1") => Some(Notice::Ready),
        ("RELOADING", "1") => Some(Notice::Reloading),
        ("STOPPING", "1") => Some(Notice::Stopping),
        ("STATUS", text) => {
            let clean = text.chars().filter(|c| !c.is_control());
            Some(Notice::Status(clean.take(STATUS_LENGTH).collect()))
        }
        ("WATCHDOG", "1") => Some(Notice::Beat),
        ("WATCHDOG", "trigger") => Some(Notice::Hung),
        ("WATCHDOG_USEC", _) => usec().filter(|time| !time.is_zero()).map(Notice::BeatEvery),
        ("EXTEND_TIMEOUT_USEC", _) => usec().map(Notice::Extend),
        ("MAINPID", pid) => pid.parse().ok().filter(|pid| *pid > 1).map(Notice::MainPid),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_as_sd_notify_has_them() {
        let second = Duration::from_secs(1);
        assert_eq!(
            parse(b"READY=1\nSTATUS=caf\xc3\xa9 \x1b[1mopen\nMAINPID=4242\n"),
            [
                Notice::MainPid(4242),
                Notice::Ready,
                Notice::Status("café [1mopen".to_owned()),
            ]
        );
        assert_eq!(parse(b"WATCHDOG=1"), [Notice::Beat]);
        assert_eq!(parse(b"WATCHDOG=trigger"), [Notice::Hung]);
        assert_eq!(
            parse(b"EXTEND_TIMEOUT_USEC=1000000"),
            [Notice::Extend(second)]
        );
        assert_eq!(parse(b"WATCHDOG_USEC=1000000"), [Notice::BeatEvery(second)]);
        assert_eq!(parse(b"RELOADING=1\nMONOTONIC_USEC=5"), [Notice::Reloading]);
        assert_eq!(parse(b"STOPPING=1"), [Notice::Stopping]);
    }

    #[test]
    fn what_is_not_understood_is_passed_over() {
        for nonsense in [
            &b""[..],
            b"READY",
            b"READY=2",
            b"MAINPID=0",
            b"MAINPID=-4",
            b"MAINPID=1",
            b"WATCHDOG_USEC=0",
            b"EXTEND_TIMEOUT_USEC=soon",
            b"\xff\xfe=1",
            b"FDSTORE=1",
        ] {
            assert_eq!(parse(nonsense), []);
        }
        assert_eq!(parse(&[b'='; 4096]), []);
    }
}
