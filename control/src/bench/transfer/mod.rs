//! How fast bytes cross between two nodes: reads of a peer's memory by a transport, beside raw sockets of the
//! same run.
//!
//! One end, [`serve`], owns memory and answers; the other, [`Client`], reads it and measures. Rounds of both kinds
//! alternate, so that a slow minute of the machine is everybody's. `verbs` measures the card without a transport.

mod client;
mod content;
mod pull;
pub mod put;
mod raw;
mod row;
mod serve;
mod talk;
#[cfg(feature = "rdma")]
pub mod verbs;

pub use client::{Client, Plan};
pub use row::{Row, Side};
pub use serve::serve;

use super::clock::cpu_seconds;
use dflow_dataplane::transport::{Broken, OpError, OpenError, PollError, RefusedWhy};
use std::io;

/// Objects up to this size cross over one raw stream; larger ones are striped.
const STRIPE_BYTES_MIN: u64 = 64 << 10;
/// Memory that an end gives to one measurement at most.
const MEMORY_BYTES_MAX: u64 = 4 << 30;
/// A peer that answers nothing for so long is gone. Milliseconds.
const PATIENCE_MS: u64 = 60_000;

/// Why a measurement ended early, or never began.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The transport is not to be had here.
    #[error("this transport is not available here: {0}")]
    Open(#[from] OpenError),
    /// The connection ended or was never there.
    #[error("the peer is gone: {0}")]
    Gone(#[from] Broken),
    /// A read failed.
    #[error("a transfer failed: {0}")]
    Op(#[from] OpError),
    /// A read was not accepted.
    #[error("a transfer was refused: {0}")]
    Refused(RefusedWhy),
    /// The transport's queue broke.
    #[error(transparent)]
    Poll(#[from] PollError),
    /// A raw socket failed.
    #[error("the raw sockets beside it failed: {0}")]
    Raw(io::Error),
    /// A queue pair without a transport failed.
    #[cfg(feature = "rdma")]
    #[error("verbs beside the transport failed: {0}")]
    Verbs(#[from] dflow_dataplane::transport::rdma::bare::BareError),
    /// Memory could not be had.
    #[error("no memory of {bytes} bytes: {why}")]
    Memory {
        /// How much.
        bytes: u64,
        /// Why not.
        why: String,
    },
    /// What arrived is not what was sent.
    #[error("the data check failed: object of {bytes} bytes, byte {at} is wrong")]
    Wrong {
        /// Size of the object.
        bytes: u64,
        /// The first wrong byte.
        at: u64,
    },
    /// The peer says something that this end does not understand, or nothing.
    #[error("the peer does not answer as `dflow bench transfer --listen` does: {0}")]
    Peer(String),
}
