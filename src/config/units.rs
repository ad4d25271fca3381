//! a value as people write it → the number it means: durations, sizes, CPU lists, modes.
//!
//! Every reader returns the value, or one sentence that says what is wrong and a remedy.
//! Nothing saturates: what does not fit is an error.

use std::time::Duration;

use super::{Identity, IoPriority, Scheduling};
use crate::nearest::nearest;

/// What is wrong with a value, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub message: String,
    pub remedy: String,
}

pub(super) fn wrong<T>(message: String, remedy: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong {
        message,
        remedy: remedy.into(),
    })
}

/// Longer than any wait that makes sense, and short enough that `now + d` never overflows.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// `250ms`, `10s`, `5m`, `1h`, `2d`, `1m30s`; whole numbers.
pub fn duration(text: &str) -> Result<Duration, Wrong> {
    let example = "write a number and a unit, such as \"250ms\", \"10s\", \"5m\" or \"1h\"";
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest == "0" {
        return Ok(total);
    }
    if rest.is_empty() {
        return wrong("the duration is empty".to_owned(), example);
    }
    if rest.starts_with('-') {
        return wrong(format!("`{text}` is negative"), example);
    }
    while !rest.is_empty() {
        let (digits, after) = split(rest, |c| c.is_ascii_digit());
        let (unit, after) = split(after, |c| !c.is_ascii_digit());
        if digits.is_empty() {
            return wrong(format!("`{text}` is not a duration"), example);
        }
        let unit = unit.trim();
        let millis: u64 = match unit {
            "ms" => 1,
            "s" | "sec" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => {
                let remedy =
                    format!("write \"{text}s\" for seconds, \"{text}ms\" for milliseconds");
                return wrong(format!("`{text}` has no unit"), remedy);
            }
            unit if unit.starts_with('.') => {
                let remedy = "durations are whole numbers: \"1500ms\", not \"1.5s\"";
                return wrong(format!("`{text}` has a fraction"), remedy);
            }
            unit => return wrong(format!("`{unit}` is not a unit of time"), example),
        };
        let part = digits
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(millis));
        match part.and_then(|ms| total.checked_add(Duration::from_millis(ms))) {
            Some(sum) if sum <= MAX_DURATION => total = sum,
            Some(_) | None => {
                return wrong(
                    format!("`{text}` is too long"),
                    "the longest duration is a year",
                );
            }
        }
        rest = after;
    }
    Ok(total)
}

/// Splits where the first character stands that does not fit.
fn split(text: &str, fits: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !fits(c)).unwrap_or(text.len()))
}

/// Bytes: `65536`, `64KiB`, `8MiB`, `1GiB`; also `64KB` and `8MB` (thousands) and `B`.
pub fn size(text: &str) -> Result<u64, Wrong> {
    let example = "write a number of bytes, or such as \"64KiB\", \"8MiB\" or \"1GiB\"";
    let (digits, unit) = split(text.trim(), |c| c.is_ascii_digit());
    if digits.is_empty() {
        return wrong(format!("`{text}` is not a size"), example);
    }
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return wrong(format!("`{}` is not a unit of size", unit.trim()), example),
    };
    match digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor))
    {
        Some(bytes) => Ok(bytes),
        None => wrong(format!("`{text}` is too large"), example),
    }
}

/// CPU numbers of sched_setaffinity(2)'s fixed set; glibc's `CPU_SETSIZE`.
const MAX_CPU: usize = 1024;

/// `0-3,5` → 0, 1, 2, 3, 5: sorted, each once.
pub fn cpu_list(text: &str) -> Result<Vec<usize>, Wrong> {
    let example = "write CPU numbers and ranges, such as \"0-3,5\"";
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|n| *n < MAX_CPU);
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
            (Some(_), Some(_)) => {
                return wrong(
                    format!("the range `{}` runs backwards", part.trim()),
                    example,
                );
            }
            (_, _) => return wrong(format!("`{}` is not a CPU number", part.trim()), example),
        }
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// Octal digits, `000` to `777`.
pub fn umask(text: &str) -> Result<u32, Wrong> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u32::from_str_radix(digits, 8) {
        Ok(mask) if mask <= 0o777 && !digits.starts_with('+') => Ok(mask),
        Ok(_) | Err(_) => wrong(
            format!("`{text}` is not a umask"),
            "write three octal digits, such as \"022\"",
        ),
    }
}

