//! settings → a connection that is ready for commands.
//!
//! Resolves, connects (TCP or unix socket), authenticates and selects the database, each
//! time anew: addresses change, secrets rotate. Says what kept it away in words that tell a
//! wrong password from an outage.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::refusal::{Refusal, classify};
use super::resp::{Reply, command, parse};
use super::{sentinel, tls};
use crate::config::{Endpoint, Redis, Secret, Tls};

/// For connecting and for each reply of the handshake.
const PATIENCE: Duration = Duration::from_secs(5);

/// A byte stream to Redis.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Away {
    pub why: Why,
    /// For people: `cannot reach localhost:6379: connection refused`.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Refused, unreachable, reset, no answer.
    Outage,
    /// It answers, and refuses our credentials.
    Credentials,
}

/// Connects to database `db`.
pub async fn connect(settings: &Redis, db: u32) -> Result<Box<dyn Wire>, Away> {
    Ok(reach(settings, db).await?.0)
}

/// The same; says where that was.
pub async fn reach(settings: &Redis, db: u32) -> Result<(Box<dyn Wire>, Endpoint), Away> {
    let (mut wire, place) = match timeout(PATIENCE, find(settings)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(outage(settings, &error.to_string())),
        Err(_) => return Err(outage(settings, "no answer")),
    };
    match timeout(PATIENCE, handshake(&mut wire, settings, db)).await {
        Ok(Ok(())) => Ok((wire, place)),
        Ok(Err(away)) => Err(away),
        Err(_) => Err(outage(settings, "no answer to the handshake")),
    }
}

fn outage(settings: &Redis, reason: &str) -> Away {
    // std appends ` (os error 111)` to the system's words.
    let reason = reason.split(" (os error").next().unwrap_or(reason);
    Away {
        why: Why::Outage,
        text: format!("cannot reach Redis at {}: {reason}", settings.endpoint),
    }
}

/// Where the settings say, or where a sentinel says that the master is.
async fn find(settings: &Redis) -> io::Result<(Box<dyn Wire>, Endpoint)> {
    let tls = settings.tls.as_ref();
    let place = match &settings.sentinel {
        None => settings.endpoint.clone(),
        Some(sentinel) => sentinel::master(sentinel, tls).await?,
    };
    Ok((open(&place, tls).await?, place))
}

pub async fn open(endpoint: &Endpoint, tls: Option<&Tls>) -> io::Result<Box<dyn Wire>> {
    match endpoint {
        Endpoint::None => Err(io::Error::new(io::ErrorKind::NotFound, "there is none")),
        Endpoint::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        Endpoint::Tcp { host, port } => {
            let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for address in addresses(host, *port).await? {
                match TcpStream::connect(address).await {
                    Ok(stream) => {
                        stream.set_nodelay(true)?;
                        return match tls {
                            None => Ok(Box::new(stream)),
                            Some(tls) => Ok(Box::new(tls::wrap(stream, tls, host).await?)),
                        };
                    }
                    Err(error) => failure = error,
                }
            }
            Err(failure)
        }
    }
}

/// `localhost` is loopback whatever the machine's files say: a container may have none.
async fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
        ]);
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    Ok(tokio::net::lookup_host((host, port)).await?.collect())
}

async fn handshake(wire: &mut Box<dyn Wire>, settings: &Redis, db: u32) -> Result<(), Away> {
    let mut out = Vec::new();
    let password = match &settings.password {
        None => None,
        Some(Secret::Inline(password)) => Some(password.clone()),
        Some(Secret::File(path)) => Some(read_secret(path)?),
    };
    match &password {
        Some(password) if settings.username.is_empty() => {
            command(&mut out, &[b"AUTH", password.as_bytes()]);
        }
        Some(password) => command(
            &mut out,
            &[b"AUTH", settings.username.as_bytes(), password.as_bytes()],
        ),
        None => {}
    }
    // RESP3 where it is spoken. A server that does not know HELLO, or a user who may not use
    // it, stays with RESP2: replies say themselves what they are.
    command(&mut out, &[b"HELLO", b"3"]);
    command(&mut out, &[b"SELECT", db.to_string().as_bytes()]);
    let broken = |error: io::Error| outage(settings, &error.to_string());
    wire.write_all(&out).await.map_err(broken)?;
    let mut buffer = Vec::new();
    if password.is_some() {
        answer(wire, &mut buffer, settings, Asked::Needed).await?;
    }
    answer(wire, &mut buffer, settings, Asked::Offered).await?;
    answer(wire, &mut buffer, settings, Asked::Needed).await
}

/// What an error means that answers a command of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Why we stay away.
    Needed,
    /// Nothing, where the server only does not know it or does not let us.
    Offered,
}

impl Asked {
    fn tolerates(self, error: &[u8]) -> bool {
        self == Asked::Offered && matches!(classify(error), Refusal::Forbidden | Refusal::Never)
    }
}

/// Reads one reply.
async fn answer(
    wire: &mut Box<dyn Wire>,
    buffer: &mut Vec<u8>,
    settings: &Redis,
    asked: Asked,
) -> Result<(), Away> {
    loop {
        match parse(buffer) {
            Err(malformed) => return Err(outage(settings, &malformed.to_string())),
            Ok(Some((Reply::Error(error), _))) if !asked.tolerates(error) => {
                let text = String::from_utf8_lossy(error).into_owned();
                return Err(match classify(error) {
                    Refusal::Credentials | Refusal::Connection if is_credentials(&text) => Away {
                        why: Why::Credentials,
                        text: format!(
                            "Redis at {} refuses our credentials{}: {text}",
                            settings.endpoint,
                            match settings.username.as_str() {
                                "" => String::new(),
                                user => format!(" (user {user})"),
                            }
                        ),
                    },
                    _ => outage(settings, &text),
                });
            }
            Ok(Some((_, used))) => {
                buffer.drain(..used);
                return Ok(());
            }
            Ok(None) => {}
        }
        let count = wire
            .read_buf(buffer)
            .await
            .map_err(|error| outage(settings, &error.to_string()))?;
        if count == 0 {
            return Err(outage(settings, "the connection was closed"));
        }
    }
}

fn is_credentials(text: &str) -> bool {
    ["WRONGPASS", "NOAUTH", "password", "AUTH"]
        .iter()
        .any(|word| text.contains(word))
}

/// Read at every connection, because secrets rotate.
fn read_secret(path: &Path) -> Result<String, Away> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) => Err(Away {
            why: Why::Credentials,
            text: format!("cannot read the password file {}: {error}", path.display()),
        }),
    }
}
