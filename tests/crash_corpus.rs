//! crashing programs → a table of how the reports compare with gdb's backtraces.
//!
//! Builds every program of `tests/crash/cases.txt` with the compilers that are there, lets it crash, and compares
//! function, file and line of every frame of every thread with gdb. Run it with
//!
//! ```text
//! cargo test --test crash_corpus -- --ignored --nocapture      # all; CASES=c-null,a64- for some
//! ```
//!
//! Programs of aarch64 are cross-compiled and crash under qemu-user; gdb-multiarch reads what they leave.
//!
//! Needs gdb with Python. Cores are the kernel's where `core_pattern` is a plain file name, else gdb makes them. A case
//! whose compiler is absent is skipped with a message. The ordinary run covers a few cases only. A difference whose
//! reason does not stand in `tests/crash/differences.txt` fails the test.

use jettison_agent::crash::examine;
use jettison_agent::crash::report::{Report, Thread};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "crash/lab.rs"]
mod lab;
use lab::{crash, present, sources};

struct Case {
    name: String,
    needs: Vec<String>,
    build: String,
    run: String,
    options: Options,
}

/// The last field of a case.
#[derive(Default)]
struct Options {
    own: examine::Options,
    /// What gdb is given as the program, where it cannot read what the report is made from.
    gdb: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq)]
struct Frame {
    function: String,
    file: String,
    line: u32,
    kind: String,
}

/// Frames of one program, by what became of them.
#[derive(Default)]
struct Score {
    programs: usize,
    equal: usize,
    reasons: BTreeMap<&'static str, usize>,
    details: Vec<String>,
    /// Differences whose reason is not known.
    unexplained: Vec<String>,
}

/// Why frames of a class differ in some cases: a line of `differences.txt`.
struct Reason {
    class: String,
    cases: Vec<String>,
    text: String,
}

/// The lines of a table beside the sources, without blank ones and comments.
fn rows(file: &str) -> Vec<String> {
    let table = std::fs::read_to_string(sources().join(file)).unwrap();
    let lines = table.lines().map(str::to_owned);
    lines
        .filter(|l| !l.starts_with('#') && !l.trim().is_empty())
        .collect()
}

fn reasons() -> Vec<Reason> {
    rows("differences.txt")
        .iter()
        .map(|line| {
            let fields: Vec<&str> = line.splitn(3, " | ").collect();
            Reason {
                class: fields[0].to_owned(),
                cases: fields[1].split(',').map(str::to_owned).collect(),
                text: fields[2].to_owned(),
            }
        })
        .collect()
}

impl Reason {
    fn explains(&self, class: &str, case: &str) -> bool {
        let is_case = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => case.starts_with(beginning),
            None => case == pattern,
        };
        self.class == class && self.cases.iter().any(is_case)
    }
}

/// The programs of one machine, and how to look at what they leave.
struct Corpus {
    cases: &'static str,
    gdb: &'static str,
    /// Where the libraries of another machine are.
    sysroot: Option<&'static str>,
}

const OWN: Corpus = Corpus {
    cases: "cases.txt",
    gdb: "gdb",
    sysroot: None,
};

const AARCH64: Corpus = Corpus {
    cases: "cases_aarch64.txt",
    gdb: "gdb-multiarch",
    sysroot: Some("/usr/aarch64-linux-gnu"),
};

fn cases(file: &str) -> Vec<Case> {
    rows(file)
        .iter()
        .map(|line| {
            // A single bar stands between fields only with a blank on each side and no further pipe in the build.
            let fields: Vec<&str> = line.splitn(3, " | ").collect();
            let rest: Vec<&str> = fields[2].split(" | ").collect();
            let run_at = rest
                .iter()
                .position(|f| {
                    f.contains("./prog")
                        && !f.contains("-o prog -")
                        && !f.contains("$SRC/modes.c -o prog &&")
                })
                .unwrap_or(1);
            let run_at = run_at.max(1);
            Case {
                name: fields[0].trim().to_owned(),
                needs: fields[1].split_whitespace().map(str::to_owned).collect(),
                build: rest[..run_at].join(" | "),
                run: rest[run_at].trim().to_owned(),
                options: options(rest.get(run_at + 1).unwrap_or(&"")),
            }
        })
        .collect()
}

fn options(text: &str) -> Options {
    let mut options = Options::default();
    let words: Vec<&str> = text.split_whitespace().collect();
    for pair in words.chunks(2) {
        match pair {
            ["--executable", path] => options.own.executable = Some(path.into()),
            ["--debug-dir", path] => options.own.debug_dirs.push(path.into()),
            ["--gdb", path] => options.gdb = Some(path.into()),
            other => panic!("unknown option {other:?}"),
        }
    }
    options
}

