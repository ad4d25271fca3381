//! report → text for people.
//!
//! Each frame is one line that begins with `#`, in the form that gdb made familiar; everything else begins
//! otherwise, so that a filter for `#` still gives the bare backtrace.

use crate::crash::report::{Frame, Kind, Report, Symbols, Thread, Trust, Variable};
use crate::crash::signals;
use std::fmt::Write as _;

/// The value of a variable that the compiler kept nowhere.
const OPTIMIZED_OUT: &str = "<optimized out>";
/// Of the service's last lines.
const LAST_LINES: usize = 20;
/// Longest argument list on a frame's line.
const MAX_ARGUMENTS: usize = 240;

/// The whole text form. Begins `Backtrace for `.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    heading(&mut out, report);
    for (position, thread) in report.threads.iter().enumerate() {
        if position > 0 || report.threads.len() > 1 {
            thread_heading(&mut out, thread);
        }
        frames(&mut out, thread);
    }
    if let Some(crashed) = report
        .threads
        .first()
        .filter(|t| t.crashed && !t.registers.is_empty())
    {
        registers(&mut out, crashed);
    }
    modules(&mut out, report);
    last_lines(&mut out, report);
    out
}

/// Only the crashed thread's frame lines: what a log line can hold.
pub fn render_short(report: &Report) -> String {
    let mut out = String::new();
    heading(&mut out, report);
    if let Some(thread) = report.threads.first() {
        frames(&mut out, thread);
    }
    out
}

fn heading(out: &mut String, report: &Report) {
    let what = report
        .service
        .as_deref()
        .or(report.executable.as_deref())
        .unwrap_or("a process");
    let _ = write!(out, "Backtrace for {what}");
    if let Some(pid) = report.pid {
        let _ = write!(out, ", pid {pid}");
    }
    match report.kind {
        Kind::Crash => {}
        Kind::Hang => out.push_str(", which hung"),
        Kind::Stacks => out.push_str(", running"),
    }
    if let Some(time) = &report.time {
        let _ = write!(out, ", {time}");
    }
    out.push('\n');
    if let Some(signal) = &report.signal {
        let _ = write!(out, "{}", signal.name);
        if let Some(meaning) = signals::meaning(signal.number) {
            let _ = write!(out, " ({meaning})");
        }
        for detail in [&signal.code, &signal.address].into_iter().flatten() {
            let _ = write!(
                out,
                " {}{detail}",
                if detail.starts_with("0x") { "at " } else { "" }
            );
        }
        if let Some(sender) = signal.sender {
            let _ = write!(out, " from pid {sender}");
        }
        out.push('\n');
    }
    if let Some(message) = &report.abort_message {
        // Further lines stand under the first: none begins like a frame.
        let lines: Vec<String> = message.lines().map(one_line).collect();
        let _ = writeln!(out, "Message: {}", lines.join("\n         "));
    }
    if let Some(seen) = &report.seen {
        seen_before(out, seen);
    }
    for note in &report.notes {
        let _ = writeln!(out, "Note: {}", one_line(note));
    }
}

/// Where the same crash was seen before.
fn seen_before(out: &mut String, seen: &serde_json::Value) {
    let count = seen.get("count").and_then(serde_json::Value::as_u64);
    let first = seen.get("first").and_then(serde_json::Value::as_str);
    if let (Some(count @ 2..), Some(first)) = (count, first) {
        let _ = writeln!(out, "Seen {count} times since {}", one_line(first));
    }
}

fn thread_heading(out: &mut String, thread: &Thread) {
    let _ = write!(out, "\nThread {}", thread.tid);
    if let Some(name) = &thread.name {
        let _ = write!(out, " \"{}\"", one_line(name));
    }
    out.push_str(if thread.crashed {
        " (crashed):\n"
    } else {
        ":\n"
    });
}

fn frames(out: &mut String, thread: &Thread) {
    let mut expected = 0;
    for frame in &thread.frames {
        if frame.index > expected
            && let Some(omitted) = thread.omitted_frames
        {
            let _ = writeln!(out, "    ... {omitted} frames omitted ...");
        }
        expected = frame.index + 1;
        let _ = writeln!(out, "{}", frame_line(frame));
        // What had no room in the line, and of the others not what was optimized out: that tells nothing.
        let (_, left_out) = arguments(&frame.arguments);
        let locals = frame.locals.iter().filter(|l| l.value != OPTIMIZED_OUT);
        for local in left_out.into_iter().chain(locals) {
            let _ = writeln!(out, "        {} = {}", local.name, one_line(&local.value));
        }
    }
    if let Some(note) = &thread.note {
        let _ = writeln!(out, "    ({note})");
    }
}

/// `#3  0x… in function (a=1) at file.c:8`; the address is left out where the line alone tells the place.
pub fn frame_line(frame: &Frame) -> String {
    let mut line = format!("#{:<2} ", frame.index);
    let exact = frame.inlined || frame.index == 0 || frame.trust == Trust::Context;
    if frame.function.as_deref() == Some(SIGNAL_HANDLER) {
        line.push_str(SIGNAL_HANDLER);
        return line;
    }
    if !(exact && frame.line.is_some()) {
        let _ = write!(line, "{} in ", frame.address);
    }
    line.push_str(frame.function.as_deref().unwrap_or("??"));
    if frame.function.is_some() {
        let _ = write!(line, " ({})", arguments(&frame.arguments).0);
    }
    match (&frame.file, frame.line) {
        (Some(file), Some(number)) => {
            let _ = write!(line, " at {file}:{number}");
        }
        _ => {
            if let Some(module) = &frame.module {
                let _ = write!(line, " from {module}");
                if let Some(offset) = frame
                    .module_offset
                    .as_ref()
                    .filter(|_| frame.function.is_none())
                {
                    let _ = write!(line, "+{offset}");
                }
            }
        }
    }
    if frame.trust == Trust::Scan {
        line.push_str("  [guess]");
    }
    one_line(&line)
}

