//! `wrapp` replaced: what it promised, on the real binary and a real redis-server.

mod support;
#[path = "support/wrapp.rs"]
mod wrapp;

use support::{Entry, RedisServer};
use wrapp::{expiry, lines, start, stream, texts, value};

/// A run marker without its time.
fn marker(message: &str) -> String {
    let rest = message.strip_prefix("{{__").expect("a marker");
    let rest = rest.strip_suffix("}}").expect("a marker");
    let digits = |c: char| c.is_ascii_digit() || c == '-' || c == '_';
    match rest.split_once("_RUN_") {
        Some((what, time)) => format!("{what} {}", time.trim_start_matches(digits)),
        None => rest.to_owned(),
    }
}

#[test]
fn a_run_with_its_streams_values_words_and_exit_code() {
    let server = RedisServer::start(&[]);
    let script = "echo '  one {{count}}'; echo two >&2; echo '{{value:007}}'; exit 3";
    let mut wrapp = start(Some(&server), script);
    assert_eq!(wrapp.code(), Some(3));
    assert_eq!(
        wrapp.stdout(),
        "Connected to Redis.\nExecutable exited with code 3.\n"
    );
    let stderr = wrapp.stderr();
    let last = "Error running executable: executable exited with non-zero code: 3\n";
    assert!(stderr.ends_with(last), "{stderr}");

    let info = stream(&server, "info");
    assert_eq!(marker(&info[0].message()), "NEW ");
    let end = info.last().map(Entry::message).unwrap_or_default();
    assert_eq!(marker(&end), "END exit_3");
    let mut written = lines(&server);
    written.sort();
    assert_eq!(written, ["  one", "two"]);

    let status = texts(&server, "status");
    assert_eq!(status.first(), info.first().map(Entry::message).as_ref());
    assert_eq!(status.last(), Some(&end));
    assert!(status.contains(&"Executable exited with code 3.".to_owned()));
    let error = "Error waiting for command to finish: exit status 3";
    assert_eq!(texts(&server, "error"), [error]);

    assert_eq!(value(&server, "wrapp:app:count").as_deref(), Some("1"));
    assert_eq!(value(&server, "wrapp:app:value").as_deref(), Some("007"));
    assert_eq!(expiry(&server, "wrapp:app:value"), -1);
    for (property, last) in [("running", "0"), ("exit", "3"), ("health", "0")] {
        let key = format!("app:__healthpool__process_{property}");
        assert_eq!(value(&server, &key).as_deref(), Some(last), "{property}");
        assert_eq!(expiry(&server, &key), -1, "{property} stays");
    }
    assert!(
        expiry(&server, "agent:service:app") >= 0,
        "the state hash goes"
    );
}
