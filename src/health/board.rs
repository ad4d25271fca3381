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

/// µV and µA → mW.
pub fn milliwatts_of_micro(microvolts: &str, microamperes: &str) -> Option<i64> {
    let product = i128::from(number(microvolts)?) * i128::from(number(microamperes)?);
    i64::try_from(product / 1_000_000_000).ok()
}

/// A load of 0 that cannot be true: a governor that follows the load keeps an idle GPU at its
/// least frequency.
pub fn is_latched(percent: &str, governor: &str, frequency: &str, least: &str) -> bool {
    let follows = !matches!(
        governor.trim(),
        "" | "performance" | "userspace" | "powersave"
    );
    let above = match (number(frequency), number(least)) {
        (Some(frequency), Some(least)) => frequency > least,
        (_, _) => false,
    };
    percent == "0.0" && follows && above
}

/// The first line, without its end; `None` where it is empty.
pub fn line(text: &str) -> Option<String> {
    let line = text.trim_matches('\0').lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

/// `0x01 0x02`: the wear of both kinds of cells, in tenths, rounded up (JESD84-B51,
/// DEVICE_LIFE_TIME_EST; 0 is not defined, 11 is beyond the end) → of the worse one.
pub fn worn_percent(text: &str) -> Option<String> {
    let classes = text.split_ascii_whitespace().map(hexadecimal);
    let worst = classes
        .flatten()
        .max()
        .filter(|class| (1..=11).contains(class))?;
    Some((worst * 10).to_string())
}

/// What is left of the reserve (JESD84-B51, PRE_EOL_INFO).
pub fn end_of_life(text: &str) -> Option<&'static str> {
    match hexadecimal(text.trim())? {
        1 => Some("normal"),
        2 => Some("warning"),
        3 => Some("urgent"),
        _ => None,
    }
}

/// What an NVMe controller says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smart {
    /// Of the life that its maker expects; may exceed 100 (255 is as much or more).
    pub worn_percent: u8,
    /// Of the reserve, what is left.
    pub spare_percent: u8,
    /// The reserve is below its threshold, the device degraded or read-only.
    pub is_failing: bool,
}

/// Get Log Page 02h, SMART / Health Information (NVM Express base specification): byte 0 critical warning, 3
/// available spare, 5 percentage used. A page of zeroes is no answer.
pub fn smart(page: &[u8]) -> Option<Smart> {
    let (warning, spare, used) = (*page.first()?, *page.get(3)?, *page.get(5)?);
    (spare <= 100 && page.iter().any(|byte| *byte != 0)).then_some(Smart {
        worn_percent: used,
        spare_percent: spare,
        is_failing: warning & 0b0_1101 != 0,
    })
}

/// The sum below a list of who holds memory of the GPU (`total   1234K`) → bytes.
pub fn total_bytes(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("total"))?;
    let kibibytes: u64 = line.trim().strip_suffix('K')?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Texts of the device tree, each with its NUL → one line.
pub fn words(text: &str) -> Option<String> {
    let words: Vec<&str> = text
        .split(['\0', '\n'])
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}

fn hexadecimal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The share of the last ten seconds in which somebody waited (proc_pressure, `some avg10`).
pub fn pressure(text: &str) -> Option<String> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let share = some
        .split(' ')
        .find_map(|part| part.strip_prefix("avg10="))?;
    let value: f64 = share.parse().ok()?;
    Some(format!("{value:.1}"))
}

/// `pmode:0002` of nvpmodel's status, and the names of `/etc/nvpmodel.conf`
/// (`< POWER_MODEL ID=2 NAME=MODE_30W >`) → the mode.
pub fn power_mode(status: &str, names: &str) -> Option<String> {
    let number: u32 = status.trim().strip_prefix("pmode:")?.parse().ok()?;
    let id = format!("ID={number}");
    let models = names.lines().filter(|line| line.contains("POWER_MODEL"));
    let name = models
        .map(|line| line.split_ascii_whitespace())
        .find_map(|words| {
            let mut words = words.skip_while(|word| **word != id);
            words.find_map(|word| word.strip_prefix("NAME="))
        });
    Some(name.map_or(number.to_string(), str::to_owned))
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
        assert_eq!(milliwatts_of_micro("5028000", "1480000"), Some(7441));
        assert_eq!(worn_percent("0x01 0x03\n").as_deref(), Some("30"));
        assert_eq!(worn_percent("0x00 0x00\n"), None);
        assert_eq!(end_of_life("0x02\n"), Some("warning"));
        let mut page = [0; 512];
        assert_eq!(smart(&page), None);
        (page[0], page[3], page[4], page[5]) = (0b10, 97, 10, 12);
        let well = Smart {
            worn_percent: 12,
            spare_percent: 97,
            is_failing: false,
        };
        assert_eq!(smart(&page), Some(well), "too warm is not worn");
        page[0] = 0b1001;
        assert!(smart(&page).is_some_and(|smart| smart.is_failing));
        let clients =
            "CLIENT PROCESS PID SIZE\nuser lidar 4242 1024K\ntotal                 2048K\n";
        assert_eq!(total_bytes(clients), Some(2048 * 1024));
        assert_eq!(
            words("nvidia,p3737\0nvidia,tegra234\0").as_deref(),
            Some("nvidia,p3737 nvidia,tegra234")
        );
        let text = "some avg10=1.53 avg60=0.10 avg300=0.00 total=1\nfull avg10=0.00";
        assert_eq!(pressure(text).as_deref(), Some("1.5"));
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
    fn modes() {
        let names = "# a comment\n< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_1 1\n\
                     < POWER_MODEL ID=2 NAME=MODE_30W >\n";
        assert_eq!(
            power_mode("pmode:0002\n", names).as_deref(),
            Some("MODE_30W")
        );
        assert_eq!(power_mode("pmode:0007 fmode:quiet", names), None);
        assert_eq!(power_mode("pmode:0007", names).as_deref(), Some("7"));
    }

    #[test]
    fn a_load_of_nothing_is_believed_of_an_idle_clock_only() {
        assert!(is_latched(
            "0.0",
            "nvhost_podgov\n",
            "918000000",
            "306000000"
        ));
        assert!(!is_latched(
            "0.0",
            "nvhost_podgov\n",
            "306000000",
            "306000000"
        ));
        assert!(!is_latched(
            "0.0",
            "performance\n",
            "918000000",
            "306000000"
        ));
        assert!(!is_latched(
            "0.1",
            "nvhost_podgov\n",
            "918000000",
            "306000000"
        ));
        assert!(!is_latched("0.0", "nvhost_podgov\n", "", ""));
    }

    #[test]
    fn names() {
        let name = |label| field_name("temp_", label, "");
        assert_eq!(name("CPU-therm\n").as_deref(), Some("temp_cpu_therm"));
        assert_eq!(name("\n"), None);
        assert!(is_gpu("ga10b\0") && !is_gpu("nvjpg\0"));
    }
}
