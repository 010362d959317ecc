//! Grants: memory that somebody may write, and that objects lie in afterwards.

use super::arena::round_up;
use super::queue::Request;
use super::{Effect, Effects, GrantError, Hold, ObjectId, Owner, Purpose, Sealed, Store};
use crate::ids::{Extent, RunId, SegmentId};
use crate::limits::PAGE_BYTES;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// A grant is known by where it begins; no two that live begin at the same place.
pub(super) type GrantKey = (SegmentId, u64);

/// What a grant's bytes are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    /// The arena's zone for allotments.
    Small,
    /// The arena's zone for outputs.
    Large,
    /// A memory segment of its own.
    Dedicated,
    /// A file in the spill directory.
    Overflow,
}

/// One grant. It is freed when it is closed, nobody holds it and no object lies in it.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) owner: Owner,
    pub(super) purpose: Purpose,
    pub(super) extent: Extent,
    pub(super) backing: Backing,
    pub(super) open: bool,
    pub(super) holds: u32,
    /// Objects inside: offset to (end, id).
    pub(super) live: BTreeMap<u64, (u64, ObjectId)>,
    /// Of them, how many are leased or being copied.
    pub(super) busy: u32,
    /// Of their bytes, how many have no copy on disk.
    pub(super) unsaved_bytes: u64,
    /// And how many have one.
    pub(super) copied_bytes: u64,
    /// When the most recently used of them was used.
    pub(super) used: u64,
}

impl Grant {
    /// Whether all in it may go to disk.
    pub(super) fn is_evictable(&self) -> bool {
        !self.open && self.holds == 0 && self.busy == 0 && !self.live.is_empty()
    }
}

impl Store {
    /// Takes back a grant in which nothing was sealed.
    ///
    /// # Errors
    /// If `extent` is not exactly an open grant of this owner, or something was sealed in it.
    pub fn give_back(&mut self, owner: Owner, extent: Extent, fx: &mut Effects) -> Result<(), GrantError> {
        let key = self.open_grant(owner, extent)?;
        let grant = &self.grants[&key];
        if grant.extent != extent {
            return Err(GrantError::NotGranted { extent });
        }
        if !grant.live.is_empty() {
            return Err(GrantError::InUse { extent });
        }
        self.close_grant(key, 0, fx);
        self.pump(fx);
        Ok(())
    }

    /// Ends a grant that takes any number of objects: no further object will be sealed in it, and of its
    /// bytes only the first `used_bytes` (and whatever was sealed) are of use to those who hold it. The rest
    /// is freed at once, the whole when the last object in it has gone and nobody holds it.
    ///
    /// # Errors
    /// If no open grant of this owner begins where `extent` begins.
    pub fn close(
        &mut self,
        owner: Owner,
        extent: Extent,
        used_bytes: u64,
        fx: &mut Effects,
    ) -> Result<(), GrantError> {
        let key = self.open_grant(owner, extent)?;
        self.close_grant(key, used_bytes, fx);
        self.pump(fx);
        Ok(())
    }

    /// Makes a segment that exists already (made by a function process) a `File` grant of `owner`, `bytes`
    /// long. It counts against `dedicated_bytes` but is never refused, since its memory is in use in any case;
    /// others wait instead.
    pub fn adopt(&mut self, owner: Owner, bytes: u64) -> Extent {
        let extent = Extent { segment: self.new_segment(), offset: 0, bytes };
        self.dedicated_bytes = self.dedicated_bytes.saturating_add(bytes);
        self.insert_grant(owner, Purpose::File, extent, Backing::Dedicated, true);
        extent
    }

    /// Keeps the memory of the grant that contains `extent`, whatever becomes of its owner and its objects.
    /// `None` if there is no such grant.
    pub fn hold(&mut self, extent: Extent) -> Option<Hold> {
        let (segment, offset) = self.grant_at(&extent)?;
        self.grants.get_mut(&(segment, offset))?.holds += 1;
        Some(Hold { segment, offset })
    }

    /// Whether `extent` lies in memory that was granted to `owner` to write objects in.
    pub fn owns(&self, owner: Owner, extent: Extent) -> bool {
        let grant = self.grant_at(&extent).map(|key| &self.grants[&key]);
        grant.is_some_and(|grant| grant.owner == owner && grant.purpose != Purpose::Table)
    }

