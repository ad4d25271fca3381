//! a copied process → its report, made by a child of ourselves.
//!
//! The child has limits of its own (`examine`): what it reads comes from a program that went wrong, and may be huge or
//! hostile. What runs into them is tried a second time with less. The core file goes to disk first.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::clock;
use crate::handoff::{Cause, CoreFile, Dying, Helper, HelperEvent, Leads, Pipes, StartHelper};
use crate::service::Exit;

use super::disk::Disk;
use super::report::Report;
use super::store::{self, Store};

/// An analysis takes a tenth of a second; huge debug information some seconds.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of one report.
const MOST_REPORT: usize = 64 << 20;
/// Of what it says about itself.
const MOST_COMPLAINT: u64 = 64 << 10;

/// Where the analysis finds the core file.
pub enum Place {
    Stored(PathBuf),
    /// A file without a name, which `/proc` makes readable to the analysis.
    Memory(OwnedFd),
}

impl Place {
    fn path(&self) -> String {
        match self {
            Place::Stored(path) => path.display().to_string(),
            Place::Memory(fd) => own_path(fd.as_fd()),
        }
    }
}

/// Descriptors of ours, as others find them.
fn own_path(fd: BorrowedFd<'_>) -> String {
    let own = rustix::process::getpid().as_raw_nonzero();
    format!("/proc/{own}/fd/{}", fd.as_raw_fd())
}

/// Puts a core file where it can be read: into its record where `keep` says so and the disk takes it. Beside the place,
/// why it is not on disk.
///
/// # Errors
/// Neither disk nor memory takes it.
pub async fn place(
    disk: &Disk,
    id: &str,
    core: CoreFile,
    keep: bool,
) -> io::Result<(Place, Option<io::Error>)> {
    // Whoever waits for the disk in vain still has it.
    let core = Arc::new(match core {
        CoreFile::Kept => {
            let path = disk.store.path(id, store::CORE);
            return Ok((Place::Stored(path), None));
        }
        CoreFile::Missing => return Err(io::ErrorKind::NotFound.into()),
        CoreFile::Bytes(bytes) => Loose::Bytes(bytes),
        CoreFile::Open(fd) => Loose::Open(File::from(fd)),
    });
    let mut unsaved = None;
    if keep {
        let (own, core) = (id.to_owned(), core.clone());
        let save = move |store: &Store| match &*core {
            Loose::Bytes(bytes) => store.save(&own, store::CORE, bytes),
            Loose::Open(file) => store.save_from(&own, store::CORE, file),
        };
        let own = id.to_owned();
        let saved = disk.run_or(save, move |store| drop(store.remove(&own)));
        match saved.await {
            Ok(path) => return Ok((Place::Stored(path), None)),
            Err(error) => unsaved = Some(error),
        }
    }
    let fd = match &*core {
        Loose::Bytes(bytes) => in_memory(bytes)?,
        Loose::Open(file) => file.as_fd().try_clone_to_owned()?,
    };
    Ok((Place::Memory(fd), unsaved))
}

/// A core file that is in no record yet.
enum Loose {
    Bytes(Vec<u8>),
    Open(File),
}

