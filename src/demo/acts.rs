//! what the demonstration services do: programs as robots have them, in small.

use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

/// Plays one part until it ends or is ended; returns its exit code.
pub fn play(name: &str) -> i32 {
    match name {
        "camera" => camera(),
        "lidar" => lidar(),
        "pump" => pump(),
        "planner" => planner(),
        _ => 2,
    }
}

/// A talker: lines on both outputs, a counter and a value in markers.
fn camera() -> i32 {
    for frame in 1u64.. {
        let exposure = 18 + frame * 7 % 23;
        say(&format!(
            "frame {frame}: 640x480, exposure {exposure} ms {{{{frames}}}}{{{{exposure:{exposure}}}}}"
        ));
        if exposure > 38 {
            complain(&format!(
                "exposure {exposure} ms is over the budget of 38 ms"
            ));
        }
        sleep(Duration::from_millis(600));
    }
    0
}

/// A flapping one: its device never answers.
fn lidar() -> i32 {
    say("opening /dev/lidar0");
    sleep(Duration::from_millis(700));
    complain("no answer from the device");
    3
}

/// A heart that beats, tires, and recovers.
fn pump() -> i32 {
    for round in 0u64.. {
        if round % 8 < 4 {
            say("pressure 2.1 bar {{__healthpool__pulse_beats}}");
        } else if round % 8 == 4 {
            complain("pressure sensor is silent: no beats");
        }
        sleep(Duration::from_secs(1));
    }
    0
}

/// Writes many lines that are one message.
fn planner() -> i32 {
    loop {
        say(
            ">>|no path to goal (7, 3):\n  blocked at (4, 2) by shelf\n  blocked at (5, 3) by human\nreplanning in 2 s|<<",
        );
        sleep(Duration::from_secs(3));
    }
}

fn say(line: &str) {
    // The agent is gone when this fails, and ends us.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
