//! `agent symbolize` on cores of all kinds: huge, cut off, from elsewhere, of programs at any address.
//!
//! Needs gcc; what a case needs besides is skipped with a message where it is absent.

#[path = "crash/lab.rs"]
mod lab;

use jettison_agent::crash::report::Report;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const BUILD: &str = "gcc -g -O1 $SRC/modes.c -o prog -lpthread";

/// A folder of its own, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let name = format!("crash-cores-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        // As the kernel writes it.
        Folder(path.canonicalize().unwrap())
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A core of `./prog MODE`, or a message why there is none.
fn core(folder: &Path, build: &str, mode: &str) -> Option<PathBuf> {
    if !lab::present("gcc") {
        eprintln!("skipped: needs gcc");
        return None;
    }
    lab::crash(build, &format!("./prog {mode}"), folder)
        .map_err(|problem| eprintln!("skipped: {problem}"))
        .ok()
}

fn symbolize(core: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(AGENT);
    command.arg("symbolize").arg(core).args(more);
    command.output().expect("the agent runs")
}

fn report(core: &Path, more: &[&str]) -> Report {
    let output = symbolize(core, &[&["--json"], more].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn functions(report: &Report) -> Vec<&str> {
    let frames = report.threads[0].frames.iter();
    frames
        .map(|f| f.function.as_deref().unwrap_or("??"))
        .collect()
}

fn number(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("a hexadecimal number")
}

#[test]
fn base_and_offset_give_the_address() {
    let folder = Folder::new("base");
    for (kind, flags) in [
        ("pie", "-pie -fpie"),
        ("fixed", "-no-pie -fno-pie"),
        ("static", "-static"),
        ("static-pie", "-static-pie"),
    ] {
        let build = format!("gcc -g -O0 {flags} $SRC/modes.c -o prog -lpthread");
        let Some(core) = core(&folder.join(kind), &build, "null") else {
            return;
        };
        let report = report(&core, &[]);
        assert!(functions(&report).contains(&"main"), "{kind}: {report:#?}");
        let mut checked = 0;
        for frame in &report.threads[0].frames {
            let (Some(name), Some(offset)) = (&frame.module, &frame.module_offset) else {
                continue;
            };
            let is_its = |path: &str| path.rsplit('/').next() == Some(name);
            let module = report.modules.iter().find(|m| is_its(&m.path));
            let module = module.expect("the module of a frame");
            let address = number(&frame.address);
            assert_eq!(number(&module.base) + number(offset), address, "{kind}");
            let end = number(module.end.as_deref().expect("its end"));
            assert!((number(&module.base)..end).contains(&address), "{kind}");
            checked += 1;
        }
        assert!(checked >= 7, "{kind}: {checked} frames");
    }
}

/// The same core with so many further segments that their number does not fit into the header (PN_XNUM, elf(5)).
fn with_segments(core: &[u8], further: u32) -> Vec<u8> {
    let word = |at: usize| u64::from_le_bytes(core[at..at + 8].try_into().unwrap());
    let count = u32::from(u16::from_le_bytes(core[56..58].try_into().unwrap()));
    let table = word(32) as usize;
    let mut bytes = core.to_vec();
    bytes.resize(bytes.len().next_multiple_of(64), 0);
    let new_table = bytes.len() as u64;
    bytes.extend_from_within(table..table + count as usize * 56);
    for index in 0..u64::from(further) {
        // Readable pages without contents, far from everything.
        let address = 0x1000_0000_0000 + index * 0x2000;
        bytes.extend([1u32.to_le_bytes(), 4u32.to_le_bytes()].concat());
        for word in [0, address, 0, 0, 0x1000, 0x1000] {
            bytes.extend(u64::to_le_bytes(word));
        }
    }
    let sections = bytes.len() as u64;
    let mut section = [0; 64];
    section[44..48].copy_from_slice(&(count + further).to_le_bytes());
    bytes.extend(section);
    bytes[32..40].copy_from_slice(&new_table.to_le_bytes());
    bytes[40..48].copy_from_slice(&sections.to_le_bytes());
    bytes[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
    bytes[58..62].copy_from_slice(&[64, 0, 1, 0]);
    bytes
}

#[test]
fn more_segments_than_the_header_can_count() {
    let folder = Folder::new("segments");
    let Some(core) = core(&folder.0, BUILD, "threads") else {
        return;
    };
    let plain = report(&core, &[]);
    let huge = folder.join("huge");
    let bytes = std::fs::read(&core).unwrap();
    std::fs::write(&huge, with_segments(&bytes, 70_000)).unwrap();
    let report = report(&huge, &[]);
    assert!(functions(&report).starts_with(&["touch", "deepest", "middle"]));
    assert_eq!(report.signature, plain.signature);
    assert_eq!(report.threads, plain.threads);
    assert_eq!(report.notes, plain.notes);
    if lab::present("gdb") {
        let script = "gdb -nx -batch -ex bt prog huge 2>/dev/null";
        let said = lab::shell(script, &folder.0).stdout;
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("deepest"), "what was made is no core: {said}");
    }
}

#[test]
fn a_core_of_thousands_of_threads_is_bounded_and_told() {
    let folder = Folder::new("threads");
    let Some(core) = core(&folder.0, BUILD, "manythreads 5000") else {
        return;
    };
    let report = report(&core, &[]);
    assert_eq!(report.threads.len(), 4096);
    assert!(report.threads[0].crashed);
    assert!(functions(&report).starts_with(&["touch", "deepest", "middle"]));
    let waits = |t: &&jettison_agent::crash::report::Thread| {
        let mut functions = t.frames.iter().filter_map(|f| f.function.as_deref());
        functions.any(|name| name == "worker" || name == "main")
    };
    assert_eq!(report.threads.iter().filter(waits).count(), 4096);
    let told = report.notes.join("\n");
    assert!(
        told.contains("only 4096 of 5001 threads are shown"),
        "{told}"
    );
}

#[test]
fn a_core_that_was_cut_off_tells_what_it_has_and_that_it_was() {
    let folder = Folder::new("cut");
    let Some(core) = core(&folder.0, BUILD, "threads") else {
        return;
    };
    let bytes = std::fs::read(&core).unwrap();
    let whole = report(&core, &[]);
    assert!(whole.notes.is_empty(), "{:?}", whole.notes);
    let cut = folder.join("cut");
    let mut best = 0;
    // From the headers alone to all but the last page.
    for tenths in [1, 3, 5, 7, 9] {
        std::fs::write(&cut, &bytes[..bytes.len() * tenths / 10]).unwrap();
        let report = report(&cut, &[]);
        let note = &report.notes[0];
        assert!(note.starts_with("the core file is cut off: "), "{note}");
        assert_eq!(report.threads.len(), whole.threads.len());
        assert_eq!(report.threads[0].registers, whole.threads[0].registers);
        assert_eq!(report.signal, whole.signal);
        assert_eq!(functions(&report)[0], "touch");
        best = best.max(report.threads[0].frames.len());
        let text = symbolize(&cut, &[]);
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        assert!(text.contains("Note: the core file is cut off"), "{text}");
    }
    assert!(best >= 3, "{best} frames at most");
    // Nothing but the beginning of its notes; nothing at all.
    for length in [0, 10, 64, 1000] {
        std::fs::write(&cut, &bytes[..length]).unwrap();
        let output = symbolize(&cut, &[]);
        assert_eq!(output.status.code(), Some(1), "{length}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
}

#[test]
fn a_core_from_a_board_with_a_copy_of_its_files() {
    let folder = Folder::new("sysroot");
    let build = "gcc -g -O0 -shared -fPIC $SRC/plugin.c -o libplugin.so && \
                 gcc -g -O0 $SRC/modes.c -o prog -ldl -lpthread";
    let Some(core) = core(&folder.join("board"), build, "plugin") else {
        return;
    };
    let there = report(&core, &[]);
    assert!(functions(&there).contains(&"plugin_entry"), "{there:#?}");
    let own = |report: &Report| {
        let frames = report.threads[0].frames.iter();
        let frames =
            frames.filter(|f| f.file.as_deref().is_some_and(|f| f.contains("tests/crash")));
        frames
            .map(|f| (f.function.clone(), f.line, f.arguments.clone()))
            .collect::<Vec<_>>()
    };
    // What is not here any more lies in a copy of the board's root folder.
    let root = folder.join("root");
    let copied = |name: &str| {
        let path = folder.join("board").join(name);
        let copy = root.join(path.strip_prefix("/").unwrap());
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::rename(path, copy).unwrap();
    };
    copied("prog");
    copied("libplugin.so");
    for module in &there.modules {
        let from = Path::new(&module.path);
        let to = root.join(module.path.trim_start_matches('/'));
        if from.is_absolute() && from.exists() {
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(from, to).unwrap();
        }
    }
    // Names may come from what the core holds of the files; lines do not.
    let here = report(&core, &[]);
    assert!(own(&here).is_empty(), "{here:#?}");
    // Nor is the code there, but the chain of frame pointers is.
    assert_eq!(functions(&here).len(), functions(&there).len());
    assert!(
        here.notes
            .iter()
            .any(|n| n.contains("prog: file not found"))
    );
    let back = report(&core, &["--sysroot", root.to_str().unwrap()]);
    assert!(own(&there).len() >= 3);
    assert_eq!(own(&back), own(&there));
    assert_eq!(functions(&back).len(), functions(&there).len());
    assert_eq!(back.signature, there.signature);
    // A file of the same name and another build is not believed.
    let rebuilt = "gcc -g -O2 -DOTHER $SRC/modes.c -o prog -ldl -lpthread";
    let other = root.join(folder.join("board").strip_prefix("/").unwrap());
    assert!(lab::shell(rebuilt, &other).status.success());
    let wrong = report(&core, &["--sysroot", root.to_str().unwrap()]);
    let told = wrong.notes.join("\n");
    assert!(told.contains("is not the build that ran"), "{told}");
    // The same of one that is named, and one that is not there is an error.
    let other = other.join("prog");
    let named = report(&core, &["--executable", other.to_str().unwrap()]);
    let told = named.notes.join("\n");
    let note = "is not the build that ran: it is not used";
    assert!(told.contains(note), "{told}");
    let nowhere = symbolize(&core, &["--executable", "/nonexistent/prog"]);
    assert_eq!(nowhere.status.code(), Some(1));
    let told = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    assert!(
        told.contains("--executable /nonexistent/prog: No such file"),
        "{told}"
    );
    assert!(
        own(&wrong)
            .iter()
            .all(|(f, _, _)| f.as_deref() != Some("main"))
    );
}

/// Signatures of one source, built under different names in different folders, one of them crashed twice.
fn signatures(language: &str, compiler: &str, source: &str, mode: &str) -> Option<Vec<String>> {
    if !lab::present(compiler.split(' ').next().unwrap_or_default()) {
        eprintln!("skipped: needs {compiler}");
        return None;
    }
    let folder = Folder::new(&format!("signature-{language}-{mode}"));
    let mut signatures = Vec::new();
    let mut addresses = Vec::new();
    let twice = &["first", "second"][..];
    for (place, lines, runs) in [("here", 0, twice), ("elsewhere/deeper", 7, &["first"])] {
        let below = folder.join(place);
        std::fs::create_dir_all(&below).unwrap();
        let name = format!("{}-source.{language}", place.replace('/', "_"));
        // Further lines move every line of the source.
        let text = std::fs::read_to_string(lab::sources().join(source)).unwrap();
        let text = "\n".repeat(lines) + &text;
        std::fs::write(below.join(&name), text).unwrap();
        let program = format!("prog{lines}");
        let built = lab::shell(&format!("{compiler} {name} -o {program}"), &below);
        assert!(built.status.success(), "{built:?}");
        for run in runs {
            let at = below.join(run);
            let build = format!("cp ../{program} prog");
            let core = lab::crash(&build, &format!("./prog {mode}"), &at);
            let core = core.unwrap_or_else(|problem| panic!("{language}: {problem}"));
            let report = report(&core, &[]);
            signatures.push(report.signature.clone().expect("a signature"));
            let frames = report.threads[0].frames.iter();
            let own = frames.filter(|f| f.module.as_deref() == Some("prog"));
            addresses.extend(own.take(1).map(|f| f.address.clone()));
        }
    }
    let random = std::fs::read_to_string("/proc/sys/kernel/randomize_va_space");
    if random.is_ok_and(|r| r.trim() == "2") {
        addresses.sort();
        addresses.dedup();
        assert!(addresses.len() > 1, "{language} is not randomised");
    }
    Some(signatures)
}

#[test]
fn a_signature_outlives_rebuilds_paths_lines_and_addresses() {
    let cases = [
        ("c", "gcc -g -O0 -lpthread", "modes.c", ["null", "abort"]),
        ("c", "gcc -g -O2 -lpthread", "modes.c", ["fpe", "qsort"]),
        // Without debug information the symbol table has to do.
        (
            "c",
            "gcc -O1 -fno-inline -lpthread",
            "modes.c",
            ["null", "threads"],
        ),
        (
            "cpp",
            "g++ -g -O1 -lpthread",
            "modes.cpp",
            ["virtual", "throw"],
        ),
        // The crate's name is part of every function's.
        (
            "rs",
            "rustc --edition 2021 --crate-name modes -g -C panic=abort",
            "modes.rs",
            ["segv", "index"],
        ),
    ];
    let mut checked = 0;
    for (language, compiler, source, modes) in cases {
        let mut of_modes = Vec::new();
        for mode in modes {
            let Some(signatures) = signatures(language, compiler, source, mode) else {
                continue;
            };
            assert!(
                signatures.iter().all(|s| *s == signatures[0]),
                "{compiler} {mode}: {signatures:?}"
            );
            of_modes.push(signatures[0].clone());
            checked += 1;
        }
        of_modes.dedup();
        assert!(of_modes.len() != 1, "{compiler}: two faults, one signature");
    }
    assert!(checked >= 6 || !lab::present("gcc"), "{checked} programs");
}
