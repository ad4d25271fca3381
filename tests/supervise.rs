//! Real processes under the supervisor: how they are started, what they are given, and how
//! they and everything they started end.

#[path = "supervise_driver/mod.rs"]
mod harness;

use harness::{Driver, alive, eventually};
use serde_json::json;

/// Not a test: what the other tests start (see `supervise_driver`).
#[test]
fn driver() {
    if let Ok(services) = std::env::var("SUPERVISE_DRIVER") {
        harness::drive(&services);
    }
}

#[test]
fn a_service_is_started_restarted_and_stopped() {
    let mut driver = Driver::start(json!({"services": [
        {"name": "talker", "argv": ["/bin/sh", "-c", "echo hello; exec sleep 1000"]},
    ]}));
    driver.expect("word talker status {{__NEW_RUN_");
    let first = driver.started();
    driver.expect("word talker status Ready.");
    driver.expect("stdout hello");
    assert!(alive(first));
    // SAFETY: kill(2) touches no memory.
    assert_eq!(unsafe { libc::kill(first, libc::SIGSEGV) }, 0);
    driver.expect("word talker status Executable exited with code 139.");
    driver.expect("word talker status Restarting in 50 ms.");
    driver.expect("drained 1");
    driver.expect("_exit_139}}");
    assert!(driver.place("drained 1") < driver.place("_exit_139}}"));
    let second = driver.started();
    assert!(first != second && !alive(first));
    driver.ask(r#"{"verb":"stop","services":["talker"]}"#);
    driver.expect("word talker status Stopping with SIGTERM.");
    driver.expect("_exit_143}}");
    driver.expect(r#"reply 0 {"ok":true}"#);
    assert!(!alive(second));
    driver.ask(r#"{"verb":"status","services":[]}"#);
    let status = driver.expect("reply 1 ");
    assert!(status.contains(r#""state":"stopped""#), "{status}");
    assert_eq!(driver.shutdown(), 0);
}

#[test]
fn what_cannot_be_started_says_why() {
    let mut driver = Driver::start(json!({"services": [
        {"name": "ghost", "argv": ["/no/such/program"], "restart": "never"},
    ]}));
    driver.expect("word ghost status {{__NEW_RUN_");
    driver.expect(
        "word ghost error Error starting command: executing /no/such/program: \
         No such file or directory (ENOENT)",
    );
    driver.expect("word ghost status Executable exited with code 127.");
    driver.expect("word ghost status Failed: executing /no/such/program");
    driver.expect("_exit_127}}");
    assert_eq!(driver.shutdown(), 0);
    eventually("nothing is left", || !alive(driver.child.id() as i32));
}
