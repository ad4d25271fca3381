//! The wall clock: read here, at the edges, and nowhere else.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix milliseconds; 0 for a clock before 1970.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// `%Y-%m-%d_%H-%M-%S` in local time (`TZ`, else `/etc/localtime`, else UTC), as the run
/// markers carry it.
pub fn local_stamp(unix_ms: u64) -> String {
    let seconds = (unix_ms / 1000) as libc::time_t;
    // SAFETY: `tm` is plain data, valid when zeroed; localtime_r writes it and keeps no
    // pointer. It fails only for years beyond i32, and leaves zeroes then.
    let tm = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        libc::localtime_r(&seconds, &mut tm);
        tm
    };
    format!(
        "{:04}-{:02}-{:02}_{:02}-{:02}-{:02}",
        tm.tm_year + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec
    )
}
