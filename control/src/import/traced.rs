//! A workflow as a trace tells it: tasks, and the files that they hand to each other.

use super::error::ImportError;
use dflow_proto::limits::STEPS_MAX;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A workflow of another system.
#[derive(Debug, Default)]
pub(super) struct Traced {
    /// As the file has it.
    pub(super) name: String,
    /// For people.
    pub(super) description: String,
    /// The format and its version.
    pub(super) format: String,
    /// What decides on branches.
    pub(super) inputs: BTreeMap<String, RunInput>,
    /// In file order.
    pub(super) tasks: Vec<Task>,
    /// Each written by at most one task: where a source has several writers of one name, there is a
    /// file for each.
    pub(super) files: Vec<File>,
}

/// A run input that conditions read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RunInput {
    /// Its type in a workflow file.
    pub(super) ty: &'static str,
    /// Its default, as YAML.
    pub(super) default: String,
    /// For people.
    pub(super) description: String,
}

/// Something that runs.
#[derive(Debug, Default)]
pub(super) struct Task {
    /// Unique.
    pub(super) id: String,
    /// What it runs: tasks of one kind share a pool of function processes.
    pub(super) kind: String,
    /// For people.
    pub(super) description: String,
    /// How long it ran, in seconds.
    pub(super) runtime_s: f64,
    /// Tasks that must end first though they hand it no file.
    pub(super) after: Vec<usize>,
    /// It runs only if this condition (CEL over run inputs) holds.
    pub(super) when: Option<String>,
    /// It runs once for each item of the list that this task makes.
    pub(super) foreach: Option<usize>,
    /// It makes a list of this many items, into which the files marked `carried` go.
    pub(super) items: Option<u32>,
}

/// Something that is handed over.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) name: String,
    /// Its size, of all items together if it is a list.
    pub(super) bytes: u64,
    /// Who writes it; `None` if it comes from outside.
    pub(super) writer: Option<usize>,
    /// Who reads it, each once.
    pub(super) readers: Vec<usize>,
    /// It goes into the items of its writer's list.
    pub(super) carried: bool,
}

/// How much there is of a workflow, in the sizes of its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tasks.
    pub tasks: usize,
    /// Pairs of tasks of which one hands data to the other.
    pub edges: usize,
    /// Bytes handed from task to task, each reader counted.
    pub edge_bytes: u64,
    /// Files that no task writes.
    pub external_files: usize,
    /// Their bytes, each file counted once.
    pub external_bytes: u64,
}

impl Traced {
    /// Whether it can run at all: it has tasks, not too many, and none waits for itself.
    pub(super) fn check(&self) -> Result<(), ImportError> {
        if self.tasks.is_empty() {
            return Err(ImportError::NoTasks { path: "the file".into() });
        }
        if self.tasks.len() > STEPS_MAX {
            return Err(ImportError::TooMany { what: "tasks", have: self.tasks.len(), max: STEPS_MAX });
        }
        match find_cycle(&self.precursors()) {
            None => Ok(()),
            Some(cycle) => {
                let tasks = cycle.into_iter().map(|task| self.tasks[task].id.clone()).collect();
                Err(ImportError::Cycle { tasks })
            }
        }
    }

    /// For each task, the tasks it waits for, each once.
    pub(super) fn precursors(&self) -> Vec<Vec<usize>> {
        let mut precursors: Vec<Vec<usize>> = self.tasks.iter().map(|t| t.after.clone()).collect();
        for (task, of) in self.tasks.iter().zip(&mut precursors) {
            of.extend(task.foreach);
        }
        for (writer, file) in self.files.iter().filter_map(|f| Some((f.writer?, f))) {
            file.readers.iter().for_each(|reader| precursors[*reader].push(writer));
        }
        for of in &mut precursors {
            of.sort_unstable();
            of.dedup();
        }
        precursors
    }

    /// For each task, the length of the longest chain of tasks before it.
    pub(super) fn levels(&self) -> Vec<usize> {
        let precursors = self.precursors();
        let mut levels = vec![0; self.tasks.len()];
        for task in order(&precursors).0 {
            levels[task] = precursors[task].iter().map(|p| levels[*p] + 1).max().unwrap_or(0);
        }
        levels
    }

    /// How much there is of it.
    pub(super) fn stats(&self) -> Stats {
        let mut stats = Stats { tasks: self.tasks.len(), ..Stats::default() };
        let mut edges = HashSet::new();
        for file in &self.files {
            match file.writer {
                None => {
                    stats.external_files += 1;
                    stats.external_bytes = stats.external_bytes.saturating_add(file.bytes);
                }
                Some(writer) => {
                    edges.extend(file.readers.iter().map(|reader| (writer, *reader)));
                    let bytes = file.bytes.saturating_mul(file.readers.len() as u64);
                    stats.edge_bytes = stats.edge_bytes.saturating_add(bytes);
                }
            }
        }
        stats.edges = edges.len();
        stats
    }
}

/// The vertices in an order in which each comes after its precursors, and how many precursors of
/// each are still missing (0 for all unless there is a cycle).
fn order(precursors: &[Vec<usize>]) -> (Vec<usize>, Vec<usize>) {
    let mut missing: Vec<usize> = precursors.iter().map(Vec::len).collect();
    let mut successors = vec![Vec::new(); precursors.len()];
    for (vertex, of) in precursors.iter().enumerate() {
        of.iter().for_each(|p| successors[*p].push(vertex));
    }
    let mut order: Vec<usize> = (0..precursors.len()).filter(|v| missing[*v] == 0).collect();
    let mut next = 0;
    while let Some(&vertex) = order.get(next) {
        next += 1;
        for &successor in &successors[vertex] {
            missing[successor] -= 1;
            if missing[successor] == 0 {
                order.push(successor);
            }
        }
    }
    (order, missing)
}

/// A cycle, each vertex a precursor of the next and the last of the first.
pub(super) fn find_cycle(precursors: &[Vec<usize>]) -> Option<Vec<usize>> {
    let (_, missing) = order(precursors);
    // A vertex that is missing precursors has one that is missing precursors too: walking back along
    // those must come round.
    let mut vertex = missing.iter().position(|n| *n > 0)?;
    let mut walk = Vec::new();
    let mut seen = HashMap::new();
    while !seen.contains_key(&vertex) {
        seen.insert(vertex, walk.len());
        walk.push(vertex);
        vertex = precursors[vertex].iter().copied().find(|p| missing[*p] > 0)?;
    }
    let mut cycle = walk.split_off(seen[&vertex]);
    cycle.reverse();
    Some(cycle)
}

/// The tasks in an order in which each comes after its precursors; those in cycles are left out.
pub(super) fn topological(precursors: &[Vec<usize>]) -> Vec<usize> {
    order(precursors).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cycle_is_named_in_order() {
        // 0 -> 1 -> 2 -> 3 -> 1, and 4 behind it.
        let precursors = [vec![], vec![0, 3], vec![1], vec![2], vec![3]];
        let cycle = find_cycle(&precursors).unwrap();
        assert_eq!(cycle.len(), 3);
        for (n, vertex) in cycle.iter().enumerate() {
            assert!(precursors[cycle[(n + 1) % 3]].contains(vertex), "{cycle:?}");
        }
        assert_eq!(find_cycle(&[vec![0]]), Some(vec![0]));
        assert_eq!(find_cycle(&[vec![], vec![0], vec![0, 1]]), None);
    }
}
