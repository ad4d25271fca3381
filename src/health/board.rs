//! The texts of sysfs and procfs → what the board says of itself.
//!
//! What cannot be read, or is absurd (a zone of a unit without power says -256 °C), is
//! absent: never 0. Units as the kernel's documentation gives them (sysfs-class-hwmon,
//! sysfs-class-thermal, proc_stat(5), proc_meminfo(5)); `load` of a Jetson's GPU is in per
//! mille.

/// m°C → `45.5`.
pub fn celsius(text: &str) -> Option<String> {
    let thousandths = number(text).filter(|value| (-60_000..=200_000).contains(value))?;
    Some(format!("{:.1}", thousandths as f64 / 1000.0))
}

/// mV and mA → mW.
pub fn milliwatts(millivolts: &str, milliamperes: &str) -> Option<i64> {
    Some(number(millivolts)?.checked_mul(number(milliamperes)?)? / 1000)
}

/// Per mille → `12.5`.
pub fn percent_of_load(text: &str) -> Option<String> {
    let load = number(text).filter(|value| (0..=1000).contains(value))?;
    Some(format!("{:.1}", load as f64 / 10.0))
}

/// Hz → MHz.
pub fn megahertz(text: &str) -> Option<String> {
    Some((number(text)? / 1_000_000).to_string())
}

/// A whole number and nothing else.
pub fn number(text: &str) -> Option<i64> {
    text.trim().parse().ok()
}

/// Clock ticks of all CPUs together since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTimes {
    pub busy: u64,
    pub all: u64,
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
pub fn cpu_times(text: &str) -> Option<CpuTimes> {
    let mut fields = text.lines().next()?.split_ascii_whitespace();
    if fields.next() != Some("cpu") {
        return None;
    }
    // Guest times are in user and nice already.
    let ticks: Vec<u64> = fields
        .take(8)
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    let idle = ticks.get(3)?.checked_add(*ticks.get(4)?)?;
    let all = ticks
        .iter()
        .try_fold(0_u64, |sum, ticks| sum.checked_add(*ticks))?;
    Some(CpuTimes {
        busy: all - idle,
        all,
    })
}

impl CpuTimes {
    /// Of all CPUs, between two readings; `None` where no tick passed.
    pub fn percent_since(self, earlier: CpuTimes) -> Option<String> {
        let all = self.all.checked_sub(earlier.all).filter(|all| *all > 0)?;
        let busy = self.busy.saturating_sub(earlier.busy);
        Some(format!("{:.1}", 100.0 * busy as f64 / all as f64))
    }
}

/// One line of `/proc/meminfo`, in bytes.
pub fn memory_bytes(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = value.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// A sensor's label as part of a field's name: `CPU-therm` → `cpu_therm`.
pub fn field_name(before: &str, label: &str, after: &str) -> Option<String> {
    let word = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_ascii_lowercase(),
        false => '_',
    };
    let label: String = label
        .trim_matches(['\0', '\n', ' '])
        .chars()
        .map(word)
        .collect();
    (!label.is_empty()).then(|| format!("{before}{label}{after}"))
}

/// Names of a Jetson's GPU in the device tree.
pub fn is_gpu(node_name: &str) -> bool {
    let name = node_name.trim_matches(['\0', '\n']);
    ["gv11b", "gp10b", "ga10b", "gb10b", "gpu"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_their_units() {
        assert_eq!(celsius("45468\n").as_deref(), Some("45.5"));
        assert_eq!(celsius("-256000\n"), None);
        assert_eq!(celsius("N/A"), None);
        assert_eq!(milliwatts("19072\n", "488\n"), Some(9307));
        assert_eq!(percent_of_load("998\n").as_deref(), Some("99.8"));
        assert_eq!(percent_of_load("4294967295\n"), None);
        assert_eq!(megahertz("1300500000\n").as_deref(), Some("1300"));
    }

    #[test]
    fn cpu_and_memory() {
        let text = "cpu  100 5 50 800 20 3 2 20 7 0\ncpu0 1 1 1 1\n";
        let first = cpu_times(text).unwrap();
        let expected = CpuTimes {
            busy: 180,
            all: 1000,
        };
        assert_eq!(first, expected);
        let later = CpuTimes {
            busy: 230,
            all: 1200,
        };
        assert_eq!(later.percent_since(first).as_deref(), Some("25.0"));
        assert_eq!(first.percent_since(first), None);
        assert_eq!(cpu_times("intr 1 2"), None);
        let text = "MemTotal:        7802692 kB\nMemFree:  1 kB\nMemAvailable:    5211816 kB\n";
        assert_eq!(memory_bytes(text, "MemTotal"), Some(7_802_692 * 1024));
        assert_eq!(memory_bytes(text, "MemAvailable"), Some(5_211_816 * 1024));
        assert_eq!(memory_bytes(text, "NvMapMemUsed"), None);
    }

    #[test]
    fn names() {
        let name = |label| field_name("temp_", label, "");
        assert_eq!(name("CPU-therm\n").as_deref(), Some("temp_cpu_therm"));
        assert_eq!(name("\n"), None);
        assert!(is_gpu("ga10b\0") && !is_gpu("nvjpg\0"));
    }
}