/// `other`, `batch`, `idle`, `fifo:10`, `rr:10`.
pub fn scheduling(text: &str) -> Result<Scheduling, Wrong> {
    let (policy, priority) = match text.split_once(':') {
        Some((policy, priority)) => (policy.trim(), Some(priority.trim())),
        None => (text.trim(), None),
    };
    let real_time = || match priority.map(str::parse::<u32>) {
        Some(Ok(priority @ 1..=99)) => Ok(priority),
        Some(Ok(_) | Err(_)) | None => wrong(
            format!("`{text}` needs a priority from 1 to 99"),
            format!("such as \"{policy}:10\""),
        ),
    };
    match policy {
        "fifo" => return real_time().map(Scheduling::Fifo),
        "rr" | "round-robin" => return real_time().map(Scheduling::RoundRobin),
        _ => {}
    }
    let plain = match policy {
        "other" => Scheduling::Other,
        "batch" => Scheduling::Batch,
        "idle" => Scheduling::Idle,
        _ => {
            let known = ["other", "batch", "idle", "fifo", "rr"];
            let remedy = match nearest(policy, known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "write \"other\", \"batch\", \"idle\", \"fifo:10\" or \"rr:10\"".to_owned(),
            };
            return wrong(format!("`{policy}` is not a scheduling policy"), remedy);
        }
    };
    match priority {
        None => Ok(plain),
        Some(_) => wrong(
            format!("`{policy}` has no priority"),
            format!("write \"{policy}\", or \"fifo:10\" for real time"),
        ),
    }
}

/// `realtime:0`, `best-effort:4`, `idle`; a level left out is 4, the kernel's default.
pub fn io_priority(text: &str) -> Result<IoPriority, Wrong> {
    let (class, level) = match text.split_once(':') {
        Some((class, level)) => (class.trim(), Some(level.trim())),
        None => (text.trim(), None),
    };
    let level_of = || match level.map(str::parse::<u8>) {
        None => Ok(4),
        Some(Ok(level @ 0..=7)) => Ok(level),
        Some(Ok(_) | Err(_)) => wrong(
            format!("`{text}` needs a level from 0 to 7"),
            format!("such as \"{class}:4\"; 0 is served first"),
        ),
    };
    match (class, level) {
        ("realtime" | "rt", _) => level_of().map(IoPriority::RealTime),
        ("best-effort" | "be", _) => level_of().map(IoPriority::BestEffort),
        ("idle", None) => Ok(IoPriority::Idle),
        ("idle", Some(_)) => wrong("`idle` has no level".to_owned(), "write \"idle\""),
        (_, _) => wrong(
            format!("`{class}` is not a class of io priority"),
            match nearest(class, ["realtime", "best-effort", "idle"]) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "write \"best-effort:4\", \"idle\" or \"realtime:0\"".to_owned(),
            },
        ),
    }
}

/// `50%` → 50.
pub fn percent(text: &str, most: u32) -> Result<u32, Wrong> {
    let remedy = "write percent of one CPU: \"50%\" is half of one, \"200%\" two";
    let Some(digits) = text.trim().strip_suffix('%') else {
        return wrong(format!("`{text}` is not a percentage"), remedy);
    };
    match digits.trim().parse::<u32>() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        Ok(_) => wrong(format!("`{text}` is out of range (1% to {most}%)"), remedy),
        Err(_) => wrong(format!("`{text}` is not a percentage"), remedy),
    }
}

