//! a request → the agent's reply, within a time limit.
//!
//! Blocking, with no runtime and no threads: a probe runs every few seconds on a small
//! board, and costs little more than `true`. A hung agent (stopped, or its backlog full) is
//! told from an absent one, and both within the limit.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::frame::{self, Frame, Frames, MAX_REPLY};
use crate::request::{Reply, Request};

const DEFAULT_FOLDER: &str = "/run/agent";
const SOCKET: &str = "agent.sock";

/// What decides where to look.
pub struct Search<'a> {
    /// An environment variable; empty counts as unset.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The configuration that the command line names.
    pub config: Option<&'a Path>,
    pub sockets_of: &'a SocketsOf,
}

/// The sockets of the agent that runs with a configuration (`None`: the default one),
/// likeliest first, or why the configuration cannot be used.
pub type SocketsOf = dyn Fn(Option<&Path>) -> Result<Vec<PathBuf>, String>;

/// Why there is no reply.
#[derive(Debug)]
pub enum Trouble {
    /// The configuration that was named cannot be used.
    Configuration(String),
    NoAgent(Vec<(PathBuf, io::Error)>),
    /// It listens and does not answer.
    Silent {
        socket: PathBuf,
        limit: Duration,
    },
    /// The conversation broke off.
    Broken {
        socket: PathBuf,
        error: io::Error,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Configuration(error) => f.write_str(error),
            Trouble::NoAgent(looked) => {
                f.write_str("no agent is running: looked at ")?;
                for (index, (path, error)) in looked.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{} ({})", path.display(), words(error))?;
                }
                match looked.iter().find_map(|(path, _)| neighbour(path)) {
                    Some(other) => write!(f, "; AGENT_SOCKET={} may be meant", other.display()),
                    None => Ok(()),
                }
            }
            Trouble::Silent { socket, limit } => write!(
                f,
                "the agent at {} did not answer within {} ms",
                socket.display(),
                limit.as_millis()
            ),
            Trouble::Broken { socket, error } => {
                write!(
                    f,
                    "the agent at {} broke off: {}",
                    socket.display(),
                    words(error)
                )
            }
        }
    }
}

/// A wrapped application listens under its own name: said, and not asked in the agent's stead.
fn neighbour(socket: &Path) -> Option<PathBuf> {
    let folder = socket.parent().filter(|_| socket.ends_with(SOCKET))?;
    fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path != socket && path.extension().is_some_and(|end| end == "sock"))
}

/// The system's words without Rust's ` (os error 2)`.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

/// Asks the agent that `search` finds. Without a `limit` it waits for the reply as long as
/// the agent lives: a stop takes what the service's own timeout allows.
pub fn ask(
    request: &Request,
    search: &Search<'_>,
    limit: Option<Duration>,
) -> Result<Reply, Trouble> {
    // A limit beyond the clock is none.
    let until = limit.and_then(|limit| Instant::now().checked_add(limit));
    let mut looked: Vec<(PathBuf, io::Error)> = Vec::new();
    for step in steps(search) {
        for socket in step.sockets(search)? {
            if looked.iter().any(|(path, _)| *path == socket) {
                continue;
            }
            let silent = |socket: PathBuf| Trouble::Silent {
                socket,
                limit: limit.unwrap_or_default(),
            };
            let stream = match connect(&socket, until, step == Step::Temporary) {
                Ok(stream) => stream,
                Err(error) if is_timeout(&error) => return Err(silent(socket)),
                Err(error) => {
                    looked.push((socket, error));
                    continue;
                }
            };
            return match converse(stream, request, until) {
                Ok(reply) => Ok(reply),
                // An agent that ends may be gone before its answer is.
                Err(error) if *request == Request::Shutdown && !is_timeout(&error) => {
                    Ok(Reply::done(serde_json::Value::Null))
                }
                Err(error) if is_timeout(&error) => Err(silent(socket)),
                Err(error) => Err(Trouble::Broken { socket, error }),
            };
        }
    }
    Err(Trouble::NoAgent(looked))
}

