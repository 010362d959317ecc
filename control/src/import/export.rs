//! A finished run as a WfFormat execution instance, schema 1.5, which other tools (and
//! [`import`](super::import) itself) read.

use crate::node::{Journal, What};
use dflow_core::graph::{Graph, PortKind, Source, StepKind};
use dflow_proto::InvocationId;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What an execution instance tells beyond graph and journal.
#[derive(Clone, Debug, Default)]
pub struct RunFacts {
    /// When the run began, ISO 8601: `2026-01-31T12:00:00Z`.
    pub executed_at: String,
    /// From submission to end, in microseconds.
    pub makespan_us: u64,
    /// Sizes of the run's inputs in bytes, in the order of the graph; those missing count as 0.
    pub input_bytes: Vec<u64>,
    /// The machine's name.
    pub node_name: String,
    /// Its cores.
    pub cores: u32,
    /// Its memory in bytes.
    pub memory_bytes: u64,
}

/// One datum of a run: a run input, or an item of a port of an invocation (item 0 of a port that is
/// no list).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Datum {
    Input(u16),
    Output { step: u32, invocation: u32, port: u16, item: u32 },
}

/// What the journal tells of one invocation: of its last attempt that ended.
#[derive(Clone, Copy, Debug, Default)]
struct Execution {
    runtime_us: u64,
    cpu_us: u64,
}

/// The run as a WfFormat 1.5 document. Each invocation that ended well is a task, each object that
/// it put a file; a task's parents are those whose files it read and those it waited for.
pub fn wfformat(graph: &Graph, journal: &Journal, facts: &RunFacts) -> Value {
    let run = Run::read(graph, journal);
    let mut used = BTreeSet::new();
    let (mut tasks, mut executions) = (Vec::new(), Vec::new());
    let parents: BTreeMap<InvocationId, BTreeSet<InvocationId>> =
        run.executions.keys().map(|at| (*at, run.parents(*at))).collect();
    let mut children: BTreeMap<InvocationId, Vec<InvocationId>> = BTreeMap::new();
    for (child, parents) in &parents {
        parents.iter().for_each(|parent| children.entry(*parent).or_default().push(*child));
    }
    for (at, execution) in &run.executions {
        let reads = run.reads(*at);
        let writes: Vec<Datum> = run.written(at.step, Some(at.item), None);
        used.extend(reads.iter().chain(&writes).copied());
        let names = |data: &[Datum]| data.iter().map(|d| run.file(*d)).collect::<Vec<_>>();
        let ids =
            |of: &mut dyn Iterator<Item = &InvocationId>| of.map(|at| run.task(*at)).collect::<Vec<_>>();
        let step = &graph.steps[at.step as usize];
        tasks.push(json!({
            "name": step.name,
            "id": run.task(*at),
            "parents": ids(&mut parents[at].iter()),
            "children": ids(&mut children.get(at).into_iter().flatten()),
            "inputFiles": names(&reads),
            "outputFiles": names(&writes),
        }));
        let function = match step.kind {
            StepKind::Call(function) => graph.functions[function as usize].name.as_str(),
            StepKind::Switch(_) => "switch",
        };
        let runtime_s = execution.runtime_us as f64 / 1e6;
        let busy = if execution.runtime_us == 0 {
            0.0
        } else {
            execution.cpu_us as f64 / execution.runtime_us as f64
        };
        executions.push(json!({
            "id": run.task(*at),
            "runtimeInSeconds": runtime_s,
            "command": {"program": function},
            "coreCount": f64::from(step.cpu_milli) / 1000.0,
            "avgCPU": (busy * 1e6).round() / 1e4,
            "machines": [facts.node_name],
        }));
    }
    let files: Vec<Value> = used
        .iter()
        .map(|datum| {
            let bytes = match datum {
                Datum::Input(input) => facts.input_bytes.get(usize::from(*input)).copied().unwrap_or(0),
                Datum::Output { .. } => run.sizes.get(datum).copied().unwrap_or(0),
            };
            json!({"id": run.file(*datum), "sizeInBytes": bytes})
        })
        .collect();
    json!({
        "name": graph.name,
        "description": format!("A run of {} by DFlow {}", graph.name, env!("CARGO_PKG_VERSION")),
        "createdAt": facts.executed_at,
        "schemaVersion": "1.5",
        "runtimeSystem": {"name": "DFlow", "version": env!("CARGO_PKG_VERSION"), "url": env!("CARGO_PKG_REPOSITORY")},
        "workflow": {
            "specification": {"tasks": tasks, "files": files},
            "execution": {
                "makespanInSeconds": facts.makespan_us as f64 / 1e6,
                "executedAt": facts.executed_at,
                "tasks": executions,
                "machines": [{
                    "nodeName": facts.node_name,
                    "system": "linux",
                    "architecture": std::env::consts::ARCH,
                    "cpu": {"coreCount": facts.cores},
                    "memoryInBytes": facts.memory_bytes,
                }],
            },
        },
    })
}

