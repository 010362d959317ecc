//! .
pub mod workflow;
