//! mutated cores and mutated programs → never a panic, never an endless loop.
//!
//! Starts from a real core and its program (built here; skipped without gcc), and from hand-made bytes; overwrites,
//! cuts and moves bytes by a seeded generator, so that a failure can be repeated: the seed is printed. Files come from
//! a table, the process is never asked for more. `TIMES=20 cargo test --test crash_hostile -- --nocapture` tries longer,
//! as `tests/run --heavy` does.

#[path = "crash/lab.rs"]
mod lab;

use jettison_agent::crash::analysis::{Context, analyse};
use jettison_agent::crash::core::Core;
use jettison_agent::crash::elf::Elf;
use jettison_agent::crash::files::Files;
use jettison_agent::crash::symbols::find::Search;
use jettison_agent::crash::text;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use typed_arena::Arena;

/// xorshift64*: the same everywhere and for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn mutate(bytes: &mut Vec<u8>, focus: std::ops::Range<usize>, random: &mut Random) {
    const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, u64::MAX, 1 << 63];
    for _ in 0..1 + random.below(6) {
        let span = focus.end.min(bytes.len()).saturating_sub(focus.start);
        if bytes.len() < 16 || span < 16 {
            return;
        }
        let at = focus.start + random.below(span - 8);
        match random.below(8) {
            0..=2 => bytes[at] = random.next() as u8,
            3 => bytes[at] ^= 1 << random.below(8),
            4 => {
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                let len = [1, 2, 4, 8][random.below(4)];
                bytes[at..at + len].copy_from_slice(&edge[..len]);
            }
            5 => {
                let from = focus.start + random.below(span - 8);
                let len = 1 + random.below(8);
                bytes.copy_within(from..from + len, at);
            }
            6 => bytes[at..at + 8].copy_from_slice(&random.next().to_le_bytes()),
            _ if random.below(20) == 0 => bytes.truncate(at),
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
    }
}

struct Table<'a> {
    files: Vec<(PathBuf, &'a [u8])>,
    made: &'a Arena<Vec<u8>>,
}

impl<'a> Files<'a> for Table<'a> {
    fn open(&self, path: &Path) -> Option<&'a [u8]> {
        self.files
            .iter()
            .find(|(p, _)| p == path)
            .map(|(_, bytes)| *bytes)
    }

    fn keep(&self, bytes: Vec<u8>) -> &'a [u8] {
        self.made.alloc(bytes)
    }
}

fn run(core: &[u8], program: &Path, image: &[u8]) -> Option<usize> {
    let made = Arena::new();
    let table = Table {
        files: vec![(program.to_owned(), image)],
        made: &made,
    };
    let core = Core::parse(core).ok()?;
    let report = analyse(core, &Search::default(), &table, &Context::default());
    let json = serde_json::to_string(&report).unwrap();
    Some(text::render(&report).len() + json.len())
}

struct Victim {
    program: PathBuf,
    core: Vec<u8>,
    image: Vec<u8>,
}

fn victim(name: &str, build: &str, mode: &str) -> Option<Victim> {
    let compiler = build.split(' ').next().unwrap_or_default();
    if !lab::present(compiler) {
        eprintln!("skipped: needs {compiler}");
        return None;
    }
    let folder = std::env::temp_dir().join(format!("crash-hostile-{}-{name}", std::process::id()));
    let core = lab::crash(build, &format!("./prog {mode}"), &folder);
    let program = std::fs::canonicalize(&folder).ok()?.join("prog");
    let bytes = core.ok().and_then(|c| std::fs::read(c).ok());
    let image = std::fs::read(&program).ok();
    let _ = std::fs::remove_dir_all(&folder);
    Some(Victim {
        program,
        core: bytes?,
        image: image?,
    })
}

/// Runs seeds until the time is up; each in bounded time.
fn storm(seconds: u64, most: u64, mut one: impl FnMut(&mut Random)) -> u64 {
    let begin = Instant::now();
    let times: u64 = std::env::var("TIMES")
        .ok()
        .and_then(|t| t.parse().ok())
        .unwrap_or(1);
    let (seconds, most) = (seconds * times, most * times);
    let mut seed = 0;
    while seed < most && begin.elapsed() < Duration::from_secs(seconds) {
        seed += 1;
        let started = Instant::now();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            one(&mut Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
        }));
        assert!(result.is_ok(), "seed {seed} panicked");
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "seed {seed} took {:?}",
            started.elapsed()
        );
    }
    seed
}

/// Where headers and notes are: the part of a core that decides anything.
fn head(core: &[u8]) -> usize {
    let elf = Elf::parse(core).unwrap();
    let notes = elf.segments.iter().find(|s| s.kind == 4).unwrap();
    (notes.offset + notes.file_size) as usize
}