struct Run<'g> {
    graph: &'g Graph,
    executions: BTreeMap<InvocationId, Execution>,
    sizes: BTreeMap<Datum, u64>,
}

impl<'g> Run<'g> {
    fn read(graph: &'g Graph, journal: &Journal) -> Self {
        let mut run = Run { graph, executions: BTreeMap::new(), sizes: BTreeMap::new() };
        let mut began: BTreeMap<InvocationId, u64> = BTreeMap::new();
        for record in &journal.records {
            // A record of another graph tells nothing about this one.
            if record.invocation.step as usize >= graph.steps.len() {
                continue;
            }
            let InvocationId { step, item: invocation } = record.invocation;
            match record.what {
                What::Began => drop(began.insert(record.invocation, record.at.0)),
                What::Sealed { port, item, bytes } => {
                    // A later attempt puts the same objects again; the last counts.
                    run.sizes.insert(Datum::Output { step, invocation, port, item }, bytes);
                }
                What::Ended { ok: true, times } => {
                    let began_us = began.get(&record.invocation).copied().unwrap_or(record.at.0);
                    let runtime_us = times.total_us.max(record.at.0.saturating_sub(began_us));
                    let execution = Execution { runtime_us, cpu_us: times.cpu_us };
                    run.executions.insert(record.invocation, execution);
                }
                _ => {}
            }
        }
        run
    }

    /// A task's id: the step's name, with the item of a foreach.
    fn task(&self, at: InvocationId) -> String {
        let step = &self.graph.steps[at.step as usize];
        match step.foreach {
            Some(_) => format!("{}[{}]", step.name, at.item),
            None => step.name.clone(),
        }
    }

    /// A file's id: the task and the port, with the item of a list.
    fn file(&self, datum: Datum) -> String {
        match datum {
            Datum::Input(input) => format!("inputs.{}", self.graph.inputs[usize::from(input)].name),
            Datum::Output { step, invocation, port, item } => {
                let task = self.task(InvocationId { step, item: invocation });
                let port = &self.graph.steps[step as usize].outputs[usize::from(port)];
                match port.kind {
                    PortKind::Many => format!("{task}.{}[{item}]", port.name),
                    PortKind::Plain | PortKind::Stream => format!("{task}.{}", port.name),
                }
            }
        }
    }

    /// The data that a step put, of one invocation or all, of one port or all.
    fn written(&self, step: u32, invocation: Option<u32>, port: Option<u16>) -> Vec<Datum> {
        let (low, high) = (invocation.unwrap_or(0), invocation.unwrap_or(u32::MAX));
        let begin = Datum::Output { step, invocation: low, port: 0, item: 0 };
        let end = Datum::Output { step, invocation: high, port: u16::MAX, item: u32::MAX };
        let ports = self.graph.steps[step as usize].outputs.len();
        let wanted = |datum: &Datum| match datum {
            Datum::Output { port: p, .. } => usize::from(*p) < ports && port.is_none_or(|port| port == *p),
            Datum::Input(_) => false,
        };
        self.sizes.range(begin..=end).map(|(datum, _)| *datum).filter(wanted).collect()
    }

    /// What a reference stood for in this run.
    fn data(&self, source: &Source, at: InvocationId) -> Vec<Datum> {
        match *source {
            Source::Const(_) => Vec::new(),
            Source::Input(input) => vec![Datum::Input(input)],
            Source::Output { step, port } | Source::Gather { step, port } => {
                match &self.graph.steps[step as usize].kind {
                    StepKind::Call(_) => self.written(step, None, Some(port)),
                    // The journal does not tell which case was chosen; the first that has data was.
                    StepKind::Switch(cases) => cases
                        .iter()
                        .map(|c| self.data(&c.value, at))
                        .find(|d| !d.is_empty())
                        .unwrap_or_default(),
                }
            }
            Source::Item => {
                let Some(foreach) = &self.graph.steps[at.step as usize].foreach else { return Vec::new() };
                let list = self.data(&foreach.over, at);
                if foreach.json { list } else { list.get(at.item as usize).copied().into_iter().collect() }
            }
        }
    }

    fn reads(&self, at: InvocationId) -> Vec<Datum> {
        let step = &self.graph.steps[at.step as usize];
        let reads: BTreeSet<Datum> =
            step.inputs.iter().flat_map(|port| self.data(&port.source, at)).collect();
        reads.into_iter().collect()
    }

    fn parents(&self, at: InvocationId) -> BTreeSet<InvocationId> {
        let writer = |datum: Datum| match datum {
            Datum::Input(_) => None,
            Datum::Output { step, invocation, .. } => Some(InvocationId { step, item: invocation }),
        };
        let mut parents: BTreeSet<InvocationId> = self.reads(at).into_iter().filter_map(writer).collect();
        for step in &self.graph.steps[at.step as usize].after {
            let first = InvocationId { step: *step, item: 0 };
            let last = InvocationId { step: *step, item: u32::MAX };
            parents.extend(self.executions.range(first..=last).map(|(at, _)| *at));
        }
        parents.retain(|parent| self.executions.contains_key(parent));
        parents
    }
}
