//! Objects: sealed bytes under a key, for as long as somebody may read them.

use super::grants::GrantKey;
use super::queue::Request;
use super::{
    Effect, Effects, Lease, Leased, Listed, Location, ObjectId, Owner, Purpose, SealError, Store, Ticket,
};
use crate::ids::{Extent, InvocationId, ObjectKey, RunId};
use crate::limits::PAGE_BYTES;
use alloc::vec::Vec;

/// One object. It is freed when its key no longer names it, nobody leases it and nobody copies it.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) key: ObjectKey,
    pub(super) owner: Owner,
    pub(super) bytes: u64,
    pub(super) place: Place,
    /// It was sealed as a file of its own and comes back as one.
    file: bool,
    /// Its key still names it.
    keyed: bool,
    /// Its last reader is done; only pins keep it.
    released: bool,
    pins: u32,
    pub(super) leases: u32,
    pub(super) io: Option<Io>,
    /// A copy of it is on disk.
    pub(super) copy: bool,
    pub(super) used: u64,
}

/// Where an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It has no bytes and needs no memory.
    Nowhere,
    /// In this grant.
    Memory(GrantKey, Extent),
    /// On disk only.
    Disk,
    /// On disk only; memory for it is asked for.
    Queued(Ticket),
}

/// What the driver is doing with an object's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Io {
    /// Writing them to disk to make room for a request of this class.
    Spilling(usize),
    /// Reading them back.
    Loading,
}

impl Object {
    pub(super) fn is_busy(&self) -> bool {
        self.leases > 0 || self.io.is_some()
    }
    fn unsaved_bytes(&self) -> u64 {
        if self.copy { 0 } else { self.bytes }
    }
    fn copied_bytes(&self) -> u64 {
        if self.copy { self.bytes } else { 0 }
    }
}

impl Store {
    /// Makes the bytes at `extent` the object `key`. From now on they never change. In an `Output` or `File`
    /// grant this closes the grant and frees its tail.
    ///
    /// # Errors
    /// Whatever a misbehaving worker could claim; the store is unchanged then.
    pub fn seal(
        &mut self,
        key: ObjectKey,
        owner: Owner,
        extent: Extent,
        fx: &mut Effects,
    ) -> Result<ObjectId, SealError> {
        if !owner.may_seal(&key) {
            return Err(SealError::NotYours { key });
        }
        let at = self.grant_at(&extent).ok_or(SealError::NotGranted { extent })?;
        let grant = &self.grants[&at];
        if grant.owner != owner || !grant.open {
            return Err(SealError::NotGranted { extent });
        }
        let allowed = match grant.purpose {
            Purpose::Allotment => extent.bytes == 0 || extent.offset - grant.extent.offset >= PAGE_BYTES,
            Purpose::Output => true,
            Purpose::File => extent.offset == grant.extent.offset,
            Purpose::Table => false,
        };
        if !allowed {
            return Err(SealError::NotForObjects { extent });
        }
        if let Some(id) = self.by_key.get(&key) {
            return Err(SealError::Already { key, attempt: self.objects[id].owner.attempt });
        }
        // Objects in a grant are disjoint, so only the last that begins before the end can overlap.
        if let Some((_, &(end, other))) = grant.live.range(..extent.end()).next_back()
            && extent.bytes > 0
            && end > extent.offset
        {
            return Err(SealError::Overlap { extent, other: self.objects[&other].key });
        }
        if self.objects.len() >= self.limits.objects_max as usize {
            return Err(SealError::TooManyObjects { objects: self.limits.objects_max });
        }

        let file = grant.purpose == Purpose::File;
        let one = matches!(grant.purpose, Purpose::Output | Purpose::File);
        let id = ObjectId(self.next_object);
        self.next_object += 1;
        self.clock += 1;
        let object = Object {
            key,
            owner,
            bytes: extent.bytes,
            place: Place::Nowhere,
            file,
            keyed: true,
            released: false,
            pins: 0,
            leases: 0,
            io: None,
            copy: false,
            used: self.clock,
        };
        self.objects.insert(id, object);
        self.by_key.insert(key, id);
        if extent.bytes > 0 || file {
            self.attach(id, at, extent);
        }
        if one {
            let used = if extent.bytes > 0 { extent.end() - at.1 } else { 0 };
            self.close_grant(at, used, fx);
            self.pump(fx);
        }
        Ok(id)
    }

