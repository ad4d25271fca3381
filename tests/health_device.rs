//! The board's sensors, below a root made for the test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use jettison_agent::health::device::Device;
use jettison_agent::record::Gauge;

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
fn round(device: &mut Device) -> BTreeMap<&'static str, String> {
    for second in 0..5 {
        assert!(!device.is_due());
        device.tick(1000 + second);
    }
    match device.take() {
        Some(Gauge::Hash { key, fields }) => {
            assert_eq!(key, "agent:device:orin-7");
            fields.into_iter().collect()
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

    let mut device = Device::new(&root.0, "orin-7");
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
        .map(|(name, value)| (*name, value.as_str()))
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
    let mut device = Device::new(&root.0, "orin-7");
    let fields = round(&mut device);
    let names: Vec<_> = fields.keys().copied().collect();
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
