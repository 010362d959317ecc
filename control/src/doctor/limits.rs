//! Limits of this user and room on this machine.

use super::{Finding, Grade};
use crate::history::default_dir;
use crate::node::NodeConfig;
use crate::text::bytes_text;
use rustix::process::{Resource, getrlimit};
use std::fs;
use std::path::Path;

/// Workers, zygotes, and objects that are files of their own.
const FILES_NEEDED: u64 = 4096;
const PROCESSES_NEEDED: u64 = 1024;
/// Less than this in /dev/shm is soon full of objects of programs. Bytes.
const SHM_NEEDED: u64 = 256 << 20;
/// Less than this for spilling helps no one. Bytes.
const SPILL_NEEDED: u64 = 1 << 30;

pub(super) fn memory() -> Finding {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    judge_memory(&text, NodeConfig::default().store_bytes)
}

fn judge_memory(meminfo: &str, store_bytes: u64) -> Finding {
    let kib = |key: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (total, free) = (kib("MemTotal:").unwrap_or(0) << 10, kib("MemAvailable:").unwrap_or(0) << 10);
    let found = format!(
        "{} free of {}; the store takes up to {}",
        bytes_text(free),
        bytes_text(total),
        bytes_text(store_bytes)
    );
    let finding = if free >= store_bytes {
        Finding::ok("memory", found)
    } else {
        let mend = format!("dflow run --store {}MiB ...", (free >> 21).max(64));
        Finding::warn("memory", found, "a store that fills up will push other memory out", mend)
    };
    finding.with(free as f64)
}

fn limit(resource: Resource) -> Option<u64> {
    getrlimit(resource).current
}

pub(super) fn locked_memory() -> Finding {
    judge_locked(limit(Resource::Memlock), NodeConfig::default().store_bytes)
}

/// Registering with a card or a ring pins the store; one node does without.
fn judge_locked(limit: Option<u64>, store_bytes: u64) -> Finding {
    const CHECK: &str = "locked memory";
    match limit {
        None => Finding::ok(CHECK, "unlimited"),
        Some(bytes) if bytes >= store_bytes => Finding::ok(CHECK, bytes_text(bytes)).with(bytes as f64),
        Some(bytes) => Finding::warn(
            CHECK,
            bytes_text(bytes),
            "too little to register the store with a network card or a ring; runs on one node do not need it",
            "echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/dflow.conf   (then log in again; LimitMEMLOCK=infinity in a systemd unit)",
        )
        .with(bytes as f64),
    }
}

pub(super) fn open_files() -> Finding {
    let hard = getrlimit(Resource::Nofile).maximum;
    judge_count(
        "open files",
        limit(Resource::Nofile),
        FILES_NEEDED,
        "many workers or objects of programs at one time fail with `too many open files`",
        &match hard {
            Some(hard) if hard < FILES_NEEDED => {
                "echo '* - nofile 65536' | sudo tee /etc/security/limits.d/dflow.conf   (then log in again)"
                    .into()
            }
            _ => format!("ulimit -n {}", hard.unwrap_or(65536).min(65536)),
        },
    )
}

pub(super) fn processes() -> Finding {
    judge_count(
        "processes",
        limit(Resource::Nproc),
        PROCESSES_NEEDED,
        "many workers at one time cannot be forked",
        "echo '* - nproc unlimited' | sudo tee /etc/security/limits.d/dflow.conf   (then log in again; TasksMax= in a systemd unit)",
    )
}

fn judge_count(check: &'static str, limit: Option<u64>, needed: u64, means: &str, mend: &str) -> Finding {
    match limit {
        None => Finding::ok(check, "unlimited"),
        Some(count) if count >= needed => Finding::ok(check, count.to_string()).with(count as f64),
        Some(count) => {
            Finding::warn(check, format!("{count}, {needed} are wanted"), means, mend).with(count as f64)
        }
    }
}

/// Free bytes where `path` is.
fn free_bytes(path: &Path) -> rustix::io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
}

