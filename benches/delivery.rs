//! What delivery costs, beside `redis-benchmark` in the same run.
//!
//! `cargo bench --bench delivery [-- LINES]`. Absolute rates belong to the machine; the ratios
//! are what to compare. The reference is the same XADD, one connection, 256 in flight:
//! `redis-benchmark -c 1 -P 256 XADD key MAXLEN ~ 1000 * message <text>`. Then: lines that
//! come slowly, a full journal that is replayed, and fifty services that do nothing.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufWriter, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{RedisServer, Scratch, within};

const ROUNDS: usize = 5;

/// Lines of the journal that is replayed: 64 MiB of text.
const REPLAYED: usize = (64 << 20) / 100;
/// Lines a second of a slow service, and for how long.
const SLOW: u64 = 1_000;
const SLOW_SECONDS: u64 = 10;
/// The argument that makes this program the slow service.
const WRITER: &str = "--write-slowly";

fn main() {
    if std::env::args().any(|argument| argument == WRITER) {
        write_slowly();
        return;
    }
    let count = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse::<usize>().ok())
        .unwrap_or(1_000_000);
    flood(count, 100);
    flood(count / 4, 1024);
    replay();
    slow();
    idle(&Scratch::new("bench"));
}

fn flood(count: usize, bytes: usize) {
    println!("\n{count} lines of {bytes} bytes over TCP, medians of {ROUNDS} rounds");
    let scratch = Scratch::new("bench");
    let file = scratch.join("lines");
    write_lines(&file, count, bytes);
    let mut reference = Vec::new();
    let mut agent = Vec::new();
    for _ in 0..ROUNDS {
        reference.push(redis_benchmark(count, bytes));
        agent.push(run_agent(&scratch, &file, count));
    }
    let reference = median(reference.iter().copied());
    let rate = median(agent.iter().map(|run| run.rate));
    println!("redis-benchmark -c 1 -P 256   {reference:>10.0} lines/s");
    println!(
        "agent                         {rate:>10.0} lines/s   ratio {:.2}",
        rate / reference
    );
    println!(
        "agent CPU per line            {:>10.2} µs (user {:.2}, system {:.2})",
        median(agent.iter().map(|run| run.cpu_us())),
        median(agent.iter().map(|run| run.user_us)),
        median(agent.iter().map(|run| run.system_us)),
    );
    println!(
        "agent peak memory (VmHWM)     {:>10.1} MiB",
        median(agent.iter().map(|run| run.peak_mib))
    );
}

/// Redis comes back to a journal of 64 MiB.
fn replay() {
    let scratch = Scratch::new("bench");
    let file = scratch.join("lines");
    write_lines(&file, REPLAYED, 100);
    let (mut live, mut replayed) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        live.push(run_agent(&scratch, &file, REPLAYED).rate);
        replayed.push(run_replay(&scratch, &file));
    }
    let (live, replayed) = (median(live.into_iter()), median(replayed.into_iter()));
    println!(
        "\nreplay of a 64 MiB journal    {replayed:>10.0} lines/s   of the live rate {:.2}",
        replayed / live
    );
}

fn run_replay(scratch: &Scratch, file: &Path) -> f64 {
    let mut server = RedisServer::start(&[]);
    server.kill();
    let config = configuration(scratch, &server, &cat(file), "[spool]\ndisk = \"256MiB\"\n");
    let agent = start_agent(&config);
    let socket = scratch.join("agent.sock");
    within(
        Duration::from_secs(120),
        "all lines are in the journal",
        || {
            std::thread::sleep(Duration::from_millis(50));
            let status = Command::new(env!("CARGO_BIN_EXE_agent"))
                .args(["status", "--json"])
                .env("AGENT_SOCKET", &socket)
                .output()
                .expect("the agent's client runs");
            let status: serde_json::Value =
                serde_json::from_slice(&status.stdout).unwrap_or_default();
            status["agent"]["redis"]["spooled_lines"].as_u64() >= Some(REPLAYED as u64)
        },
    );
    std::thread::sleep(Duration::from_secs(2));
    server.up();
    let mut client = server.client(1);
    let key = "logs:app:flood:info";
    within(Duration::from_secs(30), "the first lines", || {
        added(&mut client, key) > 0
    });
    let start = Instant::now();
    within(Duration::from_secs(120), "all lines are in Redis", || {
        std::thread::sleep(Duration::from_millis(5));
        added(&mut client, key) > REPLAYED
    });
    let rate = REPLAYED as f64 / start.elapsed().as_secs_f64();
    stop(agent);
    let _ = std::fs::remove_dir_all(scratch.join("spool"));
    rate
}

