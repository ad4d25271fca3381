//! runtime folder, name → a listening socket that no other agent listens on.
//!
//! Guarantees: one agent per folder and name (flock(2) on `<name>.lock`, which holds the
//! pid); a stale socket is replaced, anything else of that name is left alone; the socket
//! may be connected to by everyone (mode 0666, folder 0755), because who may do what is
//! decided by who asks (`server`).
//!
//! The lock file is never removed: an agent that opened it just before the removal would
//! hold a lock that nobody else sees.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink,
};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// The socket, and the right to it.
#[derive(Debug)]
pub struct Bound {
    /// Non-blocking, close-on-exec.
    pub listener: UnixListener,
    pub place: Place,
}

/// Where the socket is. Dropped, it removes the socket and lets the next agent have the place.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// Device and inode of the socket that we made.
    socket: (u64, u64),
    _lock: File,
}

impl Place {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Ok(found) = fs::symlink_metadata(&self.path)
            && (found.dev(), found.ino()) == self.socket
        {
            // Nobody is left to tell; the next agent replaces a stale socket anyway.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Why there is no socket.
#[derive(Debug)]
pub enum BindError {
    /// Another agent has the place: this one must not start.
    Another { folder: PathBuf, pid: Option<i32> },
    /// The place cannot be used; another may do.
    Unusable { stage: String, error: io::Error },
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BindError::Another { folder, pid } => {
                f.write_str("another agent ")?;
                if let Some(pid) = pid {
                    write!(f, "(pid {pid}) ")?;
                }
                write!(f, "already runs on {}", folder.display())
            }
            BindError::Unusable { stage, error } => write!(f, "{stage}: {error}"),
        }
    }
}

impl std::error::Error for BindError {}

fn at(stage: String) -> impl FnOnce(io::Error) -> BindError {
    move |error| BindError::Unusable { stage, error }
}

/// Listens on `<folder>/<name>.sock`. `group` becomes the socket's group where that may be
/// done; its members have authority in any case (`server`).
pub fn bind(folder: &Path, name: &str, group: Option<u32>) -> Result<Bound, BindError> {
    if name.is_empty() || name.contains(['/', '\0']) {
        let error = io::Error::new(ErrorKind::InvalidInput, "not a file name");
        return Err(at(format!("naming the socket {name:?}"))(error));
    }
    prepare(folder)?;
    let lock = lock(folder, &folder.join(format!("{name}.lock")))?;
    let path = folder.join(format!("{name}.sock"));
    remove_stale(&path)?;
    let listener = listen(folder, &format!("{name}.sock"))
        .map_err(at(format!("listening on {}", path.display())))?;
    fs::set_permissions(&path, Permissions::from_mode(0o666))
        .map_err(at(format!("setting the mode of {}", path.display())))?;
    if let Some(group) = group
        && let Err(error) = chown(&path, None, Some(group))
    {
        // Only for the eye of `ls`: authority comes from the asker's groups.
        tracing::warn!(path = %path.display(), group, %error, "cannot give the control socket its group");
    }
    let found =
        fs::symlink_metadata(&path).map_err(at(format!("looking at {}", path.display())))?;
    Ok(Bound {
        listener,
        place: Place {
            path,
            socket: (found.dev(), found.ino()),
            _lock: lock,
        },
    })
}

/// A second name for the same socket, in the same folder: as PID 1 `wrapp` also answers as
/// `agent.sock`.
pub fn alias(place: &Place, name: &str) -> Result<Place, BindError> {
    let folder = place.path.parent().unwrap_or(Path::new("."));
    let lock = lock(folder, &folder.join(format!("{name}.lock")))?;
    let path = folder.join(format!("{name}.sock"));
    remove_stale(&path)?;
    let naming = || format!("naming the socket {}", path.display());
    symlink(place.path.file_name().unwrap_or_default(), &path).map_err(at(naming()))?;
    let found = fs::symlink_metadata(&path).map_err(at(naming()))?;
    Ok(Place {
        socket: (found.dev(), found.ino()),
        path,
        _lock: lock,
    })
}

/// Makes the folder with mode 0755. Below a folder that everyone may write to (`/tmp`), one
/// that is already there must be our own: whoever made it first could listen in our stead.
fn prepare(folder: &Path) -> Result<(), BindError> {
    let making = || format!("making the folder {}", folder.display());
    if let Some(parent) = folder.parent().filter(|p| !p.as_os_str().is_empty()) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(at(making()))?;
        let open_to_all = fs::metadata(parent).is_ok_and(|found| found.mode() & 0o002 != 0);
        if open_to_all && let Ok(found) = fs::symlink_metadata(folder) {
            let us = rustix::process::geteuid().as_raw();
            if !found.is_dir() || found.uid() != us {
                let error =
                    io::Error::new(ErrorKind::PermissionDenied, "it belongs to another user");
                return Err(at(format!("using the folder {}", folder.display()))(error));
            }
        }
    }
    match DirBuilder::new().mode(0o755).create(folder) {
        // Whatever umask took away.
        Ok(()) => fs::set_permissions(folder, Permissions::from_mode(0o755)).map_err(at(making())),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(at(making())(error)),
    }
}