pub(super) fn shared_memory() -> Finding {
    const CHECK: &str = "/dev/shm";
    let path = Path::new("/dev/shm");
    let means = "objects of `exec` functions live there; without room these functions fail";
    match free_bytes(path) {
        Ok(_) if !writable(path) => Finding::warn(CHECK, "not writable", means, "sudo chmod 1777 /dev/shm"),
        Ok(bytes) if bytes >= SHM_NEEDED => {
            Finding::ok(CHECK, format!("{} free", bytes_text(bytes))).with(bytes as f64)
        }
        Ok(bytes) => {
            let mend = "sudo mount -o remount,size=50% /dev/shm   (in a container: docker run --shm-size=2g)";
            Finding::warn(CHECK, format!("{} free", bytes_text(bytes)), means, mend).with(bytes as f64)
        }
        Err(error) => {
            Finding::warn(CHECK, error.to_string(), means, "sudo mount -t tmpfs -o mode=1777 tmpfs /dev/shm")
        }
    }
}

pub(super) fn spill(path: &Path) -> Finding {
    const CHECK: &str = "spill";
    if path == Path::new("none") {
        return Finding::warn(
            CHECK,
            "none",
            "a full store makes writers wait for readers",
            "dflow run --spill /var/tmp ...",
        );
    }
    let place = path.display();
    match free_bytes(path) {
        Err(error) => {
            let mend = format!("mkdir -p {place}   (or dflow run --spill DIR ...)");
            Finding::bad(CHECK, Grade::Fail, format!("{place}: {error}"), "no node starts with it", mend)
        }
        Ok(_) if !writable(path) => Finding::bad(
            CHECK,
            Grade::Fail,
            format!("{place} is not writable"),
            "no node starts with it",
            "dflow run --spill DIR ...   (a directory of your own)",
        ),
        Ok(bytes) => {
            let found = format!("{} free in {place}", bytes_text(bytes));
            let means = "a full store soon makes writers wait for readers";
            let finding = if bytes >= SPILL_NEEDED {
                Finding::ok(CHECK, found)
            } else {
                Finding::warn(CHECK, found, means, "dflow run --spill DIR ...   (a directory with more room)")
            };
            finding.with(bytes as f64)
        }
    }
}

pub(super) fn history() -> Finding {
    const CHECK: &str = "past runs";
    let place = std::env::var_os("DFLOW_STATE").map(Into::into).or_else(default_dir);
    let Some(place) = place else {
        return Finding::warn(CHECK, "no place", "runs are not kept", "export DFLOW_STATE=DIR");
    };
    // The directory is made when it is first needed, in what there is of its path.
    let there = place.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    if writable(there) {
        Finding::ok(CHECK, place.display().to_string())
    } else {
        let found = format!("{} cannot be written", place.display());
        Finding::warn(CHECK, found, "runs are not kept", "export DFLOW_STATE=DIR   (a directory of your own)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_judged_by_what_is_needed() {
        assert_eq!(judge_locked(None, 1 << 30).grade, Grade::Ok);
        assert_eq!(judge_locked(Some(8 << 20), 1 << 30).grade, Grade::Warn);
        assert_eq!(judge_count("x", Some(4096), 4096, "m", "c").grade, Grade::Ok);
        let few = judge_count("x", Some(256), 4096, "m", "c");
        assert_eq!((few.grade, few.mend.as_str(), few.value), (Grade::Warn, "c", Some(256.0)));
    }

    #[test]
    fn memory_is_read() {
        let text = "MemTotal:        8000000 kB\nMemFree: 1 kB\nMemAvailable:    4000000 kB\n";
        assert_eq!(judge_memory(text, 2 << 30).grade, Grade::Ok);
        let short = judge_memory(text, 6 << 30);
        assert_eq!((short.grade, short.value), (Grade::Warn, Some(4_096_000_000.0)));
    }

    #[test]
    fn a_spill_directory_must_be_there() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert_ne!(spill(dir.path()).grade, Grade::Fail);
        let missing = spill(&dir.path().join("missing"));
        assert_eq!(missing.grade, Grade::Fail);
        assert!(missing.mend.starts_with("mkdir -p"), "{missing:?}");
        assert_eq!(spill(Path::new("none")).grade, Grade::Warn);
    }
}
