//! a program's file → whether its `exec` grants what tracing would take away.
//!
//! Set-user-ID and set-group-ID bits and file capabilities are ignored by the kernel where the program is traced by one
//! without CAP_SYS_PTRACE (execve(2), capabilities(7)): then the program is worth more than its crashes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// `#!` lines that lead to each other (execve(2)).
const INTERPRETERS: usize = 5;
/// Of such a line.
const LINE: u64 = 256;
/// linux/capability.h
const CAP_SYS_PTRACE: u32 = 19;

/// Whether tracing takes away what the `exec` of `program` grants; `folder` is where it happens.
pub fn are_lost(program: &OsStr, folder: Option<&OsStr>) -> bool {
    !may_trace_anything()
        && are_granted(
            &folder
                .map_or_else(PathBuf::new, PathBuf::from)
                .join(program),
        )
}

/// Whether the agent's own privilege keeps those of what it traces.
fn may_trace_anything() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    effective.is_some_and(|mask| mask >> CAP_SYS_PTRACE & 1 == 1)
}

fn are_granted(program: &Path) -> bool {
    let mut program = program.to_owned();
    for _ in 0..INTERPRETERS {
        let sets_id = |file: &fs::Metadata| {
            let mode = file.permissions().mode();
            // Without the group's x it is another thing (inode(7)).
            mode & 0o4000 != 0 || mode & 0o2010 == 0o2010
        };
        // What a script's own bits say the kernel ignores.
        match interpreter(&program) {
            Some(next) => program = next,
            None => {
                let has_bits = fs::metadata(&program).is_ok_and(|file| sets_id(&file));
                return has_bits || has_capabilities(&program);
            }
        }
    }
    false
}

fn has_capabilities(program: &Path) -> bool {
    // VFS_CAP_REVISION_3 has 24 bytes.
    let mut value = [0u8; 64];
    rustix::fs::getxattr(program, "security.capability", &mut value[..]).is_ok_and(|size| size > 0)
}

fn interpreter(script: &Path) -> Option<PathBuf> {
    let mut head = Vec::new();
    File::open(script)
        .ok()?
        .take(LINE)
        .read_to_end(&mut head)
        .ok()?;
    let line = head
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let program = line
        .trim_ascii_start()
        .split(|byte| matches!(byte, b' ' | b'\t'))
        .next()?;
    (!program.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(program)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_programs_and_of_their_interpreters() {
        let folder = std::env::temp_dir().join(format!("agent-privileges-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = |name: &str, content: &str, mode: u32| {
            let path = folder.join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let plain = file("plain", "x", 0o755);
        let user = file("user", "x", 0o4755);
        let group = file("group", "x", 0o2755);
        let locks = file("locks", "x", 0o2745);
        let by_user = file("by-user", &format!("#! {} -x\n", user.display()), 0o755);
        let script = file("script", &format!("#!{}\n", plain.display()), 0o4755);
        let found =
            [&plain, &user, &group, &locks, &by_user, &script].map(|path| are_granted(path));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, [false, true, true, false, true, false]);
    }
}
