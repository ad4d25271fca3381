//! Lines per second through the line reader: bytes as read → messages in a shared chunk.
//!
//! Prints lines/s and CPU nanoseconds per line for plain lines of 100 bytes, the same with a
//! marker here and there, and for lines that are all special; then again with tracebacks joined.

use std::time::Instant;

use jettison_agent::handoff::MultiLine;
use jettison_agent::logs::entry::{Assembler, Batch};
use jettison_agent::logs::join::OpenBlocks;

/// What one read of a full pipe brings.
const READ: usize = 64 * 1024;

fn main() {
    let plain = line_of(100, "");
    let beat = line_of(100, "{{__healthpool__api_beats}}");
    let block = "traceback >>| one\n  two\n  three |<<\n".to_owned();
    measure("plain, 100 bytes", &plain, 10_000);
    measure("plain, 1000 bytes", &line_of(1000, ""), 2_000);
    measure("JSON, 100 bytes", &json_line(), 10_000);
    measure("a beat in every 100th", &(plain.repeat(99) + &beat), 100);
    measure("a beat in every line", &beat, 10_000);
    measure("blocks of three lines", &block, 3_000);
    measure("one line without an end", &"x".repeat(1_000_000), 1);
    let joined = |what: &str, unit: &str, times| {
        let multi_line = MultiLine {
            markers: true,
            tracebacks: true,
        };
        measure_as(multi_line, &format!("joined: {what}"), unit, times);
    };
    let trace = "Traceback (most recent call last):\n  File \"a.py\", line 1, in f\n    f()\nValueError: x\n";
    joined("plain, 100 bytes", &plain, 10_000);
    joined("plain, 1000 bytes", &line_of(1000, ""), 2_000);
    joined("JSON, 100 bytes", &json_line(), 10_000);
    joined("a trace after 96", &(plain.repeat(96) + trace), 100);
    joined("only traces", trace, 3_000);
}

/// A line of `length` bytes, its end included, with `within` somewhere in it.
fn line_of(length: usize, within: &str) -> String {
    let text = "2026-11-22T10:30:00.123456 INFO lidar::scan: ring pushed, 1024 points | ";
    let mut line: String = within
        .chars()
        .chain(text.chars().cycle())
        .take(length - 1)
        .collect();
    line.push('\n');
    line
}

fn json_line() -> String {
    let mut line =
        r#"{"ts":1,"level":"info","span":{"name":"scan"},"fields":{"points":1024,"#.to_owned();
    line += r#""ring":"a|b"}}"#;
    line.push_str(&" ".repeat(99 - line.len()));
    line + "\n"
}

fn measure(what: &str, unit: &str, times: usize) {
    measure_as(MultiLine::default(), what, unit, times);
}

fn measure_as(multi_line: MultiLine, what: &str, unit: &str, times: usize) {
    let input = unit.repeat(times);
    let lines = input.bytes().filter(|byte| *byte == b'\n').count().max(1);
    let mut best = f64::MAX;
    for _ in 0..20 {
        let mut assembler = Assembler::new(256 * 1024, multi_line, &OpenBlocks::bounded(8 << 20));
        let mut seen = 0;
        let begun = Instant::now();
        for chunk in input.as_bytes().chunks(READ) {
            let mut batch = Batch::default();
            assembler.push(begun, chunk, &mut batch);
            seen += batch.spans.len();
        }
        let mut batch = Batch::default();
        assembler.finish(begun, &mut batch);
        seen += batch.spans.len();
        assert!(seen > 0);
        best = best.min(begun.elapsed().as_secs_f64());
    }
    let per_line = best / lines as f64;
    println!(
        "{what:<30} {:>12.0} lines/s {:>10.1} ns/line {:>8.2} GB/s",
        1.0 / per_line,
        per_line * 1e9,
        input.len() as f64 / best / 1e9
    );
}
