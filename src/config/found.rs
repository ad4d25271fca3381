//! problems as the checks meet them → all of them, in the order of the text.
//!
//! A file may hold any number of problems; work and memory stay bounded: after enough of them
//! the rest is only counted.

use super::Form;
use super::diagnose::{Diagnostic, Diagnostics, Layout, Place, Severity};
use super::units::Wrong;

/// What the checks share.
pub struct Check {
    pub form: Form,
    pub layout: Layout,
    found: Vec<Diagnostic>,
    /// Found after [`ENOUGH`] and only counted: errors, and all.
    more_errors: usize,
    more: usize,
}

/// Nobody reads on after this many, and each holds a copy of its line.
const ENOUGH: usize = 200;

impl Check {
    pub fn new(form: Form, layout: Layout) -> Check {
        Check {
            form,
            layout,
            found: Vec::new(),
            more_errors: 0,
            more: 0,
        }
    }

    pub fn error(&mut self, place: Place, message: impl Into<String>, remedy: impl Into<String>) {
        self.told(Severity::Error, place, message.into(), Some(remedy.into()));
    }

    pub fn warning(&mut self, place: Place, message: impl Into<String>, remedy: impl Into<String>) {
        self.told(
            Severity::Warning,
            place,
            message.into(),
            Some(remedy.into()),
        );
    }

    pub fn told(
        &mut self,
        severity: Severity,
        place: Place,
        message: String,
        remedy: Option<String>,
    ) {
        if self.found.len() >= ENOUGH {
            self.more += 1;
            self.more_errors += usize::from(severity == Severity::Error);
            return;
        }
        let origin = self.layout.sources.origin(place);
        self.found.push(Diagnostic {
            severity,
            remedy,
            ..Diagnostic::error(origin, message)
        });
    }

    /// A problem that has no place in a file.
    pub fn push(&mut self, found: Diagnostic) {
        self.found.push(found);
    }

    /// How many problems have been found.
    pub fn count(&self) -> usize {
        self.found.len() + self.more
    }

    /// The layout, everything found in the order of the text, and whether any is an error.
    pub fn finish(self) -> (Layout, Vec<Diagnostic>, bool) {
        let error = |d: &Diagnostic| d.severity == Severity::Error;
        let wrong = self.more_errors > 0 || self.found.iter().any(error);
        let Diagnostics(mut found) = Diagnostics::sorted(self.found);
        if self.more > 0 {
            let path = self.layout.sources.path(0);
            let last = Diagnostic::whole(path, format!("and {} more problems", self.more));
            found.push(Diagnostic {
                severity: match self.more_errors {
                    0 => Severity::Warning,
                    _ => Severity::Error,
                },
                ..last
            });
        }
        (self.layout, found, wrong)
    }

    pub fn wrong(&mut self, place: Place, wrong: Wrong) {
        self.error(place, wrong.message, wrong.remedy);
    }

    /// A value that a reader of `units` understands.
    pub fn accept<T>(&mut self, place: Place, read: Result<T, Wrong>) -> Option<T> {
        read.map_err(|wrong| self.wrong(place, wrong)).ok()
    }
}
