//! `agent demo` → a robot in small, its account on the screen.
//!
//! Everything that works, within ten seconds: four services are supervised, their lines,
//! markers and heartbeats go to Redis, and an ordinary client shows what arrives there. Uses
//! the Redis that `REDIS_ADDR` names or that answers on localhost, else starts a
//! redis-server of its own, else shows the records themselves and says so.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

mod acts;
mod fallen;
mod screen;
mod watch;

use self::screen::Screen;
use crate::cli::show::{self, Colour, Look};
use crate::config::load::{self, Environment};
use crate::control::client::{self, Search};
use crate::daemon::{self, Outlet};
use crate::record::{CountKind, Record, StreamKind};
use crate::request::Request;
use crate::supervise::spawn::{self, Inherited, PipeSize};

/// How long it plays where nobody sits at a terminal.
const SECONDS: u64 = 9;

/// After so many seconds everything has happened at least once.
const STANDING: u64 = 7;

const USAGE: &str = "usage: agent demo [--seconds N]   (0: until Ctrl-C)\n";

pub fn main(args: &[OsString]) -> i32 {
    let words: Vec<&str> = args.iter().filter_map(|word| word.to_str()).collect();
    let seconds = match words.as_slice() {
        ["--act", part] => return acts::play(part),
        [] if io::stdout().is_terminal() => 0,
        [] => SECONDS,
        ["--seconds", number] => match number.parse() {
            Ok(seconds) => seconds,
            Err(_) => return refuse(),
        },
        ["--help" | "-h"] => {
            print!("{USAGE}");
            return 0;
        }
        _ => return refuse(),
    };
    // The account on the screen says what happens; the agent's own log only what goes wrong.
    crate::diag::start("error,jettison_agent::supervise=off");
    match Stage::set() {
        Ok(stage) => stage.play(seconds),
        Err(error) => {
            eprintln!("agent demo: {error}");
            1
        }
    }
}

fn refuse() -> i32 {
    eprint!("{USAGE}");
    2
}

/// Where the streams go.
enum Store {
    /// Somebody's: swept afterwards.
    Found(redis::Client, String),
    /// Started for the demonstration, and ended with it.
    Own(redis::Client, i32, PathBuf),
    None,
}

/// A folder of the demonstration's own, removed with it, and where the streams go.
struct Stage {
    folder: PathBuf,
    store: Store,
}

