//! What an operator may ask, and what is answered: one JSON object per line each way.
//!
//! `{"verb": "status", "services": []}` → `{"ok": true, "data": …}` or
//! `{"ok": false, "error": "…"}` (CONTRACTS section 8).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::handoff::State;
use crate::service::Pid;

/// Tells the answers to requests that are under way apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub u64);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Request {
    Probe {
        #[serde(default)]
        ready: bool,
        #[serde(default)]
        services: Vec<String>,
    },
    Status {
        #[serde(default)]
        services: Vec<String>,
        /// Also each process' share of memory, which the kernel has to count.
        #[serde(default, skip_serializing_if = "is_no")]
        pss: bool,
    },
    /// What happened after the event of this number, the last that is kept: at once where there is something, else
    /// (`wait`) once there is.
    Events {
        #[serde(default)]
        after: u64,
        #[serde(default)]
        wait: bool,
    },
    /// Answered when each of the services has been in this state.
    Wait {
        services: Vec<String>,
        state: State,
        /// The answer is a refusal then.
        #[serde(default)]
        timeout_ms: Option<u64>,
    },
    /// Who waits for whom, and what the last start took.
    Graph,
    Start {
        services: Vec<String>,
        #[serde(default = "yes")]
        wait: bool,
    },
    Stop {
        services: Vec<String>,
        #[serde(default = "yes")]
        wait: bool,
    },
    Restart {
        services: Vec<String>,
        #[serde(default = "yes")]
        wait: bool,
    },
    Signal {
        signal: String,
        services: Vec<String>,
    },
    /// All threads of a running service, now.
    Stacks {
        service: String,
    },
    /// Trace the service's process no more.
    Detach {
        service: String,
    },
    Reload {
        #[serde(default)]
        dry_run: bool,
        #[serde(default = "yes")]
        wait: bool,
    },
    Shutdown,
    /// The kernel's handler has copied a process that is dying.
    Core(Box<KernelCopy>),
}

/// A process that `agent core` has copied: what cannot be asked when it is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelCopy {
    pub pid: Pid,
    pub signal: i32,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// As in a snapshot.
    pub site: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// The base name of its executable.
    pub program: String,
    /// Its parent, the parent's parent, and so on.
    pub ancestors: Vec<Pid>,
    /// `AGENT_SERVICE` of its environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The last part of its control group's path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// It changed its user (core(5), `%d`): what it held is for root alone.
    pub private: bool,
    pub place: CopyPlace,
    /// An agent saw it, told of it, and ended before it was analysed; what it knew follows.
    #[serde(skip_serializing_if = "is_no")]
    pub told: bool,
    /// It was to be killed because it hung.
    #[serde(skip_serializing_if = "is_no")]
    pub hang: bool,
    /// The service's last lines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
    /// What its runtime said when it gave up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What the board's sensors said.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub device: BTreeMap<String, String>,
    /// That agent's process, and when it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<(Pid, u64)>,
}

/// Where the copy is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyPlace {
    #[default]
    Nowhere,
    /// Open descriptors of a process that waits for the answer.
    Held {
        by: Pid,
        core: i32,
        #[serde(default)]
        executable: Option<i32>,
        /// The root folder and the mount namespace.
        #[serde(default)]
        root: Option<(i32, i32)>,
    },
    /// The record of this name.
    Kept(String),
}

fn yes() -> bool {
    true
}

fn is_no(flag: &bool) -> bool {
    !flag
}

impl Request {
    /// Everyone may probe; every other verb needs authority over the agent.
    pub fn needs_authority(&self) -> bool {
        !matches!(self, Request::Probe { .. })
    }
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    pub ok: bool,
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub data: serde_json::Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Reply {
    pub fn done(data: serde_json::Value) -> Reply {
        Reply {
            ok: true,
            data,
            error: None,
        }
    }

    pub fn refused(error: impl Into<String>) -> Reply {
        Reply {
            ok: false,
            data: serde_json::Value::Null,
            error: Some(error.into()),
        }
    }
}

/// `data` of an `events` reply.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventsAnswer {
    /// Oldest first.
    pub events: Vec<serde_json::Value>,
    /// The number to ask after the next time.
    pub last: u64,
    /// Events after the one asked about that are not kept any more.
    pub missed: u64,
}

/// `data` of a probe's reply. `reason` is one line, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeAnswer {
    pub healthy: bool,
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_the_contracts() {
        let request: Request = serde_json::from_str(r#"{"verb": "status", "services": []}"#)
            .expect("the contract's own example");
        let expected = Request::Status {
            services: vec![],
            pss: false,
        };
        assert_eq!(request, expected);
        assert!(request.needs_authority());
        let probe: Request = serde_json::from_str(r#"{"verb":"probe"}"#).expect("defaults");
        assert!(!probe.needs_authority());
        assert_eq!(
            serde_json::to_string(&Reply::refused("no")).expect("plain data"),
            r#"{"ok":false,"error":"no"}"#
        );
    }
}
