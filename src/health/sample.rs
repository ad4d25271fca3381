//! A process → what it uses, once a second.
//!
//! One read of `/proc/PID/stat` from a descriptor that stays open: it names this process for
//! good, so a reused pid is never mistaken for it. Descriptors are counted every ten seconds,
//! for that costs a listing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::stat::{self, Stat};
use crate::service::Pid;

/// Samples between two counts of descriptors.
const FDS_EVERY: u64 = 10;

/// What a process uses; zeros where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Of one CPU, since the last sample.
    pub cpu_percent: f64,
    pub rss_bytes: u64,
    pub threads: u64,
    pub fds: u64,
}

/// Units of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Units {
    page_bytes: u64,
    ticks_per_second: f64,
}

impl Units {
    pub fn of_this_kernel() -> Units {
        Units {
            page_bytes: rustix::param::page_size() as u64,
            ticks_per_second: rustix::param::clock_ticks_per_second() as f64,
        }
    }
}

/// One process under observation.
#[derive(Debug)]
pub struct Sampler {
    units: Units,
    folder: PathBuf,
    stat: Option<File>,
    last: Option<(Instant, Stat)>,
    samples: u64,
    fds: u64,
}

impl Sampler {
    /// `turn` spreads the costly part of many samplers over the seconds.
    pub fn new(proc: &Path, pid: Pid, units: Units, turn: u64) -> Sampler {
        let folder = proc.join(pid.to_string());
        Sampler {
            stat: File::open(folder.join("stat")).ok(),
            units,
            last: None,
            samples: turn,
            fds: count_fds(&folder),
            folder,
        }
    }

    /// What it uses now; zeros once it is gone.
    pub fn sample(&mut self, now: Instant) -> Usage {
        let mut text = [0; 1024];
        let read = self
            .stat
            .as_ref()
            .and_then(|stat| stat.read_at(&mut text, 0).ok());
        let Some(stat) = read.and_then(|length| stat::parse(&text[..length])) else {
            self.stat = None;
            return Usage::default();
        };
        self.samples += 1;
        if self.samples.is_multiple_of(FDS_EVERY) {
            self.fds = count_fds(&self.folder);
        }
        let cpu_percent = self.last.map_or(0.0, |(then, last)| {
            let ticks = stat.cpu_ticks.saturating_sub(last.cpu_ticks) as f64;
            let seconds = now.saturating_duration_since(then).as_secs_f64();
            100.0 * ticks / self.units.ticks_per_second / seconds.max(0.001)
        });
        self.last = Some((now, stat));
        Usage {
            cpu_percent,
            rss_bytes: stat.rss_pages.saturating_mul(self.units.page_bytes),
            threads: stat.threads,
            fds: self.fds,
        }
    }
}

/// Open descriptors; 0 where they may not be seen.
fn count_fds(folder: &Path) -> u64 {
    std::fs::read_dir(folder.join("fd")).map_or(0, |fds| fds.count() as u64)
}
