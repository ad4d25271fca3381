//! kernel core → small core: gdb and the analyser must read the same stacks from both.
//!
//! The small core is made from the kernel's by taking the ranges that a capture takes: stacks, the first page of each
//! file, what registers point at, writable file mappings, the vDSO. Needs gcc and gdb; skipped without.

#[path = "crash/lab.rs"]
mod lab;

use jettison_agent::crash::core::{self, Core};
use jettison_agent::crash::core_write::{Mapping, Process, SmallCore, Thread};
use jettison_agent::crash::elf::{self, Elf};
use jettison_agent::crash::examine;
use std::path::Path;
use std::process::Command;

const STACK: u64 = 256 << 10;

/// Raw register sets, in the order of the notes.
fn threads(elf: &Elf<'_>, core: &Core<'_>) -> Vec<Thread> {
    let size = core.machine.user_regs_size();
    let mut threads: Vec<Thread> = Vec::new();
    for note in elf.notes() {
        match (note.name, note.kind) {
            (b"CORE", core::NT_PRSTATUS) => threads.push(Thread {
                tid: u32::from_le_bytes(note.data[32..36].try_into().unwrap()),
                signal: u16::from_le_bytes(note.data[12..14].try_into().unwrap()),
                registers: note.data[core::PR_REG..core::PR_REG + size].to_vec(),
                ..Thread::default()
            }),
            (b"CORE", core::NT_FPREGSET) => {
                threads.last_mut().unwrap().float_registers = note.data.to_vec()
            }
            (b"LINUX", kind) => threads
                .last_mut()
                .unwrap()
                .extra
                .push((kind, note.data.to_vec())),
            _ => {}
        }
    }
    threads
}

fn raw_note(elf: &Elf<'_>, kind: u32) -> Vec<u8> {
    let note = elf
        .notes()
        .into_iter()
        .find(|n| n.name == b"CORE" && n.kind == kind);
    note.map(|n| n.data.to_vec()).unwrap_or_default()
}

fn mappings(core: &Core<'_>, elf: &Elf<'_>) -> Vec<Mapping> {
    let loads = elf.segments_of(elf::PT_LOAD);
    loads
        .map(|s| {
            let file = core
                .files
                .iter()
                .find(|f| f.start <= s.address && s.address < f.end);
            Mapping {
                start: s.address,
                end: s.address + s.memory_size,
                offset: file.map_or(0, |f| f.offset + s.address - f.start),
                read: s.flags & elf::PF_R != 0,
                write: s.flags & elf::PF_W != 0,
                execute: s.flags & elf::PF_X != 0,
                path: file.map(|f| f.path.clone()),
            }
        })
        .collect()
}

/// The ranges to keep, as far as the full core has them.
fn ranges<'d>(core: &Core<'d>) -> Vec<(u64, &'d [u8])> {
    let mut wanted: Vec<(u64, u64)> = Vec::new();
    for thread in &core.threads {
        let sp = thread.registers.sp().unwrap();
        let sp = if core.memory.region(sp).is_some() {
            sp
        } else {
            sp.next_multiple_of(4096)
        };
        wanted.push((sp - 256, STACK));
        // The thread's own block, from which gdb takes its pthread number.
        wanted.extend(
            thread
                .registers
                .thread_pointer()
                .map(|tp| (tp & !4095, 8192)),
        );
        wanted.extend(
            thread
                .registers
                .named()
                .iter()
                .map(|(_, value)| (value.saturating_sub(4096), 8192)),
        );
    }
    for file in &core.files {
        // What was written to, now or before it was made read-only (relro), and the bss behind it; of the rest the
        // first page, with the build-id.
        let dumped = core
            .memory
            .region(file.start)
            .map_or(0, |r| r.dumped.len() as u64);
        wanted.push((file.start, dumped.max(4096)));
        let behind = core
            .memory
            .region(file.end)
            .filter(|r| r.start == file.end && r.access.write);
        let is_file = core.files.iter().any(|f| f.start == file.end);
        wanted.extend(
            behind
                .filter(|_| !is_file)
                .map(|r| (r.start, (r.end - r.start).min(1 << 20))),
        );
    }
    // The dynamic linker keeps its list of objects in small anonymous mappings; a capture would follow the list.
    let anonymous = core
        .memory
        .regions()
        .iter()
        .filter(|r| r.access.write && r.end - r.start <= 256 << 10);
    wanted.extend(anonymous.map(|r| (r.start, r.end - r.start)));
    if let Some(vdso) = core.auxv(core::AT_SYSINFO_EHDR) {
        wanted.push((vdso, 8192));
    }
    let known = |(start, len): (u64, u64)| {
        let region = core
            .memory
            .region(start)
            .or_else(|| core.memory.region(start.next_multiple_of(4096)))?;
        let start = start.max(region.start);
        let bytes = core.memory.known(start);
        let bytes = &bytes[..bytes.len().min(len as usize)];
        (!bytes.is_empty()).then_some((start, bytes))
    };
    wanted.into_iter().filter_map(known).collect()
}

