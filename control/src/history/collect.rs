//! From a run that has just ended to its record.

use super::record::*;
use super::{DRAWING_BYTES_MAX, LOG_BYTES_MAX, MESSAGE_BYTES_MAX};
use crate::graphview;
use crate::node::{
    Failed, Given, Journal, LogLine, NodeConfig, Nodes, Record, RunFailure, RunView, StepView, What,
};
use crate::workflow::Workflow;
use dflow_core::graph::{Condition, PortKind, Source, StartPolicy, StepKind};
use dflow_core::scheduler::RunError;
use dflow_proto::Tick;
use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Lines that functions print during a run, as many as are kept.
#[derive(Debug, Default)]
pub struct Printed {
    lines: VecDeque<LogFacts>,
    bytes: usize,
    dropped: u64,
}

impl Printed {
    /// Takes in further lines, and how many were lost before them.
    pub fn add(&mut self, lines: &[LogLine], dropped: u64) {
        self.dropped += dropped;
        for line in lines {
            self.bytes += line.step.len() + line.text.len();
            self.lines.push_back(LogFacts { step: line.step.clone(), text: line.text.clone() });
        }
        while self.bytes > LOG_BYTES_MAX {
            let Some(line) = self.lines.pop_front() else { break };
            self.bytes -= line.step.len() + line.text.len();
            self.dropped += 1;
        }
    }
}

/// What a record is made of.
pub struct Facts<'a> {
    /// The run's name ([`new_run_name`](super::new_run_name)).
    pub run: String,
    /// The workflow file, as it was given.
    pub file: String,
    /// What ran.
    pub workflow: &'a Workflow,
    /// Its graph ([`graph_facts`]), which many runs may share.
    pub graph: &'a GraphFacts,
    /// The start policy of the command line.
    pub start: Option<StartPolicy>,
    /// Its inputs ([`input_facts`]).
    pub inputs: Vec<InputFacts>,
    /// The node.
    pub node: &'a NodeConfig,
    /// How long ago the run was submitted.
    pub age: Duration,
    /// Its last state.
    pub view: &'a RunView,
    /// Its journal.
    pub journal: &'a Journal,
    /// How it ended.
    pub failure: Option<&'a RunFailure>,
    /// What functions printed.
    pub printed: Printed,
    /// The nodes, if there were several.
    pub nodes: Option<&'a Nodes>,
}

impl Facts<'_> {
    /// The record. `summary.record_bytes` is for the history to fill.
    pub fn record(self) -> RunRecord {
        let Facts { view, journal, workflow, .. } = self;
        let since = |t: Tick| t.since_us(view.submitted);
        let age_us = self.age.as_micros() as u64;
        let now_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        let attempts = journal.records.iter().filter(|r| matches!(r.what, What::Ended { .. })).count();
        let summary = Summary {
            run: self.run,
            workflow: workflow.graph.name.clone(),
            file: self.file,
            started_unix_us: now_us.saturating_sub(age_us),
            makespan_us: view.ended.map_or(age_us, since),
            outcome: outcome_of(self.failure),
            steps: view.steps.len() as u32,
            attempts: attempts as u32,
            bytes: view.steps.iter().map(|s| s.bytes).sum(),
            record_bytes: 0,
        };
        RunRecord {
            summary,
            inputs: self.inputs,
            steps: view.steps.iter().map(|s| row(s, since)).collect(),
            graph: self.graph.clone(),
            node: node_facts(self.node),
            start: self.start.map(start_facts),
            events: journal.records.iter().map(|r| event(r, since)).collect(),
            events_dropped: journal.dropped,
            failures: journal.failures.iter().map(|f| failure_facts(f, since)).collect(),
            logs: self.printed.lines.into(),
            logs_dropped: self.printed.dropped,
            places: self
                .nodes
                .map(|nodes| Places { nodes: nodes.names.clone(), placement: (*nodes.placement).clone() }),
        }
    }
}

/// How a run ended, in words that are short enough to be kept.
pub(crate) fn outcome_of(failure: Option<&RunFailure>) -> Outcome {
    let Some(failure) = failure else { return Outcome::Done };
    let text = cut(&failure.to_string());
    match failure {
        RunFailure::Run(RunError::Deadline { .. }) => Outcome::Deadline(text),
        RunFailure::Run(RunError::Cancelled(_)) => Outcome::Cancelled(text),
        _ => Outcome::Failed(text),
    }
}

