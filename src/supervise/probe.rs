//! where to ask → whether it answers as something that is ready.
//!
//! One question each, without a limit of its own: who asks gives it one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::lifecycle::Address;
use crate::handoff::{Answer, AskRedis};

/// Whether a connection is accepted.
pub async fn tcp(at: &Address) -> bool {
    connect(at).await.is_some()
}

async fn connect(at: &Address) -> Option<TcpStream> {
    if let Ok(ip) = at.host.parse::<IpAddr>() {
        return TcpStream::connect(SocketAddr::new(ip, at.port)).await.ok();
    }
    // A container may have no hosts file.
    if at.host.eq_ignore_ascii_case("localhost") {
        for ip in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ] {
            if let Ok(stream) = TcpStream::connect(SocketAddr::new(ip, at.port)).await {
                return Some(stream);
            }
        }
        return None;
    }
    TcpStream::connect((at.host.as_str(), at.port)).await.ok()
}

/// Whether a GET is answered with a status from 200 to 399 (RFC 9112).
pub async fn http(at: &Address, path: &str) -> bool {
    let Some(mut stream) = connect(at).await else {
        return false;
    };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {at}\r\nUser-Agent: agent\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    );
    if stream.write_all(request.as_bytes()).await.is_err() {
        return false;
    }
    // `HTTP/1.1 200`: the first twelve bytes say it.
    let mut start = [0u8; 12];
    if stream.read_exact(&mut start).await.is_err() {
        return false;
    }
    let status = std::str::from_utf8(&start).ok().and_then(|start| {
        let rest = start.strip_prefix("HTTP/1.")?;
        rest.get(2..5)?.parse::<u16>().ok()
    });
    status.is_some_and(|status| (200..400).contains(&status))
}

/// Asked of Redis as everything else is: TLS, names, sentinels.
#[derive(Clone)]
pub struct Keys {
    pub ask: AskRedis,
    /// Before every key.
    pub prefix: String,
}

impl Keys {
    /// Whether the key holds something other than nothing, 0 and the empty text.
    pub async fn is_set(&self, key: &str) -> bool {
        let command = vec!["GET".to_owned(), format!("{}{key}", self.prefix)];
        match (self.ask)(vec![command]).await.as_deref() {
            Ok([answer]) => says_something(answer),
            Ok(_) | Err(_) => false,
        }
    }
}

fn says_something(answer: &Answer) -> bool {
    match answer {
        Answer::Nothing => false,
        Answer::Text(text) => !matches!(text.as_slice(), b"" | b"0"),
        Answer::Integer(number) => *number != 0,
        // A key of another type is there.
        Answer::Refused(why) => why.starts_with("WRONGTYPE"),
        Answer::Other => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_answers() {
        let text = |text: &str| Answer::Text(text.into());
        let refused = |why: &str| Answer::Refused(why.to_owned());
        for (answer, expected) in [
            (Answer::Nothing, false),
            (text("0"), false),
            (text(""), false),
            (text("1"), true),
            (text("hello"), true),
            (refused("NOPERM this user has no permissions"), false),
            (refused("WRONGTYPE Operation against a key"), true),
        ] {
            assert_eq!(says_something(&answer), expected, "{answer:?}");
        }
    }
}
