//! who waits for whom → text for people, or a graph for dot(1).

use serde_json::Value;

use super::show::clean;

/// A page: each service in start order, then the critical path.
pub fn page(data: &Value) -> String {
    let rows = rows(data);
    if rows.is_empty() {
        return "no services\n".to_owned();
    }
    let width = rows
        .iter()
        .map(|row| text(row, "name").chars().count())
        .max();
    let width = width.unwrap_or(0);
    let mut page = String::new();
    for row in rows {
        let mut words = vec![format!(
            "{:width$}  {:8}",
            text(row, "name"),
            text(row, "state")
        )];
        if let Some(took) = row["took_ms"].as_f64() {
            words.push(format!("took {}", time(took)));
        }
        if let Some(waited) = row["waited_ms"].as_f64().filter(|waited| *waited >= 1.0) {
            words.push(format!("waited {}", time(waited)));
        }
        for key in ["requires", "after"] {
            let names = names(row, key);
            if !names.is_empty() {
                words.push(format!("{key} {}", names.join(", ")));
            }
        }
        page.push_str(words.join("  ").trim_end());
        page.push('\n');
    }
    let path = critical(data);
    if let (Some(total), false) = (data["total_ms"].as_f64(), path.is_empty()) {
        let steps: Vec<String> = path
            .iter()
            .map(|name| match took(data, name) {
                Some(took) => format!("{name} {}", time(took)),
                None => name.clone(),
            })
            .collect();
        let steps = steps.join(" → ");
        page.push_str(&format!("\nlast start: {}, by {steps}\n", time(total)));
    }
    page
}

/// Solid arrows from what is required, dashed ones from what only comes first; the critical path in red.
pub fn dot(data: &Value) -> String {
    let path = critical(data);
    let on_path = |name: &str| path.iter().any(|other| other == name);
    let follows = |before: &str, after: &str| {
        path.windows(2)
            .any(|pair| pair[0] == before && pair[1] == after)
    };
    let mut out =
        "digraph agent {\n  rankdir = LR;\n  node [shape = box, fontname = sans];\n".to_owned();
    for row in rows(data) {
        let name = text(row, "name");
        let mut label = format!("{name}\\n{}", text(row, "state"));
        if let Some(took) = row["took_ms"].as_f64() {
            label.push_str(&format!("\\n{}", time(took)));
        }
        let colour = if on_path(&name) { ", color = red" } else { "" };
        out.push_str(&format!("  \"{name}\" [label = \"{label}\"{colour}];\n"));
    }
    for row in rows(data) {
        let name = text(row, "name");
        let required = names(row, "requires");
        let after = names(row, "after");
        let after = after.iter().filter(|other| !required.contains(other));
        let dashed = after.map(|other| (other, ", style = dashed"));
        for (other, style) in required.iter().map(|other| (other, "")).chain(dashed) {
            let colour = if follows(other, &name) {
                "red"
            } else {
                "black"
            };
            out.push_str(&format!(
                "  \"{other}\" -> \"{name}\" [color = {colour}{style}];\n"
            ));
        }
    }
    out.push_str("}\n");
    out
}

fn rows(data: &Value) -> &[Value] {
    data["services"].as_array().map_or(&[][..], Vec::as_slice)
}

fn text(row: &Value, key: &str) -> String {
    clean(row[key].as_str().unwrap_or("-"))
}

fn names(row: &Value, key: &str) -> Vec<String> {
    let list = row[key].as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(clean).collect()
}

fn critical(data: &Value) -> Vec<String> {
    names(data, "critical")
}

fn took(data: &Value, name: &str) -> Option<f64> {
    let row = rows(data).iter().find(|row| text(row, "name") == name)?;
    row["took_ms"].as_f64()
}

fn time(ms: f64) -> String {
    match ms {
        ms if ms >= 10_000.0 => format!("{:.1} s", ms / 1000.0),
        ms if ms >= 1000.0 => format!("{:.2} s", ms / 1000.0),
        ms if ms >= 10.0 => format!("{ms:.0} ms"),
        ms => format!("{ms:.1} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_and_a_graph() {
        let data = json!({
            "services": [
                {"name": "db", "state": "ready", "after": [], "requires": [], "took_ms": 300.2, "waited_ms": 0.0},
                {"name": "web", "state": "ready", "after": ["disk"], "requires": ["db"], "took_ms": 5.04,
                 "waited_ms": 300.2},
                {"name": "later", "state": "stopped", "after": [], "requires": [], "took_ms": null, "waited_ms": null},
            ],
            "critical": ["db", "web"], "total_ms": 1305.3,
        });
        assert_eq!(
            page(&data),
            "db     ready     took 300 ms\n\
             web    ready     took 5.0 ms  waited 300 ms  requires db  after disk\n\
             later  stopped\n\
             \n\
             last start: 1.31 s, by db 300 ms → web 5.0 ms\n"
        );
        let dot = dot(&data);
        for line in [
            "  \"db\" [label = \"db\\nready\\n300 ms\", color = red];",
            "  \"later\" [label = \"later\\nstopped\"];",
            "  \"db\" -> \"web\" [color = red];",
            "  \"disk\" -> \"web\" [color = black, style = dashed];",
        ] {
            assert!(dot.lines().any(|one| one == line), "{line}\n{dot}");
        }
        assert_eq!(page(&json!({"services": []})), "no services\n");
    }
}
