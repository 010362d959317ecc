//! The allocator of one range of a segment: pages in, pages out, coalescing, O(log n).

use crate::limits::{HUGE_BYTES, PAGE_BYTES};
use alloc::collections::{BTreeMap, BTreeSet};

/// Rounds up to a multiple of `unit` (a power of two), saturating at the largest multiple.
pub(super) const fn round_up(bytes: u64, unit: u64) -> u64 {
    match bytes.checked_add(unit - 1) {
        Some(sum) => sum & !(unit - 1),
        None => !(unit - 1),
    }
}

/// The alignment of an extent of this length.
const fn alignment(bytes: u64) -> u64 {
    if bytes >= HUGE_BYTES { HUGE_BYTES } else { PAGE_BYTES }
}

/// The first offset in a free extent at which `bytes` would begin, if they fit before `end`.
pub(super) fn fit(start: u64, end: u64, bytes: u64) -> Option<u64> {
    let at = round_up(start, alignment(bytes));
    (at <= end && end - at >= bytes).then_some(at)
}

/// Free space of the range `[start, end)`.
///
/// Pages that were never touched are slow to write first (the kernel zeroes them), so they are taken last.
/// They are always one piece at the end of the range, above `warm_end`: best fit among the other free extents
/// comes first, lowest address among equals.
#[derive(Debug)]
pub(super) struct Space {
    start: u64,
    end: u64,
    /// Offset to end of each free extent. Neighbours are always merged.
    free: BTreeMap<u64, u64>,
    /// The same by (length, offset).
    by_bytes: BTreeSet<(u64, u64)>,
    /// By (length after alignment to huge pages, offset), those with at least one huge page.
    by_huge: BTreeSet<(u64, u64)>,
    free_bytes: u64,
    peak_used_bytes: u64,
    warm_end: u64,
    reach: u64,
}

impl Space {
    /// All of `[start, end)` free and cold. Both are multiples of the page.
    pub(super) fn new(start: u64, end: u64) -> Self {
        assert!(start.is_multiple_of(PAGE_BYTES) && end.is_multiple_of(PAGE_BYTES) && start <= end);
        let mut space = Space {
            start,
            end,
            free: BTreeMap::new(),
            by_bytes: BTreeSet::new(),
            by_huge: BTreeSet::new(),
            free_bytes: end - start,
            peak_used_bytes: 0,
            warm_end: start,
            reach: start,
        };
        if start < end {
            space.insert(start, end);
        }
        space
    }

    /// Length of the range.
    pub(super) fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// First offset of the range.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Not allocated now.
    pub(super) fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    /// Allocated now.
    pub(super) fn used_bytes(&self) -> u64 {
        self.bytes() - self.free_bytes
    }

    /// Most that was allocated at one time.
    pub(super) fn peak_used_bytes(&self) -> u64 {
        self.peak_used_bytes
    }

    /// The largest extent that `allocate` could give when the range is empty.
    pub(super) fn largest_possible(&self) -> u64 {
        let aligned = self.end.saturating_sub(round_up(self.start, HUGE_BYTES));
        if aligned >= HUGE_BYTES { aligned } else { self.bytes().min(HUGE_BYTES - PAGE_BYTES) }
    }

    /// The largest extent that `allocate` would give now.
    pub(super) fn largest_free(&self) -> u64 {
        let huge = self.by_huge.last().map_or(0, |&(bytes, _)| bytes);
        huge.max(self.by_bytes.last().map_or(0, |&(bytes, _)| bytes.min(HUGE_BYTES - PAGE_BYTES)))
    }

    /// Share of the free bytes that lie outside of the longest free extent, 0 to 1.
    pub(super) fn fragmentation(&self) -> f32 {
        match self.by_bytes.last() {
            Some(&(longest, _)) => 1.0 - longest as f32 / self.free_bytes as f32,
            None => 0.0,
        }
    }

    /// Takes `bytes` (a positive multiple of the page) and tells where, or `None` if no free extent is long
    /// enough.
    pub(super) fn allocate(&mut self, bytes: u64) -> Option<u64> {
        debug_assert!(bytes > 0 && bytes.is_multiple_of(PAGE_BYTES));
        let index = if alignment(bytes) == HUGE_BYTES { &self.by_huge } else { &self.by_bytes };
        // At most one free extent reaches into cold pages, so the second best is warm if the best is not.
        let mut fits = index.range((bytes, 0)..).map(|&(_, offset)| offset).take(2);
        let best = fits.next()?;
        let offset = match fits.next() {
            Some(second) if self.free[&best] > self.warm_end => second,
            _ => best,
        };
        let end = self.remove(offset);
        let at = fit(offset, end, bytes).expect("the index holds only extents that fit");
        if offset < at {
            self.insert(offset, at);
        }
        if at + bytes < end {
            self.insert(at + bytes, end);
        }
        self.free_bytes -= bytes;
        self.peak_used_bytes = self.peak_used_bytes.max(self.used_bytes());
        self.warm_end = self.warm_end.max(at + bytes);
        self.reach = self.reach.max(at + bytes);
        Some(at)
    }

