//! texts of /proc/PID → mappings, names, ids, signal masks.
//!
//! Source: proc(5). What cannot be read is absent, and makes the capture poorer, not impossible.

use crate::crash::core_write;

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    pub start: u64,
    pub end: u64,
    /// Bytes from the beginning of the file.
    pub offset: u64,
    pub read: bool,
    pub write: bool,
    pub execute: bool,
    pub private: bool,
    pub backing: Backing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    Anonymous,
    /// `[stack]`, `[heap]`, `[vdso]`, `[anon:…]`.
    Special(String),
    /// With the kernel's ` (deleted)`.
    File(Vec<u8>),
}

impl Area {
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }

    pub fn is(&self, special: &str) -> bool {
        matches!(&self.backing, Backing::Special(name) if name == special)
    }

    pub fn file(&self) -> Option<&[u8]> {
        match &self.backing {
            Backing::File(path) => Some(path),
            Backing::Anonymous | Backing::Special(_) => None,
        }
    }

    pub fn mapping(&self) -> core_write::Mapping {
        core_write::Mapping {
            start: self.start,
            end: self.end,
            offset: self.offset,
            read: self.read,
            write: self.write,
            execute: self.execute,
            path: self.file().map(<[u8]>::to_vec),
        }
    }
}

pub fn areas(maps: &[u8]) -> Vec<Area> {
    maps.split(|byte| *byte == b'\n').filter_map(area).collect()
}

/// `START-END PERMS OFFSET DEV INODE   PATH`; a path may hold blanks.
fn area(line: &[u8]) -> Option<Area> {
    let (range, rest) = word(line)?;
    let (permissions, rest) = word(rest)?;
    let (offset, rest) = word(rest)?;
    let (_device, rest) = word(rest)?;
    let (_inode, rest) = word(rest)?;
    let path = rest.trim_ascii_start();
    let (start, end) = std::str::from_utf8(range).ok()?.split_once('-')?;
    let has = |index: usize, flag: u8| permissions.get(index) == Some(&flag);
    Some(Area {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        offset: u64::from_str_radix(std::str::from_utf8(offset).ok()?, 16).ok()?,
        read: has(0, b'r'),
        write: has(1, b'w'),
        execute: has(2, b'x'),
        private: has(3, b'p'),
        backing: match path.first() {
            None => Backing::Anonymous,
            Some(b'[') => Backing::Special(String::from_utf8_lossy(path).into_owned()),
            Some(_) => Backing::File(unescaped(path)),
        },
    })
}

/// The kernel writes a line break as `\012`, and nothing else in another way (`seq_file_path` in `show_map_vma`).
fn unescaped(path: &[u8]) -> Vec<u8> {
    const BREAK: &[u8] = b"\\012";
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.windows(BREAK.len()).position(|part| part == BREAK) {
        plain.extend_from_slice(&rest[..at]);
        plain.push(b'\n');
        rest = &rest[at + BREAK.len()..];
    }
    plain.extend_from_slice(rest);
    plain
}

fn word(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.trim_ascii_start();
    if line.is_empty() {
        return None;
    }
    let end = line.iter().position(|byte| *byte == b' ');
    Some(line.split_at(end.unwrap_or(line.len())))
}

/// The value of a line of `/proc/PID/status`.
pub fn field<'t>(status: &'t str, name: &str) -> Option<&'t str> {
    status.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix(':')?;
        Some(value.trim())
    })
}

/// The first number of such a value.
pub fn number(status: &str, name: &str) -> Option<u32> {
    field(status, name)?.split_whitespace().next()?.parse().ok()
}

/// Whether `signal` would end the process: neither caught nor ignored. Unknown is no.
pub fn is_fatal(status: &str, signal: i32) -> bool {
    let bit = |name: &str| -> Option<bool> {
        let set = u64::from_str_radix(field(status, name)?, 16).ok()?;
        let shift = u32::try_from(signal).ok()?.checked_sub(1)?;
        Some(set.checked_shr(shift)? & 1 == 1)
    };
    bit("SigCgt") == Some(false) && bit("SigIgn") == Some(false)
}

/// Process group and session of `/proc/PID/stat`; the name in field 2 may hold brackets.
pub fn group_and_session(stat: &str) -> Option<(u32, u32)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps() {
        // From proc(5), and a path with blanks.
        let text =
            b"00400000-00452000 r-xp 00001000 08:02 173521      /usr/bin/dbus daemon (deleted)\n\
            00e03000-00e24000 rw-p 00000000 00:00 0           [heap]\n\
            35b1a21000-35b1a22000 rw-s 00000000 00:00 0 \n";
        let areas = areas(text);
        assert_eq!(areas.len(), 3);
        assert_eq!(
            areas[0].file(),
            Some(&b"/usr/bin/dbus daemon (deleted)"[..])
        );
        assert_eq!(
            (areas[0].start, areas[0].end, areas[0].offset),
            (0x400000, 0x452000, 0x1000)
        );
        assert!(areas[0].execute && areas[0].private && !areas[0].write);
        assert!(areas[1].is("[heap]"));
        assert_eq!(areas[2].backing, Backing::Anonymous);
        assert!(!areas[2].private);
    }

    #[test]
    fn a_line_break_in_a_path() {
        let areas = areas(b"1000-2000 r-xp 00000000 08:02 7    /a b\\012c\\012\n");
        assert_eq!(areas[0].file(), Some(&b"/a b\nc\n"[..]));
    }

    #[test]
    fn a_signal_is_fatal_where_it_is_neither_caught_nor_ignored() {
        // SIGSEGV is bit 10, SIGABRT bit 5.
        let status = "Name:\tx\nPPid:\t7\nSigIgn:\t0000000000000020\nSigCgt:\t0000000000000400\n";
        assert!(!is_fatal(status, 11));
        assert!(!is_fatal(status, 6));
        assert!(is_fatal(status, 7));
        assert!(!is_fatal("", 7));
        assert_eq!(number(status, "PPid"), Some(7));
    }

    #[test]
    fn brackets_in_a_name() {
        let stat = "41 (a) b) S 1 40 39 0 -1 4194560";
        assert_eq!(group_and_session(stat), Some((40, 39)));
    }
}