    /// Asks to read an object. Each answer but `Missing` carries a lease to be returned by
    /// [`Store::unlease`].
    pub fn lease(&mut self, key: ObjectKey, fx: &mut Effects) -> Leased {
        let Some(&id) = self.by_key.get(&key) else { return Leased::Missing };
        self.clock += 1;
        let now = self.clock;
        self.update(id, |object| {
            object.leases += 1;
            object.used = now;
        });
        self.leases += 1;
        let lease = Lease { object: id, key };
        let ticket = self.new_ticket();
        let object = self.objects.get_mut(&id).expect("a key names an object");
        match object.place {
            Place::Nowhere => Leased::Ready(lease, Extent::default()),
            Place::Memory(_, extent) if object.io != Some(Io::Loading) => Leased::Ready(lease, extent),
            Place::Memory(..) | Place::Queued(_) => Leased::Restoring(lease),
            Place::Disk => {
                object.place = Place::Queued(ticket);
                let purpose = if object.file { Purpose::File } else { Purpose::Output };
                let request = Request::new(ticket, object.owner, object.bytes, purpose, Some(id));
                self.enqueue(request);
                self.pump(fx);
                Leased::Restoring(lease)
            }
        }
    }

    /// Returns a lease.
    pub fn unlease(&mut self, lease: Lease, fx: &mut Effects) {
        let id = lease.object;
        self.update(id, |object| object.leases -= 1);
        self.leases -= 1;
        let object = self.objects.get_mut(&id).expect("a leased object exists");
        if object.leases > 0 {
            return;
        }
        self.changes += 1;
        if let Place::Queued(ticket) = object.place {
            object.place = Place::Disk;
            self.forget_request(ticket);
        }
        self.settle(id, fx);
        self.pump(fx);
    }

    /// Of the objects under keys, the first `max`: those of `run`, or of all runs, in the order of
    /// their keys.
    pub fn list(&self, run: Option<RunId>, max: usize) -> Vec<Listed> {
        let first = ObjectKey {
            run: run.unwrap_or(RunId(0)),
            invocation: InvocationId { step: 0, item: 0 },
            port: 0,
            item: 0,
        };
        let named = self.by_key.range(first..).take_while(|(key, _)| run.is_none_or(|run| key.run == run));
        let listed = named.filter_map(|(key, id)| {
            let object = self.objects.get(id)?;
            Some(Listed {
                key: *key,
                bytes: object.bytes,
                in_memory: matches!(object.place, Place::Memory(..) | Place::Nowhere),
                on_disk: object.copy || !matches!(object.place, Place::Memory(..) | Place::Nowhere),
                leases: object.leases,
            })
        });
        listed.take(max).collect()
    }

    /// What there is under a key, without a lease on it.
    pub fn locate(&self, key: ObjectKey) -> Option<Location> {
        let object = &self.objects[self.by_key.get(&key)?];
        let extent = match object.place {
            Place::Nowhere => Some(Extent::default()),
            Place::Memory(_, extent) if object.io != Some(Io::Loading) => Some(extent),
            _ => None,
        };
        Some(Location { bytes: object.bytes, attempt: object.owner.attempt, extent })
    }

    /// Keeps an object under its key after its last reader is done (it may go to disk). Counted. False if
    /// there is no such object.
    pub fn pin(&mut self, key: ObjectKey) -> bool {
        let Some(id) = self.by_key.get(&key) else { return false };
        self.objects.get_mut(id).expect("a key names an object").pins += 1;
        true
    }

    /// Ends a pin. False if there is no such object or no pin on it.
    pub fn unpin(&mut self, key: ObjectKey, fx: &mut Effects) -> bool {
        let Some(&id) = self.by_key.get(&key) else { return false };
        let object = self.objects.get_mut(&id).expect("a key names an object");
        if object.pins == 0 {
            return false;
        }
        object.pins -= 1;
        if object.pins == 0 && object.released {
            self.unkey(id, fx);
            self.pump(fx);
        }
        true
    }

