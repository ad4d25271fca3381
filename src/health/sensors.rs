//! sysfs and debugfs → the sensors that are there now, and what each says.
//!
//! Paths differ by release and by boot, so nothing is taken for granted: a folder is searched,
//! a name is read. Sources: hwmon, ina3221, thermal, devfreq, cpufreq and power_supply of the
//! kernel's documentation; the rest as NVIDIA's developer guide for Jetson Orin (r36) and
//! jetson_stats have it. Root only: what stands in debugfs.

use std::path::{Path, PathBuf};

use super::board;

/// A sensor and the field of the hash it fills.
#[derive(Debug)]
pub struct Sensor {
    pub field: String,
    /// As the kernel names it.
    pub label: String,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    Temperature(PathBuf),
    /// Voltage and current.
    Rail {
        voltage: PathBuf,
        current: PathBuf,
        limits: Limits,
    },
    /// Milliwatts as they are.
    Power {
        power: PathBuf,
        current: PathBuf,
        limits: Limits,
    },
    /// µV and µA.
    Supply(PathBuf, PathBuf),
    /// A GPU's load beside its clock's folder: the load is known to latch at 0.
    Load {
        load: PathBuf,
        devfreq: PathBuf,
    },
    Hertz(PathBuf),
    Kilohertz(PathBuf),
    /// Fans and the like.
    Count(PathBuf),
    /// Over-current events since the start.
    Events(PathBuf),
    /// The state of a cooling device; 0 is none.
    Cooling(PathBuf),
    /// A line as it stands.
    Text(PathBuf),
    /// Texts of the device tree.
    Words(PathBuf),
    /// Wear of an eMMC, in per cent.
    Wear(PathBuf),
    EndOfLife(PathBuf),
    Pressure(PathBuf),
}

/// By which a rail may be over its limit.
#[derive(Debug)]
pub struct Limits {
    /// The driver says it: not 0.
    alarms: Vec<PathBuf>,
    /// The driver gives a current that is not to be exceeded, in the unit of the current; 0 is none.
    most: Vec<PathBuf>,
}

/// Every sensor there is now below `root`.
pub fn search(root: &Path) -> Vec<Sensor> {
    let mut found = Found(Vec::new());
    temperatures(root, &mut found);
    rails(root, &mut found);
    supplies(root, &mut found);
    clocks(root, &mut found);
    fans_and_alarms(root, &mut found);
    cooling(root, &mut found);
    slow(root, &mut found);
    found.0
}

struct Found(Vec<Sensor>);

impl Found {
    /// One without a label, or with the label of another, is left out.
    fn add(&mut self, before: &str, label: Option<String>, after: &str, what: What) {
        let label = label.unwrap_or_default();
        let label = label.trim_matches(['\0', '\n', ' ']);
        let Some(field) = board::field_name(before, label, after) else {
            return;
        };
        if !self.0.iter().any(|sensor| sensor.field == field) {
            self.0.push(Sensor {
                field,
                label: label.to_owned(),
                what,
            });
        }
    }

    /// One whose field is its name, where its file is there.
    fn fixed(&mut self, field: &str, path: PathBuf, what: impl Fn(PathBuf) -> What) {
        if path.exists() {
            self.add("", Some(field.to_owned()), "", what(path));
        }
    }
}

fn temperatures(root: &Path, found: &mut Found) {
    for zone in folders(&root.join("sys/class/thermal"), "thermal_zone") {
        let temp = What::Temperature(zone.join("temp"));
        found.add("temp_", read(&zone.join("type")), "_c", temp);
    }
    for hwmon in folders(&root.join("sys/class/hwmon"), "hwmon") {
        for label in folders(&hwmon, "temp") {
            let name = name_of(&label);
            if let Some(sensor) = name.strip_suffix("_label") {
                let temp = What::Temperature(hwmon.join(format!("{sensor}_input")));
                found.add("temp_", read(&label), "_c", temp);
            }
        }
    }
}