fn in_memory(core: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("core", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut rest = core;
    while !rest.is_empty() {
        let written = rustix::io::write(&fd, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(fd)
}

/// Starts the children.
pub struct Examiner {
    pub start: StartHelper,
    pub debug_dirs: Vec<PathBuf>,
}

impl Examiner {
    /// `too_late` ends the waiting.
    ///
    /// # Errors
    /// A sentence.
    pub async fn examine(
        &self,
        dying: &Dying,
        place: &Place,
        store: &Store,
        too_late: impl Future<Output = ()>,
    ) -> Result<Report, String> {
        let mut args = self.arguments(dying);
        args.extend(leads(&dying.snapshot.leads, store, &dying.crash_id));
        let twice = async {
            let mut first = args.clone();
            first.push(place.path());
            match self.analyse(first).await {
                Ok(report) => Ok(report),
                Err(why) => {
                    // What ran into its limits may do with less.
                    let mut second = args;
                    second.extend(["--symbol-tables-only".to_owned(), place.path()]);
                    let mut report = self.analyse(second).await?;
                    report
                        .notes
                        .push(format!("only symbol tables were used: {why}"));
                    Ok(report)
                }
            }
        };
        tokio::select! {
            result = twice => result,
            () = too_late => Err("the agent is ending".to_owned()),
        }
    }

    fn arguments(&self, dying: &Dying) -> Vec<String> {
        let kind = match dying.cause {
            Cause::Crash => "crash",
            Cause::Hang => "hang",
            Cause::Asked(_) => "stacks",
        };
        let time = clock::utc(dying.snapshot.at_ms);
        let mut args: Vec<String> = ["symbolize", "--json", "--limits", "--kind", kind]
            .map(str::to_owned)
            .into();
        args.extend(["--service".to_owned(), dying.service.to_string()]);
        args.extend(["--time".to_owned(), time]);
        match dying.cause {
            Cause::Crash | Cause::Hang => {
                args.extend(["--crash-id".to_owned(), dying.crash_id.clone()]);
            }
            Cause::Asked(_) => {}
        }
        for folder in &self.debug_dirs {
            args.extend(["--debug-dir".to_owned(), folder.display().to_string()]);
        }
        args
    }

    async fn analyse(&self, args: Vec<String>) -> Result<Report, String> {
        let (started_in, started) = oneshot::channel();
        let (ended_in, ended) = oneshot::channel();
        let (mut started_in, mut ended_in) = (Some(started_in), Some(ended_in));
        let tell = move |event| match event {
            HelperEvent::Started(pipes) => {
                started_in.take().map(|to| to.send(Ok(pipes)));
            }
            HelperEvent::Failed(failure) => {
                started_in.take().map(|to| to.send(Err(failure)));
            }
            HelperEvent::Ended(exit) => {
                ended_in.take().map(|to| to.send(exit));
            }
        };
        (self.start)(Helper {
            executable: "/proc/self/exe".to_owned(),
            args,
            nice: 10,
            limit: LIMIT,
            tell: Box::new(tell),
        });
        let pipes = match started.await {
            Ok(Ok(pipes)) => pipes,
            Ok(Err(failure)) => return Err(failure.to_string()),
            Err(_) => return Err("the agent is ending".to_owned()),
        };
        let (output, complaint) = read(pipes).await.map_err(|error| error.to_string())?;
        match ended.await {
            Ok(Exit::Code(0)) => serde_json::from_slice(&output).map_err(|error| error.to_string()),
            Ok(Exit::Signal(signal)) => Err(format!("the analysis was ended by {signal}")),
            Ok(exit) => Err(match complaint.lines().next_back() {
                Some(line) => line.to_owned(),
                None => format!("the analysis exited with code {}", exit.code()),
            }),
            Err(_) => Err("the agent is ending".to_owned()),
        }
    }
}

/// How the files of the process are found where its paths do not lead to them.
fn leads(leads: &Leads, store: &Store, id: &str) -> Vec<String> {
    let mut args = Vec::new();
    let kept = store.path(id, store::EXECUTABLE);
    if let Some(executable) = &leads.executable {
        args.extend(["--executable".to_owned(), own_path(executable.as_fd())]);
    } else if kept.exists() {
        args.extend(["--executable".to_owned(), kept.display().to_string()]);
    }
    if let Some((root, _)) = &leads.root {
        args.extend(["--sysroot".to_owned(), own_path(root.as_fd())]);
    }
    args
}

/// Both outputs to their ends.
async fn read(pipes: Pipes) -> io::Result<(Vec<u8>, String)> {
    let stdout = pipe::Receiver::from_owned_fd(pipes.stdout)?;
    let stderr = pipe::Receiver::from_owned_fd(pipes.stderr)?;
    let (mut output, mut complaint) = (Vec::new(), Vec::new());
    let (mut stdout, mut stderr) = (stdout.take(MOST_REPORT as u64), stderr.take(MOST_COMPLAINT));
    let (read, _) = tokio::join!(
        stdout.read_to_end(&mut output),
        stderr.read_to_end(&mut complaint)
    );
    read?;
    Ok((output, String::from_utf8_lossy(&complaint).into_owned()))
}
