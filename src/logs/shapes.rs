//! a line, and what an open trace has seen so far → whether the line belongs to the trace.
//!
//! The shapes are those that the runtimes print: CPython's `traceback.c` and `traceback.py`, Java's
//! `Throwable.printStackTrace`, Go's `runtime/panic.go` and `runtime/traceback.go`, Rust's `std/src/panicking.rs`,
//! the C++ runtime's `vterminate.cc`, glibc's `libc_fatal.c`, and the reports of compiler-rt's sanitizers.
//!
//! Only the shape of a line is looked at. Where it decides nothing (the further lines of a message, a blank line) the
//! verdict is [`Verdict::Maybe`], and a later line that can only be the trace's settles it.

use memchr::memmem;

/// What a line is to an open trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It belongs to the trace, and so does all that was in doubt before it.
    Part,
    /// It belongs if a later line does.
    Maybe,
    /// The trace ended before it.
    Foreign,
}

use Verdict::{Foreign, Maybe, Part};

/// How far an open trace has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Python(Python),
    Java(Java),
    Go(Go),
    Rust(Rust),
    /// `terminate called …`, whose `what():` may follow.
    Terminate,
    /// `*** … detected ***` of glibc, whose backtrace and memory map may follow.
    Glibc,
    Sanitizer(Sanitizer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Python {
    /// Said before a `Traceback`: where it comes from.
    Preface,
    /// Frames, until the exception.
    Frames,
    /// The exception was told.
    After,
    /// And something else after it: its message's further lines, perhaps.
    Later,
    /// Another trace is announced.
    Chained,
    /// Where a broken log call was made.
    CallStack,
    /// `Fatal Python error`, and the threads of `faulthandler`.
    Fatal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Java {
    /// The exception and its message; no frame yet.
    Head,
    Frames,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// The panic; no goroutine yet.
    Head,
    /// And something else after it: its message's further lines, perhaps.
    Message,
    Routine,
    /// What looks like a call: the next line says where.
    Call,
    /// A blank line after a goroutine.
    Gap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rust {
    /// The next line is the message.
    Header,
    /// It may have more lines.
    Message,
    /// Lines in doubt came.
    Later,
    /// Frames follow; each is looked up in the debug information first.
    Backtrace,
    /// A note came.
    Notes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sanitizer {
    /// A line of `=`, or the word that a report comes.
    Rule,
    /// Until the summary.
    Body,
    Summary,
    /// One line of UBSan, whose stack may follow.
    Remark,
}

const TRACEBACK: &[u8] = b"Traceback (most recent call last):";
/// Longer lines begin nothing: no runtime prints such a first line.
const MAX_FIRST: usize = 4096;
/// `=` in a sanitizer's rule, at least.
const MIN_RULE: usize = 18;

const UBSAN: &[u8] = b": runtime error: ";

/// Whether some line of the text begins a trace.
pub fn any_begins(text: &[u8]) -> bool {
    let mut from = 0;
    let by_line = memchr::memchr_iter(b'\n', text).any(|end| {
        let line = &text[from..end];
        from = end + 1;
        by_its_ends(line).is_some()
    });
    by_line || memmem::find(text, UBSAN).is_some()
}

/// What a line begins by its first or last words. Most lines are done with after a few comparisons.
fn by_its_ends(line: &[u8]) -> Option<Shape> {
    let line = line.trim_ascii_end();
    let starts = |prefix: &str| line.starts_with(prefix.as_bytes());
    let preface = || {
        PYTHON_PREFACES
            .iter()
            .any(|p| starts(p))
            .then_some(Shape::Python(Python::Preface))
    };
    let sanitizer = || is_sanitizer(line).then_some(Shape::Sanitizer(Sanitizer::Body));
    let dump = || is_thread_dump(line).then_some(Shape::Python(Python::Fatal));
    let go = |is: bool| is.then_some(Shape::Go(Go::Head));
    if line.len() > MAX_FIRST {
        return None;
    }
    if line.ends_with(TRACEBACK) {
        return Some(Shape::Python(Python::Frames));
    }
    let known = match line.first()? {
        b' ' => {
            let is_place = starts("  File \"") && memmem::find(line, b"\", line ").is_some();
            is_place.then_some(Shape::Python(Python::Frames))
        }
        b'E' if starts("Exception in thread \"") => Some(Shape::Java(Java::Head)),
        b'E' | b'-' => preface(),
        b'C' if starts("Caused by: ") => Some(Shape::Java(Java::Head)),
        b'C' => dump(),
        b'T' => preface().or_else(dump),
        b'F' if starts("Fatal Python error: ") => Some(Shape::Python(Python::Fatal)),
        b'F' => preface().or_else(sanitizer),
        b'A' | b'H' | b'M' if line.ends_with(b"Sanitizer:DEADLYSIGNAL") => {
            Some(Shape::Sanitizer(Sanitizer::Rule))
        }
        b'W' => sanitizer(),
        b'g' => is_goroutine(line).then_some(Shape::Go(Go::Routine)),
        b'p' => go(starts("panic: ")),
        b'f' => go(starts("fatal error: ")),
        b'u' => go(starts("unexpected fault address ")),
        b'r' => go(starts("runtime: ")),
        b'S' => go(is_go_signal(line)),
        b't' if starts("thread '") => rust(line),
        b't' => starts("terminate called ").then_some(Shape::Terminate),
        b'*' => starts("*** ").then_some(Shape::Glibc),
        b'=' if is_rule(line) => Some(Shape::Sanitizer(Sanitizer::Rule)),
        b'=' => sanitizer(),
        _ => None,
    };
    known.or_else(|| is_java_class(line).then_some(Shape::Java(Java::Head)))
}

fn rust(line: &[u8]) -> Option<Shape> {
    let panicked = memmem::find(line, b" panicked at ").is_some();
    let overflowed = line.ends_with(b" has overflowed its stack");
    match (panicked, overflowed) {
        (true, _) if line.ends_with(b":") => Some(Shape::Rust(Rust::Header)),
        (true, _) | (_, true) => Some(Shape::Rust(Rust::Message)),
        (false, false) => None,
    }
}

impl Shape {
    /// The trace that begins with this line.
    pub fn begins(line: &[u8]) -> Option<Shape> {
        let remark = || {
            let within = &line[..line.len().min(MAX_FIRST)];
            memmem::find(within, UBSAN).map(|_| Shape::Sanitizer(Sanitizer::Remark))
        };
        by_its_ends(line).or_else(remark)
    }

    /// Whether the runtime takes its time for the next line: it reads debug information first.
    pub fn is_slow(&self) -> bool {
        match self {
            Shape::Rust(at) => *at == Rust::Backtrace,
            Shape::Sanitizer(Sanitizer::Rule | Sanitizer::Body) => true,
            Shape::Sanitizer(Sanitizer::Summary | Sanitizer::Remark) => false,
            Shape::Python(_) | Shape::Java(_) | Shape::Go(_) => false,
            Shape::Terminate | Shape::Glibc => false,
        }
    }

    /// Whether the line's names may have double braces.
    pub fn has_braces(&self, line: &[u8]) -> bool {
        match self {
            Shape::Rust(_) => is_indented(line),
            Shape::Python(_) | Shape::Java(_) | Shape::Go(_) => false,
            Shape::Terminate | Shape::Glibc | Shape::Sanitizer(_) => false,
        }
    }

    /// What the next line is to the trace.
    pub fn next(&mut self, line: &[u8]) -> Verdict {
        let line = line.trim_ascii_end();
        let verdict = match self {
            Shape::Python(at) => at.next(line),
            Shape::Java(at) => at.next(line),
            Shape::Go(at) => at.next(line),
            Shape::Rust(at) => at.next(line),
            Shape::Terminate => {
                match is_indented(line) || line.starts_with(b"terminate called recursively") {
                    true => Part,
                    false => Foreign,
                }
            }
            Shape::Glibc => glibc(line),
            Shape::Sanitizer(at) => at.next(line),
        };
        // What begins a trace is nobody's doubtful line.
        match verdict {
            Maybe if Shape::begins(line).is_some() => Foreign,
            Part | Maybe | Foreign => verdict,
        }
    }
}

/// What Python says before a traceback, in a line of its own.
const PYTHON_PREFACES: &[&str] = &[
    "Exception in thread ",
    "Exception in callback ",
    "Exception ignored in",
    "Error in sys.excepthook:",
    "Error in atexit._run_exitfuncs:",
    "--- Logging error ---",
    "Task exception was never retrieved",
    "Future exception was never retrieved",
];

impl Python {
    fn next(&mut self, line: &[u8]) -> Verdict {
        let header = line.ends_with(TRACEBACK);
        let (next, verdict) = match self {
            Python::Preface | Python::Chained if header => (Python::Frames, Part),
            Python::Chained if is_indented(line) => (Python::Frames, Part),
            Python::Preface | Python::Chained => (*self, Maybe),
            Python::Frames if is_indented(line) => (Python::Frames, Part),
            Python::Frames if is_exception(line) => (Python::After, Part),
            Python::Frames => (Python::Frames, Foreign),
            Python::After if is_indented(line) => (Python::After, Part),
            Python::After if line == b"Call stack:" => (Python::CallStack, Part),
            Python::After | Python::Later if announces(line) => (Python::Chained, Part),
            Python::After | Python::Later => (Python::Later, Maybe),
            Python::CallStack if line.starts_with(b"Arguments: ") => (Python::After, Part),
            Python::CallStack if is_indented(line) || line.starts_with(b"Message: ") => {
                (Python::CallStack, Part)
            }
            Python::CallStack => (Python::CallStack, Foreign),
            Python::Fatal if is_fatal_python(line) => (Python::Fatal, Part),
            Python::Fatal if line.is_empty() => (Python::Fatal, Maybe),
            Python::Fatal => (Python::Fatal, Foreign),
        };
        *self = next;
        verdict
    }
}

/// `ValueError: text`, `KeyboardInterrupt`, `package.module.Error`.
fn is_exception(line: &[u8]) -> bool {
    let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte >= 0x80 || b"_.<>".contains(byte);
    !name.is_empty() && !name[0].is_ascii_digit() && name.iter().all(word)
}

fn announces(line: &[u8]) -> bool {
    let phrases: [&[u8]; 3] = [
        b"During handling of the above exception, another exception occurred:",
        b"The above exception was the direct cause of the following exception:",
        b"Original exception was:",
    ];
    phrases.contains(&line)
}

/// `Current thread 0x00007f… (most recent call first):`, also with a name in brackets.
fn is_thread_dump(line: &[u8]) -> bool {
    (line.starts_with(b"Current thread 0x") || line.starts_with(b"Thread 0x"))
        && line.ends_with(b"(most recent call first):")
}

fn is_fatal_python(line: &[u8]) -> bool {
    is_indented(line)
        || is_thread_dump(line)
        || line.starts_with(b"Python runtime state: ")
        || line.starts_with(b"Extension modules: ")
}

impl Java {
    fn next(&mut self, line: &[u8]) -> Verdict {
        let begins_another = line.starts_with(b"Caused by: ");
        let (next, verdict) = match self {
            _ if begins_another => (Java::Head, Part),
            Java::Head if is_java_frame(line) => (Java::Frames, Part),
            Java::Head => (Java::Head, Maybe),
            Java::Frames if is_indented(line) => (Java::Frames, Part),
            Java::Frames => (Java::Frames, Foreign),
        };
        *self = next;
        verdict
    }
}

/// `at com.acme.Main.run(Main.java:3)`, `... 12 more`.
fn is_java_frame(line: &[u8]) -> bool {
    let text = line.trim_ascii_start();
    is_indented(line) && (text.starts_with(b"at ") || text.starts_with(b"... "))
}

/// `java.lang.IllegalStateException: text`: dotted, and named as such.
fn is_java_class(line: &[u8]) -> bool {
    let is_part = |byte: &&u8| byte.is_ascii_alphanumeric() || b"_.$".contains(byte);
    let name = &line[..line.iter().take(256).take_while(is_part).count()];
    let ends = matches!(line.get(name.len()), None | Some(b':'));
    let kinds: [&[u8]; 3] = [b"Exception", b"Error", b"Throwable"];
    ends && name.contains(&b'.') && kinds.iter().any(|kind| name.ends_with(kind))
}

impl Go {
    fn next(&mut self, line: &[u8]) -> Verdict {
        let head: [&[u8]; 7] = [
            b"panic: ",
            b"fatal error: ",
            b"[signal ",
            b"runtime: ",
            b"PC=0x",
            b"signal arrived during ",
            b"exit status ",
        ];
        let (next, verdict) = match self {
            _ if is_goroutine(line) || line == b"runtime stack:" => (Go::Routine, Part),
            Go::Head | Go::Message if head.iter().any(|prefix| line.starts_with(prefix)) => {
                (Go::Head, Part)
            }
            Go::Head if is_indented(line) => (Go::Head, Part),
            Go::Head | Go::Message => (Go::Message, Maybe),
            Go::Routine | Go::Call if is_indented(line) => (Go::Routine, Part),
            Go::Routine | Go::Gap if is_go_end(line) => (Go::Routine, Part),
            Go::Routine | Go::Call if is_go_call(line) => (Go::Call, Maybe),
            Go::Routine | Go::Call | Go::Gap if line.is_empty() => (Go::Gap, Maybe),
            Go::Routine | Go::Call | Go::Gap => (*self, Foreign),
        };
        *self = next;
        verdict
    }
}

/// `goroutine 17 [running]:`, also `goroutine 1 gp=0xc… m=0 mp=0x… [running]:`.
fn is_goroutine(line: &[u8]) -> bool {
    line.starts_with(b"goroutine ") && line.ends_with(b":") && line.contains(&b'[')
}

/// `SIGSEGV: segmentation violation`.
fn is_go_signal(line: &[u8]) -> bool {
    let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
    name.len() > 3
        && name.len() < line.len()
        && name.starts_with(b"SIG")
        && name.iter().all(u8::is_ascii_uppercase)
}

/// `main.(*T).run(0x0, {0xc000…, 0x3})`, `created by main.main in goroutine 1`.
fn is_go_call(line: &[u8]) -> bool {
    line.starts_with(b"created by ") || line.ends_with(b")") && line.contains(&b'(')
}

/// What may stand after the last frame: how many are left out, registers, what `go run` adds.
fn is_go_end(line: &[u8]) -> bool {
    let mut words = line
        .split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty());
    let is_register = |name: &[u8], value: &[u8]| {
        name.len() <= 6 && name.iter().all(u8::is_ascii_alphanumeric) && value.starts_with(b"0x")
    };
    let register = match (words.next(), words.next(), words.next()) {
        (Some(name), Some(value), None) => is_register(name, value),
        _ => false,
    };
    register
        || line.starts_with(b"...") && line.ends_with(b"frames elided...")
        || line.starts_with(b"[originating from goroutine ")
        || line.starts_with(b"exit status ")
        || line.starts_with(b"PC=0x")
        // Between the threads of a program that died with GOTRACEBACK=crash.
        || line == b"-----"
}

impl Rust {
    fn next(&mut self, line: &[u8]) -> Verdict {
        let notes: [&[u8]; 4] = [
            b"note: ",
            b"fatal runtime error: ",
            b"thread caused non-unwinding panic",
            b"thread panicked while processing panic",
        ];
        let (next, verdict) = match self {
            Rust::Header => (Rust::Message, Part),
            _ if line == b"stack backtrace:" => (Rust::Backtrace, Part),
            _ if notes.iter().any(|note| line.starts_with(note)) => (Rust::Notes, Part),
            Rust::Message | Rust::Backtrace | Rust::Notes if is_indented(line) => (*self, Part),
            Rust::Message | Rust::Later => (Rust::Later, Maybe),
            Rust::Backtrace | Rust::Notes => (*self, Foreign),
        };
        *self = next;
        verdict
    }
}

/// Old versions of glibc print a backtrace and the memory map.
fn glibc(line: &[u8]) -> Verdict {
    let is_hex = |bytes: &[u8]| !bytes.is_empty() && bytes.iter().all(u8::is_ascii_hexdigit);
    let range = line.split(|byte| *byte == b' ').next().unwrap_or_default();
    let is_map = match range.split(|byte| *byte == b'-').collect::<Vec<_>>()[..] {
        [from, to] => is_hex(from) && is_hex(to),
        _ => false,
    };
    let is_frame = line.ends_with(b"]") && memmem::find(line, b"[0x").is_some();
    match line.starts_with(b"======= ") || is_frame || is_map {
        true => Part,
        false => Foreign,
    }
}

impl Sanitizer {
    fn next(&mut self, line: &[u8]) -> Verdict {
        let is_summary = line.starts_with(b"SUMMARY: ");
        let (next, verdict) = match self {
            Sanitizer::Rule if is_sanitizer(line) => (Sanitizer::Body, Part),
            Sanitizer::Rule if is_rule(line) => (Sanitizer::Rule, Part),
            Sanitizer::Rule => (Sanitizer::Rule, Foreign),
            Sanitizer::Body | Sanitizer::Remark if is_summary => (Sanitizer::Summary, Part),
            Sanitizer::Body if is_indented(line) || numbered(line).is_some() => {
                (Sanitizer::Body, Part)
            }
            Sanitizer::Body if is_rule(line) => (Sanitizer::Summary, Part),
            Sanitizer::Body => (Sanitizer::Body, Maybe),
            Sanitizer::Remark if is_indented(line) => (Sanitizer::Remark, Part),
            Sanitizer::Remark if line.is_empty() => (Sanitizer::Remark, Maybe),
            Sanitizer::Remark => (Sanitizer::Remark, Foreign),
            Sanitizer::Summary if is_shadow(line) || is_rule(line) => (Sanitizer::Summary, Part),
            Sanitizer::Summary if line.is_empty() => (Sanitizer::Summary, Maybe),
            Sanitizer::Summary => (Sanitizer::Summary, Foreign),
        };
        *self = next;
        verdict
    }
}

/// What follows `==1234==`.
fn numbered(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"==")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (digits > 0).then_some(&rest[digits..])?.strip_prefix(b"==")
}

fn is_sanitizer(line: &[u8]) -> bool {
    let body = numbered(line).unwrap_or(line);
    let body = body
        .strip_prefix(b"ERROR: ")
        .or_else(|| body.strip_prefix(b"WARNING: "))
        .or_else(|| body.strip_prefix(b"FATAL: "));
    let name = body.and_then(|body| body.split(|byte| *byte == b':').next());
    name.is_some_and(|name| name.ends_with(b"Sanitizer"))
}

fn is_rule(line: &[u8]) -> bool {
    line.len() >= MIN_RULE && line.iter().all(|byte| *byte == b'=')
}

/// ASan's picture of the memory around, its legend, and the last word.
fn is_shadow(line: &[u8]) -> bool {
    is_indented(line)
        || line.starts_with(b"Shadow byte")
        || line.starts_with(b"Memory tags ")
        || line.starts_with(b"=>0x")
        || numbered(line).is_some()
}

/// Begins with a blank, and holds something.
fn is_indented(line: &[u8]) -> bool {
    matches!(line.first(), Some(b' ' | b'\t'))
}
