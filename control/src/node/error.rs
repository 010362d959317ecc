//! What can go wrong with a node, a submission, a run.

use super::cluster::ClusterError;
use crate::workflow::InputError;
use dflow_core::scheduler::RunError;
use dflow_proto::store::StoreError;
use std::io;
use std::path::PathBuf;

/// A node that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file that function processes are made from.
    #[error("{} is missing: build it with `cargo build --release`, or set DFLOW_LIBEXEC to the folder that has it", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The store's memory.
    #[error("cannot make a store of {bytes} bytes: {source}; choose a smaller one with --store")]
    Arena {
        /// Its size.
        bytes: u64,
        /// Why.
        source: dflow_dataplane::ArenaError,
    },
    /// The spill directory.
    #[error("cannot use {} for spilling: {source}; choose another place with --spill", path.display())]
    Spill {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cluster as it is configured.
    #[error("{0}")]
    Cluster(#[from] ClusterError),
    /// The network.
    #[error("cannot open the network between nodes: {0}")]
    Network(#[from] dflow_dataplane::transport::OpenError),
    /// Anything else of the operating system.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A run that cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// An input is wrong.
    #[error("{0}")]
    Input(#[from] InputError),
    /// An input file.
    #[error("cannot read {} for input {name}: {source}", path.display())]
    Read {
        /// The input.
        name: String,
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store cannot take an input.
    #[error("input {name}: {source}")]
    Store {
        /// The input.
        name: String,
        /// Why.
        source: StoreError,
    },
    /// It cannot be spread as asked.
    #[error("the run cannot be spread over nodes: {why}")]
    Spread {
        /// Why, and what to do.
        why: String,
    },
    /// A node cannot take part.
    #[error("node {node} cannot take part in the run: {why}")]
    Refused {
        /// Its name.
        node: String,
        /// Why, and what to do.
        why: String,
    },
    /// A node does not answer.
    #[error("node {node} has not answered for {waited_ms} ms; look at it, or leave it out of the run")]
    Silent {
        /// Its name.
        node: String,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// The node has been shut down.
    #[error("the node has been shut down")]
    NodeGone,
}

/// A run that gave no result.
#[derive(Debug, thiserror::Error)]
pub enum RunFailure {
    /// It failed, was cancelled or exceeded its deadline.
    #[error("{0}")]
    Run(RunError),
    /// An output cannot be brought back from disk.
    #[error("output {name} is lost: {why}")]
    Output {
        /// The output.
        name: String,
        /// Why.
        why: String,
    },
    /// The node ended first.
    #[error("the node ended before the run did")]
    NodeGone,
}
