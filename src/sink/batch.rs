//! entries → XADD commands.
//!
//! What does not change from line to line of a stream is encoded once; a line costs copies
//! into the output buffer and no allocation.

use bytes::Bytes;

use super::id::EntryId;
use super::resp::{array_header, bulk_string, decimal, decimal_width};
use crate::record::{Keep, Source, Trim};

/// The constant parts of one stream's XADDs.
#[derive(Debug)]
pub struct Header {
    /// `$4 XADD $n <key>`
    command: Vec<u8>,
    /// `$6 MAXLEN $1 ~ $n <max_len>`; empty when the length is unbounded.
    trim: Vec<u8>,
    /// `$5 MINID $1 ~`; empty when the age is unbounded.
    age: Vec<u8>,
    max_age_ms: u64,
}

/// Whether this XADD also trims. It need not on every one: `~` is approximate anyway, and a
/// batch's last entry does (about a tenth of Redis' time is saved).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trimming {
    Length,
    /// Entries below this millisecond.
    Age(u64),
    Later,
}

impl Header {
    pub fn new(key: &str, trim: Trim, keep: Keep) -> Header {
        let mut command = Vec::new();
        bulk_string(&mut command, b"XADD");
        bulk_string(&mut command, key.as_bytes());
        let strictly: &[u8] = if keep.exact { b"=" } else { b"~" };
        let mut encoded = Vec::new();
        if trim.max_len > 0 {
            bulk_string(&mut encoded, b"MAXLEN");
            bulk_string(&mut encoded, strictly);
            bulk_string(&mut encoded, trim.max_len.to_string().as_bytes());
        }
        let mut age = Vec::new();
        if keep.max_age_ms > 0 {
            bulk_string(&mut age, b"MINID");
            bulk_string(&mut age, strictly);
        }
        Header {
            command,
            trim: encoded,
            age,
            max_age_ms: keep.max_age_ms,
        }
    }

    /// How the entry at this place in the stream trims, when it does. One XADD takes only
    /// one of length and age: where both are bounded they alternate.
    pub fn trimming(&self, order: u64, id_ms: u64) -> Trimming {
        let age = Trimming::Age(id_ms.saturating_sub(self.max_age_ms));
        match (self.trim.is_empty(), self.age.is_empty()) {
            (true, true) => Trimming::Later,
            (false, true) => Trimming::Length,
            (true, false) => age,
            (false, false) if order.is_multiple_of(2) => Trimming::Length,
            (false, false) => age,
        }
    }

    fn begin(&self, out: &mut Vec<u8>, fields: usize, trimming: Trimming, id: Option<EntryId>) {
        let trim: &[u8] = match trimming {
            Trimming::Length => &self.trim,
            Trimming::Age(_) => &self.age,
            Trimming::Later => &[],
        };
        let trim_arguments = if trim.is_empty() { 0 } else { 3 };
        array_header(out, 3 + trim_arguments + 2 * fields);
        out.extend_from_slice(&self.command);
        out.extend_from_slice(trim);
        if let Trimming::Age(below) = trimming {
            out.push(b'$');
            decimal(out, decimal_width(below) as u64);
            out.extend_from_slice(b"\r\n");
            decimal(out, below);
            out.extend_from_slice(b"\r\n");
        }
        match id {
            Some(id) => {
                out.push(b'$');
                let width = decimal_width(id.ms) + 1 + decimal_width(id.seq);
                decimal(out, width as u64);
                out.extend_from_slice(b"\r\n");
                decimal(out, id.ms);
                out.push(b'-');
                decimal(out, id.seq);
                out.extend_from_slice(b"\r\n");
            }
            None => out.extend_from_slice(b"$1\r\n*\r\n"),
        }
    }
}

/// A service's line as the sink sends it.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    pub message: &'a [u8],
    pub source: Source,
    pub partial: bool,
    /// The field `ts`, where the ID does not tell when the line was read.
    pub ts: Option<u64>,
}

