//! the service's last lines → what the runtime said when it gave up.
//!
//! For programs whose runtime tells the reason on stderr and keeps no copy of it: an uncaught C++ exception with its
//! `what()`, Rust and Go panics, fatal errors of Python, Java and V8, the sanitizers' verdict. The latest that is found wins; the
//! caller hands only lines of the moment of the crash, so that an earlier run's words are not taken for this one's.

/// Lines of one message.
const MAX_LINES: usize = 8;
/// Of a sanitizer's report: three stacks and what stands between them.
const VERDICT_LINES: usize = 90;
const VERDICT_FRAMES: u32 = 3;
/// Bytes of one message.
const MAX_BYTES: usize = 2000;

/// How the program died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By its own hand: SIGABRT, or the trap that some runtimes end with.
    GaveUp,
    /// By a fault: only what tells of one counts, not a panic that was survived before.
    Fault,
}

pub fn find(lines: &[String], end: End) -> Option<String> {
    let (mut at, kind) = (0..lines.len())
        .rev()
        .find_map(|at| Some((at, begins(&lines[at], end)?)))?;
    // Why it called.
    let before = at.checked_sub(1).filter(|before| {
        kind == Kind::Terminate && lines[*before].ends_with(" virtual method called")
    });
    at = before.unwrap_or(at);
    if kind == Kind::Sanitizer {
        return Some(verdict(&lines[at..]));
    }
    let mut message = shown(kind, &lines[at]).to_owned();
    for line in lines[at + 1..].iter().take(MAX_LINES - 1) {
        if !goes_on(kind, line) || message.len() + line.len() > MAX_BYTES {
            break;
        }
        let line = shown(kind, line);
        if kind != Kind::Java || !line.is_empty() {
            message.push('\n');
            message.push_str(line);
        }
    }
    Some(message)
}

/// What was done to which memory, and who had it: with the innermost frames of each, up to the summary.
fn verdict(lines: &[String]) -> String {
    let mut message = String::new();
    for line in lines.iter().take(VERDICT_LINES) {
        let line = line.trim_end();
        let outer = line.trim_start().strip_prefix('#').is_some_and(|frame| {
            let number = frame.split(' ').next().unwrap_or_default();
            number
                .parse()
                .is_ok_and(|number: u32| number >= VERDICT_FRAMES)
        });
        if outer || line.is_empty() || message.len() + line.len() > MAX_BYTES {
            continue;
        }
        if !message.is_empty() {
            message.push('\n');
        }
        message.push_str(line);
        if line.starts_with("SUMMARY: ") {
            break;
        }
    }
    message
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Terminate,
    /// What follows is the message, until notes or the backtrace.
    RustPanic,
    /// The whole message stands in this line.
    Whole,
    Sanitizer,
    /// Lines behind `#`, some of them empty; the last that tells something names the frame.
    Java,
    /// And what was checked in the next line.
    V8,
    GoPanic,
}

