//! frames of the crashed thread, its signal → signature: equal for crashes of the same place in the code.
//!
//! Made of the signal, the file that the code is in, function names, and the line within the innermost function of the
//! program's own, so that it survives rebuilds, code moved up or down, other addresses. What merely reports a failure
//! (abort, panics, assertions, uncaught exceptions, signal handlers) is skipped, recursion counts once, and frames
//! outside `main` do not take part. Where no function has a name, module and offset stand in.

use crate::crash::report::{Frame, Trust};

/// Named functions that take part: enough to tell callers of a shared helper apart, few enough to be stable.
const DEPTH: usize = 5;

/// Functions that stand between the place that failed and the signal.
const PLUMBING: &[&str] = &[
    "abort",
    "raise",
    "gsignal",
    "kill",
    "tgkill",
    "syscall",
    "pthread_kill",
    "__libc_message",
    "__libc_fatal",
    "malloc_printerr",
    "__fortify_fail",
    "__chk_fail",
    "__stack_chk_fail",
    "__assert_fail",
    "__assert_fail_base",
    "__assert_perror_fail",
    "__gnu_cxx::__verbose_terminate_handler",
    "__cxxabiv1::__terminate",
    "__cxxabiv1::__unexpected",
    "__cxa_throw",
    "__cxa_rethrow",
    "__cxa_pure_virtual",
    "__cxa_call_terminate",
    "__gxx_personality_v0",
    "_Unwind_RaiseException",
    "_Unwind_Resume",
    "std::terminate",
    "rust_begin_unwind",
    "rust_panic",
    "__rust_start_panic",
    "panic_abort::__rust_start_panic",
    "runtime.raise",
    "runtime.crash",
    "runtime.fatalthrow",
    "runtime.fatalpanic",
    "runtime.gopanic",
    "runtime.dieFromSignal",
    "runtime.sighandler",
    "runtime.sigfwdgo",
    "runtime.sigtrampgo",
    "runtime.sigtramp",
    "runtime.sigpanic",
    "runtime.panicmem",
    "runtime.systemstack",
    "runtime.goPanicIndex",
    "runtime.panicdivide",
];
const PLUMBING_PREFIXES: &[&str] = &[
    "__pthread_kill",
    "__GI_",
    "std::__throw_",
    "std::panicking::",
    "core::panicking::",
    "std::sys::",
    "std::rt::",
    "core::option::unwrap_failed",
    "core::option::expect_failed",
    "core::result::unwrap_failed",
    "core::slice::index::slice_",
    "std::proc",
    "__rustc::",
    "panic_abort::",
    "panic_unwind::",
    "alloc::alloc::handle_alloc_error",
    "std::alloc::",
    "<signal handler called>",
];
/// Libraries that every program has, and functions that languages bring along: not the program's own place.
const FOREIGN_MODULES: &[&str] = &[
    "libc.so",
    "libc-",
    "libpthread",
    "libm.so",
    "libm-",
    "ld-",
    "libstdc++",
    "libc++",
    "libgcc_s",
    "[vdso]",
    "linux-vdso",
];
const FOREIGN_PREFIXES: &[&str] = &[
    "std::",
    "core::",
    "alloc::",
    "__gnu_cxx::",
    "runtime.",
    "<core::",
    "<alloc::",
    "<std::",
];
const SIGNAL_HANDLER: &str = crate::crash::text::SIGNAL_HANDLER;
/// Beyond these nothing belongs to the program.
const ENTRIES: &[&str] = &[
    "_start",
    "__libc_start_main",
    "__libc_start_call_main",
    "__libc_start_main_impl",
    "start_thread",
    "clone",
    "clone3",
    "__clone",
    "__clone3",
    "runtime.goexit",
    "libc_start_main_stage2",
    "runtime.main",
];

/// Where to look first: the program's own innermost frame, and before it what it was in, where that is a library's.
pub fn place(frames: &[Frame]) -> Option<(&Frame, Option<&Frame>)> {
    let mut trusted = frames
        .iter()
        .filter(|f| f.trust != Trust::Scan)
        .filter_map(|frame| Some((frame, frame.function.as_deref()?)))
        .filter(|(_, name)| !is_plumbing(name))
        .take_while(|(_, name)| !ENTRIES.contains(name))
        .peekable();
    let (first, _) = *trusted.peek()?;
    let is_library = |frame: &Frame, name: &str| {
        let file = frame.file.as_deref().unwrap_or_default();
        !is_own(frame, name) || file.starts_with("/rustc/") || file.starts_with("/usr/include/c++/")
    };
    match trusted.find(|(frame, name)| !is_library(frame, name)) {
        Some((own, _)) if !std::ptr::eq(own, first) => Some((own, Some(first))),
        Some(_) | None => Some((first, None)),
    }
}

