//! Workflows under load, and what DFlow's way gains: contenders side by side in one interleaved
//! measurement.
//!
//! ```text
//!   files ──▶ Subject    ┐                        ┌─▶ table
//!   options ▶ Contender ─┼─▶ [measure] ─▶ Results ─┼─▶ JSON
//!             Load      ─┘    a node each          └─▶ SVG
//! ```
//! Every contender has nodes of its own in this process. They take turns: a block of runs under the
//! whole load, then the next one's block, so that what changes on the machine changes for all.

mod chart;
mod clock;
mod cluster;
mod drive;
mod grouping;
pub mod local;
mod measure;
mod memcpy;
pub mod one;
mod remote;
mod results;
mod scale;
pub mod server;
mod stats;
pub mod transfer;

pub use measure::measure;
pub use memcpy::Memcpy;
pub use remote::RemoteError;
pub use results::{Results, Row};
pub use scale::scale;
pub use stats::{P99_SAMPLES_MIN, Quantiles};

use crate::node::{Given, NodeConfig, Overlaps};
use crate::workflow::Workflow;
use dflow_core::graph::StartPolicy;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A workflow to run.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its name in results: the file's, without folder and extension.
    pub name: String,
    /// The workflow.
    pub workflow: Arc<Workflow>,
    /// Its inputs.
    pub inputs: Vec<(String, Given)>,
}

/// A system, or a way of running, that is measured beside others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contender {
    /// Its name in results.
    pub name: String,
    /// How it works.
    pub way: Way,
}

/// How a contender works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// DFlow, with a start policy that overrides the files'.
    Start(Option<StartPolicy>),
    /// DFlow without one of its overlaps.
    Without(Overlaps),
    /// DFlow without a journal of what happens: no traces, no reports, no history.
    Untraced,
    /// Control flow on DFlow's own store: invocations start when their inputs are complete, and
    /// nothing is warmed ahead.
    SameStore,
    /// Another system, imitated.
    Imitated(System),
}

/// The systems that are imitated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// A central trigger; all data through a remote store.
    Cflow,
    /// Triggers and data stay on a worker where they can; a remote store between workers.
    Faasflow,
    /// The same with a Redis server as the remote store.
    FaasflowRedis,
    /// All of a run on one worker, data and triggers through its message bus.
    Knix,
}

impl Contender {
    /// DFlow as it is.
    pub fn dflow() -> Self {
        Contender { name: "dflow".into(), way: Way::Start(None) }
    }

    /// DFlow with this start policy for all steps.
    pub fn start(policy: StartPolicy) -> Self {
        let name = match policy {
            StartPolicy::Eager => "eager".into(),
            StartPolicy::FirstByte => "first-byte".into(),
            StartPolicy::First(k) => format!("first:{k}"),
            StartPolicy::AllReady => "all-ready".into(),
        };
        Contender { name, way: Way::Start(Some(policy)) }
    }

    /// DFlow without an overlap ([`Overlaps::NAMES`]) or without `trace`; `None` for another name.
    pub fn without(name: &str) -> Option<Self> {
        let way = match name {
            "trace" => Way::Untraced,
            _ => Way::Without(Overlaps::without(name)?),
        };
        Some(Contender { name: format!("without-{name}"), way })
    }

    /// The names of baselines.
    pub const BASELINES: [&'static str; 5] = ["same-store", "cflow", "faasflow", "faasflow-redis", "knix"];

    /// A baseline by its name.
    pub fn baseline(name: &str) -> Option<Self> {
        let way = match name {
            "same-store" => Way::SameStore,
            "cflow" => Way::Imitated(System::Cflow),
            "faasflow" => Way::Imitated(System::Faasflow),
            "faasflow-redis" => Way::Imitated(System::FaasflowRedis),
            "knix" => Way::Imitated(System::Knix),
            _ => return None,
        };
        Some(Contender { name: name.into(), way })
    }
}

/// When runs begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// So many clients, each of which begins the next run when its last has ended.
    Closed {
        /// How many.
        clients: u32,
    },
    /// Runs begin by the clock, whether or not those before have ended; latency counts from then.
    Open {
        /// Runs a second.
        per_s: f64,
        /// At random (exponential gaps), or evenly.
        poisson: bool,
    },
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The workflows; more than one run side by side, in turns.
    pub subjects: Vec<Subject>,
    /// Who is compared. The first is what others are compared with.
    pub contenders: Vec<Contender>,
    /// The load.
    pub load: Load,
    /// Runs of each contender, over all workflows.
    pub runs: u32,
    /// Runs of each workflow on each node before anything is measured.
    pub warmups: u32,
    /// Each run finds no function process and no loaded code.
    pub cold: bool,
    /// Of the arrivals.
    pub seed: u64,
    /// A run that takes longer is cancelled and has failed.
    pub patience: Duration,
    /// A node, as contenders have it unless their way says otherwise.
    pub node: NodeConfig,
    /// Nodes of each contender; imitated systems then have as many workers.
    pub nodes: u32,
    /// Workers of the imitated systems; virtual ones, on one node.
    pub workers: u32,
    /// Cores of each of them.
    pub worker_cpus: u32,
    /// Bytes a second of each node's link, and of that to a remote store, each way.
    pub link_bytes_per_s: u64,
    /// Once this is more than 0, all ends soon, without results.
    pub interrupts: Arc<AtomicU32>,
}

impl Plan {
    /// Somebody wants it to end.
    fn interrupted(&self) -> bool {
        self.interrupts.load(Ordering::Relaxed) > 0
    }
}

/// Why nothing is measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A node does not start.
    #[error("the node of {contender} does not start: {source}")]
    Node {
        /// Whose.
        contender: String,
        /// Why.
        source: crate::node::StartError,
    },
    /// Nobody is left to be measured.
    #[error("no contender could be set up: {0}")]
    Nobody(String),
    /// It was told to end.
    #[error("interrupted after {done} of {runs} runs each; nothing is written")]
    Interrupted {
        /// Runs that each contender had then.
        done: u32,
        /// Runs that each was to have.
        runs: u32,
    },
    /// The plan asks for what cannot be.
    #[error("cold runs come one after the other: use --closed 1 with --cold")]
    ColdLoad,
}
