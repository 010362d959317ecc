//! The words of the store: who asks, for what, what the driver must do, and what can go wrong.

use crate::ids::{Extent, InvocationId, ObjectKey, RunId, SegmentId};
use alloc::{string::String, vec::Vec};

/// Who a grant belongs to: one attempt of one invocation. Run inputs belong to the invocation whose step is
/// [`ObjectKey::INPUT_STEP`], attempt 0, and are written by the node itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// The run.
    pub run: RunId,
    /// The invocation.
    pub invocation: InvocationId,
    /// Its try, from 1.
    pub attempt: u32,
}

impl Owner {
    /// The owner that puts the inputs of `run`.
    pub const fn inputs(run: RunId) -> Self {
        Owner { run, invocation: InvocationId { step: ObjectKey::INPUT_STEP, item: 0 }, attempt: 0 }
    }

    /// Whether an object of this key is this owner's to seal.
    pub fn may_seal(&self, key: &ObjectKey) -> bool {
        self.run == key.run && self.invocation == key.invocation
    }
}

/// What a grant is for; decides where it lies and what may be sealed inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// An invocation's first memory: its page, then any number of small objects. Stays open until
    /// [`Store::close`](super::Store::close).
    Allotment,
    /// Exactly one object. Sealing it closes the grant and frees the unused tail.
    Output,
    /// Exactly one object in a segment of its own, at offset 0, which becomes exactly as long as the object.
    File,
    /// Written by the node for a worker to read (an input table). Nothing can be sealed in it.
    Table,
}

/// Names a reservation that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Names one sealed object for the life of the store: unlike a key, never used a second time. The names of
/// spill files derive from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub u64);

/// The right to read an object in memory. While it exists the object is neither spilled nor freed, whatever
/// else happens to its key. It is not `Clone`, so it cannot be returned twice; hand it to
/// [`Store::unlease`](super::Store::unlease): one that is merely dropped keeps the object for ever.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a lease that is not given to `unlease` keeps its object in memory for ever"]
pub struct Lease {
    pub(super) object: ObjectId,
    pub(super) key: ObjectKey,
}

impl Lease {
    /// The object it is for.
    pub fn key(&self) -> ObjectKey {
        self.key
    }
    /// The object it is for, by its unmistakable name.
    pub fn object(&self) -> ObjectId {
        self.object
    }
}

/// Keeps a grant's memory (an invocation's page, an output that still grows) while others look at it. Hand it
/// to [`Store::unhold`](super::Store::unhold).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a hold that is not given to `unhold` keeps its memory for ever"]
pub struct Hold {
    pub(super) segment: SegmentId,
    pub(super) offset: u64,
}

/// The answer to [`Store::reserve`](super::Store::reserve).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// Write here. Page-aligned and at least as long as was asked; a file is exactly as long.
    Granted(Extent),
    /// Memory is short: [`Effect::Granted`] or [`Effect::Refused`] follows.
    Waiting(Ticket),
    /// Never.
    Refused(StoreError),
}

/// The answer to [`Store::lease`](super::Store::lease).
#[derive(Debug, PartialEq, Eq)]
pub enum Leased {
    /// Its bytes are here until the lease is returned.
    Ready(Lease, Extent),
    /// It is on disk: [`Effect::Restored`] or [`Effect::RestoreFailed`] follows. The lease counts already and
    /// is to be returned in either case.
    Restoring(Lease),
    /// There is no such object (not sealed yet, or freed).
    Missing,
}

/// What [`Store::locate`](super::Store::locate) tells of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Its length.
    pub bytes: u64,
    /// The attempt that sealed it.
    pub attempt: u32,
    /// Where it is in memory; `None` while only on disk. Without a lease this may change at the next call.
    pub extent: Option<Extent>,
}

/// What becomes of the sealed objects of an attempt that is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// They live on (the invocation succeeded, or its retry resumes behind them).
    Keep,
    /// They are freed, their keys may be sealed again by another attempt. Leases on them stay valid.
    Release,
}