fn begins(line: &str, end: End) -> Option<Kind> {
    let is_sanitizer = |line: &str| {
        let rest = line
            .strip_prefix("==")
            .and_then(|rest| rest.split_once("==ERROR: "));
        rest.is_some_and(|(pid, _)| pid.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if line.starts_with("thread '") && line.ends_with(" has overflowed its stack")
        || line.starts_with("Fatal Python error: ")
    {
        return Some(Kind::Whole);
    }
    if is_sanitizer(line) {
        return Some(Kind::Sanitizer);
    }
    if line.starts_with("unexpected fault address ") || line.starts_with("fatal error: ") {
        return Some(Kind::GoPanic);
    }
    match end {
        // A nil dereference is a panic and no fault that we would see.
        End::Fault => None,
        End::GaveUp if line.starts_with("thread '") && line.contains(" panicked at ") => {
            Some(Kind::RustPanic)
        }
        End::GaveUp if line.starts_with("terminate called ") => Some(Kind::Terminate),
        End::GaveUp if line.starts_with("libc++abi: ") || line.starts_with("FATAL ERROR: ") => {
            Some(Kind::Whole)
        }
        End::GaveUp if line.starts_with("# A fatal error has been detected ") => Some(Kind::Java),
        End::GaveUp if line.starts_with("# Fatal error in ") => Some(Kind::V8),
        End::GaveUp if line.starts_with("panic: ") => Some(Kind::GoPanic),
        // musl's and old C libraries' assert keep no copy.
        End::GaveUp if line.contains("ssertion ") && line.contains(" failed") => Some(Kind::Whole),
        End::GaveUp => None,
    }
}

/// Without what only makes a line a comment.
fn shown(kind: Kind, line: &str) -> &str {
    let line = line.trim_end();
    match kind {
        Kind::Java | Kind::V8 => line.trim_start_matches('#').trim_start(),
        Kind::Terminate | Kind::RustPanic | Kind::Whole | Kind::Sanitizer | Kind::GoPanic => line,
    }
}

fn goes_on(kind: Kind, line: &str) -> bool {
    match kind {
        Kind::Whole | Kind::Sanitizer => false,
        Kind::Java => line.starts_with('#'),
        Kind::V8 => line.starts_with("# ") && !line.starts_with("# Fatal"),
        Kind::Terminate => line.starts_with("  what():") || line.starts_with("terminate called "),
        Kind::RustPanic => {
            let ends = [
                "note: ",
                "stack backtrace:",
                "thread ",
                "fatal runtime error: ",
            ];
            !ends.iter().any(|prefix| line.starts_with(prefix))
        }
        Kind::GoPanic => !line.starts_with("goroutine ") && !line.starts_with("runtime stack:"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, end: End) -> Option<String> {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        find(&lines, end)
    }

    #[test]
    fn a_sanitizers_verdict_tells_who_freed_what() {
        let text = "==7==ERROR: AddressSanitizer: heap-use-after-free on address 0x602 at pc 0x55 bp 0x7f sp 0x7f\n\
            READ of size 4 at 0x602 thread T0\n    #0 0x55 in use /x/a.c:3\n    #1 0x56 in main /x/a.c:9\n    \
            #2 0x57 in a /b\n    #3 0x58 in b /b\n\n0x602 is located 0 bytes inside of 4-byte region\n\
            freed by thread T0 here:\n    #0 0x7f in free\n    #10 0x59 in c\n\nSUMMARY: AddressSanitizer: heap-use-after-free /x/a.c:3 in use\n\
            Shadow bytes around the buggy address:\n";
        let found = found(text, End::GaveUp).unwrap();
        let lines: Vec<&str> = found.lines().map(str::trim_start).collect();
        let starts = [
            "==7==ERROR",
            "READ of",
            "#0 0x55",
            "#1",
            "#2",
            "0x602 is",
            "freed by",
            "#0 0x7f",
            "SUMMARY",
        ];
        assert_eq!(lines.len(), starts.len(), "{found}");
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start), "{line}");
        }
    }

    #[test]
    fn the_reason_is_found_and_nothing_around_it() {
        let end = End::GaveUp;
        assert_eq!(
            found(
                "ready\nterminate called after throwing an instance of 'std::runtime_error'\n  what():  lost\nmore",
                end
            )
            .as_deref(),
            Some("terminate called after throwing an instance of 'std::runtime_error'\n  what():  lost")
        );
        assert_eq!(
            found(
                "pure virtual method called\nterminate called without an active exception\n",
                end
            )
            .as_deref(),
            Some("pure virtual method called\nterminate called without an active exception")
        );
        assert_eq!(
            found(
                "thread 'main' (7) panicked at a.rs:5:1:\none\ntwo\nnote: run with\n",
                end
            )
            .as_deref(),
            Some("thread 'main' (7) panicked at a.rs:5:1:\none\ntwo")
        );
        assert_eq!(
            found(
                "panic: lost\n[signal SIGSEGV: x]\ngoroutine 1 [running]:\nmain.main()",
                end
            )
            .as_deref(),
            Some("panic: lost\n[signal SIGSEGV: x]")
        );
        assert_eq!(
            found("==7==ERROR: AddressSanitizer: bad\nREAD of size 4", end).as_deref(),
            Some("==7==ERROR: AddressSanitizer: bad\nREAD of size 4")
        );
        assert_eq!(
            found(
                "#\n# A fatal error has been detected by the Java Runtime Environment:\n#\n#  SIGSEGV (0xb) at pc=0x1\n\
                 #\n# JRE version: 17\n# Java VM: x\n# Problematic frame:\n# V  [libjvm.so+0x1]  f+0x4\n#\n# No core dump",
                end
            )
            .as_deref(),
            Some(
                "A fatal error has been detected by the Java Runtime Environment:\nSIGSEGV (0xb) at pc=0x1\n\
                 JRE version: 17\nJava VM: x\nProblematic frame:\nV  [libjvm.so+0x1]  f+0x4"
            )
        );
        assert_eq!(
            found(
                "#\n# Fatal error in , line 0\n# Check failed: x.\n#\n#",
                end
            )
            .as_deref(),
            Some("Fatal error in , line 0\nCheck failed: x.")
        );
        assert_eq!(
            found("x\nFATAL ERROR: Reached heap limit\ny", end).as_deref(),
            Some("FATAL ERROR: Reached heap limit")
        );
        assert_eq!(found("nothing\nin particular", end), None);
    }

    #[test]
    fn a_panic_that_was_survived_is_not_the_reason_of_a_fault() {
        let text = "thread 'worker' panicked at a.rs:5:1:\nlost\n";
        assert_eq!(found(text, End::Fault), None);
        let text = "Fatal Python error: Segmentation fault\n\nCurrent thread";
        assert_eq!(
            found(text, End::Fault).as_deref(),
            Some("Fatal Python error: Segmentation fault")
        );
    }

    #[test]
    fn the_latest_wins_and_is_bounded() {
        let mut text = "panic: first\nthread 'a' panicked at b.rs:1:1:\n".to_owned();
        text += &"line\n".repeat(50);
        let message = found(&text, End::GaveUp).unwrap();
        assert!(message.starts_with("thread 'a'"));
        assert_eq!(message.lines().count(), MAX_LINES);
    }
}
