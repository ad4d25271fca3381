//! the arguments that core_pattern gives → what is known of the dump.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::service::Pid;

/// `--pid=%P --tid=%I --signal=%s --uid=%u --gid=%g --dumpable=%d --time=%t` (core(5)), and `--config=PATH`. What only
/// another version knows is passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// In the initial namespace, as everything here.
    pub pid: Pid,
    pub tid: Pid,
    pub signal: i32,
    /// 1 where everybody of its user may look into it (PR_SET_DUMPABLE).
    pub dumpable: i32,
    pub config: Option<PathBuf>,
}

pub fn parse(args: &[OsString]) -> Result<Call, String> {
    let value = |name: &str| {
        args.iter().find_map(|arg| {
            let text = arg.to_str()?.strip_prefix("--")?;
            let (found, value) = text.split_once('=')?;
            (found == name).then(|| value.to_owned())
        })
    };
    let number = |name: &str| {
        let text = value(name).ok_or_else(|| format!("--{name}=NUMBER is missing"))?;
        text.parse::<i32>()
            .map_err(|_| format!("--{name}={text} is not a number"))
    };
    let pid = number("pid")?;
    if pid < 1 {
        return Err(format!("--pid={pid} is no process"));
    }
    Ok(Call {
        pid,
        tid: number("tid").unwrap_or(pid),
        signal: number("signal")?,
        dumpable: number("dumpable").unwrap_or(1),
        config: value("config").map(PathBuf::from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Call, String> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        parse(&words)
    }

    #[test]
    fn the_form_that_packaging_relies_on() {
        let call = parsed("--pid=42 --tid=43 --signal=11 --uid=0 --gid=0 --dumpable=2 --time=1");
        assert_eq!(
            call,
            Ok(Call {
                pid: 42,
                tid: 43,
                signal: 11,
                dumpable: 2,
                config: None
            })
        );
        let call = parsed("--signal=6 --new=x --pid=1 --config=/etc/a=b").expect("enough");
        assert_eq!((call.tid, call.dumpable), (1, 1));
        assert_eq!(call.config, Some("/etc/a=b".into()));
        for wrong in [
            "",
            "--pid=1",
            "--signal=1",
            "--pid=x --signal=1",
            "--pid=0 --signal=1",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
