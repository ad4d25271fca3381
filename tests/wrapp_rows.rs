//! `wrapp-rows.md` names only tests that exist, and a test for every row that is ours.

use std::path::{Path, PathBuf};

/// `wrapp::x` is in tests/wrapp.rs, `src/logs/join.rs::x` where it says.
fn file_of(place: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    match place.ends_with(".rs") {
        true => root.join(place),
        false => root.join(format!("tests/{place}.rs")),
    }
}

#[test]
fn every_row_has_a_test_and_every_test_exists() {
    let rows = include_str!("wrapp-rows.md");
    let mut broken = Vec::new();
    let mut count = 0;
    for row in rows
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| Row"))
    {
        let cells: Vec<&str> = row.split(" | ").collect();
        let [name, verdict, _, tests] = cells[..] else {
            broken.push(format!("not four cells: {row}"));
            continue;
        };
        let named: Vec<&str> = tests
            .split('`')
            .filter(|part| part.contains("::"))
            .collect();
        match verdict {
            "holds" | "better" if named.is_empty() => broken.push(format!("{name} names no test")),
            "holds" | "better" | "elsewhere" => {}
            other => broken.push(format!("{name} is {other:?}")),
        }
        for test in named {
            count += 1;
            let Some((place, function)) = test.rsplit_once("::") else {
                continue;
            };
            let text = std::fs::read_to_string(file_of(place)).unwrap_or_default();
            let is_test = text
                .match_indices(&format!("fn {function}()"))
                .any(|(at, _)| {
                    // Attributes may stand between.
                    text[..at]
                        .lines()
                        .rev()
                        .take(4)
                        .any(|line| line.trim() == "#[test]")
                });
            if !is_test {
                broken.push(format!("{name}: there is no test {test}"));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
    assert!(count > 80, "{count} tests named");
}
