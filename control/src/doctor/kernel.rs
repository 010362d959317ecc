//! What the kernel offers.

use super::{Finding, Grade};
use dflow_dataplane::transport::uring::Probe;
use std::fs;
use std::path::Path;

/// memfd, pidfd, and populating mappings ahead.
const KERNEL_NEEDED: (u32, u32) = (5, 14);
const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const IO_URING_DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";

pub(super) fn version() -> Finding {
    let name = rustix::system::uname();
    judge_version(&name.release().to_string_lossy())
}

fn judge_version(release: &str) -> Finding {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version >= KERNEL_NEEDED {
        return Finding::ok("kernel", format!("Linux {release}"));
    }
    let (major, minor) = KERNEL_NEEDED;
    let means = format!("a node needs Linux {major}.{minor} or later (memfd, pidfd, MADV_POPULATE_WRITE)");
    Finding::bad(
        "kernel",
        Grade::Fail,
        format!("Linux {release}"),
        means,
        "sudo apt-get install linux-image-amd64 && sudo reboot",
    )
}

pub(super) fn huge_pages() -> Finding {
    judge_huge_pages(fs::read_to_string(SHMEM_ENABLED).ok().as_deref())
}

fn judge_huge_pages(text: Option<&str>) -> Finding {
    const CHECK: &str = "huge pages";
    let means =
        "fresh memory is filled several times slower, and withdrawing a large mapping takes milliseconds";
    let Some(text) = text else {
        return Finding::warn(CHECK, "none for shared memory in this kernel", means, "");
    };
    let chosen = text.split_whitespace().find_map(|w| w.strip_prefix('[')?.strip_suffix(']'));
    match chosen {
        Some(word @ ("always" | "advise" | "within_size" | "force")) => {
            Finding::ok(CHECK, format!("shared memory: {word}"))
        }
        word => {
            let mend = format!("echo advise | sudo tee {SHMEM_ENABLED}");
            Finding::warn(CHECK, format!("shared memory: {}", word.unwrap_or("unknown")), means, mend)
        }
    }
}

/// `needed`: the node's transport is io_uring and nothing else.
pub(super) fn io_uring(needed: bool) -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let filtered = status.lines().any(|l| l.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"));
    let refused = Probe::look().err();
    let disabled = fs::read_to_string(IO_URING_DISABLED).ok();
    judge_io_uring(refused.as_deref(), disabled.as_deref(), filtered, needed)
}

/// Transfers between nodes only; one node does without.
fn judge_io_uring(refused: Option<&str>, disabled: Option<&str>, filtered: bool, needed: bool) -> Finding {
    const CHECK: &str = "io_uring";
    let Some(why) = refused else { return Finding::ok(CHECK, "works") };
    let means = "transfers between nodes use plain sockets; runs on one node do not need it";
    let mend = match disabled.map(str::trim) {
        Some("1" | "2") => "sudo sysctl kernel.io_uring_disabled=0",
        _ if filtered => {
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile"
        }
        _ => {
            "sudo apt-get install linux-image-amd64 && sudo reboot   (Linux 5.11 or later with CONFIG_IO_URING)"
        }
    };
    if needed {
        let means = "`transport = uring` allows nothing else: the node does not start once it has peers";
        return Finding::bad(CHECK, Grade::Fail, why, means, mend);
    }
    Finding::warn(CHECK, why, means, mend)
}

pub(super) fn cgroups() -> Finding {
    let read = |path: &str| fs::read_to_string(path).ok();
    judge_cgroups(
        read("/sys/fs/cgroup/cgroup.controllers").as_deref(),
        Path::new("/sys/fs/cgroup/memory").is_dir(),
    )
}

fn judge_cgroups(controllers: Option<&str>, v1_memory: bool) -> Finding {
    const CHECK: &str = "cgroups";
    let means =
        "memory limits of functions are held by watching their processes, a little later than a cgroup would";
    let mend = "add systemd.unified_cgroup_hierarchy=1 to GRUB_CMDLINE_LINUX in /etc/default/grub && sudo update-grub && sudo reboot";
    match controllers {
        Some(list) if list.split_whitespace().any(|c| c == "memory") => {
            Finding::ok(CHECK, format!("v2 ({})", list.trim()))
        }
        Some(list) => Finding::warn(
            CHECK,
            format!("v2 without the memory controller ({})", list.trim()),
            means,
            "echo +memory | sudo tee /sys/fs/cgroup/cgroup.subtree_control",
        ),
        None if v1_memory => Finding::ok(CHECK, "v1 with the memory controller"),
        None => Finding::warn(CHECK, "none", means, mend),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart() {
        let grades = ["4.19.0-27-amd64", "5.13.0", "5.14.0-rc1", "6.1.0-18-amd64", "10.0"]
            .map(|r| judge_version(r).grade);
        assert_eq!(grades, [Grade::Fail, Grade::Fail, Grade::Ok, Grade::Ok, Grade::Ok]);
    }

    #[test]
    fn huge_pages_need_leave() {
        assert_eq!(judge_huge_pages(Some("always within_size [advise] never deny force\n")).grade, Grade::Ok);
        let never = judge_huge_pages(Some("always within_size advise [never] deny force\n"));
        assert_eq!(never.grade, Grade::Warn);
        assert!(never.mend.contains("tee /sys/kernel/mm"), "{never:?}");
        assert_eq!(judge_huge_pages(None).grade, Grade::Warn);
    }

    #[test]
    fn io_uring_is_mended_by_what_forbids_it() {
        assert_eq!(judge_io_uring(None, Some("0\n"), true, true).grade, Grade::Ok);
        let refused = Some("io_uring_setup: Operation not permitted");
        let mend = |disabled, filtered| judge_io_uring(refused, disabled, filtered, false).mend;
        assert!(mend(Some("2\n"), false).contains("sysctl"));
        assert!(mend(Some("0\n"), true).contains("seccomp"));
        assert!(mend(None, false).contains("apt-get"));
        let grade = |needed| judge_io_uring(refused, None, false, needed).grade;
        assert_eq!((grade(false), grade(true)), (Grade::Warn, Grade::Fail));
    }

    #[test]
    fn cgroups_of_either_kind_will_do() {
        assert_eq!(judge_cgroups(Some("cpu io memory pids\n"), false).grade, Grade::Ok);
        assert_eq!(judge_cgroups(Some("cpu io\n"), false).grade, Grade::Warn);
        assert_eq!(judge_cgroups(None, true).grade, Grade::Ok);
        assert_eq!(judge_cgroups(None, false).grade, Grade::Warn);
    }
}