/// The beginning of a message.
fn cut(text: &str) -> String {
    let mut at = text.len().min(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    text[..at].to_owned()
}

/// The inputs of a run that are given as values and files, or take their defaults.
pub fn input_facts(workflow: &Workflow, given: &[(String, Given)]) -> Vec<InputFacts> {
    let facts = |spec: &crate::workflow::InputSpec| {
        let given = given.iter().rev().find(|(name, _)| *name == spec.name).map(|(_, given)| given);
        let (bytes, file) = match given {
            None => (spec.default.as_ref().map_or(0, Vec::len) as u64, None),
            Some(Given::Text(text)) => (text.len() as u64, None),
            Some(Given::Json(value)) => (value.to_string().len() as u64, None),
            Some(Given::File(path)) => {
                (std::fs::metadata(path).map_or(0, |m| m.len()), Some(path.display().to_string()))
            }
        };
        InputFacts { name: spec.name.clone(), bytes, file }
    };
    workflow.inputs.iter().map(facts).collect()
}

fn row(step: &StepView, since: impl Fn(Tick) -> u64) -> StepRow {
    StepRow {
        name: step.name.clone(),
        state: step.state_word().to_owned(),
        items: step.items,
        done: step.done,
        failed: step.failed,
        retried: step.retried,
        bytes: step.bytes,
        start_us: step.first_start.map(&since),
        end_us: step.last_end.map(&since),
    }
}

fn node_facts(config: &NodeConfig) -> NodeFacts {
    NodeFacts {
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        cpu_milli: config.cpu_milli,
        slots: config.slots,
        store_bytes: config.store_bytes,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// A workflow's graph, as records keep it.
pub fn graph_facts(workflow: &Workflow) -> GraphFacts {
    let graph = &workflow.graph;
    let step = |step: &dflow_core::graph::Step| {
        let cases: &[_] = match &step.kind {
            StepKind::Switch(cases) => cases,
            StepKind::Call(_) => &[],
        };
        let (function, runtime) = match step.kind {
            StepKind::Switch(_) => (String::new(), "switch"),
            StepKind::Call(f) => {
                let spec = &workflow.functions[f as usize];
                (spec.name.clone(), spec.runtime.name())
            }
        };
        let reads = |c: &Condition| c.reads.iter().map(source_facts).collect::<Vec<_>>();
        StepFacts {
            name: step.name.clone(),
            function,
            runtime: runtime.to_owned(),
            inputs: step.inputs.iter().map(|i| (i.name.clone(), source_facts(&i.source))).collect(),
            outputs: step.outputs.iter().map(port_facts).collect(),
            foreach: step
                .foreach
                .as_ref()
                .map(|f| ForeachFacts { over: source_facts(&f.over), json: f.json }),
            cases: cases.iter().map(|case| source_facts(&case.value)).collect(),
            conditions: step
                .when
                .iter()
                .chain(cases.iter().filter_map(|c| c.when.as_ref()))
                .flat_map(reads)
                .collect(),
            after: step.after.clone(),
            start: start_facts(step.start),
            cpu_milli: step.cpu_milli,
        }
    };
    let drawing = graphview::render(workflow, graphview::Format::Svg);
    GraphFacts {
        inputs: graph.inputs.iter().map(|i| i.name.clone()).collect(),
        steps: graph.steps.iter().map(step).collect(),
        outputs: graph.outputs.iter().map(|o| (o.name.clone(), source_facts(&o.source))).collect(),
        drawing: if drawing.len() <= DRAWING_BYTES_MAX { drawing } else { String::new() },
    }
}

fn port_facts(port: &dflow_core::graph::OutputPort) -> PortFacts {
    PortFacts {
        name: port.name.clone(),
        many: port.kind == PortKind::Many,
        stream: port.kind == PortKind::Stream,
    }
}

fn source_facts(source: &Source) -> SourceFacts {
    match source {
        Source::Const(_) => SourceFacts::Const,
        Source::Input(input) => SourceFacts::Input(*input),
        Source::Output { step, port } => SourceFacts::Output { step: *step, port: *port },
        Source::Gather { step, port } => SourceFacts::Gather { step: *step, port: *port },
        Source::Item => SourceFacts::Item,
    }
}

fn start_facts(start: StartPolicy) -> StartFacts {
    match start {
        StartPolicy::Eager => StartFacts::Eager,
        StartPolicy::FirstByte => StartFacts::FirstByte,
        StartPolicy::First(k) => StartFacts::First(k),
        StartPolicy::AllReady => StartFacts::AllReady,
    }
}

fn event(record: &Record, since: impl Fn(Tick) -> u64) -> Event {
    let kind = match record.what {
        What::Started { early } => EventKind::Started { early },
        What::Dispatched { cold } => EventKind::Dispatched { cold },
        What::Began => EventKind::Began,
        What::Memory => EventKind::Memory,
        What::Blocked => EventKind::Blocked,
        What::Resumed => EventKind::Resumed,
        What::Waited(wait) => EventKind::Waited {
            input: wait.input,
            item: wait.item,
            from_us: wait.from_us,
            until_us: wait.until_us,
        },
        What::FirstByte { port, item } => EventKind::FirstByte { port, item },
        What::Sealed { port, item, bytes } => EventKind::Sealed { port, item, bytes },
        What::Decided { choice } => EventKind::Decided { choice },
        What::Ended { ok, times } => EventKind::Ended {
            ok,
            setup_us: times.setup_us,
            wait_us: times.wait_us,
            put_us: times.put_us,
            total_us: times.total_us,
            cpu_us: times.cpu_us,
        },
    };
    let id = record.invocation;
    Event { at_us: since(record.at), step: id.step, item: id.item, attempt: record.attempt, kind }
}

fn failure_facts(failed: &Failed, since: impl Fn(Tick) -> u64) -> FailureFacts {
    FailureFacts {
        at_us: since(failed.at),
        step: failed.invocation.step,
        item: failed.invocation.item,
        attempt: failed.attempt,
        message: cut(&failed.message),
        retried: failed.retried,
    }
}
