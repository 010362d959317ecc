//! The vocabulary every part of DFlow shares: ids, limits, the messages between a node and its
//! function processes, and the object store as a pure state machine.
//!
//! Nothing here reads a clock, starts a thread or touches a device; `no_std` makes the compiler
//! hold that rule.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod ids;
pub mod limits;
pub mod link;
pub mod store;
pub mod transfer;
pub mod wire;
pub mod zygote;

pub use ids::{InvocationId, ObjectKey, RunId, SegmentId, Tick, WorkerId};
