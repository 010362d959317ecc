//! What crossed between the nodes of a run.

use super::Timeline;
use crate::history::Places;
use std::collections::{BTreeMap, BTreeSet};

/// What one node read of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkBytes {
    /// Different objects.
    pub objects: u64,
    /// Their bytes; each object counts once for a node, however many of its invocations read it.
    pub bytes: u64,
}

/// By the numbers of the node that has the object and of the one that reads it.
pub(super) fn find(places: &Places, timeline: &Timeline) -> BTreeMap<(u16, u16), LinkBytes> {
    let mut crossed = BTreeSet::new();
    for attempt in &timeline.attempts {
        let reader = places.node_of(attempt.step, attempt.item);
        for read in &attempt.reads {
            for &index in timeline.read_objects(read) {
                let object = &timeline.objects[index as usize];
                let holder = places.node_of(object.step, object.invocation);
                if holder != reader {
                    crossed.insert((holder, reader, index));
                }
            }
        }
    }
    let mut links: BTreeMap<(u16, u16), LinkBytes> = BTreeMap::new();
    for (holder, reader, index) in crossed {
        let link = links.entry((holder, reader)).or_default();
        link.objects += 1;
        link.bytes += timeline.objects[index as usize].bytes;
    }
    links
}
