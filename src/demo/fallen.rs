//! compilers that are here → services that crash, from sources of a few lines.
//!
//! The agent itself compiles them, as `pre_start` commands, so that their reports have functions, files, lines and
//! values. Where no compiler is, a shell that falls over stands in: its report has less to tell.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

/// Names of the services, whichever are configured.
pub const SERVICES: [&str; 2] = ["demo-gripper", "demo-mapper"];

const GRIPPER: &str = r#"#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

struct Finger {
    double force;
};

struct Gripper {
    std::string name;
    Finger *finger;

    double squeeze(double newton) {
        finger->force += newton;
        return finger->force;
    }
};

int main() {
    std::puts("closing on the cup");
    std::fflush(stdout);
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    Gripper left{"left", nullptr};
    return left.squeeze(12.5) > 40;
}
"#;

const MAPPER: &str = r#"struct Map {
    width: usize,
    cells: Vec<u8>,
}

impl Map {
    fn occupied(&self, x: usize, y: usize) -> bool {
        self.cells[y * self.width + x] > 50
    }
}

fn main() {
    println!("planning across the map");
    std::thread::sleep(std::time::Duration::from_millis(500));
    let map = Map { width: 8, cells: vec![0; 64] };
    let way = [(2, 2), (5, 7), (7, 8)];
    let free = way.iter().all(|&(x, y)| !map.occupied(x, y));
    println!("free: {free}");
}
"#;

/// Their part of the configuration; the sources are written to the folder.
///
/// # Errors
/// A source cannot be written.
pub fn configuration(folder: &Path) -> io::Result<String> {
    let mut text = String::new();
    let mut add = |name: &str, source: &str, content: &str, compiler: &[&str]| {
        if !is_on_path(compiler[0]) {
            return Ok(false);
        }
        std::fs::write(folder.join(source), content)?;
        let program = folder.join(name).display().to_string();
        let mut command: Vec<String> = compiler.iter().map(|&word| word.to_owned()).collect();
        command.extend(["-g", "-o", &program, source].map(str::to_owned));
        // Paths in the reports are short then.
        let here = folder.display();
        command.push(match name == SERVICES[0] {
            true => format!("-ffile-prefix-map={here}=."),
            false => format!("--remap-path-prefix={here}=."),
        });
        let _ = write!(
            text,
            "\n[service.{name}]\nexecutable = {program:?}\nworking_directory = {:?}\npre_start = [{command:?}]\n\
             multi_line = [\"markers\", \"tracebacks\"]\n{ONCE}",
            folder.display().to_string()
        );
        Ok::<bool, io::Error>(true)
    };
    let gripper = add(SERVICES[0], "gripper.cpp", GRIPPER, &["g++", "-O0"])?;
    let rustc = ["rustc", "--edition=2021", "-Cpanic=abort", "-Cdebuginfo=2"];
    let mapper = add(SERVICES[1], "mapper.rs", MAPPER, &rustc)?;
    if !gripper && !mapper {
        let _ = write!(
            text,
            "\n[service.{}]\nexecutable = \"sh\"\nargs = [\"-c\", \"echo closing on the cup; sleep 0.5; kill -SEGV $$\"]\n{ONCE}",
            SERVICES[0]
        );
    }
    Ok(text)
}

/// One fall is enough, and nobody's health depends on it.
const ONCE: &str = "restart = \"never\"\ncritical = false\n";

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