/// Mode 0600: whoever may open the file may hold the lock, and so keep every agent out.
fn lock(folder: &Path, path: &Path) -> Result<File, BindError> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(at(format!("opening {}", path.display())))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            // The holder may not have written its pid yet: then it stays unnamed.
            let mut holder = [0; 32];
            let length = file.read(&mut holder).unwrap_or(0);
            let holder = String::from_utf8_lossy(&holder[..length]);
            return Err(BindError::Another {
                folder: folder.to_path_buf(),
                pid: holder.trim().parse().ok(),
            });
        }
        Err(error) => return Err(at(format!("locking {}", path.display()))(error.into())),
    }
    let noted = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = noted {
        // A full disk must not keep the agent from starting: the lock itself holds.
        tracing::warn!(path = %path.display(), %error, "cannot note our pid in the lock file");
    }
    Ok(file)
}

/// We hold the lock, so whoever made the socket is gone.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() || found.is_symlink() => {
            fs::remove_file(path).map_err(at(format!("removing the stale {}", path.display())))
        }
        Ok(_) => {
            let error = io::Error::new(ErrorKind::AlreadyExists, "something else is there");
            Err(at(format!("listening on {}", path.display()))(error))
        }
        Err(_) => Ok(()),
    }
}

/// unix(7): a path has 108 bytes at most, its NUL included. A longer one is reached through
/// the descriptor of its folder.
fn listen(folder: &Path, file_name: &str) -> io::Result<UnixListener> {
    let direct = folder.join(file_name);
    let listener = if direct.as_os_str().len() < 108 {
        UnixListener::bind(&direct)?
    } else {
        let opened = File::open(folder)?;
        UnixListener::bind(format!("/proc/self/fd/{}/{file_name}", opened.as_raw_fd()))?
    };
    listener.set_nonblocking(true)?;
    // A crowd that waits to be accepted is not to be a long one: an operator stands behind it.
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    struct Folder(PathBuf);
    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("bind-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).expect("a folder for the test");
            fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("ours");
            Folder(path)
        }
    }
    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn modes_and_removal() {
        let root = Folder::new("modes");
        let folder = root.0.join("deep/agent");
        let bound =
            bind(&folder, "agent", Some(rustix::process::getegid().as_raw())).expect("free");
        assert_eq!(fs::metadata(&folder).expect("made").mode() & 0o7777, 0o755);
        let socket = folder.join("agent.sock");
        assert_eq!(bound.place.path(), socket);
        assert_eq!(fs::metadata(&socket).expect("made").mode() & 0o7777, 0o666);
        UnixStream::connect(&socket).expect("listens");
        drop(bound);
        assert!(!socket.exists());
    }

    #[test]
    fn a_second_agent_is_told_who_is_there() {
        let root = Folder::new("second");
        let first = bind(&root.0, "agent", None).expect("free");
        let error = bind(&root.0, "agent", None).expect_err("taken");
        let expected = format!(
            "another agent (pid {}) already runs on {}",
            std::process::id(),
            root.0.display()
        );
        assert_eq!(error.to_string(), expected);
        // Another name is another place.
        let other = bind(&root.0, "myservice", None).expect("free");
        drop((first, other));
        bind(&root.0, "agent", None).expect("free again");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let root = Folder::new("stale");
        drop(UnixListener::bind(root.0.join("agent.sock")).expect("free"));
        let bound = bind(&root.0, "agent", None).expect("stale");
        // Whoever takes the place by force keeps it.
        fs::remove_file(root.0.join("agent.sock")).expect("ours");
        fs::write(root.0.join("agent.sock"), "mine").expect("writable");
        drop(bound);
        assert!(root.0.join("agent.sock").exists());
        let error = bind(&root.0, "agent", None).expect_err("a file");
        assert!(matches!(error, BindError::Unusable { .. }), "{error}");
    }

    #[test]
    fn a_second_name_for_the_same_socket() {
        let root = Folder::new("alias");
        let bound = bind(&root.0, "myservice", None).expect("free");
        let path = root.0.join("agent.sock");
        let second = alias(&bound.place, "agent").expect("free");
        UnixStream::connect(&path).expect("listens");
        alias(&bound.place, "agent").expect_err("taken");
        drop(second);
        assert!(!path.exists() && bound.place.path().exists());
        std::os::unix::fs::symlink("gone.sock", &path).expect("free");
        alias(&bound.place, "agent").expect("a stale name is replaced");
    }

    #[test]
    fn a_long_path_works() {
        let root = Folder::new("long");
        let folder = root.0.join("x".repeat(120));
        let bound = bind(&folder, "agent", None).expect("through the descriptor");
        assert!(bound.place.path().exists());
    }

    #[test]
    fn a_folder_of_another_user_below_tmp_is_refused() {
        let root = Folder::new("tmp");
        fs::set_permissions(&root.0, Permissions::from_mode(0o1777)).expect("ours");
        let folder = root.0.join("agent-0");
        fs::create_dir(&folder).expect("free");
        if chown(&folder, Some(12345), None).is_err() {
            eprintln!("skipped: needs root to give a folder away");
            return;
        }
        let error = bind(&folder, "agent", None).expect_err("not ours");
        assert!(
            error.to_string().contains("belongs to another user"),
            "{error}"
        );
        std::os::unix::fs::symlink("/", root.0.join("link")).expect("free");
        bind(&root.0.join("link"), "agent", None).expect_err("a link");
    }

    #[test]
    fn names_are_file_names() {
        let root = Folder::new("names");
        for name in ["", "a/b", "../x"] {
            bind(&root.0, name, None).expect_err("no file name");
        }
    }
}
