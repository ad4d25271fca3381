//! services as JSON, requests on stdin → the supervisor at work, told line by line.
//!
//! A test of processes needs a process of its own: the test binary runs itself again as the
//! driver, with the reaper on its main thread, the supervisor on a second, and a stand-in
//! for `logs`. Lines on stdout that begin with `@` are what happened.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jettison_agent::backoff::Backoff;
use jettison_agent::config::lifecycle::{Address, Lifecycle, Readiness, ReadyBy};
use jettison_agent::config::{
    Agent, Config, Crash, Endpoint, Health, Identity, Kind, Limit, OnFailed, Overflow, Process,
    Redis, Resources, Restart, Scheduling, Service, Spool, StartLimit, Stop, Tracing,
};
use jettison_agent::event::Event;
use jettison_agent::handoff::{Feed, HealthGauge, Pipes, SinkGauge};
use jettison_agent::record::{Keep, Record, Trim};
use jettison_agent::request::{Request, RequestId};
use jettison_agent::service::{RunId, ServiceName, Signal};
use jettison_agent::supervise::reap::{self, Order};
use jettison_agent::supervise::run::{Hands, run};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(20);

/// A supervisor in a process of its own.
pub struct Driver {
    pub child: Child,
    pub stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
    /// Everything, in order.
    pub seen: Vec<String>,
    /// What nobody has expected yet: the lines of different channels have no order.
    open: Vec<String>,
}

impl Driver {
    /// `services` as `config_from` reads them.
    pub fn start(services: Value) -> Driver {
        Driver::with(services, |command| command)
    }

    pub fn with(services: Value, change: impl FnOnce(&mut Command) -> &mut Command) -> Driver {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command
            .args(["driver", "--exact", "--nocapture", "--test-threads=1"])
            .env("SUPERVISE_DRIVER", services.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().expect("the test binary itself");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let stdin = child.stdin.take().expect("piped");
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if let Some(line) = line.strip_prefix('@')
                    && tell.send(line.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Driver {
            child,
            stdin,
            lines,
            seen: Vec::new(),
            open: Vec::new(),
        }
    }

    /// The first line that contains `text` and was not expected before.
    pub fn expect(&mut self, text: &str) -> String {
        let until = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.open.iter().position(|line| line.contains(text)) {
                return self.open.remove(at);
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    self.open.push(line);
                }
                Err(_) => panic!(
                    "{text:?} did not come; what came:\n{}",
                    self.seen.join("\n")
                ),
            }
        }
    }

    /// Where a line that contains `text` stands among all that came.
    pub fn place(&self, text: &str) -> usize {
        let place = self.seen.iter().position(|line| line.contains(text));
        place.unwrap_or_else(|| panic!("{text:?} is not in:\n{}", self.seen.join("\n")))
    }

    pub fn ask(&mut self, request: &str) {
        writeln!(self.stdin, "{request}").expect("the driver listens");
    }

