//! commands → bytes, bytes → replies: the Redis serialization protocol.
//!
//! Encoding is a command as an array of bulk strings, the only form a server has to accept.
//! Decoding understands RESP2 and RESP3 and borrows from the read buffer: the reply to an
//! `XADD`, the one reply that comes a million times, is found without an allocation. Input
//! is untrusted: depth and sizes are bounded, and nonsense is an error, never a panic.
//! Source: <https://redis.io/docs/latest/develop/reference/protocol-spec/>

use std::fmt;

/// One reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply<'a> {
    /// `+OK`, a bulk string, a verbatim string or a double: text.
    Text(&'a [u8]),
    /// `-ERR …` without the `-`.
    Error(&'a [u8]),
    Integer(i64),
    Nil,
    /// An array, set, push, or a map as key, value, key, value.
    Array(Vec<Reply<'a>>),
}

/// The peer does not speak the protocol; the connection is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a Redis reply: {}", self.0)
    }
}

/// No reply to a command of ours nests deeper (`XINFO STREAM`: 3).
const MAX_DEPTH: usize = 8;
/// Redis' own bound of a bulk string.
const MAX_BULK: usize = 512 << 20;
/// A length or a number, and its line end, fit.
const MAX_HEADER: usize = 64 << 10;

/// The first reply in `bytes` and its length there, or `None` while it is incomplete.
pub fn parse(bytes: &[u8]) -> Result<Option<(Reply<'_>, usize)>, Malformed> {
    parse_at(bytes, 0, 0)
}

fn parse_at(
    bytes: &[u8],
    start: usize,
    depth: usize,
) -> Result<Option<(Reply<'_>, usize)>, Malformed> {
    if depth > MAX_DEPTH {
        return Err(Malformed("nested too deep"));
    }
    let Some(&kind) = bytes.get(start) else {
        return Ok(None);
    };
    let rest = bytes.get(start + 1..).unwrap_or_default();
    let Some(end) = memchr::memchr(b'\r', rest) else {
        return if rest.len() > MAX_HEADER {
            Err(Malformed("endless line"))
        } else {
            Ok(None)
        };
    };
    let line = rest.get(..end).unwrap_or_default();
    let next = start + 1 + end + 2;
    if bytes.len() < next {
        return Ok(None);
    }
    match kind {
        b'+' | b',' | b'(' => Ok(Some((Reply::Text(line), next))),
        b'-' => Ok(Some((Reply::Error(line), next))),
        b':' => Ok(Some((Reply::Integer(integer(line)?), next))),
        b'#' => Ok(Some((Reply::Integer(i64::from(line == b"t")), next))),
        b'_' => Ok(Some((Reply::Nil, next))),
        b'$' | b'=' | b'!' => bulk(bytes, kind, line, next),
        b'*' | b'~' | b'>' | b'%' => aggregate(bytes, kind, line, next, depth),
        _ => Err(Malformed("unknown type byte")),
    }
}

fn bulk<'a>(
    bytes: &'a [u8],
    kind: u8,
    line: &[u8],
    next: usize,
) -> Result<Option<(Reply<'a>, usize)>, Malformed> {
    let length = integer(line)?;
    if length == -1 {
        return Ok(Some((Reply::Nil, next)));
    }
    let length = usize::try_from(length)
        .ok()
        .filter(|length| *length <= MAX_BULK)
        .ok_or(Malformed("bulk length out of range"))?;
    if bytes.len() < next + length + 2 {
        return Ok(None);
    }
    let text = bytes.get(next..next + length).unwrap_or_default();
    let end = next + length + 2;
    Ok(Some(match kind {
        b'!' => (Reply::Error(text), end),
        // A verbatim string begins with its format: `txt:`.
        b'=' => (Reply::Text(text.get(4..).unwrap_or_default()), end),
        _ => (Reply::Text(text), end),
    }))
}

fn aggregate<'a>(
    bytes: &'a [u8],
    kind: u8,
    line: &[u8],
    next: usize,
    depth: usize,
) -> Result<Option<(Reply<'a>, usize)>, Malformed> {
    let count = integer(line)?;
    if count == -1 {
        return Ok(Some((Reply::Nil, next)));
    }
    let count = usize::try_from(count)
        .ok()
        .and_then(|count| count.checked_mul(if kind == b'%' { 2 } else { 1 }))
        .filter(|count| *count <= MAX_BULK)
        .ok_or(Malformed("element count out of range"))?;
    // The count is the peer's word: grow with what is really there.
    let mut items = Vec::with_capacity(count.min(64));
    let mut at = next;
    for _ in 0..count {
        match parse_at(bytes, at, depth + 1)? {
            Some((item, after)) => {
                items.push(item);
                at = after;
            }
            None => return Ok(None),
        }
    }
    Ok(Some((Reply::Array(items), at)))
}