/// What the driver must do. An effect leaves no choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A waiting reservation is served.
    Granted {
        /// The reservation.
        ticket: Ticket,
        /// Its owner.
        owner: Owner,
        /// Where to write.
        extent: Extent,
    },
    /// A waiting reservation can never be served.
    Refused {
        /// The reservation.
        ticket: Ticket,
        /// Its owner.
        owner: Owner,
        /// Why, and what to do.
        error: StoreError,
    },
    /// An object somebody leased while it was on disk is in memory again.
    Restored {
        /// Its unmistakable name, as in the lease.
        object: ObjectId,
        /// Its key.
        key: ObjectKey,
        /// Where.
        extent: Extent,
    },
    /// An object somebody leased cannot be brought back now. Its leases are still to be returned; a later
    /// lease tries again.
    RestoreFailed {
        /// Its unmistakable name, as in the lease.
        object: ObjectId,
        /// Its key.
        key: ObjectKey,
        /// Why.
        error: StoreError,
    },
    /// Copy the object to disk; answer by [`Store::spilled`](super::Store::spilled). Its bytes stay put meanwhile.
    Spill {
        /// The object.
        object: ObjectId,
        /// Its key.
        key: ObjectKey,
        /// Its bytes.
        extent: Extent,
    },
    /// Copy the object from disk into this extent; answer by [`Store::loaded`](super::Store::loaded).
    Load {
        /// The object.
        object: ObjectId,
        /// Its key.
        key: ObjectKey,
        /// Where it goes.
        extent: Extent,
    },
    /// Delete the object's copy on disk. Needs no answer.
    Discard {
        /// The object.
        object: ObjectId,
    },
    /// Make a memory segment of its own, before the next effect is looked at. Needs no answer.
    Create {
        /// Its id.
        segment: SegmentId,
        /// Its length.
        bytes: u64,
    },
    /// Make a file of this length in the spill directory and map it; answer by
    /// [`Store::grown`](super::Store::grown).
    Grow {
        /// Its id.
        segment: SegmentId,
        /// Its length.
        bytes: u64,
    },
    /// The segment's tail is not used: make it this long.
    Truncate {
        /// Its id.
        segment: SegmentId,
        /// Its new length.
        bytes: u64,
    },
    /// Unmap and delete the segment. Nothing in it is leased, held or being copied.
    Destroy {
        /// Its id.
        segment: SegmentId,
    },
}

/// Effects in the order they are to be done.
pub type Effects = Vec<Effect>;

/// Bounds of one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The main segment, its first page (the node's) included. Rounded down to whole pages; at least
    /// [`ARENA_BYTES_MIN`](super::ARENA_BYTES_MIN).
    pub arena_bytes: u64,
    /// Memory of all dedicated segments together.
    pub dedicated_bytes: u64,
    /// Disk for spilled objects and for overflow segments together; 0 for no spilling.
    pub spill_bytes: u64,
    /// Objects that may exist at one time.
    pub objects_max: u32,
    /// Reservations that may wait at one time.
    pub waiting_max: u32,
}

impl Default for Limits {
    /// 1 GiB of arena, as much for dedicated segments, no spilling.
    fn default() -> Self {
        Limits {
            arena_bytes: 1 << 30,
            dedicated_bytes: 1 << 30,
            spill_bytes: 0,
            objects_max: 16 << 20,
            waiting_max: 1 << 16,
        }
    }
}

/// Why memory is not given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The request exceeds what the store could give when empty.
    #[error(
        "{need_bytes} bytes can never fit: the store has {have_bytes} bytes of memory and {spill_bytes} of \
         spill space{}; raise the store's size or give it a spill directory with more room",
        .disk.as_ref().map(|e| alloc::format!(" (spilling failed: {e})")).unwrap_or_default()
    )]
    TooLarge {
        /// What was asked.
        need_bytes: u64,
        /// The memory there is for such a request.
        have_bytes: u64,
        /// The disk there is.
        spill_bytes: u64,
        /// The last disk failure, if that is why there is so little.
        disk: Option<DiskError>,
    },
    /// All that runs waits for memory that only it could free.
    #[error(
        "no memory for {need_bytes} bytes: {used_bytes} of {have_bytes} bytes hold data that waiting functions \
         need, {spilled_bytes} of {spill_bytes} bytes of spill space are used{}; raise the store's size, give \
         it (more) spill space, or run fewer invocations at one time",
        .disk.as_ref().map(|e| alloc::format!(" (spilling failed: {e})")).unwrap_or_default()
    )]
    Full {
        /// What was asked.
        need_bytes: u64,
        /// Memory in use.
        used_bytes: u64,
        /// Memory there is for such a request.
        have_bytes: u64,
        /// Disk in use.
        spilled_bytes: u64,
        /// The disk there is.
        spill_bytes: u64,
        /// The last disk failure, if any.
        disk: Option<DiskError>,
    },
    /// Too many reservations wait already.
    #[error("{waiting} reservations wait for memory already, the limit; run fewer invocations at one time")]
    TooManyWaiting {
        /// How many.
        waiting: u32,
    },
    /// The operating system gave no segment.
    #[error("cannot make a segment of {bytes} bytes: {why}; raise the limits on memory or on open files")]
    Segment {
        /// Its length.
        bytes: u64,
        /// What the system said.
        why: String,
    },
    /// The copy on disk cannot be read.
    #[error("the spilled copy of the object cannot be read: {0}; its producer must run again")]
    Unreadable(DiskError),
}

