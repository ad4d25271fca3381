//! programs with known variables → arguments and locals as the source sets them.
//!
//! What is expected stands in `tests/crash/modes.*`. Needs gcc, g++ and rustc; what is absent is skipped.

#[path = "crash/lab.rs"]
mod lab;

use jettison_agent::crash::examine;
use jettison_agent::crash::report::{Frame, Report, Variable};

fn report(name: &str, tool: &str, build: &str, mode: &str) -> Option<Report> {
    if !lab::present(tool) {
        eprintln!("{name} skipped: needs {tool}");
        return None;
    }
    let folder = std::env::temp_dir().join(format!("crash-values-{}-{name}", std::process::id()));
    let core = lab::crash(build, &format!("./prog {mode}"), &folder);
    let report =
        core.map(|core| examine::examine(&core, &Default::default(), &Default::default()).unwrap());
    let _ = std::fs::remove_dir_all(&folder);
    report
        .map_err(|problem| eprintln!("{name} skipped: {problem}"))
        .ok()
}

fn frame<'r>(report: &'r Report, function: &str) -> &'r Frame {
    let frames = &report.threads[0].frames;
    frames
        .iter()
        .find(|f| {
            f.function
                .as_deref()
                .is_some_and(|n| n == function || n.ends_with(&format!("::{function}")))
        })
        .unwrap_or_else(|| panic!("no frame of {function}"))
}

fn value<'r>(variables: &'r [Variable], name: &str) -> &'r str {
    variables
        .iter()
        .find(|v| v.name == name)
        .map_or("(absent)", |v| &v.value)
}

#[test]
fn values_of_c() {
    let build = "gcc -g -O0 $SRC/modes.c -o prog -lpthread";
    let Some(report) = report("c", "gcc", build, "null") else {
        return;
    };
    let touch = frame(&report, "touch");
    assert!(touch.inlined);
    assert_eq!(value(&touch.arguments, "c"), "GREEN");
    assert_eq!(value(&touch.locals, "sum"), "5");
    let deepest = frame(&report, "deepest");
    assert!(!deepest.inlined);
    assert_eq!(value(&deepest.locals, "values"), "{1, 2, 3, 0}");
    assert_eq!(value(&deepest.locals, "w"), "{u = 1065353216, f = 1.0}");
    let middle = frame(&report, "middle");
    assert!(value(&middle.arguments, "label").ends_with("\"null\""));
    assert_eq!(value(&middle.arguments, "depth"), "0");
    let p = value(&middle.locals, "p");
    assert!(
        p.starts_with("{x = 0, y = 0, weight = 1.5, label = 0x") && p.ends_with("\"null\"}"),
        "{p}"
    );
    assert_eq!(middle.locals[0].type_name.as_deref(), Some("point"));
    assert_eq!(value(&frame(&report, "main").arguments, "argc"), "2");
}

#[test]
fn values_of_optimized_c() {
    let build = "gcc -g -O2 $SRC/modes.c -o prog -lpthread";
    let Some(report) = report("c2", "gcc", build, "null") else {
        return;
    };
    assert_eq!(value(&frame(&report, "touch").locals, "sum"), "5");
    assert_eq!(
        value(&frame(&report, "deepest").locals, "values"),
        "{1, 2, 3, 0}"
    );
    // main calls middle by a jump: what main's caller passed must not be taken for middle's arguments.
    let label = value(&frame(&report, "middle").arguments, "label");
    assert!(
        label == "<optimized out>" || label.ends_with("\"null\""),
        "{label}"
    );
}

#[test]
fn values_of_cpp() {
    let build = "g++ -g -O0 $SRC/modes.cpp -o prog -lpthread";
    let Some(report) = report("cpp", "g++", build, "template") else {
        return;
    };
    let main = frame(&report, "main");
    assert_eq!(value(&main.locals, "mode"), "\"template\"");
    assert_eq!(
        value(&main.locals, "long_text"),
        format!("{:?}", "q".repeat(100))
    );
    assert_eq!(value(&main.locals, "numbers"), "{5, 3, 8, 1, 9}");
    assert!(
        frame(&report, "Holder<double>::store")
            .function
            .as_deref()
            .unwrap()
            .starts_with("outer::")
    );
}

