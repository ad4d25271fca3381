//! The board's sensors → the hash `agent:device:<board>`, and its events.
//!
//! Found at run time below a root that a test can replace, and looked for again every minute:
//! paths differ by release and by boot. Some are slow (a rail is asked over I2C, about a
//! millisecond), so each second reads one group of them, and the hash is told when all have
//! had their turn. A sensor that was told and is gone is told as `absent`, one that says what
//! cannot be as `stale`.
//!
//! The fields, each there where the board has the sensor; `<x>` is the kernel's own label in lower case:
//!
//! | field | unit |
//! |---|---|
//! | `temp_<zone>_c` | °C: thermal zones and hwmon |
//! | `power_<rail>_mw`, `power_total_mw` | mW: INA3221; the total is `VDD_IN` where there is one, else the sum |
//! | `supply_<name>_{online,mw,type,model}` | USB-C and other supplies |
//! | `gpu_load_percent`, `gpu_freq_mhz`, `gpu_gpc<n>_freq_mhz` | %, MHz; a load that stays at 0 against its clock is `stale` |
//! | `emc_freq_mhz`, `cpu<n>_freq_mhz`, `cpus_online` | MHz of memory and of each cluster of CPUs; `0-7` |
//! | `cpu_percent` | % of all CPUs together |
//! | `memory_{total,available,gpu}_bytes`, `disk_{total,free}_bytes` | bytes; `gpu`: what it holds of the shared memory |
//! | `pressure_{cpu,memory,io}_percent` | % of the last 10 s in which somebody waited |
//! | `fan_pwm`, `fan_rpm` | 0 to 255; turns a minute |
//! | `power_mode` | of nvpmodel |
//! | `cooling_<device>_state`, `throttle_oc<n>_events` | 0 is not throttled; over-current events since the start |
//! | `mmcblk<n>_worn_percent`, `mmcblk<n>_end_of_life` | % in tens; `normal`, `warning`, `urgent` |
//! | `nvme<n>_{worn,spare}_percent`, `nvme<n>_end_of_life` | % of the expected life, of the reserve that is left |
//! | `model`, `serial_number`, `compatible`, `boardids`, `l4t_release`, `boot_id`, `agent_version` | texts |
//! | `heartbeat_ms` | Unix milliseconds of this report |

use std::borrow::Cow;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::board::{self, CpuTimes};
use super::edges::{Edges, Seen};
use super::nvme::Controllers;
use super::sensors::{Sensor, What, read, search};
use crate::handoff::Board;
use crate::record::{Entry, Gauge, Streams, Trim, device_key};

/// Seconds in which every group has its turn.
const ROUND: u64 = 5;

/// Rounds between two searches for sensors.
const SEARCH_EVERY: u64 = 12;

/// Searches between two questions to the disks: ten minutes.
const WEAR_EVERY: u64 = 10;

/// Events that wait for the outbox; beyond it the oldest is dropped, and counted.
const EVENTS: usize = 256;

const ABSENT: &str = "absent";

#[derive(Debug)]
pub struct Device {
    root: PathBuf,
    key: String,
    streams: Arc<Streams>,
    sensors: Vec<Sensor>,
    /// What was read last, by field; a field that was ever there stays, as `absent`.
    fields: Board,
    edges: Edges,
    disks: Controllers,
    events: VecDeque<Entry>,
    cpu: Option<CpuTimes>,
    seconds: u64,
    due: bool,
}

