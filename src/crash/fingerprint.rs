//! frames of the crashed thread, its signal → signature: equal for crashes of the same place in the code.
//!
//! Made of the signal and function names only, so that it survives rebuilds, other lines, other addresses. What merely reports a
//! failure (abort, panics, assertions, uncaught exceptions, signal handlers) is skipped, recursion counts once, and
//! frames outside `main` do not take part. Where no function has a name, module and offset stand in.

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

/// Sixteen hexadecimal digits; `None` without frames. A function that aborts and one that falls over are two faults,
/// also where they are the same function: the signal takes part, where there is one. So does the file that holds the
/// place: every program has a `main`.
pub fn signature(signal: Option<i32>, frames: &[Frame]) -> Option<String> {
    let first = frames.first()?;
    let mut names: Vec<String> = Vec::new();
    let trusted = frames.iter().filter(|f| f.trust != Trust::Scan);
    let mut module = "";
    for frame in trusted {
        let Some(name) = frame.function.as_deref().map(normal) else {
            continue;
        };
        if ENTRIES.contains(&name.as_str()) {
            break;
        }
        if names.is_empty() && is_plumbing(&name) || names.last() == Some(&name) {
            continue;
        }
        if names.is_empty() {
            module = frame.module.as_deref().unwrap_or_default();
        }
        names.push(name);
        if names.len() == DEPTH {
            break;
        }
    }
    if names.is_empty() {
        names.push(fallback(frames, first));
    }
    names.push(module.to_owned());
    names.extend(signal.map(|number| number.to_string()));
    Some(format!("{:016x}", hash(&names)))
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
        let plain = of(&["lidar::push", "lidar::run", "main"]);
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
            plain,
            of(&[
                "core::panicking::panic",
                "lidar::push",
                "lidar::run",
                "main",
                "_start"
            ])
        );
        assert_ne!(plain, of(&["lidar::pop", "lidar::run", "main"]));
        assert_eq!(plain.len(), 16);
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
