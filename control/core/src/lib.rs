//! The workflow graph and DScheduler.
//!
//! Pure: no clock, no randomness, no threads, no I/O. `no_std` makes the compiler hold that rule.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod graph;
pub mod placement;
pub mod scheduler;
