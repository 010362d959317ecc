//! WfFormat: what WfCommons makes of executions by Pegasus, Nextflow and others, and generates.
//!
//! Up to schema 1.3 a task holds its files and times itself (`workflow.jobs`, later
//! `workflow.tasks`); from 1.4 on `workflow.specification` has what there is to do and
//! `workflow.execution` how it went. The shape tells which it is, since not all files name their
//! schema as they should.

use super::cursor::At;
use super::error::{ImportError, Warning};
use super::names;
use super::traced::{File, Task, Traced};
use dflow_proto::limits::STEPS_MAX;
use std::collections::{BTreeMap, BTreeSet, HashMap};

const FORMAT: &str = "WfFormat";
/// The latest schema whose meaning is known.
const VERSION_MAX: (u64, u64) = (1, 6);

/// A task as the file has it: relatives and files are names.
#[derive(Default)]
struct RawTask {
    id: String,
    name: String,
    program: Option<String>,
    runtime_s: Option<f64>,
    parents: Vec<String>,
    children: Vec<String>,
    reads: Vec<String>,
    writes: Vec<String>,
}

/// What a file says, before names are resolved.
#[derive(Default)]
struct Raw {
    tasks: Vec<RawTask>,
    by_id: HashMap<String, usize>,
    sizes: HashMap<String, u64>,
    sizes_differ: Vec<String>,
}

/// Reads a WfFormat file of schema 1.0 to 1.6.
pub(super) fn read(text: &str, warnings: &mut Vec<Warning>) -> Result<Traced, ImportError> {
    // Editors of some systems begin a file with a byte order mark, which JSON does not have.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| match e.is_eof() {
        true => ImportError::Truncated { line: e.line(), column: e.column() },
        false => ImportError::Syntax { format: "JSON", what: e.to_string() },
    })?;
    let root = At::root(&value, FORMAT);
    let workflow = root.need("workflow")?;
    let version = version(&root, warnings)?;
    let raw = match workflow.get("specification") {
        Some(specification) => since_1_4(&specification, workflow.get("execution"))?,
        None => until_1_3(&workflow)?,
    };
    let mut traced = Traced { format: format!("{FORMAT}{version}"), ..Traced::default() };
    traced.name = root.get("name").map(|at| at.name()).transpose()?.unwrap_or_default();
    traced.description = root.get("description").map(|at| at.text()).transpose()?.unwrap_or_default();
    link(raw, &mut traced, warnings);
    Ok(traced)
}

/// The schema version, with a space before it; nothing if the file does not name it.
fn version(root: &At<'_>, warnings: &mut Vec<Warning>) -> Result<String, ImportError> {
    let Some(at) = root.get("schemaVersion") else {
        warnings.push(Warning::NoSchema);
        return Ok(String::new());
    };
    let found = at.text()?;
    let mut parts = found.split('.').map(|part| part.parse::<u64>().ok());
    let (Some(Some(major)), Some(minor)) = (parts.next(), parts.next().unwrap_or(Some(0))) else {
        return Err(ImportError::Schema { found: super::error::word(&found) });
    };
    if major != VERSION_MAX.0 {
        return Err(ImportError::Schema { found: super::error::word(&found) });
    }
    if minor > VERSION_MAX.1 {
        warnings.push(Warning::NewerSchema { found: found.clone() });
    }
    Ok(format!(" {major}.{minor}"))
}

impl Raw {
    fn add(&mut self, at: &At<'_>, task: RawTask) -> Result<(), ImportError> {
        if self.tasks.len() == STEPS_MAX {
            return Err(ImportError::TooMany { what: "tasks", have: STEPS_MAX + 1, max: STEPS_MAX });
        }
        if self.by_id.insert(task.id.clone(), self.tasks.len()).is_some() {
            return Err(ImportError::DuplicateTask { path: at.path(), id: task.id });
        }
        self.tasks.push(task);
        Ok(())
    }

    fn size(&mut self, file: &str, bytes: Option<u64>) {
        let Some(bytes) = bytes else { return };
        match self.sizes.get(file) {
            None => drop(self.sizes.insert(file.to_owned(), bytes)),
            Some(first) if *first != bytes => self.sizes_differ.push(file.to_owned()),
            Some(_) => {}
        }
    }
}

fn names_in(at: &At<'_>, key: &str) -> Result<Vec<String>, ImportError> {
    at.list(key, |name| name.name())
}

