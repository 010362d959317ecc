//! Memory shared by a node and its function processes, and how they find and wake each other.
//!
//! - [`segment`]: memfds, and the ways to map them;
//! - [`link`]: commands and reports between the node and one worker, and the node page;
//! - [`page`]: where a running invocation's outputs are, as their readers see it;
//! - [`table`]: where an invocation's inputs are, as the node tells it;
//! - [`pass`]: messages that carry descriptors, over sockets;
//! - [`spawn`]: a zygote's arguments;
//! - [`futex`]: sleeping and waking;
//! - [`lookout`]: looking for a while before sleeping.
//!
//! A hand-over inside a node goes: the producer fills an extent, publishes it in its page and wakes
//! the page's sleepers; a consumer whose table entry names that page is one of them, and reads the
//! same extent through its read-only map. The node only learns of it afterwards.

#[cfg_attr(loom, allow(dead_code, reason = "the model brings its own memory"))]
mod ring;
#[cfg(all(test, loom))]
mod ring_loom;
mod sync;

// Under loom only the ring is built: the rest needs real shared memory.
#[cfg(not(loom))]
mod chain;
#[cfg(not(loom))]
pub mod futex;
#[cfg(not(loom))]
pub mod link;
#[cfg(not(loom))]
pub mod lookout;
#[cfg(not(loom))]
pub mod page;
#[cfg(not(loom))]
pub mod pass;
#[cfg(not(loom))]
pub mod segment;
#[cfg(all(test, not(loom)))]
mod segment_tests;
#[cfg(not(loom))]
pub mod spawn;
#[cfg(not(loom))]
pub mod table;
#[cfg(all(test, not(loom)))]
mod table_tests;

#[cfg(not(loom))]
pub use chain::CHUNK_BYTES_MAX;
pub use ring::{Corrupt, PushError};
