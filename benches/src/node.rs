//! A node in this process, and runs of small workflows on it.

use crate::native;
use anyhow::{Context, Result, bail, ensure};
use dflow_control::node::{
    Given, Journal, Node, NodeConfig, ObjectView, OutputValue, RunSpec, RunView, Spread,
};
use dflow_control::workflow::{self, Workflow};
use dflow_core::graph::StartPolicy;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A run that takes longer has gone wrong.
const PATIENCE: Duration = Duration::from_secs(600);

/// A node to measure.
pub(crate) struct Bench {
    node: Node,
}

/// What one run gave.
pub(crate) struct Done {
    /// From before the submission to the result in the caller's hands.
    pub(crate) elapsed: Duration,
    /// When it was submitted, on the clock of [`crate::machine::now_ns`].
    pub(crate) submitted_ns: u64,
    /// The last state of its steps.
    pub(crate) view: RunView,
    /// All that happened.
    pub(crate) journal: Journal,
    outputs: Vec<(String, OutputValue)>,
}

impl Bench {
    /// Starts a node.
    pub(crate) fn start(config: NodeConfig) -> Result<Bench> {
        native::build_function_processes()?;
        Ok(Bench { node: Node::start(config)? })
    }

    /// How the store's memory is backed, in words.
    pub(crate) fn huge_pages(&self) -> String {
        self.node.stats().map_or_else(|| "unknown".into(), |stats| stats.huge_pages)
    }

    /// One run, from submission to result.
    pub(crate) fn run(
        &self,
        workflow: &Arc<Workflow>,
        inputs: &[(&str, Given)],
        start: Option<StartPolicy>,
    ) -> Result<Done> {
        let inputs = inputs.iter().map(|(name, given)| ((*name).to_string(), given.clone())).collect();
        let spec = RunSpec { workflow: workflow.clone(), inputs, start, spread: Spread::Auto };
        let submitted_ns = crate::machine::now_ns();
        let begun = Instant::now();
        let handle = self.node.submit(spec)?;
        let Some(result) = handle.wait(Some(PATIENCE)) else {
            handle.cancel("the benchmark's patience is over");
            bail!("a run of {} did not end within {PATIENCE:?}", workflow.name);
        };
        let elapsed = begun.elapsed();
        let outputs = result.with_context(|| format!("workflow {}", workflow.name))?;
        let (view, journal) = (handle.watch().view(), handle.watch().take_journal());
        Ok(Done { elapsed, submitted_ns, view, journal, outputs })
    }
}

impl Done {
    /// Elapsed time in microseconds.
    pub(crate) fn elapsed_us(&self) -> f64 {
        self.elapsed.as_secs_f64() * 1e6
    }

    /// From the submission to the last event, by the node's own clock, in microseconds.
    pub(crate) fn makespan_us(&self) -> f64 {
        self.view.ended.map_or(f64::NAN, |ended| ended.since_us(self.view.submitted) as f64)
    }

    /// An output that is one object.
    pub(crate) fn object(&self, name: &str) -> Result<&ObjectView> {
        match self.outputs.iter().find(|(n, _)| n == name) {
            Some((_, OutputValue::Object(view))) => Ok(view),
            other => bail!("output {name} is {other:?} and not one object"),
        }
    }

    /// An output of `N` or more 8-byte words.
    pub(crate) fn words<const N: usize>(&self, name: &str) -> Result<[u64; N]> {
        let view = self.object(name)?;
        ensure!(view.len() >= N * 8, "output {name} has {} bytes, fewer than {N} words", view.len());
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(view.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into()?);
        }
        Ok(words)
    }
}

/// A workflow from text without its head.
pub(crate) fn parse(name: &str, body: &str, dir: &Path) -> Result<Arc<Workflow>> {
    let text = format!("apiVersion: dflow/v1\nkind: Workflow\nmetadata: {{name: {name}}}\n{body}");
    match workflow::parse(&text, &format!("{name}.yaml"), dir) {
        Ok(workflow) => Ok(Arc::new(workflow)),
        Err(report) => bail!("{report}"),
    }
}
