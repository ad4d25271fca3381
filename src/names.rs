//! the C library's name services → the two that are inside a static binary.
//!
//! A static glibc still loads the NSS modules that `/etc/nsswitch.conf` names, built for
//! another glibc, and dies of it (SIGFPE or SIGSEGV were seen). Pinned to `files` and `dns`,
//! which glibc has built in since 2.34, it loads none. Users and groups are not asked for
//! through it at all (`supervise::accounts`).

/// Must run before any thread and any look-up.
pub fn pin() {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    {
        unsafe extern "C" {
            fn __nss_configure_lookup(
                database: *const libc::c_char,
                services: *const libc::c_char,
            ) -> libc::c_int;
        }
        for (database, services) in [
            (c"hosts", c"files dns"),
            (c"passwd", c"files"),
            (c"group", c"files"),
            (c"initgroups", c"files"),
            (c"services", c"files"),
        ] {
            // SAFETY: both are NUL-terminated and outlive the call, which copies them; no
            // other thread exists yet.
            unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
        }
    }
}
