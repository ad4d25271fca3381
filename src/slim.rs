//! an agent that has started → fewer of its pages in memory.
//!
//! Half of the program runs only once: reading configuration, TLS, the first connection. What was read from disk for
//! that, and what the allocator keeps of it, is given back when all is quiet; what is needed again is read again.
//! Only to be unmapped would not do: at the next fault the kernel maps all neighbours that it still has. It refuses where
//! the file belongs to somebody else (`can_do_file_pageout`); then nothing changes.

use std::time::Duration;

use tracing::debug;

/// After the start; the first connection has been tried by then.
const AFTER: Duration = Duration::from_secs(4);

/// Between two returns of what bursts leave with the allocator: of ten thousand crashes it kept 200 KiB.
const AGAIN: Duration = Duration::from_secs(600);

/// The program's pages once, the heap's now and then.
pub async fn later() {
    tokio::time::sleep(AFTER).await;
    trim_heap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let own = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    for (start, length) in text(&maps, &own.to_string_lossy()) {
        // SAFETY: what was written to (a debugger's breakpoints) stays; the rest is read again from where it came.
        let done = unsafe { libc::madvise(start as *mut _, length, libc::MADV_PAGEOUT) };
        if done != 0 {
            debug!(
                "pages of the program stay: {}",
                std::io::Error::last_os_error()
            );
        }
    }
    loop {
        tokio::time::sleep(AGAIN).await;
        trim_heap();
    }
}

fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: glibc's own, safe in any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Mappings of our own file that nobody can write: address and length.
fn text<'m>(maps: &'m str, own: &'m str) -> impl Iterator<Item = (usize, usize)> + 'm {
    maps.lines().filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace();
        let (range, permissions) = (fields.next()?, fields.next()?);
        if permissions.contains('w') || fields.nth(3)? != own {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        Some((start, end.checked_sub(start)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_writes() {
        let maps = "00200000-00352000 r--p 00000000 fe:00 53 /opt/agent\n\
                    00352000-008a4000 r-xp 00151000 fe:00 53 /opt/agent\n\
                    008a4000-008a9000 r--p 006a3000 fe:00 53 /opt/agent\n\
                    008a9000-008b0000 rw-p 006a7000 fe:00 53 /opt/agent\n\
                    7f0000000000-7f0000001000 r-xp 00000000 fe:00 9 /lib/x.so\n\
                    7ffd0000-7ffd2000 r-xp 00000000 00:00 0 [vdso]\n";
        let found: Vec<_> = text(maps, "/opt/agent").collect();
        assert_eq!(
            found,
            [
                (0x200000, 0x152000),
                (0x352000, 0x552000),
                (0x8a4000, 0x5000)
            ]
        );
    }
}
