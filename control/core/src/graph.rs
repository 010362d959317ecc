//! The checked form of a workflow: what the front-end compiles to and the scheduler runs.
//!
//! Every index in a [`Graph`] that came from a front-end through [`Graph::check`] is in range, the
//! edges form no cycle, and edges come only from references ([`Source`]) and `after`.

use alloc::{boxed::Box, string::String, vec::Vec};
pub(crate) use check::Edges;
pub use check::GraphError;
pub use dflow_proto::link::{PortKind, PortType};
pub use order::Reader;
use serde::{Deserialize, Serialize};

mod check;
mod order;

/// Index of a step.
pub type StepIndex = u32;

/// A whole workflow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// Its name and version, `name@version`.
    pub name: String,
    /// Typed inputs.
    pub inputs: Vec<RunInput>,
    /// Code the steps use.
    pub functions: Vec<Function>,
    /// Steps, in file order.
    pub steps: Vec<Step>,
    /// What the run hands back.
    pub outputs: Vec<RunOutput>,
    /// Rules for the run as a whole.
    pub policy: Policy,
}

/// An input the caller gives.
#[derive(Clone, Debug, PartialEq)]
pub struct RunInput {
    /// Its name.
    pub name: String,
    /// How functions read it.
    pub ty: PortType,
}

/// Code that steps use. What a runtime needs beyond this stays in the front-end's table of the
/// same index; the scheduler only tells functions apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Most workers of it at one time.
    pub workers_max: u32,
    /// Its outputs are the same bytes in each attempt.
    pub deterministic: bool,
}

/// A vertex.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// What it does.
    pub kind: StepKind,
    /// References, in the order of the file.
    pub inputs: Vec<InputPort>,
    /// What it puts.
    pub outputs: Vec<OutputPort>,
    /// It runs only if this condition holds; else it is skipped.
    pub when: Option<Condition>,
    /// It runs once per item of a list.
    pub foreach: Option<Foreach>,
    /// Steps that must have ended (or been skipped) first, without data.
    pub after: Vec<StepIndex>,
    /// When an invocation may start.
    pub start: StartPolicy,
    /// What is tried again.
    pub retry: Retry,
    /// Milliseconds one attempt may take, waiting in gets included; 0 for no limit.
    pub timeout_ms: u64,
    /// CPU tokens it needs while it runs, in thousandths of a core; 0 for none.
    pub cpu_milli: u32,
    /// Expected run time in microseconds, for the critical path; 0 if unknown.
    pub estimate_us: u64,
    /// What its failure does.
    pub on_failure: OnFailure,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq)]
pub enum StepKind {
    /// Runs `Graph::functions[0]`.
    Call(u32),
    /// Hands on one of several values without copying: output port 0 *is* the chosen source's
    /// object. Reads only the chosen branch.
    Switch(Box<[Case]>),
}

/// One case of a switch, tried in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// `None` is `default: true`.
    pub when: Option<Condition>,
    /// The value if it holds.
    pub value: Source,
}

/// A condition, evaluated by the driver once its sources are sealed or skipped.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// The front-end's handle of the compiled expression.
    pub id: u32,
    /// Values it reads. A skipped one makes the condition false unless it is only asked by `skipped()`.
    pub reads: Vec<Source>,
    /// Steps it asks `skipped(..)` about: it waits until each has been skipped or has started.
    pub asks: Vec<StepIndex>,
}

/// A reference: the only thing that makes a data edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A literal of the file: the front-end's handle of its encoded bytes.
    Const(u32),
    /// `inputs.name`.
    Input(u16),
    /// `steps.name.port`: one object, or of a `many` port the whole list.
    Output {
        /// The producing step.
        step: StepIndex,
        /// Its output port.
        port: u16,
    },
    /// `steps.name.port[*]` of a foreach step: one object per item, in item order. Items that
    /// were tolerated as failed are left out.
    Gather {
        /// The foreach step.
        step: StepIndex,
        /// Its output port (plain or stream).
        port: u16,
    },
    /// `item.name` inside a foreach: this invocation's element of the list.
    Item,
}

/// A named input of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct InputPort {
    /// Its name.
    pub name: String,
    /// How the function reads it.
    pub ty: PortType,
    /// Where it comes from.
    pub source: Source,
    /// A skipped source gives null instead of skipping the step.
    pub optional: bool,
}

/// A named output of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputPort {
    /// Its name.
    pub name: String,
    /// How it is written.
    pub ty: PortType,
    /// Plain, stream or many.
    pub kind: PortKind,
    /// Expected size of one object in bytes, 0 if unknown.
    pub hint_bytes: u64,
    /// Largest size of one object in bytes, 0 for no limit.
    pub bytes_max: u64,
    /// Most items of a `many` port.
    pub items_max: u32,
    /// Each object is a file of its own since a program reads or writes it.
    pub file: bool,
}

/// Runs a step once per item.
#[derive(Clone, Debug, PartialEq)]
pub struct Foreach {
    /// The list: a `many` output, a [`Source::Gather`], or a JSON list (run input or JSON output;
    /// the driver then answers [`scheduler::Event::ListLength`] and slices elements itself).
    ///
    /// [`scheduler::Event::ListLength`]: crate::scheduler::Event::ListLength
    pub over: Source,
    /// Whether `over` is a JSON document rather than a list of objects.
    pub json: bool,
    /// Most invocations of it at one time.
    pub parallel_max: u32,
    /// Most items; more fail the step.
    pub items_max: u32,
    /// Failed items the step survives.
    pub tolerate: Tolerate,
}

/// How many failed items a foreach step survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerate {
    /// A number.
    Count(u32),
    /// A share of all items, in percent.
    Percent(u8),
}

/// When an invocation may start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartPolicy {
    /// As soon as the run exists; gets block.
    Eager,
    /// When the first byte of any one of its data inputs exists (or it has none).
    #[default]
    FirstByte,
    /// When this many of its data inputs are complete (a list counts as one, complete when pinned
    /// and all of its items sealed).
    First(u32),
    /// When all inputs are complete: control flow.
    AllReady,
}

/// What is tried again, and when.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Retry {
    /// Attempts beyond the first.
    pub retries_max: u32,
    /// Milliseconds before the first retry.
    pub backoff_ms: u64,
    /// Each further wait is this many thousandths of the one before.
    pub factor_milli: u32,
    /// Longest wait in milliseconds.
    pub backoff_ms_max: u64,
    /// The wait varies by up to this many thousandths either way (deterministically, from the
    /// invocation's id and attempt).
    pub jitter_milli: u32,
    /// Classes that are tried again.
    pub on: Vec<ErrorClass>,
}

/// Classes of failure that a retry names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorClass {
    /// The process died.
    Crash,
    /// Its node died.
    NodeLost,
    /// It exceeded its timeout.
    Timeout,
    /// It exceeded its memory.
    Oom,
    /// A program ended with this status.
    Exit(i32),
    /// The function reported an error of this name.
    Error(String),
    /// Any of these.
    All,
}

/// What the failure of a step does to the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The run fails.
    #[default]
    Fail,
    /// Its outputs count as skipped.
    Ignore,
}

/// An output of the run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunOutput {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub source: Source,
}

/// Rules for the run as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// Milliseconds the run may take; 0 for no limit.
    pub deadline_ms: u64,
    /// On failure, let what has started end before the run ends (nothing new starts).
    pub finish_started: bool,
}
