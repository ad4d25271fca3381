//! `[crash]` and a service's own `crash = "…"` as typed → how crashes are noticed and kept.

use std::path::PathBuf;

use super::fields::{Fields, absolute};
use super::found::Check;
use super::{Capture, Crash, Tracing};

/// More reports than this nobody reads, and listing them would be slow.
const MAX_KEEP: usize = 10_000;
/// Less holds not one core file.
const MIN_SIZE: u64 = 64 << 10;

pub fn read(cx: &mut Check, fields: &Fields<'_>) -> Crash {
    let mut debug_dirs = Vec::new();
    for text in fields.texts("debug_dirs").unwrap_or_default() {
        debug_dirs.extend(absolute(cx, "debug_dirs", text));
    }
    if debug_dirs.is_empty() {
        debug_dirs.push(PathBuf::from("/usr/lib/debug"));
    }
    let keep = fields.number(cx, "keep", 0..=MAX_KEEP);
    let max_size = fields.size(cx, "max_size", MIN_SIZE..=u64::MAX >> 1);
    Crash {
        tracing: Tracing {
            how: how(cx, fields, "capture").unwrap_or_default(),
            forks: fields.flag("forks").unwrap_or(false),
        },
        keep: keep.unwrap_or(16),
        max_size: max_size.unwrap_or(64 << 20),
        debug_dirs,
    }
}

/// Of one service: its own word goes before that of `[crash]`.
pub fn of_service(cx: &mut Check, fields: &Fields<'_>, general: Tracing) -> Tracing {
    Tracing {
        how: how(cx, fields, "crash").unwrap_or(general.how),
        ..general
    }
}

fn how(cx: &mut Check, fields: &Fields<'_>, key: &str) -> Option<Capture> {
    let known = [
        ("auto", Capture::Auto),
        ("ptrace", Capture::Ptrace),
        ("core", Capture::Core),
        ("off", Capture::Off),
    ];
    fields.choice(cx, key, &known)
}
