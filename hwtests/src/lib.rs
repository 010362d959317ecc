//! What the tests on the real kernel share.
//!
//! - [`cluster`]: several nodes in this process;
//! - [`conformance`]: the laws of transports;
//! - [`daemon`]: `dflow node` as a service manager starts it;
//! - [`run`]: `dflow run` as a user types it, with nothing left behind;
//! - [`guest`], [`two_nodes`]: a kernel that has RDMA, and two nodes in it (with the feature `rdma`);
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
#[cfg(feature = "rdma")]
pub mod two_nodes;