fn rails(root: &Path, found: &mut Found) {
    for device in folders(&root.join("sys/bus/i2c/devices"), "") {
        if !read(&device.join("name")).is_some_and(|name| name.contains("ina3221")) {
            continue;
        }
        for hwmon in folders(&device.join("hwmon"), "hwmon") {
            // Channel 7 is the sum of the shunt voltages.
            for channel in 1..7 {
                let file = |name: &str| hwmon.join(name);
                let label = read(&file(&format!("in{channel}_label")));
                let of = |names: [&str; 2]| {
                    names
                        .map(|name| file(&format!("curr{channel}_{name}")))
                        .into()
                };
                let rail = What::Rail {
                    voltage: file(&format!("in{channel}_input")),
                    current: file(&format!("curr{channel}_input")),
                    limits: Limits {
                        alarms: of(["max_alarm", "crit_alarm"]),
                        most: of(["max", "crit"]),
                    },
                };
                let connected = |label: &String| !label.contains("NC");
                found.add("power_", label.filter(connected), "_mw", rail);
            }
        }
        // JetPack 4.
        for iio in folders(&device, "iio:device") {
            for channel in 0..4 {
                let label = read(&iio.join(format!("rail_name_{channel}")));
                let most = ["warn", "crit"]
                    .map(|name| iio.join(format!("{name}_current_limit_{channel}")));
                let power = What::Power {
                    power: iio.join(format!("in_power{channel}_input")),
                    current: iio.join(format!("in_current{channel}_input")),
                    limits: Limits {
                        alarms: Vec::new(),
                        most: most.into(),
                    },
                };
                found.add("power_", label, "_mw", power);
            }
        }
    }
}

fn supplies(root: &Path, found: &mut Found) {
    for supply in folders(&root.join("sys/class/power_supply"), "") {
        let name = || Some(name_of(&supply).to_owned());
        let online = What::Count(supply.join("online"));
        found.add("supply_", name(), "_online", online);
        let power = What::Supply(supply.join("voltage_now"), supply.join("current_now"));
        found.add("supply_", name(), "_mw", power);
        for (file, after) in [("type", "_type"), ("model_name", "_model")] {
            if supply.join(file).exists() {
                found.add("supply_", name(), after, What::Text(supply.join(file)));
            }
        }
    }
}

fn clocks(root: &Path, found: &mut Found) {
    for devfreq in folders(&root.join("sys/class/devfreq"), "") {
        let name = read(&devfreq.join("device/of_node/name"));
        if name.is_some_and(|name| board::is_gpu(&name)) {
            let load = devfreq.join("device/load");
            found.fixed("gpu_load_percent", load, |load| What::Load {
                load,
                devfreq: devfreq.clone(),
            });
            found.fixed("gpu_freq_mhz", devfreq.join("cur_freq"), What::Hertz);
        }
    }
    let debug = root.join("sys/kernel/debug/bpmp/debug/clk");
    found.fixed("emc_freq_mhz", debug.join("emc/rate"), What::Hertz);
    for gpc in folders(&debug, "nafll_gpc") {
        let number = name_of(&gpc).strip_prefix("nafll_").map(str::to_owned);
        let rate = What::Hertz(gpc.join("pto_counter"));
        found.add("gpu_", number, "_freq_mhz", rate);
    }
    for policy in folders(&root.join("sys/devices/system/cpu/cpufreq"), "policy") {
        let number = name_of(&policy).strip_prefix("policy").map(str::to_owned);
        let rate = What::Kilohertz(policy.join("scaling_cur_freq"));
        found.add("cpu", number, "_freq_mhz", rate);
    }
    let online = root.join("sys/devices/system/cpu/online");
    found.fixed("cpus_online", online, What::Text);
}

fn fans_and_alarms(root: &Path, found: &mut Found) {
    for hwmon in folders(&root.join("sys/class/hwmon"), "hwmon") {
        let name = read(&hwmon.join("name")).unwrap_or_default();
        if name.trim() == "pwmfan" {
            found.fixed("fan_pwm", hwmon.join("pwm1"), What::Count);
        }
        // The tachometer is a node of its own.
        for file in ["rpm", "fan1_input"] {
            found.fixed("fan_rpm", hwmon.join(file), What::Count);
        }
        for counter in folders(&hwmon, "oc") {
            let label = name_of(&counter).strip_suffix("_event_cnt");
            let label = label.map(str::to_owned);
            found.add("throttle_", label, "_events", What::Events(counter));
        }
    }
}

