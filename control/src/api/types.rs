//! What requests and answers look like in JSON. Times are microseconds, sizes bytes.

use crate::daemon::{Deployed, Output, Run};
use crate::history::{RunRecord, Summary};
use crate::node::{RunView, StepView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};

/// An answer to a request that cannot be met.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: ErrorDetail,
}

/// What is wrong.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// For programs, such as `busy`, `no_workflow`, `bad_input`.
    pub code: String,
    /// For people: what, and what to do.
    pub message: String,
    /// Come back after so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_s: Option<u64>,
}

/// What is to run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitRequest {
    /// `name@version`, or `name` for the version that was deployed last.
    pub workflow: String,
    /// Values by input name, of the types that the workflow declares.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub inputs: BTreeMap<String, serde_json::Value>,
    /// When invocations may start, over the file: `eager`, `first-byte`, `all-ready` or `first:K`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
}

/// The beginning of a run.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Submitted {
    /// Its name.
    pub run: String,
    /// `name@version`.
    pub workflow: String,
    /// `running`, or `open` if it waits for inputs.
    pub state: String,
}

/// The answer to one of many submissions: one of the two is there.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct BatchAnswer {
    /// The run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorDetail>,
}

/// A run in one line.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RunSummary {
    /// Its name.
    pub run: String,
    /// `name@version`.
    pub workflow: String,
    /// The node that answers for it.
    pub home: String,
    /// `open`, `running`, `done`, `failed`, `cancelled` or `deadline`.
    pub state: String,
    /// Why it did not go well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Microseconds since 1970.
    pub submitted_unix_us: u64,
    /// From its submission to its end, or to now.
    pub elapsed_us: u64,
    /// Bytes that steps have put.
    pub bytes: u64,
}

/// A list of runs.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct RunList {
    /// Newest first.
    pub runs: Vec<RunSummary>,
    /// Nodes whose runs are not among them, since they do not answer.
    #[serde(default)]
    pub silent: Vec<String>,
}

/// A run as it is now.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RunStatus {
    /// The run in one line.
    #[serde(flatten)]
    pub summary: RunSummary,
    /// Its steps, in the order of the workflow.
    pub steps: Vec<StepStatus>,
    /// Its inputs.
    pub inputs: Vec<InputInfo>,
    /// Its outputs, once it is done and as long as they are kept.
    pub outputs: Vec<OutputInfo>,
}

/// A step as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepStatus {
    /// Its name.
    pub name: String,
    /// `waiting`, `queued`, `warming`, `running`, `waiting for data`, `done`, `failed` or `skipped`.
    pub state: String,
    /// Items of a foreach that are known so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<u32>,
    /// Invocations that run.
    pub running: u32,
    /// Invocations that ended well.
    pub done: u32,
    /// Invocations that failed for good.
    pub failed: u32,
    /// Attempts that were tried again.
    pub retried: u32,
    /// Bytes put.
    pub bytes: u64,
    /// When its first invocation started, from the run's submission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_us: Option<u64>,
    /// When its last invocation ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_us: Option<u64>,
}

/// An input of a run.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InputInfo {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// An output of a run.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OutputInfo {
    /// Its name.
    pub name: String,
    /// Its type, as the workflow declares it.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its size; of a list, that of all items together; none if it was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Sizes of the items of a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<Vec<u64>>,
}

/// A deployed workflow.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct WorkflowInfo {
    /// `name@version`.
    pub workflow: String,
    /// SHA-256 of its bundle.
    pub bundle: String,
    /// Files of the bundle.
    pub files: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Microseconds since 1970.
    pub deployed_unix_us: u64,
    /// What is suspect in it, as seen from the node; only in the answer to its deployment.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub warnings: String,
    /// Peers that could not be given it; only in the answer to its deployment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_on: Vec<String>,
}

/// A node.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// `ready`, `draining`, or why it cannot be used.
    pub state: String,
    /// Where its API listens.
    pub api: String,
    /// Where it listens for its peers.
    pub data: String,
    /// Its version.
    pub version: String,
    /// Its clock, microseconds since 1970.
    pub now_unix_us: u64,
    /// How far its clock is ahead of that of the node which was asked.
    #[serde(default)]
    pub clock_ahead_us: i64,
    /// How long it has been up.
    pub uptime_us: u64,
    /// Runs that are open or under way, of which it is the home.
    pub runs: u64,
    /// CPU tokens, in thousandths of a core.
    pub cpu_milli: u32,
    /// Of them in use.
    pub cpu_milli_used: i64,
    /// Slots.
    pub slots: u32,
    /// Of them in use.
    pub slots_used: u32,
    /// Function processes.
    pub workers: u32,
    /// Memory of the store.
    pub store_bytes: u64,
    /// Of it in use.
    pub store_used_bytes: u64,
    /// Objects in the store.
    pub objects: u32,
    /// Whether huge pages back the store.
    pub huge_pages: String,
    /// Its connections to those peers that it can give work to.
    #[serde(default)]
    pub links: Vec<LinkInfo>,
}

/// What carries data from a peer to a node.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct LinkInfo {
    /// The peer's name, empty if it has not said.
    pub peer: String,
    /// `rdma`, `uring` or `tcp`.
    pub transport: String,
    /// Why it: what it was chosen for, or what became of RDMA.
    pub why: String,
    /// Bytes read there over RDMA since the connection opened.
    pub rdma_bytes: u64,
    /// Bytes read there over streams.
    pub stream_bytes: u64,
}

/// A function's processes.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PoolInfo {
    /// The function.
    pub function: String,
    /// What runs it.
    pub runtime: String,
    /// The folder of its workflow.
    pub folder: String,
    /// `cold`, `loading`, `serving` or `broken`.
    pub state: String,
    /// Processes.
    pub workers: u32,
    /// Of them without work.
    pub idle: u32,
    /// Invocations that wait for one.
    pub queued: u32,
}

