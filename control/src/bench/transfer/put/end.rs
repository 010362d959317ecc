//! What both ends have: a mover, memory to put from, and memory for what comes.

use super::super::{TransferError, content};
use super::Word;
use dflow_dataplane::transfer::{Landing, Moved, Mover, Publication};
use dflow_dataplane::transport::{Backend, Config, NodeId, Region, Transport, open};
use dflow_proto::ids::{Extent, ObjectKey, SegmentId};
use dflow_proto::transfer::TransferLimits;
use dflow_proto::wire::ANNOUNCED_BYTES_MAX;
use dflow_shm::segment::Map;
use std::sync::Arc;
use std::time::Duration;

/// An object that is announced is wanted for so long, as on a node. Milliseconds.
const WANTED_MS: u64 = 600_000;
/// The segment that objects are put from, and the one where they land.
const SOURCE: SegmentId = SegmentId(1);
const TARGET: SegmentId = SegmentId(2);

/// One end.
pub(super) struct End {
    pub(super) mover: Mover<Box<dyn Transport>>,
    /// What carries the data.
    pub(super) name: &'static str,
    /// Objects are put from its start.
    pub(super) source: Arc<Map>,
    /// Objects that do not travel in their announcement land at its start: the peer has one under way at a time.
    pub(super) target: Arc<Map>,
}

impl End {
    pub(super) fn open(config: Config, backend: Backend) -> Result<End, TransferError> {
        let (transport, chosen) = open(config, backend)?;
        let limits = TransferLimits { announced_ms: WANTED_MS, ..TransferLimits::default() };
        let mut mover = Mover::new(transport, limits);
        let memory = |segment| content::memory(segment, 4096);
        let (source, target) = (memory(SOURCE)?, memory(TARGET)?);
        mover.register(&source);
        mover.register(&target);
        Ok(End { mover, name: chosen.name, source, target })
    }

    /// Has at least so many bytes to put from, filled in, and so many for what comes.
    pub(super) fn room(&mut self, source: u64, target: u64) -> Result<(), TransferError> {
        if let Some(map) = self.grown(&self.source.clone(), source)? {
            content::fill(&map)?;
            self.source = map;
        }
        if let Some(map) = self.grown(&self.target.clone(), target)? {
            self.target = map;
        }
        Ok(())
    }

    /// A larger segment in place of one that is too small.
    fn grown(&mut self, map: &Arc<Map>, bytes: u64) -> Result<Option<Arc<Map>>, TransferError> {
        if map.bytes() >= bytes {
            return Ok(None);
        }
        let larger = content::memory(map.segment(), bytes)?;
        self.mover.deregister(map.segment());
        self.mover.register(&larger);
        Ok(Some(larger))
    }

    /// Puts an object that lies at the start of `SOURCE` or, passed on, of `TARGET`; the first `watermark` bytes of
    /// it, all if that is its size.
    pub(super) fn put(&mut self, key: ObjectKey, from: &Arc<Map>, bytes: u64, watermark: u64, to: &[NodeId]) {
        let whole = watermark == bytes;
        let inline =
            if whole && bytes <= ANNOUNCED_BYTES_MAX as u64 { copy(from, bytes) } else { Vec::new() };
        let region = match inline.is_empty() {
            true => self.mover.region(from.segment()).unwrap_or_default(),
            false => Region::default(),
        };
        let publication = Publication {
            attempt: 1,
            region,
            offset: 0,
            capacity_bytes: bytes,
            size: whole.then_some(bytes),
            watermark,
            inline,
            keep: Some(Arc::new(from.clone())),
        };
        self.mover.publish(key, publication);
        self.mover.announce(key, to);
    }

    /// Moves everything along. Gives memory to what asks for it; all else is the caller's.
    pub(super) fn poll(&mut self, moved: &mut Vec<Moved>, wait: Duration) -> Result<(), TransferError> {
        let from = moved.len();
        self.mover.poll(moved, wait)?;
        for moved in &moved[from..] {
            let Moved::Reserve { key, attempt, bytes } = *moved else { continue };
            let extent = Extent { segment: TARGET, offset: 0, bytes };
            let fits = bytes <= self.target.bytes();
            let landing = fits.then(|| Landing { map: self.target.clone(), extent, keep: None });
            self.mover.granted(key, attempt, landing);
        }
        Ok(())
    }

    pub(super) fn say(&mut self, node: NodeId, word: &Word) -> Result<(), TransferError> {
        let text = serde_json::to_vec(word).map_err(|e| TransferError::Peer(e.to_string()))?;
        self.mover.say(node, &text).map_err(|e| TransferError::Peer(e.to_string()))
    }
}

/// The first bytes of a segment.
pub(super) fn copy(map: &Arc<Map>, bytes: u64) -> Vec<u8> {
    let mut copy = vec![0; bytes as usize];
    if let Ok(part) = map.part(Extent { segment: map.segment(), offset: 0, bytes }) {
        part.copy_out(0, &mut copy);
    }
    copy
}