/// Sixteen hexadecimal digits; `None` without frames. A failed assertion, an uncaught exception and a fault are three
/// things, also in one function: the signal takes part, and what the function called that led to it. That is the last
/// of the skipped names, which a library exports and a rebuild does not change.
/// Two programs may have functions of the same names: the file of the innermost function of the program's own takes part
/// (without a version), and where it is known the line there, counted from where the function begins.
pub fn signature(signal: Option<i32>, frames: &[Frame]) -> Option<String> {
    let first = frames.first()?;
    let mut names: Vec<String> = Vec::new();
    let mut cause = None;
    let trusted = frames.iter().filter(|f| f.trust != Trust::Scan);
    // The innermost place of the program's own, and of all.
    let (mut own, mut place) = (None, None);
    let mut line = None;
    for frame in trusted {
        let Some(name) = frame.function.as_deref().map(normal) else {
            continue;
        };
        if ENTRIES.contains(&name.as_str()) {
            break;
        }
        if names.is_empty() && is_plumbing(&name) {
            cause = (name != SIGNAL_HANDLER).then_some(name);
            continue;
        }
        if names.last() == Some(&name) {
            continue;
        }
        if is_own(frame, &name) {
            own = own.or(Some(frame));
            line = line.or_else(|| line_within(frame));
        }
        place = place.or(Some(frame));
        names.push(name);
        if names.len() == DEPTH {
            break;
        }
    }
    if names.is_empty() {
        names.push(fallback(frames, first));
    }
    let module = own.or(place).and_then(|frame| frame.module.as_deref());
    names.extend(module.map(|module| unversioned(module).to_owned()));
    names.extend(line.map(|line| format!("line {line}")));
    names.extend(cause.map(|name| name.trim_start_matches("__GI_").to_owned()));
    names.extend(signal.map(|number| number.to_string()));
    Some(format!("{:016x}", hash(&names)))
}

fn is_own(frame: &Frame, name: &str) -> bool {
    let module = frame.module.as_deref().unwrap_or_default();
    let starts = |with: &[&str], what: &str| with.iter().any(|prefix| what.starts_with(prefix));
    !starts(FOREIGN_MODULES, module) && !starts(FOREIGN_PREFIXES, name)
}

/// Counted from the line on which the function begins: what stands above may change.
fn line_within(frame: &Frame) -> Option<i64> {
    Some(i64::from(frame.line?) - i64::from(frame.declared?))
}

/// `libfoo.so.1.2` → `libfoo.so`.
fn unversioned(module: &str) -> &str {
    match module.find(".so.") {
        Some(at) => module.get(..at + 3).unwrap_or(module),
        None => module,
    }
}

/// All frames were plumbing or nameless: the first that is in a module.
fn fallback(frames: &[Frame], first: &Frame) -> String {
    let frame = frames
        .iter()
        .find(|f| f.module.is_some() && !f.function.as_deref().is_some_and(is_plumbing));
    let frame = frame.unwrap_or(first);
    let module = frame.module.as_deref().unwrap_or("?");
    match (&frame.function, &frame.module_offset) {
        (Some(function), _) => format!("{module}!{function}"),
        (None, Some(offset)) => format!("{module}+{offset}"),
        (None, None) => module.to_owned(),
    }
}

fn is_plumbing(name: &str) -> bool {
    PLUMBING.contains(&name) || PLUMBING_PREFIXES.iter().any(|p| name.starts_with(p))
}

/// Without what compilers add to tell copies of one function apart (`f.cold`, `f.part.0`, `{closure#2}`), and
/// without template arguments, which name compiler-made types.
fn normal(name: &str) -> String {
    let mut out = String::new();
    let mut depth = 0usize;
    for c in name.chars() {
        match c {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            _ if depth == 0 => out.push(c),
            _ => {}
        }
    }
    // `<T as Trait>::f` and operators would lose everything: they stay whole.
    if out.is_empty() || out.starts_with("::") || out.ends_with("operator") {
        out = name.to_owned();
    }
    for suffix in [
        ".cold",
        ".part.",
        ".constprop.",
        ".isra.",
        ".llvm.",
        ".lto_priv.",
    ] {
        if let Some(at) = out.find(suffix) {
            out.truncate(at);
        }
    }
    while let Some(at) = out.find("{closure#") {
        let end = out
            .get(at..)
            .and_then(|rest| rest.find('}'))
            .map_or(out.len(), |e| at + e + 1);
        out.replace_range(at..end, "{{closure}}");
    }
    out
}

