//! What the kernel offers.

use super::{Finding, Grade};
use dflow_dataplane::transport::uring::Probe;
use std::fs;
use std::path::{Path, PathBuf};

/// memfd, pidfd, and populating mappings ahead.
const KERNEL_NEEDED: (u32, u32) = (5, 14);
const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
const IO_URING_DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";
/// Where libraries are, by distribution.
const LIBRARY_FOLDERS: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/lib64",
    "/usr/local/lib",
];

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

pub(super) fn io_uring() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let filtered = status.lines().any(|l| l.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"));
    let refused = Probe::look().err();
    judge_io_uring(refused.as_deref(), fs::read_to_string(IO_URING_DISABLED).ok().as_deref(), filtered)
}

/// Transfers between nodes only; one node does without.
fn judge_io_uring(refused: Option<&str>, disabled: Option<&str>, filtered: bool) -> Finding {
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

pub(super) fn rdma() -> Finding {
    let entries = fs::read_dir("/sys/class/infiniband").into_iter().flatten().flatten();
    let mut devices: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    devices.sort();
    let library = |name: &str| {
        LIBRARY_FOLDERS.iter().map(|folder| PathBuf::from(folder).join(name)).find(|path| path.exists())
    };
    let missing: Vec<&str> = ["libibverbs.so.1"].into_iter().filter(|name| library(name).is_none()).collect();
    judge_rdma(&devices, &missing, usable())
}

/// The card that transfers would use, and why; or why none.
#[cfg(feature = "rdma")]
fn usable() -> Result<String, String> {
    use dflow_dataplane::transport::rdma::look;
    look(None, None).map(|choice| choice.to_string()).map_err(|error| error.to_string())
}

#[cfg(not(feature = "rdma"))]
fn usable() -> Result<String, String> {
    Err("this dflow was built without the feature `rdma`".to_owned())
}

fn judge_rdma(devices: &[String], missing: &[&str], usable: Result<String, String>) -> Finding {
    const CHECK: &str = "RDMA";
    match (devices, missing) {
        // Hardware that is not there is no defect.
        ([], _) => Finding::ok(CHECK, "no device; TCP is what transfers between nodes would use"),
        (devices, []) => match usable {
            Ok(choice) => Finding::ok(CHECK, choice),
            Err(why) => Finding::warn(
                CHECK,
                format!("{}: {why}", devices.join(", ")),
                "no card can be used; transfers between nodes go over TCP",
                "",
            ),
        },
        (devices, missing) => Finding::warn(
            CHECK,
            format!("{} without {}", devices.join(", "), missing.join(" and ")),
            "the device cannot be used; transfers between nodes fall back to TCP",
            "sudo apt-get install libibverbs1 ibverbs-providers",
        ),
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
        assert_eq!(judge_io_uring(None, Some("0\n"), true).grade, Grade::Ok);
        let refused = Some("io_uring_setup: Operation not permitted");
        let mend = |disabled, filtered| judge_io_uring(refused, disabled, filtered).mend;
        assert!(mend(Some("2\n"), false).contains("sysctl"));
        assert!(mend(Some("0\n"), true).contains("seccomp"));
        assert!(mend(None, false).contains("apt-get"));
    }

    #[test]
    fn a_device_without_its_library_is_told() {
        let down = || Err("mlx5_0 port 1 is down".to_owned());
        assert_eq!(judge_rdma(&[], &["libibverbs.so.1"], down()).grade, Grade::Ok);
        let device = ["mlx5_0".to_owned()];
        assert_eq!(judge_rdma(&device, &[], Ok("mlx5_0 port 1".to_owned())).grade, Grade::Ok);
        let unusable = judge_rdma(&device, &[], down());
        assert!(unusable.grade == Grade::Warn && unusable.found.contains("is down"), "{unusable:?}");
        assert!(judge_rdma(&device, &["libibverbs.so.1"], down()).mend.contains("apt-get install"));
    }

    #[test]
    fn cgroups_of_either_kind_will_do() {
        assert_eq!(judge_cgroups(Some("cpu io memory pids\n"), false).grade, Grade::Ok);
        assert_eq!(judge_cgroups(Some("cpu io\n"), false).grade, Grade::Warn);
        assert_eq!(judge_cgroups(None, true).grade, Grade::Ok);
        assert_eq!(judge_cgroups(None, false).grade, Grade::Warn);
    }
}
