//! NVMe controllers → how worn they are.
//!
//! Their SMART log (NVM Express base specification, Get Log Page 02h), asked by the admin ioctl of the kernel
//! (linux/nvme_ioctl.h), which needs root or CAP_SYS_ADMIN. A controller that hangs holds an ioctl for a minute, so
//! each round of questions has a thread of its own, one at a time; wear changes over months.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::board::{self, Smart};

/// The log is read from there on.
const GET_LOG_PAGE: u8 = 0x02;
const SMART: u32 = 0x02;
/// `_IOWR('N', 0x41, struct nvme_passthru_cmd)`.
const ADMIN_COMMAND: libc::c_ulong = 0xc048_4e41;
const TIMEOUT_MS: u32 = 2000;

/// `struct nvme_passthru_cmd` of linux/nvme_ioctl.h.
#[repr(C)]
#[derive(Default)]
struct Command {
    opcode: u8,
    flags: u8,
    rsvd1: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

/// The controllers below a root, and what they said last.
#[derive(Debug)]
pub struct Controllers {
    folder: PathBuf,
    said: Arc<Mutex<Said>>,
}

#[derive(Debug, Default)]
struct Said {
    /// Controller → its log; `None` where it does not say.
    logs: BTreeMap<String, Option<Smart>>,
    asking: bool,
}

impl Controllers {
    pub fn new(root: &Path) -> Controllers {
        Controllers {
            folder: root.join("dev"),
            said: Arc::default(),
        }
    }

    /// Asks all of them anew; what they say is there a moment later.
    pub fn ask(&self) {
        let found = controllers(&self.folder);
        {
            let mut said = lock(&self.said);
            if said.asking {
                return;
            }
            said.logs
                .retain(|name, _| found.iter().any(|(known, _)| known == name));
            if found.is_empty() {
                return;
            }
            said.asking = true;
        }
        let said = Arc::clone(&self.said);
        let ask = move || {
            let logs = found
                .into_iter()
                .map(|(name, path)| (name, log(&path)))
                .collect();
            *lock(&said) = Said {
                logs,
                asking: false,
            };
        };
        let thread = std::thread::Builder::new()
            .name("smart".to_owned())
            .spawn(ask);
        if thread.is_err() {
            lock(&self.said).asking = false;
        }
    }

    /// Controller → its log, in order.
    pub fn said(&self) -> BTreeMap<String, Option<Smart>> {
        lock(&self.said).logs.clone()
    }
}

fn lock(said: &Mutex<Said>) -> std::sync::MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `/dev/nvme0`, but no namespace (`nvme0n1`) and nothing that is no device.
fn controllers(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(String, PathBuf)> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_char_device()))
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .filter(|(name, _)| {
            let number = name.strip_prefix("nvme").unwrap_or_default();
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        })
        .collect();
    found.sort();
    found
}

fn log(path: &Path) -> Option<Smart> {
    let device = File::open(path).ok()?;
    let mut page = [0_u8; 512];
    let mut command = Command {
        opcode: GET_LOG_PAGE,
        // The controller as a whole.
        nsid: u32::MAX,
        addr: page.as_mut_ptr() as u64,
        data_len: page.len() as u32,
        // The number of four-byte words less one, and which log.
        cdw10: ((page.len() as u32 / 4 - 1) << 16) | SMART,
        timeout_ms: TIMEOUT_MS,
        ..Command::default()
    };
    // SAFETY: the command is as the kernel's header has it and outlives the call; the kernel writes at most `data_len`
    // bytes to `addr`, which is that long.
    let status = unsafe { libc::ioctl(device.as_raw_fd(), ADMIN_COMMAND, &mut command) };
    (status == 0).then(|| board::smart(&page)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_as_the_kernel_has_it() {
        // `offsetof` and `sizeof` of linux/nvme_ioctl.h.
        assert_eq!(size_of::<Command>(), 72);
        assert_eq!(std::mem::offset_of!(Command, addr), 24);
        assert_eq!(std::mem::offset_of!(Command, data_len), 36);
        assert_eq!(std::mem::offset_of!(Command, cdw10), 40);
        assert_eq!(std::mem::offset_of!(Command, timeout_ms), 64);
    }

    #[test]
    fn what_is_no_controller_says_nothing() {
        // A character device that knows no such ioctl.
        assert_eq!(log(Path::new("/dev/null")), None);
        assert_eq!(log(Path::new("/dev/no-such-device")), None);
        let folder = std::env::temp_dir().join(format!("nvme-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("nvme0"), "").expect("a file");
        assert_eq!(controllers(&folder), []);
        std::fs::remove_dir_all(&folder).expect("ours");
    }
}
