//! The steps that a traced workflow becomes: which ports they have and what goes through each.

use super::error::ImportError;
use super::names::{self, Names};
use super::options::ImportOptions;
use super::traced::{File, Traced};
use dflow_proto::limits::STEPS_MAX;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A task with more files than this puts those that the same tasks read into one port: they are
/// always handed over together.
const FILES_MAX: usize = 8;
/// Most objects a step puts; helpers put the rest. Leaves room for `sum`.
const PUTS_MAX: usize = dflow_proto::limits::OUTPUT_PORTS_MAX - 1;
/// Most objects a step reads; more are joined by steps before it. Leaves room for `spec` and `item`.
const READS_MAX: usize = 1000;
/// What comes from outside is put by about this many steps side by side, none of which is small.
const EXTERNAL_STEPS: u64 = 8;
/// The least such a step puts before another is made, in bytes.
const EXTERNAL_BYTES_MIN: u64 = 16 << 20;
/// Most kinds of tasks that get a pool of their own.
const KINDS_MAX: usize = 64;

/// A step to be written.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) description: String,
    /// Index into [`Plan::functions`].
    pub(super) function: usize,
    pub(super) sleep_us: u64,
    /// Sizes of its outputs; the index is the port's number.
    pub(super) outs: Vec<Out>,
    pub(super) reads: Vec<Read>,
    pub(super) after: Vec<String>,
    pub(super) when: Option<String>,
    /// The list it runs over.
    pub(super) foreach: Option<String>,
    /// It is none of the tasks: it needs no CPU token.
    pub(super) helper: bool,
    /// Nobody reads what it puts: it tells the checksum of what it read, for the run's result.
    pub(super) sum: bool,
}

/// An output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Out {
    /// Of the object, or of each item.
    pub(super) bytes: u64,
    /// Of a list, how many.
    pub(super) items: Option<u32>,
}

/// An input.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub(super) reference: String,
    /// Its writer may be skipped when the reader is not.
    pub(super) optional: bool,
    bytes: u64,
}

/// A function: what tasks of one kind and shape use.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: String,
    /// Of each output, whether it is a list.
    pub(super) lists: Vec<bool>,
    /// It tells the checksum of what it read, too.
    pub(super) sum: bool,
}

/// All that is to be written.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) functions: Vec<Function>,
    pub(super) steps: Vec<Step>,
}

/// Makes the steps.
///
/// # Errors
/// There would be too many of them.
pub(super) fn plan(traced: &Traced, options: &ImportOptions) -> Result<Plan, ImportError> {
    let mut planner = Planner::new(traced, options);
    if options.externals {
        planner.externals();
    }
    for task in 0..traced.tasks.len() {
        planner.task(task);
    }
    let have = planner.plan.steps.len();
    if have > STEPS_MAX {
        return Err(ImportError::TooMany { what: "steps, helpers included", have, max: STEPS_MAX });
    }
    Ok(planner.plan)
}

struct Planner<'t> {
    traced: &'t Traced,
    options: &'t ImportOptions,
    step_names: Names,
    /// Of each task.
    names: Vec<String>,
    /// Of each task, the steps that put its objects: its own, then its helpers'.
    layouts: Vec<Vec<(String, Vec<Object>)>>,
    /// Files by the task that writes them.
    written: Vec<Vec<usize>>,
    /// What each task reads.
    reads: Vec<Vec<Read>>,
    kinds: bool,
    function_names: Names,
    functions: HashMap<(String, Vec<bool>, bool), usize>,
    plan: Plan,
}

impl<'t> Planner<'t> {
    fn new(traced: &'t Traced, options: &'t ImportOptions) -> Self {
        let mut step_names = Names::default();
        let names = traced.tasks.iter().map(|task| step_names.fresh(&task.id)).collect();
        let mut written = vec![Vec::new(); traced.tasks.len()];
        for (index, file) in traced.files.iter().enumerate() {
            file.writer.iter().for_each(|writer| written[*writer].push(index));
        }
        let kinds: BTreeSet<&str> = traced.tasks.iter().map(|t| t.kind.as_str()).collect();
        let mut planner = Planner {
            traced,
            options,
            step_names,
            names,
            layouts: Vec::new(),
            written,
            reads: vec![Vec::new(); traced.tasks.len()],
            kinds: kinds.len() <= KINDS_MAX,
            function_names: Names::default(),
            functions: HashMap::new(),
            plan: Plan::default(),
        };
        // Who reads what is known before the first task is planned, whatever their order in the file.
        for task in 0..traced.tasks.len() {
            let layout = planner.layout(task);
            for (name, objects) in &layout {
                for (port, object) in objects.iter().enumerate().filter(|(_, object)| !object.carried) {
                    planner.tell(&format!("steps.{name}.o{port}"), task, object);
                }
            }
            planner.layouts.push(layout);
        }
        planner
    }

