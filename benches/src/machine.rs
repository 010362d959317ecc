//! The machine that figures hold for, its clock, and on which cores a reference is measured.

use serde_json::{Value, json};
use std::fs::read_to_string;

/// Facts to print above any figure.
pub(crate) struct Machine {
    /// Name and text.
    facts: Vec<(&'static str, String)>,
}

impl Machine {
    /// This one.
    pub(crate) fn here() -> Machine {
        let cpu = field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
        let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
        let huge = "/sys/kernel/mm/transparent_hugepage/";
        let facts = vec![
            ("processor", format!("{cpu}, {} cores", cores())),
            ("virtual", if flag("hypervisor") { "yes" } else { "no" }.into()),
            ("memory", memory),
            ("kernel", line("/proc/sys/kernel/osrelease")),
            ("huge pages of shared memory", chosen(&line(&format!("{huge}shmem_enabled")))),
            ("huge pages of private memory", chosen(&line(&format!("{huge}enabled")))),
            ("load before", busy(&line("/proc/loadavg"))),
            ("build", if cfg!(debug_assertions) { "NOT OPTIMISED: use --release" } else { "release" }.into()),
        ];
        Machine { facts }
    }

    /// One line a fact.
    pub(crate) fn text(&self) -> String {
        let line = |(name, text): &(&str, String)| format!("{name}: {text}");
        self.facts.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// For the JSON file.
    pub(crate) fn json(&self) -> Value {
        self.facts
            .iter()
            .map(|(name, text)| ((*name).to_string(), json!(text)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

/// Processors this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Processor time of this thread in nanoseconds: what other programs do meanwhile does not count.
pub(crate) fn cpu_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Two processors on different cores that this process may use, `None` if there is only one core.
pub(crate) fn two_cores() -> Option<(usize, usize)> {
    let set = rustix::thread::sched_getaffinity(None).ok()?;
    let usable: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect();
    let core = |cpu: usize| {
        let of = |what: &str| line(&format!("/sys/devices/system/cpu/cpu{cpu}/topology/{what}"));
        // A machine that does not tell has no threads that share a core.
        (of("physical_package_id"), of("core_id")).clone()
    };
    let first = *usable.first()?;
    let unknown = core(first).1.is_empty();
    let other = usable.into_iter().skip(1).find(|cpu| unknown || core(*cpu) != core(first))?;
    Some((first, other))
}

/// Keeps this thread on one processor.
pub(crate) fn pin(cpu: usize) -> std::io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Bytes this process has in memory, and the most it ever had.
pub(crate) fn resident_bytes() -> (u64, u64) {
    let kib = |name| field("/proc/self/status", name)?.split_whitespace().next()?.parse::<u64>().ok();
    (kib("VmRSS").unwrap_or(0) * 1024, kib("VmHWM").unwrap_or(0) * 1024)
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn flag(name: &str) -> bool {
    field("/proc/cpuinfo", "flags").is_some_and(|flags| flags.split(' ').any(|f| f == name))
}

fn line(path: &str) -> String {
    read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The load of the last minute, and a warning where it is not ours.
fn busy(text: &str) -> String {
    let load = text.split(' ').next().unwrap_or_default();
    let high = load.parse::<f64>().is_ok_and(|load| load > 0.5);
    format!("{load}{}", if high { ": NOT IDLE, the figures below are not the machine's best" } else { "" })
}

/// The word in brackets, as the kernel marks a choice.
fn chosen(text: &str) -> String {
    text.split(['[', ']']).nth(1).unwrap_or("unknown").to_owned()
}
