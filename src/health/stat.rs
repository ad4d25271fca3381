//! The text of `/proc/PID/stat` → what the process uses (proc_pid_stat(5)).

/// Of all threads together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// User and system time since the start, in clock ticks.
    pub cpu_ticks: u64,
    pub threads: u64,
    pub rss_pages: u64,
}

/// `None` where the text is not as documented.
pub fn parse(text: &[u8]) -> Option<Stat> {
    // The second field is the name in parentheses; it may hold blanks and parentheses itself.
    let name_end = memchr::memrchr(b')', text)?;
    let rest = std::str::from_utf8(&text[name_end + 1..]).ok()?;
    // The first field here is number 3 of the manual page.
    let mut fields = rest.split_ascii_whitespace().skip(14 - 3);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let mut fields = fields.skip(20 - 16);
    let threads = fields.next()?.parse().ok()?;
    let rss: i64 = fields.nth(24 - 21)?.parse().ok()?;
    Some(Stat {
        cpu_ticks: user.saturating_add(system),
        threads,
        rss_pages: rss.max(0) as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel() {
        // `sleep` in a shell of mine, name changed to the worst that prctl(2) allows.
        let text = b"4242 (a) R (b) 3) S 4100 4242 4100 34816 4100 4194304 112 0 3 0 \
            17 5 0 0 20 0 9 0 8412345 5611520 431 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0\n";
        let expected = Stat {
            cpu_ticks: 22,
            threads: 9,
            rss_pages: 431,
        };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(parse(b"4242 (sleep) S 1 2"), None);
        assert_eq!(parse(b""), None);
    }
}
