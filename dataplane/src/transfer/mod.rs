//! Objects between nodes: a [`Mover`] announces what is held here and fetches what is held elsewhere.
//!
//! It drives the pure [`Receiver`] over a [`Transport`]. The node gives it memory and tells it what its producers
//! write; it tells the node what has become readable. One thread polls it.
//!
//! Memory stays where it was given as long as bytes may land there: each read's lease keeps the [`Landing`] alive,
//! and a copy that was announced is kept until all that were told have finished, or are gone.

mod holding;
mod mover;
mod talk;

pub use holding::Publication;
pub use mover::{Landing, Mover, MoverStats};
pub use talk::{Unheard, WORD_BYTES_MAX};

use crate::transport::{Broken, Epoch, NodeId};
use dflow_proto::ids::ObjectKey;
use dflow_proto::transfer::TransferError;

/// What the node learns from a [`Mover`].
#[derive(Debug)]
pub enum Moved {
    /// An object needs memory here: answer with [`Mover::granted`].
    Reserve {
        /// Which.
        key: ObjectKey,
        /// Its producer's try.
        attempt: u32,
        /// How many bytes at most.
        bytes: u64,
    },
    /// A small object, whole.
    Inline {
        /// Which.
        key: ObjectKey,
        /// Its producer's try.
        attempt: u32,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// An object is readable here up to `watermark`.
    Advanced {
        /// Which.
        key: ObjectKey,
        /// Its producer's try.
        attempt: u32,
        /// Bytes from its start.
        watermark: u64,
    },
    /// An object is here.
    Arrived {
        /// Which.
        key: ObjectKey,
        /// Its producer's try.
        attempt: u32,
        /// Its size in bytes.
        size: u64,
    },
    /// What was readable of this try must not be used any more.
    Void {
        /// Which.
        key: ObjectKey,
        /// The try.
        attempt: u32,
    },
    /// An object could not be fetched.
    Failed {
        /// Which.
        key: ObjectKey,
        /// Why.
        why: TransferError,
    },
    /// A holder must be found: [`Mover::ask`] the nodes that may have it or know.
    Seek {
        /// Of which object.
        key: ObjectKey,
    },
    /// A node asks for an object that is not held here: answer it, if it comes, with [`Mover::announce`].
    Wanted {
        /// Which.
        key: ObjectKey,
        /// By whom.
        node: NodeId,
    },
    /// All nodes that were told of this object have read it, or were [given up](Mover::lose).
    Released {
        /// Which.
        key: ObjectKey,
    },
    /// A node's program said something: each word comes once, in order, also over broken connections, as long as
    /// both nodes live.
    Said {
        /// Which node.
        node: NodeId,
        /// Its word.
        bytes: Vec<u8>,
    },
    /// A connection to a node opened.
    Up {
        /// Which.
        node: NodeId,
        /// Its incarnation; if it is another than before, the node has forgotten all it was told.
        epoch: Epoch,
    },
    /// The connection to a node ended.
    Down {
        /// Which.
        node: NodeId,
        /// Why.
        why: Broken,
    },
}