fn until_1_3(workflow: &At<'_>) -> Result<Raw, ImportError> {
    let tasks = match workflow.first(&["tasks", "jobs"]) {
        Some(tasks) => tasks,
        None => workflow.need("tasks")?,
    };
    let mut raw = Raw::default();
    for at in tasks.items()? {
        let name = at.first(&["name", "id"]).map(|n| n.name()).transpose()?;
        let Some(name) = name else {
            return Err(at.need("name").err().unwrap_or_else(|| at.wrong("a task")));
        };
        let id = at.first(&["id", "name"]).map(|n| n.name()).transpose()?.unwrap_or_else(|| name.clone());
        let mut task = RawTask { id, name, ..RawTask::default() };
        task.runtime_s = at.first(&["runtimeInSeconds", "runtime"]).map(|t| t.time_s()).transpose()?;
        task.program = program(&at)?;
        task.parents = names_in(&at, "parents")?;
        task.children = names_in(&at, "children")?;
        if let Some(files) = at.get("files") {
            for file in files.items()? {
                let name = match file.first(&["name", "id"]) {
                    Some(name) => name.name()?,
                    None => file.need("name")?.name()?,
                };
                let bytes = file.first(&["size", "sizeInBytes"]).map(|s| s.size_bytes()).transpose()?;
                raw.size(&name, bytes);
                let link = file.need("link")?;
                match link.text()?.as_str() {
                    "input" => task.reads.push(name),
                    "output" => task.writes.push(name),
                    _ => return Err(link.wrong("`input` or `output`")),
                }
            }
        }
        raw.add(&at, task)?;
    }
    Ok(raw)
}

fn since_1_4(specification: &At<'_>, execution: Option<At<'_>>) -> Result<Raw, ImportError> {
    let mut raw = Raw::default();
    let tasks = specification.need("tasks")?;
    for at in tasks.items()? {
        let id = match at.first(&["id", "name"]) {
            Some(id) => id.name()?,
            None => at.need("id")?.name()?,
        };
        let name = at.get("name").map(|n| n.name()).transpose()?.unwrap_or_else(|| id.clone());
        let mut task = RawTask { id, name, ..RawTask::default() };
        task.parents = names_in(&at, "parents")?;
        task.children = names_in(&at, "children")?;
        task.reads = names_in(&at, "inputFiles")?;
        task.writes = names_in(&at, "outputFiles")?;
        raw.add(&at, task)?;
    }
    if let Some(files) = specification.get("files") {
        for file in files.items()? {
            let name = match file.first(&["id", "name"]) {
                Some(name) => name.name()?,
                None => file.need("id")?.name()?,
            };
            let bytes = file.first(&["sizeInBytes", "size"]).map(|s| s.size_bytes()).transpose()?;
            raw.size(&name, bytes);
        }
    }
    let Some(execution) = execution else { return Ok(raw) };
    let Some(tasks) = execution.get("tasks") else { return Ok(raw) };
    for at in tasks.items()? {
        let id = match at.first(&["id", "name"]) {
            Some(id) => id.name()?,
            None => at.need("id")?.name()?,
        };
        let runtime_s = at.first(&["runtimeInSeconds", "runtime"]).map(|t| t.time_s()).transpose()?;
        // An execution may tell of tasks (transfers, clean-up) that are no part of the workflow.
        let Some(&index) = raw.by_id.get(&id) else { continue };
        raw.tasks[index].runtime_s = runtime_s.or(raw.tasks[index].runtime_s);
        raw.tasks[index].program = program(&at)?;
    }
    Ok(raw)
}

fn program(at: &At<'_>) -> Result<Option<String>, ImportError> {
    let Some(command) = at.get("command") else { return Ok(None) };
    let Some(program) = command.get("program") else { return Ok(None) };
    let program = program.text()?;
    let base = program.rsplit('/').next().unwrap_or_default();
    Ok((!base.is_empty() && base.len() <= super::cursor::NAME_BYTES_MAX).then(|| base.to_owned()))
}

/// Turns names into indices.
fn link(raw: Raw, traced: &mut Traced, warnings: &mut Vec<Warning>) {
    let relations = relations(&raw, warnings);
    let (files, several) = files(&raw, &relations);
    let mut data = BTreeSet::new();
    for file in &files {
        data.extend(file.writer.iter().flat_map(|w| file.readers.iter().map(|r| (*w, *r))));
    }
    let unsized_files: BTreeSet<&str> =
        files.iter().filter(|f| !raw.sizes.contains_key(&f.name)).map(|f| f.name.as_str()).collect();
    push(warnings, unsized_files.into_iter(), |files, first| Warning::NoSize { files, first });
    let differ: BTreeSet<&str> = raw.sizes_differ.iter().map(String::as_str).collect();
    push(warnings, differ.into_iter(), |files, first| Warning::SizesDiffer { files, first });
    push(warnings, several.into_iter(), |files, first| Warning::SeveralWriters { files, first });
    let timeless = raw.tasks.iter().filter(|t| t.runtime_s.is_none()).map(|t| t.id.as_str());
    push(warnings, timeless, |tasks, first| Warning::NoRuntime { tasks, first });
    traced.files = files;
    traced.tasks = raw
        .tasks
        .into_iter()
        .map(|task| Task {
            kind: task.program.unwrap_or_else(|| names::kind(&task.name).to_owned()),
            description: if task.name == task.id { String::new() } else { task.name },
            id: task.id,
            runtime_s: task.runtime_s.unwrap_or(0.0),
            ..Task::default()
        })
        .collect();
    for (parent, child) in relations.difference(&data) {
        traced.tasks[*child].after.push(*parent);
    }
}

