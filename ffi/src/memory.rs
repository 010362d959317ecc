//! The memory an invocation was given for its small outputs.
//!
//! Bytes that libdflow copies itself are packed from the low end, 64-byte aligned: the function
//! never has a pointer there. Memory that the function fills in place comes in whole pages from the
//! high end, so that its mapping can be withdrawn object by object.

use dflow_proto::ids::Extent;
use dflow_proto::limits::PAGE_BYTES;
use dflow_shm::segment::PartMut;

/// Packed objects begin on cache lines.
const ALIGN: u64 = 64;

/// One opened allotment.
#[derive(Debug)]
pub(crate) struct Slab {
    part: PartMut,
    /// First free byte, from the start of the slab.
    low: u64,
    /// One past the last free byte; a multiple of the page size.
    high: u64,
}

impl Slab {
    /// The first page is the invocation's page, or unused.
    pub(crate) fn new(part: PartMut) -> Slab {
        let high = part.bytes() as u64 / PAGE_BYTES * PAGE_BYTES;
        Slab { part, low: PAGE_BYTES.min(high), high }
    }

    pub(crate) fn extent(&self) -> Extent {
        self.part.extent()
    }

    fn pack(&mut self, bytes: u64) -> Option<PartMut> {
        let end = self.low.checked_add(bytes)?;
        if end > self.high {
            return None;
        }
        let part = self.part.sub(self.low as usize, bytes as usize);
        self.low = end.next_multiple_of(ALIGN);
        Some(part)
    }

    fn pages(&mut self, bytes: u64) -> Option<PartMut> {
        let pages = bytes.max(1).checked_next_multiple_of(PAGE_BYTES)?;
        let start = self.high.checked_sub(pages)?;
        if start < self.low.next_multiple_of(PAGE_BYTES) {
            return None;
        }
        self.high = start;
        Some(self.part.sub(start as usize, pages as usize))
    }
}

/// All of an invocation's allotments; the last has room.
#[derive(Debug)]
pub(crate) struct Memory {
    slabs: Vec<Slab>,
}

impl Memory {
    pub(crate) fn new(first: Slab) -> Memory {
        Memory { slabs: vec![first] }
    }

    /// Room for exactly `bytes` packed bytes.
    pub(crate) fn pack(&mut self, bytes: u64) -> Option<PartMut> {
        self.slabs.last_mut()?.pack(bytes)
    }

    /// Pages for at least `bytes` bytes.
    pub(crate) fn pages(&mut self, bytes: u64) -> Option<PartMut> {
        self.slabs.last_mut()?.pages(bytes)
    }

    /// How long the next allotment should be if `need_bytes` must fit: each is twice the one before.
    pub(crate) fn next_bytes(&self, need_bytes: u64, bytes_max: u64) -> u64 {
        let last = self.slabs.last().map_or(0, |slab| slab.extent().bytes);
        let need = (need_bytes + 2 * PAGE_BYTES).next_multiple_of(PAGE_BYTES);
        need.max((last * 2).min(bytes_max))
    }

    pub(crate) fn add(&mut self, slab: Slab) {
        self.slabs.push(slab);
    }

    /// The allotments as they were granted.
    pub(crate) fn extents(&self) -> impl Iterator<Item = Extent> {
        self.slabs.iter().map(Slab::extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dflow_proto::ids::SegmentId;
    use dflow_shm::segment::Segment;

    #[test]
    fn packed_bytes_and_pages_never_meet() {
        let segment = Segment::create(SegmentId(0), "test", 64 << 10).expect("a memfd");
        let whole = Extent { segment: SegmentId(0), offset: 0, bytes: 64 << 10 };
        let map = segment.map_node().expect("maps");
        let mut memory = Memory::new(Slab::new(map.part_mut(whole).expect("fits")));
        let mut taken: Vec<Extent> = Vec::new();
        for n in 0..100_u64 {
            let part = if n % 5 == 0 { memory.pages(n * 100) } else { memory.pack(n * 37) };
            let Some(part) = part else { continue };
            let extent = part.extent();
            assert!(extent.offset >= PAGE_BYTES, "the first page is the invocation's");
            if n % 5 == 0 {
                assert!(extent.offset.is_multiple_of(PAGE_BYTES) && extent.bytes >= n * 100);
            }
            for other in &taken {
                assert!(extent.end() <= other.offset || other.end() <= extent.offset);
            }
            taken.push(extent);
        }
        assert!(taken.len() > 30);
        assert!(memory.pack(1 << 40).is_none() && memory.pages(u64::MAX).is_none());
        assert_eq!(memory.next_bytes(100, 1 << 20), 128 << 10);
        assert_eq!(memory.next_bytes(3 << 20, 1 << 20), (3 << 20) + 8192);
    }
}