    /// The function of a step.
    fn function(&mut self, kind: &str, outs: &[Out], sum: bool) -> usize {
        let kind = if self.kinds { names::sanitised(kind) } else { "task".into() };
        let lists: Vec<bool> = outs.iter().map(|out| out.items.is_some()).collect();
        let index = self.plan.functions.len();
        *self.functions.entry((kind.clone(), lists.clone(), sum)).or_insert_with(|| {
            self.plan.functions.push(Function { name: self.function_names.fresh(&kind), lists, sum });
            index
        })
    }

    /// The objects that `files` become: the files in each, and its size in the source. Those that
    /// the same tasks read go together when there are many, or `pack` says so.
    fn objects(&self, files: &[usize], pack: bool) -> Vec<(Vec<usize>, u64)> {
        let of = |index: &usize| &self.traced.files[*index];
        if files.len() <= FILES_MAX && !pack {
            return files.iter().map(|index| (of(index).readers.clone(), of(index).bytes)).collect();
        }
        let mut groups: BTreeMap<&[usize], (usize, u64)> = BTreeMap::new();
        for (order, index) in files.iter().enumerate() {
            let File { readers, bytes, .. } = of(index);
            let group = groups.entry(readers).or_insert((order, 0));
            group.1 = group.1.saturating_add(*bytes);
        }
        let mut groups: Vec<(usize, Vec<usize>, u64)> =
            groups.into_iter().map(|(readers, (order, bytes))| (order, readers.to_vec(), bytes)).collect();
        groups.sort_unstable_by_key(|(order, ..)| *order);
        groups.into_iter().map(|(_, readers, bytes)| (readers, bytes)).collect()
    }

    /// Tells the readers of an object where it is.
    fn tell(&mut self, reference: &str, writer: usize, object: &Object) {
        let writer = &self.traced.tasks[writer];
        let list = if writer.foreach.is_some() { "[*]" } else { "" };
        for reader in &object.readers {
            let optional = writer.when.is_some() && writer.when != self.traced.tasks[*reader].when;
            let read = Read { reference: format!("{reference}{list}"), optional, bytes: object.source_bytes };
            self.reads[*reader].push(read);
        }
    }

    /// The objects that a task puts, by the steps that put them.
    fn layout(&mut self, task: usize) -> Vec<(String, Vec<Object>)> {
        let files = &self.written[task];
        let (carried, own): (Vec<usize>, Vec<usize>) =
            files.iter().copied().partition(|file| self.traced.files[*file].carried);
        let mut objects = Vec::new();
        if let Some(items) = self.traced.tasks[task].items {
            let source_bytes =
                carried.iter().fold(0, |sum: u64, file| sum.saturating_add(self.traced.files[*file].bytes));
            objects.push(Object { readers: Vec::new(), source_bytes, items: Some(items), carried: true });
        }
        for (readers, source_bytes) in self.objects(&own, false) {
            objects.push(Object { readers, source_bytes, items: None, carried: false });
        }
        // A task that puts nothing is one step all the same.
        let first = objects.len().min(PUTS_MAX);
        let rest = objects.split_off(first);
        let mut steps = vec![(self.names[task].clone(), objects)];
        let mut rest = rest.into_iter().peekable();
        while rest.peek().is_some() {
            let name = self.step_names.fresh(&format!("{}_more", self.names[task]));
            steps.push((name, rest.by_ref().take(PUTS_MAX).collect()));
        }
        steps
    }

    fn outs(&self, objects: &[Object], share: u32) -> Vec<Out> {
        let out = |object: &Object| {
            let parts = u64::from(object.items.unwrap_or(share).max(1));
            Out { bytes: self.options.bytes(object.source_bytes.div_ceil(parts)), items: object.items }
        };
        objects.iter().map(out).collect()
    }