/// One warning for many cases, with the first of them.
fn push<'n>(
    warnings: &mut Vec<Warning>,
    mut names: impl Iterator<Item = &'n str>,
    make: fn(usize, String) -> Warning,
) {
    if let Some(first) = names.next() {
        warnings.push(make(1 + names.count(), first.to_owned()));
    }
}

/// The (parent, child) pairs that the tasks declare.
fn relations(raw: &Raw, warnings: &mut Vec<Warning>) -> BTreeSet<(usize, usize)> {
    // A name is as good as an id as long as only one task has it.
    let mut by_name: HashMap<&str, Option<usize>> = HashMap::new();
    for (index, task) in raw.tasks.iter().enumerate() {
        by_name.entry(&task.name).and_modify(|known| *known = None).or_insert(Some(index));
    }
    let mut relations = BTreeSet::new();
    let mut unknown = BTreeSet::new();
    for (index, task) in raw.tasks.iter().enumerate() {
        let mut add = |name: &'_ String, pair: fn(usize, usize) -> (usize, usize)| match raw
            .by_id
            .get(name)
            .copied()
            .or_else(|| by_name.get(name.as_str()).copied().flatten())
        {
            Some(other) => drop(relations.insert(pair(index, other))),
            None => drop(unknown.insert(name.clone())),
        };
        task.parents.iter().for_each(|name| add(name, |child, parent| (parent, child)));
        task.children.iter().for_each(|name| add(name, |parent, child| (parent, child)));
    }
    let unknown = unknown.iter().map(String::as_str);
    push(warnings, unknown, |names, first| Warning::UnknownRelative { names, first });
    relations
}

/// Who hands what to whom, and the names that several tasks write.
fn files<'r>(raw: &'r Raw, relations: &BTreeSet<(usize, usize)>) -> (Vec<File>, BTreeSet<&'r str>) {
    #[derive(Default)]
    struct Uses {
        order: usize,
        writers: Vec<usize>,
        readers: Vec<usize>,
    }
    let mut uses: HashMap<&str, Uses> = HashMap::new();
    for (index, task) in raw.tasks.iter().enumerate() {
        for (names, writes) in [(&task.reads, false), (&task.writes, true)] {
            for name in names {
                let order = uses.len();
                let uses = uses.entry(name).or_insert_with(|| Uses { order, ..Uses::default() });
                let list = if writes { &mut uses.writers } else { &mut uses.readers };
                // Tasks come in order, so that a second mention follows the first.
                if list.last() != Some(&index) {
                    list.push(index);
                }
            }
        }
    }
    let mut named: Vec<(&str, Uses)> = uses.into_iter().collect();
    named.sort_unstable_by_key(|(_, uses)| uses.order);
    let (mut files, mut several) = (Vec::with_capacity(named.len()), BTreeSet::new());
    for (name, uses) in named {
        let mut of: BTreeMap<Option<usize>, Vec<usize>> =
            uses.writers.iter().map(|w| (Some(*w), vec![])).collect();
        if uses.writers.len() > 1 {
            several.insert(name);
        }
        for reader in uses.readers {
            let others = || uses.writers.iter().copied().filter(|w| *w != reader);
            match uses.writers.len() {
                // Who changes a file in place reads what was there before.
                0 => of.entry(None).or_default().push(reader),
                1 => of.entry(others().next()).or_default().push(reader),
                _ => {
                    let parents: Vec<usize> =
                        others().filter(|w| relations.contains(&(*w, reader))).collect();
                    match parents.is_empty() {
                        true if uses.writers.contains(&reader) => of.entry(None).or_default().push(reader),
                        true => of.entry(others().next()).or_default().push(reader),
                        false => parents.iter().for_each(|w| of.entry(Some(*w)).or_default().push(reader)),
                    }
                }
            }
        }
        let bytes = raw.sizes.get(name).copied().unwrap_or(0);
        let file = |(writer, readers)| File { name: name.to_owned(), bytes, writer, readers, carried: false };
        files.extend(of.into_iter().map(file));
    }
    (files, several)
}