#[test]
fn values_of_many_kinds() {
    let build = "g++ -std=c++17 -g -O0 $SRC/values.cpp -o prog";
    let Some(report) = report("kinds", "g++", build, "") else {
        return;
    };
    let fall = frame(&report, "fall");
    assert_eq!(value(&fall.arguments, "r"), "\"ss\"");
    assert_eq!(value(&fall.arguments, "v"), "\"view\"");
    for (name, ending) in [("ri", ": -1"), ("br", ": {x = 7, n = \"base\"}")] {
        let shown = value(&fall.arguments, name);
        assert!(
            shown.starts_with("@0x") && shown.ends_with(ending),
            "{shown}"
        );
    }
    let expected = [
        ("bits", "{s = -1, big = -2, t = true, m = Run, u = 7}"),
        ("packet", r#""\x00A\x00BC""#),
        ("raw", r#""\x01\x00\xfe\x00\x03""#),
        ("greeting", "\"hello\""),
        ("rows", "{\"ab\", \"cd\"}"),
        ("grid", "{{1, 2, 3}, {4, 5, 6}}"),
        ("cube", "{{{1, 2}, {3, 4}}, {{5, 6}, {7, 8}}}"),
        ("ld", "1.25"),
        ("cf", "{_M_value = 1.5 + -2.5i}"),
        ("wide", "\"u16\""),
        ("vla", "{…}"),
    ];
    for (name, text) in expected {
        assert_eq!(value(&fall.locals, name), text, "{name}");
    }
    for (name, ending) in [("bytes", r#" "a\x01\xff""#), ("w", " \"wide\"")] {
        let shown = value(&fall.locals, name);
        assert!(shown.ends_with(ending), "{shown}");
    }
    let half = value(&fall.locals, "half");
    assert!(["1.5", "(absent)"].contains(&half), "{half}");
    let grid = fall.locals.iter().find(|local| local.name == "grid");
    let grid = grid.and_then(|local| local.type_name.as_deref());
    assert_eq!(grid, Some("int [2][3]"));
}

#[test]
fn values_of_rust() {
    let Some(report) = report(
        "rs",
        "rustc",
        "rustc --edition 2021 -g $SRC/modes.rs -o prog",
        "segv",
    ) else {
        return;
    };
    let feed = frame(&report, "feed");
    assert_eq!(value(&feed.arguments, "label"), "\"label\"");
    assert_eq!(value(&feed.arguments, "values"), "{4, 5}");
    assert_eq!(value(&feed.locals, "sum"), "0");
    let results = value(&feed.locals, "results");
    assert_eq!(results, "(Err(\"bad\"), Ok(7))");
    let ring = value(&frame(&report, "modes::main").locals, "ring");
    assert_eq!(
        ring,
        "{name = \"front\", items = {1, 2, 3}, mode = Busy {load = 7}, place = (4, -5), last = Some(6)}"
    );
    assert_eq!(
        report.signal.map(|s| (s.name, s.address)),
        Some(("SIGSEGV".into(), Some("0x8".into())))
    );
}

#[test]
fn the_signature_survives_rebuilds_and_address_space_randomization() {
    let of = |name: &str, flags: &str, mode: &str| {
        let build = format!("gcc -g {flags} $SRC/modes.c -o prog -lpthread");
        report(name, "gcc", &build, mode).and_then(|r| r.signature)
    };
    let Some(first) = of("sig0", "-O0", "null") else {
        return;
    };
    assert_eq!(of("sig1", "-O0", "null"), Some(first.clone()));
    assert_eq!(of("sig2", "-O1 -DREBUILT", "null"), Some(first.clone()));
    // Another way into the same function, and another place.
    assert_ne!(of("sig3", "-O0", "qsort"), Some(first.clone()));
    assert_ne!(of("sig4", "-O0", "fpe"), Some(first));
}
