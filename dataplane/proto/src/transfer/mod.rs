//! Fetching objects from other nodes, as a pure state machine. The receiver drives.
//!
//! Holders say what they have ([`Notice`]); the machine asks for memory, then for chunks up to what is readable,
//! many at a time over all holders, and says how far an object is readable here. It bounds the bytes that are on
//! their way to this node (so that many senders do not drown it), shares them between runs, goes on at the
//! offset reached when a holder is lost, and gives up at a deadline.
//!
//! Bytes land in memory that the driver holds: it keeps that memory until all reads into it have come back, also
//! after the machine has forgotten the transfer.

mod chunks;
mod receiver;
mod relay;
#[cfg(test)]
mod tests;

pub use receiver::Receiver;
pub use relay::relay_plan;

use crate::ids::{ObjectKey, Tick};
use crate::wire::notice::Notice;
use crate::wire::{NodeId, Region};
use alloc::vec::Vec;

/// A holder, as the driver numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub u64);

/// A read that was asked for. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// The bounds of a receiver.
#[derive(Clone, Copy, Debug)]
pub struct TransferLimits {
    /// Of one read. Small enough that an object of a MiB uses more than one stream and that what is copied is
    /// still in the cache of who copied it; large enough that a request costs little beside its bytes.
    pub chunk_bytes: u64,
    /// On their way to this node at one time.
    pub window_bytes: u64,
    /// Of that, from one peer.
    pub peer_window_bytes: u64,
    /// Failed reads before a transfer is given up.
    pub failures_max: u32,
    /// Failed reads before a holder is not asked any more.
    pub holder_failures_max: u32,
    /// A read must be over by then, milliseconds.
    pub read_ms_max: u64,
    /// A transfer without a holder asks for one this often, milliseconds; the first time after as long.
    pub seek_ms: u64,
    /// What is announced is wanted without being asked for, for so many milliseconds: where holders announce only
    /// to those who will read. 0: only what is asked for is fetched.
    pub announced_ms: u64,
    /// Objects known or wanted. Announcements beyond it are forgotten and found again by asking.
    pub objects_max: usize,
}

impl Default for TransferLimits {
    fn default() -> Self {
        TransferLimits {
            chunk_bytes: 512 << 10,
            window_bytes: 32 << 20,
            peer_window_bytes: 16 << 20,
            failures_max: 1000,
            holder_failures_max: 8,
            read_ms_max: 10_000,
            seek_ms: 500,
            announced_ms: 0,
            objects_max: 1 << 20,
        }
    }
}

/// Why a read did not bring all its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFault {
    /// The same holder may be asked again.
    Again,
    /// This holder will not serve it.
    HolderLost,
    /// What came must not be used.
    Damaged,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Somebody here needs the object by `deadline`.
    Fetch {
        /// Which.
        key: ObjectKey,
        /// Until when.
        deadline: Tick,
    },
    /// Nobody here needs it any more.
    Cancel {
        /// Which.
        key: ObjectKey,
    },
    /// A peer said something.
    Notice {
        /// Who.
        peer: PeerId,
        /// What.
        notice: Notice,
    },
    /// The answer to [`Effect::Reserve`].
    Reserved {
        /// Which.
        key: ObjectKey,
        /// As asked.
        attempt: u32,
        /// Whether there is memory.
        granted: bool,
    },
    /// The answer to [`Effect::Read`].
    Read {
        /// As asked.
        ticket: Ticket,
        /// Bytes from its start that are in place.
        done_bytes: u64,
        /// `None` if that is all of them.
        fault: Option<ReadFault>,
    },
    /// A connection to a holder ended: what it said may be incomplete.
    PeerGone {
        /// Whose.
        peer: PeerId,
    },
}

/// What must be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Find memory for up to `bytes`; answered by [`Event::Reserved`].
    Reserve {
        /// For which object.
        key: ObjectKey,
        /// For which try of its producer.
        attempt: u32,
        /// How many.
        bytes: u64,
    },
    /// Read; answered by [`Event::Read`].
    Read {
        /// For the answer.
        ticket: Ticket,
        /// Into whose memory.
        key: ObjectKey,
        /// Into which try's memory.
        attempt: u32,
        /// From whom.
        peer: PeerId,
        /// From where.
        region: Region,
        /// First byte in the region.
        offset: u64,
        /// First byte in the object's memory.
        at: u64,
        /// How many.
        bytes: u64,
        /// By when.
        deadline: Tick,
    },
    /// That read is not needed any more; it is answered all the same.
    CancelRead {
        /// Which.
        ticket: Ticket,
    },
    /// The whole object, which came with its announcement.
    Inline {
        /// Which.
        key: ObjectKey,
        /// Its producer's try.
        attempt: u32,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// The object is readable here up to `watermark`.
    Advanced {
        /// Which.
        key: ObjectKey,
        /// Its producer's try.
        attempt: u32,
        /// Bytes from its start.
        watermark: u64,
    },
    /// All of it is here.
    Arrived {
        /// Which.
        key: ObjectKey,
        /// Its producer's try.
        attempt: u32,
        /// Its size in bytes.
        size: u64,
    },
    /// What was read of that try is void, and its memory not needed any more.
    Void {
        /// Which.
        key: ObjectKey,
        /// The try.
        attempt: u32,
    },
    /// The transfer is over without the object, and its memory not needed any more.
    Failed {
        /// Which.
        key: ObjectKey,
        /// Why.
        why: TransferError,
    },
    /// Ask whoever may know for a holder (a [`Notice::Want`] to the object's home, say).
    Seek {
        /// Of which object.
        key: ObjectKey,
    },
    /// Announce the copy here to these nodes, and on to those that each is given.
    Relay {
        /// Which object.
        key: ObjectKey,
        /// Its producer's try.
        attempt: u32,
        /// To whom.
        nodes: Vec<NodeId>,
    },
    /// Tell a peer.
    Tell {
        /// Whom.
        peer: PeerId,
        /// What.
        notice: Notice,
    },
}

/// Effects in order.
pub type Effects = Vec<Effect>;

/// Why an object could not be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// The deadline passed.
    #[error("not here by its deadline: {have_bytes} bytes are, from {holders} holders")]
    TimedOut {
        /// Bytes from its start that are here.
        have_bytes: u64,
        /// Holders known at the end.
        holders: usize,
    },
    /// It is not needed any more.
    #[error("cancelled")]
    Cancelled,
    /// No memory for it.
    #[error("the store has no room for its {bytes} bytes")]
    NoRoom {
        /// How many.
        bytes: u64,
    },
    /// Too many reads failed.
    #[error("{failures} reads of it failed: check the network between the nodes")]
    TooManyFailures {
        /// How many.
        failures: u32,
    },
    /// More objects are known than may be.
    #[error("{objects} objects are known or wanted, which is the limit")]
    TooManyObjects {
        /// How many.
        objects: usize,
    },
}
