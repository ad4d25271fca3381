//! The board's sensors → the hash `agent:device:<board>`.
//!
//! Found at run time below a root that a test can replace, and looked for again every minute:
//! paths differ by release and by boot. Some are slow (a rail is asked over I2C, about a
//! millisecond), so each second reads one group of them, and the hash is told when all have
//! had their turn. A sensor that was told and is gone is told as `absent`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::board::{self, CpuTimes};
use crate::record::{Gauge, device_key};

/// Seconds in which every group has its turn.
const ROUND: u64 = 5;

/// Rounds between two searches for sensors.
const SEARCH_EVERY: u64 = 12;

const ABSENT: &str = "absent";

#[derive(Debug)]
pub struct Device {
    root: PathBuf,
    key: String,
    sensors: Vec<Sensor>,
    /// What was read last, by field; a field that was ever there stays, as `absent`.
    fields: BTreeMap<&'static str, String>,
    cpu: Option<CpuTimes>,
    seconds: u64,
    due: bool,
}

#[derive(Debug)]
struct Sensor {
    field: &'static str,
    what: What,
}

#[derive(Debug)]
enum What {
    Temperature(PathBuf),
    /// Voltage and current.
    Rail(PathBuf, PathBuf),
    /// Milliwatts as they are.
    Power(PathBuf),
    Load(PathBuf),
    Frequency(PathBuf),
    /// Fans and event counters.
    Count(PathBuf),
}

impl Device {
    /// `root` is `/`, `board` the board's name in keys.
    pub fn new(root: &Path, board: &str) -> Device {
        let mut device = Device {
            root: root.to_owned(),
            key: device_key(board),
            sensors: Vec::new(),
            fields: BTreeMap::new(),
            cpu: None,
            seconds: 0,
            due: false,
        };
        device
            .fields
            .insert("agent_version", env!("CARGO_PKG_VERSION").to_owned());
        if let Some(id) = device.text("proc/sys/kernel/random/boot_id") {
            device.fields.insert("boot_id", id.trim().to_owned());
        }
        device
    }

    /// A second has passed: the next group of sensors.
    pub fn tick(&mut self, now_ms: u64) {
        if self.seconds.is_multiple_of(ROUND * SEARCH_EVERY) {
            self.sensors = self.search();
        }
        match self.seconds % ROUND {
            0 => self.read(|what| matches!(what, What::Temperature(_))),
            1 => self.read(|what| matches!(what, What::Rail(..) | What::Power(_))),
            2 => self.read(|what| matches!(what, What::Load(_) | What::Frequency(_))),
            3 => self.read(|what| matches!(what, What::Count(_))),
            _ => {
                self.read_totals();
                self.fields.insert("heartbeat_ms", now_ms.to_string());
                self.due = true;
            }
        }
        self.seconds += 1;
    }

    pub fn is_due(&self) -> bool {
        self.due
    }

    /// The hash; told until the next round.
    pub fn take(&mut self) -> Option<Gauge> {
        let fields = self
            .fields
            .iter()
            .map(|(name, value)| (*name, value.clone()));
        std::mem::take(&mut self.due).then(|| Gauge::Hash {
            key: self.key.clone(),
            fields: fields.collect(),
        })
    }

    fn read(&mut self, group: impl Fn(&What) -> bool) {
        for sensor in self.sensors.iter().filter(|sensor| group(&sensor.what)) {
            put(&mut self.fields, sensor.field, sensor.what.read());
        }
        let mut power = self.sensors.iter().filter_map(|sensor| match sensor.what {
            What::Rail(..) | What::Power(_) => Some(sensor.field),
            What::Temperature(_) | What::Load(_) | What::Frequency(_) | What::Count(_) => None,
        });
        // VDD_IN is the whole board where it exists; else the rails are summed.
        let total = match power.clone().find(|field| *field == "power_vdd_in_mw") {
            Some(field) => self
                .fields
                .get(field)
                .and_then(|value| board::number(value)),
            None => power.try_fold(0_i64, |sum, field| {
                sum.checked_add(board::number(self.fields.get(field)?)?)
            }),
        };
        put(
            &mut self.fields,
            "power_total_mw",
            total.filter(|total| *total > 0).map(text_of),
        );
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
        put(&mut self.fields, "cpu_percent", percent);
        let memory = self.text("proc/meminfo").unwrap_or_default();
        for (field, name) in [
            ("memory_total_bytes", "MemTotal"),
            ("memory_available_bytes", "MemAvailable"),
            ("memory_gpu_bytes", "NvMapMemUsed"),
        ] {
            put(
                &mut self.fields,
                field,
                board::memory_bytes(&memory, name).map(text_of),
            );
        }
        let disk = rustix::fs::statvfs(&self.root).ok();
        let bytes = |blocks: u64, size: u64| blocks.saturating_mul(size).to_string();
        let total = disk
            .as_ref()
            .map(|disk| bytes(disk.f_blocks, disk.f_frsize));
        let free = disk
            .as_ref()
            .map(|disk| bytes(disk.f_bavail, disk.f_frsize));
        put(&mut self.fields, "disk_total_bytes", total);
        put(&mut self.fields, "disk_free_bytes", free);
    }

