//! `images/rows.md` has every row of its sections, and names only checks and texts that exist.

use std::path::Path;

fn text_of(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_default()
}

/// `images::x` is a function of tests/images/run, `aarch64::x` a line that tests/aarch64 prints,
/// `file: text` a text in a file.
fn exists(check: &str) -> bool {
    if let Some(name) = check.strip_prefix("images::") {
        return text_of("tests/images/run").contains(&format!("check_{name}()"));
    }
    if let Some(name) = check.strip_prefix("aarch64::") {
        let text = text_of("tests/aarch64");
        return ["ask", "part"].iter().any(|word| {
            text.contains(&format!("{word} \"{name}\" "))
                || text.contains(&format!("{word} {name} "))
        });
    }
    check
        .split_once(": ")
        .is_some_and(|(path, text)| text_of(path).contains(text))
}

#[test]
fn every_row_is_there_and_every_check_exists() {
    let rows = include_str!("images/rows.md");
    let mut broken = Vec::new();
    let mut seen = Vec::new();
    let mut named = String::new();
    for row in rows
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| Row"))
    {
        let cells: Vec<&str> = row.split(" | ").collect();
        let [name, verdict, _, checks] = cells[..] else {
            broken.push(format!("not four cells: {row}"));
            continue;
        };
        seen.push(name.trim_start_matches("| "));
        named.push_str(checks);
        if !["holds", "differs", "elsewhere"].contains(&verdict) {
            broken.push(format!("{name} is {verdict:?}"));
        }
        // Every second piece stands between backticks.
        let checks: Vec<&str> = checks.split('`').skip(1).step_by(2).collect();
        if checks.is_empty() && verdict != "elsewhere" {
            broken.push(format!("{name} names no check"));
        }
        for check in checks.iter().filter(|check| !exists(check)) {
            broken.push(format!("{name}: there is no {check}"));
        }
    }
    for (letter, last) in [('K', 10), ('L', 9), ('O', 8), ('P', 9)] {
        for number in 1..=last {
            let name = format!("{letter}{number}");
            if !seen.contains(&name.as_str()) {
                broken.push(format!("no row {name}"));
            }
        }
    }
    // And the other way: a check that no row names has been forgotten.
    for line in text_of("tests/images/run").lines() {
        if let Some(name) = line
            .strip_prefix("check_")
            .and_then(|rest| rest.split("()").next())
            && !named.contains(&format!("`images::{name}`"))
        {
            broken.push(format!("no row names images::{name}"));
        }
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}
