//! What nodes say to each other: framed, versioned, little-endian, decoded by pure functions.
//!
//! A *connection* between two nodes is one control stream and a few bulk streams (*lanes*). Every stream begins
//! with the same [`handshake`]. After it, the control stream carries requests, small data and messages; a lane
//! carries nothing but [`Frame::Data`], so that a small message never waits behind bulk. Each frame is a
//! [`Header`] of [`HEADER_BYTES`] and a body whose length the header names. [`notice`]s, which say where objects
//! are, travel in the body of [`Frame::Message`].
//!
//! Whatever bytes come in, a decoder here returns a value or [`Malformed`]: it never panics, never reads past
//! its input and never allocates more than its input is long. `docs/protocol.md` draws the layouts.

mod frame;
pub mod handshake;
mod header;
pub mod notice;
pub mod pairing;
mod reader;
#[cfg(test)]
mod tests;

pub use frame::{ErrorCode, Frame, ReadRequest, next_frame};
pub use header::{Header, Kind};

use serde::{Deserialize, Serialize};

/// First two bytes of each frame.
pub const MAGIC: u16 = 0xDF10;
/// The protocol version spoken here.
pub const VERSION: u16 = 1;
/// The oldest version still understood.
pub const VERSION_MIN: u16 = 1;
/// Length of a frame's header.
pub const HEADER_BYTES: usize = 32;
/// The longest body of a handshake frame.
pub const HANDSHAKE_BYTES_MAX: usize = 512;
/// The longest name of a cluster.
pub const CLUSTER_BYTES_MAX: usize = 64;
/// The longest body of [`Frame::Message`]: an inline value and room for what describes it.
pub const WIRE_MESSAGE_BYTES_MAX: usize = ANNOUNCED_BYTES_MAX + (16 << 10);
/// The largest value that travels inside its own announcement.
pub const ANNOUNCED_BYTES_MAX: usize = 64 << 10;
/// The longest payload of one [`Frame::Data`], thus of one read.
pub const READ_BYTES_MAX: usize = 16 << 20;
/// Data up to this length is answered on the control stream.
pub const SMALL_BYTES_MAX: usize = 16 << 10;
/// Bulk streams of one connection.
pub const LANES_MAX: u16 = 16;

/// A node of the cluster, for as long as it is a member, across restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

/// An incarnation of a node: grows with each start, so that what a dead one left behind is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// What a peer needs to read a registered segment: a token that dies with its registration and its epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Region {
    /// Index among the owner's registrations.
    pub id: u32,
    /// Counts reuses of the index.
    pub generation: u32,
    /// The owner's incarnation.
    pub epoch: Epoch,
    /// Length of the segment in bytes.
    pub bytes: u64,
}

/// Features that both ends must have to be used, as bits of a `u32`.
pub mod capability {
    /// Data carries a crc32c of its payload.
    pub const CHECKSUM: u32 = 1;
    /// Messages are [`pairing::Aside`](super::pairing::Aside)s, and RDMA is used where it works.
    pub const RDMA: u32 = 2;
}

/// Bytes that cannot come from a peer that speaks this protocol. The connection they came on is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Does not begin with [`MAGIC`].
    #[error("frame begins with {have:#06x}, not {MAGIC:#06x}: the peer does not speak DFlow's protocol")]
    Magic {
        /// What stood there.
        have: u16,
    },
    /// A kind of frame that this version does not know.
    #[error("unknown {what} {value}")]
    Unknown {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A body longer than its kind allows.
    #[error("{what} of {have} bytes, at most {max} allowed")]
    TooLong {
        /// Which field.
        what: &'static str,
        /// The length claimed.
        have: u64,
        /// The limit.
        max: u64,
    },
    /// The body ends before its fields do.
    #[error("body ends inside {what}")]
    Short {
        /// The field that is cut.
        what: &'static str,
    },
    /// Bytes after the last field.
    #[error("{bytes} bytes too many after the last field")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A field that must be zero, or two fields that contradict each other.
    #[error("inconsistent {what}")]
    Inconsistent {
        /// Which.
        what: &'static str,
    },
}
