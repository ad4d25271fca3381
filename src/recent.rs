//! lines as they are read → the last hundred of them, for a crash report.
//!
//! Bounded, and cheap: a short copy for each of the last lines of a chunk, no allocation once it has grown. Slices of
//! the chunks would cost less still, but would keep whole chunks alive.

use std::sync::{Mutex, PoisonError};

/// The last lines of a service, for its crash report. Bounded; costs a short copy for each of the last lines of a
/// chunk, and no allocation once it has grown.
#[derive(Debug, Default)]
pub struct Recent {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    text: Vec<u8>,
    /// Bytes of each line, and when it was read (Unix milliseconds).
    lines: Vec<(usize, u64)>,
    /// When the latest runs began.
    runs: Vec<u64>,
    words: Words,
}

/// The latest lines that may tell why a runtime gave up. A backtrace of hundreds of lines may follow them.
#[derive(Debug, Default)]
struct Words {
    /// When each was read (Unix milliseconds), and its text.
    lines: Vec<(u64, Vec<u8>)>,
    /// How many more belong to them.
    open: usize,
}

impl Words {
    const LINES: usize = 8;

    fn hear(&mut self, at_ms: u64, line: &[u8]) {
        if may_be_last_words(line) {
            self.lines.clear();
            self.open = Words::LINES;
        }
        if self.open > 0 {
            self.open -= 1;
            let line = line.get(..Recent::LINE_BYTES).unwrap_or(line);
            self.lines.push((at_ms, line.to_vec()));
        }
    }
}

/// How C++, Rust, Go, Python, Java, V8 and the sanitizers begin. Asked for every line: the first byte decides mostly.
fn may_be_last_words(line: &[u8]) -> bool {
    const BEGINNINGS: [&[u8]; 10] = [
        b"terminate called ",
        b"libc++abi: ",
        b"thread '",
        b"panic: ",
        b"fatal error: ",
        b"unexpected fault address ",
        b"Fatal Python error: ",
        b"FATAL ERROR: ",
        b"# A fatal error has been detected ",
        b"# Fatal error in ",
    ];
    match line.first() {
        Some(b'=') => line.starts_with(b"==") && line.windows(9).any(|part| part == b"==ERROR: "),
        Some(b't' | b'l' | b'p' | b'f' | b'u' | b'F' | b'#') => BEGINNINGS
            .iter()
            .any(|beginning| line.starts_with(beginning)),
        _ => false,
    }
}

impl Recent {
    pub const LINES: usize = 100;
    /// Of a longer line, its beginning.
    const LINE_BYTES: usize = 512;
    /// Older ones are let go when there are this many.
    const MOST: usize = 3 * Recent::LINES;
    /// Beginnings that are remembered.
    const RUNS: usize = 16;
    const NOTED_LATE_MS: u64 = 100;

