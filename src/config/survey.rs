//! a valid configuration → what this machine lacks for it, as warnings.

use super::Loaded;
use super::diagnose::Diagnostic;

pub fn survey(_loaded: &Loaded) -> Vec<Diagnostic> {
    Vec::new()
}
