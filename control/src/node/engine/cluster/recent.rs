//! What is remembered of the workflows used last, by their digests.

use std::collections::BTreeMap;

/// Workflows that are remembered; the one that was not used for longest goes first.
pub(super) const WORKFLOWS_MAX: usize = 256;

/// Something for each of them.
pub(super) struct Recent<V> {
    known: BTreeMap<[u8; 32], (u64, V)>,
    uses: u64,
}

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Recent { known: BTreeMap::new(), uses: 0 }
    }
}

impl<V> Recent<V> {
    /// What is remembered of a workflow.
    pub(super) fn find(&mut self, digest: &[u8; 32]) -> Option<&mut V> {
        self.uses += 1;
        let (used, value) = self.known.get_mut(digest)?;
        *used = self.uses;
        Some(value)
    }

    /// The same, or `new` from now on.
    pub(super) fn find_or(&mut self, digest: [u8; 32], new: V) -> &mut V {
        if self.known.len() >= WORKFLOWS_MAX && !self.known.contains_key(&digest) {
            let oldest = self.known.iter().min_by_key(|(_, (used, _))| *used).map(|(digest, _)| *digest);
            oldest.map(|digest| self.known.remove(&digest));
        }
        self.uses += 1;
        let (used, value) = self.known.entry(digest).or_insert((0, new));
        *used = self.uses;
        value
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}