/// An object of the store.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ObjectInfo {
    /// The run, if the node still knows its name.
    pub run: Option<String>,
    /// The step that made it; none for an input of the run.
    pub step: Option<String>,
    /// The item of the step.
    pub invocation_item: u32,
    /// The output or input.
    pub port: String,
    /// The item of the output.
    pub item: u32,
    /// Its size.
    pub bytes: u64,
    /// It can be read at once.
    pub in_memory: bool,
    /// A copy of it is on disk.
    pub on_disk: bool,
    /// Readers that hold it.
    pub leases: u32,
}

/// A line that a function has printed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// The step, with the item in brackets for a foreach.
    pub step: String,
    /// The line.
    pub text: String,
}

/// Why a run is cancelled.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CancelRequest {
    /// For whoever asks about the run.
    #[serde(default)]
    pub reason: String,
}

/// How many, and of whom.
#[derive(Debug, Default, Deserialize, IntoParams)]
pub struct ListQuery {
    /// At most so many.
    pub max: Option<usize>,
    /// Only what this node has itself.
    #[serde(default)]
    pub local: bool,
    /// Only of this run.
    pub run: Option<String>,
}

impl RunSummary {
    pub(super) fn of(run: &Run, view: &RunView, home: &str) -> RunSummary {
        let ended = run.ended();
        let elapsed =
            ended.as_ref().map_or_else(|| run.opened.elapsed(), |e| e.at.duration_since(run.opened));
        RunSummary {
            run: run.name.clone(),
            workflow: run.workflow.name.clone(),
            home: home.to_owned(),
            state: run.word().to_owned(),
            error: ended.as_ref().and_then(|e| e.outcome.message()).map(str::to_owned),
            submitted_unix_us: run.opened_unix_us,
            elapsed_us: elapsed.as_micros() as u64,
            bytes: view.steps.iter().map(|s| s.bytes).sum(),
        }
    }

    pub(super) fn past(summary: &Summary, home: &str) -> RunSummary {
        RunSummary {
            run: summary.run.clone(),
            workflow: summary.workflow.clone(),
            home: home.to_owned(),
            state: summary.outcome.word().to_owned(),
            error: summary.outcome.message().map(str::to_owned),
            submitted_unix_us: summary.started_unix_us,
            elapsed_us: summary.makespan_us,
            bytes: summary.bytes,
        }
    }
}

impl RunStatus {
    pub(super) fn of(run: &Run, home: &str) -> RunStatus {
        let view = run.view();
        let inputs = run.inputs().into_iter().map(|i| InputInfo { name: i.name, bytes: i.bytes });
        RunStatus {
            summary: RunSummary::of(run, &view, home),
            steps: view.steps.iter().map(|step| StepStatus::of(step, &view)).collect(),
            inputs: inputs.collect(),
            outputs: outputs(run),
        }
    }

    pub(super) fn past(record: &RunRecord, home: &str) -> RunStatus {
        let step = |s: &crate::history::StepRow| StepStatus {
            name: s.name.clone(),
            state: s.state.clone(),
            items: s.items,
            running: 0,
            done: s.done,
            failed: s.failed,
            retried: s.retried,
            bytes: s.bytes,
            start_us: s.start_us,
            end_us: s.end_us,
        };
        RunStatus {
            summary: RunSummary::past(&record.summary, home),
            steps: record.steps.iter().map(step).collect(),
            inputs: record
                .inputs
                .iter()
                .map(|i| InputInfo { name: i.name.clone(), bytes: i.bytes })
                .collect(),
            outputs: Vec::new(),
        }
    }

    /// Whether nothing of it will change any more.
    pub fn is_over(&self) -> bool {
        !matches!(self.summary.state.as_str(), "open" | "running")
    }
}

impl StepStatus {
    pub(super) fn of(step: &StepView, view: &RunView) -> StepStatus {
        StepStatus {
            name: step.name.clone(),
            state: step.state_word().to_owned(),
            items: step.items,
            running: step.running,
            done: step.done,
            failed: step.failed,
            retried: step.retried,
            bytes: step.bytes,
            start_us: step.first_start.map(|t| t.since_us(view.submitted)),
            end_us: step.last_end.map(|t| t.since_us(view.submitted)),
        }
    }
}

fn outputs(run: &Run) -> Vec<OutputInfo> {
    let Some(outputs) = run.ended().and_then(|e| e.outputs) else { return Vec::new() };
    let specs = run.workflow.workflow().map(|w| w.outputs.as_slice()).unwrap_or_default();
    let info = |(name, output): &(String, Output)| {
        let (bytes, items) = match output {
            Output::Null => (None, None),
            Output::Object(object) => (Some(object.len() as u64), None),
            Output::List(items) => {
                let sizes: Vec<u64> = items.iter().map(|item| item.len() as u64).collect();
                (Some(sizes.iter().sum()), Some(sizes))
            }
        };
        let ty = specs.iter().find(|s| s.name == *name).map_or("bytes", |s| s.ty.name());
        OutputInfo { name: name.clone(), ty: ty.to_owned(), bytes, items }
    };
    outputs.iter().map(info).collect()
}

impl WorkflowInfo {
    pub(super) fn of(deployed: &Deployed) -> WorkflowInfo {
        WorkflowInfo {
            workflow: deployed.name.clone(),
            bundle: deployed.row.bundle.clone(),
            files: deployed.row.files,
            bytes: deployed.row.bytes,
            deployed_unix_us: deployed.row.deployed_unix_us,
            warnings: String::new(),
            missing_on: Vec::new(),
        }
    }
}