/// FNV-1a, 64 bits: short, and fixed for ever, unlike the standard library's hasher.
fn hash(names: &[String]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let bytes = names.iter().flat_map(|n| n.bytes().chain([b'\n']));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(PRIME)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(names: &[&str]) -> Vec<Frame> {
        let frame = |name: &&str| Frame {
            function: (!name.is_empty()).then(|| (*name).to_owned()),
            trust: Trust::Cfi,
            module: Some("app".into()),
            module_offset: Some("0x10".into()),
            ..Frame::default()
        };
        names.iter().map(frame).collect()
    }

    fn of(names: &[&str]) -> String {
        signature(Some(11), &frames(names)).unwrap()
    }

    #[test]
    fn the_way_to_the_signal_does_not_count() {
        let plain = of(&["abort", "lidar::push", "lidar::run", "main"]);
        assert_eq!(
            plain,
            of(&[
                "__pthread_kill_implementation",
                "__GI_raise",
                "__GI_abort",
                "lidar::push",
                "lidar::run",
                "main",
                "__libc_start_main_impl"
            ])
        );
        assert_eq!(
            of(&["core::panicking::panic", "lidar::push", "main"]),
            of(&[
                "abort",
                "rust_panic",
                "core::panicking::panic",
                "lidar::push",
                "main",
                "_start"
            ])
        );
        assert_ne!(plain, of(&["abort", "lidar::pop", "lidar::run", "main"]));
        assert_eq!(plain.len(), 16);
    }

    #[test]
    fn what_led_to_the_signal_counts_where_the_function_is_the_same() {
        let assertion = of(&[
            "raise",
            "abort",
            "__assert_fail_base",
            "__GI___assert_fail",
            "main",
        ]);
        assert_eq!(
            assertion,
            of(&[
                "pthread_kill",
                "raise",
                "__GI_abort",
                "__assert_fail",
                "main"
            ])
        );
        assert_ne!(
            assertion,
            of(&["raise", "abort", "std::terminate", "__cxa_throw", "main"])
        );
        assert_ne!(assertion, of(&["raise", "abort", "main"]));
        assert_ne!(of(&["f"]), signature(Some(6), &frames(&["f"])).unwrap());
        let all = frames(&["__GI_raise", "abort", "lidar::push", "main"]);
        assert_eq!(
            place(&all).and_then(|(f, _)| f.function.as_deref()),
            Some("lidar::push")
        );
        assert!(place(&frames(&["abort", "_start"])).is_none());
    }

    #[test]
    fn rebuilds_and_recursion_do_not_change_it() {
        assert_eq!(of(&["f", "g", "g", "g", "main"]), of(&["f", "g", "main"]));
        assert_eq!(
            of(&["f.part.0", "h<int>", "main"]),
            of(&["f", "h<long>", "main"])
        );
        assert_eq!(of(&["a::{closure#2}"]), of(&["a::{closure#7}"]));
        assert_ne!(of(&["<A as T>::f"]), of(&["<B as T>::f"]));
    }

    #[test]
    fn programs_and_lines_are_told_apart() {
        let plain = frames(&["memcpy", "handle", "main"]);
        let of = |change: &dyn Fn(&mut [Frame])| {
            let mut frames = plain.clone();
            frames[0].module = Some("libc.so.6".into());
            change(&mut frames);
            signature(Some(11), &frames)
        };
        let first = of(&|_| {});
        assert_ne!(first, of(&|frames| frames[1].module = Some("other".into())));
        // A library's own line, its version.
        let same = of(&|frames| {
            (frames[0].line, frames[0].declared) = (Some(40), Some(7));
            frames[0].module = Some("libc.so.7".into());
        });
        assert_eq!(first, same);
        let at = |line, declared| {
            of(&|frames| (frames[1].line, frames[1].declared) = (Some(line), Some(declared)))
        };
        assert_eq!(at(12, 10), at(112, 110));
        assert_ne!(at(12, 10), at(13, 10));
        assert_ne!(at(12, 10), first);
        assert_eq!(unversioned("libfoo.so.1.2"), "libfoo.so");
    }

    #[test]
    fn without_names_the_module_stands_in() {
        assert_eq!(of(&["", ""]), of(&[""]));
        assert_ne!(of(&[""]), of(&["abort"]));
        assert_eq!(signature(Some(11), &[]), None);
        let mut elsewhere = frames(&["main"]);
        elsewhere[0].module = Some("other".into());
        assert_ne!(signature(Some(11), &elsewhere), Some(of(&["main"])));
        assert_ne!(
            signature(Some(6), &frames(&["f"])),
            signature(Some(11), &frames(&["f"]))
        );
        // The check value of FNV-1a for "a" followed by the separator is computed from its definition.
        assert_eq!(hash(&[]), 0xcbf2_9ce4_8422_2325);
    }
}
