//! Why a node cannot start, and why it refuses what it is asked.

use crate::bundle::BundleError;
use crate::node::{StartError, SubmitError};
use crate::workflow::Report;
use std::io;
use std::path::PathBuf;

/// A node that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A port that it should listen on.
    #[error("cannot listen on {address} (`{key}`): {source}{}", .hint)]
    Listen {
        /// The key of the configuration.
        key: &'static str,
        /// Its value.
        address: String,
        /// Why.
        source: io::Error,
        /// What to do.
        hint: String,
    },
    /// The engine.
    #[error("{0}")]
    Start(#[from] StartError),
    /// What it keeps.
    #[error("{0}")]
    Registry(#[from] RegistryError),
    /// The engine has ended by itself: a mistake of DFlow.
    #[error(
        "the engine of this node died: {why}; its runs have ended with it. This is a mistake of DFlow: please report it"
    )]
    Died {
        /// What its thread said.
        why: String,
    },
    /// Anything else of the operating system.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// What can be wrong with deployed workflows.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The state directory has a node already.
    #[error(
        "{} is in use by another node of this machine; give this one its own directory with `state`",
        path.display()
    )]
    InUse {
        /// Its file.
        path: PathBuf,
    },
    /// It cannot be read or written.
    #[error("cannot use {}: {why}; the node's `state` directory must be writable and have room", path.display())]
    Storage {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The bundle.
    #[error("{0}")]
    Bundle(#[from] BundleError),
    /// The workflow file in it.
    #[error("{0}")]
    Workflow(Report),
    /// The name has other content already.
    #[error(
        "{name} is deployed already, with other content: give this one another `metadata.version`, or replace it \
         (`dflow deploy --replace`)"
    )]
    Taken {
        /// `name@version`.
        name: String,
    },
    /// There is none.
    #[error("no workflow is deployed as {name:?}{}", near.as_ref().map(|n| format!("; did you mean {n:?}?")).unwrap_or_else(|| "; `dflow deploy FILE` deploys one".into()))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        near: Option<String>,
    },
}

/// A run that is refused or cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The workflow.
    #[error("{0}")]
    Registry(#[from] RegistryError),
    /// An input, or the store.
    #[error("{0}")]
    Submit(#[from] SubmitError),
    /// Too many runs are under way.
    #[error("{runs} runs are under way, as many as this node takes (`runs_max`); come back in {retry_s} s")]
    Busy {
        /// How many.
        runs: usize,
        /// When to come back, in seconds.
        retry_s: u64,
    },
    /// The node is about to end.
    #[error("node {node} is draining and takes no new runs; ask another")]
    Draining {
        /// Which.
        node: String,
    },
    /// No run has the name.
    #[error("no run is called {name:?}; `dflow ps` lists them")]
    NoRun {
        /// What was asked for.
        name: String,
    },
    /// The beginning of several names.
    #[error("{count} runs begin with {name:?}; give more of the name")]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// How many.
        count: usize,
    },
    /// The run is not in the state for it.
    #[error("run {run} {why}")]
    State {
        /// The run.
        run: String,
        /// What prevents it.
        why: String,
    },
    /// The run has no such output.
    #[error("run {run} has no output {name:?}; it has {known}")]
    NoOutput {
        /// The run.
        run: String,
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
}
