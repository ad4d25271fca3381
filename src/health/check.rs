//! One check, now → what came of it.
//!
//! Never blocks and never takes longer than its timeout: what is not there by then has
//! failed. Bytes of others are read up to a bound. A command runs as its service would, on
//! the main thread's books, which ends it in time with everything it started.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::probe::Outcome;
use crate::event::Event;
use crate::handoff::{Answer, AskRedis, CheckKind, CheckSettings, CommandWord, Pipes, Teller};
use crate::service::{Exit, ServiceId};

/// Of an answer of HTTP: status, headers and the part of the body that is looked at.
const ANSWER: usize = 64 << 10;
/// What a failed command said, in its verdict.
const SAID: usize = 200;
/// Beyond its timeout, for the main thread to end a command with all it started.
const MARGIN: Duration = Duration::from_secs(2);

/// What checks need of the house.
#[derive(Clone)]
pub struct Means {
    pub inbox: mpsc::Sender<Event>,
    /// `None` where there is none.
    pub redis: Option<AskRedis>,
    pub key_prefix: String,
}

pub async fn perform(means: &Means, service: ServiceId, check: &CheckSettings) -> Outcome {
    let limit = match check.what {
        CheckKind::Exec(_) => check.timeout + MARGIN,
        CheckKind::Http { .. }
        | CheckKind::Tcp { .. }
        | CheckKind::Unix(_)
        | CheckKind::Redis(_)
        | CheckKind::File { .. } => check.timeout,
    };
    let look = look(means, service, check);
    match (timeout(limit, look).await, &check.what) {
        (Ok(outcome), _) => outcome,
        // A Redis that keeps silent is away.
        (Err(_), CheckKind::Redis(_)) => Outcome::Unknown,
        (Err(_), _) => Outcome::Failed(late(check)),
    }
}

fn late(check: &CheckSettings) -> String {
    format!("no answer within {} ms", check.timeout.as_millis())
}

async fn look(means: &Means, service: ServiceId, check: &CheckSettings) -> Outcome {
    match &check.what {
        CheckKind::Exec(words) => command(means, service, check, words).await,
        CheckKind::Http {
            host,
            port,
            path,
            status,
            body,
        } => match get(host, *port, path).await {
            Ok(answer) => judge(&answer, *status, body.as_deref()),
            Err(error) => Outcome::Failed(words(&error)),
        },
        CheckKind::Tcp { host, port } => of(connect(host, *port).await),
        CheckKind::Unix(path) => of(UnixStream::connect(path).await),
        CheckKind::Redis(key) => match &means.redis {
            Some(ask) => exists(ask, &means.key_prefix, key).await,
            None => Outcome::Unknown,
        },
        CheckKind::File { path, max_age } => {
            let (path, max_age) = (path.clone(), *max_age);
            // A file on a dead network share answers never.
            match tokio::task::spawn_blocking(move || age(&path, max_age)).await {
                Ok(outcome) => outcome,
                Err(_) => Outcome::Unknown,
            }
        }
    }
}

/// Redis being away says nothing about a service: nobody is restarted for an outage of another.
async fn exists(ask: &AskRedis, prefix: &str, key: &str) -> Outcome {
    let command = vec!["EXISTS".to_owned(), format!("{prefix}{key}")];
    match ask(vec![command]).await.as_deref() {
        Ok([Answer::Integer(1)]) => Outcome::Passed,
        Ok([Answer::Integer(0)]) => Outcome::Failed(format!("there is no key {key}")),
        Ok(_) | Err(_) => Outcome::Unknown,
    }
}

/// `localhost` is loopback whatever the machine's files say: a container may have none.
async fn connect(host: &str, port: u16) -> std::io::Result<TcpStream> {
    if host.eq_ignore_ascii_case("localhost") {
        let both: [SocketAddr; 2] = [
            (Ipv4Addr::LOCALHOST, port).into(),
            (Ipv6Addr::LOCALHOST, port).into(),
        ];
        return TcpStream::connect(&both[..]).await;
    }
    TcpStream::connect((host, port)).await
}

fn of<T>(result: std::io::Result<T>) -> Outcome {
    match result {
        Ok(_) => Outcome::Passed,
        Err(error) => Outcome::Failed(words(&error)),
    }
}

/// Without Rust's ` (os error 111)`, which tells a reader nothing.
fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error ").next().unwrap_or(&text);
    text.to_lowercase()
}

fn age(path: &Path, max_age: Duration) -> Outcome {
    let written = std::fs::metadata(path).and_then(|file| file.modified());
    match written {
        Err(error) => Outcome::Failed(words(&error)),
        // A time in the future is young: clocks of boards jump.
        Ok(written) => match written.elapsed() {
            Ok(age) if age > max_age => {
                Outcome::Failed(format!("last written {} s ago", age.as_secs()))
            }
            Ok(_) | Err(_) => Outcome::Passed,
        },
    }
}

