//! The real binary, started as `wrapp` through a link, in a scratch folder of its own.

#![allow(dead_code)] // each test binary uses its part

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Entry, RedisServer, Scratch, entries, eventually, messages, within};
#[allow(unused_imports)] // each test binary uses its part
pub use crate::support::{die_with_parent, lives};

pub const AGENT: &str = env!("CARGO_BIN_EXE_agent");

/// The application's stream name where a test does not choose another.
pub const STREAM: &str = "app";

/// A folder with the link, and what a configuration needs.
pub struct Place {
    pub folder: Scratch,
}

impl Place {
    pub fn new() -> Place {
        let folder = Scratch::new("wrapp");
        // Services of other users must be able to reach what tests put here.
        open_to_all(folder.path());
        for name in ["wrapp", "jettison_health"] {
            std::os::unix::fs::symlink(AGENT, folder.join(name)).expect("a link");
        }
        Place { folder }
    }

    /// JSON of one application: a shell script, with everything else below the folder.
    pub fn script(&self, redis: Option<&RedisServer>, script: &str) -> Value {
        self.program(redis, "/bin/sh", &["-c", script])
    }

    pub fn program(&self, redis: Option<&RedisServer>, executable: &str, args: &[&str]) -> Value {
        let url = match redis {
            Some(server) => format!("unix://{}", server.socket().display()),
            None => format!("unix://{}", self.folder.join("no-redis.sock").display()),
        };
        json!({
            "redis": { "url": url },
            "app": { "executable": executable, "args": args, "user": "root", "stream_name": STREAM },
            "agent": { "runtime_dir": self.folder.join("run"), "state_dir": self.folder.join("state") },
        })
    }

    /// `wrapp` with these arguments, its outputs in files of the folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.folder.join("wrapp"));
        let file = |name: &str| std::fs::File::create(self.folder.join(name)).expect("a file");
        command
            .args(args)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"));
        for name in ["REDIS_ADDR", "REDIS_PASSWORD", "AGENT_LOG", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        die_with_parent(&mut command);
        command
    }

    /// Runs it with this configuration.
    pub fn start(self, config: &Value) -> Wrapp {
        self.start_as(config, |_| {})
    }

    pub fn start_as(self, config: &Value, change: impl FnOnce(&mut Command)) -> Wrapp {
        let path = self.folder.file("config.json", &config.to_string());
        let mut command = self.command(&[&path.to_string_lossy()]);
        change(&mut command);
        let child = command.spawn().expect("wrapp starts");
        Wrapp { place: self, child }
    }
}

/// Starts a script under it, in a folder of its own.
pub fn start(redis: Option<&RedisServer>, script: &str) -> Wrapp {
    let place = Place::new();
    let config = place.script(redis, script);
    place.start(&config)
}

/// A running wrapp.
pub struct Wrapp {
    pub place: Place,
    child: Child,
}

impl Wrapp {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.place.folder.join(name)
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: plain system call, of a child that we own.
        unsafe { libc::kill(self.pid(), signal) };
    }

    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Waits for its own end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        within(Duration::from_secs(40), "wrapp ends", || {
            status = self.child.try_wait().expect("a child of ours");
            status.is_some()
        });
        status.expect("it has ended")
    }

    /// Its exit code, at its end.
    pub fn code(&mut self) -> Option<i32> {
        self.wait().code()
    }

    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub fn wait_for_file(&self, name: &str) {
        eventually(&format!("the application wrote {name}"), || {
            !self.read(name).is_empty()
        });
    }
}

impl Drop for Wrapp {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- stdout\n{}--- stderr\n{}", self.stdout(), self.stderr());
        }
    }
}

/// A copy that other users can reach, wherever this checkout lies.
pub fn copy_of_agent(folder: &std::path::Path, name: &str) {
    let to = folder.join(name);
    let _ = std::fs::remove_file(&to);
    // By another process: a thread that forks while we write would keep the file open, and
    // what is open for writing cannot be executed.
    let copied = Command::new("cp").arg(AGENT).arg(&to).status();
    assert!(copied.is_ok_and(|status| status.success()), "a copy");
    make_executable(&to);
}

/// A root folder with a static program and nothing else.
pub struct Bare {
    pub folder: Scratch,
}

impl Bare {
    pub fn new() -> Bare {
        let folder = Scratch::new("bare");
        open_to_all(folder.path());
        copy_of_agent(folder.path(), "agent");
        std::os::unix::fs::symlink("agent", folder.join("wrapp")).expect("a link");
        Bare { folder }
    }

    /// `program` as PID 1 of a namespace of its own, this folder its root.
    pub fn first(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "chroot"])
            .arg(self.folder.path())
            .arg(program)
            .args(args)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(std::process::Stdio::null());
        command
    }

    /// `/proc/PID` of a process below this root, by one of its arguments.
    pub fn process_with(&self, argument: &str) -> Option<std::path::PathBuf> {
        let processes = std::fs::read_dir("/proc").expect("a /proc");
        processes
            .filter_map(Result::ok)
            .map(|p| p.path())
            .find(|process| {
                let root = std::fs::read_link(process.join("root"));
                let arguments = std::fs::read(process.join("cmdline")).unwrap_or_default();
                root.is_ok_and(|root| root == self.folder.path())
                    && arguments
                        .split(|&byte| byte == 0)
                        .any(|a| a == argument.as_bytes())
            })
    }

    pub fn file(&self, path: &str, text: &str) -> std::path::PathBuf {
        let whole = self.folder.join(path);
        std::fs::create_dir_all(whole.parent().expect("a folder")).expect("a folder");
        std::fs::write(&whole, text).expect("a file");
        whole
    }
}

pub fn stream(server: &RedisServer, kind: &str) -> Vec<Entry> {
    entries(&mut server.client(1), &format!("logs:app:{STREAM}:{kind}"))
}

pub fn texts(server: &RedisServer, kind: &str) -> Vec<String> {
    messages(&mut server.client(1), &format!("logs:app:{STREAM}:{kind}"))
}

/// What the application wrote, without run markers.
pub fn lines(server: &RedisServer) -> Vec<String> {
    stream(server, "info")
        .iter()
        .filter(|entry| entry.field("source").is_some())
        .map(Entry::message)
        .collect()
}

pub fn value(server: &RedisServer, key: &str) -> Option<String> {
    redis::cmd("GET").arg(key).query(&mut server.client(2)).ok()
}

/// -1: it never expires; -2: it is not there.
pub fn expiry(server: &RedisServer, key: &str) -> i64 {
    redis::cmd("TTL")
        .arg(key)
        .query(&mut server.client(2))
        .expect("TTL")
}

pub fn open_to_all(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("chmod");
}

pub fn make_executable(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
}

pub fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() == 0 }
}