/// One place to look, in the order of [`steps`]. A configuration is read only when the
/// usual place has no agent, or when it was named: a probe has no time for files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Socket,
    Config,
    Folder,
    DefaultConfig,
    Temporary,
}

fn steps(search: &Search<'_>) -> Vec<Step> {
    let set = |name| variable(search, name).is_some();
    if search.config.is_some() {
        vec![Step::Config, Step::Temporary]
    } else if set("AGENT_SOCKET") {
        vec![Step::Socket]
    } else if set("AGENT_RUNTIME_DIR") {
        vec![Step::Folder, Step::Temporary]
    } else if set("AGENT_CONFIG") {
        vec![Step::DefaultConfig, Step::Folder, Step::Temporary]
    } else {
        vec![Step::Folder, Step::DefaultConfig, Step::Temporary]
    }
}

fn variable(search: &Search<'_>, name: &str) -> Option<PathBuf> {
    (search.variable)(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

impl Step {
    fn sockets(self, search: &Search<'_>) -> Result<Vec<PathBuf>, Trouble> {
        Ok(match self {
            Step::Socket => variable(search, "AGENT_SOCKET").into_iter().collect(),
            Step::Config => (search.sockets_of)(search.config).map_err(Trouble::Configuration)?,
            Step::Folder => {
                let folder = variable(search, "AGENT_RUNTIME_DIR");
                vec![folder.unwrap_or_else(|| DEFAULT_FOLDER.into()).join(SOCKET)]
            }
            // It may hold passwords, and whoever probes may not be allowed to read it.
            Step::DefaultConfig => (search.sockets_of)(None).unwrap_or_default(),
            Step::Temporary => vec![temporary_folder().join(SOCKET)],
        })
    }
}

/// Where an agent that may not write to its runtime folder listens.
pub fn temporary_folder() -> PathBuf {
    PathBuf::from(format!(
        "/tmp/agent-{}",
        rustix::process::geteuid().as_raw()
    ))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn left(until: Option<Instant>) -> io::Result<Option<Duration>> {
    match until {
        None => Ok(None),
        Some(until) => match until.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            Some(_) | None => Err(ErrorKind::TimedOut.into()),
        },
    }
}

/// The send timeout of a socket bounds its connect(2) too (socket(7)): a stopped agent whose
/// backlog is full would hold us for ever.
fn connect(path: &Path, until: Option<Instant>, temporary: bool) -> io::Result<UnixStream> {
    if temporary {
        // Everyone may make folders in /tmp; only ours speaks for our agent.
        let folder = fs::symlink_metadata(temporary_folder())?;
        if folder.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("the folder belongs to another user"));
        }
    }
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    if let Some(left) = left(until)? {
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(left))?;
    }
    let connected = match SocketAddrUnix::new(path) {
        Ok(address) => rustix::net::connect(&socket, &address),
        Err(_) => through_its_folder(path, &socket)?,
    };
    connected?;
    Ok(UnixStream::from(socket))
}

/// A path longer than unix(7) allows is reached through its folder's descriptor.
fn through_its_folder(
    path: &Path,
    socket: &rustix::fd::OwnedFd,
) -> io::Result<rustix::io::Result<()>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.into());
    };
    let folder = File::open(folder)?;
    let short = Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(name);
    let address = SocketAddrUnix::new(short.as_path())?;
    Ok(rustix::net::connect(socket, &address))
}

fn converse(
    mut stream: UnixStream,
    request: &Request,
    until: Option<Instant>,
) -> io::Result<Reply> {
    stream.write_all(&frame::line(request))?;
    let mut frames = Frames::new(MAX_REPLY);
    let mut chunk = vec![0u8; 16 * 1024];
    loop {
        if let Some(left) = left(until)? {
            stream.set_read_timeout(Some(left))?;
        }
        let length = match stream.read(&mut chunk) {
            Ok(0) => return Err(io::Error::other("it closed the connection")),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        frames.push(&chunk[..length]);
        match frames.take() {
            Some(Frame::Line(line)) => return frame::reply(&line).map_err(io::Error::other),
            Some(Frame::TooLong) => return Err(io::Error::other("its reply is too long")),
            None => {}
        }
    }
}
