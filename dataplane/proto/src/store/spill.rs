//! Making room: objects to disk and back, and grants in files when nothing can go.
//!
//! A copy on disk is kept when its object comes back, since an object never changes: sending it away again
//! then costs nothing. Such copies are deleted when the disk is wanted for something else.

use super::arena::{Space, fit};
use super::grants::{Backing, GrantKey};
use super::objects::{Io, Place};
use super::queue::{FILE, LARGE, Request, SMALL};
use super::{DiskError, Effect, Effects, ObjectId, Store, StoreError};
use crate::ids::{Extent, SegmentId};
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::cmp::Reverse;

/// When several requests wait, up to this much is sent to disk at a time, so that the disk has more than one
/// thing to do. Bytes.
const BATCH_BYTES: u64 = 64 << 20;

/// The spill directory as the store knows it.
#[derive(Debug)]
pub(super) struct Disk {
    /// How much may be used. Lowered to what is used when the disk fails.
    pub(super) limit_bytes: u64,
    /// In copies of objects, those being written included.
    pub(super) spilled_bytes: u64,
    /// In segments.
    pub(super) overflow_bytes: u64,
    /// Objects in memory that have a copy on disk as well.
    redundant: BTreeSet<ObjectId>,
    redundant_bytes: u64,
    /// What went wrong last.
    pub(super) error: Option<DiskError>,
    pub(super) spills: u64,
}

impl Disk {
    pub(super) fn new(limit_bytes: u64) -> Self {
        Disk {
            limit_bytes,
            spilled_bytes: 0,
            overflow_bytes: 0,
            redundant: BTreeSet::new(),
            redundant_bytes: 0,
            error: None,
            spills: 0,
        }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.spilled_bytes + self.overflow_bytes
    }

    fn room(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.used_bytes())
    }

    /// The disk took less than was allowed: what it holds now is what it can hold. Trying again is worth it
    /// only when something was deleted.
    fn failed(&mut self, error: DiskError) {
        self.limit_bytes = self.limit_bytes.min(self.used_bytes());
        self.error = Some(error);
    }
}

/// What was done for a request that found no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relief {
    /// Memory came free: look again.
    Freed,
    /// Objects are on their way to disk.
    Spilling,
    /// A segment is being made for it; it has left the queue.
    Growing,
    /// Nothing can be done until something changes.
    None,
}

/// A free extent, or a grant that can be cleared.
#[derive(Debug)]
struct Piece {
    start: u64,
    /// Bytes to write to clear it.
    unsaved: u64,
    /// Bytes on disk already.
    copied: u64,
    used: u64,
}

/// Neighbouring pieces, with what it takes to clear them all. Each step costs the same however many there are.
#[derive(Debug, Default)]
struct Window {
    pieces: VecDeque<Piece>,
    unsaved: u64,
    copied: u64,
    /// Start and last use of the pieces that no later one was used after: the first is the newest of all.
    newest: VecDeque<(u64, u64)>,
}

impl Window {
    fn push(&mut self, piece: Piece) {
        self.unsaved += piece.unsaved;
        self.copied += piece.copied;
        while self.newest.back().is_some_and(|&(_, used)| used <= piece.used) {
            self.newest.pop_back();
        }
        self.newest.push_back((piece.start, piece.used));
        self.pieces.push_back(piece);
    }

    fn pop(&mut self) {
        let Some(piece) = self.pieces.pop_front() else { return };
        self.unsaved -= piece.unsaved;
        self.copied -= piece.copied;
        if self.newest.front().is_some_and(|&(start, _)| start == piece.start) {
            self.newest.pop_front();
        }
    }

    fn first_start(&self) -> Option<u64> {
        self.pieces.front().map(|piece| piece.start)
    }

    fn second_start(&self) -> Option<u64> {
        self.pieces.get(1).map(|piece| piece.start)
    }

    fn newest(&self) -> u64 {
        self.newest.front().map_or(0, |&(_, used)| used)
    }
}

impl Store {
    /// The answer to [`Effect::Spill`]. A failed spill leaves nothing on disk.
    pub fn spilled(&mut self, object: ObjectId, result: Result<(), DiskError>, fx: &mut Effects) {
        let id = object;
        let object = &self.objects[&id];
        let (bytes, keep) = (object.bytes, object.leases > 0);
        let Some(Io::Spilling(class)) = object.io else { panic!("{id:?} is not being spilled") };
        self.queues[class].spilling -= 1;
        self.changes += 1;
        match result {
            Ok(()) => {
                self.update(id, |object| {
                    object.io = None;
                    object.copy = true;
                });
                self.disk.spills += 1;
                self.disk.redundant.insert(id);
                self.disk.redundant_bytes += bytes;
                if !keep {
                    self.evict(id, fx);
                }
            }
            Err(error) => {
                self.update(id, |object| object.io = None);
                self.disk.spilled_bytes -= bytes;
                self.disk.failed(error);
            }
        }
        self.settle(id, fx);
        self.pump(fx);
    }

