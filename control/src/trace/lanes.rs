//! Intervals side by side: as few lanes as possible.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The lane of each interval `(from, until)`: no two of a lane overlap, and low lanes are preferred.
/// Intervals must be in the order of `from`.
pub fn lanes(intervals: impl Iterator<Item = (u64, u64)>) -> Vec<u32> {
    let mut free: BinaryHeap<Reverse<u32>> = BinaryHeap::new();
    let mut busy: BinaryHeap<Reverse<(u64, u32)>> = BinaryHeap::new();
    let mut count = 0;
    let mut place = |(from, until): (u64, u64)| {
        while let Some(Reverse((end, lane))) = busy.peek().copied() {
            if end > from {
                break;
            }
            busy.pop();
            free.push(Reverse(lane));
        }
        let lane = free.pop().map_or_else(
            || {
                count += 1;
                count - 1
            },
            |Reverse(lane)| lane,
        );
        // An interval without length still takes its place, so that two of one moment lie apart.
        busy.push(Reverse((until.max(from + 1), lane)));
        lane
    };
    intervals.map(&mut place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_reused_and_never_overlap() {
        let given = [(0, 10), (1, 3), (2, 9), (3, 4), (4, 4), (4, 8), (10, 12)];
        assert_eq!(lanes(given.into_iter()), [0, 1, 2, 1, 1, 3, 0]);
    }
}