/// What stands for a function where the kernel put a signal handler's frame.
pub const SIGNAL_HANDLER: &str = "<signal handler called>";

/// As they stand in a frame's line, and those whose values had no room there.
fn arguments(arguments: &[Variable]) -> (String, Vec<&Variable>) {
    let (mut text, mut left_out) = (String::new(), Vec::new());
    for (index, argument) in arguments.iter().enumerate() {
        let separator = if index > 0 { ", " } else { "" };
        let piece = format!("{separator}{}={}", argument.name, argument.value);
        if text.len() + piece.len() > MAX_ARGUMENTS {
            let _ = write!(text, "{separator}{}=…", argument.name);
            left_out.push(argument);
            continue;
        }
        text.push_str(&piece);
    }
    (text, left_out)
}

fn registers(out: &mut String, thread: &Thread) {
    out.push_str("\nRegisters:\n");
    let mut sorted: Vec<_> = thread.registers.iter().collect();
    sorted.sort_by_key(|(name, _)| register_order(name));
    let shown: Vec<String> = sorted
        .into_iter()
        .map(|(name, value)| format!("{name:>6} {:<18}", value.as_str().unwrap_or_default()))
        .collect();
    for row in shown.chunks(4) {
        let _ = writeln!(out, "{}", row.join(" ").trim_end());
    }
}

/// Program counter, stack, frame, then the named, then the numbered by their number.
fn register_order(name: &str) -> (usize, u32) {
    const FIRST: [&str; 11] = [
        "rip", "pc", "rsp", "sp", "rbp", "rax", "rbx", "rcx", "rdx", "rsi", "rdi",
    ];
    let number = name
        .trim_start_matches(|c: char| !c.is_ascii_digit())
        .parse()
        .unwrap_or(99);
    let place = FIRST.iter().position(|f| *f == name).unwrap_or(FIRST.len());
    (place, number)
}

fn modules(out: &mut String, report: &Report) {
    if report.modules.is_empty() {
        return;
    }
    out.push_str("\nModules:\n");
    for module in &report.modules {
        let symbols = match module.symbols {
            Symbols::Dwarf => "dwarf",
            Symbols::Symtab => "symtab",
            Symbols::None => "none",
        };
        let _ = write!(
            out,
            "  {:<18} {symbols:<6} {}",
            module.base,
            one_line(&module.path)
        );
        if let Some(id) = &module.build_id {
            let _ = write!(out, " {id}");
        }
        if let Some(note) = &module.note {
            let _ = write!(out, " ({})", one_line(note));
        }
        out.push('\n');
    }
}

fn last_lines(out: &mut String, report: &Report) {
    if report.log.is_empty() {
        return;
    }
    out.push_str("\nLast lines:\n");
    let skipped = report.log.len().saturating_sub(LAST_LINES);
    for line in report.log.iter().skip(skipped) {
        let _ = writeln!(out, "  {}", one_line(line));
    }
}

/// Names and values come from the crashed process: a line break in them must not look like a frame.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(index: usize, function: Option<&str>) -> Frame {
        Frame {
            index,
            address: "0x00007f0000001234".into(),
            module: Some("libfoo.so".into()),
            module_offset: Some("0x1234".into()),
            function: function.map(str::to_owned),
            trust: Trust::Cfi,
            ..Frame::default()
        }
    }

    #[test]
    fn lines_have_the_form_of_the_contract() {
        let mut known = frame(0, Some("lidar::scan::Ring::push"));
        known.file = Some("/src/scan.rs".into());
        known.line = Some(88);
        known.arguments = vec![Variable {
            name: "self".into(),
            type_name: None,
            value: "…".into(),
        }];
        assert_eq!(
            frame_line(&known),
            "#0  lidar::scan::Ring::push (self=…) at /src/scan.rs:88"
        );
        let long = Variable {
            name: "ring".into(),
            type_name: None,
            value: "1".repeat(300),
        };
        let two = [known.arguments[0].clone(), long.clone()];
        let (line, left_out) = arguments(&two);
        assert_eq!(line, "self=…, ring=…");
        assert_eq!(left_out, [&long]);
        known.index = 13771;
        assert!(frame_line(&known).starts_with("#13771 0x00007f"));
        known.index = 12;
        assert_eq!(
            frame_line(&known),
            "#12 0x00007f0000001234 in lidar::scan::Ring::push (self=…) at /src/scan.rs:88"
        );
        assert_eq!(
            frame_line(&frame(4, None)),
            "#4  0x00007f0000001234 in ?? from libfoo.so+0x1234"
        );
        assert_eq!(
            frame_line(&frame(5, Some("abort"))),
            "#5  0x00007f0000001234 in abort () from libfoo.so"
        );
        assert_eq!(
            frame_line(&frame(2, Some(SIGNAL_HANDLER))),
            "#2  <signal handler called>"
        );
    }

    #[test]
    fn nothing_from_the_process_can_fake_a_frame() {
        let mut report = Report {
            threads: vec![Thread {
                frames: vec![frame(0, Some("f\n#1  fake"))],
                ..Thread::default()
            }],
            ..Report::default()
        };
        report.abort_message = Some("x\n#7  fake".into());
        report.log = vec!["#8  fake".into()];
        let text = render(&report);
        assert!(text.starts_with("Backtrace for "));
        assert_eq!(text.lines().filter(|l| l.starts_with('#')).count(), 1);
    }
}