    fn text(&self, path: &str) -> Option<String> {
        read(&self.root.join(path))
    }

    /// Every sensor there is now.
    fn search(&self) -> Vec<Sensor> {
        let mut found = Vec::new();
        for zone in folders(&self.root.join("sys/class/thermal"), "thermal_zone") {
            let label = read(&zone.join("type"));
            self.add(
                &mut found,
                "temp_",
                label,
                "_c",
                What::Temperature(zone.join("temp")),
            );
        }
        self.search_rails(&mut found);
        for devfreq in folders(&self.root.join("sys/class/devfreq"), "") {
            let name = read(&devfreq.join("device/of_node/name"));
            if name.is_some_and(|name| board::is_gpu(&name)) {
                let gpu = || Some("gpu".to_owned());
                let load = What::Load(devfreq.join("device/load"));
                self.add(&mut found, "", gpu(), "_load_percent", load);
                let frequency = What::Frequency(devfreq.join("cur_freq"));
                self.add(&mut found, "", gpu(), "_freq_mhz", frequency);
            }
        }
        for hwmon in folders(&self.root.join("sys/class/hwmon"), "hwmon") {
            let name = read(&hwmon.join("name")).unwrap_or_default();
            let fan = |text: &str| Some(text.to_owned());
            for (file, label) in [("pwm1", "pwm"), ("rpm", "rpm"), ("fan1_input", "rpm")] {
                let path = hwmon.join(file);
                if path.exists() && (file != "pwm1" || name.trim() == "pwmfan") {
                    self.add(&mut found, "fan_", fan(label), "", What::Count(path));
                }
            }
            for counter in folders(&hwmon, "oc") {
                let file = counter.file_name().and_then(|file| file.to_str());
                let number = file.and_then(|file| file.strip_suffix("_event_cnt"));
                let events = number.map(str::to_owned);
                self.add(
                    &mut found,
                    "throttle_",
                    events,
                    "_events",
                    What::Count(counter),
                );
            }
        }
        found
    }

    fn search_rails(&self, found: &mut Vec<Sensor>) {
        for device in folders(&self.root.join("sys/bus/i2c/devices"), "") {
            if !read(&device.join("name")).is_some_and(|name| name.contains("ina3221")) {
                continue;
            }
            for hwmon in folders(&device.join("hwmon"), "hwmon") {
                // Channel 7 is the sum of the shunt voltages.
                for channel in 1..7 {
                    let label = read(&hwmon.join(format!("in{channel}_label")));
                    let voltage = hwmon.join(format!("in{channel}_input"));
                    let current = hwmon.join(format!("curr{channel}_input"));
                    let connected = |label: &String| !label.contains("NC");
                    let rail = What::Rail(voltage, current);
                    self.add(found, "power_", label.filter(connected), "_mw", rail);
                }
            }
            // JetPack 4.
            for iio in folders(&device, "iio:device") {
                for channel in 0..4 {
                    let label = read(&iio.join(format!("rail_name_{channel}")));
                    let power = What::Power(iio.join(format!("in_power{channel}_input")));
                    self.add(found, "power_", label, "_mw", power);
                }
            }
        }
    }

    /// Notes a sensor; one without a label, or with the label of another, is left out.
    fn add(
        &self,
        found: &mut Vec<Sensor>,
        before: &str,
        label: Option<String>,
        after: &str,
        what: What,
    ) {
        let name = label.and_then(|label| board::field_name(before, &label, after));
        let Some(name) = name else { return };
        if found.iter().any(|sensor| sensor.field == name) {
            return;
        }
        let known = self.fields.keys().find(|known| **known == name).copied();
        let older = self
            .sensors
            .iter()
            .map(|sensor| sensor.field)
            .find(|field| *field == name);
        // Once per name for the life of the agent: a board has a few dozen.
        let field = known
            .or(older)
            .unwrap_or_else(|| Box::leak(name.into_boxed_str()));
        found.push(Sensor { field, what });
    }
}

impl What {
    fn read(&self) -> Option<String> {
        match self {
            What::Temperature(path) => board::celsius(&read(path)?),
            What::Rail(voltage, current) => {
                board::milliwatts(&read(voltage)?, &read(current)?).map(text_of)
            }
            What::Power(path) | What::Count(path) => board::number(&read(path)?).map(text_of),
            What::Load(path) => board::percent_of_load(&read(path)?),
            What::Frequency(path) => board::megahertz(&read(path)?),
        }
    }
}

fn text_of(value: impl ToString) -> String {
    value.to_string()
}

/// A value, or that it is absent where there was one.
fn put(fields: &mut BTreeMap<&'static str, String>, field: &'static str, value: Option<String>) {
    match value {
        Some(value) => drop(fields.insert(field, value)),
        None => {
            if let Some(told) = fields.get_mut(field) {
                *told = ABSENT.to_owned();
            }
        }
    }
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// What a folder holds whose name starts so, in order.
fn folders(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let wanted = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(prefix))
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = paths.filter(wanted).collect();
    found.sort_unstable();
    found
}
