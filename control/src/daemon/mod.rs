//! `dflow node`: the engine with all that stands around it.

mod cluster;
pub mod config;
mod error;
mod metrics;
mod notify;
mod recorder;
mod registry;
mod run;
mod runs;
mod service;

pub use error::{DaemonError, Refusal, RegistryError};
pub use metrics::Metrics;
pub use registry::{Deployed, Registry, Row, Spool};
pub use run::{Ended, Output, Phase, Run};
pub(crate) use runs::blocking;
pub use runs::{Filling, Runs, Submission};
pub use service::run;
