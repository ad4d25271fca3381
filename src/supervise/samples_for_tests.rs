//! name → a service with the defaults of CONTRACTS section 2, for the tests of this folder.

use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::config::lifecycle::Lifecycle;
use crate::config::{Agent, Kind, OnFailed, Process, Restart, Service, StartLimit, Stop};
use crate::record::{Keep, Trim};
use crate::service::{ServiceName, Signal};

pub fn service(name: &str) -> Service {
    Service {
        name: ServiceName::new(name).expect("a name"),
        executable: "/bin/x".to_owned(),
        args: Vec::new(),
        stream_name: name.to_owned(),
        kind: Kind::Simple,
        after: Vec::new(),
        requires: Vec::new(),
        critical: true,
        restart: Restart::Always,
        on_failed: OnFailed::Stay,
        backoff: Backoff {
            initial: Duration::from_millis(100),
            max: Duration::from_secs(30),
        },
        reset_after: Duration::from_secs(10),
        start_limit: StartLimit {
            burst: 10,
            interval: Duration::from_secs(60),
        },
        stop: Stop {
            signal: Signal::TERM,
            timeout: Duration::from_secs(10),
        },
        lifecycle: Lifecycle::default(),
        process: Process::default(),
        max_line: 256 * 1024,
        multi_line: Default::default(),
        trim: Trim { max_len: 1000 },
        capture: Default::default(),
        keep: Keep::default(),
        pools: Arc::new([]),
        debug: None,
        checks: Arc::new([]),
    }
}

pub fn agent() -> Agent {
    Agent {
        board: String::new(),
        state_dir: "/x".into(),
        runtime_dir: "/x".into(),
        shutdown_timeout: Duration::from_secs(30),
        main: None,
        tee: false,
        maintenance: false,
        group: None,
    }
}