    /// Ends a hold.
    pub fn unhold(&mut self, hold: Hold, fx: &mut Effects) {
        let key = (hold.segment, hold.offset);
        let grant = self.grants.get_mut(&key).expect("a held grant exists");
        grant.holds -= 1;
        self.changes += 1;
        self.free_if_unused(key, fx);
        self.pump(fx);
    }

    /// An attempt is over and its process can write no more: its waiting reservations are forgotten and
    /// its open grants closed. `sealed` says what becomes of its objects.
    pub fn drop_owner(&mut self, owner: Owner, sealed: Sealed, fx: &mut Effects) {
        self.forget_requests(|other| *other == owner);
        if sealed == Sealed::Release {
            let first = crate::ObjectKey { run: owner.run, invocation: owner.invocation, port: 0, item: 0 };
            let last = crate::ObjectKey { port: u16::MAX, item: u32::MAX, ..first };
            let ids: Vec<ObjectId> = self.by_key.range(first..=last).map(|(_, &id)| id).collect();
            for id in ids {
                if self.objects[&id].owner == owner {
                    self.unkey(id, fx);
                }
            }
        }
        self.close_all(owner, owner, fx);
        self.pump(fx);
    }

    /// A run is over: all that is its own goes, pinned or not. Leases and holds stay valid until returned.
    pub fn drop_run(&mut self, run: RunId, fx: &mut Effects) {
        self.forget_requests(|owner| owner.run == run);
        let first = Owner { run, invocation: crate::InvocationId { step: 0, item: 0 }, attempt: 0 };
        let last = Owner {
            run,
            invocation: crate::InvocationId { step: u32::MAX, item: u32::MAX },
            attempt: u32::MAX,
        };
        let key =
            |owner: Owner, port, item| crate::ObjectKey { run, invocation: owner.invocation, port, item };
        let range = key(first, 0, 0)..=key(last, u16::MAX, u32::MAX);
        let ids: Vec<ObjectId> = self.by_key.range(range).map(|(_, &id)| id).collect();
        ids.into_iter().for_each(|id| self.unkey(id, fx));
        self.close_all(first, last, fx);
        self.pump(fx);
    }

    fn close_all(&mut self, first: Owner, last: Owner, fx: &mut Effects) {
        let range = (first, (SegmentId(0), 0))..=(last, (SegmentId(u32::MAX), u64::MAX));
        let keys: Vec<GrantKey> = self.open.range(range).map(|&(_, key)| key).collect();
        for key in keys {
            // Whoever holds it may be looking at any of it.
            let grant = &self.grants[&key];
            let used_bytes = if grant.holds > 0 { grant.extent.bytes } else { 0 };
            self.close_grant(key, used_bytes, fx);
        }
    }

    fn open_grant(&self, owner: Owner, extent: Extent) -> Result<GrantKey, GrantError> {
        let key = (extent.segment, extent.offset);
        match self.grants.get(&key) {
            Some(grant) if grant.open && grant.owner == owner => Ok(key),
            _ => Err(GrantError::NotGranted { extent }),
        }
    }

    /// The grant that contains `extent`.
    pub(super) fn grant_at(&self, extent: &Extent) -> Option<GrantKey> {
        let (key, grant) = self.grants.range(..=(extent.segment, extent.offset)).next_back()?;
        grant.extent.contains(extent).then_some(*key)
    }

    pub(super) fn new_segment(&mut self) -> SegmentId {
        let segment = SegmentId(self.next_segment);
        self.next_segment =
            self.next_segment.checked_add(1).expect("fewer than 2^32 segments in a node's life");
        segment
    }

    pub(super) fn insert_grant(
        &mut self,
        owner: Owner,
        purpose: Purpose,
        extent: Extent,
        backing: Backing,
        open: bool,
    ) -> GrantKey {
        let key = (extent.segment, extent.offset);
        if open {
            self.open.insert((owner, key));
        }
        let grant = Grant {
            owner,
            purpose,
            extent,
            backing,
            open,
            holds: 0,
            live: BTreeMap::new(),
            busy: 0,
            unsaved_bytes: 0,
            copied_bytes: 0,
            used: 0,
        };
        let before = self.grants.insert(key, grant);
        assert!(before.is_none(), "two grants at one place");
        key
    }

