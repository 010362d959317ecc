//! Processes that a worker started and left behind. When the worker dies they become children of the
//! zygote (its subreaper), even if they made sessions of their own, and are killed.

use crate::process;
use std::collections::BTreeSet;

/// Children of the zygote that are no workers.
#[derive(Debug, Default)]
pub(super) struct Strays {
    /// Children that the function's code made while it was loaded: they serve all workers.
    spared: BTreeSet<i32>,
    /// Killed, and not reaped yet.
    dying: BTreeSet<i32>,
}

impl Strays {
    pub(super) fn spare_existing() -> Strays {
        Strays { spared: children().into_iter().collect(), dying: BTreeSet::new() }
    }

    pub(super) fn spare_none(&mut self) {
        self.spared.clear();
    }

    pub(super) fn any_dying(&self) -> bool {
        !self.dying.is_empty()
    }

    pub(super) fn gone(&mut self, pid: i32) {
        self.dying.remove(&pid);
        self.spared.remove(&pid);
    }

    /// Kills all children but those that `keep` knows. A stray that dies hands its own children to the
    /// zygote, so this is called again until none is left.
    pub(super) fn end_all_but(&mut self, keep: impl Fn(i32) -> bool) {
        for pid in children() {
            if !keep(pid) && !self.spared.contains(&pid) {
                process::kill(pid);
                self.dying.insert(pid);
            }
        }
    }
}

/// The pids of this process's children. The zygote has one thread while it serves.
fn children() -> Vec<i32> {
    let pid = std::process::id();
    if let Ok(list) = std::fs::read_to_string(format!("/proc/self/task/{pid}/children")) {
        return list.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
    }
    // A kernel without CONFIG_PROC_CHILDREN: look at every process's parent.
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let numbers = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter(|child| parent_of(*child) == Some(pid)).collect()
}

fn parent_of(pid: i32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may itself contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}
