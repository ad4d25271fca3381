//! What a crash costs: how long the process is held, when the report is in Redis, what analysing much debug
//! information takes, beside gdb and eu-stack in the same run; and what being traced costs a healthy service.
//!
//! `cargo bench --bench crash [-- held|kernel|report|big|steady…]`. Absolute times belong to the machine; ratios are what to
//! compare. `big` links some 300 MB of DWARF from one C++ file, many times over.

#[path = "../tests/support/agent.rs"]
mod agent;
#[path = "../tests/support/pattern.rs"]
mod pattern;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent::{AGENT, Agent};
use pattern::Pattern;
use support::{RedisServer, Scratch, entries, within};

const ROUNDS: usize = 9;

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|word| word == part);
    if is_wanted("held") {
        held();
    }
    if is_wanted("kernel") {
        kernel();
    }
    if is_wanted("report") {
        report();
    }
    if is_wanted("big") {
        big();
    }
    if is_wanted("steady") {
        steady();
    }
}

fn compile(folder: &Scratch, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let compiler = if name.ends_with(".cc") { "g++" } else { "cc" };
    let file = folder.file(name, source);
    let program = folder.join(name.split('.').next().unwrap_or(name));
    let status = Command::new(compiler)
        .args(["-g", "-O1", "-fno-inline", "-pthread"])
        .args(flags)
        .arg("-o")
        .args([&program, &file])
        .status()
        .expect("a compiler");
    assert!(status.success());
    program
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Waits for all its threads, and then one of them crashes.
const THREADS: &str = r#"
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
static pthread_barrier_t all;
static void *idle(void *x) { pthread_barrier_wait(&all); for (;;) pause(); return x; }
static int divide(int by) { return 100 / by; }
int main(int n, char **v) {
  pthread_t t; int count = atoi(v[1]) - 1;
  pthread_barrier_init(&all, 0, count + 1);
  for (int i = 0; i < count; i++) pthread_create(&t, 0, idle, 0);
  pthread_barrier_wait(&all);
  usleep(20000);
  return divide(n - 2);
}
"#;

/// By tracing, as the agent itself tells (`AGENT_LOG=debug`).
fn held() {
    let folder = Scratch::new("bench");
    let program = compile(&folder, "threads.c", THREADS, &[]);
    println!("held while it is copied by tracing (target: 5 ms with 16 threads, 20 ms with 200)");
    for threads in ["1", "16", "200", "1000"] {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            times.push(held_once(&program, threads));
        }
        println!(
            "{threads:>5} threads     {:>8.2} ms   least {:.2}",
            median(times.clone()),
            least(&times)
        );
    }
    println!();
}

fn held_once(program: &Path, threads: &str) -> f64 {
    let folder = Scratch::new("held");
    let text = format!(
        "{}[service.s]\nexecutable = {program:?}\nargs = [{threads:?}]\nrestart = \"never\"\n",
        agent::head(&folder, None)
    );
    let config = folder.file("agent.toml", &text);
    let log = folder.join("log");
    let mut running = Command::new(AGENT);
    running.args(["run", "--config"]).arg(config);
    running.env("AGENT_LOG", "debug").stdout(Stdio::null());
    running.stderr(std::fs::File::create(&log).expect("a file"));
    agent::die_with_parent(&mut running);
    let mut running = running.spawn().expect("the agent starts");
    let mut found = None;
    within(Duration::from_secs(20), "it is held", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        found = text
            .split("it was held for ")
            .nth(1)
            .and_then(|rest| rest.lines().next().map(str::to_owned));
        found.is_some()
    });
    let _ = running.kill();
    let _ = running.wait();
    let found = found.expect("a time");
    let number: f64 = found
        .trim_end_matches(|c: char| !c.is_ascii_digit())
        .parse()
        .expect("a number");
    match found.contains("ms") {
        true => number,
        false if found.contains("µs") => number / 1e3,
        false => number * 1e3,
    }
}

/// Prints the milliseconds from the crash of a child with so many threads to its end.
const ENDS: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static pthread_barrier_t all;
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e3 + t.tv_nsec / 1e6; }
static void *idle(void *x) { pthread_barrier_wait(&all); for (;;) pause(); return x; }
int main(int n, char **v) {
  int count = atoi(v[1]) - 1, status; pthread_t t;
  double *at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  int child = fork();
  if (!child) {
    pthread_barrier_init(&all, 0, count + 1);
    for (int i = 0; i < count; i++) pthread_create(&t, 0, idle, 0);
    pthread_barrier_wait(&all); usleep(20000);
    *at = now(); return *(volatile int *)0;
  }
  waitpid(child, &status, 0);
  printf("%f\n", now() - *at);
  return n != 2;
}
"#;