    /// The answer to [`Effect::Load`].
    pub fn loaded(&mut self, object: ObjectId, result: Result<(), DiskError>, fx: &mut Effects) {
        let id = object;
        assert_eq!(self.objects[&id].io, Some(Io::Loading), "{id:?} is not being loaded");
        self.loads_in_flight -= 1;
        self.changes += 1;
        self.update(id, |object| object.io = None);
        let object = &self.objects[&id];
        match result {
            Ok(()) => {
                self.loads += 1;
                self.disk.redundant.insert(id);
                self.disk.redundant_bytes += object.bytes;
                self.announce(id, fx);
            }
            Err(error) => {
                if object.leases > 0 {
                    let error = StoreError::Unreadable(error);
                    fx.push(Effect::RestoreFailed { object: id, key: object.key, error });
                }
                self.detach(id, Place::Disk, fx);
                self.objects_on_disk += 1;
            }
        }
        self.settle(id, fx);
        self.pump(fx);
    }

    /// The answer to [`Effect::Grow`]. A failure leaves nothing on disk.
    pub fn grown(&mut self, segment: SegmentId, result: Result<(), DiskError>, fx: &mut Effects) {
        let (bytes, request) = self.growing.remove(&segment).expect("the segment was asked for");
        self.changes += 1;
        match (result, request) {
            (Ok(()), Some(request)) => {
                self.admit(request, Extent { segment, offset: 0, bytes }, Backing::Overflow, fx);
            }
            (Ok(()), None) => {
                self.disk.overflow_bytes -= bytes;
                fx.push(Effect::Destroy { segment });
            }
            (Err(error), request) => {
                self.disk.overflow_bytes -= bytes;
                self.disk.failed(error);
                if let Some(request) = request {
                    self.enqueue(request);
                }
            }
        }
        self.pump(fx);
    }

    /// Makes room for the first request of a queue.
    pub(super) fn relieve(&mut self, request: &Request, fx: &mut Effects) -> Relief {
        let class = request.class();
        if self.queues[class].spilling > 0 {
            return Relief::Spilling;
        }
        if self.disk.limit_bytes == 0 {
            return Relief::None;
        }
        if self.fits_memory(request) {
            let victims = if class == FILE { self.file_victims(request) } else { self.window(request) };
            if !victims.is_empty() {
                return self.send_away(victims, class, fx);
            }
        }
        if self.make_room(request.file_bytes(), fx) {
            let bytes = request.file_bytes();
            let segment = self.new_segment();
            self.disk.overflow_bytes += bytes;
            self.remove_request(request.ticket);
            self.growing.insert(segment, (bytes, Some(request.clone())));
            fx.push(Effect::Grow { segment, bytes });
            return Relief::Growing;
        }
        Relief::None
    }

    /// Sends all objects of these grants to disk. Those with a copy there leave at once.
    fn send_away(&mut self, victims: Vec<GrantKey>, class: usize, fx: &mut Effects) -> Relief {
        let ids: Vec<ObjectId> =
            victims.iter().flat_map(|at| self.grants[at].live.values().map(|&(_, id)| id)).collect();
        let (copied, unsaved): (Vec<_>, Vec<_>) = ids.into_iter().partition(|id| self.objects[id].copy);
        // First those that cost nothing: making room on disk must not delete the copies they rely on.
        copied.into_iter().for_each(|id| self.evict(id, fx));
        for &id in &unsaved {
            let object = &self.objects[&id];
            let Place::Memory(_, extent) = object.place else { unreachable!("it lies in a grant") };
            let (key, bytes) = (object.key, object.bytes);
            let room = self.make_room(bytes, fx);
            assert!(room, "victims are chosen so that the disk can take them");
            self.disk.spilled_bytes += bytes;
            self.update(id, |object| object.io = Some(Io::Spilling(class)));
            self.queues[class].spilling += 1;
            fx.push(Effect::Spill { object: id, key, extent });
        }
        if unsaved.is_empty() { Relief::Freed } else { Relief::Spilling }
    }

    /// Takes an object that is on disk as well out of memory.
    fn evict(&mut self, id: ObjectId, fx: &mut Effects) {
        self.forget_redundant(id);
        self.detach(id, Place::Disk, fx);
        self.objects_on_disk += 1;
    }

    /// Deletes an object's copy on disk.
    pub(super) fn drop_copy(&mut self, id: ObjectId, fx: &mut Effects) {
        self.forget_redundant(id);
        self.update(id, |object| object.copy = false);
        self.disk.spilled_bytes -= self.objects[&id].bytes;
        fx.push(Effect::Discard { object: id });
    }

    fn forget_redundant(&mut self, id: ObjectId) {
        if self.disk.redundant.remove(&id) {
            self.disk.redundant_bytes -= self.objects[&id].bytes;
        }
    }