    fn task(&mut self, index: usize) {
        let task = &self.traced.tasks[index];
        // What a function run over a list puts is all items' together in the source.
        let share = task.foreach.and_then(|list| self.traced.tasks[list].items).unwrap_or(1);
        let layout = std::mem::take(&mut self.layouts[index]);
        // A list has readers though none of its objects says so.
        let read = |object: &Object| object.carried || !object.readers.is_empty();
        let last = !layout.iter().flat_map(|(_, objects)| objects).any(read);
        for (number, (name, objects)) in layout.into_iter().enumerate() {
            let outs = self.outs(&objects, share);
            let mut step = Step { name, when: task.when.clone(), ..Step::default() };
            if number == 0 {
                step.description = match task.description.as_str() {
                    "" if task.id == step.name => String::new(),
                    "" => task.id.clone(),
                    description => description.to_owned(),
                };
                step.sum = last;
                step.function = self.function(&task.kind, &outs, last);
                step.sleep_us = self.options.sleep_us(task.runtime_s);
                step.after = task.after.iter().map(|t| self.names[*t].clone()).collect();
                step.foreach = task.foreach.map(|list| format!("steps.{}.o0", self.names[list]));
                let reads = std::mem::take(&mut self.reads[index]);
                step.reads = self.joined(index, reads);
            } else {
                step.description =
                    format!("More of what {} puts: a step has {PUTS_MAX} ports.", self.names[index]);
                step.function = self.function("more", &outs, false);
                step.after = vec![self.names[index].clone()];
                step.helper = true;
            }
            step.outs = outs;
            self.plan.steps.push(step);
        }
    }

    /// At most [`READS_MAX`] inputs; where there are more, steps that join them come before.
    fn joined(&mut self, task: usize, mut reads: Vec<Read>) -> Vec<Read> {
        while reads.len() > READS_MAX {
            let mut joins = Vec::new();
            for part in reads.chunks(READS_MAX) {
                let name = self.step_names.fresh(&format!("{}_join", self.names[task]));
                let bytes = part.iter().fold(0u64, |sum, read| sum.saturating_add(read.bytes));
                let outs = vec![Out { bytes: self.options.bytes(bytes), items: None }];
                joins.push(Read { reference: format!("steps.{name}.o0"), optional: false, bytes });
                let function = self.function("join", &outs, false);
                self.plan.steps.push(Step {
                    description: format!(
                        "Joins some of what {} reads: a step reads {READS_MAX} objects.",
                        self.names[task]
                    ),
                    function,
                    name,
                    outs,
                    reads: part.to_vec(),
                    when: self.traced.tasks[task].when.clone(),
                    helper: true,
                    ..Step::default()
                });
            }
            reads = joins;
        }
        reads
    }

    /// Steps that put what comes from outside, in the order in which it is needed.
    fn externals(&mut self) {
        let levels = self.traced.levels();
        let outside = |(index, file): (usize, &File)| file.writer.is_none().then_some(index);
        let files: Vec<usize> = self.traced.files.iter().enumerate().filter_map(outside).collect();
        let mut objects = self.objects(&files, true);
        objects.sort_by_key(|(readers, _)| readers.iter().map(|reader| levels[*reader]).min());
        let total = objects.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let enough = (total / EXTERNAL_STEPS).max(EXTERNAL_BYTES_MIN);
        let mut rest = objects.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0u64;
            let full = rest.iter().take(PUTS_MAX).position(|(_, more)| {
                bytes = bytes.saturating_add(*more);
                bytes >= enough
            });
            let (part, others) = rest.split_at(full.map_or(rest.len().min(PUTS_MAX), |last| last + 1));
            rest = others;
            let name = self.step_names.fresh("external");
            let mut outs = Vec::with_capacity(part.len());
            for (port, (readers, bytes)) in part.iter().enumerate() {
                outs.push(Out { bytes: self.options.bytes(*bytes), items: None });
                let reference = format!("steps.{name}.o{port}");
                for reader in readers {
                    let read = Read { reference: reference.clone(), optional: false, bytes: *bytes };
                    self.reads[*reader].push(read);
                }
            }
            let function = self.function("external", &outs, false);
            let description = "Puts what comes from outside the workflow.".into();
            self.plan.steps.push(Step { name, description, function, outs, helper: true, ..Step::default() });
        }
    }
}

/// What a task puts as one object.
struct Object {
    readers: Vec<usize>,
    /// In the source, of all items together.
    source_bytes: u64,
    items: Option<u32>,
    /// It is the list itself, which is read item by item.
    carried: bool,
}
