//! DStore: keeps and moves the bytes of DFlow's objects.
//!
//! [`Arena`] is the memory: segments, mapped for the node. [`LocalStore`] decides, by the pure
//! [`dflow_proto::store`], whose memory is whose, and does at once what needs no disk.

pub mod arena;
mod huge;
mod prefault;
mod store;
pub mod transfer;
pub mod transport;

pub use arena::{Arena, ArenaConfig, ArenaError};
pub use huge::HugePages;
pub use store::{LocalStore, PutError, StoreEvent};
