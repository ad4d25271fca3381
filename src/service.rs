//! Names of things that are supervised: services, runs, ends, signals.
//!
//! Plain values that every line of the house exchanges; nothing here does anything.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A service's name: one or more of `[A-Za-z0-9_.-]`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(Arc<str>);

/// Why a text is not a service name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameError {
    Empty,
    Character(char),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Empty => write!(f, "a service name is empty"),
            NameError::Character(c) => write!(
                f,
                "a service name may not contain {c:?} (allowed: letters, digits, '_', '.', '-')"
            ),
        }
    }
}

impl std::error::Error for NameError {}

impl ServiceName {
    pub fn new(name: &str) -> Result<Self, NameError> {
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        match name
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')))
        {
            Some(c) => Err(NameError::Character(c)),
            None => Ok(ServiceName(name.into())),
        }
    }

    /// What of a text may be a name: for programs that are no services.
    pub fn near(text: &str) -> ServiceName {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let name = text.replace(|c| !allowed(c), "_");
        // As a file name neither hidden nor a way out of its folder.
        match name.trim_start_matches('.') {
            "" => ServiceName("unknown".into()),
            name => ServiceName(name.into()),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ServiceName {
    type Error = NameError;
    fn try_from(name: String) -> Result<Self, NameError> {
        ServiceName::new(&name)
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> String {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A service's number within this agent. Never reused, also when a reload removes the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u32);

/// One start of one service: `number` counts from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId {
    pub service: ServiceId,
    pub number: u32,
}

/// A process id, always positive.
pub type Pid = i32;

/// How a run's main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It called `exit`; 0 to 255.
    Code(i32),
    /// A signal ended it.
    Signal(Signal),
    /// It never came to be: a stage before or at `exec` failed.
    NotStarted { found: bool },
    /// Nor did it: its debugger could not be had.
    NotDebugged,
}

impl Exit {
    /// The number that stands in markers, pools and exit codes: `128 + signal`, and the
    /// shell's 127 (not found) or 126 (found, not started) where there was no process.
    pub fn code(self) -> i32 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal.0,
            Exit::NotStarted { found: false } => 127,
            Exit::NotStarted { found: true } => 126,
            Exit::NotDebugged => 1,
        }
    }

    pub fn is_success(self) -> bool {
        self == Exit::Code(0)
    }

    pub fn signal(self) -> Option<Signal> {
        match self {
            Exit::Signal(signal) => Some(signal),
            Exit::Code(_) | Exit::NotStarted { .. } | Exit::NotDebugged => None,
        }
    }
}

/// A signal by its number (the numbers of x86-64 and aarch64 Linux, signal(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Signal(pub i32);

const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

impl Signal {
    pub const HUP: Signal = Signal(1);
    pub const INT: Signal = Signal(2);
    pub const QUIT: Signal = Signal(3);
    pub const ABRT: Signal = Signal(6);
    pub const KILL: Signal = Signal(9);
    pub const USR2: Signal = Signal(12);
    pub const TERM: Signal = Signal(15);
    pub const CONT: Signal = Signal(18);
    pub const STOP: Signal = Signal(19);
    pub const TSTP: Signal = Signal(20);

    /// Whether a death by it is a crash: ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS, whose default is to end the process with
    /// a core file (signal(7)), and which nobody sends for another purpose.
    pub fn is_crash(self) -> bool {
        matches!(self.0, 4..=8 | 11 | 31)
    }

    /// `TERM`, `SIGTERM`, `term` or `15`; real-time signals by number only (up to 64).
    pub fn parse(text: &str) -> Option<Signal> {
        if let Ok(number) = text.parse::<i32>() {
            return (1..=64).contains(&number).then_some(Signal(number));
        }
        let upper = text.to_ascii_uppercase();
        let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
        SIGNALS
            .iter()
            .find(|(name, _)| *name == bare)
            .map(|(_, number)| Signal(*number))
    }

    /// Every name that [`Signal::parse`] knows, without `SIG`; for suggestions.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SIGNALS.iter().map(|(name, _)| *name)
    }
}

/// `SIGSEGV`, or `SIG42` where the number has no name.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIGNALS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None => write!(f, "SIG{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(ServiceName::new("lidar-2.front_left").is_ok());
        assert_eq!(ServiceName::new(""), Err(NameError::Empty));
        assert_eq!(ServiceName::new("a b"), Err(NameError::Character(' ')));
        assert_eq!(ServiceName::new("a:b"), Err(NameError::Character(':')));
    }

    #[test]
    fn signals_by_name_and_number() {
        for text in ["SEGV", "SIGSEGV", "sigsegv", "11"] {
            assert_eq!(Signal::parse(text), Some(Signal(11)));
        }
        assert_eq!(Signal::parse("0"), None);
        assert_eq!(Signal::parse("SIGNAL"), None);
        assert_eq!(Signal(11).to_string(), "SIGSEGV");
        assert_eq!(Signal(40).to_string(), "SIG40");
    }

    #[test]
    fn exit_codes() {
        assert_eq!(Exit::Code(3).code(), 3);
        assert_eq!(Exit::Signal(Signal(11)).code(), 139);
        assert_eq!(Exit::NotStarted { found: false }.code(), 127);
    }
}
