//! What is kept of a run. These types are the format of the file: a change of any of them needs a
//! new [`FORMAT`](super::store::FORMAT).
//!
//! All times are microseconds since the run was submitted, unless a name says otherwise.

use dflow_core::placement::{HOME, Placement};
use serde::{Deserialize, Serialize};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// All outputs are there.
    Done,
    /// It failed; what its caller was told.
    Failed(String),
    /// Someone ended it.
    Cancelled(String),
    /// It exceeded its deadline; what its caller was told.
    Deadline(String),
}

impl Outcome {
    /// One word.
    pub const fn word(&self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Failed(_) => "failed",
            Outcome::Cancelled(_) => "cancelled",
            Outcome::Deadline(_) => "deadline",
        }
    }

    /// What its caller was told, unless it went well.
    pub fn message(&self) -> Option<&str> {
        match self {
            Outcome::Done => None,
            Outcome::Failed(text) | Outcome::Cancelled(text) | Outcome::Deadline(text) => Some(text),
        }
    }
}

/// A run in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The run's name, unique in this history; names sort by time.
    pub run: String,
    /// `name@version` of the workflow.
    pub workflow: String,
    /// The workflow file, as it was given.
    pub file: String,
    /// When it was submitted: microseconds since 1970, UTC.
    pub started_unix_us: u64,
    /// From submission to end.
    pub makespan_us: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Steps of the graph.
    pub steps: u32,
    /// Attempts that ended.
    pub attempts: u32,
    /// Bytes that steps put.
    pub bytes: u64,
    /// Bytes this record takes in the file, for the limit.
    pub record_bytes: u64,
}

/// All that is kept of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The run in one line.
    pub summary: Summary,
    /// Its inputs, in the order of the workflow.
    pub inputs: Vec<InputFacts>,
    /// Its steps at the end, in the order of the workflow.
    pub steps: Vec<StepRow>,
    /// The graph.
    pub graph: GraphFacts,
    /// The node it ran on.
    pub node: NodeFacts,
    /// The start policy of the command line, if it gave one.
    pub start: Option<StartFacts>,
    /// What happened, in the order in which the node took it in.
    pub events: Vec<Event>,
    /// Events that were not kept.
    pub events_dropped: u64,
    /// Attempts that failed.
    pub failures: Vec<FailureFacts>,
    /// Lines that functions printed, the last of them.
    pub logs: Vec<LogFacts>,
    /// Lines that were not kept.
    pub logs_dropped: u64,
    /// The nodes of a run over several.
    pub places: Option<Places>,
}

/// Where the parts of a run over several nodes lay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    /// The nodes' names; the home is the first.
    pub nodes: Vec<String>,
    /// Of each step, by their numbers.
    pub placement: Placement,
}

impl Places {
    /// The number of the node that executes an invocation; the home's of what the graph does not have.
    pub fn node_of(&self, step: u32, item: u32) -> u16 {
        self.placement.steps.get(step as usize).map_or(HOME, |place| place.host(item))
    }

    /// A node's name.
    pub fn name(&self, node: u16) -> &str {
        self.nodes.get(usize::from(node)).map_or("", String::as_str)
    }

    /// The names of the nodes that execute a step.
    pub fn of_step(&self, step: u32) -> Vec<&str> {
        let Some(place) = self.placement.steps.get(step as usize) else { return Vec::new() };
        let hosts: std::collections::BTreeSet<u16> = place.hosts().iter().copied().collect();
        hosts.into_iter().map(|node| self.name(node)).collect()
    }
}

/// An input of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFacts {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// The file it was read from.
    pub file: Option<String>,
}

/// A step at the end of its run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRow {
    /// Its name.
    pub name: String,
    /// `done`, `failed`, `skipped`, or how far it had come when the run ended.
    pub state: String,
    /// Items of a foreach.
    pub items: Option<u32>,
    /// Invocations that ended well.
    pub done: u32,
    /// Invocations that failed for good.
    pub failed: u32,
    /// Attempts that were tried again.
    pub retried: u32,
    /// Bytes it put.
    pub bytes: u64,
    /// When its first invocation started.
    pub start_us: Option<u64>,
    /// When its last invocation ended.
    pub end_us: Option<u64>,
}

/// The node that a run ran on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// The machine's name.
    pub host: String,
    /// CPU tokens in thousandths of a core.
    pub cpu_milli: u32,
    /// Invocations that may exist at one time.
    pub slots: u32,
    /// Memory of the store in bytes.
    pub store_bytes: u64,
    /// The version of DFlow.
    pub version: String,
}

/// A workflow's graph, as far as traces and reports need it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphFacts {
    /// Names of the run's inputs.
    pub inputs: Vec<String>,
    /// Its steps, in the order of the file.
    pub steps: Vec<StepFacts>,
    /// Its outputs: name and source.
    pub outputs: Vec<(String, SourceFacts)>,
    /// The graph drawn as SVG; empty if the drawing is too large to keep.
    pub drawing: String,
}