fn integer(line: &[u8]) -> Result<i64, Malformed> {
    std::str::from_utf8(line)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(Malformed("not an integer"))
}

/// Appends one command.
pub fn command(out: &mut Vec<u8>, arguments: &[&[u8]]) {
    array_header(out, arguments.len());
    for argument in arguments {
        bulk_string(out, argument);
    }
}

/// Appends `*count\r\n`; that many [`bulk_string`]s follow.
pub fn array_header(out: &mut Vec<u8>, count: usize) {
    out.push(b'*');
    decimal(out, count as u64);
    out.extend_from_slice(b"\r\n");
}

pub fn bulk_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'$');
    decimal(out, text.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

/// Appends a number in decimal digits; without the formatting machinery, for the hot path.
pub fn decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// How many decimal digits a number has.
pub fn decimal_width(number: u64) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> Reply<'_> {
        match parse(bytes) {
            Ok(Some((reply, used))) if used == bytes.len() => reply,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_type_of_the_specification() {
        assert_eq!(whole(b"+OK\r\n"), Reply::Text(b"OK"));
        assert_eq!(whole(b"-ERR no\r\n"), Reply::Error(b"ERR no"));
        assert_eq!(whole(b":-7\r\n"), Reply::Integer(-7));
        assert_eq!(whole(b"$5\r\nhe\r\no\r\n"), Reply::Text(b"he\r\no"));
        assert_eq!(whole(b"$-1\r\n"), Reply::Nil);
        assert_eq!(whole(b"_\r\n"), Reply::Nil);
        assert_eq!(whole(b"#t\r\n"), Reply::Integer(1));
        assert_eq!(whole(b",1.5\r\n"), Reply::Text(b"1.5"));
        assert_eq!(whole(b"=7\r\ntxt:abc\r\n"), Reply::Text(b"abc"));
        assert_eq!(whole(b"!5\r\nERR x\r\n"), Reply::Error(b"ERR x"));
        assert_eq!(
            whole(b"%1\r\n+k\r\n*2\r\n:1\r\n$0\r\n\r\n"),
            Reply::Array(vec![
                Reply::Text(b"k"),
                Reply::Array(vec![Reply::Integer(1), Reply::Text(b"")]),
            ])
        );
    }

    #[test]
    fn every_prefix_is_incomplete() {
        let text = b"*3\r\n$3\r\nabc\r\n:12\r\n%1\r\n+a\r\n-ERR b\r\n";
        for cut in 0..text.len() {
            assert_eq!(parse(&text[..cut]), Ok(None), "cut at {cut}");
        }
        whole(text);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            &b"HTTP/1.1 200\r\n"[..],
            b"$99999999999999999999\r\n",
            b"$-2\r\n",
            b"*1000000000000\r\n",
            b":x\r\n",
        ] {
            assert!(parse(text).is_err(), "{:?}", String::from_utf8_lossy(text));
        }
        let deep = b"*1\r\n".repeat(40);
        assert!(parse(&deep).is_err());
        assert!(parse(&vec![b'+'; MAX_HEADER + 10]).is_err());
    }

    #[test]
    fn any_bytes_are_survived() {
        let mut seed = 1u64;
        let alphabet = b"*$+-:%~>_#,=!(0123456789\r\n\r\nabc";
        for _ in 0..200_000 {
            let mut bytes = Vec::new();
            for _ in 0..24 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                bytes.push(alphabet[(seed % alphabet.len() as u64) as usize]);
            }
            if let Ok(Some((_, used))) = parse(&bytes) {
                assert!(used <= bytes.len());
            }
        }
    }

    #[test]
    fn commands_read_back() {
        let mut out = Vec::new();
        command(&mut out, &[b"SET", b"k\r\n", b""]);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$3\r\nk\r\n\r\n$0\r\n\r\n");
        for number in [0, 9, 10, 99, 100, 12_345, u64::MAX] {
            let mut digits = Vec::new();
            decimal(&mut digits, number);
            assert_eq!(digits, number.to_string().into_bytes());
            assert_eq!(digits.len(), decimal_width(number));
        }
    }
}
