//! a stopped process → bytes of its memory, its mappings and its auxiliary vector.
//!
//! Three ways in, best first: `/proc/PID/mem`, process_vm_readv(2), PTRACE_PEEKDATA. Where the service runs as another
//! user and the agent lacks CAP_SYS_PTRACE, files of /proc open only for that user: the file system identity is changed
//! for the moment of opening (setfsuid(2)), which needs no more than CAP_SETUID.

use std::cell::Cell;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;

use crate::service::Pid;

use super::proc;
use super::ptrace;

pub struct Memory {
    tid: Pid,
    file: Option<File>,
    pub maps: Vec<u8>,
    /// Raw, as in the core file.
    pub auxv: Vec<u8>,
    /// Words that may still be read one by one: 3 µs each.
    words: Cell<usize>,
}

/// 128 KiB, some 50 ms.
const MOST_WORDS: usize = 16 << 10;

/// Empty where it cannot be read.
pub fn read_text(path: &str) -> String {
    String::from_utf8_lossy(&read_part(path)).into_owned()
}

/// As much as can be read: a part is better than nothing. Files of /proc tell no length, and most fit at once.
fn read_part(path: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4096);
    if let Ok(mut file) = File::open(path) {
        let _ = file.read_to_end(&mut bytes);
    }
    bytes
}

/// `None` for a thread that has none, or is gone.
pub fn thread_name(pid: Pid, tid: Pid) -> Option<String> {
    // One read has it all (TASK_COMM_LEN is 16, a kernel thread's is 64): there may be thousands.
    let mut bytes = [0; 64];
    let mut file = File::open(format!("/proc/{pid}/task/{tid}/comm")).ok()?;
    let length = file.read(&mut bytes).ok()?;
    let name = bytes.get(..length)?.strip_suffix(b"\n")?;
    Some(String::from_utf8_lossy(name).into_owned()).filter(|name| !name.is_empty())
}

impl Memory {
    /// By way of a thread that has not ended: the first one may have. `about` is its `/proc/PID/status`.
    pub fn open(pid: Pid, tid: Pid, about: &str) -> Memory {
        let folder = format!("/proc/{pid}/task/{tid}");
        let mut memory = Memory::open_as_we_are(&folder, tid);
        if memory.file.is_none() || memory.maps.is_empty() {
            let other = Identity::take(about);
            memory = Memory::open_as_we_are(&folder, tid);
            drop(other);
        }
        memory
    }

    fn open_as_we_are(folder: &str, tid: Pid) -> Memory {
        let whole = |name: &str| read_part(&format!("{folder}/{name}"));
        Memory {
            tid,
            file: File::open(format!("{folder}/mem")).ok(),
            maps: whole("maps"),
            auxv: whole("auxv"),
            words: Cell::new(MOST_WORDS),
        }
    }

    /// At most `length` bytes; fewer where memory ends.
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut done = 0;
        while done < length {
            let Some(rest) = bytes.get_mut(done..) else {
                break;
            };
            match self.read_some(address.saturating_add(done as u64), rest) {
                0 => break,
                read => done += read,
            }
        }
        bytes.truncate(done);
        bytes
    }

    fn read_some(&self, address: u64, into: &mut [u8]) -> usize {
        // The offset is signed: addresses above it are the kernel's own.
        if let Some(file) = &self.file
            && address <= i64::MAX as u64
            && let Ok(read) = file.read_at(into, address)
            && read > 0
        {
            return read;
        }
        match ptrace::read_memory(self.tid, address, into) {
            // Also where the file could be opened: a process that is not dumpable denies it later.
            0 => self.peek(address, into),
            read => read,
        }
    }

    fn peek(&self, address: u64, into: &mut [u8]) -> usize {
        let mut done = 0;
        for place in into.chunks_mut(8) {
            let left = self.words.get();
            let word = match left {
                0 => None,
                _ => ptrace::peek(self.tid, address.saturating_add(done as u64)),
            };
            let Some(word) = word else {
                break;
            };
            self.words.set(left - 1);
            let length = place.len();
            place.copy_from_slice(&word[..length]);
            done += length;
        }
        done
    }
}

/// Another user's rights to files, until dropped.
///
/// With them the kernel makes us one that nobody may look into, our children too, whom we could trace no more, and
/// forgets with whose death we are to die (`commit_creds`): both are put back.
struct Identity {
    uid: u32,
    gid: u32,
    dumpable: libc::c_int,
    parent_death: libc::c_int,
}

impl Identity {
    fn take(about: &str) -> Option<Identity> {
        let uid = proc::number(about, "Uid")?;
        let gid = proc::number(about, "Gid")?;
        let mut parent_death: libc::c_int = 0;
        // SAFETY: plain system calls; those for identities answer the one that was.
        unsafe {
            let dumpable = libc::prctl(libc::PR_GET_DUMPABLE);
            libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut parent_death);
            let own_gid = libc::setfsgid(gid) as u32;
            let own_uid = libc::setfsuid(uid) as u32;
            Some(Identity {
                uid: own_uid,
                gid: own_gid,
                dumpable,
                parent_death,
            })
        }
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        // SAFETY: as above. The user first: that brings the rights back that the group needs.
        unsafe {
            libc::setfsuid(self.uid);
            libc::setfsgid(self.gid);
            if self.dumpable == 1 {
                libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
            }
            if self.parent_death != 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, self.parent_death);
            }
        }
    }
}
