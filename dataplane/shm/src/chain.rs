//! A growing array in shared memory: chunks of fixed-size entries, each chunk naming the next.
//!
//! Chunks double up to [`CHUNK_BYTES_MAX`], so that a million entries take some forty steps to
//! find and nothing is ever moved under a reader. Used for the item index of a `many` port
//! (written by a worker) and for list inputs (written by the node). A reader trusts nothing in a
//! chunk's header: each hop is bounds-checked and the number of hops is limited.

use crate::segment::{Maps, Part, PartMut};
use core::sync::atomic::Ordering;
use dflow_proto::ids::{Extent, SegmentId};

/// A chunk is at most this long, in bytes.
pub const CHUNK_BYTES_MAX: u64 = 1 << 20;

/// A reader follows at most this many chunks: enough for a million entries that begin small.
const HOPS_MAX: usize = 256;

const HEADER: usize = 64;
const CAPACITY: usize = 0;
const HAS_NEXT: usize = 4;
const NEXT_SEGMENT: usize = 8;
const NEXT_OFFSET: usize = 16;
const NEXT_BYTES: usize = 24;

/// The writing side.
#[derive(Debug)]
pub(crate) struct ChainWriter {
    entry_bytes: usize,
    /// Chunks and the number of entries before each.
    chunks: Vec<(PartMut, u32)>,
    count: u32,
    room: u32,
}

impl ChainWriter {
    pub(crate) fn new(entry_bytes: usize) -> Self {
        ChainWriter { entry_bytes, chunks: Vec::new(), count: 0, room: 0 }
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of the chunk that must be added before the next entry; `None` if there is room.
    pub(crate) fn need(&self, first_bytes: u64) -> Option<u64> {
        if self.count < self.room {
            return None;
        }
        let last = self.chunks.last().map(|(part, _)| part.bytes() as u64 * 2);
        Some(last.unwrap_or(first_bytes).clamp(first_bytes, CHUNK_BYTES_MAX))
    }

    /// Appends an empty chunk. Returns its extent if it is the first, which then heads the chain.
    pub(crate) fn add(&mut self, part: PartMut) -> Option<Extent> {
        let capacity = (part.bytes().saturating_sub(HEADER) / self.entry_bytes) as u32;
        part.clear();
        part.word(CAPACITY).store(capacity, Ordering::Relaxed);
        let extent = part.extent();
        let first = match self.chunks.last() {
            None => Some(extent),
            Some((last, _)) => {
                last.word(NEXT_SEGMENT).store(extent.segment.0, Ordering::Relaxed);
                last.double(NEXT_OFFSET).store(extent.offset, Ordering::Relaxed);
                last.double(NEXT_BYTES).store(extent.bytes, Ordering::Relaxed);
                last.word(HAS_NEXT).store(1, Ordering::Release);
                None
            }
        };
        self.chunks.push((part, self.room));
        self.room += capacity;
        first
    }

    /// Takes the next entry, if there is room: its index, part and offset in it. The caller fills
    /// it and then publishes a count that includes it.
    pub(crate) fn append(&mut self) -> Option<(u32, &PartMut, usize)> {
        if self.count >= self.room {
            return None;
        }
        let index = self.count;
        self.count += 1;
        let (part, at) = self.entry(index)?;
        Some((index, part, at))
    }

    /// An entry appended before.
    pub(crate) fn entry(&self, index: u32) -> Option<(&PartMut, usize)> {
        if index >= self.count {
            return None;
        }
        let chunk = self.chunks.partition_point(|(_, before)| *before <= index).checked_sub(1)?;
        let (part, before) = &self.chunks[chunk];
        Some((part, HEADER + (index - before) as usize * self.entry_bytes))
    }
}

/// Finds entry `index` of the chain that begins at `head`: its part and offset in it. `None` if
/// the chain is not well-formed that far, or lies in memory this process does not have.
pub(crate) fn locate(maps: &dyn Maps, head: Extent, entry_bytes: usize, index: u32) -> Option<(Part, usize)> {
    let mut extent = head;
    let mut left = index;
    for _ in 0..HOPS_MAX {
        let part = maps.map(extent.segment)?.part(extent).ok()?;
        if part.bytes() < HEADER {
            return None;
        }
        let capacity = part.word(CAPACITY).load(Ordering::Relaxed);
        if capacity as usize > (part.bytes() - HEADER) / entry_bytes {
            return None;
        }
        if left < capacity {
            let at = HEADER + left as usize * entry_bytes;
            return Some((part, at));
        }
        left -= capacity;
        if part.word(HAS_NEXT).load(Ordering::Acquire) != 1 {
            return None;
        }
        extent = Extent {
            segment: SegmentId(part.word(NEXT_SEGMENT).load(Ordering::Relaxed)),
            offset: part.double(NEXT_OFFSET).load(Ordering::Relaxed),
            bytes: part.double(NEXT_BYTES).load(Ordering::Relaxed),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Segment;

    #[test]
    fn entries_are_found_again_in_every_chunk() {
        let segment = Segment::create(SegmentId(0), "test", 16 << 20).expect("a memfd");
        let map = segment.map_node().expect("maps");
        let maps = {
            let map = map.clone();
            move |_| Some(map.clone())
        };
        let mut writer = ChainWriter::new(32);
        let mut next = 0;
        let mut head = None;
        for n in 0..50_000_u32 {
            if let Some(bytes) = writer.need(1024) {
                let extent = Extent { segment: SegmentId(0), offset: next, bytes };
                next += bytes;
                if let Some(first) = writer.add(map.part_mut(extent).expect("in bounds")) {
                    head = Some(first);
                }
            }
            let (index, part, at) = writer.append().expect("there is room");
            assert_eq!(index, n);
            part.word(at).store(n, Ordering::Relaxed);
        }
        let head = head.expect("a first chunk");
        for n in (0..50_000).step_by(7) {
            let (part, at) = locate(&maps, head, 32, n).expect("well-formed");
            assert_eq!(part.word(at).load(Ordering::Relaxed), n);
            let (part, at) = writer.entry(n).expect("appended");
            assert_eq!(part.word(at).load(Ordering::Relaxed), n);
        }
        assert!(writer.entry(50_000).is_none());
        assert!(locate(&maps, head, 32, 10_000_000).is_none(), "past the last chunk");
    }

    #[test]
    fn a_chain_that_bites_its_tail_ends() {
        let segment = Segment::create(SegmentId(0), "test", 8192).expect("a memfd");
        let map = segment.map_node().expect("maps");
        let head = Extent { segment: SegmentId(0), offset: 0, bytes: 4096 };
        let part = map.part_mut(head).expect("in bounds");
        part.word(HAS_NEXT).store(1, Ordering::Relaxed);
        part.double(NEXT_BYTES).store(4096, Ordering::Relaxed);
        let maps = move |_| Some(map.clone());
        assert!(locate(&maps, head, 32, 5).is_none());
        part.word(CAPACITY).store(u32::MAX, Ordering::Relaxed);
        assert!(locate(&maps, head, 32, 5).is_none(), "more entries claimed than fit");
    }
}
