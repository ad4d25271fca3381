//! What the process tests share: a private redis-server, and waiting on conditions.

#![allow(dead_code)] // each test binary uses its part

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// It must not outlive a killed test.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: both calls are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // What a shell runs in the background or under nohup ignores these, and so would everything that it starts.
            for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
}

/// Whether a process lives (zombies do not).
pub fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// A folder of this test's own, removed with it.
pub struct Scratch(PathBuf, Owner);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Us,
    Another,
}

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("agent-test-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a scratch folder");
        Scratch(path, Owner::Us)
    }

    /// The same folder for somebody who must not remove it.
    pub fn share(&self) -> Scratch {
        Scratch(self.0.clone(), Owner::Another)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file and returns its path.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, text).expect("a file in the scratch folder");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.1 == Owner::Us {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// A redis-server of this test's own, on a unix socket and a loopback port.
pub struct RedisServer {
    child: Option<Child>,
    folder: Scratch,
    port: u16,
    options: Vec<String>,
}

impl RedisServer {
    pub fn start(options: &[&str]) -> RedisServer {
        let mut server = RedisServer {
            child: None,
            folder: Scratch::new("redis"),
            port: free_port(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        server.up();
        server
    }

    /// Starts it (again): with its data where it saved any.
    pub fn up(&mut self) {
        let mut command = Command::new(redis_program());
        command
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--unixsocket", &self.socket().to_string_lossy()])
            .args(["--dir", &self.folder.path().to_string_lossy()])
            .args(["--save", "", "--daemonize", "no"])
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        die_with_parent(&mut command);
        self.child = Some(command.spawn().expect("redis-server is installed"));
        eventually("redis-server answers", || {
            std::os::unix::net::UnixStream::connect(self.socket()).is_ok()
        });
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("redis.sock")
    }

    /// Its snapshot.
    pub fn data(&self) -> PathBuf {
        self.folder.join("dump.rdb")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> i32 {
        self.child.as_ref().expect("a running server").id() as i32
    }

    /// A connection to a database, as the default user.
    pub fn client(&self, db: u32) -> redis::Connection {
        self.client_as(db, "", "")
    }

    pub fn client_as(&self, db: u32, user: &str, password: &str) -> redis::Connection {
        let socket = self.socket();
        let login = match (user, password) {
            ("", "") => String::new(),
            ("", password) => format!("&pass={password}"),
            (user, password) => format!("&user={user}&pass={password}"),
        };
        let url = format!("unix://{}?db={db}{login}", socket.display());
        redis::Client::open(url)
            .and_then(|client| client.get_connection())
            .expect("a connection")
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_file(self.socket());
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: plain system call, of a child that we own.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `$REDIS_SERVER`: another release, or Valkey.
pub fn redis_program() -> String {
    std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

/// A port that nobody listens on, below those that the kernel gives to connections: a server
/// that is started again a moment later must still find it free.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    for _ in 0..COUNT {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() * 101;
        let port = (FIRST + number % COUNT) as u16;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// Waits for a condition, up to a minute (the machine may be busy).
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    within(Duration::from_secs(60), what, condition);
}

pub fn within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One stream entry: its ID and its fields in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: String,
    pub fields: Vec<(String, Vec<u8>)>,
}

impl Entry {
    pub fn message(&self) -> String {
        String::from_utf8_lossy(&self.fields[0].1).into_owned()
    }

    pub fn field(&self, name: &str) -> Option<String> {
        self.fields
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    }

    pub fn ms(&self) -> u64 {
        let (ms, _) = self.id.split_once('-').expect("an ID");
        ms.parse().expect("milliseconds")
    }
}

/// The whole stream.
pub fn entries(client: &mut redis::Connection, key: &str) -> Vec<Entry> {
    let rows: Vec<(String, Vec<Vec<u8>>)> = redis::cmd("XRANGE")
        .arg(key)
        .arg("-")
        .arg("+")
        .query(client)
        .expect("XRANGE");
    rows.into_iter()
        .map(|(id, flat)| Entry {
            id,
            fields: flat
                .chunks_exact(2)
                .map(|pair| {
                    let name = String::from_utf8_lossy(&pair[0]).into_owned();
                    (name, pair[1].clone())
                })
                .collect(),
        })
        .collect()
}

pub fn messages(client: &mut redis::Connection, key: &str) -> Vec<String> {
    entries(client, key).iter().map(Entry::message).collect()
}
