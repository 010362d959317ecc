//! The memory of a node: the main segment, and segments of objects that have one of their own.
//!
//! The node maps every segment whole. What it reads through a map are sealed objects (their writer's mapping
//! has been withdrawn) and pages it checks word by word; what it writes is memory that nobody else has been
//! given. A file that a function process could still truncate is never read through a map, since that would
//! end the node with SIGBUS: see [`Arena::copy_out`].

use crate::huge::HugePages;
use crate::prefault::Prefaulter;
use bytes::Bytes;
use dflow_proto::SegmentId;
use dflow_proto::ids::Extent;
use dflow_proto::limits::{HUGE_BYTES, PAGE_BYTES};
use dflow_shm::segment::{Map, OutOfBounds, PartMut, Segment, SegmentError};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The segment that all functions share.
pub const MAIN: SegmentId = SegmentId(0);

/// How to make an arena.
#[derive(Clone, Copy, Debug)]
pub struct ArenaConfig {
    /// Length of the main segment in bytes; rounded up to whole pages.
    pub bytes: u64,
    /// Back it with huge pages where the kernel has them.
    pub huge_pages: bool,
    /// Touch so many bytes in the background at start, and stay as far ahead of what is granted later. 0 for
    /// no prefaulting.
    pub prefault_bytes: u64,
}

