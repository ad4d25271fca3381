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
    let tm = local_time(unix_ms);
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

/// `2026-11-22 10:30:00.123` in local time.
pub fn local(unix_ms: u64) -> String {
    let tm = local_time(unix_ms);
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:03}",
        tm.tm_year + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec,
        unix_ms % 1000
    )
}

fn local_time(unix_ms: u64) -> libc::tm {
    let seconds = (unix_ms / 1000) as libc::time_t;
    // SAFETY: `tm` is plain data, valid when zeroed; localtime_r writes it and keeps no
    // pointer. It fails only for years beyond i32, and leaves zeroes then.
    unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        libc::localtime_r(&seconds, &mut tm);
        tm
    }
}

/// `2026-11-22T10:30:00.123Z`.
pub fn utc(unix_ms: u64) -> String {
    let seconds = (unix_ms / 1000) as libc::time_t;
    // SAFETY: as above; gmtime_r reads no files.
    let tm = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        libc::gmtime_r(&seconds, &mut tm);
        tm
    };
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        tm.tm_year + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec,
        unix_ms % 1000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utc_is_iso_8601() {
        // `date -u -d @1763807400 +%FT%TZ`
        assert_eq!(utc(1_763_807_400_123), "2025-11-22T10:30:00.123Z");
        assert_eq!(utc(0), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn stamps_have_the_markers_form() {
        let stamp = local_stamp(1_763_807_400_123);
        assert_eq!(stamp.len(), "2025-11-22_10-30-00".len());
        assert_eq!(&stamp[4..5], "-");
        assert_eq!(&stamp[10..11], "_");
    }
}
