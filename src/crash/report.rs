//! the crash report: one JSON document (schema 1), which is also what its text form is made from.
//!
//! Fields may be absent, further ones may appear; none changes its meaning within a schema number.

use serde::{Deserialize, Serialize};

pub const SCHEMA: u32 = 1;

/// What made someone look at the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    #[default]
    Crash,
    Hang,
    Stacks,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    pub schema: u32,
    pub kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crash_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command_line: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<Signal>,
    /// What the program said when it gave up, where its memory still tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort_message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// What the reader should know before trusting the rest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    pub modules: Vec<Module>,
    /// Crashed thread first.
    pub threads: Vec<Thread>,
    /// The service's last lines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<serde_json::Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Signal {
    pub number: i32,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The process that sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Symbols {
    Dwarf,
    Symtab,
    #[default]
    None,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Module {
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    pub base: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    pub symbols: Symbols,
    /// The file that debug information came from, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Thread {
    pub tid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub crashed: bool,
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub registers: serde_json::Map<String, serde_json::Value>,
    pub frames: Vec<Frame>,
    /// Physical frames left out in the middle of a very deep stack.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub omitted_frames: Option<usize>,
    /// Why the stack ends early.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// How a frame was found, best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    Context,
    Cfi,
    FramePointer,
    #[default]
    Scan,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Frame {
    pub index: usize,
    pub address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module_offset: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    pub inlined: bool,
    /// The line on which the function's declaration begins: only for the signature.
    #[serde(skip)]
    pub declared: Option<u32>,
    pub trust: Trust,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<Variable>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locals: Vec<Variable>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Variable {
    pub name: String,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub type_name: Option<String>,
    pub value: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_names_of_the_contract() {
        let report = Report {
            schema: SCHEMA,
            threads: vec![Thread {
                frames: vec![Frame {
                    trust: Trust::FramePointer,
                    ..Frame::default()
                }],
                ..Thread::default()
            }],
            modules: vec![Module::default()],
            ..Report::default()
        };
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["kind"], "crash");
        assert_eq!(json["threads"][0]["frames"][0]["trust"], "frame_pointer");
        assert_eq!(json["modules"][0]["symbols"], "none");
        assert!(json.get("service").is_none());
        let back: Report = serde_json::from_value(json).unwrap();
        assert_eq!(back, report);
    }
}
