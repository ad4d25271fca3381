//! The real binary, run in a scratch folder of its own.

#![allow(dead_code)] // each test binary uses its part

use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use crate::support::{RedisServer, Scratch, eventually, within};
#[allow(unused_imports)] // each test binary uses its part
pub use crate::support::{die_with_parent, lives};

pub const AGENT: &str = env!("CARGO_BIN_EXE_agent");

/// One running agent.
pub struct Agent {
    pub folder: Scratch,
    child: Child,
}

/// `[agent]` with everything below the scratch folder, `[redis]` at the server.
pub fn head(folder: &Scratch, redis: Option<&RedisServer>) -> String {
    let url = match redis {
        Some(server) => format!("unix://{}", server.socket().display()),
        None => format!("unix://{}", folder.join("no-redis.sock").display()),
    };
    format!(
        "[agent]\nruntime_dir = {run:?}\nstate_dir = {run:?}\n[redis]\nurl = {url:?}\n",
        run = folder.path()
    )
}

impl Agent {
    /// Starts it with `services` (TOML after the head) and waits until it answers.
    pub fn start(redis: Option<&RedisServer>, services: &str) -> Agent {
        let folder = Scratch::new("agent");
        let text = format!("{}{services}", head(&folder, redis));
        Agent::start_in(folder, &text)
    }

    /// Starts it in a folder that outlives it.
    pub fn start_beside(folder: &Scratch, configuration: &str) -> Agent {
        Agent::start_in(folder.share(), configuration)
    }

    /// Starts it with exactly this configuration.
    pub fn start_in(folder: Scratch, configuration: &str) -> Agent {
        let config = folder.file("agent.toml", configuration);
        let log = std::fs::File::create(folder.join("log")).expect("a log file");
        let mut command = Command::new(AGENT);
        command
            .args(["run", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        die_with_parent(&mut command);
        let child = command.spawn().expect("the agent starts");
        let mut agent = Agent { folder, child };
        let socket = agent.folder.join("agent.sock");
        eventually("the agent answers", || {
            agent.has_ended() || std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        agent
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: plain system call, of a child that we own.
        unsafe { libc::kill(self.pid(), signal) };
    }

    /// SIGSTOP, until every thread stands: the signal is on its way for a moment.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
        eventually("it is stopped", || {
            let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid()));
            threads.expect("its threads").flatten().all(|thread| {
                let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                stat.rsplit_once(')')
                    .is_some_and(|(_, rest)| rest.starts_with(" T"))
            })
        });
    }

    /// `agent <words>` asked of this agent.
    pub fn ask(&self, words: &[&str]) -> Output {
        Command::new(AGENT)
            .args(words)
            .env("AGENT_SOCKET", self.folder.join("agent.sock"))
            .output()
            .expect("the agent's client runs")
    }

    /// `agent status --json` of one service.
    pub fn service(&self, name: &str) -> serde_json::Value {
        let status = self.status();
        let services = status["services"].as_array().cloned().unwrap_or_default();
        services
            .into_iter()
            .find(|service| service["name"] == name)
            .unwrap_or(serde_json::Value::Null)
    }

    pub fn status(&self) -> serde_json::Value {
        let output = self.ask(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or(serde_json::Value::Null)
    }

    pub fn wait_for(&self, name: &str, state: &str) {
        eventually(&format!("{name} is {state}"), || {
            self.service(name)["state"] == state
        });
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Waits for its own end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        within(Duration::from_secs(40), "the agent ends", || {
            status = self.child.try_wait().expect("a child of ours");
            status.is_some()
        });
        status.expect("it has ended")
    }

    /// Asks for an ordered shutdown.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.wait()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the agent's log\n{}", self.log());
        }
    }
}