impl Stage {
    fn set() -> io::Result<Stage> {
        let folder = std::env::temp_dir().join(format!("agent-demo-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let store = match found_redis() {
            Some((client, address)) => Store::Found(client, address),
            None => own_redis(&folder).unwrap_or(Store::None),
        };
        Ok(Stage { folder, store })
    }

    fn play(self, seconds: u64) -> i32 {
        let screen = Screen::new();
        let mut text = self.configuration();
        let path = self.folder.join("agent.toml");
        let loaded = fallen::configuration(&self.folder)
            .and_then(|fallen| {
                text.push_str(&fallen);
                std::fs::write(&path, &text)
            })
            .map_err(|error| error.to_string())
            .and_then(|()| {
                // The file is complete: the environment is for real agents.
                load::load(Some(&path), &Environment::default()).map_err(|found| found.to_string())
            });
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                eprintln!("agent demo: {error}");
                return 1;
            }
        };
        self.introduce(screen, &path);
        let stop = Arc::new(AtomicBool::new(false));
        let viewer = self.viewer(screen, &stop);
        self.timer(screen, seconds);
        let config = loaded.config.clone();
        let outlet = match &self.store {
            Store::Found(..) | Store::Own(..) => Outlet::Redis,
            Store::None => {
                let _ = SCREEN.set(screen);
                Outlet::Shown(show_record)
            }
        };
        let code = daemon::run(loaded.config, Box::new(move || Ok(config.clone())), outlet);
        stop.store(true, Ordering::Relaxed);
        if let Some(viewer) = viewer {
            let _ = viewer.join();
        }
        self.conclude(screen);
        code
    }

    fn configuration(&self) -> String {
        let agent = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        let redis = match &self.store {
            Store::Found(_, address) => format!("url = \"redis://{address}\""),
            Store::Own(_, _, socket) => format!("url = \"unix://{}\"", socket.display()),
            Store::None => String::new(),
        };
        let mut text = format!(
            "[agent]\nruntime_dir = {0:?}\nstate_dir = {0:?}\n\n[redis]\n{redis}\n",
            self.folder.display().to_string()
        );
        for (part, more) in [
            ("camera", ""),
            (
                "lidar",
                "after = [\"demo-camera\"]\nbackoff = { initial = \"500ms\", max = \"4s\" }\n\
                 start_limit = { burst = 4, interval = \"60s\" }\ncritical = false\n",
            ),
            ("pump", "stop = { signal = \"INT\", timeout = \"2s\" }\n"),
            ("planner", ""),
        ] {
            let _ = write!(
                text,
                "\n[service.demo-{part}]\nexecutable = {:?}\nargs = [\"demo\", \"--act\", \"{part}\"]\n{more}",
                agent.display().to_string()
            );
        }
        text.push_str(
            "\n[service.demo-pump.health.pulse]\ninit = 100\ncap = 100\ndepletion_rate = 20\nreplenish_rate = 25\n",
        );
        text
    }

    fn introduce(&self, screen: Screen, config: &Path) {
        screen.heading("A robot in small: its services, supervised by this agent");
        screen.print(&format!("  configuration  {}", config.display()));
        match &self.store {
            Store::Found(_, address) => {
                screen.print(&format!(
                    "  Redis          {address} (found; swept afterwards)"
                ));
            }
            Store::Own(_, pid, socket) => screen.print(&format!(
                "  Redis          unix://{} (started for this, pid {pid})",
                socket.display()
            )),
            Store::None => {
                screen
                    .print("  Redis          none is reachable and no redis-server is installed:");
                screen.print("                 records are shown from memory and kept nowhere");
            }
        }
        screen.print(
            "  camera talks and counts, lidar fails and is restarted, pump has a heartbeat,",
        );
        screen.print(
            "  planner writes many lines that are one message; gripper (C++) and mapper (Rust) are",
        );
        screen.print("  compiled where a compiler is, crash, and are explained");
        if let Some(cli) = self.redis_cli() {
            screen.heading("Look for yourself, while it runs");
            for command in watch::suggestions() {
                screen.print(&format!("  {cli} {command}"));
            }
        }
        let socket = self.folder.join("agent.sock");
        screen.print(&format!("  AGENT_SOCKET={} agent status", socket.display()));
        screen.heading("What goes where");
    }

    fn redis_cli(&self) -> Option<String> {
        match &self.store {
            Store::Found(_, address) => {
                let (host, port) = address.rsplit_once(':')?;
                Some(format!("redis-cli -h {host} -p {port}"))
            }
            Store::Own(_, _, socket) => Some(format!("redis-cli -s {}", socket.display())),
            Store::None => None,
        }
    }

    fn viewer(
        &self,
        screen: Screen,
        stop: &Arc<AtomicBool>,
    ) -> Option<std::thread::JoinHandle<()>> {
        let client = match &self.store {
            Store::Found(client, _) | Store::Own(client, _, _) => client.clone(),
            Store::None => return None,
        };
        watch::sweep(&client);
        let stop = Arc::clone(stop);
        std::thread::Builder::new()
            .name("viewer".to_owned())
            .spawn(move || watch::watch(&client, screen, &stop))
            .ok()
    }

    /// Shows how all stands when everything has happened once, and later ends the
    /// demonstration as a person would: with a signal.
    fn timer(&self, screen: Screen, seconds: u64) {
        let socket = self.folder.join("agent.sock");
        let before = if seconds == 0 {
            STANDING
        } else {
            STANDING.min(seconds.saturating_sub(1))
        };
        let _ = std::thread::Builder::new()
            .name("timer".to_owned())
            .spawn(move || {
                std::thread::sleep(Duration::from_secs(before));
                show_status(screen, &socket);
                if seconds == 0 {
                    screen.print("\n(it goes on until Ctrl-C)\n");
                    return;
                }
                std::thread::sleep(Duration::from_secs(seconds - before));
                let own = rustix::process::getpid();
                let _ = rustix::process::kill_process(own, rustix::process::Signal::TERM);
            });
    }

    /// Nothing is left behind.
    fn conclude(self, screen: Screen) {
        match &self.store {
            Store::Found(client, _) => watch::sweep(client),
            Store::Own(_, pid, _) => end_redis(*pid),
            Store::None => {}
        }
        let _ = std::fs::remove_dir_all(&self.folder);
        screen.heading("Done: every service ended, nothing is left behind.");
    }
}

