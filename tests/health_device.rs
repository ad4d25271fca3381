//! The board's sensors, below a root made for the test.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use jettison_agent::health::device::Device;
use jettison_agent::record::{Gauge, StreamKind, Trim};

struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Root {
        let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Root(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        fs::write(path, text).unwrap();
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The hash after another round.
fn round(device: &mut Device) -> BTreeMap<String, String> {
    for second in 0..5 {
        device.tick(1000 + second);
    }
    match device.take() {
        Some(Gauge::Hash { key, fields }) => {
            assert_eq!(key, "agent:device:orin-7");
            let field = |(name, value): (Cow<'static, str>, String)| (name.into_owned(), value);
            fields.into_iter().map(field).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_board_of_jetpack_6() {
    let root = Root::new("board");
    for (zone, name, temp) in [(0, "cpu-thermal", "45468"), (1, "cv0-thermal", "-256000")] {
        root.write(
            &format!("sys/class/thermal/thermal_zone{zone}/type"),
            &format!("{name}\n"),
        );
        root.write(
            &format!("sys/class/thermal/thermal_zone{zone}/temp"),
            &format!("{temp}\n"),
        );
    }
    let ina = "sys/bus/i2c/devices/1-0040";
    root.write(&format!("{ina}/name"), "ina3221\n");
    for (channel, label, millivolts, milliamperes) in [
        (1, "VDD_IN", "5000", "1200"),
        (2, "VDD_CPU_GPU_CV", "5000", "300"),
        (3, "NC", "0", "0"),
        (7, "sum of shunt voltages", "1", "1"),
    ] {
        let hwmon = format!("{ina}/hwmon/hwmon1");
        root.write(&format!("{hwmon}/in{channel}_label"), &format!("{label}\n"));
        root.write(
            &format!("{hwmon}/in{channel}_input"),
            &format!("{millivolts}\n"),
        );
        root.write(
            &format!("{hwmon}/curr{channel}_input"),
            &format!("{milliamperes}\n"),
        );
    }
    let gpu = "sys/class/devfreq/17000000.gpu";
    root.write(&format!("{gpu}/device/of_node/name"), "ga10b\0");
    root.write(&format!("{gpu}/device/load"), "125\n");
    root.write(&format!("{gpu}/cur_freq"), "306000000\n");
    root.write(
        "sys/class/devfreq/15340000.vic/device/of_node/name",
        "vic\0",
    );
    root.write("sys/class/devfreq/15340000.vic/device/load", "1\n");
    root.write("sys/class/hwmon/hwmon3/name", "pwmfan\n");
    root.write("sys/class/hwmon/hwmon3/pwm1", "77\n");
    root.write("sys/class/hwmon/hwmon4/name", "soctherm_oc\n");
    root.write("sys/class/hwmon/hwmon4/oc1_event_cnt", "3\n");
    root.write("sys/class/hwmon/hwmon4/oc1_throt_en", "1\n");
    root.write("proc/stat", "cpu 100 0 0 100 0 0 0 0 0 0\n");
    root.write(
        "proc/meminfo",
        "MemTotal: 8 kB\nMemAvailable: 4 kB\nNvMapMemUsed: 2 kB\n",
    );
    root.write("proc/sys/kernel/random/boot_id", "5f1e\n");

    let mut device = Device::new(&root.0, "orin-7", Trim { max_len: 1000 });
    let first = round(&mut device);
    let expected = [
        ("agent_version", env!("CARGO_PKG_VERSION")),
        ("boot_id", "5f1e"),
        ("fan_pwm", "77"),
        ("gpu_freq_mhz", "306"),
        ("gpu_load_percent", "12.5"),
        ("heartbeat_ms", "1004"),
        ("memory_available_bytes", "4096"),
        ("memory_gpu_bytes", "2048"),
        ("memory_total_bytes", "8192"),
        ("power_total_mw", "6000"),
        ("power_vdd_cpu_gpu_cv_mw", "1500"),
        ("power_vdd_in_mw", "6000"),
        ("temp_cpu_thermal_c", "45.5"),
        ("throttle_oc1_events", "3"),
    ];
    let seen: Vec<_> = first
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| !name.starts_with("disk_"))
        .collect();
    assert_eq!(seen, expected);
    assert_eq!(first.len(), expected.len() + 2);

    // A sensor vanishes, a counter moves.
    fs::remove_file(root.0.join("sys/class/thermal/thermal_zone0/temp")).unwrap();
    root.write("sys/class/hwmon/hwmon4/oc1_event_cnt", "4\n");
    root.write("proc/stat", "cpu 150 0 0 250 0 0 0 0 0 0\n");
    let second = round(&mut device);
    assert_eq!(second["temp_cpu_thermal_c"], "absent");
    assert_eq!(second["throttle_oc1_events"], "4");
    assert_eq!(second["cpu_percent"], "25.0");
}

#[test]
fn a_machine_without_sensors_says_nothing_of_them() {
    let root = Root::new("bare");
    let mut device = Device::new(&root.0, "orin-7", Trim { max_len: 1000 });
    let fields = round(&mut device);
    let names: Vec<_> = fields.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "agent_version",
            "disk_free_bytes",
            "disk_total_bytes",
            "heartbeat_ms"
        ]
    );
}

/// A board as it was recorded: `path: text`, one file a line.
fn lay(root: &Root, recorded: &str) {
    for line in recorded.lines().filter(|line| !line.starts_with('#')) {
        let (path, text) = line.split_once(": ").expect("path: text");
        root.write(path, &unescape(text));
    }
}

fn unescape(text: &str) -> String {
    let text = text.replace("\\n", "\n").replace("\\0", "\0");
    match text.ends_with('\0') {
        true => text,
        false => text + "\n",
    }
}

/// Every event that waits, as `event name=value …`.
fn events(device: &mut Device) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(entry) = device.event() {
        let key = entry.streams.key(entry.kind);
        assert_eq!(key, "logs:device:orin-7:events");
        assert_eq!(entry.kind, StreamKind::Events);
        assert!(!entry.message.is_empty());
        let fields: Vec<String> = entry
            .fields
            .iter()
            .map(|(name, value)| match *name {
                "event" => String::from_utf8_lossy(value).into_owned(),
                name => format!("{name}={}", String::from_utf8_lossy(value)),
            })
            .collect();
        told.push(fields.join(" "));
    }
    told
}

#[test]
fn an_orin_as_documented() {
    let root = Root::new("orin");
    lay(&root, include_str!("board/orin.txt"));
    let mut device = Device::new(&root.0, "orin-7", Trim { max_len: 1000 });
    let fields = round(&mut device);
    let expected = [
        ("agent_version", env!("CARGO_PKG_VERSION")),
        ("boot_id", "5f1e"),
        ("compatible", "nvidia,p3737-0000+p3701-0000 nvidia,tegra234"),
        ("cooling_cpufreq_cpu0_state", "0"),
        ("cooling_gpu_throttle_alert_state", "0"),
        ("cpu0_freq_mhz", "1728"),
        ("cpu4_freq_mhz", "729"),
        ("cpus_online", "0-7"),
        ("emc_freq_mhz", "2133"),
        ("fan_pwm", "77"),
        ("fan_rpm", "1453"),
        ("gpu_freq_mhz", "612"),
        ("gpu_gpc0_freq_mhz", "611"),
        ("gpu_load_percent", "12.5"),
        ("heartbeat_ms", "1004"),
        (
            "l4t_release",
            "# R36 (release), REVISION: 3.0, GCID: 1, BOARD: generic, EABI: aarch64",
        ),
        ("memory_available_bytes", "25600000000"),
        ("memory_gpu_bytes", "1048576"),
        ("memory_total_bytes", "31434473472"),
        ("mmcblk0_end_of_life", "normal"),
        ("mmcblk0_worn_percent", "20"),
        ("model", "NVIDIA Jetson AGX Orin Developer Kit"),
        ("power_mode", "MODE_30W"),
        ("power_total_mw", "8298"),
        ("power_vdd_cpu_cv_mw", "762"),
        ("power_vdd_gpu_soc_mw", "3051"),
        ("power_vin_sys_5v0_mw", "4485"),
        ("pressure_cpu_percent", "1.5"),
        ("pressure_io_percent", "0.3"),
        ("pressure_memory_percent", "0.0"),
        ("serial_number", "1420123456789"),
        ("supply_ucsi_source_psy_1_00081_mw", "30000"),
        ("supply_ucsi_source_psy_1_00081_online", "1"),
        ("supply_ucsi_source_psy_1_00081_type", "USB"),
        ("temp_cpu_thermal_c", "48.2"),
        ("temp_gpu_thermal_c", "45.0"),
        ("temp_tj_thermal_c", "48.2"),
        ("throttle_oc1_events", "0"),
        ("throttle_oc3_events", "12"),
    ];
    let seen: Vec<_> = fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| !name.starts_with("disk_"))
        .collect();
    assert_eq!(seen, expected);
    assert_eq!(events(&mut device), Vec::<String>::new());
}

#[test]
fn what_changes_on_an_orin_is_told_once() {
    let root = Root::new("orin-changes");
    lay(&root, include_str!("board/orin.txt"));
    let mut device = Device::new(&root.0, "orin-7", Trim { max_len: 1000 });
    round(&mut device);
    let changes = include_str!("board/orin_changes.txt");
    let mut rounds = 0;
    for change in changes.split("\nround: ").skip(1) {
        let (title, lines) = change.split_once('\n').expect("a title");
        let of = |mark: &'static str| {
            lines
                .lines()
                .filter_map(move |line| line.strip_prefix(mark))
        };
        for line in of("= ") {
            let (path, text) = line.split_once(": ").expect("path: text");
            root.write(path, &unescape(text));
        }
        for path in of("- ") {
            fs::remove_file(root.0.join(path)).expect(path);
        }
        let fields = round(&mut device);
        let expected: Vec<&str> = of("> ").collect();
        assert_eq!(events(&mut device), expected, "{title}");
        for line in lines.lines().filter(|line| !line.is_empty()) {
            if !line.starts_with(['=', '-', '>']) {
                let (name, value) = line.split_once(' ').expect("field value");
                assert_eq!(fields[name], value, "{title}");
            }
        }
        rounds += 1;
    }
    assert_eq!(rounds, 8);
}
