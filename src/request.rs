//! What an operator may ask, and what is answered: one JSON object per line each way.
//!
//! `{"verb": "status", "services": []}` → `{"ok": true, "data": …}` or
//! `{"ok": false, "error": "…"}` (CONTRACTS section 8).

use serde::{Deserialize, Serialize};

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
    },
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
}

fn yes() -> bool {
    true
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
        assert_eq!(request, Request::Status { services: vec![] });
        assert!(request.needs_authority());
        let probe: Request = serde_json::from_str(r#"{"verb":"probe"}"#).expect("defaults");
        assert!(!probe.needs_authority());
        assert_eq!(
            serde_json::to_string(&Reply::refused("no")).expect("plain data"),
            r#"{"ok":false,"error":"no"}"#
        );
    }
}