/// By the kernel: the whole way of a process to its end, with the handler and without.
fn kernel() {
    let folder = Scratch::new("bench");
    let program = compile(&folder, "ends.c", ENDS, &[]);
    let ends = |threads: &str| -> f64 {
        let output = Command::new(&program).arg(threads).output();
        let text = String::from_utf8_lossy(&output.expect("it runs").stdout).into_owned();
        text.trim().parse().expect("a time")
    };
    let least_of = |threads: &str| -> (f64, f64) {
        let times: Vec<f64> = (0..ROUNDS).map(|_| ends(threads)).collect();
        (median(times.clone()), least(&times))
    };
    let counts = ["1", "16", "200"];
    let without: Vec<(f64, f64)> = counts.iter().map(|count| least_of(count)).collect();
    let place = Scratch::new("ka");
    let Some(_pattern) = Pattern::take(&place) else {
        return;
    };
    let text = format!(
        "{}[service.s]\nexecutable = \"/bin/sleep\"\nargs = [\"1000\"]\n",
        agent::head(&place, None)
    );
    let _agent = Agent::start_in(place, &text);
    println!("from the crash to the end of the process, by the kernel's core_pattern");
    for (count, without) in counts.iter().zip(without) {
        let with = least_of(count);
        println!(
            "{count:>5} threads     {:>8.2} ms   least {:.2}   (with no core at all {:.2}, least {:.2})",
            with.0, with.1, without.0, without.1
        );
    }
    println!();
}

/// Says when it crashes (Unix nanoseconds), and does.
const NULL: &str = r#"
#include <stdio.h>
#include <time.h>
static int inner(volatile int *where) { return *where; }
static int outer(volatile int *where) { return inner(where) + 1; }
int main(void) {
  struct timespec now; clock_gettime(CLOCK_REALTIME, &now);
  printf("%ld%09ld\n", (long)now.tv_sec, now.tv_nsec); fflush(stdout);
  return outer(0);
}
"#;

/// The same with what C++ brings along.
const MIDDLE: &str = r#"
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <regex>
#include <sstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>
struct Ring { std::vector<int> cells; std::string name; std::map<std::string, std::vector<double>> table;
  int push(volatile int *where) { return *where + (int)cells.size(); } };
int scan(Ring &ring, volatile int *where) { return ring.push(where); }
int main(int n, char **v) {
  std::regex re("[a-z]+(x|y)*"); std::unordered_map<std::string, std::function<int(int)>> f;
  f["a"] = [](int x) { return x + 1; };
  Ring ring{{1, 2, 3}, "scanner", {{"a", {1.0}}}};
  std::ostringstream out; out << std::regex_match(v[0], re) << f["a"](n);
  timespec now; clock_gettime(CLOCK_REALTIME, &now);
  printf("%ld%09ld\n", (long)now.tv_sec, now.tv_nsec); fflush(stdout);
  std::vector<int> items(3);
  std::for_each(items.begin(), items.end(), [&](int) { scan(ring, nullptr); });
}
"#;

fn report() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("bench");
    println!(
        "from the fatal signal to the report in Redis (target: 150 ms mid-size), and what others take"
    );
    let small = compile(&folder, "small.c", NULL, &[]);
    let middle = compile(&folder, "middle.cc", MIDDLE, &[]);
    for (name, program) in [("small C", &small), ("mid-size C++", &middle)] {
        let mut times = Vec::new();
        let mut core = None;
        for round in 0..ROUNDS {
            let stream = format!("r{}{round}", program.file_name().map_or(0, |n| n.len()));
            let agent = Agent::start(
                Some(&server),
                &format!("[service.{stream}]\nexecutable = {program:?}\nrestart = \"never\"\n"),
            );
            times.push(until_reported(&server, &stream));
            core = core.or_else(|| any_core(&agent, &folder));
        }
        println!(
            "{name:<14} agent, to Redis  {:>8.0} ms   least {:.0}",
            median(times.clone()),
            least(&times)
        );
        compare(name, program, &core.expect("a core file"));
    }
    println!();
}

/// Polled, a tenth of a millisecond apart.
fn until_reported(server: &RedisServer, stream: &str) -> f64 {
    let mut client = server.client(1);
    let key = |kind: &str| format!("logs:app:{stream}:{kind}");
    let mut reported = 0;
    within(Duration::from_secs(60), "a report", || {
        let entries: i64 = redis::cmd("XLEN")
            .arg(key("crash"))
            .query(&mut client)
            .unwrap_or(0);
        reported = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_nanos());
        std::thread::sleep(Duration::from_micros(100));
        entries > 0
    });
    let lines = entries(&mut client, &key("info"));
    let at: u128 = lines
        .iter()
        .find_map(|line| line.message().parse().ok())
        .expect("the time of the crash");
    reported.saturating_sub(at) as f64 / 1e6
}

