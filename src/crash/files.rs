//! path → the bytes of a file; what the pure parts ask of the outside.
//!
//! Bytes live as long as the whole analysis, so that everything parsed may borrow them.

use std::path::Path;

/// Where files come from: mapped from disk, or from a test's table.
pub trait Files<'a> {
    /// `None` where the file is absent, unreadable, empty or no regular file.
    fn open(&self, path: &Path) -> Option<&'a [u8]>;

    /// Keeps bytes that were made (decompressed, put together from memory) as long as those of files.
    fn keep(&self, bytes: Vec<u8>) -> &'a [u8];
}
