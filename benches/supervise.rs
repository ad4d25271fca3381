//! Fifty services started, killed, stopped and left alone, beside runit and s6 in the same run.
//!
//! `cargo bench --bench supervise [-- SERVICES] [PEER]`. The services are this program itself: it writes its pid to a fifo and
//! sleeps, so that the moment at which it runs is known without looking for it. Peers that are not installed are left out.
//! `BENCH_AGENT` names another build of the agent.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{RedisServer, Scratch};

const ROUNDS: usize = 5;
const KILLS: usize = 20;
const IDLE: Duration = Duration::from_secs(10);
/// Nothing may take longer.
const LIMIT: Duration = Duration::from_secs(30);

fn main() {
    if let Some(fifo) = std::env::var_os("BENCH_FIFO") {
        serve(Path::new(&fifo));
    }
    let count = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok());
    let count = count.unwrap_or(50);
    println!("{count} services, medians of {ROUNDS} rounds\n");
    println!(
        "{:8} {:>11} {:>18} {:>10} {:>9} {:>12} {:>8}",
        "", "start, ms", "killed → runs, ms", "stop, ms", "PSS, KiB", "switches/s", "CPU, %"
    );
    let server = RedisServer::start(&[]);
    let only: Vec<String> = std::env::args().skip(1).collect();
    let peers = [Peer::Agent, Peer::Runit, Peer::S6];
    let is_named = |peer: &Peer| only.iter().any(|word| word == peer.name());
    let all = !peers.iter().any(is_named);
    for peer in peers {
        if !all && !is_named(&peer) {
            continue;
        }
        if !peer.is_there() {
            println!("{:8} not installed", peer.name());
            continue;
        }
        let rounds: Vec<Round> = (0..ROUNDS)
            .map(|round| peer.round(count, &server, round == 0))
            .collect();
        let idle = rounds[0]
            .idle
            .as_ref()
            .expect("measured in the first round");
        println!(
            "{:8} {:>11.1} {:>18.2} {:>10.1} {:>9} {:>12.1} {:>8.2}",
            peer.name(),
            median(rounds.iter().map(|round| round.start)),
            median(rounds.iter().map(|round| round.again)),
            median(rounds.iter().map(|round| round.stop)),
            idle.pss,
            idle.switches,
            idle.cpu
        );
    }
}

/// What every supervisor runs.
fn serve(fifo: &Path) -> ! {
    let mut fifo = File::options().write(true).open(fifo).expect("the fifo");
    fifo.write_all(&std::process::id().to_ne_bytes())
        .expect("written");
    drop(fifo);
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Agent,
    Runit,
    S6,
}

struct Round {
    start: f64,
    again: f64,
    stop: f64,
    idle: Option<Idle>,
}

