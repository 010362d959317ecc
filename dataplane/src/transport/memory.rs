//! Memory that operations read into and serve from. Both kinds are owned: moved into the transport and kept by it
//! until the kernel (or the card) is done with them.

use dflow_proto::ids::Extent;
use dflow_shm::segment::{Map, OutOfBounds, PartMut};
use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes that a read fills. Whoever owns the lease decides that nobody else writes or reuses them.
pub struct Lease {
    part: PartMut,
    from: usize,
    bytes: usize,
    /// Whatever else must live as long (a store's lease, say); dropped with this.
    keep: Option<Arc<dyn Any + Send + Sync>>,
}

impl Lease {
    /// The bytes `[from, from + bytes)` of `part`.
    ///
    /// # Panics
    /// If they do not lie in it.
    pub fn new(part: PartMut, from: usize, bytes: usize) -> Lease {
        let fits = from.checked_add(bytes).is_some_and(|end| end <= part.bytes());
        assert!(fits, "{bytes} bytes at {from} of a part of {}", part.bytes());
        Lease { part, from, bytes, keep: None }
    }

    /// The bytes of `extent`, which need not be aligned.
    pub fn of(map: &Arc<Map>, extent: Extent) -> Result<Lease, OutOfBounds> {
        let from = extent.offset % 8;
        let bytes = extent.bytes.checked_add(from);
        let error = OutOfBounds { extent, segment: map.segment(), map_bytes: map.bytes() };
        let whole = Extent { offset: extent.offset - from, bytes: bytes.ok_or(error)?, ..extent };
        Ok(Lease::new(map.part_mut(whole)?, from as usize, extent.bytes as usize))
    }

    /// The same, keeping `keep` alive for as long.
    pub fn keeping(mut self, keep: Arc<dyn Any + Send + Sync>) -> Lease {
        self.keep = Some(keep);
        self
    }

    /// Its length in bytes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where it lies.
    pub fn extent(&self) -> Extent {
        let part = self.part.extent();
        Extent { offset: part.offset + self.from as u64, bytes: self.bytes as u64, ..part }
    }

    /// Copies `bytes` in at `at`. Panics if they do not fit.
    pub fn copy_in(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.bytes, "{} bytes at {at} of a lease of {}", bytes.len(), self.bytes);
        self.part.copy_in(self.from + at, bytes);
    }

    /// Copies bytes out from `at` on. Panics if they are not all inside.
    pub fn copy_out(&self, at: usize, into: &mut [u8]) {
        assert!(at + into.len() <= self.bytes, "{} bytes at {at} of a lease of {}", into.len(), self.bytes);
        self.part.copy_out(self.from + at, into);
    }

    /// The address of byte `at`, valid for the bytes from there to the end while `self` lives.
    pub(super) fn pointer(&self, at: usize) -> NonNull<u8> {
        assert!(at <= self.bytes, "byte {at} of a lease of {}", self.bytes);
        let base = self.part.pointer().as_ptr().wrapping_add(self.from + at);
        NonNull::new(base).expect("an address inside a mapping is not 0")
    }

    /// Its `bytes` bytes from byte `at` on, to read them alone. [`Lease::whole`] undoes it.
    #[cfg(feature = "rdma")]
    pub(super) fn cut(mut self, at: usize, bytes: usize) -> Lease {
        let fits = at.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        assert!(fits, "{bytes} bytes at {at} of a lease of {}", self.bytes);
        self.from += at;
        self.bytes = bytes;
        self
    }

    /// The lease of `bytes` bytes of which this was cut at byte `at`.
    #[cfg(feature = "rdma")]
    pub(super) fn whole(mut self, at: usize, bytes: usize) -> Lease {
        assert!(at <= self.from && at + self.bytes <= bytes, "not what it was cut from");
        let fits = self.from - at + bytes <= self.part.bytes();
        assert!(fits, "more than there was");
        self.from -= at;
        self.bytes = bytes;
        self
    }

    /// crc32c of its bytes.
    pub fn crc32c(&self) -> u32 {
        crc32c_by(self.bytes, |at, piece| self.copy_out(at, piece))
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({:?})", self.extent())
    }
}

/// Bytes of a registered segment that a peer has asked for.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    map: Arc<Map>,
    extent: Extent,
}

impl Source {
    /// `bytes` at `offset` of `map`, or `None` where that is not inside.
    pub(super) fn new(map: &Arc<Map>, offset: u64, bytes: u64) -> Option<Source> {
        let extent = Extent { segment: map.segment(), offset, bytes };
        map.pointer(extent).is_ok().then(|| Source { map: map.clone(), extent })
    }

    pub(super) const fn bytes(&self) -> usize {
        self.extent.bytes as usize
    }

    pub(super) fn pointer(&self, at: usize) -> NonNull<u8> {
        let bytes = self.extent.bytes - at as u64;
        let rest = Extent { offset: self.extent.offset + at as u64, bytes, ..self.extent };
        self.map.pointer(rest).expect("checked when it was made, and maps do not shrink")
    }

    pub(super) fn copy_out(&self, at: usize, into: &mut [u8]) {
        let from = self.extent.offset + at as u64;
        let start = from - from % 8;
        let bytes = from - start + into.len() as u64;
        let part = self.map.part(Extent { offset: start, bytes, ..self.extent });
        part.expect("checked when it was made").copy_out((from - start) as usize, into);
    }

    pub(super) fn append_to(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + self.bytes(), 0);
        self.copy_out(0, &mut out[start..]);
    }

    pub(super) fn crc32c(&self) -> u32 {
        crc32c_by(self.bytes(), |at, piece| self.copy_out(at, piece))
    }
}

/// The checksum of memory that others might write: each piece is copied once, so what is summed is what was
/// there at one time, and the copy stays in the first-level cache.
fn crc32c_by(bytes: usize, mut copy: impl FnMut(usize, &mut [u8])) -> u32 {
    let mut piece = [0_u8; 8192];
    let (mut at, mut sum) = (0, 0);
    while at < bytes {
        let n = piece.len().min(bytes - at);
        copy(at, &mut piece[..n]);
        sum = crc32c::crc32c_append(sum, &piece[..n]);
        at += n;
    }
    sum
}