fn any_core(agent: &Agent, to: &Scratch) -> Option<PathBuf> {
    let records = std::fs::read_dir(agent.folder.join("crashes")).ok()?;
    let core = records
        .flatten()
        .map(|record| record.path().join("core"))
        .find(|core| core.exists())?;
    let kept = to.join("core");
    std::fs::copy(core, &kept).ok()?;
    Some(kept)
}

/// Wall and CPU time, and memory of its own, of the ways to read one core.
fn compare(name: &str, program: &Path, core: &Path) {
    let program = program.to_string_lossy().into_owned();
    let core = core.to_string_lossy().into_owned();
    let ways: [(&str, Vec<&str>); 3] = [
        ("agent symbolize", vec![AGENT, "symbolize", &core]),
        (
            "gdb bt full",
            vec!["gdb", "-nx", "-batch", "-ex", "bt full", &program, &core],
        ),
        (
            "eu-stack",
            vec!["eu-stack", "--core", &core, "-e", &program, "-i"],
        ),
    ];
    for (way, words) in ways {
        let runs: Vec<Cost> = (0..3).filter_map(|_| cost(&words)).collect();
        if runs.is_empty() {
            println!("{name:<14} {way:<16} is not here");
            continue;
        }
        println!(
            "{name:<14} {way:<16} {:>8.0} ms   CPU {:>6.0} ms   anonymous {:>6.1} MiB, with files {:.1}",
            median(runs.iter().map(|run| run.wall_ms).collect()),
            median(runs.iter().map(|run| run.cpu_ms).collect()),
            median(runs.iter().map(|run| run.anonymous_mib).collect()),
            median(runs.iter().map(|run| run.peak_mib).collect()),
        );
    }
}

struct Cost {
    wall_ms: f64,
    cpu_ms: f64,
    anonymous_mib: f64,
    peak_mib: f64,
}

