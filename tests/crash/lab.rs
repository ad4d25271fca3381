//! source, compiler, mode → a program that crashed and its core file; shared by the tests of the analyser.

#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash")
}

/// Whether a tool is there; `rustc:TRIPLE` is the compiler with a standard library for another machine.
pub fn present(tool: &str) -> bool {
    if let Some(triple) = tool.strip_prefix("rustc:") {
        let found = shell("rustc --print sysroot", Path::new("/"));
        let sysroot = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        let library = Path::new(&sysroot).join("lib/rustlib").join(triple);
        return !sysroot.is_empty() && library.join("lib").exists();
    }
    let found = Command::new("sh")
        .arg("-c")
        .arg(format!("command -v {tool}"))
        .output();
    found.is_ok_and(|o| o.status.success())
}

pub fn shell(script: &str, folder: &Path) -> std::process::Output {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(script)
        .current_dir(folder)
        .env("SRC", sources())
        // Cores of qemu-user have no note of SVE's registers, without which gdb 13 goes round and round in a signal
        // frame. The A78AE of a Jetson has none either, and pointer authentication as this one.
        .env("QEMU_CPU", "max,sve=off,sme=off");
    command
        .env_remove("DEBUGINFOD_URLS")
        .stdin(std::process::Stdio::null());
    command.output().unwrap()
}

/// Builds and runs a case in its own folder; the core, or why there is none.
pub fn crash(build: &str, run: &str, folder: &Path) -> Result<PathBuf, String> {
    std::fs::create_dir_all(folder).unwrap();
    let built = shell(build, folder);
    if !built.status.success() {
        return Err(format!(
            "build failed: {}",
            String::from_utf8_lossy(&built.stderr)
                .lines()
                .last()
                .unwrap_or("")
        ));
    }
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    // qemu-user writes a core of the emulated program by itself; the host's is of qemu.
    let emulated = run.contains("qemu-");
    if emulated {
        shell(
            &format!("ulimit -c unlimited; {run}; rm -f core core.*"),
            folder,
        );
    } else if pattern.starts_with('|') || pattern.contains('/') {
        let arguments = run.trim_start_matches("./prog");
        let script = format!(
            "gdb -nx -batch -ex run -ex 'generate-core-file core' --args ./prog {arguments}"
        );
        shell(&script, folder);
    } else {
        shell(&format!("ulimit -c unlimited; {}", run), folder);
    }
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let core = entries.map(|e| e.path()).find(|p| {
        let name = p
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        match emulated {
            true => name.starts_with("qemu_") && name.ends_with(".core"),
            false => name == "core" || name.starts_with("core."),
        }
    });
    core.ok_or_else(|| "no core".to_owned())
}