/// Why there is no arena.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// A segment cannot be made or mapped.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// A kernel call failed.
    #[error("cannot {what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// Why bytes cannot be copied out of a segment.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The extent is not in any segment.
    #[error(transparent)]
    OutOfBounds(#[from] OutOfBounds),
    /// The file is gone or shorter than its object.
    #[error("the file of segment {} cannot be read: {source}", .segment.0)]
    File {
        /// The segment.
        segment: SegmentId,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// A segment beside the main one.
#[derive(Debug)]
struct Entry {
    segment: Segment,
    map: Arc<Map>,
    writable: bool,
    /// Nobody can change its length any more, so reading the map cannot fault.
    fixed: bool,
}

/// The memory of a node. Shared by its threads; segments come and go under a lock that is held for moments.
#[derive(Debug)]
pub struct Arena {
    main: Segment,
    map: Arc<Map>,
    others: RwLock<BTreeMap<SegmentId, Entry>>,
    huge_pages: HugePages,
    prefaulter: Prefaulter,
}

impl Arena {
    /// Makes the main segment and begins to prefault it. Nothing but its first huge page has been touched
    /// when this returns.
    pub fn new(config: &ArenaConfig) -> Result<Arc<Self>, ArenaError> {
        let bytes = config.bytes.next_multiple_of(PAGE_BYTES);
        let mut main = Segment::create(MAIN, "dflow-arena", bytes)?;
        // No process that has the descriptor may make another's mapping fault by truncating it.
        main.fix_size(bytes).map_err(|source| ArenaError::Os { what: "seal the arena's size", source })?;
        let map = main.map_node()?;
        let first = Extent { segment: MAIN, offset: 0, bytes: bytes.min(HUGE_BYTES) };
        let mut huge_pages = if config.huge_pages { HugePages::policy() } else { HugePages::switched_off() };
        if !config.huge_pages {
            without_huge_pages(&map);
        } else if huge_pages == HugePages::Yes && bytes >= HUGE_BYTES && map.populate(first).is_ok() {
            huge_pages = HugePages::observed(address(&map));
        }
        let prefaulter = Prefaulter::start(map.clone(), config.prefault_bytes)
            .map_err(|source| ArenaError::Os { what: "start the prefaulting thread", source })?;
        let others = RwLock::new(BTreeMap::new());
        Ok(Arc::new(Arena { main, map, others, huge_pages, prefaulter }))
    }

    /// The main segment, writable. Page 0 is the node page.
    pub fn map(&self) -> &Arc<Map> {
        &self.map
    }

    /// Whether huge pages back the main segment.
    pub fn huge_pages(&self) -> &HugePages {
        &self.huge_pages
    }

    /// A descriptor of a segment that may be written, for the process that is to fill it, and its length.
    pub fn segment(&self, id: SegmentId) -> Option<(OwnedFd, u64)> {
        self.with(id, |segment| Some((segment.as_fd().try_clone_to_owned().ok()?, segment.bytes())))
    }

    /// A descriptor of a segment that can only be read from, for those who read what is in it, and its length.
    pub fn segment_readonly(&self, id: SegmentId) -> Option<(OwnedFd, u64)> {
        self.with(id, |segment| Some((segment.reopen_readonly().ok()?, segment.bytes())))
    }

    fn with<T>(&self, id: SegmentId, see: impl FnOnce(&Segment) -> Option<T>) -> Option<T> {
        if id == MAIN { see(&self.main) } else { see(&self.read().get(&id)?.segment) }
    }

    /// The node's map of a segment. Of a file that its maker could still truncate, only pages that exist can be
    /// read without a fault.
    pub fn map_of(&self, id: SegmentId) -> Option<Arc<Map>> {
        if id == MAIN { Some(self.map.clone()) } else { Some(self.read().get(&id)?.map.clone()) }
    }

    /// Memory for the node to write: the caller holds the grant, so nobody else writes there.
    pub fn part_mut(&self, extent: Extent) -> Result<PartMut, OutOfBounds> {
        self.map_of(extent.segment).ok_or_else(|| unknown(extent))?.part_mut(extent)
    }

    /// The bytes of a sealed object that the caller leases, copied.
    pub fn copy_out(&self, extent: Extent) -> Result<Vec<u8>, ReadError> {
        if let Some(map) = self.faultless(extent.segment) {
            // SAFETY: the object is sealed and leased by the caller (its contract), so its bytes do not
            // change during the copy; the map cannot fault since the segment's length is fixed.
            return Ok(unsafe { map.slice(extent) }?.to_vec());
        }
        let others = self.read();
        let entry = others.get(&extent.segment).ok_or_else(|| unknown(extent))?;
        entry.map.pointer(extent)?;
        let mut bytes = vec![0; extent.bytes as usize];
        read_exact(&entry.segment, extent.offset, &mut bytes)
            .map_err(|source| ReadError::File { segment: extent.segment, source })?;
        Ok(bytes)
    }

    /// The bytes of a sealed object, without a copy where its memory allows it.
    ///
    /// The caller sees to it that the object is neither freed nor moved while the result lives: the store
    /// promises so for a leased object, and for one that is being spilled until the spill is answered.
    pub fn view(&self, extent: Extent) -> Result<Bytes, ReadError> {
        match self.faultless(extent.segment) {
            Some(map) => {
                // Checked here once; reading cannot fail then.
                map.pointer(extent)?;
                Ok(Bytes::from_owner(View { map, extent }))
            }
            None => self.copy_out(extent).map(Bytes::from),
        }
    }

    /// Copies sealed bytes to memory that the caller has been granted (`strict` mode: what the function can
    /// still write is then not what others read).
    pub fn copy(&self, from: Extent, to: Extent) -> Result<(), ReadError> {
        let part = self.part_mut(Extent { bytes: from.bytes, ..to })?;
        match self.faultless(from.segment) {
            Some(map) => {
                map.pointer(from)?;
                // SAFETY: both ranges were checked, and the grant `to` overlaps no sealed object. The source
                // may be written by a hostile function meanwhile: the copy is raw and no reference to those
                // bytes is formed; whatever mixture comes out is the object.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        map.pointer(from)?.as_ptr(),
                        part.pointer().as_ptr(),
                        from.bytes as usize,
                    );
                }
            }
            None => part.copy_in(0, &self.copy_out(from)?),
        }
        Ok(())
    }

    /// Fills `extent` (granted to the caller) from `file`, straight into the segment. Tells how many bytes
    /// there were, fewer than `extent.bytes` at the end of the file.
    pub fn fill_from(&self, extent: Extent, file: impl AsFd) -> io::Result<u64> {
        let part = self.part_mut(extent).map_err(io::Error::other)?;
        let mut at = 0;
        while at < part.bytes() {
            // SAFETY: the kernel writes at most the rest of the part, which is writable memory that only the
            // holder of the grant writes.
            let n = unsafe {
                libc::read(
                    file.as_fd().as_raw_fd(),
                    part.pointer().as_ptr().add(at).cast(),
                    part.bytes() - at,
                )
            };
            match usize::try_from(n) {
                Ok(0) => break,
                Ok(n) => at += n,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(at as u64)
    }

    /// Makes a memory segment of exactly `bytes`.
    pub(crate) fn create(&self, id: SegmentId, bytes: u64) -> Result<(), SegmentError> {
        let segment = Segment::create(id, "dflow-object", bytes)?;
        let map = segment.map_node()?;
        self.write().insert(id, Entry { segment, map, writable: true, fixed: false });
        Ok(())
    }

    /// Takes over a file of at least `bytes`. `writable` if the node is to write it.
    pub(crate) fn adopt(
        &self,
        id: SegmentId,
        fd: OwnedFd,
        bytes: u64,
        writable: bool,
    ) -> Result<(), SegmentError> {
        let segment = Segment::from_fd(id, fd, bytes)?;
        let map = if writable { segment.map_node()? } else { segment.map_readonly()? };
        self.write().insert(id, Entry { segment, map, writable, fixed: false });
        Ok(())
    }

    /// The object in a segment of its own is complete and `bytes` long: gives the segment that length and,
    /// where the kernel can, forbids every other.
    pub(crate) fn fix(&self, id: SegmentId, bytes: u64) -> Result<(), SegmentError> {
        let mut others = self.write();
        let Some(entry) = others.get_mut(&id) else { return Ok(()) };
        let os = |source| SegmentError::Os { id, what: "fix the size of", bytes, source };
        entry.segment.fix_size(bytes).map_err(os)?;
        if entry.map.bytes() != bytes {
            entry.map =
                if entry.writable { entry.segment.map_node()? } else { entry.segment.map_readonly()? };
        }
        // SAFETY: F_GET_SEALS takes no argument and touches no memory of ours.
        let seals = unsafe { libc::fcntl(entry.segment.as_fd().as_raw_fd(), libc::F_GET_SEALS) };
        entry.fixed = seals >= 0 && seals & libc::F_SEAL_SHRINK != 0;
        Ok(())
    }

    /// Forgets a segment; its memory goes with the last process that has it.
    pub(crate) fn destroy(&self, id: SegmentId) {
        self.write().remove(&id);
    }

    /// Returns free pages at the end of the main segment to the system.
    pub(crate) fn punch(&self, extent: Extent) -> io::Result<()> {
        self.prefaulter.trimmed(extent.offset);
        self.main.punch(extent)
    }

    /// Memory below `high_water` of the main segment has been granted: make the next piece ready.
    pub(crate) fn keep_ahead(&self, high_water: u64) {
        self.prefaulter.keep_ahead(high_water);
    }

    /// Pages of the main segment below this have been touched.
    pub fn prefaulted(&self) -> u64 {
        self.prefaulter.done()
    }

    /// The map of a segment that cannot fault.
    fn faultless(&self, id: SegmentId) -> Option<Arc<Map>> {
        if id == MAIN {
            return Some(self.map.clone());
        }
        self.read().get(&id).filter(|entry| entry.fixed).map(|entry| entry.map.clone())
    }

    // A thread that panicked while it held the lock left the table whole: each change is one insert or remove.
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<SegmentId, Entry>> {
        self.others.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<SegmentId, Entry>> {
        self.others.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sealed bytes in a segment, kept mapped.
struct View {
    map: Arc<Map>,
    extent: Extent,
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: only `Arena::view` makes a View, for a sealed object whose memory its caller keeps from
        // being reused while it lives, in a segment whose length is fixed.
        unsafe { self.map.slice(self.extent) }.unwrap_or_default()
    }
}

fn unknown(extent: Extent) -> OutOfBounds {
    OutOfBounds { extent, segment: extent.segment, map_bytes: 0 }
}

fn address(map: &Map) -> usize {
    let start = Extent { segment: map.segment(), offset: 0, bytes: 0 };
    map.pointer(start).map_or(0, |pointer| pointer.as_ptr() as usize)
}

/// Takes back the wish for huge pages that every map begins with.
fn without_huge_pages(map: &Map) {
    // SAFETY: the range is exactly the mapping, which outlives the call; MADV_NOHUGEPAGE changes no contents.
    unsafe { libc::madvise(address(map) as *mut libc::c_void, map.bytes() as usize, libc::MADV_NOHUGEPAGE) };
}

fn read_exact(segment: &Segment, offset: u64, into: &mut [u8]) -> io::Result<()> {
    let mut at = 0;
    while at < into.len() {
        match segment.read_at(offset + at as u64, &mut into[at..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => at += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
