//! A node in this process, and runs of small workflows on it, one after the other: what figures of one node are
//! made of.

use crate::node::{
    Given, Journal, Node, NodeConfig, ObjectView, OutputValue, RunFailure, RunSpec, RunView, Spread,
    StartError, SubmitError, What,
};
use crate::workflow::{self, Workflow};
use dflow_core::graph::StartPolicy;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A run that takes longer has gone wrong.
const PATIENCE: Duration = Duration::from_secs(600);

/// Why nothing, or no more, was measured.
#[derive(Debug, thiserror::Error)]
pub enum OneError {
    /// The node does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The workflow is wrong.
    #[error("{0}")]
    Workflow(String),
    /// A run was not taken.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// A run failed.
    #[error("a run of {workflow} failed: {source}")]
    Run {
        /// The workflow.
        workflow: String,
        /// Why.
        source: RunFailure,
    },
    /// A run did not end.
    #[error("a run of {workflow} did not end within {} s", PATIENCE.as_secs())]
    Late {
        /// The workflow.
        workflow: String,
    },
    /// An output is not what its function puts.
    #[error("output {name} {what}")]
    Output {
        /// The output.
        name: String,
        /// What it is.
        what: String,
    },
}

/// A node to measure. Dropped, it ends.
pub struct Bench {
    node: Node,
}

/// What one run gave.
pub struct Done {
    /// From before the submission to the result in the caller's hands.
    pub elapsed: Duration,
    /// When it was submitted, on the clock of [`now_ns`].
    pub submitted_ns: u64,
    /// The last state of its steps.
    pub view: RunView,
    /// All that happened.
    pub journal: Journal,
    outputs: Vec<(String, OutputValue)>,
}

impl Bench {
    /// Starts a node.
    ///
    /// # Errors
    /// It cannot start here.
    pub fn start(config: NodeConfig) -> Result<Bench, OneError> {
        Ok(Bench { node: Node::start(config)? })
    }

    /// How the store's memory is backed, in words.
    pub fn huge_pages(&self) -> String {
        self.node.stats().map_or_else(|| "unknown".into(), |stats| stats.huge_pages)
    }

    /// One run, from submission to result.
    ///
    /// # Errors
    /// It is not taken, fails, or does not end.
    pub fn run(
        &self,
        workflow: &Arc<Workflow>,
        inputs: &[(&str, Given)],
        start: Option<StartPolicy>,
    ) -> Result<Done, OneError> {
        let inputs = inputs.iter().map(|(name, given)| ((*name).to_string(), given.clone())).collect();
        let spec = RunSpec { workflow: workflow.clone(), inputs, start, spread: Spread::Auto };
        let name = || workflow.name.clone();
        let (submitted_ns, begun) = (now_ns(), Instant::now());
        let handle = self.node.submit(spec)?;
        let Some(result) = handle.wait(Some(PATIENCE)) else {
            handle.cancel("the benchmark's patience is over");
            return Err(OneError::Late { workflow: name() });
        };
        let elapsed = begun.elapsed();
        let outputs = result.map_err(|source| OneError::Run { workflow: name(), source })?;
        let (view, journal) = (handle.watch().view(), handle.watch().take_journal());
        Ok(Done { elapsed, submitted_ns, view, journal, outputs })
    }
}

impl Done {
    /// Elapsed time in microseconds.
    pub fn elapsed_us(&self) -> f64 {
        self.elapsed.as_secs_f64() * 1e6
    }

    /// From the submission to the last event, by the node's own clock, in microseconds.
    pub fn makespan_us(&self) -> f64 {
        self.view.ended.map_or(f64::NAN, |ended| ended.since_us(self.view.submitted) as f64)
    }

    /// An invocation found no process that was up. (One whose process was made ahead of it may find it up.)
    pub fn waited_for_a_process(&self) -> bool {
        self.journal.records.iter().any(|record| matches!(record.what, What::Dispatched { cold: true }))
    }

    /// An output that is one object.
    ///
    /// # Errors
    /// There is none, or it is something else.
    pub fn object(&self, name: &str) -> Result<&ObjectView, OneError> {
        match self.outputs.iter().find(|(n, _)| n == name) {
            Some((_, OutputValue::Object(view))) => Ok(view),
            other => {
                Err(OneError::Output { name: name.into(), what: format!("is {other:?} and not one object") })
            }
        }
    }

    /// An output of `N` or more 8-byte words of this machine.
    ///
    /// # Errors
    /// There is none, or it is shorter.
    pub fn words<const N: usize>(&self, name: &str) -> Result<[u64; N], OneError> {
        let view = self.object(name)?;
        if view.len() < N * 8 {
            let what = format!("has {} bytes, fewer than {N} words", view.len());
            return Err(OneError::Output { name: name.into(), what });
        }
        Ok(std::array::from_fn(|at| view[at * 8..][..8].try_into().map_or(0, u64::from_ne_bytes)))
    }
}

/// A workflow from text without its head. Files that it names are relative to `dir`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(name: &str, body: &str, dir: &Path) -> Result<Arc<Workflow>, OneError> {
    let text = format!("apiVersion: dflow/v1\nkind: Workflow\nmetadata: {{name: {name}}}\n{body}");
    let parsed = workflow::parse(&text, &format!("{name}.yaml"), dir);
    parsed.map(Arc::new).map_err(|report| OneError::Workflow(report.to_string()))
}

/// Nanoseconds on the monotonic clock, which all processes share.
pub fn now_ns() -> u64 {
    super::clock::monotonic_ns()
}