    /// Lines of one moment, in order.
    pub fn keep<'l>(&self, at_ms: u64, lines: impl ExactSizeIterator<Item = &'l [u8]>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept {
            text,
            lines: sizes,
            words,
            ..
        } = &mut *kept;
        let skipped = lines.len().saturating_sub(Recent::LINES);
        for (index, line) in lines.enumerate() {
            words.hear(at_ms, line);
            if index < skipped {
                continue;
            }
            let line = line.get(..Recent::LINE_BYTES).unwrap_or(line);
            text.extend_from_slice(line);
            sizes.push((line.len(), at_ms));
        }
        if sizes.len() >= Recent::MOST {
            let old = sizes.len() - Recent::LINES;
            let bytes: usize = sizes.drain(..old).map(|(size, _)| size).sum();
            text.drain(..bytes);
        }
    }

    /// A run begins: what is read from now on is its own.
    pub fn begin(&self, at_ms: u64) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let old = (kept.runs.len() + 1).saturating_sub(Recent::RUNS);
        kept.runs.drain(..old);
        kept.runs.push(at_ms);
    }

    /// Until when lines of the run are read that ended at `at_ms`: a busy machine reads them late, but before those of
    /// the next run, and at most `late_ms` later. It also notes beginnings late: one just after is the run's own.
    pub fn end_of(&self, at_ms: u64, late_ms: u64) -> u64 {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let own = kept.runs.iter().position(|begun| *begun > at_ms);
        let is_first = own == Some(0);
        let mut later = kept.runs.iter().skip(usize::from(is_first));
        let next = later.find(|begun| **begun > at_ms + Recent::NOTED_LATE_MS);
        let latest = at_ms.saturating_add(late_ms);
        next.map_or(latest, |begun| latest.min(begun - 1))
    }

    /// At most [`Recent::LINES`], none read after `until_ms`.
    pub fn until(&self, until_ms: u64) -> Vec<String> {
        self.between(0, until_ms)
    }

    /// What may tell why the runtime gave up, of lines read in this time, also where many have followed.
    pub fn words_between(&self, from_ms: u64, until_ms: u64) -> Vec<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = kept.words.lines.iter();
        let lines = lines.filter(|(read_ms, _)| (from_ms..=until_ms).contains(read_ms));
        lines
            .map(|(_, line)| String::from_utf8_lossy(line).into_owned())
            .collect()
    }

    /// And none read before `from_ms`.
    pub fn between(&self, from_ms: u64, until_ms: u64) -> Vec<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = 0;
        let mut found = Vec::new();
        for (size, read_ms) in &kept.lines {
            if (from_ms..=until_ms).contains(read_ms) {
                let line = kept.text.get(at..at + size).unwrap_or_default();
                found.push(String::from_utf8_lossy(line).into_owned());
            }
            at += size;
        }
        let old = found.len().saturating_sub(Recent::LINES);
        found.split_off(old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_lines_are_of_the_run_that_ended() {
        let recent = Recent::default();
        recent.begin(10);
        assert_eq!(recent.end_of(500, 2000), 2500);
        // Its beginning was noted after its end.
        assert_eq!(recent.end_of(5, 2000), 2005);
        recent.begin(900);
        assert_eq!(recent.end_of(500, 2000), 899);
        assert_eq!(recent.end_of(950, 2000), 2950);
        for begun in 1000..2000 {
            recent.begin(begun);
        }
        let kept = recent.kept.lock().expect("no panic");
        assert_eq!(kept.runs.len(), Recent::RUNS);
    }

    #[test]
    fn last_words_outlive_what_follows_them() {
        let recent = Recent::default();
        recent.keep(5, [&b"panic: lost"[..], b"[signal SIGSEGV]"].into_iter());
        let many: Vec<Vec<u8>> = (0..5000).map(|n| format!("main.f({n})").into()).collect();
        recent.keep(6, many.iter().map(Vec::as_slice));
        let found = recent.words_between(0, 10);
        assert_eq!(found[..2], ["panic: lost", "[signal SIGSEGV]"]);
        assert_eq!(found.len(), Words::LINES);
        assert_eq!(recent.words_between(6, 10).len(), Words::LINES - 2);
        assert!(recent.words_between(7, 10).is_empty());
        // Rulers of logs are no sanitizers.
        recent.keep(7, [&b"====== part ======"[..]].into_iter());
        assert_eq!(recent.words_between(0, 10)[0], "panic: lost");
        recent.keep(8, [&b"==7==ERROR: AddressSanitizer: bad"[..]].into_iter());
        assert_eq!(recent.words_between(0, 10).len(), 1);
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let recent = Recent::default();
        for number in 0..1000u64 {
            let line = format!("line {number}");
            recent.keep(number, [line.as_bytes()].into_iter());
        }
        let found = recent.until(u64::MAX);
        assert_eq!(found.len(), Recent::LINES);
        assert_eq!(found.last().map(String::as_str), Some("line 999"));
        assert_eq!(
            recent.until(950).last().map(String::as_str),
            Some("line 950")
        );
        assert_eq!(recent.between(940, 949).len(), 10);
        let many: Vec<Vec<u8>> = (0..5000).map(|n| vec![b'x'; n]).collect();
        recent.keep(1, many.iter().map(Vec::as_slice));
        assert_eq!(recent.until(u64::MAX)[0].len(), Recent::LINE_BYTES);
        let kept = recent.kept.lock().expect("no panic");
        assert!(kept.text.len() <= Recent::MOST * Recent::LINE_BYTES);
    }
}
