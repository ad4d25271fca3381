//! The beats of every pool → two files under `state_dir`, and back at the next start.
//!
//! Written with the second's tick, before the values are told: an agent that is killed counts on from what
//! consumers have seen. Nothing is synced but the last text; what the page cache had not written when the power went
//! is lost, up to half a minute of beats as kernels are set. The files `beats.0` and `beats.1` are
//! written over in turn and in place, so that one of them is always whole and the disk is not made to write each second.
//!
//! A disk that hangs holds up a thread of its own and costs no more than the beats.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::info;

use super::kept::{self, Beats, LONGEST};

/// How long a text is waited for, so that nothing is told before it is written.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long the start and the end wait for the disk.
const LAST: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Keeper {
    /// The first is locked while we live.
    files: Arc<[File; 2]>,
    sequence: u64,
    /// As it was written last.
    beats: Beats,
    writing: Option<JoinHandle<io::Result<()>>>,
    told: bool,
}

impl Keeper {
    /// Opens the files, makes them where there are none, and reads what the last agent left.
    ///
    /// # Errors
    ///
    /// The folder cannot be written to, another agent keeps its beats there, or the disk does not answer.
    pub async fn open(state_dir: &Path) -> io::Result<(Keeper, Beats)> {
        let state_dir = state_dir.to_owned();
        let opened = tokio::task::spawn_blocking(move || Keeper::opened(&state_dir));
        match tokio::time::timeout(LAST, opened).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => Err(io::Error::other(error)),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn opened(state_dir: &Path) -> io::Result<(Keeper, Beats)> {
        let mut folder = DirBuilder::new();
        folder.recursive(true).mode(0o755).create(state_dir)?;
        let open = |name| {
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(state_dir.join(name))
        };
        let files = [open("beats.0")?, open("beats.1")?];
        rustix::fs::flock(
            &files[0],
            rustix::fs::FlockOperation::NonBlockingLockExclusive,
        )?;
        let newest = files
            .iter()
            .filter_map(|file| kept::read(&whole(file).ok()?))
            .max_by_key(|(sequence, _)| *sequence);
        let (sequence, beats) = newest.unwrap_or_default();
        let keeper = Keeper {
            files: Arc::new(files),
            sequence,
            beats: beats.clone(),
            writing: None,
            told: false,
        };
        Ok((keeper, beats))
    }

    /// Takes what is counted now, and has written it when this returns. A disk that takes longer than a moment is
    /// waited for once; until it has answered, what is counted waits for the next call.
    pub async fn keep(&mut self, beats: Beats) {
        if self.writing.as_ref().is_some_and(|w| !w.is_finished()) {
            return;
        }
        self.heard().await;
        if beats != self.beats {
            self.write(beats, false);
            let _ = tokio::time::timeout(PATIENCE, self.heard()).await;
        }
    }

    /// The same for the last time: it is on disk when this returns, if the disk answers.
    pub async fn end(mut self, beats: Beats) {
        let all = async {
            self.heard().await;
            self.write(beats, true);
            self.heard().await;
        };
        let _ = tokio::time::timeout(LAST, all).await;
    }

    fn write(&mut self, beats: Beats, sync: bool) {
        self.sequence = self.sequence.wrapping_add(1);
        let text = kept::written(self.sequence, &beats);
        let files = Arc::clone(&self.files);
        let which = usize::from(self.sequence % 2 == 1);
        self.beats = beats;
        self.writing = Some(tokio::task::spawn_blocking(move || {
            files[which].write_all_at(text.as_bytes(), 0)?;
            if sync {
                files[which].sync_data()?;
            }
            Ok(())
        }));
    }

    /// Waits for the text that is being written, if one is.
    async fn heard(&mut self) {
        let Some(writing) = &mut self.writing else {
            return;
        };
        let outcome = writing.await;
        self.writing = None;
        if let Ok(Err(error)) = outcome
            && !std::mem::replace(&mut self.told, true)
        {
            info!("the beats of the pools cannot be kept for the next agent: {error}");
        }
    }
}

fn whole(file: &File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len().min(LONGEST);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
