//! A past run as a WfFormat execution instance, schema 1.5, which other tools (and
//! [`import`](super::import) itself) read, and as a drawing.

use crate::graphview::quoted;
use crate::history::{EventKind, GraphFacts, RunRecord, SourceFacts};
use crate::text::{bytes_text, time_text, utc_text};
use crate::trace::{Timeline, invocation_name};
use dflow_proto::InvocationId;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

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
pub fn wfformat(record: &RunRecord) -> Value {
    let graph = &record.graph;
    let run = Run::read(record);
    let executed_at = utc_text(record.summary.started_unix_us);
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
        let function = if step.function.is_empty() { "switch" } else { &step.function };
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
            "machines": [record.node.host],
        }));
    }
    let files: Vec<Value> = used
        .iter()
        .map(|datum| {
            let bytes = match datum {
                Datum::Input(input) => record.inputs.get(usize::from(*input)).map_or(0, |input| input.bytes),
                Datum::Output { .. } => run.sizes.get(datum).copied().unwrap_or(0),
            };
            json!({"id": run.file(*datum), "sizeInBytes": bytes})
        })
        .collect();
    json!({
        "name": record.summary.workflow,
        "description": format!("A run of {} by DFlow {}", record.summary.workflow, record.node.version),
        "createdAt": executed_at,
        "schemaVersion": "1.5",
        "runtimeSystem": {"name": "DFlow", "version": record.node.version, "url": env!("CARGO_PKG_REPOSITORY")},
        "workflow": {
            "specification": {"tasks": tasks, "files": files},
            "execution": {
                "makespanInSeconds": record.summary.makespan_us as f64 / 1e6,
                "executedAt": executed_at,
                "tasks": executions,
                "machines": [{
                    "nodeName": record.node.host,
                    "system": "linux",
                    "architecture": std::env::consts::ARCH,
                    "cpu": {"coreCount": record.node.cpu_milli.div_ceil(1000)},
                }],
            },
        },
    })
}

struct Run<'r> {
    graph: &'r GraphFacts,
    executions: BTreeMap<InvocationId, Execution>,
    sizes: BTreeMap<Datum, u64>,
    /// The case that each switch chose.
    chosen: BTreeMap<u32, u32>,
}

impl<'r> Run<'r> {
    fn read(record: &'r RunRecord) -> Self {
        let graph = &record.graph;
        let mut run =
            Run { graph, executions: BTreeMap::new(), sizes: BTreeMap::new(), chosen: BTreeMap::new() };
        let mut began: BTreeMap<InvocationId, u64> = BTreeMap::new();
        for event in record.events.iter().filter(|event| (event.step as usize) < graph.steps.len()) {
            let (step, invocation) = (event.step, event.item);
            let at = InvocationId { step, item: invocation };
            match event.kind {
                EventKind::Began => drop(began.insert(at, event.at_us)),
                EventKind::Sealed { port, item, bytes } => {
                    // A later attempt puts the same objects again; the last counts.
                    run.sizes.insert(Datum::Output { step, invocation, port, item }, bytes);
                }
                EventKind::Decided { choice } => drop(run.chosen.insert(step, choice)),
                EventKind::Ended { ok: true, total_us, cpu_us, .. } => {
                    let began_us = began.get(&at).copied().unwrap_or(event.at_us);
                    let runtime_us = total_us.max(event.at_us.saturating_sub(began_us));
                    run.executions.insert(at, Execution { runtime_us, cpu_us });
                }
                _ => {}
            }
        }
        run
    }

    /// A task's id: the step's name, with the item of a foreach.
    fn task(&self, at: InvocationId) -> String {
        invocation_name(self.graph, at.step, at.item)
    }

    /// A file's id: the task and the port, with the item of a list.
    fn file(&self, datum: Datum) -> String {
        match datum {
            Datum::Input(input) => format!("inputs.{}", self.graph.inputs[usize::from(input)]),
            Datum::Output { step, invocation, port, item } => {
                let task = self.task(InvocationId { step, item: invocation });
                let port = &self.graph.steps[step as usize].outputs[usize::from(port)];
                if port.many {
                    format!("{task}.{}[{item}]", port.name)
                } else {
                    format!("{task}.{}", port.name)
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
    fn data(&self, source: &SourceFacts, at: InvocationId) -> Vec<Datum> {
        match *source {
            SourceFacts::Const => Vec::new(),
            SourceFacts::Input(input) => vec![Datum::Input(input)],
            SourceFacts::Output { step, port } | SourceFacts::Gather { step, port } => {
                let cases = &self.graph.steps[step as usize].cases;
                if cases.is_empty() {
                    return self.written(step, None, Some(port));
                }
                let chosen = self.chosen.get(&step).and_then(|choice| cases.get(*choice as usize));
                chosen.map(|value| self.data(value, at)).unwrap_or_default()
            }
            SourceFacts::Item => {
                let Some(foreach) = &self.graph.steps[at.step as usize].foreach else { return Vec::new() };
                let list = self.data(&foreach.over, at);
                if foreach.json { list } else { list.get(at.item as usize).copied().into_iter().collect() }
            }
        }
    }

    fn reads(&self, at: InvocationId) -> Vec<Datum> {
        let step = &self.graph.steps[at.step as usize];
        let reads: BTreeSet<Datum> =
            step.inputs.iter().flat_map(|(_, source)| self.data(source, at)).collect();
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

/// The run's graph for Graphviz: each step with its time and its bytes, each edge with what was read over it.
pub fn dot(record: &RunRecord) -> String {
    let timeline = Timeline::of(record);
    let mut out = format!("digraph {} {{\n  rankdir=LR;\n", quoted(&record.summary.workflow));
    out.push_str("  node [shape=box, style=rounded, fontname=\"sans-serif\", fontsize=11];\n");
    out.push_str("  edge [fontname=\"sans-serif\", fontsize=9];\n");
    for (index, step) in record.steps.iter().enumerate() {
        let took = match (step.start_us, step.end_us) {
            (Some(start_us), Some(end_us)) => time_text(end_us.saturating_sub(start_us)),
            _ => step.state.clone(),
        };
        let items = step.items.map(|items| format!(", {items} items")).unwrap_or_default();
        let label = format!("{}\n{took}{items}\n{}", step.name, bytes_text(step.bytes));
        let _ = writeln!(out, "  s{index} [label={}];", quoted(&label));
    }
    for edge in &timeline.edges {
        let label = quoted(&bytes_text(edge.bytes));
        let _ = writeln!(out, "  s{} -> s{} [label={label}];", edge.from, edge.to);
    }
    out.push_str("}\n");
    out
}