/// `None` where there is no such program.
fn cost(words: &[&str]) -> Option<Cost> {
    let begun = Instant::now();
    let child = Command::new(words.first()?)
        .args(&words[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let pid = child.id() as i32;
    let mut anonymous = 0;
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        let now = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        anonymous = anonymous.max(now.unwrap_or(0));
        let mut ended = 0;
        // SAFETY: a child of ours, waited for here only.
        if unsafe { libc::wait4(pid, &mut ended, libc::WNOHANG, &mut usage) } == pid {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let time = |t: libc::timeval| t.tv_sec as f64 * 1e3 + t.tv_usec as f64 / 1e3;
    Some(Cost {
        wall_ms: ms(begun.elapsed()),
        cpu_ms: time(usage.ru_utime) + time(usage.ru_stime),
        anonymous_mib: anonymous as f64 / 1024.0,
        peak_mib: usage.ru_maxrss as f64 / 1024.0,
    })
}

/// Many instances of much: its object is linked many times, each with another entry.
const HEAVY: &str = r#"
#include <algorithm>
#include <array>
#include <functional>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>
template <int N> struct Part {
  std::map<std::array<int, N>, std::vector<std::string>> table;
  std::unordered_map<std::string, std::function<std::string(const Part &)>> calls;
  std::variant<int, std::string, std::vector<std::array<double, N>>> value;
  int work(volatile int *where, int depth) {
    std::array<int, N> key{}; table[key].push_back(std::to_string(depth));
    std::sort(table[key].begin(), table[key].end(), [](auto &a, auto &b) { return a < b; });
    calls["x"] = [depth](const Part &p) { return std::to_string(p.table.size() + depth); };
    value = std::vector<std::array<double, N>>(3);
    return depth ? Part<N - 1>().work(where, depth - 1) + 1 : *where;
  }
};
template <> struct Part<0> { int work(volatile int *where, int) { return *where; } };
extern "C" int entry_of_one(volatile int *where) { return Part<24>().work(where, 30); }
"#;

const COPIES: usize = 140;

fn big() {
    let folder = Scratch::new("bench");
    let file = folder.file("heavy.cc", HEAVY);
    let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let run = |words: &[&str]| {
        let status = Command::new(words[0]).args(&words[1..]).status();
        assert!(status.expect("a tool").success(), "{words:?}");
    };
    let heavy = path("heavy.o");
    run(&[
        "g++",
        "-g",
        "-O0",
        "-std=c++17",
        "-c",
        &file.to_string_lossy(),
        "-o",
        &heavy,
    ]);
    let mut main = "#include <cstdio>\n".to_owned();
    for copy in 0..COPIES {
        main += &format!("extern \"C\" int entry{copy}(volatile int *);\n");
    }
    main += "int main(int n, char **) { switch (n) {\n";
    for copy in 0..COPIES {
        main += &format!("case {}: return entry{copy}(0);\n", copy + 2);
    }
    main += "default: return entry0(0); } }\n";
    let main = folder.file("main.cc", &main).to_string_lossy().into_owned();
    let program = path("big");
    let mut words = vec![
        "g++".to_owned(),
        "-g".into(),
        "-o".into(),
        program.clone(),
        main,
    ];
    for copy in 0..COPIES {
        let object = path(&format!("{copy}.o"));
        let rename = format!("entry_of_one=entry{copy}");
        run(&["objcopy", "--redefine-sym", &rename, &heavy, &object]);
        words.push(object);
    }
    words.push("-pthread".into());
    run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let sections = Command::new("size")
        .args(["-A", &program])
        .output()
        .expect("size");
    let sections = String::from_utf8_lossy(&sections.stdout).into_owned();
    let dwarf: u64 = sections
        .lines()
        .filter(|line| line.starts_with(".debug"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    println!(
        "a program of {} MB with {} MB of DWARF (target: 0.5 s of CPU, 250 MB)",
        std::fs::metadata(&program).map_or(0, |about| about.len()) >> 20,
        dwarf >> 20
    );
    let agent = Agent::start(
        None,
        &format!("[service.big]\nexecutable = {program:?}\nrestart = \"never\"\n"),
    );
    let mut core = None;
    within(Duration::from_secs(60), "a core file", || {
        core = any_core(&agent, &folder);
        core.is_some()
    });
    drop(agent);
    compare("big C++", Path::new(&program), &core.expect("a core file"));
    println!();
}

/// Prints nanoseconds for each thing.
const STEADY: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
static void handler(int s) { (void)s; }
static void *nothing(void *x) { return x; }
int main(void) {
  double at; int i; pthread_t t;
  signal(SIGUSR1, handler);
  at = now(); for (i = 0; i < 20000; i++) raise(SIGUSR1); printf("signal %.0f\n", (now() - at) / i);
  at = now(); for (i = 0; i < 5000; i++) { pthread_create(&t, 0, nothing, 0); pthread_join(t, 0); } printf("thread %.0f\n", (now() - at) / i);
  at = now(); for (i = 0; i < 1000; i++) { if (!fork()) _exit(0); wait(0); } printf("fork %.0f\n", (now() - at) / i);
  at = now(); for (i = 0; i < 2000000; i++) syscall(SYS_getppid); printf("call %.1f\n", (now() - at) / i);
  fflush(stdout);
}
"#;

fn steady() {
    let server = RedisServer::start(&[]);
    let folder = Scratch::new("bench");
    let program = compile(&folder, "steady.c", STEADY, &[]);
    println!("what tracing costs a healthy service (least of {ROUNDS} interleaved rounds)");
    let mut least: Vec<(String, [f64; 2])> = Vec::new();
    for round in 0..ROUNDS {
        for (which, how) in ["off", "ptrace"].into_iter().enumerate() {
            let stream = format!("s{which}x{round}");
            let agent = Agent::start(
                Some(&server),
                &format!(
                    "[service.{stream}]\nexecutable = {program:?}\nrestart = \"never\"\ncrash = \"{how}\"\n"
                ),
            );
            within(Duration::from_secs(60), "it has measured", || {
                agent.service(&stream)["state"] == "done"
            });
            for line in entries(&mut server.client(1), &format!("logs:app:{stream}:info")) {
                let message = line.message();
                let Some((what, Ok(ns))) =
                    message.split_once(' ').map(|(a, b)| (a, b.parse::<f64>()))
                else {
                    continue;
                };
                match least.iter_mut().find(|(name, _)| name == what) {
                    Some((_, found)) => found[which] = found[which].min(ns),
                    None => {
                        let mut found = [f64::INFINITY; 2];
                        found[which] = ns;
                        least.push((what.to_owned(), found));
                    }
                }
            }
        }
    }
    for (what, [off, traced]) in least {
        println!(
            "{what:<8} {off:>10.0} ns untraced   {traced:>10.0} ns traced   {:>6.2} times",
            traced / off
        );
    }
    println!();
}
