//! The store of one node on real memory.

use crate::arena::{Arena, ReadError};
use bytes::Bytes;
use dflow_proto::ids::Extent;
use dflow_proto::store::{
    DiskError, Effect, Effects, GrantError, Hold, Lease, Leased, Limits, Listed, Location, ObjectId, Owner,
    Purpose, Reserve, SealError, Sealed, Stats, Store, StoreError, Ticket,
};
use dflow_proto::{ObjectKey, RunId, SegmentId};
use dflow_shm::segment::{PartMut, SegmentError};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the driver of a [`LocalStore`] is told, in order.
#[derive(Debug)]
pub enum StoreEvent {
    /// A reservation that waited is served.
    Granted {
        /// The reservation.
        ticket: Ticket,
        /// Its owner.
        owner: Owner,
        /// Where to write.
        extent: Extent,
    },
    /// A reservation that waited can never be served.
    Refused {
        /// The reservation.
        ticket: Ticket,
        /// Its owner.
        owner: Owner,
        /// Why, and what to do.
        error: StoreError,
    },
    /// A leased object is in memory again.
    Restored {
        /// As in its lease.
        object: ObjectId,
        /// Its key.
        key: ObjectKey,
        /// Where.
        extent: Extent,
    },
    /// A leased object cannot be brought back now; its leases are still to be returned.
    RestoreFailed {
        /// As in its lease.
        object: ObjectId,
        /// Its key.
        key: ObjectKey,
        /// Why.
        error: StoreError,
    },
    /// Write these bytes to disk; answer by [`LocalStore::spilled`] and let go of them before.
    Spill {
        /// The object; names its copy.
        object: ObjectId,
        /// Its bytes, in place.
        bytes: Bytes,
    },
    /// Read the object's copy into this memory; answer by [`LocalStore::loaded`].
    Load {
        /// The object.
        object: ObjectId,
        /// As long as the object. Nobody else writes there.
        into: PartMut,
    },
    /// Delete the object's copy.
    Discard {
        /// The object.
        object: ObjectId,
    },
    /// Make a file of this length in the spill directory, with its blocks allocated; answer by
    /// [`LocalStore::grown`].
    Grow {
        /// The segment it will be.
        segment: SegmentId,
        /// Its length.
        bytes: u64,
    },
    /// The segment is gone: function processes that were given it are to let go of it, so that its memory
    /// comes free.
    Gone {
        /// The segment.
        segment: SegmentId,
    },
}

/// Why the node itself could not put an object.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// There is no room now.
    #[error(
        "the store has no room for {bytes} bytes at this moment; wait for a run to end, or raise its size"
    )]
    NoRoom {
        /// What was needed.
        bytes: u64,
    },
    /// There will never be room.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key is taken, or the store has too many objects.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// The pure [`Store`] over an [`Arena`]. Its verbs are the store's; what needs no disk is done at once, the
/// rest comes out of [`LocalStore::next_event`].
#[derive(Debug)]
pub struct LocalStore {
    core: Store,
    arena: Arc<Arena>,
    fx: Effects,
    events: VecDeque<StoreEvent>,
    /// Overflow segments that the driver is making.
    growing: BTreeMap<SegmentId, u64>,
    /// Segments the system did not give: whatever was to lie there is taken back.
    missing: BTreeMap<SegmentId, String>,
    warmed: u64,
}

impl LocalStore {
    /// An empty store on `arena`, whose length `limits.arena_bytes` must be.
    pub fn new(arena: Arc<Arena>, limits: Limits) -> Self {
        assert!(limits.arena_bytes <= arena.map().bytes(), "the store is larger than its arena");
        LocalStore {
            core: Store::new(limits),
            arena,
            fx: Effects::new(),
            events: VecDeque::new(),
            growing: BTreeMap::new(),
            missing: BTreeMap::new(),
            warmed: 0,
        }
    }

    /// The memory it lies on.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// The next thing for the driver to do or know.
    pub fn next_event(&mut self) -> Option<StoreEvent> {
        self.events.pop_front()
    }

    /// [`Store::reserve`].
    pub fn reserve(&mut self, owner: Owner, bytes: u64, purpose: Purpose) -> Reserve {
        let warmed = self.arena.prefaulted();
        if warmed > self.warmed {
            self.warmed = warmed;
            self.core.warmed(warmed);
        }
        let answer = self.core.reserve(owner, bytes, purpose, &mut self.fx);
        self.act();
        self.arena.keep_ahead(self.core.high_water());
        match answer {
            Reserve::Granted(extent) => match self.take_back_missing(owner, extent) {
                Some(error) => Reserve::Refused(error),
                None => Reserve::Granted(extent),
            },
            answer => answer,
        }
    }