/// Microseconds since 1970.
fn now_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("a clock that is set").as_micros() as u64
}

/// Prints the time, again and again.
fn write_slowly() {
    let start = Instant::now();
    let mut out = std::io::stdout();
    for number in 0..SLOW * SLOW_SECONDS {
        let due = start + Duration::from_micros(number * 1_000_000 / SLOW);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        writeln!(out, "{}", now_us()).expect("an open pipe");
    }
}

/// From the write in the child to visible in Redis.
fn slow() {
    let scratch = Scratch::new("bench");
    let server = RedisServer::start(&[]);
    let own = std::env::current_exe().expect("this program");
    let service = format!(
        "[service.flood]\nexecutable = {own:?}\nargs = [{WRITER:?}]\nrestart = \"never\"\n"
    );
    let config = configuration(&scratch, &server, &service, "");
    let mut client = server.client(1);
    let agent = start_agent(&config);
    let mut last = "0".to_owned();
    let mut late = Vec::new();
    let mut before = None;
    type Entries = Vec<(String, Vec<String>)>;
    while late.len() < (SLOW * SLOW_SECONDS) as usize {
        let found: Option<Vec<(String, Entries)>> = redis::cmd("XREAD")
            .arg(&["BLOCK", "20000", "COUNT", "1000", "STREAMS"])
            .arg("logs:app:flood:info")
            .arg(&last)
            .query(&mut client)
            .expect("XREAD");
        let seen = now_us();
        let found = found.expect("lines within 20 s");
        for (id, fields) in found.into_iter().flat_map(|(_, entries)| entries) {
            last = id;
            if let Some(wrote) = fields.get(1).and_then(|text| text.parse::<u64>().ok()) {
                late.push(seen.saturating_sub(wrote) as f64 / 1e3);
            }
        }
        // The start is not what is measured.
        if late.len() >= SLOW as usize && before.is_none() {
            before = Some((cpu(agent.id()), late.len()));
        }
    }
    let (before, skipped) = before.expect("more than a second");
    let after = cpu(agent.id());
    let busy = (after.0 + after.1) - (before.0 + before.1);
    let lines = (late.len() - skipped) as f64;
    late.sort_by(f64::total_cmp);
    let at = |part: f64| late[((late.len() - 1) as f64 * part) as usize];
    println!(
        "\n{SLOW} lines a second: p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms; {:.1} µs of CPU per line",
        at(0.5),
        at(0.99),
        at(0.999),
        busy * 1e6 / lines
    );
    stop(agent);
}

struct Run {
    rate: f64,
    user_us: f64,
    system_us: f64,
    peak_mib: f64,
}

