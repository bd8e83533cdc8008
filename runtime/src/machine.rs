//! What the machine has: processor features, physical cores, quota and memory, read from the files the
//! kernel shows them in.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use qwen2c_format::Diagnostic;

/// The processor as `/proc/cpuinfo` describes its first core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Processor {
    /// `AMD EPYC 9354`.
    pub(crate) name: String,
    /// `avx2`, `fma`, …
    pub(crate) features: BTreeSet<String>,
}

impl Processor {
    /// Parses the text of `/proc/cpuinfo`.
    pub(crate) fn parse(text: &str) -> Self {
        let field = |wanted: &str| {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.trim() == wanted)
                .map(|(_, value)| value.trim())
        };
        Self {
            name: field("model name").unwrap_or("a processor without a name").to_owned(),
            features: field("flags").unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        }
    }

    /// Compares with what the program's kernels use.
    ///
    /// # Errors
    ///
    /// Names the features that are missing and the machine.
    pub(crate) fn check(&self, target: &str, required: &[String]) -> Result<(), Diagnostic> {
        let missing: Vec<&str> =
            required.iter().map(String::as_str).filter(|feature| !self.features.contains(*feature)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Diagnostic::new(format!("this processor cannot run a program for `{target}`"))
            .found(format!("{} without {}", self.name, missing.join(", ")))
            .needed(required.join(", "))
            .help("build the program with `--target native` on this machine, or with a lower level such as `--target x86-64-v3`"))
    }
}

/// The processor this runs on.
///
/// # Errors
///
/// Where `/proc` is not there.
pub(crate) fn processor() -> Result<Processor, Diagnostic> {
    let path = "/proc/cpuinfo";
    let text = fs::read_to_string(path).map_err(|error| {
        Diagnostic::new("the processor's features cannot be read")
            .at(path)
            .cause(error.to_string())
            .help("make `/proc` available")
    })?;
    Ok(Processor::parse(&text))
}

/// The first logical processor of each physical core, out of those that `allowed` lists.
pub(crate) fn physical_cores(allowed: &[usize]) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    let first_of_core = |&cpu: &usize| {
        let topology = format!("/sys/devices/system/cpu/cpu{cpu}/topology");
        let read = |name: &str| fs::read_to_string(format!("{topology}/{name}")).ok();
        match (read("physical_package_id"), read("core_id")) {
            (Some(package), Some(core)) => seen.insert((package, core)),
            // Without a topology every logical processor counts as a core.
            _ => true,
        }
    };
    allowed.iter().copied().filter(first_of_core).collect()
}

/// Processors' worth of time that the control groups grant, rounded up; none where they do not limit.
pub(crate) fn processor_quota() -> Option<usize> {
    limit_over_groups("cpu.max", parse_quota).map(|quota| quota as usize)
}

/// Processors of a `cpu.max`: quota and period in microseconds, or `max`.
fn parse_quota(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace();
    let quota: u64 = words.next()?.parse().ok()?;
    let period: u64 = words.next()?.parse().ok()?;
    (period > 0).then(|| quota.div_ceil(period).max(1))
}

/// Bytes of memory that this process can ever have: the machine's, or less in a control group.
pub(crate) fn memory_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| parse_memory_total(&text));
    let group = limit_over_groups("memory.max", |text| text.trim().parse().ok());
    machine.into_iter().chain(group).min()
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn parse_memory_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// How often this process touched a page that was not mapped yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PageFaults {
    /// Of either kind.
    pub(crate) all: u64,
    /// Those for which the system waited for the disk.
    pub(crate) from_disk: u64,
}

/// The page faults of this process so far, in all threads; none where `/proc` is not there.
pub(crate) fn page_faults() -> PageFaults {
    fs::read_to_string("/proc/self/stat").ok().and_then(|text| parse_page_faults(&text)).unwrap_or_default()
}

/// `minflt` and `majflt` of `/proc/self/stat`: the eighth and the tenth word behind the program's name,
/// which stands in parentheses and may hold anything.
fn parse_page_faults(text: &str) -> Option<PageFaults> {
    let (_, behind_name) = text.rsplit_once(')')?;
    let mut words = behind_name.split_whitespace().skip(7);
    let minor: u64 = words.next()?.parse().ok()?;
    let from_disk: u64 = words.nth(1)?.parse().ok()?;
    Some(PageFaults { all: minor + from_disk, from_disk })
}

/// Bytes of memory that this process has mapped at this moment, the weights it touched included; 0 where
/// `/proc` is not there.
pub(crate) fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_resident(&status).unwrap_or(0)
}

/// `VmRSS` of `/proc/self/status`, in bytes.
fn parse_resident(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// The smallest value of a control file over this process's control group and those around it.
fn limit_over_groups(file: &str, parse: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    Path::new(own)
        .ancestors()
        .filter_map(|group| {
            let group = group.strip_prefix("/").unwrap_or(group);
            let text = fs::read_to_string(Path::new("/sys/fs/cgroup").join(group).join(file)).ok()?;
            parse(&text)
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_features_and_the_machine_are_named() {
        let processor = Processor::parse(
            "processor\t: 0\nmodel name\t: Old Core 2\nflags\t\t: fpu sse avx\n\nflags : avx512f\n",
        );
        let required = ["avx".to_owned(), "avx2".to_owned(), "fma".to_owned()];
        let message = processor.check("x86-64-v3", &required).expect_err("avx2 is missing").to_string();
        assert!(message.contains("Old Core 2 without avx2, fma"), "{message}");
        assert!(message.contains("`x86-64-v3`"), "{message}");
        assert_eq!(processor.check("x", &required[..1]), Ok(()));
    }

    #[test]
    fn page_faults_stand_behind_a_name_that_may_hold_anything() {
        let text = "42 (a ) b) S 1 42 42 0 -1 4194304 9202 0 92 0 10 20 0 0 20 0 2 0 1000";
        assert_eq!(parse_page_faults(text), Some(PageFaults { all: 9294, from_disk: 92 }));
        assert_eq!(parse_page_faults("42 (a) S 1"), None);
        assert_eq!(parse_resident("VmHWM:\t 9 kB\nVmRSS:\t    520 kB\n"), Some(520 << 10));
    }

    #[test]
    fn quotas_round_up() {
        assert_eq!(parse_quota("max 100000\n"), None);
        assert_eq!(parse_quota("150000 100000\n"), Some(2));
        assert_eq!(parse_quota("200000 100000\n"), Some(2));
        assert_eq!(parse_quota("1000 100000\n"), Some(1));
        assert_eq!(parse_quota("1000 0\n"), None);
        assert_eq!(parse_quota(""), None);
    }

    #[test]
    fn memory_total_is_in_bytes() {
        assert_eq!(parse_memory_total("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert_eq!(parse_memory_total("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn cores_are_a_subset_of_the_allowed_ones() {
        let cores = physical_cores(&[0]);
        assert_eq!(cores, [0]);
        assert!(physical_cores(&[]).is_empty());
    }
}