    /// [`Store::cancel`].
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let found = self.core.cancel(ticket, &mut self.fx);
        self.act();
        found
    }

    /// [`Store::give_back`].
    pub fn give_back(&mut self, owner: Owner, extent: Extent) -> Result<(), GrantError> {
        let result = self.core.give_back(owner, extent, &mut self.fx);
        self.act();
        result
    }

    /// [`Store::close`].
    pub fn close(&mut self, owner: Owner, extent: Extent, used_bytes: u64) -> Result<(), GrantError> {
        let result = self.core.close(owner, extent, used_bytes, &mut self.fx);
        self.act();
        result
    }

    /// Takes over a file that a function process has filled, `bytes` long: a `File` grant to be sealed.
    pub fn adopt(&mut self, owner: Owner, fd: OwnedFd, bytes: u64) -> Result<Extent, SegmentError> {
        let extent = self.core.adopt(owner, bytes);
        if let Err(error) = self.arena.adopt(extent.segment, fd, bytes, false) {
            self.core.give_back(owner, extent, &mut self.fx).expect("it was granted just now");
            self.act();
            return Err(error);
        }
        Ok(extent)
    }

    /// [`Store::owns`].
    pub fn owns(&self, owner: Owner, extent: Extent) -> bool {
        self.core.owns(owner, extent)
    }

    /// [`Store::hold`].
    pub fn hold(&mut self, extent: Extent) -> Option<Hold> {
        self.core.hold(extent)
    }

    /// [`Store::unhold`].
    pub fn unhold(&mut self, hold: Hold) {
        self.core.unhold(hold, &mut self.fx);
        self.act();
    }

    /// [`Store::seal`]. A segment of the object's own gets exactly its length.
    pub fn seal(&mut self, key: ObjectKey, owner: Owner, extent: Extent) -> Result<ObjectId, SealError> {
        let object = self.core.seal(key, owner, extent, &mut self.fx)?;
        if extent.segment != crate::arena::MAIN
            && let Err(error) = self.arena.fix(extent.segment, extent.end())
        {
            // It stays as long as it is and is read by calls that cannot fault.
            tracing::warn!(%error, "a segment keeps its length");
        }
        self.act();
        Ok(object)
    }

    /// [`Store::lease`].
    pub fn lease(&mut self, key: ObjectKey) -> Leased {
        let leased = self.core.lease(key, &mut self.fx);
        self.act();
        leased
    }

    /// [`Store::unlease`].
    pub fn unlease(&mut self, lease: Lease) {
        self.core.unlease(lease, &mut self.fx);
        self.act();
    }

    /// [`Store::locate`].
    pub fn locate(&self, key: ObjectKey) -> Option<Location> {
        self.core.locate(key)
    }

    /// [`Store::pin`].
    pub fn pin(&mut self, key: ObjectKey) -> bool {
        self.core.pin(key)
    }

    /// [`Store::unpin`].
    pub fn unpin(&mut self, key: ObjectKey) -> bool {
        let found = self.core.unpin(key, &mut self.fx);
        self.act();
        found
    }

    /// [`Store::release`].
    pub fn release(&mut self, key: ObjectKey) -> bool {
        let found = self.core.release(key, &mut self.fx);
        self.act();
        found
    }

    /// [`Store::drop_owner`].
    pub fn drop_owner(&mut self, owner: Owner, sealed: Sealed) {
        self.core.drop_owner(owner, sealed, &mut self.fx);
        self.act();
    }

    /// [`Store::drop_run`].
    pub fn drop_run(&mut self, run: RunId) {
        self.core.drop_run(run, &mut self.fx);
        self.act();
    }

    /// [`Store::stalled`].
    pub fn stalled(&mut self) -> bool {
        let refused = self.core.stalled(&mut self.fx);
        self.act();
        refused
    }

    /// The answer to [`StoreEvent::Spill`].
    pub fn spilled(&mut self, object: ObjectId, result: Result<(), DiskError>) {
        self.core.spilled(object, result, &mut self.fx);
        self.act();
    }

    /// The answer to [`StoreEvent::Load`].
    pub fn loaded(&mut self, object: ObjectId, result: Result<(), DiskError>) {
        self.core.loaded(object, result, &mut self.fx);
        self.act();
    }

    /// The answer to [`StoreEvent::Grow`].
    pub fn grown(&mut self, segment: SegmentId, file: Result<OwnedFd, DiskError>) {
        let bytes = self.growing.remove(&segment).expect("the segment was asked for");
        let result = file.and_then(|fd| {
            self.arena.adopt(segment, fd, bytes, true).map_err(|error| DiskError::Io(error.to_string()))
        });
        self.core.grown(segment, result, &mut self.fx);
        self.act();
    }

    /// Returns free memory at the end of the arena to the system, beyond the first `retain_bytes`; for when
    /// the node is idle. Tells how many bytes.
    pub fn trim(&mut self, retain_bytes: u64) -> u64 {
        let Some(extent) = self.core.trim(retain_bytes) else { return 0 };
        self.warmed = self.warmed.min(extent.offset);
        match self.arena.punch(extent) {
            Ok(()) => extent.bytes,
            Err(error) => {
                tracing::warn!(%error, "free memory could not be returned to the system");
                0
            }
        }
    }

    /// Of the objects there are, the first `max`: those of `run`, or of all runs.
    pub fn list(&self, run: Option<RunId>, max: usize) -> Vec<Listed> {
        self.core.list(run, max)
    }

    /// Numbers of this moment.
    pub fn stats(&self) -> Stats {
        self.core.stats()
    }

    /// Puts an object from memory of the node's own.
    pub fn put_bytes(&mut self, key: ObjectKey, owner: Owner, bytes: &[u8]) -> Result<ObjectId, PutError> {
        self.put(key, owner, bytes.len() as u64, |arena, extent| {
            arena.part_mut(extent).map_err(io::Error::other)?.copy_in(0, bytes);
            Ok(())
        })
    }

    /// Puts the contents of a file, read straight into the object's memory.
    pub fn put_file(&mut self, key: ObjectKey, owner: Owner, path: &Path) -> Result<ObjectId, PutError> {
        let failed = |source| PutError::File { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let result = self.put(key, owner, bytes, |arena, extent| match arena.fill_from(extent, &file)? {
            read if read == bytes => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read")),
        });
        match result {
            Err(PutError::File { source, .. }) => Err(failed(source)),
            result => result,
        }
    }

    fn put(
        &mut self,
        key: ObjectKey,
        owner: Owner,
        bytes: u64,
        write: impl FnOnce(&Arena, Extent) -> io::Result<()>,
    ) -> Result<ObjectId, PutError> {
        let grant = match self.reserve(owner, bytes, Purpose::Output) {
            Reserve::Granted(extent) => extent,
            Reserve::Refused(error) => return Err(error.into()),
            Reserve::Waiting(ticket) => {
                self.cancel(ticket);
                return Err(PutError::NoRoom { bytes });
            }
        };
        let extent = Extent { bytes, ..grant };
        let written = write(&self.arena, extent)
            .map_err(|source| PutError::File { path: PathBuf::new(), source })
            .and_then(|()| Ok(self.seal(key, owner, extent)?));
        if written.is_err() {
            self.give_back(owner, grant).expect("it was granted above and nothing is sealed in it");
        }
        written
    }

    /// Does what the core decided.
    fn act(&mut self) {
        while !self.fx.is_empty() {
            for effect in std::mem::take(&mut self.fx) {
                self.apply(effect);
            }
        }
    }

    fn apply(&mut self, effect: Effect) {
        let event = match effect {
            Effect::Granted { ticket, owner, extent } => match self.take_back_missing(owner, extent) {
                None => StoreEvent::Granted { ticket, owner, extent },
                Some(error) => StoreEvent::Refused { ticket, owner, error },
            },
            Effect::Refused { ticket, owner, error } => StoreEvent::Refused { ticket, owner, error },
            Effect::Restored { object, key, extent } => StoreEvent::Restored { object, key, extent },
            Effect::RestoreFailed { object, key, error } => StoreEvent::RestoreFailed { object, key, error },
            Effect::Spill { object, extent, .. } => {
                let bytes = self.arena.view(extent).unwrap_or_else(|error| lost(extent, &error));
                StoreEvent::Spill { object, bytes }
            }
            Effect::Load { object, extent, .. } => match self.arena.part_mut(extent) {
                Ok(into) => StoreEvent::Load { object, into },
                Err(error) => {
                    let why = self.missing.remove(&extent.segment).unwrap_or_else(|| error.to_string());
                    return self.core.loaded(object, Err(DiskError::Io(why)), &mut self.fx);
                }
            },
            Effect::Discard { object } => StoreEvent::Discard { object },
            Effect::Create { segment, bytes } => {
                if let Err(error) = self.arena.create(segment, bytes) {
                    self.missing.insert(segment, error.to_string());
                }
                return;
            }
            Effect::Grow { segment, bytes } => {
                self.growing.insert(segment, bytes);
                StoreEvent::Grow { segment, bytes }
            }
            Effect::Truncate { segment, bytes } => {
                if let Err(error) = self.arena.fix(segment, bytes) {
                    tracing::warn!(%error, "a segment keeps its length");
                }
                return;
            }
            Effect::Destroy { segment } => {
                self.missing.remove(&segment);
                self.arena.destroy(segment);
                StoreEvent::Gone { segment }
            }
        };
        self.events.push_back(event);
    }

    /// A grant in a segment that the system did not give is none.
    fn take_back_missing(&mut self, owner: Owner, extent: Extent) -> Option<StoreError> {
        let why = self.missing.get(&extent.segment)?.clone();
        self.core.give_back(owner, extent, &mut self.fx).expect("it was granted just now");
        self.act();
        Some(StoreError::Segment { bytes: extent.bytes, why })
    }
}

/// The bytes of a file that its maker has truncated since: there are none. Its readers get zeros where they
/// would have met the end of the file, and the node goes on.
fn lost(extent: Extent, error: &ReadError) -> Bytes {
    tracing::warn!(%error, ?extent, "the file of an object has been truncated; zeros are kept instead");
    Bytes::from(vec![0; extent.bytes as usize])
}