impl Device {
    /// `root` is `/`, `board` the board's name in keys.
    pub fn new(root: &Path, board: &str, trim: Trim) -> Device {
        let mut device = Device {
            root: root.to_owned(),
            key: device_key(board),
            streams: Streams::new(board, trim),
            sensors: Vec::new(),
            fields: Board::new(),
            edges: Edges::default(),
            disks: Controllers::new(root),
            events: VecDeque::new(),
            cpu: None,
            seconds: 0,
            due: false,
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        device.fields.insert("agent_version".into(), version);
        if let Some(id) = device.text("proc/sys/kernel/random/boot_id") {
            device.fields.insert("boot_id".into(), id.trim().to_owned());
        }
        device
    }

    /// A second has passed: the next group of sensors.
    pub fn tick(&mut self, now_ms: u64) {
        if self.seconds.is_multiple_of(ROUND * SEARCH_EVERY) {
            self.sensors = search(&self.root);
            self.tell_lost();
            if self
                .seconds
                .is_multiple_of(ROUND * SEARCH_EVERY * WEAR_EVERY)
            {
                self.disks.ask();
            }
        }
        self.read(self.seconds % ROUND, now_ms);
        match self.seconds % ROUND {
            1 => self.total_power(),
            3 => self.power_mode(now_ms),
            4 => {
                self.read_totals();
                self.read_wear();
                self.fields
                    .insert("heartbeat_ms".into(), now_ms.to_string());
                self.due = true;
            }
            _ => {}
        }
        self.seconds += 1;
    }

    pub fn is_due(&self) -> bool {
        self.due || !self.events.is_empty()
    }

    /// The hash; told until the next round.
    pub fn take(&mut self) -> Option<Gauge> {
        let fields = self.fields.iter();
        std::mem::take(&mut self.due).then(|| Gauge::Hash {
            key: self.key.clone(),
            fields: fields
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        })
    }

    /// What every sensor said last.
    pub fn board(&self) -> &Board {
        &self.fields
    }

    /// The oldest event that was not taken yet.
    pub fn event(&mut self) -> Option<Entry> {
        self.events.pop_front()
    }

    fn read(&mut self, group: u64, now_ms: u64) {
        for sensor in self
            .sensors
            .iter()
            .filter(|it| self::group(&it.what) == group)
        {
            let value = sensor.what.read();
            let seen = match (&sensor.what, value.as_deref().and_then(board::number)) {
                (What::Events(_), Some(count)) => Some(Seen::Counter(&sensor.label, count)),
                (What::Cooling(_), Some(state)) => Some(Seen::Cooling(&sensor.label, state)),
                (What::Rail { .. } | What::Power { .. }, _) => {
                    let over = sensor.what.alarm();
                    over.map(|over| Seen::Rail(&sensor.label, over))
                }
                (_, _) => None,
            };
            if let Some(event) = seen.and_then(|seen| self.edges.see(seen)) {
                let entry = event.entry(&self.streams, now_ms);
                note(&mut self.events, entry);
            }
            put(&mut self.fields, sensor.field.clone().into(), value);
        }
    }

    /// VDD_IN is the whole board where it exists; else the rails are summed.
    fn total_power(&mut self) {
        let value = |field: &str| self.fields.get(field).and_then(|text| board::number(text));
        let mut rails = self.sensors.iter().filter_map(|sensor| match sensor.what {
            What::Rail { .. } | What::Power { .. } => Some(sensor.field.as_str()),
            _ => None,
        });
        let total = match rails.clone().find(|field| *field == "power_vdd_in_mw") {
            Some(field) => value(field),
            None => rails.try_fold(0_i64, |sum, field| sum.checked_add(value(field)?)),
        };
        let total = total.filter(|total| *total > 0).map(text_of);
        put(&mut self.fields, "power_total_mw".into(), total);
    }

    fn power_mode(&mut self, now_ms: u64) {
        let names = self.text("etc/nvpmodel.conf").unwrap_or_default();
        let status = self.text("var/lib/nvpmodel/status");
        let mode = status.and_then(|status| board::power_mode(&status, &names));
        if let Some(mode) = &mode
            && let Some(event) = self.edges.see(Seen::PowerMode(mode))
        {
            let entry = event.entry(&self.streams, now_ms);
            note(&mut self.events, entry);
        }
        put(&mut self.fields, "power_mode".into(), mode);
    }

    /// CPU, memory, disk: of every Linux.
    fn read_totals(&mut self) {
        let now = self
            .text("proc/stat")
            .and_then(|text| board::cpu_times(&text));
        let percent = now
            .zip(self.cpu)
            .and_then(|(now, then)| now.percent_since(then));
        self.cpu = now;
        put(&mut self.fields, "cpu_percent".into(), percent);
        let memory = self.text("proc/meminfo").unwrap_or_default();
        for (field, name) in [
            ("memory_total_bytes", "MemTotal"),
            ("memory_available_bytes", "MemAvailable"),
            ("memory_gpu_bytes", "NvMapMemUsed"),
        ] {
            let bytes = board::memory_bytes(&memory, name).map(text_of);
            let bytes = match (field, bytes) {
                // Kernels that do not say it there.
                ("memory_gpu_bytes", None) => {
                    let clients = self.text("sys/kernel/debug/nvmap/iovmm/clients");
                    clients
                        .and_then(|text| board::total_bytes(&text))
                        .map(text_of)
                }
                (_, bytes) => bytes,
            };
            put(&mut self.fields, field.into(), bytes);
        }
        let disk = rustix::fs::statvfs(&self.root).ok();
        let bytes = |blocks: u64, size: u64| blocks.saturating_mul(size).to_string();
        let total = disk
            .as_ref()
            .map(|disk| bytes(disk.f_blocks, disk.f_frsize));
        let free = disk
            .as_ref()
            .map(|disk| bytes(disk.f_bavail, disk.f_frsize));
        put(&mut self.fields, "disk_total_bytes".into(), total);
        put(&mut self.fields, "disk_free_bytes".into(), free);
    }

    fn read_wear(&mut self) {
        for (disk, smart) in self.disks.said() {
            let end_of_life = smart.map(|smart| match smart.is_failing {
                true => "urgent".to_owned(),
                false => "normal".to_owned(),
            });
            for (what, value) in [
                (
                    "worn_percent",
                    smart.map(|smart| text_of(smart.worn_percent)),
                ),
                (
                    "spare_percent",
                    smart.map(|smart| text_of(smart.spare_percent)),
                ),
                ("end_of_life", end_of_life),
            ] {
                put(&mut self.fields, format!("{disk}_{what}").into(), value);
            }
        }
    }

    /// What the last search no longer found.
    fn tell_lost(&mut self) {
        for (field, value) in &mut self.fields {
            let found = self.sensors.iter().any(|sensor| sensor.field == *field);
            if !found && !is_own(field) {
                *value = ABSENT.to_owned();
            }
        }
    }

    fn text(&self, path: &str) -> Option<String> {
        read(&self.root.join(path))
    }
}

/// Fields that no sensor fills.
fn is_own(field: &str) -> bool {
    let own = [
        "agent_version",
        "boot_id",
        "heartbeat_ms",
        "cpu_percent",
        "power_mode",
        "power_total_mw",
    ];
    let first = ["memory_", "disk_", "nvme"];
    own.contains(&field) || first.iter().any(|first| field.starts_with(first))
}

/// The second of the round in which a sensor has its turn.
fn group(what: &What) -> u64 {
    match what {
        What::Temperature(_) | What::Cooling(_) => 0,
        What::Rail { .. } | What::Power { .. } | What::Supply(..) => 1,
        What::Load { .. } | What::Hertz(_) | What::Kilohertz(_) => 2,
        What::Count(_) | What::Events(_) | What::Pressure(_) => 3,
        What::Text(_) | What::Words(_) | What::Wear(_) | What::EndOfLife(_) => 4,
    }
}

fn note(events: &mut VecDeque<Entry>, entry: Entry) {
    if events.len() >= EVENTS
        && let Some(oldest) = events.pop_front()
    {
        oldest.streams.tally.add_dropped(1);
    }
    events.push_back(entry);
}

fn text_of(value: impl ToString) -> String {
    value.to_string()
}

/// A value, or that it is absent where there was one.
fn put(fields: &mut Board, field: Cow<'static, str>, value: Option<String>) {
    match value {
        Some(value) => drop(fields.insert(field, value)),
        None => {
            if let Some(told) = fields.get_mut(&field) {
                *told = ABSENT.to_owned();
            }
        }
    }
}
