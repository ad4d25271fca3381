//! What a probe costs, beside the least that any program costs: `/bin/true`.
//!
//! `cargo bench --bench probe`. A HEALTHCHECK runs every few seconds on every board: the
//! bound is 1.5 times. Both are started alike, in turns, by the same parent.

#[path = "../tests/support/mod.rs"]
mod support;

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::{Scratch, eventually};

const ROUNDS: usize = 1000;

fn main() {
    let agent = env!("CARGO_BIN_EXE_agent");
    let folder = Scratch::new("probe");
    let text = format!(
        "[agent]\nruntime_dir = {run:?}\nstate_dir = {run:?}\n[redis]\nurl = 'unix:///nowhere'\n\
         [service.s]\nexecutable = '/bin/sleep'\nargs = ['1000']\n",
        run = folder.path()
    );
    let config = folder.file("agent.toml", &text);
    let mut running = Command::new(agent);
    running.args(["run", "--config"]).arg(config);
    running.stderr(Stdio::null());
    // SAFETY: prctl is async-signal-safe.
    unsafe {
        running.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let mut running = running.spawn().expect("the agent starts");
    let socket = folder.join("agent.sock");
    let once = |program: &str, arguments: &[&str]| {
        let begun = Instant::now();
        let status = Command::new(program)
            .args(arguments)
            .env("AGENT_SOCKET", &socket)
            .stdout(Stdio::null())
            .status();
        (begun.elapsed(), status.is_ok_and(|status| status.success()))
    };
    eventually("healthy", || once(agent, &["--probe"]).1);
    let (mut bare, mut probe) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bare.push(once("/bin/true", &[]).0);
        let (took, healthy) = once(agent, &["--probe"]);
        assert!(healthy);
        probe.push(took);
    }
    running.kill().expect("a child of ours");
    running.wait().expect("a child of ours");
    let (bare, probe) = (median(bare), median(probe));
    println!("/bin/true      {:>7.0} µs", micros(bare));
    println!("agent --probe  {:>7.0} µs", micros(probe));
    println!("ratio          {:>7.2}", micros(probe) / micros(bare));
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