/// Part of a Redis key: anything that can be typed at a terminal.
pub fn key_part(text: &str) -> Result<String, Wrong> {
    match text.chars().find(|c| c.is_control()) {
        None => Ok(text.to_owned()),
        Some(c) => wrong(
            format!("part of a Redis key may not contain {c:?}"),
            "take it out",
        ),
    }
}

/// By name or by number; a text of digits is a number.
pub fn identity(text: &str) -> Result<Identity, Wrong> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        // 2^32 - 1 means "no change" to setuid(2) and its kin.
        return match text.parse::<u32>() {
            Ok(id) if id != u32::MAX => Ok(Identity::Id(id)),
            Ok(_) | Err(_) => wrong(
                format!("`{text}` is too large for a user or group number"),
                "numbers go up to 4294967294",
            ),
        };
    }
    match text
        .chars()
        .find(|c| c.is_control() || c.is_whitespace() || matches!(c, ':' | '/'))
    {
        Some(c) => wrong(
            format!("a user or group name may not contain {c:?}"),
            "write a name of /etc/passwd or /etc/group, or a number",
        ),
        None => Ok(Identity::Name(text.to_owned())),
    }
}

/// A number, a size, or `unlimited` (`None`).
pub fn limit_value(text: &str) -> Result<Option<u64>, Wrong> {
    match text.trim() {
        "unlimited" | "infinity" => Ok(None),
        other => size(other).map(Some).map_err(|w| Wrong {
            remedy: "write a number, a size such as \"8MiB\", or \"unlimited\"".to_owned(),
            ..w
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1m30s", 90_000),
            ("1h 30m", 5_400_000),
            ("0", 0),
            ("0s", 0),
            (" 3 s ", 3_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            " ",
            "s",
            "ms",
            "-1s",
            "+1s",
            "1.5s",
            "10",
            "1x",
            "1s2",
            "s1",
            "367d",
            "99999999999999999999s",
            "18446744073709551615h",
            "１s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(
            duration("10").unwrap_err().remedy,
            "write \"10s\" for seconds, \"10ms\" for milliseconds"
        );
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65_536),
            ("64KiB", 65_536),
            ("8MiB", 8_388_608),
            ("8 mib", 8_388_608),
            ("1GiB", 1_073_741_824),
            ("2kB", 2_000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "-1",
            "1.5MiB",
            "MiB",
            "1XB",
            "18446744073709551616",
            "99999999TiB",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(cpu_list("0-3,5"), Ok(vec![0, 1, 2, 3, 5]));
        assert_eq!(cpu_list("7, 1-2 ,2"), Ok(vec![1, 2, 7]));
        for text in [
            "",
            ",",
            "3-1",
            "a",
            "1-",
            "-1",
            "1024",
            "0-99999999999",
            "0,,1",
        ] {
            assert!(cpu_list(text).is_err(), "{text}");
        }
    }

    #[test]
    fn modes_and_policies() {
        assert_eq!(umask("022"), Ok(0o22));
        assert_eq!(umask("0o077"), Ok(0o77));
        for text in ["", "8", "1000", "+22", "-1", "rwx"] {
            assert!(umask(text).is_err(), "{text}");
        }
        assert_eq!(scheduling("fifo:10"), Ok(Scheduling::Fifo(10)));
        assert_eq!(scheduling("rr:99"), Ok(Scheduling::RoundRobin(99)));
        assert_eq!(scheduling("idle"), Ok(Scheduling::Idle));
        for text in ["fifo", "fifo:0", "fifo:100", "batch:1", "deadline", ""] {
            assert!(scheduling(text).is_err(), "{text}");
        }
    }

    #[test]
    fn identities() {
        assert_eq!(identity("archer"), Ok(Identity::Name("archer".into())));
        assert_eq!(identity("1000"), Ok(Identity::Id(1000)));
        for text in ["4294967295", "99999999999", "a b", "a:b"] {
            assert!(identity(text).is_err(), "{text}");
        }
    }
}