/// HTTP/1.1 as RFC 9112 has it; one request per connection.
async fn get(host: &str, port: u16, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = connect(host, port).await?;
    let named = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {named}\r\nUser-Agent: agent/{}\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut stream = stream.take(ANSWER as u64);
    // A server that resets after its answer has answered.
    match stream.read_to_end(&mut answer).await {
        Err(error) if answer.is_empty() => Err(error),
        Ok(_) | Err(_) => Ok(answer),
    }
}

fn judge(answer: &[u8], wanted: Option<u16>, body: Option<&str>) -> Outcome {
    let line = answer.split(|byte| *byte == b'\r').next();
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    let mut parts = line.split(' ');
    let version = parts.next().unwrap_or_default();
    let status = parts.next().and_then(|status| status.parse::<u16>().ok());
    let Some(status) = status.filter(|_| version.starts_with("HTTP/1.")) else {
        return Outcome::Failed("the answer is not HTTP".to_owned());
    };
    let fits = match wanted {
        Some(wanted) => status == wanted,
        None => (200..400).contains(&status),
    };
    if !fits {
        return Outcome::Failed(format!("status {status}"));
    }
    let Some(text) = body else {
        return Outcome::Passed;
    };
    let start = memchr::memmem::find(answer, b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    match memchr::memmem::find(&answer[start..], text.as_bytes()) {
        Some(_) => Outcome::Passed,
        None => Outcome::Failed(format!("status {status}, but the body has no {text:?}")),
    }
}

async fn command(
    means: &Means,
    service: ServiceId,
    check: &CheckSettings,
    words: &[String],
) -> Outcome {
    let (tell, mut told) = mpsc::unbounded_channel();
    let event = Event::Command {
        service,
        words: words.to_vec(),
        limit: check.timeout,
        tell: Teller(Box::new(move |word| drop(tell.send(word)))),
    };
    if means.inbox.send(event).await.is_err() {
        return Outcome::Unknown;
    }
    let mut said = String::new();
    loop {
        match told.recv().await {
            Some(CommandWord::Started(pipes)) => said = listen(pipes).await,
            Some(CommandWord::NotStarted(why)) => return Outcome::Failed(why),
            Some(CommandWord::Ended { overdue: true, .. }) => return Outcome::Failed(late(check)),
            Some(CommandWord::Ended { exit, .. }) => return ended(exit, &said),
            // Nobody runs it: the service is gone, or the agent.
            None => return Outcome::Unknown,
        }
    }
}

fn ended(exit: Exit, said: &str) -> Outcome {
    if exit.is_success() {
        return Outcome::Passed;
    }
    let how = match exit.signal() {
        Some(signal) => format!("ended by {signal}"),
        None => format!("exited with code {}", exit.code()),
    };
    match said.trim() {
        "" => Outcome::Failed(how),
        said => Outcome::Failed(format!("{how}: {said}")),
    }
}

/// Until all ends of both pipes are closed, which the main thread sees to in time.
async fn listen(pipes: Pipes) -> String {
    let (stdout, stderr) = (
        pipe::Receiver::from_owned_fd(pipes.stdout),
        pipe::Receiver::from_owned_fd(pipes.stderr),
    );
    let (Ok(stdout), Ok(stderr)) = (stdout, stderr) else {
        return String::new();
    };
    let (out, err) = tokio::join!(drain(stdout), drain(stderr));
    let said = if err.is_empty() { out } else { err };
    let said = String::from_utf8_lossy(&said).into_owned();
    said.lines().next().unwrap_or_default().to_owned()
}

/// All is read, or the command would wait for us; the beginning is kept.
async fn drain(mut pipe: pipe::Receiver) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
        let room = SAID.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(&chunk[..room]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_http() {
        let ok = b"HTTP/1.1 200 OK\r\nServer: ready\r\n\r\n{\"state\":\"up\"}";
        assert_eq!(judge(ok, None, None), Outcome::Passed);
        assert_eq!(judge(ok, Some(200), Some("\"up\"")), Outcome::Passed);
        let failed = |why: &str| Outcome::Failed(why.to_owned());
        assert_eq!(judge(ok, Some(204), None), failed("status 200"));
        let body = "status 200, but the body has no \"ready\"";
        assert_eq!(judge(ok, None, Some("ready")), failed(body));
        let down = b"HTTP/1.0 503 Service Unavailable\r\n\r\n";
        assert_eq!(judge(down, None, None), failed("status 503"));
        assert_eq!(judge(down, Some(503), None), Outcome::Passed);
        let none = failed("the answer is not HTTP");
        for answer in [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1\r\n", b"\xff\xff"] {
            assert_eq!(judge(answer, None, None), none);
        }
    }
}