/// Appends one line. `id` is `None` where Redis gives the ID.
pub fn line(
    out: &mut Vec<u8>,
    header: &Header,
    trimming: Trimming,
    id: Option<EntryId>,
    line: &Line<'_>,
) {
    let fields = 2 + usize::from(line.partial) + usize::from(line.ts.is_some());
    header.begin(out, fields, trimming, id);
    out.extend_from_slice(b"$7\r\nmessage\r\n");
    bulk_string(out, line.message);
    out.extend_from_slice(match line.source {
        Source::Stdout => b"$6\r\nsource\r\n$6\r\nstdout\r\n",
        Source::Stderr => b"$6\r\nsource\r\n$6\r\nstderr\r\n",
    });
    if line.partial {
        out.extend_from_slice(b"$7\r\npartial\r\n$1\r\n1\r\n");
    }
    timestamp(out, line.ts);
}

/// Appends one entry of any stream.
pub fn entry(
    out: &mut Vec<u8>,
    header: &Header,
    trimming: Trimming,
    id: Option<EntryId>,
    message: &[u8],
    fields: &[(&'static str, Bytes)],
    ts: Option<u64>,
) {
    let count = 1 + fields.len() + usize::from(ts.is_some());
    header.begin(out, count, trimming, id);
    out.extend_from_slice(b"$7\r\nmessage\r\n");
    bulk_string(out, message);
    for (name, value) in fields {
        bulk_string(out, name.as_bytes());
        bulk_string(out, value);
    }
    timestamp(out, ts);
}

fn timestamp(out: &mut Vec<u8>, ts: Option<u64>) {
    if let Some(ts) = ts {
        out.extend_from_slice(b"$2\r\nts\r\n$");
        decimal(out, decimal_width(ts) as u64);
        out.extend_from_slice(b"\r\n");
        decimal(out, ts);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::super::resp::{Reply, parse};
    use super::*;

    fn words(bytes: &[u8]) -> Vec<String> {
        match parse(bytes) {
            Ok(Some((Reply::Array(items), used))) if used == bytes.len() => items
                .iter()
                .map(|item| match item {
                    Reply::Text(text) => String::from_utf8_lossy(text).into_owned(),
                    other => panic!("{other:?}"),
                })
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_line_is_one_well_formed_command() {
        let header = Header::new("logs:app:x:info", Trim { max_len: 1000 }, Keep::default());
        let mut out = Vec::new();
        let id = Some(EntryId { ms: 17, seq: 2000 });
        let mut wanted = Line {
            message: b"hello",
            source: Source::Stderr,
            partial: true,
            ts: Some(9),
        };
        line(&mut out, &header, Trimming::Length, id, &wanted);
        assert_eq!(
            words(&out).join(" "),
            "XADD logs:app:x:info MAXLEN ~ 1000 17-2000 \
             message hello source stderr partial 1 ts 9"
        );
        out.clear();
        wanted.partial = false;
        wanted.ts = None;
        line(&mut out, &header, Trimming::Later, None, &wanted);
        assert_eq!(
            words(&out).join(" "),
            "XADD logs:app:x:info * message hello source stderr"
        );
    }

    #[test]
    fn length_and_age_alternate() {
        let keep = Keep {
            max_age_ms: 1_000,
            exact: true,
        };
        let header = Header::new("k", Trim { max_len: 7 }, keep);
        let mut out = Vec::new();
        entry(
            &mut out,
            &header,
            header.trimming(4, 9_000),
            None,
            b"m",
            &[],
            None,
        );
        assert_eq!(words(&out).join(" "), "XADD k MAXLEN = 7 * message m");
        out.clear();
        entry(
            &mut out,
            &header,
            header.trimming(5, 9_000),
            None,
            b"m",
            &[],
            None,
        );
        assert_eq!(words(&out).join(" "), "XADD k MINID = 8000 * message m");
        let only_age = Header::new("k", Trim { max_len: 0 }, keep);
        assert_eq!(only_age.trimming(4, 9_000), Trimming::Age(8_000));
    }

    #[test]
    fn an_unbounded_stream_is_never_trimmed() {
        let header = Header::new("k", Trim { max_len: 0 }, Keep::default());
        let mut out = Vec::new();
        let fields = [("event", Bytes::from_static(b"start"))];
        assert_eq!(header.trimming(0, 5), Trimming::Later);
        entry(
            &mut out,
            &header,
            Trimming::Later,
            None,
            b"m",
            &fields,
            None,
        );
        assert_eq!(words(&out).join(" "), "XADD k * message m event start");
    }
}