fn gdb(
    corpus: &Corpus,
    program: &Path,
    core: &Path,
    folder: &Path,
    dirs: &[PathBuf],
) -> Vec<Vec<Frame>> {
    let mut command = Command::new("timeout");
    command.args(["60", corpus.gdb]);
    if let Some(sysroot) = corpus.sysroot {
        command.arg("-iex").arg(format!("set sysroot {sysroot}"));
    }
    command.args([
        "-nx",
        "-batch",
        "-iex",
        "set debuginfod enabled off",
        "-iex",
        "set backtrace past-main on",
    ]);
    if !dirs.is_empty() {
        let list: Vec<String> = dirs.iter().map(|d| d.display().to_string()).collect();
        command.arg("-iex").arg(format!(
            "set debug-file-directory {}:/usr/lib/debug",
            list.join(":")
        ));
    }
    command
        .arg(program)
        .arg(core)
        .arg("-x")
        .arg(sources().join("frames.py"))
        .current_dir(folder);
    let output = command.output().unwrap();
    let mut threads: Vec<(String, Vec<Frame>)> = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let ["FRAME", thread, function, file, line, kind] = fields[..] else {
            continue;
        };
        if threads.last().is_none_or(|t| t.0 != thread) {
            threads.push((thread.to_owned(), Vec::new()));
        }
        let frame = Frame {
            function: function.to_owned(),
            file: file.to_owned(),
            line: line.parse().unwrap_or(0),
            kind: kind.to_owned(),
        };
        threads.last_mut().unwrap().1.push(frame);
    }
    threads.into_iter().map(|t| t.1).collect()
}

/// The most that `frames.py` prints of a thread.
const GDB_FRAMES: usize = 120;

fn ours(thread: &Thread) -> Vec<Frame> {
    // gdb's script stops at 120; frames that only stand here push the others down.
    let frames = thread.frames.iter().take(GDB_FRAMES + 20);
    frames
        .map(|f| Frame {
            function: f.function.clone().unwrap_or_else(|| "??".into()),
            file: f.file.clone().unwrap_or_default(),
            line: f.line.unwrap_or(0),
            kind: if f.inlined { "inline" } else { "normal" }.into(),
        })
        .collect()
}

/// The last part of a name without parameters, template arguments and hash: what both sides must agree on.
fn plain(name: &str) -> String {
    let mut out = String::new();
    let mut depth = 0;
    for c in name.chars() {
        match c {
            '<' | '(' => depth += 1,
            '>' | ')' => depth = (depth - 1).max(0),
            _ if depth == 0 => out.push(c),
            _ => {}
        }
    }
    // Rust's way to say of which kind the code is: `call_once{{vtable.shim}}`.
    let out = out.split_once("{{").map_or(&*out, |(name, _)| name);
    let last = out
        .trim_end_matches(" const")
        .rsplit("::")
        .find(|p| !p.is_empty())
        .unwrap_or("")
        .trim()
        .to_owned();
    let last = last.rsplit(['.', ' ']).next().unwrap_or("").to_owned();
    if last.is_empty() {
        name.to_owned()
    } else {
        last
    }
}

fn same_function(a: &Frame, b: &Frame) -> bool {
    let is_signal = |f: &Frame| f.kind == "signal" || f.function == "<signal handler called>";
    (is_signal(a) && is_signal(b)) || plain(&a.function) == plain(&b.function)
}

fn same_line(a: &Frame, b: &Frame) -> bool {
    let base = |f: &Frame| f.file.rsplit('/').next().unwrap_or("").to_owned();
    a.line == b.line && base(a) == base(b)
}