/// A step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepFacts {
    /// Its name.
    pub name: String,
    /// The function it uses; empty for a switch.
    pub function: String,
    /// What runs it: `python`, `native`, `exec`, `builtin` or `switch`.
    pub runtime: String,
    /// Named inputs.
    pub inputs: Vec<(String, SourceFacts)>,
    /// Named outputs.
    pub outputs: Vec<PortFacts>,
    /// It runs once per item.
    pub foreach: Option<ForeachFacts>,
    /// Values of a switch's cases.
    pub cases: Vec<SourceFacts>,
    /// What its conditions read.
    pub conditions: Vec<SourceFacts>,
    /// Steps that must have ended first.
    pub after: Vec<u32>,
    /// When an invocation may start.
    pub start: StartFacts,
    /// CPU tokens in thousandths of a core.
    pub cpu_milli: u32,
}

/// An output port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortFacts {
    /// Its name.
    pub name: String,
    /// It is a list.
    pub many: bool,
    /// It may be read while it grows.
    pub stream: bool,
}

/// What a foreach iterates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeachFacts {
    /// The list.
    pub over: SourceFacts,
    /// It is one JSON document, read by the node.
    pub json: bool,
}

/// A reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SourceFacts {
    /// A literal of the file.
    Const,
    /// An input of the run.
    Input(u16),
    /// An output of a step.
    Output {
        /// The step.
        step: u32,
        /// Its output port.
        port: u16,
    },
    /// An output of each invocation of a foreach step.
    Gather {
        /// The step.
        step: u32,
        /// Its output port.
        port: u16,
    },
    /// The invocation's own item.
    Item,
}

/// A start policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartFacts {
    /// As soon as the run exists.
    Eager,
    /// When some input exists.
    #[default]
    FirstByte,
    /// When this many inputs are complete.
    First(u32),
    /// When all inputs are complete.
    AllReady,
}

impl std::fmt::Display for StartFacts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartFacts::Eager => f.write_str("eager"),
            StartFacts::FirstByte => f.write_str("first-byte"),
            StartFacts::First(k) => write!(f, "first:{k}"),
            StartFacts::AllReady => f.write_str("all-ready"),
        }
    }
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When the node took it in.
    pub at_us: u64,
    /// The step.
    pub step: u32,
    /// The item of a foreach, else 0.
    pub item: u32,
    /// The try, from 1; 0 for what is about the step as a whole.
    pub attempt: u32,
    /// What.
    pub kind: EventKind,
}

/// Kinds of [`Event`]: those of [`What`](crate::node::What), in the form of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// It got a slot and a token.
    Started {
        /// Some input was incomplete.
        early: bool,
    },
    /// A process took it.
    Dispatched {
        /// It had to wait for one.
        cold: bool,
    },
    /// The first line, as the node heard of it.
    Began,
    /// It had to wait for memory until now.
    Memory,
    /// It sleeps in a get, as the node heard of it.
    Blocked,
    /// It is awake, as the node heard of it.
    Resumed,
    /// It waited for an input; times in microseconds since its first line.
    Waited {
        /// Index of the input.
        input: u16,
        /// Item of a list.
        item: Option<u32>,
        /// When the wait began.
        from_us: u64,
        /// When it was over.
        until_us: u64,
    },
    /// The first byte of an output exists.
    FirstByte {
        /// Output port.
        port: u16,
        /// Item of a list, else 0.
        item: u32,
    },
    /// An output is complete.
    Sealed {
        /// Output port.
        port: u16,
        /// Item of a list, else 0.
        item: u32,
        /// Its size.
        bytes: u64,
    },
    /// The condition or the switch was decided.
    Decided {
        /// Index of the case; for a condition 1 if it holds.
        choice: u32,
    },
    /// It is over. Durations by the worker's clock, 0 if it died.
    Ended {
        /// It ended well.
        ok: bool,
        /// From taking the command to the first line.
        setup_us: u64,
        /// In gets.
        wait_us: u64,
        /// In puts.
        put_us: u64,
        /// From the first line to the end.
        total_us: u64,
        /// CPU time.
        cpu_us: u64,
    },
}

/// An attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureFacts {
    /// When.
    pub at_us: u64,
    /// The step.
    pub step: u32,
    /// The item of a foreach, else 0.
    pub item: u32,
    /// The try.
    pub attempt: u32,
    /// Why.
    pub message: String,
    /// It was tried again.
    pub retried: bool,
}

/// A line that a function printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFacts {
    /// The step, with the item in brackets for a foreach.
    pub step: String,
    /// The line without its end.
    pub text: String,
}