    /// Gives back `bytes` at `offset`, all of which `allocate` gave before (a tail or a head of what it gave
    /// may come back on its own).
    ///
    /// # Panics
    /// If any of it is free already: the bookkeeping above is then wrong, and going on would let two objects
    /// share memory.
    pub(super) fn free(&mut self, offset: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        assert!(offset.is_multiple_of(PAGE_BYTES) && bytes.is_multiple_of(PAGE_BYTES));
        let (mut from, mut to) = (offset, offset + bytes);
        assert!(from >= self.start && to <= self.end, "freed outside of the range");
        if let Some((&before, &before_end)) = self.free.range(..to).next_back() {
            assert!(before_end <= from, "freed twice");
            if before_end == from {
                self.remove(before);
                from = before;
            }
        }
        if self.free.contains_key(&to) {
            to = self.remove(to);
        }
        self.insert(from, to);
        self.free_bytes += bytes;
    }

    /// Free extents as (offset, end), in order.
    pub(super) fn free_extents(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.free.iter().map(|(&offset, &end)| (offset, end))
    }

    /// One past the highest page that was ever allocated (and not trimmed since).
    pub(super) fn reach(&self) -> u64 {
        self.reach
    }

    /// Pages below `end` have been touched.
    pub(super) fn warmed(&mut self, end: u64) {
        self.warm_end = self.warm_end.max(end.min(self.end) & !(PAGE_BYTES - 1));
    }

    /// Makes the free tail above `keep_end` cold and tells its extent (offset, end), if there is any.
    pub(super) fn trim(&mut self, keep_end: u64) -> Option<(u64, u64)> {
        let (&offset, _) = self.free.last_key_value().filter(|&(_, &end)| end == self.end)?;
        let from = round_up(offset.max(keep_end), HUGE_BYTES).min(self.end);
        let to = self.warm_end;
        self.warm_end = to.min(from);
        self.reach = self.reach.min(from);
        (from < to).then_some((from, to))
    }

    fn insert(&mut self, offset: u64, end: u64) {
        self.free.insert(offset, end);
        self.by_bytes.insert((end - offset, offset));
        let aligned = end.saturating_sub(round_up(offset, HUGE_BYTES));
        if aligned >= HUGE_BYTES {
            self.by_huge.insert((aligned, offset));
        }
    }

    fn remove(&mut self, offset: u64) -> u64 {
        let end = self.free.remove(&offset).expect("a free extent begins here");
        self.by_bytes.remove(&(end - offset, offset));
        let aligned = end.saturating_sub(round_up(offset, HUGE_BYTES));
        if aligned >= HUGE_BYTES {
            self.by_huge.remove(&(aligned, offset));
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_BYTES;
    const MIB: u64 = 1 << 20;

    #[test]
    fn coalesces_whatever_the_order() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut space = Space::new(PAGE, 4 * PAGE);
            let at: [u64; 3] = core::array::from_fn(|_| space.allocate(PAGE).unwrap());
            assert_eq!(at, [PAGE, 2 * PAGE, 3 * PAGE]);
            assert_eq!(space.allocate(PAGE), None);
            order.iter().for_each(|&i| space.free(at[i], PAGE));
            assert_eq!(space.free_extents().collect::<alloc::vec::Vec<_>>(), [(PAGE, 4 * PAGE)]);
        }
    }

    #[test]
    fn large_extents_are_aligned_and_the_gap_stays_usable() {
        let mut space = Space::new(PAGE, 8 * MIB);
        assert_eq!(space.largest_possible(), 6 * MIB);
        assert_eq!(space.allocate(3 * MIB), Some(2 * MIB));
        assert_eq!(space.allocate(2 * MIB - PAGE), Some(PAGE));
        assert_eq!(space.allocate(3 * MIB), None);
        assert_eq!(space.largest_free(), 2 * MIB);
        assert_eq!(space.allocate(2 * MIB), Some(6 * MIB));
    }

    #[test]
    fn warm_pages_come_before_cold_ones() {
        let mut space = Space::new(0, 64 * PAGE);
        let a = space.allocate(20 * PAGE).unwrap();
        let b = space.allocate(4 * PAGE).unwrap();
        space.free(a, 20 * PAGE);
        // The cold tail (40 pages) would be the worse fit anyway; 24 pages only fit there.
        assert_eq!(space.allocate(2 * PAGE), Some(0));
        assert_eq!(space.allocate(24 * PAGE), Some(b + 4 * PAGE));
        // Now the tail has 16 pages and the warm hole 18: best fit says tail, warmth says hole.
        assert_eq!(space.allocate(10 * PAGE), Some(2 * PAGE));
        assert_eq!(space.warm_end, 48 * PAGE);
    }

    #[test]
    fn trim_gives_up_only_the_free_tail() {
        let mut space = Space::new(0, 64 * MIB);
        let a = space.allocate(4 * MIB).unwrap();
        let b = space.allocate(30 * MIB).unwrap();
        assert_eq!(space.trim(0), None);
        space.free(b, 30 * MIB);
        assert_eq!(space.trim(10 * MIB), Some((10 * MIB, 34 * MIB)));
        assert_eq!(space.trim(10 * MIB), None);
        assert_eq!(space.trim(0), Some((4 * MIB, 10 * MIB)));
        space.free(a, 4 * MIB);
        assert_eq!(space.trim(0), Some((0, 4 * MIB)));
        assert_eq!(space.warm_end, 0);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_is_caught() {
        let mut space = Space::new(0, 8 * PAGE);
        let at = space.allocate(2 * PAGE).unwrap();
        space.free(at, 2 * PAGE);
        space.free(at + PAGE, PAGE);
    }
}
