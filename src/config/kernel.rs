//! a name of capabilities(7) or setrlimit(2) → the kernel's number.

use super::units::{Wrong, wrong};
use crate::nearest::nearest;

/// capabilities(7), by number (`include/uapi/linux/capability.h`).
const CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// `NET_ADMIN` or `CAP_NET_ADMIN`, in any case.
pub fn capability(text: &str) -> Result<u32, Wrong> {
    let upper = text.trim().to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    match CAPABILITIES.iter().position(|name| *name == bare) {
        Some(number) => Ok(number as u32),
        None => wrong(
            format!("`{text}` is not a capability"),
            match nearest(bare, CAPABILITIES.iter().copied()) {
                Some(near) => format!("did you mean `CAP_{near}`?"),
                None => "write a name of capabilities(7), such as \"CAP_NET_ADMIN\"".to_owned(),
            },
        ),
    }
}

/// setrlimit(2): names and numbers of x86-64 and aarch64 Linux (asm-generic/resource.h).
const LIMITS: &[&str] = &[
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// `nofile`, `RLIMIT_NOFILE`, in any case → name and `RLIMIT_*` number.
pub fn limit_name(text: &str) -> Result<(&'static str, u32), Wrong> {
    let lower = text.to_ascii_lowercase();
    let bare = lower.strip_prefix("rlimit_").unwrap_or(&lower);
    match LIMITS.iter().enumerate().find(|(_, name)| **name == bare) {
        Some((number, name)) => Ok((name, number as u32)),
        None => wrong(
            format!("`{text}` is not a resource limit"),
            match nearest(bare, LIMITS.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known are {}", LIMITS.join(", ")),
            },
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of the running system's C headers.
    #[test]
    fn numbers_are_those_of_the_kernel() {
        for (name, number) in [
            ("nofile", libc::RLIMIT_NOFILE),
            ("core", libc::RLIMIT_CORE),
            ("as", libc::RLIMIT_AS),
            ("nproc", libc::RLIMIT_NPROC),
            ("memlock", libc::RLIMIT_MEMLOCK),
            ("rtprio", libc::RLIMIT_RTPRIO),
            ("rttime", libc::RLIMIT_RTTIME),
            ("stack", libc::RLIMIT_STACK),
            ("sigpending", libc::RLIMIT_SIGPENDING),
        ] {
            assert_eq!(limit_name(name), Ok((name, number)));
        }
        // capabilities(7): include/uapi/linux/capability.h.
        for (name, number) in [
            ("CAP_CHOWN", 0),
            ("net_bind_service", 10),
            ("CAP_NET_ADMIN", 12),
            ("SYS_PTRACE", 19),
            ("SYS_ADMIN", 21),
            ("CAP_SYS_NICE", 23),
            ("SYSLOG", 34),
            ("CAP_CHECKPOINT_RESTORE", 40),
        ] {
            assert_eq!(capability(name), Ok(number));
        }
        assert_eq!(
            capability("NET_ADMN").unwrap_err().remedy,
            "did you mean `CAP_NET_ADMIN`?"
        );
    }
}
