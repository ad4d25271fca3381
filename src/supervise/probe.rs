//! where to ask → whether it answers as something that is ready.
//!
//! One question each, without a limit of its own: who asks gives it one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::lifecycle::Address;
use crate::config::{Endpoint, Redis, Secret};

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

/// Whether the key holds something other than nothing, 0 and the empty text.
pub async fn key(redis: &Redis, key: &str) -> bool {
    let password = match &redis.password {
        None => None,
        Some(Secret::Inline(password)) => Some(password.clone()),
        Some(Secret::File(path)) => match std::fs::read_to_string(path) {
            Ok(text) => Some(text.trim().to_owned()),
            Err(_) => return false,
        },
    };
    let mut commands = Vec::new();
    if let Some(password) = &password {
        match redis.username.as_str() {
            "" => commands.push(vec!["AUTH", password]),
            name => commands.push(vec!["AUTH", name, password]),
        }
    }
    let db = redis.value_db.to_string();
    commands.push(vec!["SELECT", &db]);
    let full = format!("{}{key}", redis.key_prefix);
    commands.push(vec!["GET", &full]);
    match &redis.endpoint {
        Endpoint::Tcp { host, port } => {
            let at = Address {
                host: host.clone(),
                port: *port,
            };
            match connect(&at).await {
                Some(stream) => talk(stream, &commands).await,
                None => false,
            }
        }
        Endpoint::Unix(path) => match tokio::net::UnixStream::connect(path).await {
            Ok(stream) => talk(stream, &commands).await,
            Err(_) => false,
        },
        Endpoint::None => false,
    }
}

/// Sends all commands at once; the last one's reply is what counts.
async fn talk<S>(mut stream: S, commands: &[Vec<&str>]) -> bool
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut request = String::new();
    for command in commands {
        request.push_str(&format!("*{}\r\n", command.len()));
        for part in command {
            request.push_str(&format!("${}\r\n{part}\r\n", part.len()));
        }
    }
    if stream.write_all(request.as_bytes()).await.is_err() {
        return false;
    }
    let mut reply = Vec::new();
    let mut bytes = [0u8; 512];
    loop {
        match stream.read(&mut bytes).await {
            Ok(0) | Err(_) => return false,
            Ok(count) => reply.extend_from_slice(&bytes[..count]),
        }
        if let Some(set) = is_set(&reply, commands.len()) {
            return set;
        }
    }
}

/// What the last of `count` replies says; `None` while it is not there yet. All but the last
/// are a line each.
fn is_set(reply: &[u8], count: usize) -> Option<bool> {
    let mut lines = reply.split(|&byte| byte == b'\n');
    for _ in 1..count {
        if lines.next()?.starts_with(b"-") {
            return Some(false);
        }
    }
    let head = lines.next()?;
    if !head.ends_with(b"\r") {
        return None;
    }
    match head {
        b"$-1\r" | b"_\r" | b"$0\r" => Some(false),
        // Also an error: a key of another type is there, but says nothing.
        head if head.starts_with(b"-") => Some(head.starts_with(b"-WRONGTYPE")),
        b"$1\r" => lines
            .next()
            .filter(|text| !text.is_empty())
            .map(|text| text[0] != b'0'),
        _ => Some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::is_set;

    #[test]
    fn what_redis_answers() {
        for (reply, expected) in [
            (&b"+OK\r\n$-1\r\n"[..], Some(false)),
            (b"+OK\r\n$1\r\n0\r\n", Some(false)),
            (b"+OK\r\n$1\r\n1\r\n", Some(true)),
            (b"+OK\r\n$0\r\n\r\n", Some(false)),
            (b"+OK\r\n$5\r\nhello\r\n", Some(true)),
            (b"+OK\r\n$1\r\n", None),
            (b"+OK\r\n$", None),
            (b"+OK", None),
            (b"-NOPERM\r\n-NOPERM\r\n", Some(false)),
            (b"+OK\r\n-WRONGTYPE x\r\n", Some(true)),
        ] {
            assert_eq!(is_set(reply, 2), expected, "{reply:?}");
        }
    }
}