/// What the driver's disk said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// No room on the file system.
    #[error("no space left in the spill directory")]
    NoSpace,
    /// Any other failure.
    #[error("{0}")]
    Io(String),
}

/// Why a seal is not accepted. All but the last are what a misbehaving worker could claim.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The object belongs to another invocation.
    #[error("the object {key:?} is not one of the invocation that sealed it")]
    NotYours {
        /// What was claimed.
        key: ObjectKey,
    },
    /// The extent lies in no grant of this attempt (any more).
    #[error("the extent {extent:?} is not inside a grant of this attempt that is still open")]
    NotGranted {
        /// What was claimed.
        extent: Extent,
    },
    /// The extent is the invocation's page, or in a table.
    #[error("the extent {extent:?} covers memory that is not for objects")]
    NotForObjects {
        /// What was claimed.
        extent: Extent,
    },
    /// The extent overlaps another object.
    #[error("the extent {extent:?} overlaps the object {other:?}")]
    Overlap {
        /// What was claimed.
        extent: Extent,
        /// The object there.
        other: ObjectKey,
    },
    /// An object of this key exists.
    #[error("the object {key:?} was sealed already by attempt {attempt}")]
    Already {
        /// What was claimed.
        key: ObjectKey,
        /// Who sealed it.
        attempt: u32,
    },
    /// Limit reached.
    #[error(
        "the store holds {objects} objects, its limit; raise objects_max or release runs that have ended"
    )]
    TooManyObjects {
        /// How many.
        objects: u32,
    },
}

/// Why a grant is not taken back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// No open grant of this attempt begins there or has this length.
    #[error("{extent:?} is not an open grant of this attempt")]
    NotGranted {
        /// What was claimed.
        extent: Extent,
    },
    /// An object was sealed in it.
    #[error("{extent:?} holds sealed objects and cannot be given back unused")]
    InUse {
        /// What was claimed.
        extent: Extent,
    },
}

/// An object as a list of them shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: ObjectKey,
    /// Its size.
    pub bytes: u64,
    /// It can be read at once.
    pub in_memory: bool,
    /// A copy of it is on disk.
    pub on_disk: bool,
    /// Leases given out on it.
    pub leases: u32,
}

/// Numbers of one store at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Size of the arena that can be granted.
    pub arena_bytes: u64,
    /// Granted of it.
    pub arena_used_bytes: u64,
    /// Not granted of it.
    pub arena_free_bytes: u64,
    /// Most that was granted at one time (an upper bound: the peaks of its two zones added).
    pub arena_peak_bytes: u64,
    /// Largest extent that could be granted at once.
    pub arena_largest_free_bytes: u64,
    /// Share of free memory outside the largest free extent, 0 to 1.
    pub fragmentation: f32,
    /// Memory in dedicated segments.
    pub dedicated_bytes: u64,
    /// Disk in overflow segments.
    pub overflow_bytes: u64,
    /// Disk in copies of objects.
    pub spilled_bytes: u64,
    /// Objects there are, in memory or not.
    pub objects: u32,
    /// Of them, those only on disk.
    pub objects_on_disk: u32,
    /// Leases given out.
    pub leases: u64,
    /// Grants there are, closed ones that hold objects included.
    pub grants: u32,
    /// Reservations that wait.
    pub waiting: u32,
    /// Objects ever written to disk.
    pub spills: u64,
    /// Objects ever brought back.
    pub loads: u64,
}
