//! One million lines from one child to Redis, beside `redis-benchmark` in the same run.
//!
//! `cargo bench --bench delivery [-- LINES [BYTES]]`. Absolute rates belong to the machine; the
//! ratios are what to compare. The reference is the same XADD, one connection, 256 in flight:
//! `redis-benchmark -c 1 -P 256 XADD key MAXLEN ~ 1000 * message <text>`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{BufWriter, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{RedisServer, Scratch, within};

const ROUNDS: usize = 5;

fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse::<usize>().ok());
    let count = numbers.next().unwrap_or(1_000_000);
    let bytes = numbers.next().unwrap_or(100);
    println!("{count} lines of {bytes} bytes over TCP, medians of {ROUNDS} rounds\n");
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
    idle(&scratch);
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

fn run_agent(scratch: &Scratch, file: &Path, count: usize) -> Run {
    let server = RedisServer::start(&[]);
    let config = scratch.file(
        "agent.toml",
        &format!(
            "[agent]\nruntime_dir = {run:?}\nstate_dir = {run:?}\n\
             [redis]\nhost = \"127.0.0.1\"\nport = {port}\n\
             [service.flood]\nexecutable = \"/bin/cat\"\nargs = [{file:?}]\nrestart = \"never\"\n",
            run = scratch.path(),
            port = server.port(),
        ),
    );
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
    let mut text = format!(
        "[agent]\nruntime_dir = {run:?}\nstate_dir = {run:?}\n\
         [redis]\nhost = \"127.0.0.1\"\nport = {port}\n",
        run = scratch.path(),
        port = server.port(),
    );
    for number in 0..50 {
        text.push_str(&format!(
            "[service.idle{number}]\nexecutable = \"/bin/sleep\"\nargs = [\"1000\"]\n"
        ));
    }
    let config = scratch.file("idle.toml", &text);
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
