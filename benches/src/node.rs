//! A node of this build in this process.

use crate::native;
use anyhow::Result;
pub(crate) use dflow_control::bench::one::{Bench, Done, parse};
use dflow_control::node::NodeConfig;

/// Starts a node whose function processes are of this build, too.
pub(crate) fn start(config: NodeConfig) -> Result<Bench> {
    native::build_function_processes()?;
    Ok(Bench::start(config)?)
}