#[test]
fn hostile_cores() {
    let Some(victim) = victim(
        "core",
        "gcc -g -O1 $SRC/modes.c -o prog -lpthread",
        "threads",
    ) else {
        return;
    };
    assert!(run(&victim.core, &victim.program, &victim.image).unwrap() > 1000);
    let head = head(&victim.core);
    // The memory of a core with threads is big: what matters are its notes and the crashed stack.
    let small = &victim.core[..victim.core.len().min(head + (4 << 20))];
    let seeds = storm(6, 3000, |random| {
        let mut core = small.to_vec();
        let focus = if random.below(4) == 0 {
            0..core.len()
        } else {
            0..head
        };
        mutate(&mut core, focus, random);
        run(&core, &victim.program, &victim.image);
    });
    eprintln!("{seeds} mutated cores");
}

#[test]
fn hostile_programs() {
    hostile_program(
        "prog",
        "gcc -g -O2 $SRC/modes.c -o prog -lpthread -Wl,--build-id=none",
        "null",
    );
}

#[test]
fn hostile_programs_of_other_languages() {
    hostile_program(
        "cpp",
        "g++ -g -O1 $SRC/modes.cpp -o prog -lpthread -Wl,--build-id=none",
        "template",
    );
    hostile_program(
        "rust",
        "rustc --edition 2021 -g -C link-arg=-Wl,--build-id=none $SRC/modes.rs -o prog",
        "segv",
    );
}

/// Mutates what the analysis reads of a program: debug information, unwind tables, symbols, headers.
fn hostile_program(name: &str, build: &str, mode: &str) {
    let Some(victim) = victim(name, build, mode) else {
        return;
    };
    assert!(run(&victim.core, &victim.program, &victim.image).unwrap() > 1000);
    let sections: Vec<std::ops::Range<usize>> = Elf::parse(&victim.image)
        .unwrap()
        .sections
        .iter()
        .filter(|s| {
            s.name.starts_with(b".debug")
                || s.name.starts_with(b".eh_frame")
                || s.name == b".symtab"
        })
        .map(|s| s.offset as usize..(s.offset + s.size) as usize)
        .collect();
    let seeds = storm(6, 4000, |random| {
        let mut image = victim.image.clone();
        for _ in 0..1 + random.below(4) {
            let focus = match random.below(8) {
                0 => 0..64 + 56 * 13,
                1 => 0..image.len(),
                _ => sections[random.below(sections.len())].clone(),
            };
            mutate(&mut image, focus, random);
        }
        run(&victim.core, &victim.program, &image);
    });
    eprintln!("{seeds} mutated programs of {name}");
}

#[test]
#[ignore = "minutes: the same with many more seeds"]
fn a_longer_storm() {
    let longer = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["hostile_", "bytes_", "--nocapture"])
        .env("TIMES", "20")
        .status();
    assert!(longer.unwrap().success());
}

#[test]
fn hostile_compressed_sections() {
    for kind in ["zstd", "zlib"] {
        let build = format!(
            "gcc -g -O2 $SRC/modes.c -o prog -Wl,--build-id=none && objcopy --compress-debug-sections={kind} prog"
        );
        let Some(victim) = victim(kind, &build, "null") else {
            return;
        };
        let sections: Vec<(Vec<u8>, std::ops::Range<usize>)> = Elf::parse(&victim.image)
            .unwrap()
            .sections
            .iter()
            .filter(|s| s.name.starts_with(b".debug"))
            .map(|s| {
                (
                    s.name.to_vec(),
                    s.offset as usize..(s.offset + s.size) as usize,
                )
            })
            .collect();
        let seeds = storm(3, 6000, |random| {
            let mut image = victim.image.clone();
            let (name, range) = &sections[random.below(sections.len())];
            mutate(&mut image, range.clone(), random);
            let _ = Elf::parse(&image).and_then(|elf| elf.section_data(name).map(|d| d.len()));
        });
        eprintln!("{seeds} mutated {kind} sections");
    }
}

#[test]
fn bytes_that_are_nothing() {
    let seeds = storm(3, 20_000, |random| {
        let mut bytes: Vec<u8> = (0..64 + random.below(600))
            .map(|_| random.next() as u8)
            .collect();
        bytes[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0\x3e\0");
        // A program header table that is inside, so that the rest is looked at.
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[54..58].copy_from_slice(&[56, 0, 3, 0]);
        if random.below(2) == 0 && bytes.len() > 128 {
            bytes[64..68].copy_from_slice(&4u32.to_le_bytes());
            bytes[72..80].copy_from_slice(&100u64.to_le_bytes());
        }
        run(&bytes, Path::new("/none"), &[]);
    });
    eprintln!("{seeds} random files");
}
