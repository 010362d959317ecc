//! What the tests on the real kernel share.
//!
//! - [`cluster`]: several nodes in this process;
//! - [`conformance`]: the laws of transports;
//! - [`daemon`]: `dflow node` as a service manager starts it;
//! - [`run`]: `dflow run` as a user types it, with nothing left behind;
//! - [`sim`]: whole runs of the scheduler under faults, deterministic by seed.

// A test's output is where a skip is told.
#![allow(clippy::print_stdout)]

pub mod cluster;
pub mod conformance;
pub mod daemon;
#[cfg(feature = "rdma")]
pub mod guest;
pub mod run;
pub mod sim;