fn shrink(full: &Path, small: &Path) {
    let bytes = std::fs::read(full).unwrap();
    let elf = Elf::parse(&bytes).unwrap();
    let core = Core::parse(&bytes).unwrap();
    let process = core.process.clone().unwrap();
    let image = SmallCore {
        machine: core.machine,
        threads: threads(&elf, &core),
        process: Process {
            pid: process.pid,
            name: process.name,
            arguments: process.arguments,
            ..Process::default()
        },
        siginfo: raw_note(&elf, core::NT_SIGINFO),
        auxv: raw_note(&elf, core::NT_AUXV),
        mappings: mappings(&core, &elf),
        ranges: ranges(&core),
    };
    let mut file = std::io::BufWriter::new(std::fs::File::create(small).unwrap());
    image.write(&mut file).unwrap();
}

/// All threads' frames as gdb prints them, and the signal.
fn gdb(program: &Path, core: &Path) -> Vec<String> {
    let mut command = Command::new("gdb");
    command.args([
        "-nx",
        "-batch",
        "-ex",
        "set debuginfod enabled off",
        "-ex",
        "thread apply all bt",
    ]);
    let output = command
        .args(["-ex", "p $_siginfo.si_signo"])
        .arg(program)
        .arg(core)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text
        .lines()
        .filter(|l| l.starts_with('#') || l.starts_with("Thread") || l.starts_with('$'));
    // gdb tells the pthread handle only where it finds all that libthread_db wants; the LWP is the thread.
    lines
        .map(|l| match (l.starts_with("Thread"), l.find("LWP")) {
            (true, Some(at)) => l[at..].trim_end_matches([')', ':']).to_owned(),
            _ => l.to_owned(),
        })
        .collect()
}

#[test]
fn gdb_reads_the_same_from_small_cores() {
    if !lab::present("gcc") || !lab::present("gdb") {
        eprintln!("skipped: needs gcc and gdb");
        return;
    }
    let root = std::env::temp_dir().join(format!("crash-small-{}", std::process::id()));
    let build = "gcc -g -O1 $SRC/modes.c -o prog -ldl -lpthread";
    for mode in ["null", "threads", "handler", "abort", "qsort"] {
        let folder = root.join(mode);
        let full = match lab::crash(build, &format!("./prog {mode}"), &folder) {
            Ok(core) => core,
            Err(problem) => {
                eprintln!("{mode} skipped: {problem}");
                continue;
            }
        };
        let small = folder.join("small");
        shrink(&full, &small);
        let program = folder.join("prog");
        let (of_full, of_small) = (gdb(&program, &full), gdb(&program, &small));
        assert!(
            of_full.iter().filter(|l| l.starts_with('#')).count() > 2,
            "{mode}: {of_full:#?}"
        );
        assert_eq!(of_full, of_small, "{mode}");
        let read = |core: &Path| {
            let report = examine::examine(core, &Default::default(), &Default::default()).unwrap();
            (
                report.signature.clone(),
                report.signal.clone(),
                report.threads,
            )
        };
        let (full_report, small_report) = (read(&full), read(&small));
        assert_eq!(full_report.0, small_report.0, "{mode}");
        assert_eq!(full_report.1, small_report.1, "{mode}");
        for (a, b) in full_report.2.iter().zip(&small_report.2) {
            let functions = |t: &jettison_agent::crash::report::Thread| {
                t.frames
                    .iter()
                    .map(|f| (f.address.clone(), f.function.clone(), f.line))
                    .collect::<Vec<_>>()
            };
            assert_eq!(functions(a), functions(b), "{mode}");
        }
        let size = |p: &Path| std::fs::metadata(p).unwrap().len();
        eprintln!("{mode}: {} of {} bytes", size(&small), size(&full));
    }
    let _ = std::fs::remove_dir_all(&root);
}