    /// Asks for the end, and returns the agent's exit code.
    pub fn shutdown(&mut self) -> i32 {
        self.ask(r#"{"verb":"shutdown"}"#);
        self.end()
    }

    /// Waits for the end.
    pub fn end(&mut self) -> i32 {
        let line = self.expect("end ");
        let code = line.trim_start_matches("end ").parse().expect("a number");
        eventually("the driver ends", || {
            self.child.try_wait().expect("own child").is_some()
        });
        code
    }

    /// The pid in the next `start` word.
    pub fn started(&mut self) -> i32 {
        let line = self.expect("Started with pid ");
        let digits = line.split("pid ").nth(1).expect("a pid");
        digits.trim_end_matches('.').parse().expect("a number")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < until, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The driver's life, in the process that the tests start.
pub fn drive(services: &str) {
    // The test harness has begun a line.
    println!();
    let config = config_from(&serde_json::from_str(services).expect("the test's own JSON"));
    let (orders, reaper) = reap::channel().expect("descriptors");
    let (inbox, events) = tokio::sync::mpsc::channel(64);
    let supervisor = std::thread::spawn({
        let inbox = inbox.clone();
        let orders = orders.clone();
        move || {
            let code = supervise(config, &inbox, events, &orders);
            orders.give(Order::Quit);
            code
        }
    });
    reaper.run(inbox);
    let code = supervisor.join().expect("no panic");
    say(&format!("end {code}"));
    std::process::exit(0);
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "@{line}");
    let _ = out.flush();
}

fn supervise(
    config: Config,
    inbox: &tokio::sync::mpsc::Sender<Event>,
    events: tokio::sync::mpsc::Receiver<Event>,
    orders: &reap::Orders,
) -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (feed, feeds) = tokio::sync::mpsc::channel(8);
    let (standings, mut stands) = tokio::sync::mpsc::channel(8);
    let (words, mut spoken) = tokio::sync::mpsc::channel(8);
    let (replies, mut answers) = tokio::sync::mpsc::channel(8);
    let (_sink, sink) = tokio::sync::watch::channel(SinkGauge::default());
    let (_health, health) = tokio::sync::watch::channel(HealthGauge::default());
    let hands = Hands {
        manner: jettison_agent::supervise::run::Manner::Agent,
        inbox: events,
        orders: orders.clone(),
        feed,
        standings,
        words,
        dying: tokio::sync::mpsc::channel(1).0,
        replies,
        sink,
        health,
        redis: std::sync::Arc::new(|_| Box::pin(async { Err("there is none".to_owned()) })),
        reload: Box::new(|| {
            let path = std::env::var("SUPERVISE_RELOAD").map_err(|e| e.to_string())?;
            let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
            let json = serde_json::from_str(&text).map_err(|e| e.to_string())?;
            Ok(config_from(&json))
        }),
    };
    read_requests(inbox.clone());
    let drain = inbox.clone();
    runtime.block_on(async move {
        jettison_agent::signals::forward(drain.clone()).expect("handlers");
        tokio::task::spawn_blocking(move || be_logs(feeds, &drain));
        let spoken = tokio::spawn(async move {
            while let Some(Record::Entry(entry)) = spoken.recv().await {
                let message = String::from_utf8_lossy(&entry.message).into_owned();
                let stream = entry.streams.name().clone();
                say(&format!("word {stream} {} {message}", entry.kind.as_str()));
            }
        });
        let stands = tokio::spawn(async move {
            while let Some(s) = stands.recv().await {
                let state = s.state.as_str();
                say(&format!("standing {} {state} {:?}", s.service, s.pid));
            }
        });
        let answers = tokio::spawn(async move {
            while let Some((id, reply)) = answers.recv().await {
                let json = serde_json::to_string(&reply).expect("plain data");
                say(&format!("reply {} {json}", id.0));
            }
        });
        let code = run(config, hands).await;
        let _ = tokio::join!(spoken, stands, answers);
        code
    })
}

fn read_requests(inbox: tokio::sync::mpsc::Sender<Event>) {
    std::thread::spawn(move || {
        for (number, line) in std::io::stdin().lines().map_while(Result::ok).enumerate() {
            let request: Request = serde_json::from_str(&line).expect("the test's own JSON");
            let id = RequestId(number as u64);
            if inbox.blocking_send(Event::Request { id, request }).is_err() {
                return;
            }
        }
    });
}

/// What `logs` does with a run, as far as the supervisor can tell.
fn be_logs(mut feeds: tokio::sync::mpsc::Receiver<Feed>, inbox: &tokio::sync::mpsc::Sender<Event>) {
    let ended: Arc<Mutex<Vec<RunId>>> = Arc::default();
    while let Some(feed) = feeds.blocking_recv() {
        match feed {
            Feed::Open { run, pipes, .. } => {
                let (inbox, ended) = (inbox.clone(), Arc::clone(&ended));
                std::thread::spawn(move || read_run(run, pipes, &ended, &inbox));
            }
            Feed::Trim { .. } => {}
            Feed::End { run, .. } => ended.lock().expect("no panic").push(run),
            Feed::NeverRan { run, exit, .. } => {
                say(&format!("never ran {}", exit.code()));
                let _ = inbox.blocking_send(Event::Drained { run });
            }
        }
    }
}

fn read_run(
    run: RunId,
    pipes: Pipes,
    ended: &Mutex<Vec<RunId>>,
    inbox: &tokio::sync::mpsc::Sender<Event>,
) {
    let mut pipes = [("stdout", pipes.stdout), ("stderr", pipes.stderr)]
        .map(|(name, fd): (_, OwnedFd)| (name, std::fs::File::from(fd), Vec::new(), false));
    let mut until = None;
    loop {
        for (name, pipe, line, closed) in &mut pipes {
            let mut chunk = [0; 4096];
            match pipe.read(&mut chunk) {
                Ok(0) => *closed = true,
                Ok(n) => line.extend_from_slice(&chunk[..n]),
                Err(_) => {}
            }
            while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                let text: Vec<u8> = line.drain(..=end).collect();
                say(&format!("{name} {}", String::from_utf8_lossy(&text[..end])));
            }
        }
        if until.is_none() && ended.lock().expect("no panic").contains(&run) {
            until = Some(Instant::now() + Duration::from_millis(500));
        }
        let all_closed = pipes.iter().all(|(_, _, _, closed)| *closed);
        if let Some(until) = until
            && (all_closed || Instant::now() > until)
        {
            say(&format!("drained {}", run.number));
            let _ = inbox.blocking_send(Event::Drained { run });
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `{"agent": {…}, "services": [{"name", "argv": […], …}]}`, with defaults for all but these.
fn config_from(json: &Value) -> Config {
    let agent = &json["agent"];
    let name = |value: &Value| ServiceName::new(value.as_str()?).ok();
    Config {
        file: None,
        agent: Agent {
            board: String::new(),
            state_dir: "/nonexistent".into(),
            runtime_dir: "/nonexistent".into(),
            shutdown_timeout: millis(&agent["shutdown_ms"], 10_000),
            main: name(&agent["main"]),
            tee: false,
            maintenance: agent["maintenance"].as_bool().unwrap_or(false),
            group: None,
        },
        redis: Redis {
            endpoint: Endpoint::Unix("/nonexistent".into()),
            username: String::new(),
            password: None,
            log_db: 1,
            value_db: 2,
            key_prefix: String::new(),
            value_expiry: Duration::from_secs(15),
            max_len: 1000,
            tls: None,
            sentinel: None,
        },
        spool: Spool {
            memory: 1 << 20,
            disk: 0,
            overflow: Overflow::DropOldest,
        },
        crash: Crash {
            tracing: Tracing::default(),
            keep: 0,
            max_size: 0,
            debug_dirs: Vec::new(),
        },
        health: Health { compute: true },
        services: json["services"]
            .as_array()
            .expect("services")
            .iter()
            .map(|service| Arc::new(service_from(service)))
            .collect(),
    }
}

fn millis(value: &Value, default: u64) -> Duration {
    Duration::from_millis(value.as_u64().unwrap_or(default))
}

fn strings(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.map(|item| item.as_str().expect("a string").to_owned())
        .collect()
}

fn service_from(json: &Value) -> Service {
    let argv = strings(&json["argv"]);
    let names = |key: &str| -> Vec<ServiceName> {
        strings(&json[key])
            .iter()
            .map(|name| ServiceName::new(name).expect("a name"))
            .collect()
    };
    let name = json["name"].as_str().expect("a name");
    Service {
        name: ServiceName::new(name).expect("a name"),
        executable: argv[0].clone(),
        args: argv[1..].to_vec(),
        stream_name: name.to_owned(),
        kind: match json["kind"].as_str() {
            Some("oneshot") => Kind::Oneshot,
            _ => Kind::Simple,
        },
        after: names("after"),
        requires: names("requires"),
        critical: true,
        restart: match json["restart"].as_str() {
            Some("never") => Restart::Never,
            Some("on-failure") => Restart::OnFailure,
            _ => Restart::Always,
        },
        on_failed: match json["on_failed"].as_str() {
            Some("exit") => OnFailed::Exit,
            _ => OnFailed::Stay,
        },
        backoff: Backoff {
            initial: millis(&json["backoff_ms"], 50),
            max: Duration::from_secs(1),
        },
        reset_after: Duration::from_secs(10),
        start_limit: StartLimit {
            burst: json["burst"].as_u64().unwrap_or(10) as u32,
            interval: Duration::from_secs(60),
        },
        stop: Stop {
            signal: Signal::TERM,
            timeout: millis(&json["stop_ms"], 5_000),
        },
        lifecycle: lifecycle_from(json),
        process: process_from(json),
        max_line: 256 * 1024,
        multi_line: Default::default(),
        trim: Trim { max_len: 1000 },
        capture: Default::default(),
        keep: Keep::default(),
        pools: Arc::new([]),
        checks: Arc::new([]),
        debug: None,
    }
}

fn identity(value: &Value) -> Option<Identity> {
    match value {
        Value::Number(id) => Some(Identity::Id(id.as_u64().expect("an id") as u32)),
        Value::String(name) => Some(Identity::Name(name.clone())),
        _ => None,
    }
}

fn lifecycle_from(json: &Value) -> Lifecycle {
    let ready = &json["ready"];
    let at = |value: &Value| Address {
        host: "127.0.0.1".to_owned(),
        port: value.as_u64().unwrap_or(0) as u16,
    };
    let way = ready.as_object().and_then(|map| map.iter().next());
    let by = way.map(|(way, value)| match way.as_str() {
        "tcp" => ReadyBy::Tcp(at(value)),
        "http" => ReadyBy::Http {
            at: at(value),
            path: "/up".to_owned(),
        },
        "exec" => ReadyBy::Exec(strings(value)),
        "log" => ReadyBy::Log(value.as_str().expect("a pattern").to_owned()),
        "fd" => ReadyBy::Fd(value.as_i64().expect("a number") as i32),
        _ => ReadyBy::Notify,
    });
    let commands = |value: &Value| -> Vec<Vec<String>> {
        let list = value.as_array().into_iter().flatten();
        list.map(strings).collect()
    };
    Lifecycle {
        ready: by.map(|by| Readiness {
            by,
            timeout: millis(&json["ready_ms"], 10_000),
        }),
        watchdog: json["watchdog_ms"].as_u64().map(Duration::from_millis),
        pre_start: commands(&json["pre_start"]),
        post_stop: commands(&json["post_stop"]),
    }
}

fn process_from(json: &Value) -> Process {
    let environment = json["environment"].as_object().into_iter().flatten();
    Process {
        user: identity(&json["user"]),
        group: identity(&json["group"]),
        supplementary_groups: json["groups"]
            .as_array()
            .map(|list| list.iter().filter_map(identity).collect()),
        working_directory: json["directory"].as_str().map(Into::into),
        environment: environment
            .map(|(name, value)| (name.clone(), value.as_str().expect("text").to_owned()))
            .collect(),
        environment_files: strings(&json["environment_files"])
            .into_iter()
            .map(Into::into)
            .collect(),
        clear_environment: json["clear_environment"].as_bool().unwrap_or(false),
        umask: json["umask"].as_u64().map(|umask| umask as u32),
        limits: json["nofile"]
            .as_u64()
            .map(|value| Limit {
                resource: 7,
                name: "nofile",
                value: Some(value),
            })
            .into_iter()
            .collect(),
        nice: json["nice"].as_i64().map(|nice| nice as i32),
        cpu_affinity: json["cpus"].as_array().map(|cpus| {
            cpus.iter()
                .map(|cpu| cpu.as_u64().expect("a cpu") as usize)
                .collect()
        }),
        scheduling: json["fifo"]
            .as_u64()
            .map(|priority| Scheduling::Fifo(priority as u32)),
        oom_score_adj: json["oom"].as_i64().map(|score| score as i32),
        no_new_privileges: json["no_new_privileges"].as_bool().unwrap_or(false),
        capabilities: json["capabilities"].as_array().map(|list| {
            list.iter()
                .map(|c| c.as_u64().expect("a number") as u32)
                .collect()
        }),
        pty: json["pty"].as_bool().unwrap_or(false),
        io_priority: None,
        resources: Resources::default(),
    }
}
