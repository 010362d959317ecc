//! What the tests on the real kernel share.
//!
//! - [`run`]: `dflow run` as a user types it, with nothing left behind;
//! - [`sim`]: whole runs of the scheduler under faults, deterministic by seed.

pub mod run;
pub mod sim;
