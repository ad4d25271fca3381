//! path → the bytes of a file, mapped into memory for as long as the analysis runs.
//!
//! Edge: the only place of the analyser that opens files. Mapped rather than read, because a binary with debug
//! information may be bigger than the memory of a board, of which an analysis touches little. A file that shrinks
//! while it is mapped ends the analysis with SIGBUS; it runs in a process of its own.

use crate::crash::files::Files;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use typed_arena::Arena;

/// One file, mapped read-only; unmapped when dropped.
struct Mapping {
    start: *mut std::ffi::c_void,
    len: usize,
}

impl Mapping {
    fn new(path: &Path) -> std::io::Result<Mapping> {
        // Not blocking: a FIFO in the place of a debug file must not hold up the report.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        let status = rustix::fs::fstat(&file)?;
        let len = usize::try_from(status.st_size).unwrap_or(0);
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile || len == 0 {
            return Err(std::io::Error::other("not a regular file, or an empty one"));
        }
        // SAFETY: a new private read-only mapping aliases nothing that Rust knows of.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                &file,
                0,
            )
        }?;
        Ok(Mapping { start, len })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `start..start + len` is mapped readable until `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.start.cast::<u8>(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's own, and no slice of it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.start, self.len) };
    }
}

/// Holds what `Disk` hands out.
#[derive(Default)]
pub struct Storage {
    mappings: Arena<Mapping>,
    made: Arena<Vec<u8>>,
}

/// The file system. Opens each path once.
pub struct Disk<'a> {
    storage: &'a Storage,
    known: RefCell<HashMap<PathBuf, Option<&'a [u8]>>>,
}

impl<'a> Disk<'a> {
    pub fn new(storage: &'a Storage) -> Disk<'a> {
        Disk {
            storage,
            known: RefCell::default(),
        }
    }

    /// A file that must be there: the reason where it is not.
    pub fn require(&self, path: &Path) -> std::io::Result<&'a [u8]> {
        Ok(self.storage.mappings.alloc(Mapping::new(path)?).bytes())
    }
}

impl<'a> Files<'a> for Disk<'a> {
    fn open(&self, path: &Path) -> Option<&'a [u8]> {
        if let Some(known) = self.known.borrow().get(path) {
            return *known;
        }
        let bytes = self.require(path).ok();
        self.known.borrow_mut().insert(path.to_owned(), bytes);
        bytes
    }

    fn keep(&self, bytes: Vec<u8>) -> &'a [u8] {
        self.storage.made.alloc(bytes)
    }
}