fn cooling(root: &Path, found: &mut Found) {
    for device in folders(&root.join("sys/class/thermal"), "cooling_device") {
        let label = read(&device.join("type")).filter(|label| !label.contains("fan"));
        let state = What::Cooling(device.join("cur_state"));
        found.add("cooling_", label, "_state", state);
    }
}

/// What changes rarely.
fn slow(root: &Path, found: &mut Found) {
    for block in folders(&root.join("sys/block"), "mmcblk") {
        let (label, device) = (Some(name_of(&block).to_owned()), block.join("device"));
        if device.join("life_time").exists() {
            let wear = What::Wear(device.join("life_time"));
            found.add("", label.clone(), "_worn_percent", wear);
            let end = What::EndOfLife(device.join("pre_eol_info"));
            found.add("", label, "_end_of_life", end);
        }
    }
    for kind in ["cpu", "memory", "io"] {
        let field = format!("pressure_{kind}_percent");
        let path = root.join("proc/pressure").join(kind);
        found.fixed(&field, path, What::Pressure);
    }
    let tree = root.join("sys/firmware/devicetree/base");
    for (field, file) in [
        ("model", "model"),
        ("serial_number", "serial-number"),
        ("compatible", "compatible"),
        ("boardids", "nvidia,boardids"),
    ] {
        found.fixed(field, tree.join(file), What::Words);
    }
    found.fixed("l4t_release", root.join("etc/nv_tegra_release"), What::Text);
}

impl What {
    /// Its value; `None` where it is absent, or absurd.
    pub fn read(&self) -> Option<String> {
        match self {
            What::Temperature(path) => board::celsius(&read(path)?),
            What::Rail {
                voltage, current, ..
            } => board::milliwatts(&read(voltage)?, &read(current)?).map(|mw| mw.to_string()),
            What::Supply(voltage, current) => {
                board::milliwatts_of_micro(&read(voltage)?, &read(current)?)
                    .map(|mw| mw.to_string())
            }
            What::Load { load, devfreq } => {
                let said = board::percent_of_load(&read(load)?)?;
                let clock = |file| read(&devfreq.join(file)).unwrap_or_default();
                let (governor, now, least) =
                    (clock("governor"), clock("cur_freq"), clock("min_freq"));
                match board::is_latched(&said, &governor, &now, &least) {
                    true => Some("stale".to_owned()),
                    false => Some(said),
                }
            }
            What::Hertz(path) => board::megahertz(&read(path)?),
            What::Kilohertz(path) => {
                board::number(&read(path)?).map(|khz| (khz / 1000).to_string())
            }
            What::Power { power: path, .. }
            | What::Count(path)
            | What::Events(path)
            | What::Cooling(path) => board::number(&read(path)?).map(|value| value.to_string()),
            What::Text(path) => board::line(&read(path)?),
            What::Words(path) => board::words(&read(path)?),
            What::Wear(path) => board::worn_percent(&read(path)?),
            What::EndOfLife(path) => board::end_of_life(&read(path)?).map(str::to_owned),
            What::Pressure(path) => board::pressure(&read(path)?),
        }
    }

    /// Whether a rail is over one of its limits; `None` where nothing says so.
    pub fn alarm(&self) -> Option<bool> {
        let (What::Rail {
            current, limits, ..
        }
        | What::Power {
            current, limits, ..
        }) = self
        else {
            return None;
        };
        let number = |path: &PathBuf| board::number(&read(path)?);
        let alarms = limits
            .alarms
            .iter()
            .filter_map(number)
            .map(|alarm| alarm > 0);
        if let Some(said) = alarms.reduce(|one, other| one || other) {
            return Some(said);
        }
        let current = number(current)?;
        let most = limits
            .most
            .iter()
            .filter_map(number)
            .filter(|most| *most > 0)
            .min()?;
        Some(current > most)
    }
}

pub fn read(path: &Path) -> Option<String> {
    // Text of the device tree ends with NUL, and may be anything.
    let bytes = std::fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn name_of(path: &Path) -> &str {
    path.file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

/// What a folder holds whose name starts so, in order.
fn folders(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = paths
        .filter(|path| name_of(path).starts_with(prefix))
        .collect();
    found.sort_unstable();
    found
}
