//! Which bytes of one object are here, on their way, or to be asked for.

use alloc::collections::BTreeMap;

/// Ranges of one object. What is neither here nor on its way nor in `gaps` begins at `next`.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    /// Bytes from the start that are here.
    done: u64,
    /// Ranges that are here, beyond `done`: start to end.
    islands: BTreeMap<u64, u64>,
    /// Ranges that were asked for and did not come.
    gaps: BTreeMap<u64, u64>,
    /// First byte never asked for.
    next: u64,
}

impl Chunks {
    pub(super) const fn done(&self) -> u64 {
        self.done
    }

    /// The next range to ask for, given that bytes before `readable` exist.
    pub(super) fn peek(&self, readable: u64, chunk_bytes: u64) -> Option<(u64, u64)> {
        if let Some((&from, &to)) = self.gaps.first_key_value()
            && from < readable
        {
            return Some((from, to.min(readable).min(from + chunk_bytes)));
        }
        (self.next < readable).then(|| (self.next, readable.min(self.next + chunk_bytes)))
    }

    /// `[from, to)`, as peeked, was asked for.
    pub(super) fn asked(&mut self, from: u64, to: u64) {
        if let Some(end) = self.gaps.remove(&from) {
            if to < end {
                self.gaps.insert(to, end);
            }
        } else {
            debug_assert_eq!(from, self.next);
            self.next = to;
        }
    }

    /// `[from, to)` was asked for, and has come up to `here`. Whether `done` moved.
    pub(super) fn came(&mut self, from: u64, here: u64, to: u64) -> bool {
        if here < to {
            self.gaps.insert(here, to);
        }
        if here > from {
            self.islands.insert(from, here);
        }
        let before = self.done;
        while let Some((&start, &end)) = self.islands.first_key_value()
            && start <= self.done
        {
            self.islands.pop_first();
            self.done = self.done.max(end);
        }
        self.done > before
    }
}
