//! A file system of its own, in an image behind a loop device.
//!
//! Frozen (`fsfreeze`), every write and every `fsync` on it waits until it is thawed. A copy of its image at any moment
//! is what a power cut at that moment would leave: what is only in the page cache is not in it.

#![allow(dead_code)] // each test binary uses its part

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::Scratch;

pub fn can_mount() -> bool {
    // SAFETY: geteuid(2) always succeeds.
    let root = unsafe { libc::geteuid() == 0 };
    let can = root && Path::new("/dev/loop-control").exists();
    if !can {
        eprintln!("not run: needs root and loop devices");
    }
    can
}

fn system(words: &[&str]) {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .expect("a command of the base system");
    assert!(output.status.success(), "{words:?}: {output:?}");
}

/// A mounted file system, unmounted with the test.
pub struct Disk {
    image: PathBuf,
    pub mount: PathBuf,
    frozen: bool,
}

impl Disk {
    pub fn new(folder: &Scratch) -> Disk {
        let image = folder.join("image");
        let file = std::fs::File::create(&image).expect("an image");
        file.set_len(64 << 20).expect("space");
        system(&["mkfs.ext4", "-q", &image.to_string_lossy()]);
        Disk::mounted(folder, image)
    }

    pub fn mounted(folder: &Scratch, image: PathBuf) -> Disk {
        let mount = folder.join("disk");
        std::fs::create_dir_all(&mount).expect("a folder");
        let disk = Disk {
            image,
            mount,
            frozen: false,
        };
        let [image, mount] = [&disk.image, &disk.mount].map(|path| path.to_string_lossy());
        system(&["mount", "-o", "loop", &image, &mount]);
        disk
    }

    pub fn freeze(&mut self) {
        self.frozen = true;
        system(&["fsfreeze", "-f", &self.mount.to_string_lossy()]);
    }

    pub fn thaw(&mut self) {
        system(&["fsfreeze", "-u", &self.mount.to_string_lossy()]);
        self.frozen = false;
    }

    /// What a power cut now would leave.
    pub fn snapshot(&self, folder: &Scratch, number: usize) -> PathBuf {
        let copy = folder.join(&format!("image{number}"));
        std::fs::copy(&self.image, &copy).expect("space for a copy");
        copy
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mount = self.mount.to_string_lossy().into_owned();
        if self.frozen {
            let _ = Command::new("fsfreeze").args(["-u", &mount]).status();
        }
        // A process that was killed while it wrote may need a moment.
        for _ in 0..500 {
            if Command::new("umount")
                .arg(&mount)
                .output()
                .is_ok_and(|output| output.status.success())
            {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{mount} is still mounted");
    }
}
