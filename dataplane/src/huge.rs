//! Whether huge pages back the arena, and what to do if not.

use std::fmt;
use std::fs;

/// Where the kernel says how it treats shared memory.
const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// What the kernel backs the arena with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Huge pages, seen in the page tables of this process.
    Yes,
    /// Small pages: fresh memory is filled several times slower.
    No {
        /// Why.
        why: String,
        /// What an operator can do.
        how_to_enable: String,
    },
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HugePages::Yes => write!(f, "yes"),
            HugePages::No { why, how_to_enable } => write!(f, "no ({why}; {how_to_enable})"),
        }
    }
}

impl HugePages {
    fn no(why: impl Into<String>, how_to_enable: impl Into<String>) -> Self {
        HugePages::No { why: why.into(), how_to_enable: how_to_enable.into() }
    }

    /// They were not wanted.
    pub(crate) fn switched_off() -> Self {
        HugePages::no("switched off in the configuration", "set huge_pages to true")
    }

    /// What can be known before anything is mapped.
    pub(crate) fn policy() -> Self {
        match fs::read_to_string(SHMEM_ENABLED) {
            Ok(text) => HugePages::from_policy(&text),
            Err(_) => HugePages::no(
                "this kernel has no transparent huge pages for shared memory",
                "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
            ),
        }
    }

    fn from_policy(text: &str) -> Self {
        let chosen = text.split_whitespace().find_map(|w| w.strip_prefix('[')?.strip_suffix(']'));
        match chosen {
            Some("always" | "advise" | "within_size" | "force") => HugePages::Yes,
            Some(word) => HugePages::no(
                format!("{SHMEM_ENABLED} says {word}"),
                format!("echo advise > {SHMEM_ENABLED}"),
            ),
            None => HugePages::no(
                format!("{SHMEM_ENABLED} cannot be understood"),
                format!("echo advise > {SHMEM_ENABLED}"),
            ),
        }
    }

    /// What the page tables say of the mapping that begins at `address`, some huge page of which has been
    /// touched.
    pub(crate) fn observed(address: usize) -> Self {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        if mapped_huge_kib(&smaps, address).is_some_and(|kib| kib > 0) {
            return HugePages::Yes;
        }
        HugePages::no(
            "the kernel allows them but gave none, memory may be fragmented",
            "echo 1 > /proc/sys/vm/compact_memory",
        )
    }
}

/// `ShmemPmdMapped` of the mapping that contains `address`, in KiB.
fn mapped_huge_kib(smaps: &str, address: usize) -> Option<u64> {
    let mut inside = false;
    for line in smaps.lines() {
        let first = line.split_whitespace().next()?;
        if let Some((from, to)) = first.split_once('-')
            && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
        {
            inside = (from..to).contains(&address);
        } else if inside && first == "ShmemPmdMapped:" {
            return line.split_whitespace().nth(1)?.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        for word in ["always", "advise", "within_size", "force"] {
            let text = "always within_size advise never deny force\n".replace(word, &format!("[{word}]"));
            assert_eq!(HugePages::from_policy(&text), HugePages::Yes, "{word}");
        }
        for text in ["always [never] deny", "[deny]", "", "nonsense"] {
            assert!(matches!(HugePages::from_policy(text), HugePages::No { .. }), "{text}");
        }
    }

    #[test]
    fn a_mapping_is_found_in_smaps() {
        let smaps = "7f0000000000-7f0000400000 rw-s 00000000 00:01 5 /memfd:a (deleted)\n\
                     Size:               4096 kB\nShmemPmdMapped:     2048 kB\nVmFlags: rd wr\n\
                     7f0000400000-7f0000500000 rw-p 00000000 00:00 0\nShmemPmdMapped:        0 kB\n";
        assert_eq!(mapped_huge_kib(smaps, 0x7f00_0010_0000), Some(2048));
        assert_eq!(mapped_huge_kib(smaps, 0x7f00_0040_0000), Some(0));
        assert_eq!(mapped_huge_kib(smaps, 0x1000), None);
    }
}