    /// The last reader of an object is done. It goes when its pins and leases have gone. False if there is
    /// no such object.
    pub fn release(&mut self, key: ObjectKey, fx: &mut Effects) -> bool {
        let Some(&id) = self.by_key.get(&key) else { return false };
        let object = self.objects.get_mut(&id).expect("a key names an object");
        object.released = true;
        if object.pins == 0 {
            self.unkey(id, fx);
            self.pump(fx);
        }
        true
    }

    /// Takes the key off an object; it lives on only for those who lease or copy it.
    pub(super) fn unkey(&mut self, id: ObjectId, fx: &mut Effects) {
        let object = self.objects.get_mut(&id).expect("the caller found it");
        object.keyed = false;
        self.by_key.remove(&object.key);
        self.settle(id, fx);
    }

    /// Frees an object that nobody can reach any more.
    pub(super) fn settle(&mut self, id: ObjectId, fx: &mut Effects) {
        let object = &self.objects[&id];
        if object.keyed || object.is_busy() {
            return;
        }
        if object.copy {
            self.drop_copy(id, fx);
        }
        match self.objects[&id].place {
            Place::Memory(..) => self.detach(id, Place::Nowhere, fx),
            Place::Disk => self.objects_on_disk -= 1,
            Place::Nowhere => {}
            Place::Queued(_) => unreachable!("memory is asked for only while leased"),
        }
        self.objects.remove(&id);
        self.changes += 1;
    }

    /// Changes an object and keeps the sums of its grant right.
    pub(super) fn update(&mut self, id: ObjectId, change: impl FnOnce(&mut Object)) {
        let object = self.objects.get_mut(&id).expect("the caller found it");
        let (busy, unsaved, copied) = (object.is_busy(), object.unsaved_bytes(), object.copied_bytes());
        change(object);
        if let Place::Memory(at, _) = object.place {
            let grant = self.grants.get_mut(&at).expect("an object lies in a grant");
            grant.busy = grant.busy + u32::from(object.is_busy()) - u32::from(busy);
            grant.unsaved_bytes = grant.unsaved_bytes + object.unsaved_bytes() - unsaved;
            grant.copied_bytes = grant.copied_bytes + object.copied_bytes() - copied;
            grant.used = grant.used.max(object.used);
        }
    }

    /// Puts an object into a grant.
    pub(super) fn attach(&mut self, id: ObjectId, at: GrantKey, extent: Extent) {
        let object = self.objects.get_mut(&id).expect("the caller found it");
        object.place = Place::Memory(at, extent);
        let grant = self.grants.get_mut(&at).expect("the caller found it");
        grant.live.insert(extent.offset, (extent.end(), id));
        grant.busy += u32::from(object.is_busy());
        grant.unsaved_bytes += object.unsaved_bytes();
        grant.copied_bytes += object.copied_bytes();
        grant.used = grant.used.max(object.used);
    }

    /// Takes an object out of its grant, and frees the grant if it was the last.
    pub(super) fn detach(&mut self, id: ObjectId, place: Place, fx: &mut Effects) {
        let object = self.objects.get_mut(&id).expect("the caller found it");
        let Place::Memory(at, extent) = core::mem::replace(&mut object.place, place) else {
            unreachable!("only an object in memory is taken out of it")
        };
        let grant = self.grants.get_mut(&at).expect("an object lies in a grant");
        grant.live.remove(&extent.offset);
        grant.busy -= u32::from(object.is_busy());
        grant.unsaved_bytes -= object.unsaved_bytes();
        grant.copied_bytes -= object.copied_bytes();
        self.free_if_unused(at, fx);
    }

    /// Tells those who lease an object that its bytes are there.
    pub(super) fn announce(&mut self, id: ObjectId, fx: &mut Effects) {
        let object = &self.objects[&id];
        if let (Place::Memory(_, extent), true) = (object.place, object.leases > 0) {
            fx.push(Effect::Restored { object: id, key: object.key, extent });
        }
    }
}
