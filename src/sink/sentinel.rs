//! sentinels → where the master is.
//!
//! Asked anew at every connection, each in turn until one knows. A master that was demoted
//! refuses writes as a replica (`READONLY`): the connection is then given up, and the
//! sentinels are asked again. One that was frozen while another took its place accepts writes
//! for seconds before it is demoted, and forgets them then: so the sentinels are asked twice
//! a second, too. Source:
//! <https://redis.io/docs/latest/develop/reference/sentinel-clients/>

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::redis::{Wire, open};
use super::resp::{Reply, command, parse};
use crate::config::{Endpoint, Sentinel, Tls};

/// For one sentinel: there are others.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two questions while connected: with it, what a demoted master forgets is still
/// remembered here ([`super::recent::MEMORY`]).
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// # Errors
/// No sentinel answered with an address; what the last one said.
pub async fn master(sentinel: &Sentinel, tls: Option<&Tls>) -> io::Result<Endpoint> {
    let mut failure = io::Error::other("no sentinel is configured");
    for node in &sentinel.nodes {
        match timeout(PATIENCE, ask(node, &sentinel.master, tls)).await {
            Ok(Ok(endpoint)) => return Ok(endpoint),
            Ok(Err(error)) => failure = io::Error::other(format!("sentinel {node}: {error}")),
            Err(_) => failure = io::Error::other(format!("sentinel {node}: no answer")),
        }
    }
    Err(failure)
}

/// Returns once a sentinel names another master than `current`.
pub async fn moved(sentinel: &Sentinel, tls: Option<&Tls>, current: &Endpoint) {
    loop {
        for node in &sentinel.nodes {
            if let Ok(Ok(mut wire)) = timeout(PATIENCE, open(node, tls)).await {
                while let Ok(Ok(named)) =
                    timeout(PATIENCE, question(&mut wire, &sentinel.master)).await
                {
                    if named != *current {
                        return;
                    }
                    sleep(WATCH_EVERY).await;
                }
            }
        }
        sleep(WATCH_EVERY).await;
    }
}

async fn ask(node: &Endpoint, master: &str, tls: Option<&Tls>) -> io::Result<Endpoint> {
    question(&mut open(node, tls).await?, master).await
}

async fn question(wire: &mut Box<dyn Wire>, master: &str) -> io::Result<Endpoint> {
    let mut out = Vec::new();
    command(
        &mut out,
        &[b"SENTINEL", b"get-master-addr-by-name", master.as_bytes()],
    );
    wire.write_all(&out).await?;
    let mut buffer = Vec::new();
    loop {
        match parse(&buffer) {
            Ok(Some((reply, _))) => return address(&reply, master),
            Ok(None) => {}
            Err(malformed) => return Err(io::Error::other(malformed.to_string())),
        }
        if wire.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn address(reply: &Reply<'_>, master: &str) -> io::Result<Endpoint> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match reply {
        Reply::Array(parts) => match parts.as_slice() {
            [Reply::Text(host), Reply::Text(port)] => Ok(Endpoint::Tcp {
                host: text(host),
                port: text(port).parse().map_err(io::Error::other)?,
            }),
            _ => Err(io::Error::other("an answer of another kind")),
        },
        Reply::Error(error) => Err(io::Error::other(text(error))),
        Reply::Text(_) | Reply::Integer(_) | Reply::Nil => {
            Err(io::Error::other(format!("no master {master:?} is known")))
        }
    }
}