    /// Closes an open grant and frees what lies behind `used_bytes` and behind its last object. With nothing
    /// used it goes, or stays, as a whole.
    pub(super) fn close_grant(&mut self, key: GrantKey, used_bytes: u64, fx: &mut Effects) {
        let grant = self.grants.get_mut(&key).expect("the caller found it");
        grant.open = false;
        self.open.remove(&(grant.owner, key));
        self.changes += 1;
        let sealed_end = grant.live.last_key_value().map_or(grant.extent.offset, |(_, &(end, _))| end);
        let used = used_bytes.max(sealed_end - grant.extent.offset).min(grant.extent.bytes);
        if used > 0 || !grant.live.is_empty() {
            self.shrink(key, used, fx);
        }
        self.free_if_unused(key, fx);
    }

    /// Frees what lies behind the first `used` bytes of a grant.
    fn shrink(&mut self, key: GrantKey, used: u64, fx: &mut Effects) {
        let grant = self.grants.get_mut(&key).expect("the caller found it");
        let old = grant.extent.bytes;
        let new = match grant.backing {
            Backing::Small | Backing::Large => round_up(used.max(1), PAGE_BYTES),
            Backing::Dedicated | Backing::Overflow => used,
        };
        if new >= old {
            return;
        }
        grant.extent.bytes = new;
        let (segment, offset) = key;
        match grant.backing {
            Backing::Small => self.small.free(offset + new, old - new),
            Backing::Large => self.large.free(offset + new, old - new),
            Backing::Dedicated => {
                self.dedicated_bytes -= old - new;
                fx.push(Effect::Truncate { segment, bytes: new });
            }
            Backing::Overflow => {
                self.disk.overflow_bytes -= old - new;
                fx.push(Effect::Truncate { segment, bytes: new });
            }
        }
    }

    pub(super) fn free_if_unused(&mut self, key: GrantKey, fx: &mut Effects) {
        let grant = &self.grants[&key];
        if grant.open || grant.holds > 0 || !grant.live.is_empty() {
            return;
        }
        let Extent { segment, offset, bytes } = grant.extent;
        match grant.backing {
            Backing::Small => self.small.free(offset, bytes),
            Backing::Large => self.large.free(offset, bytes),
            Backing::Dedicated => {
                self.dedicated_bytes -= bytes;
                fx.push(Effect::Destroy { segment });
            }
            Backing::Overflow => {
                self.disk.overflow_bytes -= bytes;
                fx.push(Effect::Destroy { segment });
            }
        }
        self.grants.remove(&key);
        self.changes += 1;
    }

    /// Takes memory for a request, if there is some now.
    pub(super) fn place(&mut self, request: &Request, fx: &mut Effects) -> Option<(Extent, Backing)> {
        let arena = |offset, bytes| Extent { segment: SegmentId(0), offset, bytes };
        let pages = request.pages();
        match request.class() {
            super::queue::SMALL => {
                if let Some(offset) = self.small.allocate(pages) {
                    return Some((arena(offset, pages), Backing::Small));
                }
                // Beyond their own zone allotments compete with outputs and must not starve them.
                if self.queues[super::queue::LARGE].is_overdue() {
                    return None;
                }
                let offset = self.large.allocate(pages)?;
                self.queues[super::queue::LARGE].pass_head();
                Some((arena(offset, pages), Backing::Large))
            }
            super::queue::LARGE => Some((arena(self.large.allocate(pages)?, pages), Backing::Large)),
            _ => {
                let total = self.dedicated_bytes.checked_add(request.bytes)?;
                if total > self.limits.dedicated_bytes {
                    return None;
                }
                self.dedicated_bytes = total;
                let segment = self.new_segment();
                fx.push(Effect::Create { segment, bytes: request.bytes });
                Some((Extent { segment, offset: 0, bytes: request.bytes }, Backing::Dedicated))
            }
        }
    }
}
