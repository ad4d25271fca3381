//! `redis://user:pass@host:6379/1`, `unix:///run/redis.sock`, `host:6379` → where Redis is.
//!
//! URLs as the IANA registration of `redis` describes them; user and password are percent
//! decoded. Messages never repeat a password.

use std::path::PathBuf;

use super::Endpoint;
use super::units::Wrong;
use crate::nearest::nearest;

pub const DEFAULT_PORT: u16 = 6379;

/// What a URL says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub endpoint: Endpoint,
    pub username: Option<String>,
    pub password: Option<String>,
    pub db: Option<u32>,
    pub transport: Transport,
}

/// `redis://` or `rediss://`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Plain,
    Tls,
}

fn wrong<T>(message: impl Into<String>, remedy: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong {
        message: message.into(),
        remedy: remedy.into(),
    })
}

const FORM: &str = "write redis://[user:password@]host[:port][/db] or unix:///path";

pub fn url(text: &str) -> Result<Address, Wrong> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return wrong("the URL has no scheme", FORM);
    };
    if rest.contains(['?', '#']) {
        return wrong("a URL with `?` or `#` is not understood", FORM);
    }
    match scheme {
        "redis" | "tcp" => tcp_url(rest, Transport::Plain),
        "rediss" => tcp_url(rest, Transport::Tls),
        "unix" | "redis+unix" => unix_url(rest),
        other => wrong(
            format!("`{other}://` is not a kind of Redis URL"),
            match nearest(other, ["redis", "rediss", "unix"]) {
                Some(near) => format!("did you mean `{near}://`?"),
                None => FORM.to_owned(),
            },
        ),
    }
}

fn unix_url(rest: &str) -> Result<Address, Wrong> {
    if !rest.starts_with('/') || rest.len() == 1 {
        return wrong(
            "the path of a Unix socket begins with `/`",
            "write unix:///run/redis.sock, with three slashes",
        );
    }
    Ok(Address {
        endpoint: Endpoint::Unix(PathBuf::from(decode(rest)?)),
        username: None,
        password: None,
        db: None,
        transport: Transport::Plain,
    })
}

fn tcp_url(rest: &str, transport: Transport) -> Result<Address, Wrong> {
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => (Some(user), rest),
        None => (None, rest),
    };
    let (address, db) = match rest.split_once('/') {
        Some((address, "")) => (address, None),
        Some((address, db)) => match db.parse::<u32>() {
            Ok(db) => (address, Some(db)),
            Err(_) => return wrong(format!("`{db}` is not a database number"), FORM),
        },
        None => (rest, None),
    };
    let (username, password) = match user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
        Some((name, password)) => (filled(decode(name)?), filled(decode(password)?)),
        None => (None, None),
    };
    Ok(Address {
        endpoint: host_and_port(address)?,
        username,
        password,
        db,
        transport,
    })
}

fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// `host:port`, `host`, `[::1]:6379`; without a host `localhost`.
pub fn host_and_port(text: &str) -> Result<Endpoint, Wrong> {
    if text.contains("://") {
        return wrong("this is a URL, not an address", "write host:port");
    }
    let (name, number) = if let Some(rest) = text.strip_prefix('[') {
        match rest.split_once(']') {
            Some((name, "")) => (name, None),
            Some((name, after)) if after.starts_with(':') => (name, Some(&after[1..])),
            Some(_) | None => return wrong("the `[` is not closed", "write [::1]:6379"),
        }
    } else {
        match text.split_once(':') {
            // More than one colon: an IPv6 address without a port.
            Some((_, after)) if after.contains(':') => (text, None),
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        }
    };
    let name = if name.is_empty() { "localhost" } else { name };
    let port = match number {
        Some(number) => port(number)?,
        None => DEFAULT_PORT,
    };
    Ok(Endpoint::Tcp {
        host: host(name)?,
        port,
    })
}

fn port(text: &str) -> Result<u16, Wrong> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        Ok(_) | Err(_) => wrong(
            format!("`{text}` is not a port"),
            "ports go from 1 to 65535",
        ),
    }
}

/// A host name or an IP address, without brackets.
pub fn host(text: &str) -> Result<String, Wrong> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    if let Some(c) = bare
        .chars()
        .find(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | '@' | '[' | ']'))
    {
        return wrong(
            format!("a host name may not contain {c:?}"),
            "write a name such as \"localhost\" or an IP address",
        );
    }
    match bare.split_once(':') {
        Some((name, port)) if !port.contains(':') => wrong(
            "the port does not belong into `host`",
            format!("write host = \"{name}\" and port = {port}"),
        ),
        Some(_) | None => Ok(bare.to_owned()),
    }
}

/// `%41` → `A` (RFC 3986 section 2.1).
fn decode(text: &str) -> Result<String, Wrong> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digit = |at: usize| after.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (digit(0), digit(1)) {
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            (_, _) => {
                return wrong(
                    "a `%` is not followed by two hexadecimal digits",
                    "a `%` itself is written `%25`",
                );
            }
        }
        rest = &after[2..];
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        Ok(_) => wrong("the URL contains a NUL character", FORM),
        Err(_) => wrong("the URL is not UTF-8 once decoded", FORM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    #[test]
    fn urls() {
        let full = url("redis://bob:p%40ss@db.local:6380/3").unwrap();
        assert_eq!(full.endpoint, tcp("db.local", 6380));
        assert_eq!(full.username.as_deref(), Some("bob"));
        assert_eq!(full.password.as_deref(), Some("p@ss"));
        assert_eq!(full.db, Some(3));
        let bare = url("redis://localhost").unwrap();
        assert_eq!(bare.endpoint, tcp("localhost", 6379));
        assert_eq!((bare.username, bare.password, bare.db), (None, None, None));
        assert_eq!(url("rediss://h").unwrap().transport, Transport::Tls);
        assert_eq!(url("redis://:x@h/").unwrap().password.as_deref(), Some("x"));
        assert_eq!(url("redis://[::1]:7").unwrap().endpoint, tcp("::1", 7));
        assert_eq!(
            url("unix:///run/redis.sock").unwrap().endpoint,
            Endpoint::Unix("/run/redis.sock".into())
        );
    }

    #[test]
    fn urls_that_are_none() {
        for (text, message) in [
            ("localhost:6379", "the URL has no scheme"),
            ("http://h", "`http://` is not a kind of Redis URL"),
            ("redis://h:0", "`0` is not a port"),
            ("redis://h:65536", "`65536` is not a port"),
            ("redis://h/x", "`x` is not a database number"),
            ("redis://h?db=1", "a URL with `?` or `#` is not understood"),
            ("unix://run/x", "the path of a Unix socket begins with `/`"),
            (
                "redis://a:%4@h",
                "a `%` is not followed by two hexadecimal digits",
            ),
            ("redis://a:%00@h", "the URL contains a NUL character"),
        ] {
            assert_eq!(url(text).unwrap_err().message, message, "{text}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(host_and_port("h:1"), Ok(tcp("h", 1)));
        assert_eq!(host_and_port("h"), Ok(tcp("h", 6379)));
        assert_eq!(host_and_port(":6380"), Ok(tcp("localhost", 6380)));
        assert_eq!(host_and_port("::1"), Ok(tcp("::1", 6379)));
        assert_eq!(host_and_port("[fe80::1]:9"), Ok(tcp("fe80::1", 9)));
        for text in ["h:", "h:x", "[::1", "[::1]9", "redis://h", "a b:1"] {
            assert!(host_and_port(text).is_err(), "{text}");
        }
    }
}