fn found_redis() -> Option<(redis::Client, String)> {
    let address = std::env::var("REDIS_ADDR")
        .ok()
        .filter(|address| !address.is_empty())
        .unwrap_or_else(|| "127.0.0.1:6379".to_owned());
    let client = redis::Client::open(format!("redis://{address}")).ok()?;
    answers(&client).then_some((client, address))
}

fn answers(client: &redis::Client) -> bool {
    client
        .get_connection_with_timeout(Duration::from_millis(500))
        .is_ok_and(|mut connection| redis::cmd("PING").exec(&mut connection).is_ok())
}

/// Starts a redis-server that nobody else reaches; it dies with this process.
fn own_redis(folder: &Path) -> Option<Store> {
    let socket = folder.join("redis.sock");
    let text = format!(
        "[service.redis]\nexecutable = \"redis-server\"\nargs = [\"--port\", \"0\", \"--unixsocket\", {0:?}, \"--dir\", {1:?}, \"--logfile\", \"redis.log\", \"--save\", \"\"]\n",
        socket.display().to_string(),
        folder.display().to_string()
    );
    let path = folder.join("redis.toml");
    std::fs::write(&path, text).ok()?;
    let loaded = load::load(Some(&path), &Environment::default()).ok()?;
    let inherited = Inherited::take().ok()?;
    let service = loaded.config.services.first()?;
    let (pid, _) = spawn::start(&inherited, service, PipeSize::Kernel).ok()?;
    let client = redis::Client::open(format!("unix://{}", socket.display())).ok()?;
    for _ in 0..100 {
        if answers(&client) {
            return Some(Store::Own(client, pid, socket));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    end_redis(pid);
    None
}

fn end_redis(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }
}

/// What `agent status` says.
fn show_status(screen: Screen, socket: &Path) {
    let variable = |name: &str| (name == "AGENT_SOCKET").then(|| socket.as_os_str().to_owned());
    let search = Search {
        variable: &variable,
        config: None,
        sockets_of: &|_| Ok(Vec::new()),
    };
    let request = Request::Status {
        services: Vec::new(),
        pss: false,
    };
    if let Ok(reply) = client::ask(&request, &search, Some(Duration::from_secs(1))) {
        screen.heading("How all stands: agent status");
        let look = Look {
            colour: if screen.has_colour() {
                Colour::Ansi
            } else {
                Colour::Never
            },
            width: None,
        };
        screen.print(&show::status(&reply.data, look));
    }
}

static SCREEN: OnceLock<Screen> = OnceLock::new();

/// Without Redis: shows a record as what it would have become.
fn show_record(record: &Record) {
    let Some(screen) = SCREEN.get() else { return };
    match record {
        Record::Lines(lines) => {
            let key = lines.streams.key(StreamKind::Info);
            for span in &lines.spans {
                let text = lines.chunk.get(span.start as usize..span.end as usize);
                let text = String::from_utf8_lossy(text.unwrap_or_default());
                screen.row(&key, lines.source.as_str(), &text);
            }
        }
        Record::Entry(entry) => {
            let key = entry.streams.key(entry.kind);
            let event = entry.fields.iter().find(|(name, _)| *name == "event");
            let what = event.map_or("marker".into(), |(_, value)| String::from_utf8_lossy(value));
            if entry.kind == StreamKind::Crash {
                screen.report(&key, &String::from_utf8_lossy(&entry.message));
                return;
            }
            screen.row(&key, &what, &String::from_utf8_lossy(&entry.message));
        }
        Record::Count(count) => {
            let key = count.streams.value_key(&count.key);
            let effect = match &count.what {
                CountKind::Increment(by) => format!("+ {by}"),
                CountKind::Set(digits) => format!("= {digits}"),
            };
            screen.row(&key, "value", &effect);
        }
        Record::Gauges(_) => {}
    }
}