/// Aligns both lists by function (longest common subsequence) and classes what is left over.
fn compare(gdb: &[Frame], own: &[Frame], score: &mut Score) {
    let (rows, columns) = (gdb.len(), own.len());
    let mut length = vec![vec![0usize; columns + 1]; rows + 1];
    for i in (0..rows).rev() {
        for j in (0..columns).rev() {
            length[i][j] = if same_function(&gdb[i], &own[j]) {
                // Among equal alignments the one with equal lines.
                length[i + 1][j + 1] + 2 + usize::from(same_line(&gdb[i], &own[j]))
            } else {
                length[i + 1][j].max(length[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    while i < rows || j < columns {
        let equal = i < rows && j < columns && same_function(&gdb[i], &own[j]);
        if equal {
            let signal = gdb[i].kind == "signal";
            if signal || same_line(&gdb[i], &own[j]) {
                score.equal += 1;
            } else if own[j].line == 0 || gdb[i].line == 0 {
                score.add(
                    if gdb[i].line == 0 {
                        "line only here"
                    } else {
                        "line only gdb"
                    },
                    &gdb[i],
                    &own[j],
                );
            } else {
                score.add("other line", &gdb[i], &own[j]);
            }
            i += 1;
            j += 1;
        } else if i < rows && j < columns && same_line(&gdb[i], &own[j]) && gdb[i].line != 0 {
            score.add("form of name", &gdb[i], &own[j]);
            i += 1;
            j += 1;
        } else if j >= columns || (i < rows && length[i + 1][j] >= length[i][j + 1]) {
            let reason = match () {
                () if gdb[i].kind == "tailcall" => "tail call, gdb only",
                () if gdb[i].function == "??" => "?? of gdb",
                () => "only gdb",
            };
            score.add(reason, &gdb[i], &NOTHING);
            i += 1;
        } else if i >= rows && rows == GDB_FRAMES {
            break;
        } else {
            // gdb does not show into what a function was inlined that left by a jump.
            let around_jump =
                i > 0 && j > 0 && gdb[i - 1].kind == "tailcall" && own[j - 1].kind == "inline";
            score.add(
                if around_jump {
                    "around a tail call, here only"
                } else if i >= rows {
                    "beyond gdb's end"
                } else {
                    "only here"
                },
                &NOTHING,
                &own[j],
            );
            j += 1;
        }
    }
}

const NOTHING: Frame = Frame {
    function: String::new(),
    file: String::new(),
    line: 0,
    kind: String::new(),
};

impl Score {
    fn add(&mut self, reason: &'static str, gdb: &Frame, own: &Frame) {
        *self.reasons.entry(reason).or_default() += 1;
        self.details.push(format!(
            "    {reason}: gdb {}:{} {} / here {}:{} {}",
            gdb.file, gdb.line, gdb.function, own.file, own.line, own.function
        ));
    }
}

/// A core of qemu-user says nothing of signed return addresses: with the note that the kernel writes (NT_ARM_PAC_MASK)
/// for each thread, gdb knows what to strip. The report is made from the core as it is.
fn with_pac_masks(core: &Path) -> PathBuf {
    const NT_PRSTATUS: u32 = 1;
    const NT_ARM_PAC_MASK: u32 = 0x406;
    const BITS: u64 = 0x007f_0000_0000_0000;
    let mut bytes = std::fs::read(core).unwrap();
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let half = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let table = word(&bytes, 32) as usize;
    let header = (table..).step_by(56).find(|at| half(&bytes, *at) == 4);
    let header = header.expect("a segment of notes");
    let (start, size) = (word(&bytes, header + 8), word(&bytes, header + 32));
    let old = bytes[start as usize..(start + size) as usize].to_vec();
    let (mut notes, mut at) = (Vec::new(), 0);
    while at + 12 <= old.len() {
        let padded = |length: u32| length.next_multiple_of(4) as usize;
        let end = at + 12 + padded(half(&old, at)) + padded(half(&old, at + 4));
        notes.extend(&old[at..end.min(old.len())]);
        if half(&old, at + 8) == NT_PRSTATUS {
            for number in [6, 16, NT_ARM_PAC_MASK] {
                notes.extend(number.to_le_bytes());
            }
            notes.extend(b"LINUX\0\0\0");
            notes.extend([BITS.to_le_bytes(), BITS.to_le_bytes()].concat());
        }
        at = end;
    }
    let behind = (bytes.len() as u64).to_le_bytes();
    bytes[header + 8..header + 16].copy_from_slice(&behind);
    let size = (notes.len() as u64).to_le_bytes();
    bytes[header + 32..header + 40].copy_from_slice(&size);
    bytes.extend(notes);
    let path = core.with_extension("masked");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn compare_case(corpus: &Corpus, case: &Case, folder: &Path) -> Result<Score, String> {
    let core = crash(&case.build, &case.run, folder)?;
    let mut options = case.options.own.clone();
    options.debug_dirs = options.debug_dirs.iter().map(|d| folder.join(d)).collect();
    options.executable = options.executable.map(|e| folder.join(e));
    if let Some(sysroot) = corpus.sysroot {
        options.sysroot = Some(sysroot.into());
        options.executable = Some(folder.join("prog"));
    }
    let report: Report =
        examine::examine(&core, &options, &Default::default()).map_err(|e| e.to_string())?;
    // A full disk makes cores that end early: what they show says nothing about the analysis.
    if let Some(note) = report.notes.iter().find(|note| note.contains("cut off")) {
        return Err(note.clone());
    }
    let given = case.options.gdb.as_ref().map(|p| folder.join(p));
    let program = given
        .or(options.executable.clone())
        .unwrap_or_else(|| folder.join("prog"));
    let for_gdb = match corpus.sysroot {
        Some(_) => with_pac_masks(&core),
        None => core,
    };
    let threads = gdb(corpus, &program, &for_gdb, folder, &options.debug_dirs);
    if threads.is_empty() {
        return Err("gdb shows no thread".into());
    }
    let mut score = Score::default();
    for (theirs, own) in threads.iter().zip(&report.threads) {
        compare(theirs, &ours(own), &mut score);
    }
    if threads.len() != report.threads.len() {
        return Err(format!(
            "{} threads in gdb, {} here",
            threads.len(),
            report.threads.len()
        ));
    }
    Ok(score)
}

fn run(corpus: &Corpus, wanted: impl Fn(&str) -> bool) -> Score {
    let root = std::env::temp_dir().join(format!(
        "crash-corpus-{}-{}",
        corpus.gdb,
        std::process::id()
    ));
    let (reasons, mut explained) = (reasons(), BTreeMap::<usize, usize>::new());
    let mut total = Score::default();
    let mut identical = 0;
    for case in cases(corpus.cases).iter().filter(|c| wanted(&c.name)) {
        if let Some(missing) = case.needs.iter().find(|t| !present(t)) {
            println!("{:<18} skipped: no {missing}", case.name);
            continue;
        }
        match compare_case(corpus, case, &root.join(&case.name)) {
            Err(problem) => {
                println!("{:<18} FAILED: {problem}", case.name);
                total.unexplained.push(format!("{}: {problem}", case.name));
            }
            Ok(score) => {
                total.programs += 1;
                let differing: usize = score.reasons.values().sum();
                identical += usize::from(differing == 0);
                println!(
                    "{:<18} {:>4} equal {differing:>3} differing {:?}",
                    case.name, score.equal, score.reasons
                );
                if std::env::var_os("DETAILS").is_some() {
                    score.details.iter().for_each(|d| println!("{d}"));
                }
                total.equal += score.equal;
                for (class, count) in score.reasons {
                    *total.reasons.entry(class).or_default() += count;
                    let known = reasons.iter().position(|r| r.explains(class, &case.name));
                    match known {
                        Some(reason) => *explained.entry(reason).or_default() += count,
                        None => total
                            .unexplained
                            .push(format!("{}: {class} ({count})", case.name)),
                    }
                }
            }
        }
        if std::env::var_os("KEEP").is_none() {
            let _ = std::fs::remove_dir_all(root.join(&case.name));
        }
    }
    println!(
        "{} programs, {identical} identical; {} frames equal, {:?}",
        total.programs, total.equal, total.reasons
    );
    for (reason, count) in explained {
        let Reason { class, cases, text } = &reasons[reason];
        println!("{count:>4} {class} [{}]: {text}", cases.join(","));
    }
    let _ = std::fs::remove_dir(&root);
    total
}

#[test]
#[ignore = "builds a hundred programs: minutes"]
fn corpus() {
    all_of(&OWN);
}

#[test]
#[ignore = "builds and emulates a hundred programs: minutes"]
fn corpus_of_aarch64() {
    if present(AARCH64.gdb) {
        all_of(&AARCH64);
    } else {
        eprintln!("skipped: needs {}", AARCH64.gdb);
    }
}

/// The reasons are those of this version, and of the compilers beside it.
fn is_gdb_13(gdb: &str) -> bool {
    let said = Command::new(gdb).arg("--version").output().unwrap().stdout;
    let said = String::from_utf8_lossy(&said).into_owned();
    let version = said.lines().next().and_then(|line| line.rsplit(' ').next());
    version.is_some_and(|version| version.starts_with("13."))
}

fn all_of(corpus: &Corpus) {
    let chosen = std::env::var("CASES").unwrap_or_default();
    let chosen: Vec<&str> = chosen.split(',').filter(|c| !c.is_empty()).collect();
    let total = run(corpus, |name| {
        chosen.is_empty() || chosen.iter().any(|c| name.starts_with(c))
    });
    assert!(total.equal > 0);
    if is_gdb_13(corpus.gdb) {
        assert!(total.unexplained.is_empty(), "{:#?}", total.unexplained);
    } else {
        println!("no reason is known for: {:#?}", total.unexplained);
        assert!(total.unexplained.len() * 10 < total.programs);
    }
}

#[test]
fn a_few_programs_are_read_as_gdb_reads_them() {
    if !present("gdb") || !present("gcc") {
        eprintln!("skipped: needs gdb and gcc");
        return;
    }
    let total = run(&OWN, |name| {
        matches!(name, "c-null-O0" | "c-null-O2" | "c-threads" | "c-handler")
    });
    assert!(total.equal > 40, "{} equal", total.equal);
    assert!(total.unexplained.is_empty(), "{:#?}", total.unexplained);
}