    /// Sees to it that so much may be written to disk, if need be by deleting copies of objects that are in
    /// memory.
    fn make_room(&mut self, bytes: u64, fx: &mut Effects) -> bool {
        if self.disk.room().saturating_add(self.disk.redundant_bytes) < bytes {
            return false;
        }
        while self.disk.room() < bytes {
            let Some(&id) = self.disk.redundant.first() else { return false };
            self.drop_copy(id, fx);
        }
        true
    }

    /// Whether the disk can take `unsaved_bytes` of the victims when all redundant copies but those of the
    /// victims themselves (`copied_bytes`) are deleted.
    fn affordable(&self, unsaved_bytes: u64, copied_bytes: u64) -> bool {
        let deletable = self.disk.redundant_bytes.saturating_sub(copied_bytes);
        unsaved_bytes <= self.disk.room().saturating_add(deletable)
    }

    /// Grants to clear so that a contiguous piece of the arena comes free that fits the request: those with
    /// the fewest bytes to write, and of equals the longest unused. Empty if there is no such piece.
    fn window(&self, request: &Request) -> Vec<GrantKey> {
        let class = request.class();
        let need = request.pages();
        let batch = self.queues[class].pages().min(BATCH_BYTES).min(self.large.bytes() / 8);
        for pages in [batch, need] {
            if pages < need {
                continue;
            }
            if class == SMALL {
                let found = self.cheapest_window(&self.small, pages);
                if !found.is_empty() {
                    return found;
                }
            }
            // A small request that may not have what it clears there must not clear it.
            if class == SMALL && self.queues[LARGE].is_overdue() {
                continue;
            }
            let found = self.cheapest_window(&self.large, pages);
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    fn cheapest_window(&self, space: &Space, pages: u64) -> Vec<GrantKey> {
        let segment = SegmentId(0);
        let (start, end) = (space.start(), space.start() + space.bytes());
        let mut grants = self.grants.range((segment, start)..(segment, end)).peekable();
        let mut frees = space.free_extents().peekable();
        let mut window = Window::default();
        // Cost, first and last offset.
        let mut best: Option<((u64, u64), u64, u64)> = None;
        loop {
            // The pieces of a zone, free extents and grants, follow each other without a gap.
            let free_first = match (frees.peek(), grants.peek()) {
                (Some(&(offset, _)), Some(&(key, _))) => offset < key.1,
                (free, None) if free.is_none() => break,
                (_, grant) => grant.is_none(),
            };
            let until;
            if free_first {
                let (offset, end) = frees.next().expect("peeked");
                window.push(Piece { start: offset, unsaved: 0, copied: 0, used: 0 });
                until = end;
            } else {
                let (&(_, offset), grant) = grants.next().expect("peeked");
                if !grant.is_evictable() {
                    window = Window::default();
                    continue;
                }
                window.push(Piece {
                    start: offset,
                    unsaved: grant.unsaved_bytes,
                    copied: grant.copied_bytes,
                    used: grant.used,
                });
                until = grant.extent.end();
            }
            // Drop from the front what is not needed to fit.
            while window.second_start().is_some_and(|start| fit(start, until, pages).is_some()) {
                window.pop();
            }
            let Some(first) = window.first_start() else { continue };
            if fit(first, until, pages).is_none() || !self.affordable(window.unsaved, window.copied) {
                continue;
            }
            let cost = (window.unsaved, window.newest());
            if best.is_none_or(|(before, ..)| cost < before) {
                best = Some((cost, first, until));
            }
        }
        let Some((_, first, until)) = best else { return Vec::new() };
        self.grants.range((segment, first)..(segment, until)).map(|(&key, _)| key).collect()
    }

    /// Dedicated segments to clear so that the request comes within the limit: the largest first, of equals
    /// the longest unused. Empty if they do not suffice.
    fn file_victims(&self, request: &Request) -> Vec<GrantKey> {
        let mut candidates: Vec<_> = self
            .grants
            .iter()
            .filter(|(_, grant)| grant.backing == Backing::Dedicated && grant.is_evictable())
            .map(|(&key, grant)| (Reverse(grant.extent.bytes), grant.used, key))
            .collect();
        candidates.sort_unstable();
        let total = self.dedicated_bytes.saturating_add(request.bytes);
        let mut excess = total.saturating_sub(self.limits.dedicated_bytes);
        let (mut unsaved, mut copied) = (0u64, 0u64);
        let mut victims = Vec::new();
        for (Reverse(bytes), _, key) in candidates {
            if excess == 0 {
                break;
            }
            let grant = &self.grants[&key];
            if !self.affordable(unsaved + grant.unsaved_bytes, copied + grant.copied_bytes) {
                continue;
            }
            unsaved += grant.unsaved_bytes;
            copied += grant.copied_bytes;
            excess = excess.saturating_sub(bytes);
            victims.push(key);
        }
        if excess > 0 { Vec::new() } else { victims }
    }
}
