//! signal number, si_code → the names that `signal(7)` and `sigaction(2)` give them.

/// `SIGSEGV` for 11; `SIGnn` for numbers without a name.
pub fn name(number: i32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let known = usize::try_from(number)
        .ok()
        .and_then(|n| NAMES.get(n.checked_sub(1)?));
    known.map_or_else(|| format!("SIG{number}"), |n| format!("SIG{n}"))
}

/// What a signal means, in the words of strsignal(3).
pub fn meaning(number: i32) -> Option<&'static str> {
    Some(match number {
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace or breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "arithmetic exception",
        11 => "segmentation fault",
        31 => "bad system call",
        _ => return None,
    })
}

/// Codes that mean the same for every signal.
pub fn common_code(code: i32) -> Option<&'static str> {
    Some(match code {
        0 => "SI_USER",
        0x80 => "SI_KERNEL",
        -1 => "SI_QUEUE",
        -2 => "SI_TIMER",
        -3 => "SI_MESGQ",
        -4 => "SI_ASYNCIO",
        -5 => "SI_SIGIO",
        -6 => "SI_TKILL",
        _ => return None,
    })
}

/// The name of `si_code`; the number where there is none.
pub fn code_name(number: i32, code: i32) -> String {
    let names: &[&str] = match number {
        4 => &[
            "OPC", "OPN", "ADR", "TRP", "PRVOPC", "PRVREG", "COPROC", "BADSTK", "BADIADDR",
        ],
        5 => &["BRKPT", "TRACE", "BRANCH", "HWBKPT", "UNK", "PERF"],
        7 => &["ADRALN", "ADRERR", "OBJERR", "MCEERR_AR", "MCEERR_AO"],
        8 => &[
            "INTDIV", "INTOVF", "FLTDIV", "FLTOVF", "FLTUND", "FLTRES", "FLTINV", "FLTSUB",
        ],
        11 => &[
            "MAPERR", "ACCERR", "BNDERR", "PKUERR", "ACCADI", "ADIDERR", "ADIPERR", "MTEAERR",
            "MTESERR", "CPERR",
        ],
        31 => &["SECCOMP", "USER_DISPATCH"],
        _ => &[],
    };
    let prefix = match number {
        4 => "ILL",
        5 => "TRAP",
        7 => "BUS",
        8 => "FPE",
        11 => "SEGV",
        _ => "SYS",
    };
    let own = usize::try_from(code)
        .ok()
        .and_then(|c| names.get(c.checked_sub(1)?));
    match (own, common_code(code)) {
        (Some(name), _) => format!("{prefix}_{name}"),
        (None, Some(name)) => name.to_owned(),
        (None, None) => code.to_string(),
    }
}

/// Whether `si_addr` says anything: faults that the processor raised, not signals that were sent.
pub fn has_address(number: i32, code: i32) -> bool {
    matches!(number, 4 | 5 | 7 | 8 | 11) && code > 0 && code != 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_manual() {
        assert_eq!(
            (name(11), name(6), name(31), name(64)),
            (
                "SIGSEGV".into(),
                "SIGABRT".into(),
                "SIGSYS".into(),
                "SIG64".into()
            )
        );
        assert_eq!(code_name(11, 1), "SEGV_MAPERR");
        assert_eq!(code_name(11, 0x80), "SI_KERNEL");
        assert_eq!(code_name(6, -6), "SI_TKILL");
        assert_eq!(code_name(8, 1), "FPE_INTDIV");
        assert_eq!(code_name(11, 99), "99");
        assert!(has_address(11, 1) && !has_address(11, -6) && !has_address(6, 1));
    }
}
