//! aarch64 programs that crash under qemu-user → reports with the functions that the source dictates.
//!
//! Needs aarch64-linux-gnu-gcc and qemu-aarch64-static (Debian: gcc-aarch64-linux-gnu, qemu-user-static); skipped with a
//! message without. qemu writes cores of its own kind: no NT_FILE, no NT_SIGINFO, no program text.

#[path = "crash/lab.rs"]
mod lab;

use jettison_agent::crash::examine::{self, Options};
use std::path::{Path, PathBuf};

const SYSROOT: &str = "/usr/aarch64-linux-gnu";

/// Compiles, runs under qemu, and returns the core.
fn crash(folder: &Path, flags: &str, mode: &str) -> Option<PathBuf> {
    std::fs::create_dir_all(folder).unwrap();
    let script = format!(
        "ulimit -c unlimited; aarch64-linux-gnu-gcc -g {flags} $SRC/modes.c -o prog -lpthread && \
         qemu-aarch64-static -L {SYSROOT} ./prog {mode}; rm -f core core.*"
    );
    lab::shell(&script, folder);
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "core"))
}

#[test]
fn stacks_of_aarch64_programs() {
    for tool in ["aarch64-linux-gnu-gcc", "qemu-aarch64-static"] {
        if !lab::present(tool) {
            eprintln!("skipped: needs {tool}");
            return;
        }
    }
    let start = ["__libc_start_call_main", "__libc_start_main_impl", "_start"];
    let middle = [
        "touch", "deepest", "middle", "middle", "middle", "middle", "main",
    ];
    let handler = [
        "touch",
        "deepest",
        "middle",
        "middle",
        "on_signal",
        "<signal handler called>",
    ];
    // Flags, mode, innermost functions, outermost functions.
    let cases: [(&str, &str, &[&str], &[&str]); 9] = [
        ("-O0 -static", "null", &middle, &start),
        ("-O1 -static", "null", &middle, &start),
        (
            "-O1 -static -mbranch-protection=standard",
            "null",
            &middle,
            &start,
        ),
        ("-O1 -static -fomit-frame-pointer", "null", &middle, &start),
        ("-O1 -static", "handler", &handler, &start),
        (
            "-O1 -static -mbranch-protection=pac-ret+leaf",
            "handler",
            &handler,
            &start,
        ),
        ("-O0 -static", "nullcall", &["", "call", "main"], &start),
        (
            "-O1 -static",
            "threads",
            &["touch", "deepest", "middle"],
            &["worker", "start_thread", "thread_start"],
        ),
        (
            "-O1 -mbranch-protection=standard",
            "null",
            &middle,
            &["_start"],
        ),
    ];
    let root = std::env::temp_dir().join(format!("crash-aarch64-{}", std::process::id()));
    for (index, (flags, mode, inner, outer)) in cases.iter().enumerate() {
        let folder = root.join(index.to_string());
        let Some(core) = crash(&folder, flags, mode) else {
            eprintln!("{flags} {mode} skipped: no core");
            continue;
        };
        let options = Options {
            executable: Some(folder.join("prog")),
            sysroot: Some(SYSROOT.into()),
            ..Options::default()
        };
        let report = examine::examine(&core, &options, &Default::default()).unwrap();
        let frames = &report.threads[0].frames;
        let functions: Vec<&str> = frames
            .iter()
            .map(|f| f.function.as_deref().unwrap_or(""))
            .collect();
        assert!(
            functions.starts_with(inner) && functions.ends_with(outer),
            "{flags} {mode}: {functions:?}"
        );
        let lines = frames
            .iter()
            .filter(|f| f.file.as_deref().is_some_and(|p| p.ends_with("modes.c")));
        assert!(
            lines.filter(|f| f.line.is_some()).count() >= 2,
            "{flags} {mode}"
        );
    }
    let _ = std::fs::remove_dir_all(&root);
}
