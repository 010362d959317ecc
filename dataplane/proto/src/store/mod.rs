//! DStore of one node as a pure state machine: which bytes of which segment belong to whom.
//!
//! The store moves no byte. It answers at once what it can and says the rest in [`Effect`]s, which the driver
//! does in order. Memory is granted to an [`Owner`] (`reserve`), written by it, and becomes an object by
//! `seal`; from then on the object lives until its last reader `release`s it, nobody `lease`s it and nobody
//! `pin`s it. When memory is short, objects that nobody reads go to disk (`Spill`) and come back when leased
//! (`Load`); when nothing can go, a grant is made in a file (`Grow`), so a store whose spill directory has room
//! never stops a run that could finish.
//!
//! The verbs (all take `fx: &mut Effects` where memory may come free):
//!
//! | verb | meaning |
//! |---|---|
//! | `reserve(owner, bytes, purpose, fx) -> Reserve` | ask for memory |
//! | `cancel(ticket, fx) -> bool` | a waiting reservation is not wanted any more |
//! | `give_back(owner, extent, fx) -> Result<(), GrantError>` | a grant was not used |
//! | `close(owner, extent, used_bytes, fx) -> Result<(), GrantError>` | an allotment gets no more objects |
//! | `adopt(owner, bytes) -> Extent` | a segment made elsewhere becomes a `File` grant |
//! | `hold(extent) -> Option<Hold>`, `unhold(hold, fx)` | keep a grant's memory while others look at it |
//! | `seal(key, owner, extent, fx) -> Result<ObjectId, SealError>` | bytes become an object |
//! | `lease(key, fx) -> Leased`, `unlease(lease, fx)` | read an object |
//! | `locate(key) -> Option<Location>` | look without a lease |
//! | `pin(key) -> bool`, `unpin(key, fx) -> bool` | keep an object although its readers are done |
//! | `release(key, fx) -> bool` | its last reader is done |
//! | `drop_owner(owner, sealed, fx)`, `drop_run(run, fx)` | an attempt, a run is over |
//! | `stalled(fx) -> bool` | nothing can run until memory comes free: refuse somebody |
//! | `spilled(object, result, fx)`, `loaded(object, result, fx)`, `grown(segment, result, fx)` | answers to effects |
//! | `warmed(end)`, `trim(retain_bytes) -> Option<Extent>`, `high_water() -> u64` | pages touched so far |
//! | `stats() -> Stats` | numbers |

mod arena;
mod grants;
mod objects;
mod queue;
mod spill;
mod types;

pub use types::*;

use crate::ids::{Extent, ObjectKey, SegmentId};
use crate::limits::{HUGE_BYTES, PAGE_BYTES};
use alloc::collections::{BTreeMap, BTreeSet};
use arena::{Space, round_up};
use grants::{Grant, GrantKey};
use objects::Object;
use queue::{CLASSES, Queue, Request};
use spill::Disk;

/// The smallest arena. Bytes.
pub const ARENA_BYTES_MIN: u64 = 1 << 20;

/// This part of the arena (one in so many) is kept for allotments and tables, so that large outputs can
/// never keep an invocation from starting. Allotments may go beyond it; outputs never come into it.
const SMALL_SHARE: u64 = 16;

/// The store of one node. See the [module](self) for its verbs.
#[derive(Debug)]
pub struct Store {
    limits: Limits,
    /// Where allotments and tables go first.
    small: Space,
    /// Where outputs go.
    large: Space,
    grants: BTreeMap<GrantKey, Grant>,
    /// Grants that are open, by owner.
    open: BTreeSet<(Owner, GrantKey)>,
    objects: BTreeMap<ObjectId, Object>,
    by_key: BTreeMap<ObjectKey, ObjectId>,
    queues: [Queue; CLASSES],
    /// Requests whose overflow segment is being made; `None` if nobody wants it any more.
    growing: BTreeMap<SegmentId, (u64, Option<Request>)>,
    disk: Disk,
    dedicated_bytes: u64,
    leases: u64,
    objects_on_disk: u32,
    loads_in_flight: u32,
    loads: u64,
    next_ticket: u64,
    next_object: u64,
    next_segment: u32,
    /// Counts uses of objects: the lower, the longer ago.
    clock: u64,
    /// Counts changes after which memory may be found where there was none before.
    changes: u64,
}

impl Store {
    /// An empty store. Page 0 of segment 0 is the node's own and never granted.
    ///
    /// # Panics
    /// If the arena is smaller than [`ARENA_BYTES_MIN`]; check configuration first.
    pub fn new(limits: Limits) -> Self {
        assert!(
            limits.arena_bytes >= ARENA_BYTES_MIN,
            "an arena of {} bytes is too small",
            limits.arena_bytes
        );
        let end = limits.arena_bytes & !(PAGE_BYTES - 1);
        let share = round_up(PAGE_BYTES + end / SMALL_SHARE, PAGE_BYTES);
        let split = if end >= SMALL_SHARE * 2 * HUGE_BYTES { round_up(share, HUGE_BYTES) } else { share };
        Store {
            limits,
            small: Space::new(PAGE_BYTES, split),
            large: Space::new(split, end),
            grants: BTreeMap::new(),
            open: BTreeSet::new(),
            objects: BTreeMap::new(),
            by_key: BTreeMap::new(),
            queues: Default::default(),
            growing: BTreeMap::new(),
            disk: Disk::new(limits.spill_bytes),
            dedicated_bytes: 0,
            leases: 0,
            objects_on_disk: 0,
            loads_in_flight: 0,
            loads: 0,
            next_ticket: 0,
            next_object: 0,
            next_segment: 1,
            clock: 0,
            changes: 0,
        }
    }

    /// The bounds it was made with.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Pages of the arena below `end` have been touched (prefaulted): they are preferred to others.
    pub fn warmed(&mut self, end: u64) {
        self.small.warmed(end);
        self.large.warmed(end);
    }

    /// One past the highest byte of the arena that was ever granted (and not trimmed since): what lies beyond
    /// is worth prefaulting next.
    pub fn high_water(&self) -> u64 {
        if self.large.reach() > self.large.start() { self.large.reach() } else { self.small.reach() }
    }

    /// Forgets that the free pages at the end of the arena were touched, beyond the first `retain_bytes` of
    /// the arena, and tells where they are: the driver returns them to the system before it grants anything.
    pub fn trim(&mut self, retain_bytes: u64) -> Option<Extent> {
        let (offset, end) = self.large.trim(retain_bytes)?;
        Some(Extent { segment: SegmentId(0), offset, bytes: end - offset })
    }

    /// Numbers of this moment.
    pub fn stats(&self) -> Stats {
        let free = self.small.free_bytes() + self.large.free_bytes();
        let largest = self.large.largest_free().max(self.small.largest_free());
        Stats {
            arena_bytes: self.small.bytes() + self.large.bytes(),
            arena_used_bytes: self.small.used_bytes() + self.large.used_bytes(),
            arena_peak_bytes: self.small.peak_used_bytes() + self.large.peak_used_bytes(),
            arena_largest_free_bytes: largest,
            fragmentation: self.large.fragmentation(),
            dedicated_bytes: self.dedicated_bytes,
            overflow_bytes: self.disk.overflow_bytes,
            spilled_bytes: self.disk.spilled_bytes,
            objects: self.objects.len() as u32,
            objects_on_disk: self.objects_on_disk,
            leases: self.leases,
            grants: self.grants.len() as u32,
            waiting: self.waiting(),
            spills: self.disk.spills,
            loads: self.loads,
            arena_free_bytes: free,
        }
    }
}

#[cfg(test)]
mod tests;