impl Run {
    fn cpu_us(&self) -> f64 {
        self.user_us + self.system_us
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn write_lines(file: &Path, count: usize, bytes: usize) {
    let mut out = BufWriter::new(std::fs::File::create(file).expect("a file"));
    for number in 0..count {
        let head = format!("line {number:>10} ");
        writeln!(out, "{head}{}", "x".repeat(bytes - head.len())).expect("space on disk");
    }
}

fn redis_benchmark(count: usize, bytes: usize) -> f64 {
    let server = RedisServer::start(&[]);
    let start = Instant::now();
    let status = Command::new("redis-benchmark")
        .args(["-p", &server.port().to_string(), "-c", "1", "-P", "256"])
        .args(["-n", &count.to_string(), "-q"])
        .args(["XADD", "reference", "MAXLEN", "~", "1000", "*", "message"])
        .arg("x".repeat(bytes))
        .stdout(Stdio::null())
        .status()
        .expect("redis-benchmark is installed");
    assert!(status.success());
    count as f64 / start.elapsed().as_secs_f64()
}

fn start_agent(config: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command
        .args(["run", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: prctl is async-signal-safe. The agent must not outlive a killed bench.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command.spawn().expect("the agent starts")
}

fn stop(mut agent: Child) {
    // SAFETY: plain system call, of a child that we own.
    unsafe { libc::kill(agent.id() as i32, libc::SIGTERM) };
    agent.wait().expect("the agent ends");
}

fn configuration(scratch: &Scratch, server: &RedisServer, service: &str, more: &str) -> PathBuf {
    let text = format!(
        "[agent]\nruntime_dir = {run:?}\nstate_dir = {run:?}\n\
         [redis]\nhost = \"127.0.0.1\"\nport = {port}\n{more}{service}",
        run = scratch.path(),
        port = server.port(),
    );
    scratch.file("agent.toml", &text)
}

fn cat(file: &Path) -> String {
    format!("[service.flood]\nexecutable = \"/bin/cat\"\nargs = [{file:?}]\nrestart = \"never\"\n")
}

fn run_agent(scratch: &Scratch, file: &Path, count: usize) -> Run {
    let server = RedisServer::start(&[]);
    let config = configuration(scratch, &server, &cat(file), "");
    let mut client = server.client(1);
    let start = Instant::now();
    let agent = start_agent(&config);
    within(Duration::from_secs(120), "all lines are in Redis", || {
        std::thread::sleep(Duration::from_millis(5));
        added(&mut client, "logs:app:flood:info") >= count + 2
    });
    let elapsed = start.elapsed();
    let (user, system) = cpu(agent.id());
    let peak_mib = memory(agent.id(), "status", "VmHWM:") / 1024.0;
    stop(agent);
    let per_line = 1e6 / count as f64;
    Run {
        rate: count as f64 / elapsed.as_secs_f64(),
        user_us: user * per_line,
        system_us: system * per_line,
        peak_mib,
    }
}

/// Entries ever added to a stream (Redis 7's `entries-added`).
fn added(client: &mut redis::Connection, key: &str) -> usize {
    let info: redis::RedisResult<Vec<redis::Value>> =
        redis::cmd("XINFO").arg("STREAM").arg(key).query(client);
    let Ok(info) = info else { return 0 };
    info.chunks_exact(2)
        .find_map(|pair| match pair {
            [redis::Value::BulkString(name), redis::Value::Int(value)]
                if name == b"entries-added" =>
            {
                Some(*value as usize)
            }
            _ => None,
        })
        .expect("Redis 7 or newer")
}

/// User and system seconds of a process so far, proc_pid_stat(5).
fn cpu(pid: u32) -> (f64, f64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let after = stat.rsplit_once(')').expect("the name's end").1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    // SAFETY: plain query.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let seconds = |index: usize| fields[index].parse::<f64>().expect("ticks") / hertz;
    (seconds(11), seconds(12))
}

/// A line in kB of /proc/PID/<file>.
fn memory(pid: u32, file: &str, name: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("a process");
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .expect("a number of kB")
}

/// Fifty services that do nothing: memory and CPU of the agent itself.
fn idle(scratch: &Scratch) {
    let server = RedisServer::start(&[]);
    let mut text = String::new();
    for number in 0..50 {
        text.push_str(&format!(
            "[service.idle{number}]\nexecutable = \"/bin/sleep\"\nargs = [\"1000\"]\n"
        ));
    }
    let config = configuration(scratch, &server, &text, "");
    let agent = start_agent(&config);
    let mut client = server.client(1);
    within(Duration::from_secs(30), "all fifty run", || {
        added(&mut client, "logs:app:idle49:status") >= 2
    });
    std::thread::sleep(Duration::from_secs(3));
    let before = cpu(agent.id());
    let seconds = 10;
    std::thread::sleep(Duration::from_secs(seconds));
    let after = cpu(agent.id());
    let ran = (after.0 + after.1) - (before.0 + before.1);
    let busy = ran.max(0.0) / seconds as f64 * 100.0;
    let pss = memory(agent.id(), "smaps_rollup", "Pss:") / 1024.0;
    println!("idle with 50 services         {pss:>10.1} MiB PSS, {busy:.2} % CPU");
    stop(agent);
}