struct Idle {
    pss: u64,
    switches: f64,
    cpu: f64,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Peer::Agent => "agent",
            Peer::Runit => "runit",
            Peer::S6 => "s6",
        }
    }

    fn is_there(self) -> bool {
        let program = match self {
            Peer::Agent => return true,
            Peer::Runit => "runsvdir",
            Peer::S6 => "s6-svscan",
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| folder.join(program).exists())
    }

    fn round(self, count: usize, server: &RedisServer, idle: bool) -> Round {
        let folder = Scratch::new("bench");
        let fifo = folder.join("fifo");
        assert!(
            Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .expect("mkfifo")
                .success()
        );
        // Both ends, so that it never ends.
        let mut heard = File::options()
            .read(true)
            .write(true)
            .open(&fifo)
            .expect("opened");
        let mut command = self.command(&folder, count, server);
        command.env("BENCH_FIFO", &fifo);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: prctl is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let begun = Instant::now();
        let mut child = command.spawn().expect("the supervisor starts");
        let mut pids: Vec<i32> = (0..count).map(|_| next(&mut heard)).collect();
        let start = ms(begun);
        // Some wait a second before they start anything again.
        std::thread::sleep(Duration::from_millis(1200));
        let idle = idle.then(|| measure(child.id() as i32, &pids));
        let mut times = Vec::new();
        for at in 0..KILLS {
            let victim = at % count;
            let begun = Instant::now();
            signal(pids[victim], libc::SIGKILL);
            pids[victim] = next(&mut heard);
            times.push(ms(begun));
            std::thread::sleep(Duration::from_millis(20));
        }
        let ends: Vec<OwnedFd> = pids.iter().map(|pid| handle(*pid)).collect();
        let begun = Instant::now();
        self.stop(&child, &folder);
        for end in &ends {
            wait_for(end);
        }
        let stop = ms(begun);
        let until = Instant::now() + LIMIT;
        while child.try_wait().expect("a child of ours").is_none() {
            assert!(Instant::now() < until, "{} does not end", self.name());
            std::thread::sleep(Duration::from_millis(2));
        }
        Round {
            start,
            again: median(times.into_iter()),
            stop,
            idle,
        }
    }

    fn command(self, folder: &Scratch, count: usize, server: &RedisServer) -> Command {
        let program = std::env::current_exe().expect("our own path");
        let services = |count: usize| -> PathBuf {
            let scan = folder.join("scan");
            for number in 0..count {
                let service = scan.join(format!("s{number}"));
                std::fs::create_dir_all(&service).expect("a folder");
                std::os::unix::fs::symlink(&program, service.join("run")).expect("a link");
            }
            scan
        };
        match self {
            Peer::Agent => {
                let own = folder.path();
                let mut text = format!(
                    "[agent]\nruntime_dir = {own:?}\nstate_dir = {own:?}\n[redis]\nurl = \"unix://{}\"\n",
                    server.socket().display()
                );
                for number in 0..count {
                    text.push_str(&format!(
                        "[service.s{number}]\nexecutable = {program:?}\nbackoff = {{ initial = \"1ms\", max = \"1s\" }}\n\
                         start_limit = {{ burst = 0 }}\n"
                    ));
                }
                let built = env!("CARGO_BIN_EXE_agent").into();
                let agent = std::env::var_os("BENCH_AGENT").unwrap_or(built);
                let mut command = Command::new(agent);
                command
                    .args(["run", "--config"])
                    .arg(folder.file("agent.toml", &text));
                command
            }
            Peer::Runit => {
                let mut command = Command::new("runsvdir");
                command.arg(services(count));
                command
            }
            Peer::S6 => {
                let mut command = Command::new("s6-svscan");
                command.arg(services(count));
                command
            }
        }
    }

    /// Everything, in order where the supervisor knows one.
    fn stop(self, child: &Child, folder: &Scratch) {
        match self {
            Peer::Agent => signal(child.id() as i32, libc::SIGTERM),
            Peer::Runit => signal(child.id() as i32, libc::SIGHUP),
            Peer::S6 => {
                let status = Command::new("s6-svscanctl")
                    .arg("-t")
                    .arg(folder.join("scan"))
                    .status();
                assert!(status.expect("s6-svscanctl").success());
            }
        }
    }
}

fn next(heard: &mut File) -> i32 {
    let mut ready = libc::pollfd {
        fd: heard.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd.
    let count = unsafe { libc::poll(&mut ready, 1, LIMIT.as_millis() as i32) };
    assert_eq!(count, 1, "no service came up within {LIMIT:?}");
    let mut pid = [0; 4];
    heard.read_exact(&mut pid).expect("a pid");
    i32::from_ne_bytes(pid)
}

fn handle(pid: i32) -> OwnedFd {
    // SAFETY: pidfd_open(2) gives a descriptor of our own.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        assert!(fd >= 0, "{pid} lives");
        OwnedFd::from_raw_fd(fd as i32)
    }
}

fn wait_for(end: &OwnedFd) {
    let mut ended = libc::pollfd {
        fd: end.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd.
    let count = unsafe { libc::poll(&mut ended, 1, LIMIT.as_millis() as i32) };
    assert_eq!(count, 1, "a service does not end within {LIMIT:?}");
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: kill(2) touches no memory.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "{pid} lives");
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The supervisor and everything below it that is no service.
fn measure(root: i32, services: &[i32]) -> Idle {
    // What it does after its start is over by then.
    std::thread::sleep(Duration::from_secs(5));
    let mut pids = vec![root];
    let mut at = 0;
    while let Some(pid) = pids.get(at).copied() {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let children = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok());
        pids.extend(children.filter(|pid| !services.contains(pid)));
        at += 1;
    }
    let before: Vec<(u64, u64)> = pids.iter().map(|pid| used(*pid)).collect();
    std::thread::sleep(IDLE);
    let (mut switches, mut ticks, mut pss) = (0, 0, 0);
    for (pid, before) in pids.iter().zip(before) {
        let now = used(*pid);
        switches += now.0 - before.0;
        ticks += now.1 - before.1;
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
        pss += number(&rollup.unwrap_or_default(), "Pss:");
    }
    let seconds = IDLE.as_secs_f64();
    Idle {
        pss,
        switches: switches as f64 / seconds,
        cpu: ticks as f64 / seconds,
    }
}

/// Voluntary and other context switches of all threads, and clock ticks (hundredths of a second).
fn used(pid: i32) -> (u64, u64) {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let switches = tasks.flatten().map(|task| {
        let text = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        number(&text, "voluntary_ctxt_switches:") + number(&text, "nonvoluntary_ctxt_switches:")
    });
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let fields = fields.split_whitespace().skip(11).take(2);
    let ticks = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    (switches.sum(), ticks)
}

fn number(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}
