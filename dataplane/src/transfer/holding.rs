//! What is held here, and who has been told.

use crate::transport::Region;
use dflow_proto::ids::{ObjectKey, RunId};
use dflow_proto::wire::NodeId;
use dflow_proto::wire::notice::{Announce, Notice};
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An object, or the beginning of one, that peers may read here.
#[derive(Clone)]
pub struct Publication {
    /// Its producer's try.
    pub attempt: u32,
    /// The registered segment it lies in.
    pub region: Region,
    /// Its first byte in the region.
    pub offset: u64,
    /// What it may grow to.
    pub capacity_bytes: u64,
    /// Its size, once it is known.
    pub size: Option<u64>,
    /// Bytes that are there.
    pub watermark: u64,
    /// All its bytes, if it is small and sealed: they travel inside the announcement.
    pub inline: Vec<u8>,
    /// Whatever must live while peers read; dropped when the object is withdrawn.
    pub keep: Option<Arc<dyn Any + Send + Sync>>,
}

/// What one peer was told last.
#[derive(Clone, Copy, Default)]
struct Told {
    watermark: u64,
    sealed: bool,
}

/// Objects held here.
#[derive(Default)]
pub(super) struct Holdings {
    held: BTreeMap<ObjectKey, Held>,
    /// Those whose readers do not know the latest.
    dirty: BTreeSet<ObjectKey>,
}

struct Held {
    publication: Publication,
    readers: BTreeMap<NodeId, Told>,
    /// Kept only for those that still read it.
    let_go: bool,
}

impl Holdings {
    /// Begins to hold an object; a later try replaces an earlier one.
    pub(super) fn publish(&mut self, key: ObjectKey, publication: Publication) {
        self.held.insert(key, Held { publication, readers: BTreeMap::new(), let_go: false });
    }

    pub(super) fn get(&self, key: ObjectKey) -> Option<&Publication> {
        self.held.get(&key).map(|held| &held.publication)
    }

    /// More of an object is there.
    pub(super) fn advance(&mut self, key: ObjectKey, watermark: u64, size: Option<u64>) {
        if let Some(held) = self.held.get_mut(&key) {
            let publication = &mut held.publication;
            publication.watermark = publication.watermark.max(watermark);
            publication.size = publication.size.or(size);
            if !held.readers.is_empty() {
                self.dirty.insert(key);
            }
        }
    }

    /// The announcement of an object to `node`, which is to pass it on to `relay`.
    pub(super) fn announce(&mut self, key: ObjectKey, node: NodeId, relay: Vec<NodeId>) -> Option<Notice> {
        let held = self.held.get_mut(&key)?;
        let p = &held.publication;
        held.readers.insert(node, Told { watermark: p.watermark, sealed: p.size.is_some() });
        Some(Notice::Announce(Announce {
            key,
            attempt: p.attempt,
            size: p.size,
            capacity_bytes: p.capacity_bytes,
            region: p.region,
            offset: p.offset,
            watermark: p.watermark,
            relay,
            inline: p.inline.clone(),
        }))
    }

    /// What readers must be told since they were told last, at most once for each object and reader however
    /// often it moved meanwhile.
    pub(super) fn news(&mut self) -> Vec<(NodeId, Notice)> {
        let mut news = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            let Some(held) = self.held.get_mut(&key) else { continue };
            let (attempt, watermark, size) =
                (held.publication.attempt, held.publication.watermark, held.publication.size);
            for (node, told) in &mut held.readers {
                let whole = size.filter(|size| *size == watermark && !told.sealed);
                let notice = match whole {
                    Some(size) => Notice::Sealed { key, attempt, size },
                    None if watermark > told.watermark => Notice::Progress { key, attempt, watermark },
                    None => continue,
                };
                *told = Told { watermark, sealed: whole.is_some() || told.sealed };
                news.push((*node, notice));
            }
        }
        news
    }

    /// Ends an object. Those to be told.
    pub(super) fn withdraw(&mut self, key: ObjectKey, lost: bool) -> Vec<(NodeId, Notice)> {
        let Some(held) = self.held.remove(&key) else { return Vec::new() };
        let attempt = held.publication.attempt;
        held.readers.into_keys().map(|node| (node, Notice::Withdrawn { key, attempt, lost })).collect()
    }

    /// A reader has finished with an object. Whether it was the last.
    pub(super) fn finished(&mut self, key: ObjectKey, node: NodeId) -> bool {
        self.held
            .get_mut(&key)
            .is_some_and(|held| held.readers.remove(&node).is_some() && held.readers.is_empty())
    }

    /// The node itself needs the object no more. Whether nobody does.
    pub(super) fn let_go(&mut self, key: ObjectKey) -> bool {
        let Some(held) = self.held.get_mut(&key) else { return true };
        held.let_go = true;
        held.readers.is_empty()
    }

    /// Whether the object is only kept for its readers.
    pub(super) fn is_let_go(&self, key: ObjectKey) -> bool {
        self.held.get(&key).is_some_and(|held| held.let_go)
    }

    /// A node is gone: it reads nothing any more. Objects of which it was the last reader.
    pub(super) fn lose(&mut self, node: NodeId) -> Vec<ObjectKey> {
        let mut released = Vec::new();
        for (key, held) in &mut self.held {
            if held.readers.remove(&node).is_some() && held.readers.is_empty() {
                released.push(*key);
            }
        }
        released
    }

    pub(super) fn of_run(&self, run: RunId) -> impl Iterator<Item = ObjectKey> {
        self.held.keys().filter(move |key| key.run == run).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }
}
